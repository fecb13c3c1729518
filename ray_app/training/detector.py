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
        if self.is_divided:
            return _gather_state(self.network, self.optimiser)
        return self.network.state_dict(), _named_state(self.network, self.optimiser)

    def restore(self, folder: Path) -> None:
        """Load the tensors, whatever strategy wrote them. If the network is divided, processes get
        their parts from rank 0, which alone reads the files.
        """
        reads = self.rank == 0 or not self.is_divided
        weights: dict[str, Any] = load_file(folder / WEIGHTS) if reads else {}
        own, read = (
            {name: tensor.shape for name, tensor in one.items()}
            for one in (self.network.state_dict(), weights)
        )
        if reads and read != own:
            raise DetectorError(f"{folder}: the checkpoint is of another network than {self.card.name} by {self.recipe.name}",
                                hint="begin anew in another folder")  # fmt: skip
        state: dict[str, Any] = {}
        if reads:
            state = torch.load(folder / OPTIMISER, weights_only=True, map_location="cpu")
        if self.is_divided:
            # Plain SGD remembers nothing, which torch treats as a fault.
            remembers = self.recipe.optimiser.name != "sgd" or self.recipe.optimiser.momentum > 0
            _divide_state(self.network, weights, self.optimiser if remembers else None, state)
        else:
            self.network.load_state_dict(weights)
            self.optimiser.load_state_dict(_numbered_state(self.network, self.optimiser, state))


def _gather_state(
    network: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the whole state of a divided network, in rank 0."""
    from torch.distributed.checkpoint import state_dict  # 1.6 s, which others need not pay

    options = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = state_dict.get_model_state_dict(network, options=options)
    return weights, dict(state_dict.get_optimizer_state_dict(network, optimiser, options=options))


def _divide_state(
    network: nn.Module,
    weights: dict[str, Any],
    optimiser: torch.optim.Optimizer | None,
    state: dict[str, Any],
) -> None:
    """Give each process its part of what rank 0 has read."""
    from torch.distributed.checkpoint import state_dict

    options = state_dict.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    state_dict.set_model_state_dict(network, weights, options=options)
    if optimiser is not None:
        state_dict.set_optimizer_state_dict(network, optimiser, state, options=options)


def _named_state(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimiser's state by the names of parameters, as `_gather_state` does."""
    names: dict[torch.Tensor, str] = {
        parameter: name for name, parameter in network.named_parameters()
    }
    groups = [
        {**group, "params": [names[parameter] for parameter in group["params"]]}
        for group in optimiser.param_groups
    ]
    state = {names[parameter]: dict(values) for parameter, values in optimiser.state.items()}
    return {"state": state, "param_groups": groups}


def _numbered_state(
    network: nn.Module, optimiser: torch.optim.Optimizer, named: dict[str, Any]
) -> dict[str, Any]:
    """Return a state by names as `Optimizer.load_state_dict` takes it: by numbers, in the order of
    the groups.
    """
    names = {parameter: name for name, parameter in network.named_parameters()}
    ordered = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state = {
        number: {
            key: _laid_out_as(parameter, value)
            for key, value in named["state"][names[parameter]].items()
        }
        for number, parameter in enumerate(ordered)
        if names[parameter] in named["state"]
    }
    return {**optimiser.state_dict(), "state": state}


def _laid_out_as(parameter: nn.Parameter, value: Any) -> Any:
    """Return a tensor of the optimiser in the memory layout of its parameter, in which the optimiser
    made it: in another layout torch may round differently.
    """
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, device="cpu", dtype=value.dtype).copy_(value)


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
