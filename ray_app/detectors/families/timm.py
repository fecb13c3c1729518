"""The `timm-classifier` family: any image classifier that timm can build, by timm's own name. Never downloads."""

import timm
from torch import nn

from ray_app.detectors.card import DetectorCard
from ray_app.errors import DetectorError


def build(card: DetectorCard) -> nn.Module:
    """The network of the card: `architecture.name` is timm's, `arguments` go to `timm.create_model`. Raises DetectorError."""
    try:
        network: nn.Module = timm.create_model(
            card.architecture.name, pretrained=False, num_classes=card.output.logits, **card.architecture.arguments
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise DetectorError(f"{card.name}: timm cannot build {card.architecture.name}: {error}") from error
    return network
