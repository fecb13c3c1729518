"""The `residual` family: a small network that sees an image only through fixed high-pass filters.

`Tiling`, `feature_map` and `mean_features` run a convolutional network over an image too large to
go through in one piece.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn

CLIP = 12.0  # grey levels: edges saturate, sensor noise and the traces of upsampling do not

_ALONG = ((0, 0, 0), (-1, 2, -1), (0, 0, 0))
_DIAGONAL = ((1, 0, -1), (0, 0, 0), (-1, 0, 1))
_SQUARE = ((-1, 2, -1), (2, -4, 2), (-1, 2, -1))
_RING = ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1))

# (3×3 stencil, divisor, weights of red, green, blue): second differences of green, detail of the
# colour differences.
_BANK: tuple[tuple[tuple[tuple[int, ...], ...], float, tuple[float, float, float]], ...] = (
    (_ALONG, 2, (0, 1, 0)),
    (tuple(zip(*_ALONG, strict=True)), 2, (0, 1, 0)),
    (_DIAGONAL, 2, (0, 1, 0)),
    (_SQUARE, 4, (0, 1, 0)),
    (_RING, 8, (1, 0, 0)),
    (_RING, 8, (0, 0, 1)),
    (_RING, 4, (1, -1, 0)),
    (_RING, 4, (0, -1, 1)),
)

Features = Callable[[torch.Tensor], torch.Tensor]


def residual_bank() -> torch.Tensor:
    """Eight 3×3 high-pass filters, each at the four places of a 2×2 cell: (32, 3, 4, 4), for stride
    2.

    Every filter sums to zero, so flat colour vanishes. Keeping the four places apart is what lets
    the next layer see a pattern of period two, which both a sensor's mosaic and an upsampling layer
    leave.
    """
    # In NumPy: on the meta device, where networks are tried without values, torch would import its
    # compiler for the assignment.
    bank = np.zeros((len(_BANK), 4, 3, 4, 4), np.float32)
    for index, (stencil, divisor, colours) in enumerate(_BANK):
        filters = np.array(colours)[:, None, None] * np.array(stencil) / divisor
        for place in range(4):
            row, column = divmod(place, 2)
            bank[index, place, :, row : row + 3, column : column + 3] = filters
    return torch.from_numpy(bank).flatten(0, 1).to(torch.get_default_device())


class ResidualNet(nn.Module):
    """High-pass residuals, clipped; three convolutions; mean and mean square of every feature over
    the image; one logit.

    Input: (N, 3, H, W) in grey levels around zero (card: mean 128/255, std 1/255), H and W at least
    16. Grey levels up to 256 are exact in bfloat16, so the residuals of a bf16 run are those of the
    pixels. Output: (N, 1), log-odds of fake.

    `norms` adds batch normalisation for training; `without_norms` folds it away, and cards describe
    the folded form.
    """

    residual: torch.Tensor

    def __init__(self, widths: tuple[int, int, int] = (32, 48, 64), *, norms: bool = False) -> None:
        super().__init__()
        self.register_buffer("residual", residual_bank(), persistent=False)
        self.widths = widths
        channels = (self.residual.shape[0], *widths)
        # Two groups in the first: detail of green, detail of colour. It runs at the highest
        # resolution and costs the most.
        self.convs = nn.ModuleList(
            nn.Conv2d(
                channels[layer], channels[layer + 1], 3, stride=stride, padding=1, groups=groups
            )
            for layer, (stride, groups) in enumerate(((1, 2), (2, 1), (2, 1)))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths) if norms else None
        self.head = nn.Linear(2 * widths[-1], 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes and units."""
        features = functional.hardtanh_(
            functional.conv2d(pixels, self.residual, stride=2), -CLIP, CLIP
        )
        for index, conv in enumerate(self.convs):
            features = conv(features)
            if self.norms is not None:
                features = self.norms[index](features)
            features = functional.relu_(features)
        mean = features.mean(dim=(2, 3), dtype=torch.float32)
        square = (features * features).mean(dim=(2, 3), dtype=torch.float32)
        pooled = torch.cat([mean, torch.sqrt(square + 1e-4)], dim=1)
        logits: torch.Tensor = self.head(pooled.to(self.head.weight.dtype))
        return logits

    def without_norms(self) -> "ResidualNet":
        """The same function in evaluation mode with every normalisation folded into its
        convolution.
        """
        folded = ResidualNet(self.widths)
        folded.head.load_state_dict(self.head.state_dict())
        for index, conv in enumerate(self.convs):
            if self.norms is not None:
                conv = nn.utils.fuse_conv_bn_eval(
                    cast(nn.Conv2d, conv).eval(), cast(nn.BatchNorm2d, self.norms[index]).eval()
                )
            folded.convs[index].load_state_dict(conv.state_dict())
        return folded.eval()


