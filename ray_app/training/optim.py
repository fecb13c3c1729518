"""What a training minimises and how: `batch_loss`, `make_optimiser`, and the learning rate of a step, `rate_at`.

A loss is a sum over usable images divided by the number of images requested, usable or not: sums of parts of a batch, in one process
or in several, are then the loss of the whole.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.card import Output
from ray_app.detectors.families.maskclip import losses
from ray_app.training.config import Loss, Optimiser, Schedule
from ray_app.training.networks import NetworkOutput


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


class BatchLoss(NamedTuple):
    """`total`: what gradients start from. `parts`: its terms by name, detached, the same names for every batch."""

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


def batch_loss(loss: Loss, output: Output, answer: NetworkOutput, batch: Mapping[str, npt.NDArray[Any]], count: int) -> BatchLoss:
    """The loss of some images as their part of a batch of `count`; unusable ones weigh zero.

    `batch`: arrays as `BatchLoader.load` gives them: `label` (N,) 1 = fake, `usable` (N,), `group` (N,); with `loss.name` maskclip `mask`
    and `edge` (N, S, S).
    """
    device = answer.logits.device
    kept = np.flatnonzero(batch["usable"])
    chosen = torch.as_tensor(kept, device=device)
    labels = torch.as_tensor(batch["label"][kept], device=device)
    if loss.name == "maskclip":
        assert answer.mask_logits is not None, "the learner has checked that the network says where"
        targets = [torch.as_tensor(batch[name][kept], device=device).float() for name in ("mask", "edge")]
        return _maskclip(NetworkOutput(answer.logits[chosen], answer.mask_logits[chosen]), labels, targets, count)
    log_odds = answer.log_odds(output)[chosen]
    single = functional.binary_cross_entropy_with_logits(log_odds, labels.float(), reduction="sum") / count
    if not loss.twins:
        return BatchLoss(single, {"binary": single.detach()})
    twins = _twins(log_odds, labels, torch.as_tensor(batch["group"][kept], device=device)) / count
    return BatchLoss((1 - loss.twins) * single + loss.twins * twins, {"binary": single.detach(), "twins": twins.detach()})


def _twins(log_odds: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of "which of these two is the fake" over all (real, fake) of one group; a group weighs as much as it has images."""
    pairs = (groups[:, None] == groups[None, :]) & (labels[:, None] == 0) & (labels[None, :] == 1)
    reals, fakes = pairs.sum(0, keepdim=True), pairs.sum(1, keepdim=True)
    weights = torch.where(pairs, (reals + fakes) / (reals * fakes).clamp(min=1), 0.0)
    return (weights * functional.softplus(log_odds[:, None] - log_odds[None, :])).sum()


def _maskclip(answer: NetworkOutput, labels: torch.Tensor, targets: list[torch.Tensor], count: int) -> BatchLoss:
    logits, mask_logits = answer
    assert mask_logits is not None
    if not len(labels):
        # Nothing to learn from, and still a way back through the network: other processes wait for its gradients.
        total = logits.sum() + mask_logits.sum()
        return BatchLoss(total, dict.fromkeys(("detection", "mask", "edge"), total.detach()))
    terms = losses(logits, mask_logits, labels, *targets)
    share = len(labels) / count
    parts = {name: value.detach() * share for name, value in terms._asdict().items()}
    return BatchLoss(terms.total * share, parts)


def rate_at(schedule: Schedule, rate: float, step: int, total: int) -> float:
    """The learning rate of step `step`, counted from 0, of `total`; the formula stands at `Schedule`. After the last step: the floor."""
    warmup = warmup_steps(schedule, total)
    if step < warmup:
        return rate * (step + 1) / warmup
    passed = min((step - warmup) / (total - warmup), 1.0) if total > warmup else 1.0
    return rate * (schedule.floor + (1 - schedule.floor) * _left(schedule.shape, passed))


def warmup_steps(schedule: Schedule, total: int) -> int:
    """How many steps the rate rises: `warmup` itself from 1 on, below 1 that share of all, rounded."""
    return round(schedule.warmup if schedule.warmup >= 1 else schedule.warmup * total)


def _left(shape: str, passed: float) -> float:
    if shape == "linear":
        return 1 - passed
    return (1 + math.cos(math.pi * passed)) / 2 if shape == "cosine" else 1.0
