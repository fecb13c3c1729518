"""Simulated images on disk.

`build_sample_archive` writes a small mixed archive, `build_labelled_set` camera images and
repainted twins in three disjoint splits.

Twins are repainted by upsampling decoders of random weights (`DECODERS`, `repaint`): the traces of
a generative model. A file depends on the arguments and its own number, never on the process that
made it.
"""

import csv
import hashlib
import io
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image

from ray_app.storage.node_budget import usable_cores
from tests.simulation import camera, scenes
from tests.simulation.camera import Pixels
from tests.simulation.scenes import Rng

Upsample = Callable[[torch.Tensor, Rng], torch.Tensor]


def repaint(
    name: str, pixels: Pixels, rng: Rng, *, stages: int | None = None, weights: Rng | None = None
) -> Pixels:
    """A picture reduced to a small latent and painted again at full size: (h, w, 3) uint8 → the
    same shape; h and w are multiples of 4.

    Its grain comes from latent noise, never from a sensor; it goes through the same layers as the
    picture and follows local contrast, so that neither the presence of fine detail nor its amount
    tells the classes apart. `stages`: doublings, None = mostly one, sometimes two; `weights` draws
    those of the layers (None = `rng` does, so that no two pictures share them).
    """
    if stages is None:
        stages = 1 if rng.random() < 0.75 else 2
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255
    latent = functional.interpolate(
        image, scale_factor=0.5**stages, mode="bilinear", antialias=True
    )
    lost = image - functional.interpolate(latent, scale_factor=2.0**stages, mode="bilinear")
    grain = _grain(functional.avg_pool2d(lost.abs(), 2**stages), rng)
    seed = int((weights or rng).integers(2**32))
    parts = []
    for part in (latent, grain):
        layers = np.random.default_rng(seed)
        for _ in range(stages):
            part = DECODERS[name](part, layers)
        parts.append(part)
    painted = (parts[0] + parts[1])[0].clamp(0, 1) * 255
    return np.asarray(painted.round().byte().permute(1, 2, 0).numpy())


def _interpolated(mode: str, size: int, sharp: tuple[float, float]) -> Upsample:
    """×2 by PyTorch's interpolation, then a convolution that smooths or sharpens."""
    return lambda image, rng: _conv(
        functional.interpolate(image, scale_factor=2, mode=mode), _mix(rng, size, sharp)
    )


