"""The families of architectures and the module that builds each. A family is imported when a card needs it, never before."""

import importlib

from torch import nn

from ray_app.detectors.cards import DetectorCard, Family

MODULES: dict[Family, str] = {
    "timm-classifier": "ray_app.detectors.timm_classifier",
    "transformers-classifier": "ray_app.detectors.transformers_classifier",
    "residual": "ray_app.detectors.residual",
}


def build_network(card: DetectorCard) -> nn.Module:
    """The card's network in evaluation mode, randomly initialised: (N, 3, H, W) → (N, logits). No network access.

    Each module has one function `build(card)`. Its last linear layer is taken for the head (see `precision`).
    """
    network: nn.Module = importlib.import_module(MODULES[card.family]).build(card)
    return network.eval().requires_grad_(False)
