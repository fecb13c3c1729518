"""Train a detector: `DetectorLearner` minimises `compute_batch_loss`.

`load_trained` returns the network of a checkpoint, to score with or to export.

A loss is a sum over usable images, divided by the number of all images of the batch. Images that
could not be read are not usable, but count in the divisor. Thus the losses of the micro-batches of
one process add up to the loss of its batch.
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
    NetworkOutput,
    TrainingModule,
    build_training_network,
    build_untrained_network,
    make_deployable,
)


class DetectorLearner(Learner):
    """Trains a detector's network, step by step, with batches that `BatchLoader.load` returns."""

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
        """Build the network with the weights that training starts from.

        Args:
            recipe: The recipe.
            card: The card of the network to train, see `networks.training_card`.
            device: The device.
            total_steps: Number of steps of the whole training.
            rank: Rank of this process.
            strategy: `ddp` if each process holds the whole network, `fsdp2` if they divide it.

        Raises:
            ConfigError: The loss or another setting of the recipe does not fit the network.
            DetectorError: Initial weights are missing or do not fit.
        """
        if card.masks != (recipe.loss.name == "maskclip"):
            predicts = "predicts" if card.masks else "does not predict"
            raise ConfigError(
                f"{recipe.name}: loss {recipe.loss.name} does not fit {card.name}, which {predicts} masks",
                hint="set loss: {name: maskclip} for a network with masks, binary for all others",
            )
        self.card = card
        # FSDP2 accepts only contiguous parameters.
        self._format = (
            torch.channels_last
            if recipe.loop.channels_last and strategy != "fsdp2"
            else torch.contiguous_format
        )
        network = build_training_network(recipe, card).to(device).to(memory_format=self._format)
        self._normalise = Normalise(card.preprocessing).to(device)
        precision = resolve_precision(recipe.loop.precision, device, card.precision)
        super().__init__(
            recipe,
            network,
            called=TrainingModule(network),
            device=device,
            precision=precision,
            total_steps=total_steps,
            rank=rank,
            strategy=strategy,
        )

    def answer(self, part: Batch) -> NetworkOutput:
        """Return the logits of one micro-batch, and mask logits if the network predicts masks."""
        # torch.tensor copies, because arrays of an object store are read-only.
        images = torch.tensor(part["image"]).to(self.device)
        answer: NetworkOutput = self._model(
            self._normalise(images).contiguous(memory_format=self._format)
        )
        return answer

    def loss(self, answer: NetworkOutput, part: Batch, count: int) -> BatchLoss:
        """Return the loss of one micro-batch; see `compute_batch_loss`.

        Args:
            answer: The outputs of the network for the micro-batch.
            part: The micro-batch.
            count: Number of images of this process's batch, by which the loss is divided.
        """
        return compute_batch_loss(self.recipe.loss, self.card.output, answer, part, count)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return weights and optimiser state by parameter name, gathered from all processes."""
        if self.is_divided:
            return _gather_state(self.network, self.optimiser)
        return self.network.state_dict(), _name_state(self.network, self.optimiser)

    def restore(self, folder: Path) -> None:
        """Load weights and optimiser state of a checkpoint, whether DDP or FSDP2 wrote it.

        If the processes divide the network, rank 0 alone reads the files and sends the others their
        parts.
        """
        is_reader = self.rank == 0 or not self.is_divided
        weights: dict[str, Any] = load_file(folder / WEIGHTS) if is_reader else {}
        own_shapes, file_shapes = (
            {name: tensor.shape for name, tensor in tensors.items()}
            for tensors in (self.network.state_dict(), weights)
        )
        if is_reader and file_shapes != own_shapes:
            raise DetectorError(f"{folder}: the checkpoint does not fit the network of {self.card.name} in the recipe {self.recipe.name}",
                                hint="start again with another --out")  # fmt: skip
        state: dict[str, Any] = {}
        if is_reader:
            state = torch.load(folder / OPTIMISER, weights_only=True, map_location="cpu")
        if self.is_divided:
            # Plain SGD has no state, which torch treats as an error.
            has_state = self.recipe.optimiser.name != "sgd" or self.recipe.optimiser.momentum > 0
            _divide_state(self.network, weights, self.optimiser if has_state else None, state)
        else:
            self.network.load_state_dict(weights)
            self.optimiser.load_state_dict(_number_state(self.network, self.optimiser, state))


def _gather_state(
    network: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the whole state of a divided network, in rank 0."""
    # The import takes 1.6 s, which only divided networks need.
    from torch.distributed.checkpoint import state_dict

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


