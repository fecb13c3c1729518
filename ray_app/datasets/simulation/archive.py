"""Sample archives on disk: a small mixed one to try everything on (`build_sample_archive`), and photographs to measure speed with
(`write_photographs`).
"""

import csv
import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ray_app.datasets.simulation.camera import CAMERAS, SUFFIXES, Pixels, SimulatedEncoding, draw_encoding
from ray_app.datasets.simulation.decoders import DECODERS
from ray_app.datasets.simulation.pairs import Split, make_pair
from ray_app.datasets.simulation.scenes import Rng, render

# Only what `touchstone-tiny` was not trained on, and only decoders that need no training.
_SHOWN = Split(
    scenes=("strokes", "pebbles", "hills", "foliage", "flower"),
    cameras=("rangefinder", "mirrorless", "camcorder"),
    decoders=("bicubic", "transposed5", "sinc"),
)
_BASES = ("hills", "leaves", "facades", "pebbles")
_ALBUMS = ("desk", "desk/drafts", "travel/2019", "travel/2021", "wire")


@dataclass(frozen=True)
class SampleArchive:
    """Where a sample archive lies. `labels` is a CSV beside it: path, sha256, label (real or fake), generator."""

    folder: Path
    labels: Path
    files: int


def build_sample_archive(folder: Path, *, files: int = 60, seed: int = 0) -> SampleArchive:
    """Write an archive of `files` files in subfolders: simulated photographs, repainted pictures, five odd files.

    Sides of 200 to 1024 pixels, JPEG, PNG and WebP; the odd ones are a text, a truncated JPEG, an empty file, a CMYK JPEG
    and an animated GIF. Labels go to `<folder>-labels.csv`. The same seed gives the same pictures.
    """
    assert files >= 7, "five odd files and a pair"
    odd = list(_odd_files(np.random.default_rng([seed, 1])))
    rows: list[tuple[str, bytes, str, str]] = list(odd)
    _load_scipy()
    with ThreadPoolExecutor() as threads:
        rows += threads.map(lambda index: _picture(seed, index), range(files - len(odd)))
    for path, data, _, _ in rows:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    labels = folder.with_name(f"{folder.name}-labels.csv")
    with labels.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path", "sha256", "label", "generator"])
        writer.writerows((path, hashlib.sha256(data).hexdigest(), label, maker) for path, data, label, maker in rows if label)
    return SampleArchive(folder, labels, len(rows))


def write_photographs(
    folder: Path, count: int, *, size: tuple[int, int] = (1024, 768), quality: int = 90, seed: int = 0, start: int = 0
) -> list[Path]:
    """Write `count` JPEG photographs of `size` (width, height), about 100 to 350 KB at the default size, no two alike.

    A few scenes are photographed; every file is another crop of one, turned and lit in its own way. File `i` depends on
    `seed` and `i` alone, so more can be added later with `start`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    _load_scipy()
    with ThreadPoolExecutor() as threads:
        bases = list(threads.map(lambda family: _base(seed, family, height + 160, width + 160), _BASES))
    paths = []
    for index in range(start, start + count):
        rng = np.random.default_rng([seed, 4, index])
        base = bases[int(rng.integers(len(bases)))]
        top, left = int(rng.integers(161)), int(rng.integers(161))
        crop = base[top : top + height, left : left + width][:, :: int(rng.choice([-1, 1]))]
        curve = np.clip(255 * (np.arange(256) / 255) ** rng.uniform(0.8, 1.25), 0, 255).round().astype(np.uint8)
        path = folder / f"photo-{index:06d}.jpg"
        Image.fromarray(curve[crop]).save(path, "JPEG", quality=quality)
        paths.append(path)
    return paths


def _load_scipy() -> None:
    # Threads that import it at the same time for the first time may see half of it.
    import scipy.fft
    import scipy.ndimage  # noqa: F401


def _picture(seed: int, index: int) -> tuple[str, bytes, str, str]:
    """File `index` of the archive: the even ones are real, the odd ones fake; nothing else follows from the index."""
    rng = np.random.default_rng([seed, 2, index])
    long, aspect = 270 * (1024 / 270) ** rng.random() ** 1.7, rng.choice([1.0, 4 / 3, 3 / 2])  # many small, few large
    sides = sorted((round(max(long / aspect, 200)), round(long)), reverse=bool(rng.random() < 0.3))
    pair = make_pair(_SHOWN, DECODERS, rng, *sides)
    encoding = draw_encoding(rng)
    label, pixels, maker = ("fake", pair.fake, pair.decoder) if index % 2 else ("real", pair.real, f"camera:{pair.camera}")
    number = hashlib.sha256(f"{seed}/{index}".encode()).hexdigest()[:6]
    path = f"{rng.choice(_ALBUMS)}/{number}{SUFFIXES[encoding.format]}"
    return path, encoding.encode(pixels), label, maker


def _odd_files(rng: Rng) -> Iterator[tuple[str, bytes, str, str]]:
    """Path, bytes, label (empty where there is no picture to label), maker."""
    photo = CAMERAS["mirrorless"].shoot(render("hills", rng, 512, 768), rng)
    jpeg = SimulatedEncoding("JPEG", 90).encode(photo)
    yield "README.txt", b"Pictures made by a simulated camera and by simulated decoders.\n", "", ""
    yield "wire/cut-short.jpg", jpeg[: len(jpeg) // 2], "", ""
    yield "wire/nothing.jpg", b"", "", ""
    stream = io.BytesIO()
    Image.fromarray(photo).convert("CMYK").save(stream, "JPEG", quality=90)
    yield "desk/for-print.jpg", stream.getvalue(), "real", "camera:mirrorless"
    frames = [Image.fromarray(np.roll(photo, 24 * step, axis=1)).convert("P", palette=Image.Palette.ADAPTIVE) for step in range(3)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=200, loop=0)
    yield "travel/2021/moving.gif", stream.getvalue(), "real", "camera:mirrorless"


def _base(seed: int, family: str, height: int, width: int) -> Pixels:
    rng = np.random.default_rng([seed, 3, *family.encode()])
    return CAMERAS["reflex"].shoot(render(family, rng, 2 * height, 2 * width), rng)
