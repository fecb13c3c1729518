"""One process's side of a training: `Learner` takes batches and improves weights, alone, under DDP or under FSDP2 (`distribute`).

Gradients are averaged over the processes. Batch normalisation is each process's own, and the running means and variances that are saved
are rank 0's: a network with such norms learns a little differently in another number of processes; one without learns the same.

What a training minimises and how: `batch_loss`, `make_optimiser`, and the learning rate of a step, `rate_at`.

A loss is a sum over usable images divided by the number of images requested, usable or not: sums of parts of a batch, in one process
or in several, are then the loss of the whole.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ray_app.detectors.card import DetectorCard, Output
from ray_app.detectors.detector import Normalise
from ray_app.detectors.families.maskclip import losses
from ray_app.detectors.precision import autocast, forbid_tf32, resolve_precision
from ray_app.detectors.weights import load_strictly
from ray_app.errors import ConfigError, DetectorError, StorageError, TouchstoneError, describe_error
from ray_app.training.config import Loss, Optimiser, Recipe, Schedule
from ray_app.training.networks import Learning, NetworkOutput, deployable, network_for, training_form


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


Batch = Mapping[str, npt.NDArray[Any]]
WEIGHTS, OPTIMISER, POSITION = "model.safetensors", "optimiser.pt", "position.json"
_GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)
_DROPOUT = 7  # names the stream of chance, beside those of order and augmentation
Strategy = Literal["ddp", "fsdp2"]
_STACKS = (nn.ModuleList, nn.Sequential)


class StepFigures(NamedTuple):
    """What one step says of itself, the same in every process.

    `step`: its number, from 0. `loss` and its `parts`: means over the whole batch, in which unusable images count as zero.
    `gradient_norm`: before clipping. `unusable`: images of the whole batch that could not be read.
    """

    step: int
    loss: float
    parts: dict[str, float]
    rate: float
    gradient_norm: float
    unusable: int


class Learner:
    """A network that learns from a recipe, on one device, alone or as one of `world` processes.

    `network`: as it learns, without wrappers; under FSDP2 its parameters are this process's parts. `step_number`: steps done, which is
    also the position in the data. `precision`: what the recipe's means on this device. All that happens depends on recipe, batches and
    (seed, step, rank): a training that is saved, loaded elsewhere and continued gives the same weights as one that never stopped; with
    dropout or norms of batches, by as many processes. Dropout draws from torch's global generator, which every step seeds.
    """

    def __init__(
        self,
        recipe: Recipe,
        card: DetectorCard,
        *,
        device: str,
        total_steps: int,
        rank: int = 0,
        world: int = 1,
        strategy: Strategy = "ddp",
    ) -> None:
        assert world == world_size(), "every process belongs to the process group"
        _check(recipe, card)
        self.recipe, self.card, self.device, self.total_steps = recipe, card, device, total_steps
        self.rank, self.world, self.step_number = rank, world, 0
        self.precision = resolve_precision(recipe.loop.precision, device, card.precision)
        if self.precision == "fp32" and torch.device(device).type == "cuda":
            forbid_tf32()
        # FSDP2 takes contiguous parameters only.
        self._format = torch.channels_last if recipe.loop.channels_last and strategy != "fsdp2" else torch.contiguous_format
        self.network: nn.Module = network_for(recipe, card).to(device).to(memory_format=self._format)
        self._normalise = Normalise(card.preprocessing).to(device)
        self._model = distribute(Learning(self.network), strategy, device)
        self._optimiser = make_optimiser(recipe.optimiser, self.network)

    def step(self, batch: Batch) -> StepFigures:
        """Learn from this process's equal share of a batch, as `BatchLoader.load` gives it. Every process calls it.

        Raises TouchstoneError where loss or gradients are no numbers; the weights are then still those of the step before.
        """
        step = self.step_number
        rate = begin_step(self.recipe, self._optimiser, step, self.total_steps, self.rank)
        parts = self._way_back(batch)
        parts["unusable"] = torch.tensor(float(np.count_nonzero(~batch["usable"])), device=self.device)
        norm = whole(get_total_norm([parameter.grad for parameter in self._learning() if parameter.grad is not None]))
        values = dict(zip(parts, averaged(torch.stack(list(parts.values())).float()).tolist(), strict=True))
        loss, unusable = values.pop("loss"), round(values.pop("unusable") * self.world)
        figures = StepFigures(step, loss, values, rate, norm.item(), unusable)
        require_finite(figures)
        if self.recipe.loop.clip is not None:
            clip_grads_with_norm_(self._learning(), self.recipe.loop.clip, norm)
        self._optimiser.step()
        self.step_number += 1
        return figures

    def _way_back(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Gradients of this process's share, in micro-batches; its loss and the loss's parts."""
        share = len(batch["label"])
        starts = range(0, share, self.recipe.loop.micro_batch or share)
        totals: dict[str, torch.Tensor] = {}
        for start in starts:
            micro = {name: values[start : start + starts.step] for name, values in batch.items()}
            images = torch.tensor(micro["image"]).to(self.device)  # a copy: arrays from an object store are read-only
            with own_gradients(self._model, alone=start != starts[-1]):
                with autocast(self.device, self.precision):
                    answer = self._model(self._normalise(images).contiguous(memory_format=self._format))
                loss = batch_loss(self.recipe.loss, self.card.output, answer, micro, share)
                loss.total.backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.total.detach(), **loss.parts}.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals

    def _learning(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.network.parameters() if parameter.grad is not None]

    def save(self, folder: Path) -> None:
        """Write everything that going on needs to an existing folder. Every process calls it; rank 0 writes, when all have answered.

        `model.safetensors`: the whole network as it learns, with its adapters and norms, under plain names; `optimiser.pt`;
        `position.json`. Neither strategy nor number of processes is in them. Raises StorageError.
        """
        weights: dict[str, Any] = get_model_state_dict(self.network, options=_GATHERED)
        optimiser: dict[str, Any] = get_optimizer_state_dict(self.network, self._optimiser, options=_GATHERED)
        if self.rank != 0:
            return
        try:
            save_file(_contiguous(weights), folder / WEIGHTS)
            state = {name: _contiguous(values) for name, values in optimiser["state"].items()}
            torch.save({**optimiser, "state": state}, folder / OPTIMISER)
            (folder / POSITION).write_text(json.dumps({"step": self.step_number}), encoding="utf-8")
        except (OSError, RuntimeError, SafetensorError) as error:  # the latter two are how torch and safetensors say that a disk is full
            raise StorageError(f"{folder}: the checkpoint of step {self.step_number} cannot be written: {describe_error(error)}") from error

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote, by any strategy and number of processes. Every process calls it, and reads position and files
        of its own folder; tensors are taken from rank 0's alone. Raises DetectorError where the checkpoint is of another network.
        """
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=self.world > 1)
        first = self.rank == 0
        weights: dict[str, Any] = load_file(folder / WEIGHTS) if first else {}
        if first and _shapes(weights) != _shapes(self.network.state_dict()):
            raise DetectorError(f"{folder}: the checkpoint is of another network than {self.card.name} by {self.recipe.name}",
                                hint="begin anew in another folder")  # fmt: skip
        set_model_state_dict(self.network, weights, options=options)
        if self.recipe.optimiser.name != "sgd" or self.recipe.optimiser.momentum:  # plain SGD remembers nothing, for torch a fault
            state = torch.load(folder / OPTIMISER, weights_only=True, map_location="cpu") if first else {}
            set_optimizer_state_dict(self.network, self._optimiser, state, options=options)
        self.step_number = json.loads((folder / POSITION).read_text(encoding="utf-8"))["step"]


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _contiguous(values: dict[str, Any]) -> dict[str, Any]:
    """Tensors in the order of their indices: rank 0 hands out bare memory when they are loaded, and others would take it in that order."""
    return {name: value.contiguous() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def load_trained(recipe: Recipe, card: DetectorCard, folder: Path) -> nn.Module:
    """The network of a checkpoint that `Learner.save` wrote, as the card describes it, to score with or to export. Raises DetectorError."""
    network = training_form(recipe, card)
    load_strictly(network, load_file(folder / WEIGHTS), where=str(folder / WEIGHTS))
    return deployable(network, card)


def _check(recipe: Recipe, card: DetectorCard) -> None:
    given = "says" if card.masks else "does not say"
    if card.masks != (recipe.loss.name == "maskclip"):
        raise ConfigError(
            f"{recipe.name}: loss {recipe.loss.name} and {card.name}, which {given} where an image was altered",
            hint="loss: {name: maskclip} for a network with masks, binary for all others",
        )


def begin_step(recipe: Recipe, optimiser: torch.optim.Optimizer, step: int, total_steps: int, rank: int) -> float:
    """Set the rate of a step, which is returned, and the chance of its dropout, which hangs on (seed, step, rank); forget gradients."""
    rate = rate_at(recipe.schedule, recipe.optimiser.rate, step, total_steps)
    for group in optimiser.param_groups:
        group["lr"] = rate
    torch.manual_seed(_seed(recipe.loop.seed, step, rank))
    optimiser.zero_grad(set_to_none=True)
    return rate


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence([*numbers, _DROPOUT]).generate_state(1, np.uint64)[0])


def require_finite(figures: StepFigures) -> None:
    """Raise TouchstoneError where a step's loss or gradients are no numbers."""
    if math.isfinite(figures.loss) and math.isfinite(figures.gradient_norm):
        return
    parts = ", ".join(f"{name} {value:g}" for name, value in figures.parts.items())
    raise TouchstoneError(
        f"step {figures.step}: training diverged: loss {figures.loss:g} ({parts}), gradient norm {figures.gradient_norm:g}",
        hint="lower optimiser.rate, set loop.clip, lengthen schedule.warmup, or set loop.precision to fp32",
    )


