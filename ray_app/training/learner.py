"""The training loop's step: `Learner` takes batches and improves a network, alone, under DDP or
under FSDP2 (`distribute`).

What is minimised is said by its two kinds: `detector.DetectorLearner` and
`captioner.CaptionLearner`. Gradients are averaged over the processes. Batch normalisation is each
process's own, and the running means and variances that are saved are rank 0's: a network with such
norms learns a little differently in another number of processes; one without learns the same.
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
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ray_app.detectors.precision import ResolvedPrecision, autocast, forbid_tf32
from ray_app.errors import StorageError, TouchstoneError, describe_error
from ray_app.training.config import Optimiser, Recipe, Schedule

Batch = Mapping[str, npt.NDArray[Any]]
Strategy = Literal["ddp", "fsdp2"]
WEIGHTS, OPTIMISER, POSITION = "model.safetensors", "optimiser.pt", "position.json"
_DROPOUT = 7  # names the stream of chance, beside those of order and augmentation
_STACKS = (nn.ModuleList, nn.Sequential)


def make_optimiser(config: Optimiser, network: nn.Module) -> torch.optim.Optimizer:
    """Over all parameters with `requires_grad`. With `decays: matrices`, weight decay spares
    one-dimensional tensors, as timm does.
    """
    groups = parameter_groups(network, config.weight_decay, config.decays == "matrices")
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.rate, momentum=config.momentum)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.rate, betas=config.betas, eps=config.eps)


def parameter_groups(
    network: nn.Module, weight_decay: float, spare: bool
) -> list[dict[str, object]]:
    """What learns, in groups of equal weight decay; `spare`: none on biases, norms and all else of
    one dimension or less.
    """
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not spare or not weight_decay:
        return [{"params": learning, "weight_decay": weight_decay}]
    matrices = [parameter for parameter in learning if parameter.ndim > 1]
    rest = [parameter for parameter in learning if parameter.ndim <= 1]
    return [
        {"params": part, "weight_decay": decay}
        for part, decay in ((matrices, weight_decay), (rest, 0.0))
        if part
    ]


class BatchLoss(NamedTuple):
    """`total`: what gradients start from. `parts`: its terms by name, detached, the same names for
    every batch.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


def rate_at(schedule: Schedule, rate: float, step: int, total: int) -> float:
    """The learning rate of step `step`, counted from 0, of `total`; the formula stands at
    `Schedule`. After the last step: the floor.
    """
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


class StepFigures(NamedTuple):
    """What one step says of itself, the same in every process.

    `step`: its number, from 0. `loss` and its `parts`: means over the whole batch, in which
    unusable images count as zero. `gradient_norm`: before clipping. `unusable`: images of the whole
    batch that could not be read.
    """

    step: int
    loss: float
    parts: dict[str, float]
    rate: float
    gradient_norm: float
    unusable: int


