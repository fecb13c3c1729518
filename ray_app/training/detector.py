"""How a detector learns: `DetectorLearner` minimises `batch_loss`; `load_trained` is the network of
a checkpoint, to score or export.

A loss is a sum over usable images divided by the number of images requested, usable or not: sums of
parts of a batch, in one process or in several, are then the loss of the whole.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn import functional

from ray_app.detectors.card import DetectorCard, Output
from ray_app.detectors.checkpoints import load_strictly
from ray_app.detectors.detector import Normalise
from ray_app.detectors.families.maskclip import losses
from ray_app.detectors.precision import resolve_precision
from ray_app.errors import ConfigError, DetectorError
from ray_app.training.config import Loss, Recipe
from ray_app.training.learner import OPTIMISER, WEIGHTS, Batch, BatchLoss, Learner, Strategy
from ray_app.training.networks import (
    Learning,
    NetworkOutput,
    deployable,
    network_for,
    training_form,
)


class DetectorLearner(Learner):
    """A detector's network; batches are as `BatchLoader.load` gives them."""

    def __init__(
        self,
        recipe: Recipe,
        card: DetectorCard,
        *,
        device: str,
        total_steps: int,
        rank: int = 0,
        strategy: Strategy = "ddp",
    ) -> None:
        if card.masks != (recipe.loss.name == "maskclip"):
            given = "says" if card.masks else "does not say"
            raise ConfigError(
                f"{recipe.name}: loss {recipe.loss.name} and {card.name}, which {given} where an image was altered",
                hint="loss: {name: maskclip} for a network with masks, binary for all others",
            )
        self.card = card
        # FSDP2 takes contiguous parameters only.
        self._format = (
            torch.channels_last
            if recipe.loop.channels_last and strategy != "fsdp2"
            else torch.contiguous_format
        )
        network = network_for(recipe, card).to(device).to(memory_format=self._format)
        self._normalise = Normalise(card.preprocessing).to(device)
        precision = resolve_precision(recipe.loop.precision, device, card.precision)
        super().__init__(
            recipe,
            network,
            called=Learning(network),
            device=device,
            precision=precision,
            total_steps=total_steps,
            rank=rank,
            strategy=strategy,
        )

    def answer(self, part: Batch) -> NetworkOutput:
        """Logits, and masks where the network gives some."""
        # a copy: arrays from an object store are read-only
        images = torch.tensor(part["image"]).to(self.device)
        answer: NetworkOutput = self._model(
            self._normalise(images).contiguous(memory_format=self._format)
        )
        return answer

    def loss(self, answer: NetworkOutput, part: Batch, count: int) -> BatchLoss:
        """See `batch_loss`; the count is that of all images of the share."""
        return batch_loss(self.recipe.loss, self.card.output, answer, part, count)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Both under plain names, gathered from all processes."""
        gathered = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: dict[str, Any] = get_model_state_dict(self.network, options=gathered)
        return weights, dict(
            get_optimizer_state_dict(self.network, self.optimiser, options=gathered)
        )

    def restore(self, folder: Path) -> None:
        """Take up the tensors of rank 0's files, whatever strategy wrote them."""
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=self.world > 1)
        first = self.rank == 0
        weights: dict[str, Any] = load_file(folder / WEIGHTS) if first else {}
        ours, theirs = (
            {name: tensor.shape for name, tensor in one.items()}
            for one in (self.network.state_dict(), weights)
        )
        if first and theirs != ours:
            raise DetectorError(f"{folder}: the checkpoint is of another network than {self.card.name} by {self.recipe.name}",
                                hint="begin anew in another folder")  # fmt: skip
        set_model_state_dict(self.network, weights, options=options)
        # plain SGD remembers nothing, for torch a fault
        if self.recipe.optimiser.name != "sgd" or self.recipe.optimiser.momentum:
            state = (
                torch.load(folder / OPTIMISER, weights_only=True, map_location="cpu")
                if first
                else {}
            )
            set_optimizer_state_dict(self.network, self.optimiser, state, options=options)


def batch_loss(
    loss: Loss, output: Output, answer: NetworkOutput, batch: Batch, count: int
) -> BatchLoss:
    """The loss of some images as their part of a batch of `count`; unusable ones weigh zero.

    `batch`: arrays as `BatchLoader.load` gives them: `label` (N,) 1 = fake, `usable` (N,), `group`
    (N,); with `loss.name` maskclip `mask` and `edge` (N, S, S).
    """
    device = answer.logits.device
    kept = np.flatnonzero(batch["usable"])
    chosen = torch.as_tensor(kept, device=device)
    labels = torch.as_tensor(batch["label"][kept], device=device)
    if loss.name == "maskclip":
        assert answer.mask_logits is not None, "the learner has checked that the network says where"
        targets = [
            torch.as_tensor(batch[name][kept], device=device).float() for name in ("mask", "edge")
        ]
        return _maskclip(
            NetworkOutput(answer.logits[chosen], answer.mask_logits[chosen]), labels, targets, count
        )
    log_odds = answer.log_odds(output)[chosen]
    single = (
        functional.binary_cross_entropy_with_logits(log_odds, labels.float(), reduction="sum")
        / count
    )
    if not loss.twins:
        return BatchLoss(single, {"binary": single.detach()})
    twins = _twins(log_odds, labels, torch.as_tensor(batch["group"][kept], device=device)) / count
    return BatchLoss(
        (1 - loss.twins) * single + loss.twins * twins,
        {"binary": single.detach(), "twins": twins.detach()},
    )


def _twins(log_odds: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of "which of these two is the fake" over all (real, fake) of one group; a group
    weighs as much as it has images.
    """
    pairs = (groups[:, None] == groups[None, :]) & (labels[:, None] == 0) & (labels[None, :] == 1)
    reals, fakes = pairs.sum(0, keepdim=True), pairs.sum(1, keepdim=True)
    weights = torch.where(pairs, (reals + fakes) / (reals * fakes).clamp(min=1), 0.0)
    return (weights * functional.softplus(log_odds[:, None] - log_odds[None, :])).sum()


def _maskclip(
    answer: NetworkOutput, labels: torch.Tensor, targets: list[torch.Tensor], count: int
) -> BatchLoss:
    logits, mask_logits = answer
    assert mask_logits is not None
    if not len(labels):
        # Nothing to learn from, and still a way back through the network: other processes wait for
        # its gradients.
        total = logits.sum() + mask_logits.sum()
        return BatchLoss(total, dict.fromkeys(("detection", "mask", "edge"), total.detach()))
    terms = losses(logits, mask_logits, labels, *targets)
    share = len(labels) / count
    parts = {name: value.detach() * share for name, value in terms._asdict().items()}
    return BatchLoss(terms.total * share, parts)


def load_trained(recipe: Recipe, card: DetectorCard, folder: Path) -> nn.Module:
    """The network of a checkpoint that `Learner.save` wrote, as the card describes it, to score
    with or to export. Raises DetectorError.
    """
    network = training_form(recipe, card)
    load_strictly(network, load_file(folder / WEIGHTS), where=str(folder / WEIGHTS))
    return deployable(network, card)
