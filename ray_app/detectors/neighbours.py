"""What is left of an image when neighbouring pixels are subtracted: the fixed first step of detectors of upsampling traces.

Knows tensors of normalised pixels. Source of the constants: specs/detectors.md §8b and §9a.
"""

from typing import Literal

import torch
import torch.nn.functional as functional

Residual = Literal["npr", "raw", "x_grad", "y_grad", "left_diag", "right_diag"]

# 3 × 3, cross-correlated with every channel by itself.
_GRADIENTS = {
    "x_grad": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "y_grad": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "left_diag": ((0, 1, 2), (-1, 0, 1), (-2, -1, 0)),
    "right_diag": ((-2, -1, 0), (-1, 0, 1), (0, 1, 2)),
}


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