def world_size() -> int:
    """How many processes train together; 1 where no process group was begun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def distribute(network: nn.Module, strategy: Strategy, device: str) -> nn.Module:
    """What to call in place of `network`, which is on `device` already; the network itself where one process trains alone."""
    if world_size() == 1:
        return network
    place = torch.device(device)
    if strategy == "ddp":
        return DistributedDataParallel(network, device_ids=[place] if place.type == "cuda" else None, gradient_as_bucket_view=True)
    mesh = init_device_mesh(place.type, (world_size(),))
    # A single number cannot be cut; one that does not learn, as CLIP's scale, may be whole everywhere.
    single = {parameter for parameter in network.parameters() if parameter.ndim == 0 and not parameter.requires_grad}
    for block in [*blocks(network), network]:
        fully_shard(block, mesh=mesh, ignored_params=single)
    return network


def blocks(network: nn.Module) -> list[nn.Module]:
    """What is gathered and freed piece by piece: the members of every stack of like modules, such as a transformer's; inner ones first."""
    modules = list(network.modules())
    members = {block for stack in modules if isinstance(stack, _STACKS) for block in _alike(list(stack))}
    return [module for module in reversed(modules) if module in members]


def _alike(stack: list[nn.Module]) -> list[nn.Module]:
    kinds = Counter(type(module) for module in stack)
    return [module for module in stack if kinds[type(module)] > 1 and not isinstance(module, _STACKS) and list(module.children())]


@contextmanager
def own_gradients(network: nn.Module, alone: bool) -> Iterator[None]:
    """While `alone`, gradients add up in this process; otherwise the way back averages all that has added up over the processes."""
    if isinstance(network, DistributedDataParallel) and alone:
        with network.no_sync():
            yield
        return
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(not alone)
    yield


def averaged(values: torch.Tensor) -> torch.Tensor:
    """The mean over all processes of a tensor that each has."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values / world_size()


def whole(tensor: Any) -> torch.Tensor:
    """A tensor that may be spread over processes, in one piece."""
    gathered: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered
