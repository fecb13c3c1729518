"""The `ferretnet` family: a small network of depthwise convolutions on what each pixel differs from
the median of its neighbours.

Written from the paper, with the published file's key names. Source: Liang et al., NeurIPS 2025
(arXiv 2509.20890).
"""

import torch
import torch.nn.functional as functional
from torch import nn


def median_residual(pixels: torch.Tensor, window: int = 3) -> torch.Tensor:
    """Every pixel minus the median of its window, (N, C, H, W): in the window the pixel itself and
    all outside the image count as 0.
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
    """3 × 3 on every channel by itself, then 1 × 1: (N, channels, H, W) → the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth_wise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.point_wise = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve; see the class for shapes."""
        mixed: torch.Tensor = self.point_wise(self.depth_wise(features))
        return mixed


class DilatedConv2d(nn.Module):
    """The sum of a 3 × 3 and a dilated 3 × 3 in groups, then 1 × 1: (N, channels, H, W) → (N,
    wider, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wider, 3, stride, padding=1, groups=channels, bias=False)
        self.conv2 = nn.Conv2d(
            channels, wider, 3, stride, padding=2, dilation=2, groups=channels, bias=False
        )
        self.conv3 = nn.Conv2d(wider, wider, 1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve; see the class for shapes."""
        mixed: torch.Tensor = self.conv3(self.conv1(features) + self.conv2(features))
        return mixed


class FerretBlock(nn.Module):
    """Dilated and separable convolutions beside a shortcut: (N, channels, H, W) → (N, wider,
    ⌈H/stride⌉, ⌈W/stride⌉).
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
        same = stride == 1 and channels == wider
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, wider, 1, stride), nn.BatchNorm2d(wider))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Add both ways; see the class for shapes."""
        result: torch.Tensor = self.relu(self.layers(features) + self.shortcut(features))
        return result


class FerretNet(nn.Module):
    """Residual, two convolutions, stages that halve the map and double the channels, mean, one
    logit.

    Input: (N, 3, H, W) of any size, normalised with CLIP's constants. Output: (N, 1), log-odds of
    fake. The defaults are FerretNet-S: 126,289 parameters; `dim` 96 is FerretNet-B. `depths`:
    blocks per stage. `window`: side of the median's window, odd.
    """

    def __init__(self, *, dim: int = 32, depths: tuple[int, ...] = (2, 2), window: int = 3) -> None:
        super().__init__()
        if not isinstance(window, int) or window < 3 or window % 2 == 0:
            raise ValueError(f"window: an odd number of pixels, at least 3, not {window!r}")
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
            rest = (FerretBlock(2 * dim, 2 * dim, 1) for _ in range(depth - 1))
            stages.append(nn.Sequential(FerretBlock(dim, 2 * dim, 2), *rest))
            dim *= 2
        self.feature = nn.Sequential(*stages, nn.Conv2d(dim, dim, 1, bias=False))
        self.logit = nn.Sequential(nn.Dropout(0.2), nn.Linear(dim, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        # In the pixels' own precision whatever surrounds it: of a difference of neighbours bf16
        # keeps next to nothing.
        with torch.autocast(pixels.device.type, enabled=False):
            residual = median_residual(pixels, self.window)
        logits: torch.Tensor = self.logit(
            self.feature(self.cbr2(self.cbr1(residual))).mean(dim=(-2, -1))
        )
        return logits
