"""Make the steps of the training loop: `Learner` improves a network batch by batch.

A learner runs in one process, or in several under DDP or FSDP2 (`distribute`). The subclasses
`detector.DetectorLearner` and `captioner.CaptionLearner` define the loss.

Gradients are averaged over the processes. Batch normalisation is computed by each process alone,
and the saved running means and variances are those of rank 0. So a network with batch normalisation
learns slightly differently if the number of processes changes. A detector without batch
normalisation, dropout, and `loss.twins` learns the same with any number of processes. A describer
does not, because each process divides its loss by the number of tokens of its own prompts.
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
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ray_app.detectors.checkpoints import write_safetensors
from ray_app.detectors.precision import ResolvedPrecision, autocast, forbid_tf32
from ray_app.errors import StorageError, TouchstoneError, describe_error
from ray_app.training.config import Optimiser, Recipe, Schedule

Batch = Mapping[str, npt.NDArray[Any]]
Strategy = Literal["ddp", "fsdp2"]
WEIGHTS, OPTIMISER, POSITION = "model.safetensors", "optimiser.pt", "position.json"
_DROPOUT = 7  # Random stream of dropout, apart from those of order and augmentation.
_STACKS = (nn.ModuleList, nn.Sequential)


def make_optimiser(config: Optimiser, network: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of all parameters with `requires_grad`."""
    groups = make_parameter_groups(network, config.weight_decay, config.decays == "matrices")
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.rate, momentum=config.momentum)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.rate, betas=config.betas, eps=config.eps)


def make_parameter_groups(
    network: nn.Module, weight_decay: float, spare: bool
) -> list[dict[str, object]]:
    """Return the parameters that learn, in groups of equal weight decay, for a torch optimiser.

    If `spare`, parameters of one dimension or less, such as biases and norms, have no weight decay,
    as in timm.
    """
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not spare or not weight_decay:
        return [{"params": learning, "weight_decay": weight_decay}]
    matrices = [parameter for parameter in learning if parameter.ndim > 1]
    vectors = [parameter for parameter in learning if parameter.ndim <= 1]
    return [
        {"params": part, "weight_decay": decay}
        for part, decay in ((matrices, weight_decay), (vectors, 0.0))
        if part
    ]


