"""Build the `ferretnet` family: depthwise convolutions on differences from the local median.

The code is written from the paper, with the key names of the published file. Source: Liang et al.,
NeurIPS 2025 (arXiv 2509.20890).
"""

import torch
import torch.nn.functional as functional
from torch import nn


def median_residual(pixels: torch.Tensor, window: int = 3) -> torch.Tensor:
    """Subtract from each pixel the median of the window around it: (N, C, H, W) → the same shape.

    In the median, the pixel itself counts as 0, so that the median depends only on its neighbours.
    Positions outside the image also count as 0. `window` is the odd side of the window in pixels.
    """
    reach, (height, width) = window // 2, pixels.shape[-2:]
    padded = functional.pad(pixels, (reach,) * 4)
    shifts = [
        padded[..., row : row + height, column : column + width]
        for row in range(window)
        for column in range(window)
    ]
    shifts[len(shifts) // 2] = torch.zeros_like(pixels)
    return pixels - torch.stack(shifts, dim=-1).median(dim=-1).values


class SeparableConv2d(nn.Module):
    """3 × 3 convolution per channel, then 1 × 1 convolution of (N, channels, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth_wise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.point_wise = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve features (N, channels, H, W). The shape stays."""
        mixed: torch.Tensor = self.point_wise(self.depth_wise(features))
        return mixed


class DilatedConv2d(nn.Module):
    """Sum of two 3 × 3 convolutions with dilation 1 and 2, then a 1 × 1 convolution.

    The 3 × 3 convolutions are grouped, with one group per input channel. (N, channels, H, W) → (N,
    wider, ⌈H/stride⌉, ⌈W/stride⌉).

    Args:
        channels: Input channels.
        wider: Output channels.
        stride: Stride.
    """

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wider, 3, stride, padding=1, groups=channels, bias=False)
        self.conv2 = nn.Conv2d(
            channels, wider, 3, stride, padding=2, dilation=2, groups=channels, bias=False
        )
        self.conv3 = nn.Conv2d(wider, wider, 1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve: (N, channels, H, W) → (N, wider, ⌈H/stride⌉, ⌈W/stride⌉)."""
        mixed: torch.Tensor = self.conv3(self.conv1(features) + self.conv2(features))
        return mixed


class FerretBlock(nn.Module):
    """Dilated and separable convolutions with a shortcut.

    (N, channels, H, W) → (N, wider, ⌈H/stride⌉, ⌈W/stride⌉).

    Args:
        channels: Input channels.
        wider: Output channels.
        stride: Stride.
    """

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            DilatedConv2d(channels, wider, stride),
            nn.BatchNorm2d(wider),
            nn.ReLU(inplace=True),
            SeparableConv2d(wider),
            nn.BatchNorm2d(wider),
        )
        is_same_shape = stride == 1 and channels == wider
        self.shortcut = (
            nn.Identity()
            if is_same_shape
            else nn.Sequential(nn.Conv2d(channels, wider, 1, stride), nn.BatchNorm2d(wider))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Apply the block: (N, channels, H, W) → (N, wider, ⌈H/stride⌉, ⌈W/stride⌉)."""
        result: torch.Tensor = self.relu(self.layers(features) + self.shortcut(features))
        return result


class FerretNet(nn.Module):
    """FerretNet: pixels (N, 3, H, W), normalised with CLIP's constants → log-odds (N, 1) of fake.

    H and W may have any size. The input of the convolutions is the residual: each pixel minus the
    median of its window. Two convolutions follow, then stages that halve the map and double the
    channels. The mean of the last map gives one logit. The defaults are FerretNet-S with 126,289
    parameters. `dim` 96 is FerretNet-B.

    Args:
        dim: Channels before the stages.
        depths: Blocks per stage.
        window: Side of the median's window in pixels, odd.
    """

    def __init__(self, *, dim: int = 32, depths: tuple[int, ...] = (2, 2), window: int = 3) -> None:
        super().__init__()
        if not isinstance(window, int) or window < 3 or window % 2 == 0:
            raise ValueError(f"window must be an odd number of pixels, at least 3, got {window!r}")
        self.window = window
        self.cbr1 = nn.Sequential(
            nn.Conv2d(3, dim // 2, 3, 1, 1, bias=False),
            nn.BatchNorm2d(dim // 2),
            nn.ReLU(inplace=True),
        )
        self.cbr2 = nn.Sequential(
            nn.Conv2d(dim // 2, dim, 3, 2, 1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
        )
        stages: list[nn.Module] = []
        for depth in depths:
            blocks = (FerretBlock(2 * dim, 2 * dim, 1) for _ in range(depth - 1))
            stages.append(nn.Sequential(FerretBlock(dim, 2 * dim, 2), *blocks))
            dim *= 2
        self.feature = nn.Sequential(*stages, nn.Conv2d(dim, dim, 1, bias=False))
        self.logit = nn.Sequential(nn.Dropout(0.2), nn.Linear(dim, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch of images: pixels (N, 3, H, W), normalised → log-odds (N, 1) of fake."""
        # Not in bf16, which keeps almost nothing of a difference of neighbours.
        with torch.autocast(pixels.device.type, enabled=False):
            residual = median_residual(pixels, self.window)
        logits: torch.Tensor = self.logit(
            self.feature(self.cbr2(self.cbr1(residual))).mean(dim=(-2, -1))
        )
        return logits
