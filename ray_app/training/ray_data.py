"""Load a training's images by Ray Data.

    runs of steps ──> one pool of `Loader` for each rank, on any node: rows, fetched, decoded, augmented ──> get_dataset_shard in the worker

A run of steps is a few consecutive step numbers. The dataset that `Loader` reads has only these
numbers, because a step's number decides its rows (ray_app.datasets.sampling). So a training resumes
its data at the number of a step. Ray Train receives `make_step_dataset` and `Shards`, and a worker
takes its `batches`.

Each rank executes a Ray Data dataset of its own, so its steps arrive in order. Ray's
`streaming_split` would instead give each block to the first rank that requests one.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import ray
from ray.train import DataConfig, get_dataset_shard

from ray_app.errors import ClusterError
from ray_app.streams.pool import Pool, add_pools, dataset, messages
from ray_app.streams.stage import Stage
from ray_app.training import checkpoints
from ray_app.training.job import TrainingJob
from ray_app.training.loader import Batch, count_run_steps, load_run, make_training_loader

if TYPE_CHECKING:
    from ray.data import DataIterator, Dataset

Loaded = list[tuple[int, Batch]]  # Steps with their batches.

TRAIN = "train"  # Name of the dataset.
AHEAD = 2  # Runs that wait in the worker.
# Fraction of a node's object store for batches that wait between loaders and workers.
HAND_OVER_SHARE = 0.4


class SharedJob(TypedDict):
    """A dict with a reference to a job in Ray's object store.

    If a reference itself is the argument of a task, Ray passes the object instead. If the reference
    is in a dict, Ray passes the reference.
    """

    job: "ray.ObjectRef[TrainingJob]"


def read_job(shared: SharedJob) -> TrainingJob:
    """Return the job from Ray's object store, without copying its tables and arrays."""
    return ray.get(shared["job"])


class Loader(Stage):
    """A stage of Ray Data that loads training batches for one rank.

    Each call of `work` takes the numbers of a few consecutive steps, and returns the batch of the
    rank for each of them.
    """

    def start(self, *args: Any) -> None:
        """Create the loader of images in this process.

        Args:
            *args: The shared job, the rank, and the number of workers.
        """
        shared, self._rank, self._world = args
        job = read_job(shared)
        self._loader, self._order = make_training_loader(job), job.order

    def work(self, message: range) -> Loaded:
        """Load the batches of consecutive steps.

        Args:
            message: The numbers of the steps.

        Returns:
            The number and the batch of each step; see `BatchLoader.load`.
        """
        return load_run(self._loader, self._order, message, self._rank, self._world)


def make_step_dataset(shared: SharedJob) -> "Dataset":
    """Return a dataset of the step numbers after the last complete checkpoint.

    A row of the dataset is a run of steps: the numbers of a few consecutive steps. `Shards` adds
    the loading of their images. Ray Train's controller calls this function before each start of its
    workers.
    """
    job = read_job(shared)
    latest = checkpoints.latest_checkpoint(job.out)
    first = 0 if latest is None else latest.step
    return dataset(
        partial(_iter_runs, first, job.total_steps, count_run_steps(job)),
        ordered=True,
        store_bytes=_compute_hand_over_limit(job),
    )


class Shards(DataConfig):
    """Tells Ray Train which images each rank gets: its own part of the images of every step.

    Each rank has a dataset of all steps, and actors of its own that run `Loader`.
    """

    def __init__(self, shared: SharedJob) -> None:
        super().__init__()
        self._shared = shared

    def configure(
        self,
        datasets: "dict[str, Dataset]",
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **kwargs: Any,
    ) -> "list[dict[str, DataIterator]]":
        """Return a dataset for each rank, which is executed in the rank's process.

        See `ray.train.DataConfig`.

        Args:
            datasets: The datasets of steps by name.
            world_size: Number of workers.
            worker_handles: Not used.
            worker_node_ids: Not used.
            **kwargs: Not used.
        """
        job = read_job(self._shared)
        layout = job.layout
        pools = [
            Pool(
                Loader,
                (self._shared, rank, world_size),
                layout.loaders,
                layout.loaders,
                layout.loader_cpus,
                labels=job.config.cluster.labels,
            )
            for rank in range(world_size)
        ]
        return [
            {name: add_pools(steps, [pool]).iterator() for name, steps in datasets.items()}
            for pool in pools
        ]


def batches(first: int) -> Iterator[Batch]:
    """Yield the batches of this worker of Ray Train from step `first` to the last, in order.

    Closing the iterator early stops the loaders.

    Raises:
        TouchstoneError: A loader raised it.
        ClusterError: The next batch is not of the step that the network needs. The workers have to
            be started again.
    """
    arriving: Iterator[Loaded] = messages(get_dataset_shard(TRAIN), ahead=AHEAD)
    for loaded in arriving:
        for step, batch in loaded:
            if step != first:
                raise ClusterError(
                    f"the processes that load images sent the batch of step {step}, but the training needs that of step {first}",
                    hint="run the same command again to resume",
                )
            yield batch
            first += 1


def _iter_runs(first: int, total: int, run_steps: int) -> Iterator[range]:
    for start in range(first, total, run_steps):
        yield range(start, min(start + run_steps, total))


def _compute_hand_over_limit(job: TrainingJob) -> float:
    """Return the bytes that may wait for one worker, so that no node's object store is full."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    workers_per_node = math.ceil(job.layout.workers / max(len(nodes), 1))
    smallest = min(node["Resources"].get("object_store_memory", math.inf) for node in nodes)
    return float(HAND_OVER_SHARE * smallest / workers_per_node)
