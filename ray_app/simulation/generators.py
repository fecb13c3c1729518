"""The generators of the simulated set: every decoder by name, the learned ones trained on pictures of their own split and kept in a store.

Knows splits, cameras and scenes. Knows nothing about histories, labels or detectors.
"""

import numpy as np
from safetensors.torch import load, save

from ray_app.simulation.autoencoders import AUTOENCODERS, Autoencoder, TrainedDecoder, train_autoencoder
from ray_app.simulation.camera import CAMERAS
from ray_app.simulation.dataset import SPLITS, Decode
from ray_app.simulation.decoders import DECODERS
from ray_app.simulation.scenes import render
from ray_app.storage import Store

# The slow ones first: where several processes train them, none waits long for the last.
LEARNED = tuple(sorted(AUTOENCODERS, key=lambda name: -AUTOENCODERS[name].width * AUTOENCODERS[name].stages))
_PICTURES, _SIDE_PX = 40, 448


def train_generator(name: str, *, seed: int, steps: int) -> TrainedDecoder:
    """Train one autoencoder on pictures of its own split, so that no decoder saw scenes or cameras of another."""
    split = next(split for split in SPLITS.values() if name in split.decoders)
    rng = np.random.default_rng([seed, *name.encode()])
    pictures = [
        CAMERAS[str(rng.choice(split.cameras))].shoot(render(str(rng.choice(split.scenes)), rng, _SIDE_PX, _SIDE_PX), rng)
        for _ in range(_PICTURES)
    ]
    return train_autoencoder(AUTOENCODERS[name], pictures, seed=seed, steps=steps)


def keep_generator(store: Store, name: str, *, seed: int, steps: int) -> None:
    """Train one of `LEARNED` and keep it; one that is kept already is left as it is."""
    if not store.exists(_file(name)):
        store.write(_file(name), save(train_generator(name, seed=seed, steps=steps).net.state_dict()))


def kept_generators(store: Store) -> dict[str, Decode]:
    """Every decoder of every split, by name; all of `LEARNED` have been kept in `store`."""
    return DECODERS | {name: _kept(store, name) for name in LEARNED}


def _kept(store: Store, name: str) -> TrainedDecoder:
    net = Autoencoder(AUTOENCODERS[name])
    net.load_state_dict(load(store.read(_file(name))))
    return TrainedDecoder(net.eval())


def _file(name: str) -> str:
    return f"{name}.safetensors"
