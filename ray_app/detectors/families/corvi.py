"""The `corvi` family: ResNet-50 whose stem does not shrink the image, at the image's own size, however large.

Under torchvision's key names. Sources: Corvi et al., ICASSP 2023 (arXiv 2211.00680); specs/detectors.md §3.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as functional
from torch import nn

from ray_app.detectors.families.residual import Tiling, feature_map, mean_features, require_tile
from ray_app.detectors.families.resnet import ResNetBody

_HALVING = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2.0")

STRIDE = 8  # layer2, layer3 and layer4 halve the map

# Pixels of a tile's side; the halo adds 112 and so makes 1.8 pixels of one. A CPU's process stays below 2 GiB; a GPU has room to spare.
TILE = {"cpu": 320, "cuda": 1536}


class Corvi(ResNetBody):
    """ResNet with stride 1 in `conv1` and `maxpool`; the mean of its features; one logit.

    Input: (N, 3, H, W) of any size, ImageNet-normalised. Output: (N, 1), log-odds of fake. Images larger than a tile go through in
    tiles whose halo is the receptive field, so that the logit is that of the uncut image. `tile`: pixels of a tile's side without its
    halo, at least 8, cut down to a multiple of 8; by default `TILE`.
    """

    def __init__(
        self, layers: Sequence[int] = (3, 4, 6, 3), channels: Sequence[int] = (64, 128, 256, 512), *, tile: int | None = None
    ) -> None:
        super().__init__(layers, channels, stride=1)
        if tile is not None:
            require_tile(tile, STRIDE)
        self.fc = nn.Linear(4 * channels[-1], 1)
        self.tile, self.layers = tile, tuple(layers)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) → (N, channels, ⌈H/8⌉, ⌈W/8⌉)."""
        # layer1's maps are as large as the image and 256 deep, but see only 7 px around: up to the block that halves them they are made
        # in tiles of their own, of which even a window's halo makes more than one.
        halo = _whole(receptive_radius((self.layers[0], 1)), 2)
        rest = [*(f"layer2.{block}" for block in range(1, self.layers[1])), "layer3", "layer4"]
        return self.through(rest, feature_map(partial(self.through, _HALVING), pixels, Tiling(self._tile(pixels), 2, halo)))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        logits: torch.Tensor = self.fc(mean_features(self.features, pixels, self._tiling(pixels)))
        return logits

    def logit_map(self, pixels: torch.Tensor) -> torch.Tensor:
        """What every 8 × 8 px cell says, (N, 1, ⌈H/8⌉, ⌈W/8⌉); its mean is the logit, because the head is linear."""
        return feature_map(self._logits, pixels, self._tiling(pixels))

    def _logits(self, pixels: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(self.features(pixels).float(), self.fc.weight[:, :, None, None], self.fc.bias)

    def _tiling(self, pixels: torch.Tensor) -> Tiling:
        return Tiling(self._tile(pixels), STRIDE, _whole(receptive_radius(self.layers), STRIDE))

    def _tile(self, pixels: torch.Tensor) -> int:
        return self.tile or TILE.get(pixels.device.type, TILE["cpu"])


def receptive_radius(layers: Sequence[int]) -> int:
    """How many pixels a cell sees to either side of its own first one: 56 for ResNet-50, a field of 113 × 113."""
    radius, step = 3 + 1, 1  # conv1 7 × 7, maxpool 3 × 3
    for stage, blocks in enumerate(layers):
        radius += step  # the first block's 3 × 3 still works at the stage's input
        step *= 2 if stage else 1
        radius += (blocks - 1) * step
    return radius


def _whole(pixels: int, stride: int) -> int:
    return -(-pixels // stride) * stride
