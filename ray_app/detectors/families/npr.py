"""The `npr` family: the first half of a ResNet-50 on the differences of neighbouring pixels (`residual_of`, as other detectors of
upsampling use it).

Under the authors' key names. Sources: Tan et al., CVPR 2024 (arXiv 2312.10461); specs/detectors.md §8b, §9a.
"""

from typing import Literal

import torch
import torch.nn.functional as functional
from torch import nn

from ray_app.detectors.families.residual import Tiling, mean_features, require_tile
from ray_app.detectors.families.resnet import HALF, ResNetBody

Residual = Literal["npr", "raw", "x_grad", "y_grad", "left_diag", "right_diag"]

# 3 × 3, cross-correlated with every channel by itself.
_GRADIENTS = {
    "x_grad": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "y_grad": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "left_diag": ((0, 1, 2), (-1, 0, 1), (-2, -1, 0)),
    "right_diag": ((-2, -1, 0), (-1, 0, 1), (0, 1, 2)),
}

# A cell of 8 × 8 px sees 43 px to either side: conv1 1, maxpool 2, layer1 3 × 4, layer2 4 + 3 × 8.
STRIDE, HALO = 8, 48


def upsampling_residual(pixels: torch.Tensor) -> torch.Tensor:
    """Every 2 × 2 cell minus its upper left pixel: (N, C, H, W) → (N, C, H, W) for even sides; of odd ones the last line is dropped."""
    height, width = (side // 2 * 2 for side in pixels.shape[-2:])
    even = pixels[..., :height:2, :width:2]
    return pixels[..., :height, :width] - even.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


def residual_of(pixels: torch.Tensor, kind: Residual) -> torch.Tensor:
    """The residual of that kind, (N, C, H, W): `npr` the upsampling residual, `raw` the pixels, else a gradient with zeros outside."""
    if kind == "npr":
        return upsampling_residual(pixels)
    if kind == "raw":
        return pixels
    channels = pixels.shape[1]
    kernel = torch.tensor(_GRADIENTS[kind], dtype=pixels.dtype, device=pixels.device)
    # In the pixels' own precision whatever surrounds it: of a difference of neighbours bf16 keeps next to nothing.
    with torch.autocast(pixels.device.type, enabled=False):
        return functional.conv2d(pixels, kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)


class Npr(ResNetBody):
    """Neighbouring-pixel residual × 2/3, a 3 × 3 stem, ResNet-50's layer1 and layer2, mean, one logit.

    Input: (N, 3, H, W) of any size, ImageNet-normalised; of an odd side the last line is dropped, and a side of 1 px leaves nothing to
    say (NaN). Output: (N, 1), log-odds of fake. `tile`: pixels of a tile's side, at least 8, cut down to a multiple
    of 8.
    """

    def __init__(self, *, tile: int = 1536) -> None:
        super().__init__(*HALF, kernel=3)
        require_tile(tile, STRIDE)
        self.fc1 = nn.Linear(512, 1)
        self.tiling = Tiling(tile, STRIDE, HALO)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        height, width = (side // 2 * 2 for side in pixels.shape[-2:])
        if not height or not width:
            return pixels.new_full((len(pixels), 1), torch.nan)
        logits: torch.Tensor = self.fc1(mean_features(self._map, pixels[..., :height, :width], self.tiling))
        return logits

    def _map(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.features(upsampling_residual(pixels) * (2 / 3))