def _name_state(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
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


def _number_state(
    network: nn.Module, optimiser: torch.optim.Optimizer, named_state: dict[str, Any]
) -> dict[str, Any]:
    """Return a state by names in the form of `Optimizer.load_state_dict`, by number."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    ordered = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state = {
        index: {
            key: _match_layout(parameter, value)
            for key, value in named_state["state"][names[parameter]].items()
        }
        for index, parameter in enumerate(ordered)
        if names[parameter] in named_state["state"]
    }
    return {**optimiser.state_dict(), "state": state}


def _match_layout(parameter: nn.Parameter, value: Any) -> Any:
    """Return a tensor of the optimiser in the memory layout of its parameter.

    The optimiser created the tensor in that layout. In another layout torch may round differently.
    """
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, device="cpu", dtype=value.dtype).copy_(value)


def compute_batch_loss(
    loss: Loss, output: Output, answer: NetworkOutput, batch: Batch, count: int
) -> BatchLoss:
    """Return a detector's loss for one micro-batch. Images that could not be read count as zero.

    Args:
        loss: The recipe's section `loss`, which names the loss.
        output: The section `output` of the detector's card, which defines the meaning of the
            logits.
        answer: The outputs of the network for the N images of the micro-batch.
        batch: Arrays of `BatchLoader.load`: `label` (N,) with 1 for fake, and `usable` (N,). If
            `loss.twins` is set, also `group` (N,), equal for a real and a fake to compare. The loss
            maskclip also needs `mask` and `edge` (N, S, S).
        count: Number of images of this process's batch. The sum over the N images is divided by it.
    """
    device = answer.logits.device
    usable = np.flatnonzero(batch["usable"])
    selected = torch.as_tensor(usable, device=device)
    labels = torch.as_tensor(batch["label"][usable], device=device)
    if loss.name == "maskclip":
        assert answer.mask_logits is not None, "the learner has checked that there are masks"
        targets = [
            torch.as_tensor(batch[name][usable], device=device).float() for name in ("mask", "edge")
        ]
        return _compute_maskclip_loss(
            NetworkOutput(answer.logits[selected], answer.mask_logits[selected]),
            labels,
            targets,
            count,
        )
    log_odds = answer.log_odds(output)[selected]
    single = (
        functional.binary_cross_entropy_with_logits(log_odds, labels.float(), reduction="sum")
        / count
    )
    if not loss.twins:
        return BatchLoss(single, {"binary": single.detach()})
    twins = (
        _compute_twins_loss(
            log_odds, labels, torch.as_tensor(batch["group"][usable], device=device)
        )
        / count
    )
    return BatchLoss(
        (1 - loss.twins) * single + loss.twins * twins,
        {"binary": single.detach(), "twins": twins.detach()},
    )


def _compute_twins_loss(
    log_odds: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor
) -> torch.Tensor:
    """Return the cross-entropy of "which of these two is the fake" over pairs of one group.

    All pairs of a real and a fake count. A group weighs as much as it has images.
    """
    pairs = (groups[:, None] == groups[None, :]) & (labels[:, None] == 0) & (labels[None, :] == 1)
    reals, fakes = pairs.sum(0, keepdim=True), pairs.sum(1, keepdim=True)
    weights = torch.where(pairs, (reals + fakes) / (reals * fakes).clamp(min=1), 0.0)
    return (weights * functional.softplus(log_odds[:, None] - log_odds[None, :])).sum()


def _compute_maskclip_loss(
    answer: NetworkOutput, labels: torch.Tensor, targets: list[torch.Tensor], count: int
) -> BatchLoss:
    logits, mask_logits = answer
    assert mask_logits is not None
    if not len(labels):
        # There is nothing to learn from, but other processes wait for gradients of the network.
        total = logits.sum() + mask_logits.sum()
        return BatchLoss(total, dict.fromkeys(("detection", "mask", "edge"), total.detach()))
    terms = losses(logits, mask_logits, labels, *targets)
    fraction = len(labels) / count
    parts = {name: value.detach() * fraction for name, value in terms._asdict().items()}
    return BatchLoss(terms.total * fraction, parts)


def load_trained(recipe: Recipe, card: DetectorCard, folder: Path) -> nn.Module:
    """Return the network of a checkpoint as the card describes it, to score with or to export.

    Args:
        recipe: The recipe.
        card: The training card, see `networks.training_card`.
        folder: A local folder that `Learner.save` wrote.

    Raises:
        DetectorError: The checkpoint is of another network.
    """
    network = build_untrained_network(recipe, card)
    load_strictly(network, load_file(folder / WEIGHTS), where=str(folder / WEIGHTS))
    return make_deployable(network, card)
