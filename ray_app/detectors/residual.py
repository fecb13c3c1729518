"""The `residual` family: a small network that sees an image only through fixed high-pass filters.

Knows one architecture in plain torch. Knows nothing about weights, cards' files or preprocessing.
"""

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as functional
from torch import nn

if TYPE_CHECKING:
    from ray_app.detectors.cards import DetectorCard

CLIP = 12.0  # grey levels: edges saturate, sensor noise and the traces of upsampling do not

_ALONG = ((0, 0, 0), (-1, 2, -1), (0, 0, 0))
_DIAGONAL = ((1, 0, -1), (0, 0, 0), (-1, 0, 1))
_SQUARE = ((-1, 2, -1), (2, -4, 2), (-1, 2, -1))
_RING = ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1))

# (3×3 stencil, divisor, weights of red, green, blue): second differences of green, detail of the colour differences.
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


def residual_bank() -> torch.Tensor:
    """Eight 3×3 high-pass filters, each at the four places of a 2×2 cell: (32, 3, 4, 4), for stride 2.

    Every filter sums to zero, so flat colour vanishes. Keeping the four places apart is what lets the next layer see
    a pattern of period two, which both a sensor's mosaic and an upsampling layer leave.
    """
    bank = torch.zeros(len(_BANK), 4, 3, 4, 4)
    for index, (stencil, divisor, colours) in enumerate(_BANK):
        filters = torch.tensor(colours)[:, None, None] * torch.tensor(stencil, dtype=torch.float32) / divisor
        for place in range(4):
            row, column = divmod(place, 2)
            bank[index, place, :, row : row + 3, column : column + 3] = filters
    return bank.flatten(0, 1)


class ResidualNet(nn.Module):
    """High-pass residuals, clipped; three convolutions; mean and mean square of every feature over the image; one logit.

    Input: (N, 3, H, W) in grey levels around zero (card: mean 128/255, std 1/255), H and W at least 16.
    Grey levels up to 256 are exact in bfloat16, so the residuals of a bf16 run are those of the pixels.
    Output: (N, 1), log-odds of fake.

    `norms` adds batch normalisation for training; `without_norms` folds it away, and cards describe the folded form.
    """

    residual: torch.Tensor

    def __init__(self, widths: tuple[int, int, int] = (32, 48, 64), *, norms: bool = False) -> None:
        super().__init__()
        self.register_buffer("residual", residual_bank(), persistent=False)
        self.widths = widths
        channels = (self.residual.shape[0], *widths)
        # Two groups in the first: detail of green, detail of colour. It runs at the highest resolution and costs the most.
        self.convs = nn.ModuleList(
            nn.Conv2d(channels[layer], channels[layer + 1], 3, stride=stride, padding=1, groups=groups)
            for layer, (stride, groups) in enumerate(((1, 2), (2, 1), (2, 1)))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths) if norms else None
        self.head = nn.Linear(2 * widths[-1], 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes and units."""
        features = functional.hardtanh_(functional.conv2d(pixels, self.residual, stride=2), -CLIP, CLIP)
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
        """The same function in evaluation mode with every normalisation folded into its convolution."""
        folded = ResidualNet(self.widths)
        folded.head.load_state_dict(self.head.state_dict())
        for index, conv in enumerate(self.convs):
            if self.norms is not None:
                conv = nn.utils.fuse_conv_bn_eval(cast(nn.Conv2d, conv).eval(), cast(nn.BatchNorm2d, self.norms[index]).eval())
            folded.convs[index].load_state_dict(conv.state_dict())
        return folded.eval()


def build(card: "DetectorCard") -> nn.Module:
    """The network that a card of family `residual` describes, without weights: (N, 3, H, W) → (N, 1) logits."""
    return ResidualNet(**card.architecture.arguments)
