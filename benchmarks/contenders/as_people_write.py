"""The model and the transforms of a card as a person writes them from the model's page: torchvision
on PIL images, fp32 weights.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision import transforms

from ray_app.detectors import DetectorCard, Preprocessing, resolve_weights
from ray_app.detectors.checkpoints import load_strictly, read_state_dict
from ray_app.detectors.detector import build_network


def plain_model(card: DetectorCard) -> nn.Module:
    """The card's network in fp32 with its weights, as the authors' own loading code gives it."""
    network = build_network(card)
    load_strictly(network, read_state_dict(resolve_weights(card), card.weights), where=card.name)
    return network


def log_odds(card: DetectorCard, logits: torch.Tensor) -> list[float]:
    """Log-odds of fake, from the single logit of both detectors that are measured here."""
    assert card.output.sign is not None, f"{card.name}: a single logit was expected"
    return (logits.float()[:, 0] * card.output.sign).tolist()


def geometry(preprocessing: Preprocessing) -> list[Any]:
    """Resize and crop, for PIL images or tensors."""
    resize, steps = preprocessing.resize, []
    how = transforms.InterpolationMode(preprocessing.filter)
    if resize.mode == "squash":
        steps.append(transforms.Resize((resize.size, resize.size), how))
    elif resize.mode == "short_side":
        steps.append(transforms.Resize(resize.size, how))
    if preprocessing.center_crop is not None:
        steps.append(transforms.CenterCrop(preprocessing.center_crop))
    return steps


def pil_transform(preprocessing: Preprocessing) -> Callable[[Any], torch.Tensor]:
    """PIL image → normalised (3, H, W) float32, in the order of torchvision's examples."""
    return transforms.Compose(
        [*geometry(preprocessing), transforms.ToTensor(), _normalise(preprocessing)]
    )


def array_transform(preprocessing: Preprocessing) -> Callable[[Any], torch.Tensor]:
    """(H, W, 3) uint8 array → normalised (3, H, W) float32, in the order of Ray Data's image guide:
    to a tensor first.
    """
    return transforms.Compose(
        [transforms.ToTensor(), *geometry(preprocessing), _normalise(preprocessing)]
    )


def _normalise(preprocessing: Preprocessing) -> Any:
    return transforms.Normalize(preprocessing.mean, preprocessing.std)
