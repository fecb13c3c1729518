"""The optimiser of a recipe over what learns in a network. Knows torch's optimisers, no data and no schedule."""

import torch
from torch import nn

from ray_app.learning.config import Optimiser


def make_optimiser(config: Optimiser, network: nn.Module) -> torch.optim.Optimizer:
    """Over all parameters with `requires_grad`. With `decays: matrices`, weight decay spares one-dimensional tensors, as timm does."""
    groups = parameter_groups(network, config.weight_decay, config.decays == "matrices")
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.rate, momentum=config.momentum)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.rate, betas=config.betas, eps=config.eps)


def parameter_groups(network: nn.Module, weight_decay: float, spare: bool) -> list[dict[str, object]]:
    """What learns, in groups of equal weight decay; `spare`: none on biases, norms and all else of one dimension or less."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not spare or not weight_decay:
        return [{"params": learning, "weight_decay": weight_decay}]
    matrices = [parameter for parameter in learning if parameter.ndim > 1]
    rest = [parameter for parameter in learning if parameter.ndim <= 1]
    return [{"params": part, "weight_decay": decay} for part, decay in ((matrices, weight_decay), (rest, 0.0)) if part]
