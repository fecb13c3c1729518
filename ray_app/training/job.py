"""Describe a training for its processes: `TrainingJob`, plain data without a reference to Ray.

`plan_workers` divides CPUs and GPUs among the processes. All processes together never request more
CPUs than the cluster has, because Ray would wait for them forever without a message. The GPUs must
suffice for the minimum number of workers. The CPUs of a process are the number that it requests
from Ray. Its number of threads is a separate field.
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
MIN_WORKER_CPUS = 0.05
MAX_DECODING_THREADS = 8


@dataclass(frozen=True)
class TrainingLayout:
    """The numbers of processes of a training, and the CPUs, GPUs, and threads of each.

    Attributes:
        workers: Number of processes that train.
        least: Minimum number of workers with which an elastic training continues.
        loaders: Number of processes that load images for one worker.
        worker_cpus: CPUs that one worker requests from Ray.
        loader_cpus: CPUs that one loader requests from Ray.
        worker_gpus: GPUs of one worker.
        threads: Threads with which one worker computes.
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
        """Device of the workers: `cuda` if they have GPUs, otherwise `cpu`."""
        return "cuda" if self.worker_gpus else "cpu"


def plan_workers(
    workers: Workers, *, cpus: float, gpus: float, node_cpus: float = math.inf
) -> TrainingLayout:
    """Divide the CPUs and GPUs of machines among the processes of a training.

    Args:
        workers: The section `workers` of the training's config.
        cpus: CPUs of all machines together.
        gpus: GPUs of all machines together.
        node_cpus: CPUs of the largest machine.

    Raises:
        ConfigError: `workers.least` is larger than `workers.count`.
        ClusterError: The machines are too small.
    """
    least = workers.least or workers.count
    if least > workers.count:
        raise ConfigError(
            f"workers.least is {least}, but must not exceed workers.count, which is {workers.count}"
        )
    worker_gpus = (1.0 if gpus else 0.0) if workers.gpus is None else workers.gpus
    if worker_gpus * least > gpus:
        raise ClusterError(
            f"{least} workers need {worker_gpus:g} GPU each, but the cluster has {gpus:g} in all",
            hint="reduce the workers by --set workers.count=…, or state an autoscaler's maximum by --set cluster.gpus=…",
        )
    cpus_each = min(cpus / workers.count, node_cpus)
    loaders = workers.loaders or max(1, int(cpus_each - 1) if worker_gpus else int(cpus_each // 4))
    loader_cpus = _round_down(
        min(1.0, cpus_each / 2 / loaders)
        if worker_gpus
        else min(LOADER_CPUS, cpus_each / 4 / loaders)
    )
    remaining = cpus_each - loaders * loader_cpus
    worker_cpus = _round_down(workers.cpus or (min(1.0, remaining) if worker_gpus else remaining))
    total_cpus = workers.count * (worker_cpus + loaders * loader_cpus)
    if total_cpus > cpus or not MIN_WORKER_CPUS <= worker_cpus <= node_cpus:
        raise ClusterError(
            f"{workers.count} workers with {worker_cpus:.2g} CPU and {loaders} loaders each do not fit the cluster's {cpus:g} CPUs",
            hint="reduce the requests by --set workers.count=…, workers.cpus=…, or workers.loaders=…",
        )
    return TrainingLayout(
        workers=workers.count,
        least=least,
        loaders=loaders,
        worker_cpus=worker_cpus,
        loader_cpus=loader_cpus,
        worker_gpus=worker_gpus,
        threads=max(1, int(cpus_each) - (0 if worker_gpus else loaders)),
        decoding_threads=max(1, min(MAX_DECODING_THREADS, int(cpus_each / 4))),
    )


def _round_down(cpus: float) -> float:
    # Ray counts in units of 1/10000; rounding up could request more than there is.
    return int(cpus * 1000) / 1000


@dataclass(frozen=True)
class CaptionData:
    """The data that a describer, a model that predicts prompts, learns from.

    Attributes:
        plan: The architecture, tokenizer, and initial weights of the describer's network, as a
            `DescriberPlan`.
        targets: The tokens of the training prompts (rows, L).
        vectors: The embeddings of the training images (rows, d), NaN if an image could not be read.
            None for the tier captioner, which learns from pixels.
    """

    plan: Any
    targets: "npt.NDArray[np.int32]"
    vectors: "npt.NDArray[np.float32] | None" = None


@dataclass(frozen=True)
class TrainingJob:
    """A training as its processes receive it: the recipe, the data, and the layout.

    Attributes:
        config: The recipe, and the settings of this training.
        card: The card of the network to train, see `networks.training_card`.
        out: The directory of the training.
        layout: The number of processes of each kind, and their CPUs, GPUs, and threads.
        total_steps: Number of training steps.
        milestones: Steps after which the network is validated, the last step included.
        tables: The labelled rows of `train`, `validation`, and, if there is one, `test`.
        order: Computes which rows a training step loads.
        is_on_ray: Whether the processes are those of a Ray cluster. Otherwise one process does
            everything, or torchrun started the processes.
        captions: The data that a describer, a model that predicts prompts, learns from. None for
            other methods.
        statistics: Sizes and sharpness of real training images, which the augmentation policy
            openfake-v1 uses. None for other policies.
        mirror: URL from which other machines read the initial weights. None if there are no other
            machines.
        guard: The web servers from which images may be fetched.
    """

    config: TrainConfig
    card: DetectorCard
    out: Store
    layout: TrainingLayout
    total_steps: int
    milestones: frozenset[int]
    tables: "Mapping[str, pa.Table]"
    order: "SampleOrder"
    is_on_ray: bool = False
    captions: CaptionData | None = None
    statistics: "RealStatistics | None" = None
    mirror: str | None = None
    guard: Guard = field(default_factory=Guard)

    def prepare_process(self) -> None:
        """Configure this process for the job. Call this method before it loads weights or computes.

        Weights are read from the job's `mirror`, if it has one. On a CPU, torch computes with the
        layout's number of threads.
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
    def has_masks(self) -> bool:
        """Whether the loss needs masks, so that every batch has masks."""
        return self.config.loss.name == "maskclip"

    @property
    def is_validated(self) -> bool:
        """Whether the best checkpoint is chosen by a validation metric.

        False for method `describe`, which keeps the last checkpoint.
        """
        return self.config.method != "describe"

    @property
    def has_vectors(self) -> bool:
        """Whether training steps read stored embeddings instead of images.

        This is so for a describer that predicts prompts from embeddings (tier prefix).
        """
        return self.captions is not None and self.captions.vectors is not None

    def is_due(self, step: int) -> bool:
        """Return whether the training loop has to write a checkpoint after a number of steps.

        Checkpoints are due at each milestone, and every `faults.checkpoint_every` steps.
        """
        every = self.config.faults.checkpoint_every
        return step in self.milestones or (every is not None and step % every == 0)
