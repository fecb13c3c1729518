"""Build the `residual` family: a small network on the output of fixed high-pass filters.

Start at `ResidualNet`. Other families use `feature_map` and `mean_features`, which run a
convolutional network in tiles, for images that are too large for one pass.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn

CLIP = 12.0  # Grey levels. Edges saturate, but sensor noise and traces of upsampling do not.

_ALONG = ((0, 0, 0), (-1, 2, -1), (0, 0, 0))
_DIAGONAL = ((1, 0, -1), (0, 0, 0), (-1, 0, 1))
_SQUARE = ((-1, 2, -1), (2, -4, 2), (-1, 2, -1))
_RING = ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1))

# (3×3 stencil, divisor, weights of red, green, and blue). The filters are second differences of
# green and detail of the colour differences.
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
    """Return the fixed high-pass filters of `ResidualNet`: weights (32, 3, 4, 4) for stride 2.

    The 32 filters are eight 3 × 3 filters, each at the four positions of a 2 × 2 cell. Every filter
    sums to zero, so flat colour vanishes. The four positions stay separate, so that the next layer
    can detect patterns of period two, which both a sensor's mosaic and an upsampling layer leave.
    """
    # NumPy, because torch would import its compiler for the assignment on the meta device, where
    # networks are built without values.
    bank = np.zeros((len(_BANK), 4, 3, 4, 4), np.float32)
    for index, (stencil, divisor, colours) in enumerate(_BANK):
        filters = np.array(colours)[:, None, None] * np.array(stencil) / divisor
        for position in range(4):
            row, column = divmod(position, 2)
            bank[index, position, :, row : row + 3, column : column + 3] = filters
    return torch.from_numpy(bank).flatten(0, 1).to(torch.get_default_device())


class ResidualNet(nn.Module):
    """Small network: pixels (N, 3, H, W) in grey levels around zero → log-odds (N, 1) of fake.

    The network clips high-pass residuals and applies three convolutions. It computes the mean and
    the root mean square of every feature over the image, and one logit from them. The card has mean
    128/255 and std 1/255. H and W are at least 16. Grey levels up to 256 are exact in bfloat16, so
    a bf16 run has the exact residuals.

    Args:
        widths: Channels of the convolutions.
        norms: Whether to add batch norms, for training. `without_norms` removes them afterwards.
            Weight files of detectors have no batch norms.
    """

    residual: torch.Tensor

    def __init__(self, widths: tuple[int, int, int] = (32, 48, 64), *, norms: bool = False) -> None:
        super().__init__()
        self.register_buffer("residual", residual_bank(), persistent=False)
        self.widths = widths
        channels = (self.residual.shape[0], *widths)
        # The first convolution has two groups (detail of green, detail of colour), because it runs at
        # the highest resolution and costs the most.
        self.convs = nn.ModuleList(
            nn.Conv2d(
                channels[layer], channels[layer + 1], 3, stride=stride, padding=1, groups=groups
            )
            for layer, (stride, groups) in enumerate(((1, 2), (2, 1), (2, 1)))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths) if norms else None
        self.head = nn.Linear(2 * widths[-1], 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch of images: pixels (N, 3, H, W), −128 to 127 → log-odds (N, 1) of fake."""
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
        """Return an equal network without batch norms, in evaluation mode.

        Each batch norm is folded into its convolution.
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
    """Sizes for running a network on an image tile by tile.

    A tile is processed with a halo, a margin of pixels that its features also depend on. `size` and
    `halo` are multiples of `stride`.

    Attributes:
        size: Side of a tile without its halo, in pixels.
        stride: Pixels of the image per position (cell) of the feature map.
        halo: Width of the margin, in pixels.
    """

    size: int
    stride: int
    halo: int


def require_tile(size: object, stride: int) -> None:
    """Check that `size`, a card's argument `tile`, is a valid side of a tile in pixels.

    Raises ValueError if it is not a whole number of at least `stride` pixels.
    """
    if not isinstance(size, int) or size < stride:
        raise ValueError(f"tile must be a whole number of pixels, at least {stride}, got {size!r}")


class ImageTile(NamedTuple):
    """A tile of an image, and the part of the image's feature map that it computes.

    The tile has a halo, a margin whose features are computed but not kept.

    Attributes:
        window: Rows and columns of the image that the network processes, with the halo.
        core: Rows and columns of the tile's feature map to keep, without the halo.
        cells: Rows and columns of the image's feature map to which the core is copied.
    """

    window: tuple[slice, slice]
    core: tuple[slice, slice]
    cells: tuple[slice, slice]


def cut_tiles(height: int, width: int, tiling: Tiling) -> Iterator[ImageTile]:
    """Yield the tiles of an image, whose cores together cover its feature map exactly once.

    A tile has a halo: a margin of pixels that its features also depend on. The core is the tile's
    feature map without the halo, because padding at the cut makes features in the halo wrong. Tiles
    have no halo at the border of the image. All tiles have about the same size, at most `size` plus
    the halo on each side. A tile begins at a multiple of the stride, so that its feature map is
    aligned with that of the image.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        tiling: Sizes of the tiles.

    Yields:
        A tile.
    """
    for rows in _spans(height, tiling):
        for columns in _spans(width, tiling):
            yield ImageTile(*zip(rows, columns, strict=True))


def _spans(length: int, tiling: Tiling) -> Iterator[tuple[slice, slice, slice]]:
    size, stride, halo = tiling
    cells, margin = -(-length // stride), halo // stride
    # The first and the last core extend to the border, where they need no halo.
    inner = cells - 2 * margin
    count = max(1, -(-inner // (size // stride)))
    for first, last in pairwise(
        [0, *(margin + inner * part // count for part in range(1, count)), cells]
    ):
        start, stop = max(first * stride - halo, 0), min(last * stride + halo, length)
        n_skipped = first - start // stride
        yield slice(start, stop), slice(n_skipped, n_skipped + last - first), slice(first, last)


def feature_map(features: Features, pixels: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """Compute a network's feature map of large images tile by tile, to limit memory.

    Args:
        features: The network.
        pixels: Pixels (N, C, H, W).
        tiling: Sizes of the tiles.

    Returns:
        The map (N, features, ⌈H/stride⌉, ⌈W/stride⌉), equal to that of the uncut image up to
            rounding.
    """
    height, width = (-(-side // tiling.stride) for side in pixels.shape[-2:])
    full_map: torch.Tensor | None = None
    for tile, part in _parts(features, pixels, tiling):
        if part.shape[-2:] == (height, width):
            return part
        if full_map is None:
            shape = (*part.shape[:2], height, width)
            full_map = torch.empty(
                shape, dtype=part.dtype, device=part.device, memory_format=torch.channels_last
            )
        full_map[(..., *tile.cells)] = part
    assert full_map is not None, "an image without pixels"
    return full_map


def mean_features(features: Features, pixels: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """Compute the mean of a network's features over all positions, tile by tile, to limit memory.

    Sums are in float64. A pass has at most as many pixels as a tile with its halo on each side.
    Several small images may share a pass.

    Args:
        features: The network.
        pixels: Pixels (N, 3, H, W).
        tiling: Sizes of the tiles.

    Returns:
        The means (N, C), float32.
    """
    max_pixels = (tiling.size + 2 * tiling.halo) ** 2
    height, width = (
        max(span.stop - span.start for span, *_ in _spans(side, tiling))
        for side in pixels.shape[-2:]
    )
    batch_size = max(1, max_pixels // (height * width))
    return torch.cat(
        [
            _mean(features, pixels[first : first + batch_size], tiling)
            for first in range(0, len(pixels), batch_size)
        ]
    )


def _parts(
    features: Features, pixels: torch.Tensor, tiling: Tiling
) -> Iterator[tuple[ImageTile, torch.Tensor]]:
    height, width = pixels.shape[-2:]
    for tile in cut_tiles(height, width, tiling):
        yield tile, features(pixels[(..., *tile.window)])[(..., *tile.core)]


def _mean(features: Features, pixels: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    total, cells = torch.zeros((), dtype=torch.float64, device=pixels.device), 0
    for _, part in _parts(features, pixels, tiling):
        total = total + part.sum(dim=(-2, -1), dtype=torch.float64)
        cells += part.shape[-2] * part.shape[-1]
    return (total / cells).float()
