"""The families `timm-classifier`, any image classifier of timm by timm's own name, and `embedding`: a network of timm's whose last layer
gives an embedding that was trained by contrast, and a linear layer on it, under DRCT's key names. Nothing is downloaded.

Source of the second: Chen et al., ICML 2024 (PMLR 235, pages 7621–7639).
"""

import timm
import torch
from torch import nn

from ray_app.detectors.card import DetectorCard
from ray_app.errors import DetectorError


class EmbeddingClassifier(nn.Module):
    """(N, 3, H, W), normalised → (N, logits). `model` gives (N, width) in the place of its classes; `fc` is the head on it."""

    def __init__(self, model: nn.Module, width: int, logits: int) -> None:
        super().__init__()
        self.model, self.fc = model, nn.Linear(width, logits)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        logits: torch.Tensor = self.fc(self.model(pixels))
        return logits


def build(card: DetectorCard) -> nn.Module:
    """The network of the card: `architecture.name` is timm's, `arguments` go to `timm.create_model`, but for an `embedding`'s `width`."""
    arguments = dict(card.architecture.arguments)
    if card.family != "embedding":
        network: nn.Module = timm.create_model(card.architecture.name, pretrained=False, num_classes=card.output.logits, **arguments)
        return network
    width = arguments.pop("width", None)
    if not isinstance(width, int) or width < 1:
        raise DetectorError(f"{card.name}: architecture.arguments: width: numbers in the embedding, at least 1, not {width!r}")
    model = timm.create_model(card.architecture.name, pretrained=False, num_classes=width, **arguments)
    return EmbeddingClassifier(model, width, card.output.logits)
