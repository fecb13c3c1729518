"""The `clip-linear` family: one linear layer on an image feature of CLIP, as in CLIP-D (specs/detectors.md §2) and UnivFD (§9b).

Knows the tower and the head. Knows nothing about files: the tower's weights come from the card's backbone, the head's are the card's own.
"""

from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.cards import DetectorCard
from ray_app.detectors.clip import VisionTower
from ray_app.errors import DetectorError

Feature = Literal["class-token", "projected"]


class ClipLinear(nn.Module):
    """(N, 3, H, W), normalised → (N, logits). `backbone` gives `VisionFeatures` and may be shared with other heads; `fc` is the head."""

    def __init__(self, backbone: VisionTower, *, feature: Feature, normalise: bool, logits: int = 1) -> None:
        super().__init__()
        self.backbone = backbone
        width, embed_dim = backbone.proj.shape
        self.fc = nn.Linear(width if feature == "class-token" else embed_dim, logits)
        self.feature, self.normalise = feature, normalise

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the head sees: (N, width or embed_dim) float32, of unit length if `normalise`."""
        seen = self.backbone(pixels)
        features: torch.Tensor = seen.class_token if self.feature == "class-token" else seen.projected
        return functional.normalize(features.float(), dim=-1) if self.normalise else features.float()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        logits: torch.Tensor = self.fc(self.features(pixels))
        return logits


def build(card: DetectorCard) -> nn.Module:
    """The network of a card: its backbone's arguments go to `VisionTower`, its own are `feature` and `normalise`. Raises DetectorError."""
    if card.backbone is None:
        raise DetectorError(f"{card.name}: a card of family clip-linear names a backbone", hint="backbone: openai-clip-vit-l14")
    own: dict[str, Any] = dict(card.architecture.arguments)
    if own.get("feature") not in ("class-token", "projected") or not isinstance(own.get("normalise"), bool) or len(own) != 2:
        raise DetectorError(f"{card.name}: architecture.arguments are `feature` (class-token or projected) and `normalise` (true or false)")
    try:
        tower = VisionTower(**card.backbone.architecture.arguments)
    except TypeError as error:
        raise DetectorError(f"{card.name}: no CLIP tower is built from the arguments of {card.backbone.name}: {error}") from error
    return ClipLinear(tower, **own, logits=card.output.logits)