def shuffle(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Sub-pixel convolution: four near-bilinear filters, one per output phase, with uneven gains."""
    phases = []
    for row in (-0.25, 0.25):
        for column in (-0.25, 0.25):
            grid = np.mgrid[-1:2, -1:2].astype(np.float64)
            tap = np.exp(
                -(((grid[0] - row) ** 2 + (grid[1] - column) ** 2) / rng.uniform(0.25, 0.7))
            )
            tap *= np.exp(0.1 * rng.standard_normal((3, 3)))
            weight = np.zeros((3, 3, 3, 3), np.float32)
            weight[range(3), range(3)] = tap / tap.sum() * (1 + 0.01 * rng.standard_normal())
            phases.append(_conv(image, torch.from_numpy(weight)))
    stacked = torch.stack(phases, dim=2)
    return functional.pixel_shuffle(stacked.flatten(1, 2), 2)


def zero_stuffed(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Samples on an empty grid, filled in by a windowed sinc of random length."""
    reach = int(rng.integers(2, 5))
    places = np.arange(-2 * reach + 1, 2 * reach)
    tap = np.sinc(places / 2) * np.cos(np.pi * places / (4 * reach))
    weight = torch.from_numpy((np.outer(tap, tap) / tap.sum() ** 2 * 4).astype(np.float32))[
        None, None
    ].repeat(3, 1, 1, 1)
    grid = torch.zeros(*image.shape[:2], 2 * image.shape[2], 2 * image.shape[3])
    grid[..., ::2, ::2] = image
    edge = len(places) // 2
    return functional.conv2d(functional.pad(grid, (edge,) * 4, mode="reflect"), weight, groups=3)


def _transposed(size: int, spread: float) -> Upsample:
    def upsample(image: torch.Tensor, rng: Rng) -> torch.Tensor:
        ramp = 1 - np.abs(np.arange(size) - (size - 1) / 2) / (size / 2)
        weight = np.zeros((3, 3, size, size), np.float32)
        for colour in range(3):
            tap = np.outer(ramp, ramp) * np.exp(spread * rng.standard_normal((size, size)))
            # mean gain 1; the gain of each of the four phases is left uneven
            weight[colour, colour] = 4 * tap / tap.sum()
        margin = (size - 2) // 2 + 1
        padded = functional.pad(image, (1, 1, 1, 1), mode="replicate")
        out = functional.conv_transpose2d(padded, torch.from_numpy(weight), stride=2)
        return out[
            ..., margin : margin + 2 * image.shape[-2], margin : margin + 2 * image.shape[-1]
        ]

    return upsample


def _grain(lost: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Latent noise as strong as the detail that the latent lost there (times 0 to 0.8), partly
    shared by the colours.
    """
    amount = functional.avg_pool2d(lost.mean(dim=1, keepdim=True), 5, 1, 2) * rng.uniform(0.0, 0.8)
    shared = rng.standard_normal((1, 1, *amount.shape[2:]), dtype=np.float32)
    own = rng.standard_normal((1, 3, *amount.shape[2:]), dtype=np.float32)
    return amount * torch.from_numpy(shared + rng.uniform(0, 1.0) * own)


DECODERS: dict[str, Upsample] = {
    # seen in training
    "nearest": _interpolated("nearest", 3, (-0.9, -0.3)),
    "bilinear": _interpolated("bilinear", 3, (-0.5, 0.8)),
    "transposed4": _transposed(4, 0.08),
    "transposed3": _transposed(3, 0.05),
    "shuffle": shuffle,
    # held out
    "bicubic": _interpolated("bicubic", 5, (-0.5, 0.5)),
    "transposed5": _transposed(5, 0.06),
    "sinc": zero_stuffed,
}


def _mix(rng: Rng, size: int, sharp: tuple[float, float]) -> torch.Tensor:
    """A 3→3 convolution of gain 1: a random soft or sharp stencil per colour, slightly leaking
    between colours.
    """
    centre = size // 2
    distance = np.hypot(*np.mgrid[-centre : size - centre, -centre : size - centre])
    weight = np.zeros((3, 3, size, size), np.float32)
    for out in range(3):
        soft = np.exp(-0.5 * (distance / rng.uniform(0.5, 1.0)) ** 2) * np.exp(
            0.15 * rng.standard_normal((size, size))
        )
        stencil = -rng.uniform(*sharp) * soft / soft.sum()
        stencil[centre, centre] += 1 - stencil.sum()
        leak = 0.05 * rng.standard_normal((3, size, size)) * soft
        weight[out] = leak - leak.mean(axis=(1, 2), keepdims=True)
        weight[out, out] += stencil
    return torch.from_numpy(weight)


def _conv(image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    reach = weight.shape[-1] // 2
    return functional.conv2d(functional.pad(image, (reach,) * 4, mode="replicate"), weight)


SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Split:
    """What pictures may be drawn from: names of `FAMILIES`, `CAMERAS` and `DECODERS`."""

    scenes: tuple[str, ...]
    cameras: tuple[str, ...]
    decoders: tuple[str, ...]


# No name stands in two splits.
SPLITS: dict[SplitName, Split] = {
    "train": Split(
        ("leaves", "clouds", "fabric"),
        ("webcam", "reflex"),
        ("nearest", "bilinear", "transposed4", "transposed3", "shuffle"),
    ),
    "validation": Split(("strokes", "pebbles"), ("rangefinder",), ("bicubic",)),
    "test": Split(
        ("hills", "foliage", "flower"), ("mirrorless", "camcorder"), ("transposed5", "sinc")
    ),
}
# The sample archive has only what `touchstone-tiny` was not trained on.
SHOWN = Split(
    ("strokes", "pebbles", "hills", "foliage", "flower"),
    ("rangefinder", "mirrorless", "camcorder"),
    ("bicubic", "transposed5", "sinc"),
)
ALBUMS = ("desk", "desk/drafts", "travel/2019", "travel/2021", "wire")


@dataclass(frozen=True)
class Pair:
    """The same content twice, with equal sizes: as a camera took it and as a decoder painted it."""

    real: camera.Pixels
    fake: camera.Pixels
    scene: str
    camera: str
    decoder: str


def make_pair(split: Split, rng: scenes.Rng, height: int, width: int) -> Pair:
    """Draw a scene, a camera and a decoder of `split`; sides are rounded up to multiples of 8."""
    height, width = -height % 8 + height, -width % 8 + width
    scene, taken_by, decoder = (
        str(rng.choice(names)) for names in (split.scenes, split.cameras, split.decoders)
    )
    real = camera.CAMERAS[taken_by].shoot(scenes.render(scene, rng, 2 * height, 2 * width), rng)
    return Pair(real, repaint(decoder, real, rng), scene, taken_by, decoder)


@dataclass(frozen=True)
class SampleArchive:
    """Where a sample archive lies. `labels` is a CSV beside it: uri, path, sha256, label (real or
    fake), generator.
    """

    folder: Path
    labels: Path
    files: int


def build_sample_archive(folder: Path, *, files: int = 60, seed: int = 0) -> SampleArchive:
    """Write an archive of `files` files in subfolders: simulated photographs, repainted pictures,
    five odd files.

    Sides of 200 to 1024 pixels, JPEG, PNG and WebP; the odd ones are a text, a truncated JPEG, an
    empty file, a CMYK JPEG and an animated GIF. Labels go to `<folder>-labels.csv`. The same seed
    gives the same pictures.
    """
    assert files >= 7, "five odd files and a pair"
    rows = list(odd_files(np.random.default_rng([seed, 1]), 512, 768))
    load_scipy()
    torch_threads = torch.get_num_threads()
    try:
        # how many share a sum decides its last bits
        with ThreadPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as threads:
            rows += threads.map(partial(_picture, seed), range(files - len(rows)))
    finally:
        torch.set_num_threads(torch_threads)
    for path, data, _, _ in rows:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    labels = folder.with_name(f"{folder.name}-labels.csv")
    table = (  # the uri as a list has it: relative to the file
        (f"{folder.name}/{path}", path, hashlib.sha256(data).hexdigest(), label, maker)
        for path, data, label, maker in rows
        if label
    )
    labels.write_bytes(_csv([("uri", "path", "sha256", "label", "generator"), *table]))
    return SampleArchive(folder, labels, len(rows))


def load_scipy() -> None:
    """Before threads start: those that import it at the same time for the first time may see half
    of it.
    """
    import scipy.fft
    import scipy.ndimage  # noqa: F401


def _picture(seed: int, index: int) -> tuple[str, bytes, str, str]:
    """File `index` of the archive: the even ones are real, the odd ones fake; nothing else follows
    from the index.
    """
    rng = np.random.default_rng([seed, 2, index])
    # many small, few large
    long, aspect = 270 * (1024 / 270) ** rng.random() ** 1.7, rng.choice([1.0, 4 / 3, 3 / 2])
    sides = sorted((round(max(long / aspect, 200)), round(long)), reverse=bool(rng.random() < 0.3))
    pair = make_pair(SHOWN, rng, *sides)
    encoding = camera.draw_encoding(rng)
    label, pixels, maker = (
        ("fake", pair.fake, pair.decoder)
        if index % 2
        else ("real", pair.real, f"camera:{pair.camera}")
    )
    number = hashlib.sha256(f"{seed}/{index}".encode()).hexdigest()[:6]
    return f"{rng.choice(ALBUMS)}/{number}{encoding.suffix}", encoding.encode(pixels), label, maker


def odd_files(rng: scenes.Rng, height: int, width: int) -> Iterator[tuple[str, bytes, str, str]]:
    """Return path, bytes, label, and maker of five odd files. A file without an image has no label."""
    photo = camera.CAMERAS["mirrorless"].shoot(scenes.render("hills", rng, height, width), rng)
    jpeg = camera.SimulatedEncoding("JPEG", 90).encode(photo)
    yield "README.txt", b"Pictures made by a simulated camera and by simulated decoders.\n", "", ""
    yield "wire/cut-short.jpg", jpeg[: len(jpeg) // 2], "", ""
    yield "wire/nothing.jpg", b"", "", ""
    stream = io.BytesIO()
    Image.fromarray(photo).convert("CMYK").save(stream, "JPEG", quality=90)
    yield "desk/for-print.jpg", stream.getvalue(), "real", "camera:mirrorless"
    frames = [
        Image.fromarray(np.roll(photo, 24 * step, axis=1)).convert(
            "P", palette=Image.Palette.ADAPTIVE, colors=32
        )
        for step in range(3)
    ]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=200, loop=0)
    yield "travel/2021/moving.gif", stream.getvalue(), "real", "camera:mirrorless"


Row = Sequence[str]

COLUMNS = ("path", "label", "generator", "split", "group", "prompt")
LABELS = "labels.csv"
_SPLIT_SEED = {"train": 1, "validation": 2, "test": 3}
_PICTURE_PX = {"train": 320, "validation": 352, "test": 352}
_FILE_PX = {"train": 168, "validation": 256, "test": 256}


@dataclass(frozen=True)
class SimulatedSet:
    """Arguments of a labelled set.

    Args:
        pairs: Number of pairs per split.
        histories: Times two files, real and fake, that a pair becomes. Defaults to 1.
        picture_px: Side of the image before its history, per split.
        file_px: Side of the file, per split.
        seed: Seed of all images.
    """

    pairs: Mapping[SplitName, int]
    histories: Mapping[SplitName, int] = field(default_factory=dict)
    picture_px: Mapping[SplitName, int] = field(default_factory=lambda: _PICTURE_PX)
    file_px: Mapping[SplitName, int] = field(default_factory=lambda: _FILE_PX)
    seed: int = 20


def build_labelled_set(folder: Path, plan: SimulatedSet, processes: int | None = None) -> Path:
    """Write the set to `folder` and return the path of its list `labels.csv`.

    The generator of a real file is `real:CAMERA`, and the prompt is the scene. The files of a group
    are of one pair: a real file followed by its fake twin after the same history. `processes`
    defaults to the number of cores and changes no file.
    """
    for split in plan.pairs:
        (folder / split).mkdir(parents=True, exist_ok=True)
    tasks = [(split, index) for split, count in plan.pairs.items() for index in range(count)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes or usable_cores(),
        mp_context=spawn,
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        rows = [
            row
            for pair in pool.map(partial(write_pair, folder, plan), tasks, chunksize=10)
            for row in pair
        ]
    labels = folder / LABELS
    labels.write_bytes(_csv([COLUMNS, *rows]))
    return labels


def write_pair(folder: Path, plan: SimulatedSet, task: tuple[SplitName, int]) -> list[Row]:
    """Write the files of one pair and return their rows."""
    split, index = task
    rng = np.random.default_rng([plan.seed, _SPLIT_SEED[split], index])
    side = plan.picture_px[split]
    pair, group, rows = (
        make_pair(SPLITS[split], rng, side, side),
        f"{split}-{index:06d}",
        list[Row](),
    )
    for number in range(plan.histories.get(split, 1)):
        suffix, files = camera.files_of_one_history(
            rng, (pair.real, pair.fake), plan.file_px[split]
        )
        for label, generator, data in zip(
            ("real", "fake"), (f"real:{pair.camera}", pair.decoder), files, strict=True
        ):
            path = f"{split}/{group}-{number}-{label}{suffix}"
            (folder / path).write_bytes(data)
            rows.append((path, label, generator, split, group, pair.scene))
    return rows


def _csv(rows: Iterable[Row]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode()
