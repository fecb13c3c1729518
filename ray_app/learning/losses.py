"""What is minimised: the losses of a batch. Knows tensors and labels; knows no network and no process.

Every loss is a sum over usable images divided by the number of images asked for, usable or not: sums of parts of a batch, in one process
or in several, are then the loss of the whole.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from ray_app.detectors.cards import Output
from ray_app.detectors.maskclip_losses import losses
from ray_app.learning.config import Loss
from ray_app.learning.networks import Answer


class BatchLoss(NamedTuple):
    """`total`: what gradients start from. `parts`: its terms by name, detached, the same names for every batch."""

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


def batch_loss(loss: Loss, output: Output, answer: Answer, batch: Mapping[str, npt.NDArray[Any]], count: int) -> BatchLoss:
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
        return _maskclip(Answer(answer.logits[chosen], answer.mask_logits[chosen]), labels, targets, count)
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


def _maskclip(answer: Answer, labels: torch.Tensor, targets: list[torch.Tensor], count: int) -> BatchLoss:
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
