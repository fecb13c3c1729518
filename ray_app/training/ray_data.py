"""A training's images on Ray Data: `steps_to_come` and `Shards` are what Ray Train gets, `batches`
what a worker takes of it.

    runs of steps ──> one pool of `Loader` for each rank, on any node: rows, fetched, decoded, augmented ──> get_dataset_shard in the worker

The stream is made of step numbers alone; which rows a step has is arithmetic
(ray_app.datasets.sampling). So the data position of a training is its step. Each rank has an
execution of its own, in order: `streaming_split` deals blocks to whichever rank asks first.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import ray
from ray.train import DataConfig, get_dataset_shard

from ray_app.errors import ClusterError
from ray_app.streams.pool import Pool, dataset, messages, through
from ray_app.streams.stage import Stage
from ray_app.training import checkpoints
from ray_app.training.job import TrainingJob
from ray_app.training.loader import Batch, load_run, run_length, training_loader

if TYPE_CHECKING:
    from ray.data import DataIterator, Dataset

Loaded = list[tuple[int, Batch]]  # steps with their batches

TRAIN = "train"  # the dataset's name
AHEAD = 2  # runs that wait in the worker itself
# of a node's object store: what waits between loaders and the workers of that node
HAND_OVER_SHARE = 0.4


class SharedJob(TypedDict):
    """A job in Ray's object store. In a dict, Ray passes on the reference and not the job."""

    job: "ray.ObjectRef[TrainingJob]"


def read_job(given: SharedJob) -> TrainingJob:
    """Return the job, whose tables and arrays are read in place."""
    return ray.get(given["job"])


class Loader(Stage):
    """A run of steps in, their batches for one rank out."""

    def start(self, *given: Any) -> None:
        """`given`: the shared job, rank and number of workers."""
        shared, self._rank, self._world = given
        job = read_job(shared)
        self._loader, self._order = training_loader(job), job.order

    def work(self, message: range) -> Loaded:
        """The steps of a run, each with its arrays, as `BatchLoader.load` gives them."""
        return load_run(self._loader, self._order, message, self._rank, self._world)


def steps_to_come(given: SharedJob) -> "Dataset":
    """The runs of steps from the last complete checkpoint on: Ray Train's controller calls it
    before each start of its workers.
    """
    job = read_job(given)
    latest = checkpoints.latest_checkpoint(job.out)
    first = 0 if latest is None else latest.step
    return dataset(
        partial(_runs, first, job.total_steps, run_length(job)),
        ordered=True,
        store_bytes=_hand_over_limit(job),
    )


class Shards(DataConfig):
    """Gives each rank of Ray Train all steps, and loaders of its own, which make its part of them."""

    def __init__(self, given: SharedJob) -> None:
        super().__init__()
        self._given = given

    def configure(
        self,
        datasets: "dict[str, Dataset]",
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **kwargs: Any,
    ) -> "list[dict[str, DataIterator]]":
        """See `ray.train.DataConfig`; what a rank gets is executed as it is iterated, in the rank's
        process.
        """
        job = read_job(self._given)
        layout = job.layout
        pools = [
            Pool(
                Loader,
                (self._given, rank, world_size),
                layout.loaders,
                layout.loaders,
                layout.loader_cpus,
                labels=job.config.cluster.labels,
            )
            for rank in range(world_size)
        ]
        return [
            {name: through(steps, [pool]).iterator() for name, steps in datasets.items()}
            for pool in pools
        ]


def batches(first: int) -> Iterator[Batch]:
    """The batches of this worker of Ray Train from step `first` to the last, in order; leaving
    early ends the loaders.

    Raises what a loader met, and ClusterError where the stream begins at another step: then the
    workers have to be started again.
    """
    arriving: Iterator[Loaded] = messages(get_dataset_shard(TRAIN), ahead=AHEAD)
    for several in arriving:
        for step, batch in several:
            if step != first:
                raise ClusterError(
                    f"the loaders are at step {step}, the network at {first}",
                    hint="the same command goes on",
                )
            yield batch
            first += 1


def _runs(first: int, total: int, together: int) -> Iterator[range]:
    for start in range(first, total, together):
        yield range(start, min(start + together, total))


def _hand_over_limit(job: TrainingJob) -> float:
    """Bytes that may wait for one worker, so that all workers of a node together do not fill its
    object store.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    together = math.ceil(job.layout.workers / max(len(nodes), 1))
    smallest = min(node["Resources"].get("object_store_memory", math.inf) for node in nodes)
    return float(HAND_OVER_SHARE * smallest / together)
