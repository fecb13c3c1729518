"""Train `touchstone-tiny`, the demonstration detector, from simulated pictures alone.

    python scripts/train_tiny.py                 # simulate, train, measure, write configs/detectors/touchstone-tiny.*
    python scripts/train_tiny.py --check         # do the same in memory and compare with the shipped weights, bit for bit

Every draw comes from seeds, and the number of threads is fixed, so the same machine and the same versions give the same bytes.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded; workers inherit it

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save

from ray_app.detectors.residual import ResidualNet
from ray_app.simulation.autoencoders import AUTOENCODERS, TrainedDecoder, train_autoencoder
from ray_app.simulation.camera import CAMERAS
from ray_app.simulation.dataset import SPLITS, Decode, make_pair
from ray_app.simulation.decoders import DECODERS
from ray_app.simulation.history import draw_history
from ray_app.simulation.scenes import render

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "configs" / "detectors" / "touchstone-tiny.safetensors"
FIGURES = WEIGHTS.with_suffix(".figures.json")

SEED = 20
PAIRS = {"train": 2600, "validation": 500, "test": 500}
SOURCE_SIDE = {"train": 320, "validation": 352, "test": 352}  # pixels of the picture before its history
TARGET_SIDE = {"train": 168, "validation": 256, "test": 256}  # pixels of the file
HISTORIES = {"train": 2, "validation": 1, "test": 1}  # files made of each pair
CROP, BATCH, EPOCHS, RATE, THREADS = 128, 32, 16, 3e-3, 1
SPLIT_SEED = {"train": 1, "validation": 2, "test": 3}

_decoders: dict[str, Decode] = {}


Log = Callable[[str], None]


def simulate(workers: int, log: Log) -> dict[str, "Files"]:
    """All three splits; the work of one pair depends on its index alone, never on the worker."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        trained = pool.map(_train_decoder, AUTOENCODERS, chunksize=1)
    log(f"{len(trained)} autoencoders trained")
    splits = {}
    with multiprocessing.get_context("spawn").Pool(workers, _receive_decoders, (dict(trained),)) as pool:
        for split, pairs in PAIRS.items():
            made = pool.imap(_make_files, [(split, index) for index in range(pairs)], chunksize=8)
            splits[split] = Files.gather(made)
            log(f"{split}: {len(splits[split].labels)} files simulated")
    return splits


@dataclass
class Files:
    """Decoded files of one split: pixels (n, side, side, 3) uint8, labels 1 = fake, and what made each."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    origins: list[tuple[str, str, str]]  # scene, camera, decoder

    @classmethod
    def gather(cls, made: Iterable[list[tuple[NDArray[np.uint8], int, tuple[str, str, str]]]]) -> "Files":
        """Collect what the workers send, in order."""
        pixels, labels, origins = zip(*(file for files in made for file in files), strict=True)
        return cls(np.stack(pixels), np.array(labels), list(origins))


def _train_decoder(name: str) -> tuple[str, TrainedDecoder]:
    """Train one autoencoder on pictures of its own split, so that test decoders never saw training scenes."""
    split = next(split for split in SPLITS.values() if name in split.decoders)
    rng = np.random.default_rng([SEED, *name.encode()])
    pictures = [CAMERAS[str(rng.choice(split.cameras))].shoot(render(str(rng.choice(split.scenes)), rng, 448, 448), rng) for _ in range(40)]
    return name, train_autoencoder(AUTOENCODERS[name], pictures, seed=SEED)


def _receive_decoders(trained: dict[str, TrainedDecoder]) -> None:
    torch.set_num_threads(1)
    _decoders.update(DECODERS, **trained)


def _make_files(job: tuple[str, int]) -> list[tuple[NDArray[np.uint8], int, tuple[str, str, str]]]:
    split, index = job
    rng = np.random.default_rng([SEED, SPLIT_SEED[split], index])
    side, target = SOURCE_SIDE[split], TARGET_SIDE[split]
    pair = make_pair(SPLITS[split], _decoders, rng, side, side)
    files = []
    for _ in range(HISTORIES[split]):
        history = draw_history(rng, side, side, target=(target, target))
        for label, data in enumerate(pair.encode(history)):
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            files.append((pixels, label, (pair.scene, pair.camera, pair.decoder)))
    return files


def as_input(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """(n, h, w, 3) uint8 → what the card's normalisation gives: (n, 3, h, w), grey levels minus 128."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() - 128
    return tensor.contiguous(memory_format=torch.channels_last)


def train(files: Files, log: Log) -> ResidualNet:
    """Binary cross-entropy on random crops, turned and mirrored; returns the network with its norms folded away."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    rng = np.random.default_rng([SEED, 4])
    net = ResidualNet(norms=True).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-2)
    steps = len(files.labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps * EPOCHS)
    for epoch in range(EPOCHS):
        order = rng.permutation(len(files.labels))
        total = 0.0
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            batch = as_input(_augment(files.pixels[chosen], rng))
            with torch.autocast("cpu", torch.bfloat16):  # twice as fast, and the precision that the network will run in
                logits = net(batch)[:, 0]
            loss = functional.binary_cross_entropy_with_logits(logits.float(), torch.from_numpy(files.labels[chosen]).float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        log(f"epoch {epoch + 1}/{EPOCHS}: loss {total / steps:.4f}")
    return net.eval().without_norms()


def _augment(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    top, left = rng.integers(pixels.shape[1] - CROP + 1, size=2)
    turned = np.rot90(pixels[:, top : top + CROP, left : left + CROP], int(rng.integers(4)), axes=(1, 2))
    return turned[:, :, ::-1] if rng.random() < 0.5 else turned


@torch.inference_mode()
def score(net: ResidualNet, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Log-odds of fake for equally sized pictures."""
    batches = np.array_split(pixels, max(1, len(pixels) // 16))
    return np.concatenate([net(as_input(batch))[:, 0].double().numpy() for batch in batches])


def main() -> int:
    """Parse, simulate, train, measure, write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the shipped weights, write nothing")
    parser.add_argument("--workers", type=int, default=2, help="processes that simulate (no influence on the result)")
    parser.add_argument("--realworld", type=Path, default=ROOT.parent / "shared" / "realworld", help="real pictures, measured only")
    arguments = parser.parse_args()
    started = time.monotonic()
    data = simulate(arguments.workers, started)
    net = train(*data["train"][:2], started)
    weights = save({name: value.contiguous() for name, value in net.state_dict().items()})
    digest = hashlib.sha256(weights).hexdigest()
    if arguments.check:
        same = digest == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
        print(f"{'identical' if same else 'DIFFERENT'}: {digest}")
        return 0 if same else 1
    figures = measure(net, data)
    write_atomically(WEIGHTS, weights)
    print(json.dumps({"sha256": digest, **figures}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
