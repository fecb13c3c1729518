"""Build the `rine` family, which scores an image by the class tokens of all CLIP blocks.

CLIP's weights are those of the card's backbone. The weights of the layers after CLIP are in the
card's own file, with the authors' key names. Source: Koutlis and Papadopoulos, ECCV 2024 (arXiv
2402.19091).
"""

from itertools import pairwise

import torch
from torch import nn

from ray_app.detectors.card import DetectorCard
from ray_app.detectors.families.clip_tower import VisionTower, drawn
from ray_app.detectors.families.frozen import build_backbone


class Rine(nn.Module):
    """RINE's network: pixels (N, 3, H, W), normalised → logits (N, 1).

    The class tokens of all CLIP blocks are projected, and their weighted sum is classified. The
    weights are the softmax of the parameter `alpha` (1, layers, width) over the layers. Networks
    that share the backbone run CLIP only once.

    Args:
        backbone: CLIP's vision tower.
        projections: Number of linear layers in each of two projections. One is before the weighted
            sum, and the other is after it.
        width: Width of the projections.
    """

    def __init__(self, backbone: VisionTower, *, projections: int, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.alpha = nn.Parameter(drawn(1, len(backbone.transformer.resblocks), width, std=1.0))
        self.proj1 = nn.Sequential(
            nn.Dropout(), *_layers([backbone.widths["class-token"], *[width] * projections])
        )
        self.proj2 = nn.Sequential(nn.Dropout(), *_layers([width] * (projections + 1)))
        self.head = nn.Sequential(*_layers([width] * 3), nn.Linear(width, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch of images: pixels (N, 3, H, W), normalised → logits (N, 1)."""
        layers = self.proj1(self.backbone(pixels).class_tokens)
        summed = (self.alpha.softmax(dim=1) * layers).sum(dim=1)
        logits: torch.Tensor = self.head(self.proj2(summed))
        return logits


def _layers(widths: list[int]) -> list[nn.Module]:
    """Return linear layers between consecutive widths, each with ReLU and dropout.

    The numbers in the published keys also count the dropout layers of the training.
    """
    return [
        layer
        for inner, outer in pairwise(widths)
        for layer in (nn.Linear(inner, outer), nn.ReLU(), nn.Dropout())
    ]


def build(card: DetectorCard) -> nn.Module:
    """Build the network of a card.

    The card's `architecture.arguments` are those of `Rine` except `backbone`, which the card names
    separately. Raises DetectorError if the backbone is missing or invalid.
    """
    return Rine(build_backbone(card), **card.architecture.arguments)
