"""Eight simulated generators to tell apart: decoders whose weights are drawn once, so that each
leaves one trace in all its pictures.

Families are ways of upsampling, makers are checkpoints of them. Every prompt is painted by all of
them, so that content tells nothing; files have histories of their own, drawn alike for all. Knows
pixels and a folder. Knows nothing about who tells them apart.
"""

import csv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.simulation.archive import repaint
from tests.simulation.camera import CAMERAS, Pixels, SimulatedEncoding
from tests.simulation.scenes import Rng, render

_SCENES = ("leaves", "clouds", "fabric", "strokes", "pebbles", "hills")


@dataclass(frozen=True)
class SimulatedGenerator:
    """One simulated generator: a way of upsampling (of `DECODERS`), with the weights that `seed`
    draws, `stages` times.
    """

    family: str
    seed: int
    stages: int = 1

    def paint(self, pixels: Pixels, rng: Rng) -> Pixels:
        """A picture of what `pixels` show: (h, w, 3) uint8, sides multiples of 4, → the same shape."""
        return repaint(
            self.family,
            pixels,
            rng,
            stages=self.stages,
            weights=np.random.default_rng([31, self.seed]),
        )


MAKERS: dict[str, SimulatedGenerator] = {
    "nearest/a": SimulatedGenerator("nearest", 1),
    "nearest/b": SimulatedGenerator("nearest", 2, stages=2),
    "bilinear/a": SimulatedGenerator("bilinear", 3),
    "transposed/a": SimulatedGenerator("transposed4", 4),
    "transposed/b": SimulatedGenerator("transposed3", 5),
    "shuffle/a": SimulatedGenerator("shuffle", 6),
    "sinc/a": SimulatedGenerator("sinc", 7),
    "bicubic/a": SimulatedGenerator("bicubic", 8, stages=2),
}


def build_made_set(folder: Path, *, prompts: int, side: int = 128) -> Path:
    """Write the camera picture of each of `prompts` contents and what all makers paint of it, as
    JPEG and PNG files of `side` pixels (a multiple of 8) below `folder`; returns the list
    `labels.csv`: path, label, generator, group, prompt.

    A group is all pictures of one content. The same arguments give the same files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as threads:
        parts = list(
            threads.map(lambda number: list(_pictures(folder, number, side)), range(prompts))
        )
    labels = folder / "labels.csv"
    with labels.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("path", "label", "generator", "group", "prompt"))
        writer.writerows(row for part in parts for row in part)
    return labels


def _pictures(folder: Path, number: int, side: int) -> Iterator[tuple[str, ...]]:
    rng = np.random.default_rng([20, 4, number])
    scene, camera = str(rng.choice(_SCENES)), str(rng.choice(list(CAMERAS)))
    real = CAMERAS[camera].shoot(render(scene, rng, 2 * side, 2 * side), rng)
    made = [("fake", name, maker.paint(real, rng)) for name, maker in MAKERS.items()]
    for label, generator, pixels in [("real", f"real:{camera}", real), *made]:
        jpeg = rng.random() < 0.7
        encoding = (
            SimulatedEncoding("JPEG", int(rng.integers(85, 99)), "4:4:4")
            if jpeg
            else SimulatedEncoding("PNG")
        )
        path = f"{generator.replace('/', '-').replace(':', '-')}/{number:05}.{'jpg' if jpeg else 'png'}"
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(encoding.encode(pixels))
        yield path, label, generator, f"prompt-{number:05}", f"{scene} {number}"
