"""The `wavelet` family: the first half of a ResNet-50 on the diagonal detail of one wavelet step, which is how SAFE reads an image.

Under the authors' key names. Source: Li et al., KDD 2025 (arXiv 2408.06741).
"""

import torch
import torch.nn.functional as functional
from torch import nn

from ray_app.detectors.families.resnet import HALF, ResNetBody

_BORDER = 2  # of the wavelet's six taps only the middle two are not zero: two pixels more on every side, three where the side is odd


def diagonal_detail(pixels: torch.Tensor) -> torch.Tensor:
    """The diagonal band of one step of the wavelet bior1.3: (N, C, H, W) → (N, C, (H + 5) // 2, (W + 5) // 2).

    Its high pass is Haar's, so that a value is half of what the two diagonals of a 2 × 2 cell differ by; beyond its edge the image is
    mirrored, the outermost line included.
    """
    for axis in (-2, -1):
        pixels = pixels.index_select(axis, _mirrored(pixels.shape[axis], pixels.device))
    upper, lower = pixels[..., ::2, :], pixels[..., 1::2, :]
    across = upper - lower
    return (across[..., ::2] - across[..., 1::2]) / 2


def _mirrored(side: int, device: torch.device) -> torch.Tensor:
    """Which pixel stands at −2, −1, …: an even number of them, with two or three beyond the end."""
    at = torch.arange(-_BORDER, side + _BORDER + side % 2, device=device) % (2 * side)
    return torch.where(at < side, at, 2 * side - 1 - at)


class Wavelet(ResNetBody):
    """Diagonal detail brought back to the image's size, a 3 × 3 stem, ResNet-50's layer1 and layer2, mean, two logits: real, fake.

    Input: (N, 3, H, W) of any size, colours from 0 to 1. Output: (N, 2).
    """

    def __init__(self) -> None:
        super().__init__(*HALF, kernel=3)
        self.fc1 = nn.Linear(512, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        # In the pixels' own precision whatever surrounds it: of a difference of neighbours bf16 keeps next to nothing.
        with torch.autocast(pixels.device.type, enabled=False):
            detail = functional.interpolate(diagonal_detail(pixels), pixels.shape[-2:], mode="bilinear", antialias=True)
        logits: torch.Tensor = self.fc1(self.features(detail).mean(dim=(-2, -1)))
        return logits
