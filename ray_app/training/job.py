"""A training session as its processes get it: `TrainingJob` (small, picklable, references to shared
objects); `plan_workers` lays it out.

The sum of all requests stays below what the cluster has: a request that never fits waits for ever
without a message (specs/ray.md §E3). A process's CPUs are a share for Ray's books; how many threads
it computes with is stated beside it.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray_app.detectors import MIRROR_VARIABLE, DetectorCard
from ray_app.errors import ClusterError, ConfigError
from ray_app.storage import Guard, Store
from ray_app.training.config import TrainConfig, Workers

if TYPE_CHECKING:
    import pyarrow as pa

    from ray_app.datasets.sampling import SampleOrder
    from ray_app.transforms.policies.papers import RealStatistics


LOADER_CPUS = 0.25
VALIDATION_CPUS = 0.25
LEAST_WORKER_CPUS = 0.05
VALIDATION_GPU = 0.2  # of the GPU that a worker holds, where there is no further one


@dataclass(frozen=True)
class TrainingLayout:
    """`workers` processes that train, `least` of them at the fewest, each with `loaders`; one task
    that judges checkpoints meanwhile.

    `*_cpus` and `*_gpus` are what one process asks of Ray; `threads` is what one worker computes
    with, `judging_threads` what the judging task decodes with.
    """

    workers: int
    least: int
    loaders: int
    worker_cpus: float
    loader_cpus: float
    worker_gpus: float
    validation_cpus: float
    validation_gpus: float
    threads: int
    judging_threads: int

    @property
    def device(self) -> str:
        """Where workers compute."""
        return "cuda" if self.worker_gpus else "cpu"

    @property
    def judging_device(self) -> str:
        """Where checkpoints are judged."""
        return "cuda" if self.validation_gpus else "cpu"


def plan_workers(
    wanted: Workers, *, cpus: float, gpus: float, node_cpus: float = math.inf
) -> TrainingLayout:
    """The processes for `wanted` on a cluster with so many CPUs and GPUs, its largest node having
    `node_cpus`.

    Raises ConfigError, and ClusterError where the cluster is too small.
    """
    least = wanted.least or wanted.count
    if least > wanted.count:
        raise ConfigError(
            f"workers.least is {least}, more than workers.count, which is {wanted.count}"
        )
    worker_gpus = (1.0 if gpus else 0.0) if wanted.gpus is None else wanted.gpus
    if worker_gpus * least > gpus:
        raise ClusterError(
            f"{least} workers with {worker_gpus:g} GPU each, but the cluster has {gpus:g}",
            hint="--set workers.count=…, or --set cluster.gpus=… for an autoscaler's maximum",
        )
    spare = gpus - worker_gpus * wanted.count
    shared = worker_gpus == 1 and spare < 1
    share = min(cpus / wanted.count, node_cpus)
    loaders = wanted.loaders or max(1, int(share - 1) if worker_gpus else int(share // 4))
    validation_cpus = min(1.0 if worker_gpus and cpus >= 4 else VALIDATION_CPUS, share / 8)
    free = share - validation_cpus
    loader_cpus = (
        min(1.0, free / 2 / loaders) if worker_gpus else min(LOADER_CPUS, free / 4 / loaders)
    )
    rest = free - loaders * loader_cpus
    worker_cpus = wanted.cpus or (min(1.0, rest) if worker_gpus else rest)
    together = wanted.count * (worker_cpus + loaders * loader_cpus) + validation_cpus
    if together > cpus or not LEAST_WORKER_CPUS <= worker_cpus <= node_cpus:
        raise ClusterError(
            f"{wanted.count} workers with {worker_cpus:.2g} CPU and {loaders} loaders each do not fit the cluster's {cpus:g} CPUs",
            hint="--set workers.count=… or workers.cpus=… and workers.loaders=…",
        )
    return TrainingLayout(
        workers=wanted.count,
        least=least,
        loaders=loaders,
        worker_cpus=_down(worker_cpus),
        loader_cpus=_down(loader_cpus),
        worker_gpus=1 - VALIDATION_GPU if shared else worker_gpus,
        validation_cpus=_down(validation_cpus),
        validation_gpus=0.0 if not worker_gpus else VALIDATION_GPU if shared else 1.0,
        threads=max(1, int(share) - (0 if worker_gpus else loaders)),
        judging_threads=max(1, min(8, int(cpus / 4))),
    )


def _down(share: float) -> float:
    # Ray books in units of 1/10000; rounding up could ask for more than there is.
    return int(share * 1000) / 1000


@dataclass(frozen=True)
class TrainingJob:
    """`shared`: Ray references by name: `order`, and the labelled rows of `train`, `validation`
    and, where there is one, `test`.

    `milestones`: the steps after which the network is judged, the last one included; `mirror`:
    where workers find weights; `board`: the actor that the driver reads
    (ray_app.training.progress); `guard`: which web servers are asked for images.
    """

    config: TrainConfig
    card: DetectorCard
    out: Store
    layout: TrainingLayout
    total_steps: int
    milestones: frozenset[int]
    shared: Mapping[str, Any]
    statistics: "RealStatistics | None" = None
    mirror: str | None = None
    board: Any = None
    guard: Guard = field(default_factory=Guard)

    def settle_process(self, device: str, threads: int) -> None:
        """In a process of its own: weights come from the mirror, and on a CPU torch computes on so
        many threads.
        """
        import torch

        if self.mirror is not None:
            os.environ[MIRROR_VARIABLE] = self.mirror
        if device == "cpu":
            torch.set_num_threads(threads)

    def rows(self, split: str) -> "pa.Table":
        """The labelled rows of a split, read in place from the object store."""
        import ray

        table: pa.Table = ray.get(self.shared[split])
        return table

    def order(self) -> "SampleOrder":
        """Which rows each step sees."""
        import ray

        order: SampleOrder = ray.get(self.shared["order"])
        return order

    @property
    def wants_masks(self) -> bool:
        """Whether the loss, and so every batch, has masks."""
        return self.config.loss.name == "maskclip"

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be written when so many steps are done."""
        every = self.config.faults.checkpoint_every
        return step in self.milestones or (every is not None and step % every == 0)
