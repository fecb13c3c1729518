"""Pairs of a camera picture and its decoded twin with one compression history (`make_pair`), split by scene, camera and decoder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ray_app.datasets.simulation.camera import CAMERAS, History, Pixels
from ray_app.datasets.simulation.scenes import Rng, render

Decode = Callable[[Pixels, Rng], Pixels]


@dataclass(frozen=True)
class Split:
    """What one split may draw from. No name stands in two splits."""

    scenes: tuple[str, ...]
    cameras: tuple[str, ...]
    decoders: tuple[str, ...]


SPLITS: dict[str, Split] = {
    "train": Split(
        scenes=("leaves", "clouds", "facades", "fabric", "spheres", "china"),
        cameras=("webcam", "compact", "reflex", "bridge", "phone", "scanner"),
        decoders=("nearest", "bilinear", "transposed4", "transposed3", "shuffle",
                  "ae-nearest4", "ae-nearest8", "ae-transposed2", "ae-shuffle4", "ae-bilinear2"),
    ),
    "validation": Split(
        scenes=("strokes", "pebbles"),
        cameras=("tablet", "rangefinder"),
        decoders=("bicubic", "ae-nearest2"),
    ),
    "test": Split(
        scenes=("hills", "foliage", "flower"),
        cameras=("mirrorless", "camcorder"),
        decoders=("transposed5", "sinc", "ae-transposed4", "ae-shuffle8"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """The same content twice, with equal sizes: as a camera took it and as a decoder painted it."""

    real: Pixels
    fake: Pixels
    scene: str
    camera: str
    decoder: str

    def encode(self, history: History) -> tuple[bytes, bytes]:
        """Both pictures' files after one and the same history: (real, fake)."""
        return history.apply(self.real), history.apply(self.fake)


def make_pair(split: Split, decoders: Mapping[str, Decode], rng: Rng, height: int, width: int) -> Pair:
    """Draw a scene, a camera and a decoder of `split`; sides are rounded up to multiples of 8."""
    height, width = -height % 8 + height, -width % 8 + width
    scene, camera, decoder = (str(rng.choice(names)) for names in (split.scenes, split.cameras, split.decoders))
    real = CAMERAS[camera].shoot(render(scene, rng, 2 * height, 2 * width), rng)
    return Pair(real, decoders[decoder](real, rng), scene, camera, decoder)
