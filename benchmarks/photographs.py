"""Photographs of the simulated camera to measure speed with: `write_photographs`."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from tests.simulation import camera, scenes
from tests.simulation.archive import load_scipy

_BASES = ("hills", "leaves", "clouds", "pebbles")


def write_photographs(
    folder: Path,
    count: int,
    *,
    size: tuple[int, int] = (1024, 768),
    quality: int = 90,
    seed: int = 0,
    start: int = 0,
) -> list[Path]:
    """Write `count` JPEG photographs of `size` (width, height), about 100 to 350 KB at the default
    size, no two alike.

    A few scenes are photographed; every file is another crop of one, turned and lit in its own way.
    File `i` depends on `seed` and `i` alone, so more can be added later with `start`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    load_scipy()
    with ThreadPoolExecutor() as threads:
        bases = list(
            threads.map(lambda family: _base(seed, family, height + 160, width + 160), _BASES)
        )
    paths = []
    for index in range(start, start + count):
        rng = np.random.default_rng([seed, 4, index])
        base = bases[int(rng.integers(len(bases)))]
        top, left = int(rng.integers(161)), int(rng.integers(161))
        crop = base[top : top + height, left : left + width][:, :: int(rng.choice([-1, 1]))]
        curve = (
            np.clip(255 * (np.arange(256) / 255) ** rng.uniform(0.8, 1.25), 0, 255)
            .round()
            .astype(np.uint8)
        )
        path = folder / f"photo-{index:06d}.jpg"
        Image.fromarray(curve[crop]).save(path, "JPEG", quality=quality)
        paths.append(path)
    return paths


def _base(seed: int, family: str, height: int, width: int) -> camera.Pixels:
    rng = np.random.default_rng([seed, 3, *family.encode()])
    return camera.CAMERAS["reflex"].shoot(scenes.render(family, rng, 2 * height, 2 * width), rng)
