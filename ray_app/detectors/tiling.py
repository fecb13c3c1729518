"""The mean of a convolutional network's features over an image too large to go through in one piece.

Knows sizes, strides and receptive fields. Knows no network: it is told which function makes the features.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch

Features = Callable[[torch.Tensor], torch.Tensor]


class Tiling(NamedTuple):
    """How to cut. `size`: pixels of a tile's side without its halo. `stride`: pixels per feature cell.

    `halo`: how far a cell sees beyond its own first pixel, rounded up to whole cells. `size` and `halo` are multiples of `stride`.
    """

    size: int
    stride: int
    halo: int


class Tile(NamedTuple):
    """`window`: (rows, columns) of pixels that the network sees. `core`: the cells of its map that count. `cells`: where those lie."""

    window: tuple[slice, slice]
    core: tuple[slice, slice]
    cells: tuple[slice, slice]


def tiles(height: int, width: int, tiling: Tiling) -> Iterator[Tile]:
    """Tiles whose cores cover the feature map once; all windows are about as large, at most a tile with its halo.

    A window begins at a whole cell, so that its strides fall on the same pixels; where it ends inside the image, its outer cells have
    seen the padding of the cut and are left out; where it ends with the image, the padding is the network's own.
    """
    for rows in _spans(height, tiling):
        for columns in _spans(width, tiling):
            yield Tile(*zip(rows, columns, strict=True))


def _spans(length: int, tiling: Tiling) -> Iterator[tuple[slice, slice, slice]]:
    size, stride, halo = tiling
    cells, margin = -(-length // stride), halo // stride
    # The first and the last core reach to the border, where they need no halo.
    inner = cells - 2 * margin
    count = max(1, -(-inner // (size // stride)))
    for first, last in pairwise([0, *(margin + inner * part // count for part in range(1, count)), cells]):
        start, stop = max(first * stride - halo, 0), min(last * stride + halo, length)
        skipped = first - start // stride
        yield slice(start, stop), slice(skipped, skipped + last - first), slice(first, last)


def feature_map(features: Features, pixels: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """The network's map, made in pieces: (N, C, H, W) → (N, features, ⌈H/stride⌉, ⌈W/stride⌉), equal to the uncut one up to rounding."""
    height, width = (-(-side // tiling.stride) for side in pixels.shape[-2:])
    whole: torch.Tensor | None = None
    for tile, part in _parts(features, pixels, tiling):
        if part.shape[-2:] == (height, width):
            return part
        if whole is None:
            shape = (*part.shape[:2], height, width)
            whole = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)
        whole[(..., *tile.cells)] = part
    assert whole is not None, "an image without pixels"
    return whole


def mean_features(features: Features, pixels: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """The features' mean over the whole map: (N, 3, H, W) → (N, C) float32, summed in float64.

    No pass sees more pixels than one full tile with its halo has, or one image where that is smaller still.
    """
    most = (tiling.size + 2 * tiling.halo) ** 2
    height, width = (max(span.stop - span.start for span, *_ in _spans(side, tiling)) for side in pixels.shape[-2:])
    together = max(1, most // (height * width))
    return torch.cat([_mean(features, pixels[first : first + together], tiling) for first in range(0, len(pixels), together)])


def _parts(features: Features, pixels: torch.Tensor, tiling: Tiling) -> Iterator[tuple[Tile, torch.Tensor]]:
    height, width = pixels.shape[-2:]
    for tile in tiles(height, width, tiling):
        yield tile, features(pixels[(..., *tile.window)])[(..., *tile.core)]


def _mean(features: Features, pixels: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    total, cells = torch.zeros((), dtype=torch.float64, device=pixels.device), 0
    for _, part in _parts(features, pixels, tiling):
        total = total + part.sum(dim=(-2, -1), dtype=torch.float64)
        cells += part.shape[-2] * part.shape[-1]
    return (total / cells).float()