class BatchLoss(NamedTuple):
    """The loss of a batch, on which `backward` is called.

    `parts` are its detached terms, whose names are equal for every batch.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


def compute_rate(schedule: Schedule, rate: float, step: int, total: int) -> float:
    """Return the learning rate of a step by the formula of `Schedule`.

    Steps count from 0. From `total` on, the rate stays at the end of its curve.
    """
    warmup = count_warmup_steps(schedule, total)
    if step < warmup:
        return rate * (step + 1) / warmup
    progress = min((step - warmup) / (total - warmup), 1.0) if total > warmup else 1.0
    return rate * (schedule.floor + (1 - schedule.floor) * _decay_factor(schedule.shape, progress))


def count_warmup_steps(schedule: Schedule, total: int) -> int:
    """Return the number of warm-up steps of a training with `total` steps.

    If `schedule.warmup` is below 1, it is a fraction of all steps, and the result is rounded.
    """
    return round(schedule.warmup if schedule.warmup >= 1 else schedule.warmup * total)


def _decay_factor(shape: str, progress: float) -> float:
    if shape == "linear":
        return 1 - progress
    return (1 + math.cos(math.pi * progress)) / 2 if shape == "cosine" else 1.0


class StepMetrics(NamedTuple):
    """The metrics of one step (from 0), equal in every process.

    The losses are means over the whole batch, in which unusable images count as zero. The norm is
    that of the gradients before clipping.
    """

    step: int
    loss: float
    parts: dict[str, float]
    rate: float
    gradient_norm: float
    unusable: int


class Learner:
    """Trains a network by a recipe on one device, step by step. Subclasses define the loss.

    Each process of a training has one learner. A step depends only on the recipe, the batches, the
    seed, the step number, and the rank. So a training that resumes from a checkpoint gets the same
    weights as one that never stopped. With dropout, batch normalisation, or `loss.twins`, and for a
    describer, the number of processes must also stay the same. Dropout draws from torch's global
    generator, which every step seeds.

    Attributes:
        network: The network that learns, without wrappers. If `is_divided`, its parameters are the
            parts of this process (FSDP2).
        step_number: Number of finished steps. It also decides which images come next.
        is_divided: Whether the processes divide the network among them.
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
        """Prepare the optimiser of a network that is already on its device.

        `called` is a module around the network whose `forward` is called instead. `strategy` is
        that of `distribute`.
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

    def prepare(self, batch: Batch) -> tuple[Batch, int]:
        """Prepare this process's part of a step's batch before it is divided into micro-batches.

        Returns the arrays that `answer` and `loss` need, and the divisor of the loss, by default
        the number of images.
        """
        return batch, len(batch["usable"])

    def answer(self, part: Batch) -> Any:
        """Return the network's output for one micro-batch, a part of this process's batch."""
        raise NotImplementedError

    def loss(self, answer: Any, part: Batch, count: int) -> BatchLoss:
        """Return the loss of one micro-batch.

        The losses of all micro-batches add up to the loss of this process's batch. Unusable images
        count as zero. `part` is a slice of each array that `prepare` returned, and `count` its
        divisor.
        """
        raise NotImplementedError

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the weights and the optimiser state of the whole network, as a checkpoint has them.

        Every process calls this method.
        """
        raise NotImplementedError

    def restore(self, folder: Path) -> None:
        """Load weights and optimiser state from a checkpoint's folder. Every process calls it.

        Subclasses define this method. To resume a training, call `load` instead, which calls this
        method and also sets `step_number`. Raises DetectorError if the checkpoint is of another
        network.
        """
        raise NotImplementedError

    def step(self, batch: Batch) -> StepMetrics:
        """Make one training step with this process's part of a batch. Every process calls it.

        Raises TouchstoneError if the loss or the gradients are not finite. The weights are then
        those of the step before.
        """
        step = self.step_number
        rate = compute_rate(
            self.recipe.schedule, self.recipe.optimiser.rate, step, self.total_steps
        )
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
        parts = self._compute_gradients(batch)
        parts["unusable"] = torch.tensor(
            float(np.count_nonzero(~batch["usable"])), device=self.device
        )
        norm = _gather_tensor(
            get_total_norm(
                [
                    parameter.grad
                    for parameter in self._parameters_with_gradient()
                    if parameter.grad is not None
                ]
            )
        )
        values = dict(
            zip(parts, _average(torch.stack(list(parts.values())).float()).tolist(), strict=True)
        )
        loss, unusable = values.pop("loss"), round(values.pop("unusable") * self.world)
        metrics = StepMetrics(step, loss, values, rate, norm.item(), unusable)
        _require_finite(metrics)
        if self.recipe.loop.clip is not None:
            clip_grads_with_norm_(self._parameters_with_gradient(), self.recipe.loop.clip, norm)
        self.optimiser.step()
        self.step_number += 1
        return metrics

    def _compute_gradients(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Compute the gradients of a batch in micro-batches, and return its loss with the terms."""
        prepared, count = self.prepare(batch)
        size = len(batch["usable"])
        starts = range(0, size, self.recipe.loop.micro_batch or size)
        totals: dict[str, torch.Tensor] = {}
        for start in starts:
            part = {name: values[start : start + starts.step] for name, values in prepared.items()}
            with self._synchronise_gradients(alone=start != starts[-1]):
                with autocast(self.device, self.precision):
                    answer = self.answer(part)
                loss = self.loss(answer, part, count)
                loss.total.backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.total.detach(), **loss.parts}.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals

    @contextmanager
    def _synchronise_gradients(self, alone: bool) -> Iterator[None]:
        """Keep gradients in this process if `alone`, otherwise average their sum over processes."""
        model: Any = self._model
        if self.is_divided:
            model.set_requires_gradient_sync(not alone)
        elif self.world > 1 and alone:
            with model.no_sync():
                yield
            return
        yield

    def _parameters_with_gradient(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.network.parameters() if parameter.grad is not None]

    def save(self, folder: Path) -> None:
        """Write a checkpoint to an existing folder. Every process calls it; rank 0 writes.

        The files are `model.safetensors`, `optimiser.pt`, and `position.json`. The first contains
        the whole network as it learns, with adapters and norms, by parameter name. The files do
        not depend on the strategy (DDP or FSDP2) or on the number of processes.
        """
        weights, optimiser = self.state()
        if self.rank != 0:
            return
        try:
            write_safetensors(folder / WEIGHTS, weights)
            state = {name: _contiguous(values) for name, values in optimiser["state"].items()}
            torch.save({**optimiser, "state": state}, folder / OPTIMISER)
            (folder / POSITION).write_text(json.dumps({"step": self.step_number}), encoding="utf-8")
        # torch raises RuntimeError and safetensors SafetensorError if a disk is full.
        except (OSError, RuntimeError, SafetensorError) as error:
            raise StorageError(
                f"{folder}: cannot write the checkpoint of step {self.step_number}: {describe_error(error)}",
                hint="free disk space there, then run the same command again to resume",
            ) from error

    def load(self, folder: Path) -> None:
        """Load weights, optimiser state, and step number of a checkpoint, to continue from it.

        The checkpoint may be from DDP or FSDP2, and from any number of processes. Every process
        calls this method with a local folder of its own. Raises DetectorError if the checkpoint is
        of another network.
        """
        self.restore(folder)
        self.step_number = json.loads((folder / POSITION).read_text(encoding="utf-8"))["step"]


def _contiguous(values: dict[str, Any]) -> dict[str, Any]:
    """Make tensors contiguous: when they are loaded, rank 0 sends plain memory in index order."""
    return {
        name: value.contiguous() if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


def _require_finite(metrics: StepMetrics) -> None:
    """Raise TouchstoneError if the loss or the gradient norm of a step is not finite."""
    if math.isfinite(metrics.loss) and math.isfinite(metrics.gradient_norm):
        return
    parts = ", ".join(f"{name} {value:g}" for name, value in metrics.parts.items())
    raise TouchstoneError(
        f"step {metrics.step}: training diverged: loss {metrics.loss:g} ({parts}), gradient norm {metrics.gradient_norm:g}",
        hint="lower optimiser.rate, set loop.clip, lengthen schedule.warmup, or set loop.precision to fp32",
    )


def world_size() -> int:
    """Return the number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def distribute(network: nn.Module, strategy: Strategy, device: str) -> nn.Module:
    """Wrap a network on its device for several processes, and return the module to call.

    In one process, return the network itself. With `ddp` each process holds the whole network, with
    `fsdp2` the processes divide it.
    """
    if world_size() == 1:
        return network
    torch_device = torch.device(device)
    if strategy == "ddp":
        return DistributedDataParallel(
            network,
            device_ids=[torch_device] if torch_device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
    # The import takes a second, which only FSDP2 needs.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch_device.type, (world_size(),))
    # A scalar cannot be divided. If it does not learn, as CLIP's scale, every process keeps it.
    scalars = {
        parameter
        for parameter in network.parameters()
        if parameter.ndim == 0 and not parameter.requires_grad
    }
    for block in [*find_blocks(network), network]:
        fully_shard(block, mesh=mesh, ignored_params=scalars)
    return network


def find_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the modules that FSDP2 gathers and frees one by one, inner modules first.

    An example is the blocks of a transformer. In general, they are the modules with children that
    share their type with another member of the same ModuleList or Sequential.
    """
    modules = list(network.modules())
    members = {
        block
        for stack in modules
        if isinstance(stack, _STACKS)
        for block in _find_like_modules(list(stack))
    }
    return [module for module in reversed(modules) if module in members]


def _find_like_modules(stack: list[nn.Module]) -> list[nn.Module]:
    kinds = Counter(type(module) for module in stack)
    return [
        module
        for module in stack
        if kinds[type(module)] > 1 and not isinstance(module, _STACKS) and list(module.children())
    ]


def _average(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over all processes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values / world_size()


def _gather_tensor(tensor: Any) -> torch.Tensor:
    """Return a tensor that may be divided among processes in one piece."""
    gathered: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered
