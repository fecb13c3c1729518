"""A training as its processes get it: `TrainingJob`, plain data without a reference to Ray.
`plan_workers` lays it out.

On Ray, the sum of all requests stays below what the cluster has: a request that never fits waits
without a message. The CPUs of a process are for Ray's books; how many threads it computes with is
stated separately.
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
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from ray_app.datasets.sampling import SampleOrder
    from ray_app.transforms.policies.papers import RealStatistics


LOADER_CPUS = 0.25
LEAST_WORKER_CPUS = 0.05
MAX_DECODING_THREADS = 8


@dataclass(frozen=True)
class TrainingLayout:
    """The processes of a training.

    Attributes:
        workers: Processes that train.
        least: Minimum number of workers with which an elastic training continues.
        loaders: Processes that load images for one worker.
        worker_cpus: CPUs that one worker requests from Ray.
        loader_cpus: CPUs that one loader requests from Ray.
        worker_gpus: GPUs of one worker.
        threads: Threads that one worker computes with.
        decoding_threads: Threads that decode images for one worker while it validates.
    """

    workers: int
    least: int
    loaders: int
    worker_cpus: float
    loader_cpus: float
    worker_gpus: float
    threads: int
    decoding_threads: int

    @property
    def device(self) -> str:
        """Device of the workers."""
        return "cuda" if self.worker_gpus else "cpu"


def plan_workers(
    wanted: Workers, *, cpus: float, gpus: float, node_cpus: float = math.inf
) -> TrainingLayout:
    """Return the processes for `wanted` on machines with that many CPUs and GPUs.

    Args:
        wanted: The recipe's section `workers`.
        cpus: CPUs of all machines together.
        gpus: GPUs of all machines together.
        node_cpus: CPUs of the largest machine.

    Raises:
        ConfigError: The section contradicts itself.
        ClusterError: The machines are too small.
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
    share = min(cpus / wanted.count, node_cpus)
    loaders = wanted.loaders or max(1, int(share - 1) if worker_gpus else int(share // 4))
    loader_cpus = _round_down(
        min(1.0, share / 2 / loaders) if worker_gpus else min(LOADER_CPUS, share / 4 / loaders)
    )
    rest = share - loaders * loader_cpus
    worker_cpus = _round_down(wanted.cpus or (min(1.0, rest) if worker_gpus else rest))
    together = wanted.count * (worker_cpus + loaders * loader_cpus)
    if together > cpus or not LEAST_WORKER_CPUS <= worker_cpus <= node_cpus:
        raise ClusterError(
            f"{wanted.count} workers with {worker_cpus:.2g} CPU and {loaders} loaders each do not fit the cluster's {cpus:g} CPUs",
            hint="--set workers.count=… or workers.cpus=… and workers.loaders=…",
        )
    return TrainingLayout(
        workers=wanted.count,
        least=least,
        loaders=loaders,
        worker_cpus=worker_cpus,
        loader_cpus=loader_cpus,
        worker_gpus=worker_gpus,
        threads=max(1, int(share) - (0 if worker_gpus else loaders)),
        decoding_threads=max(1, min(MAX_DECODING_THREADS, int(share / 4))),
    )


def _round_down(cpus: float) -> float:
    # Ray counts in units of 1/10000; rounding up could request more than there is.
    return int(cpus * 1000) / 1000


@dataclass(frozen=True)
class CaptionData:
    """What a describer learns from.

    Attributes:
        plan: Its network, a `DescriberPlan`.
        targets: The tokens of the training prompts (rows, L).
        vectors: The embeddings of the training images (rows, d), NaN if an image could not be read.
            None for the tier captioner, which learns from pixels.
    """

    plan: Any
    targets: "npt.NDArray[np.int32]"
    vectors: "npt.NDArray[np.float32] | None" = None


@dataclass(frozen=True)
class TrainingJob:
    """What is trained, from what, and where.

    Attributes:
        config: The recipe, and where it runs.
        card: The card of what is trained.
        out: The directory of the training.
        layout: The processes.
        total_steps: Number of steps.
        milestones: Steps after which the network is validated, the last step included.
        tables: The labelled rows of `train`, `validation`, and, if there is one, `test`.
        order: The rows of each step.
        on_ray: Whether the processes are those of a Ray cluster. Otherwise one process does
            everything, or those of torchrun do.
        captions: What a describer learns from.
        statistics: What openfake-v1 matches fakes to.
        mirror: Where other machines find the weights that training begins with.
        guard: The web servers that may be asked for images.
    """

    config: TrainConfig
    card: DetectorCard
    out: Store
    layout: TrainingLayout
    total_steps: int
    milestones: frozenset[int]
    tables: "Mapping[str, pa.Table]"
    order: "SampleOrder"
    on_ray: bool = False
    captions: CaptionData | None = None
    statistics: "RealStatistics | None" = None
    mirror: str | None = None
    guard: Guard = field(default_factory=Guard)

    def settle_process(self) -> None:
        """Prepare a process for the job: weights come from the mirror, and on a CPU torch computes
        with the layout's number of threads.
        """
        import torch

        if self.mirror is not None:
            os.environ[MIRROR_VARIABLE] = self.mirror
        if self.layout.device == "cpu":
            torch.set_num_threads(self.layout.threads)

    def rows(self, split: str) -> "pa.Table":
        """Return the labelled rows of a split."""
        return self.tables[split]

    @property
    def wants_masks(self) -> bool:
        """Whether the loss, and so every batch, has masks."""
        return self.config.loss.name == "maskclip"

    @property
    def is_validated(self) -> bool:
        """Whether validations choose among the checkpoints. Those of a describer are not compared."""
        return self.config.method != "describe"

    @property
    def has_vectors(self) -> bool:
        """Whether steps are made of stored embeddings instead of images."""
        return self.captions is not None and self.captions.vectors is not None

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is to be written after so many steps."""
        every = self.config.faults.checkpoint_every
        return step in self.milestones or (every is not None and step % every == 0)