class Learner:
    """A network that learns from a recipe, on one device, alone or as one of `world` processes.

    `network`: as it learns, without wrappers; if it `is_divided`, its parameters are this process's
    parts (FSDP2).
    `step_number`: steps done, which is also the position in the data. `precision`: what the
    recipe's means on this device. All that happens depends on recipe, batches and (seed, step,
    rank): a training that is saved, loaded elsewhere and continued gives the same weights as one
    that never stopped; with dropout or norms of batches, by as many processes. Dropout draws from
    torch's global generator, which every step seeds.
    """

    def __init__(
        self,
        recipe: Recipe,
        network: Any,
        *,
        device: str,
        precision: ResolvedPrecision,
        total_steps: int,
        rank: int,
        called: nn.Module | None = None,
        strategy: Strategy = "ddp",
    ) -> None:
        """`network`: on its device already; `called`: a module around it whose `forward` is called
        in its place.
        """
        self.recipe, self.network, self.device, self.precision = recipe, network, device, precision
        self.total_steps, self.rank, self.world, self.step_number = (
            total_steps,
            rank,
            world_size(),
            0,
        )
        self.is_divided = strategy == "fsdp2" and self.world > 1
        if precision == "fp32" and torch.device(device).type == "cuda":
            forbid_tf32()
        self._model = distribute(called or network, strategy, device)
        self.optimiser = make_optimiser(recipe.optimiser, network)

    def prepared(self, batch: Batch) -> tuple[Batch, int]:
        """This process's share of a batch as `answer` and `loss` read it, and the count that its
        loss is a mean over.
        """
        return batch, len(batch["usable"])

    def answer(self, part: Batch) -> Any:
        """What the network says of a part of the share."""
        raise NotImplementedError

    def loss(self, answer: Any, part: Batch, count: int) -> BatchLoss:
        """The part's sum divided by `count`: the losses of all parts add up to that of the share.
        What is not usable weighs zero.
        """
        raise NotImplementedError

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The whole network and its optimiser's state, as a checkpoint holds them. Every process
        calls it.
        """
        raise NotImplementedError

    def restore(self, folder: Path) -> None:
        """Take up what `state` gave, from a checkpoint's folder. Every process calls it. Raises
        DetectorError for another network's.
        """
        raise NotImplementedError

    def step(self, batch: Batch) -> StepFigures:
        """Learn from this process's equal share of a batch. Every process calls it.

        Raises TouchstoneError where loss or gradients are no numbers; the weights are then still
        those of the step before.
        """
        step = self.step_number
        rate = rate_at(self.recipe.schedule, self.recipe.optimiser.rate, step, self.total_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(
            int(
                np.random.SeedSequence(
                    [self.recipe.loop.seed, step, self.rank, _DROPOUT]
                ).generate_state(1, np.uint64)[0]
            )
        )
        self.optimiser.zero_grad(set_to_none=True)
        parts = self._way_back(batch)
        parts["unusable"] = torch.tensor(
            float(np.count_nonzero(~batch["usable"])), device=self.device
        )
        norm = _whole(
            get_total_norm(
                [parameter.grad for parameter in self._learning() if parameter.grad is not None]
            )
        )
        values = dict(
            zip(parts, _averaged(torch.stack(list(parts.values())).float()).tolist(), strict=True)
        )
        loss, unusable = values.pop("loss"), round(values.pop("unusable") * self.world)
        figures = StepFigures(step, loss, values, rate, norm.item(), unusable)
        _require_finite(figures)
        if self.recipe.loop.clip is not None:
            clip_grads_with_norm_(self._learning(), self.recipe.loop.clip, norm)
        self.optimiser.step()
        self.step_number += 1
        return figures

    def _way_back(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Gradients of this process's share, in micro-batches; its loss and the loss's parts."""
        prepared, count = self.prepared(batch)
        share = len(batch["usable"])
        starts = range(0, share, self.recipe.loop.micro_batch or share)
        totals: dict[str, torch.Tensor] = {}
        for start in starts:
            part = {name: values[start : start + starts.step] for name, values in prepared.items()}
            with self._own_gradients(alone=start != starts[-1]):
                with autocast(self.device, self.precision):
                    answer = self.answer(part)
                loss = self.loss(answer, part, count)
                loss.total.backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.total.detach(), **loss.parts}.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals

    @contextmanager
    def _own_gradients(self, alone: bool) -> Iterator[None]:
        """While `alone`, gradients add up in this process; otherwise the way back averages all that
        has added up over the processes.
        """
        model: Any = self._model
        if self.is_divided:
            model.set_requires_gradient_sync(not alone)
        elif self.world > 1 and alone:
            with model.no_sync():
                yield
            return
        yield

    def _learning(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.network.parameters() if parameter.grad is not None]

    def save(self, folder: Path) -> None:
        """Write everything that going on needs to an existing folder. Every process calls it; rank
        0 writes, when all have answered.

        `model.safetensors`: the whole network as it learns, with its adapters and norms, under
        plain names; `optimiser.pt`; `position.json`. Neither strategy nor number of processes is in
        them. Raises StorageError.
        """
        weights, optimiser = self.state()
        if self.rank != 0:
            return
        try:
            save_file(_contiguous(weights), folder / WEIGHTS)
            state = {name: _contiguous(values) for name, values in optimiser["state"].items()}
            torch.save({**optimiser, "state": state}, folder / OPTIMISER)
            (folder / POSITION).write_text(json.dumps({"step": self.step_number}), encoding="utf-8")
        # the latter two are how torch and safetensors say that a disk is full
        except (OSError, RuntimeError, SafetensorError) as error:
            raise StorageError(
                f"{folder}: the checkpoint of step {self.step_number} cannot be written: {describe_error(error)}"
            ) from error

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote, by any strategy and number of processes. Every process
        calls it with a folder of its own. Raises DetectorError if it is of another network.
        """
        self.restore(folder)
        self.step_number = json.loads((folder / POSITION).read_text(encoding="utf-8"))["step"]


def _contiguous(values: dict[str, Any]) -> dict[str, Any]:
    """Tensors in the order of their indices: rank 0 hands out bare memory when they are loaded, and
    others would take it in that order.
    """
    return {
        name: value.contiguous() if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


def _require_finite(figures: StepFigures) -> None:
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
    """What to call in place of `network`, which is on `device` already; the network itself where
    one process trains alone.
    """
    if world_size() == 1:
        return network
    place = torch.device(device)
    if strategy == "ddp":
        return DistributedDataParallel(
            network,
            device_ids=[place] if place.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
    # A second, which others need not pay.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(place.type, (world_size(),))
    # A single number cannot be cut; one that does not learn, as CLIP's scale, may be whole
    # everywhere.
    single = {
        parameter
        for parameter in network.parameters()
        if parameter.ndim == 0 and not parameter.requires_grad
    }
    for block in [*blocks(network), network]:
        fully_shard(block, mesh=mesh, ignored_params=single)
    return network


def blocks(network: nn.Module) -> list[nn.Module]:
    """What is gathered and freed piece by piece: the members of every stack of like modules, such
    as a transformer's; inner ones first.
    """
    modules = list(network.modules())
    members = {
        block for stack in modules if isinstance(stack, _STACKS) for block in _alike(list(stack))
    }
    return [module for module in reversed(modules) if module in members]


def _alike(stack: list[nn.Module]) -> list[nn.Module]:
    kinds = Counter(type(module) for module in stack)
    return [
        module
        for module in stack
        if kinds[type(module)] > 1 and not isinstance(module, _STACKS) and list(module.children())
    ]


def _averaged(values: torch.Tensor) -> torch.Tensor:
    """The mean over all processes of a tensor that each has."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values / world_size()


def _whole(tensor: Any) -> torch.Tensor:
    """A tensor that may be spread over processes, in one piece."""
    gathered: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered
