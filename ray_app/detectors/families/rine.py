"""The `rine` family: what every block of CLIP says in its class token, weighed and summed.

Source: Koutlis and Papadopoulos, ECCV 2024 (arXiv 2402.19091). The tower's weights come from the
card's backbone, the head's are the card's own, under the authors' key names.
"""

from itertools import pairwise

import torch
from torch import nn

from ray_app.detectors.card import DetectorCard
from ray_app.detectors.families.clip_tower import VisionTower, drawn
from ray_app.detectors.families.frozen import build_backbone


class Rine(nn.Module):
    """(N, 3, H, W), normalised → (N, 1). `backbone` gives `VisionFeatures`; of them the class
    tokens of all its layers are read.

    CLIP runs once for this network and for all others that read the same one.

    `projections`: linear layers in each of both projections; `width`: theirs. `alpha` (1, layers,
    width) weighs the layers, number by number: the paper's trainable importance estimator.
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
        """Score a batch; see the class for shapes."""
        layers = self.proj1(self.backbone(pixels).class_tokens)
        summed = (self.alpha.softmax(dim=1) * layers).sum(dim=1)
        logits: torch.Tensor = self.head(self.proj2(summed))
        return logits


def _layers(widths: list[int]) -> list[nn.Module]:
    """Linear layers from width to width, each with its ReLU and the dropout of the training, which
    the published numbering counts.
    """
    return [
        layer
        for inner, outer in pairwise(widths)
        for layer in (nn.Linear(inner, outer), nn.ReLU(), nn.Dropout())
    ]


def build(card: DetectorCard) -> nn.Module:
    """Build the network of a card: its arguments are those of `Rine`. Raises DetectorError."""
    return Rine(build_backbone(card), **card.architecture.arguments)