class Tiling(NamedTuple):
    """How to cut. `size`: pixels of a tile's side without its halo. `stride`: pixels per feature
    cell.

    `halo`: how far a cell sees beyond its own first pixel, rounded up to whole cells. `size` and
    `halo` are multiples of `stride`.
    """

    size: int
    stride: int
    halo: int


def require_tile(size: object, stride: int) -> None:
    """Raises ValueError where a card's argument `tile` is no side of a tile."""
    if not isinstance(size, int) or size < stride:
        raise ValueError(f"tile: a whole number of pixels, at least {stride}, not {size!r}")


class ImageTile(NamedTuple):
    """`window`: (rows, columns) of pixels that the network sees. `core`: the cells of its map that
    count. `cells`: where those lie.
    """

    window: tuple[slice, slice]
    core: tuple[slice, slice]
    cells: tuple[slice, slice]


def tiles(height: int, width: int, tiling: Tiling) -> Iterator[ImageTile]:
    """Tiles whose cores cover the feature map once; all windows are about as large, at most a tile
    with its halo.

    A window begins at a whole cell, so that its strides fall on the same pixels; where it ends
    inside the image, its outer cells have seen the padding of the cut and are left out; where it
    ends with the image, the padding is the network's own.
    """
    for rows in _spans(height, tiling):
        for columns in _spans(width, tiling):
            yield ImageTile(*zip(rows, columns, strict=True))


def _spans(length: int, tiling: Tiling) -> Iterator[tuple[slice, slice, slice]]:
    size, stride, halo = tiling
    cells, margin = -(-length // stride), halo // stride
    # The first and the last core reach to the border, where they need no halo.
    inner = cells - 2 * margin
    count = max(1, -(-inner // (size // stride)))
    for first, last in pairwise(
        [0, *(margin + inner * part // count for part in range(1, count)), cells]
    ):
        start, stop = max(first * stride - halo, 0), min(last * stride + halo, length)
        skipped = first - start // stride
        yield slice(start, stop), slice(skipped, skipped + last - first), slice(first, last)


def feature_map(features: Features, pixels: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """The network's map, made in pieces: (N, C, H, W) → (N, features, ⌈H/stride⌉, ⌈W/stride⌉),
    equal to the uncut one up to rounding.
    """
    height, width = (-(-side // tiling.stride) for side in pixels.shape[-2:])
    whole: torch.Tensor | None = None
    for tile, part in _parts(features, pixels, tiling):
        if part.shape[-2:] == (height, width):
            return part
        if whole is None:
            shape = (*part.shape[:2], height, width)
            whole = torch.empty(
                shape, dtype=part.dtype, device=part.device, memory_format=torch.channels_last
            )
        whole[(..., *tile.cells)] = part
    assert whole is not None, "an image without pixels"
    return whole


def mean_features(features: Features, pixels: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """The features' mean over the whole map: (N, 3, H, W) → (N, C) float32, summed in float64.

    No pass sees more pixels than one full tile with its halo has, or one image where that is
    smaller still.
    """
    most = (tiling.size + 2 * tiling.halo) ** 2
    height, width = (
        max(span.stop - span.start for span, *_ in _spans(side, tiling))
        for side in pixels.shape[-2:]
    )
    together = max(1, most // (height * width))
    return torch.cat(
        [
            _mean(features, pixels[first : first + together], tiling)
            for first in range(0, len(pixels), together)
        ]
    )


def _parts(
    features: Features, pixels: torch.Tensor, tiling: Tiling
) -> Iterator[tuple[ImageTile, torch.Tensor]]:
    height, width = pixels.shape[-2:]
    for tile in tiles(height, width, tiling):
        yield tile, features(pixels[(..., *tile.window)])[(..., *tile.core)]


def _mean(features: Features, pixels: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    total, cells = torch.zeros((), dtype=torch.float64, device=pixels.device), 0
    for _, part in _parts(features, pixels, tiling):
        total = total + part.sum(dim=(-2, -1), dtype=torch.float64)
        cells += part.shape[-2] * part.shape[-1]
    return (total / cells).float()
