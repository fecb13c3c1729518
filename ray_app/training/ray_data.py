"""Steps → batches on Ray Data: `training_loader` and `batches` give each worker its own ordered stream from loader processes.

The stream is made of step numbers alone; which rows a step has is arithmetic (ray_app.datasets.sampling). So the data position of a
training is its step.
"""

import logging
import math
import pickle
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from ray.data._internal.execution.execution_callback import ExecutionCallback

from ray_app.errors import TouchstoneError
from ray_app.training.job import TrainingJob

Batch = dict[str, npt.NDArray[Any]]

_FAILURE = "failure"
WHOLE_BATCHES = 1 << 40  # a batch stays one block of Ray Data
# Steps that a loader reads in one go, as many as give images of so many bytes: neighbours in a container are then read together.
RUN_BYTES, MOST_TOGETHER = 2**25, 8
IN_FLIGHT = 2  # runs of steps that one loader has been given
AHEAD = 2  # runs that wait in the worker itself
HAND_OVER_SHARE = 0.4  # of a node's object store: what waits between loaders and the workers of that node
# An execution costs about 10 s to start, and a step 1 ms of it: long enough for the one, bounded for the other.
STEPS_PER_EXECUTION = 20_000
# Ray Data polls finished tasks once in a tenth of a second, but without a pause while all it has made waits to be taken.
LOOK_EVERY_S = 0.05


class Unhurried(ExecutionCallback):
    """Keeps Ray Data's scheduler, a thread beside the training, from taking a whole core while the loaders are ahead of it."""

    def __init__(self) -> None:
        self._looked_at = 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Called after every look around."""
        time.sleep(max(0.0, self._looked_at + LOOK_EVERY_S - time.monotonic()))
        self._looked_at = time.monotonic()


class DataStage:
    """Base of what Ray Data runs here in processes of their own: one row in, some arrays out.

    A TouchstoneError travels as a row, since Ray Data keeps only the text of an exception; `whole` raises it where the row arrives.
    """

    def __init__(self, job: TrainingJob, *given: Any) -> None:
        self._failed: TouchstoneError | None = None
        try:
            self.start(job, *given)
        except TouchstoneError as error:
            self._failed = error

    def __call__(self, table: pa.Table) -> Batch:
        """Work on one row."""
        try:
            if self._failed is not None:
                raise self._failed
            return self.work(table)
        except TouchstoneError as error:
            return {_FAILURE: np.array([pickle.dumps(error)], object)}

    def start(self, job: TrainingJob, *given: Any) -> None:
        """Load what is needed, once per process."""
        raise NotImplementedError

    def work(self, table: pa.Table) -> Batch:
        """What `__call__` does where nothing fails."""
        raise NotImplementedError


def whole(batch: Batch) -> Batch:
    """What a stage gave. Raises what it met instead."""
    if _FAILURE in batch:
        raise pickle.loads(batch[_FAILURE][0])  # noqa: S301  (made by a process of this session)
    return batch


class Loader(DataStage):
    """A run of steps in, their batches for one rank out, one after another."""

    def start(self, job: TrainingJob, *given: Any) -> None:
        """`given`: rank and number of workers."""
        from ray_app.training.loader import StepLoader

        self._rank, self._world = given
        self._loader = StepLoader(training_loader(job), job.order())

    def work(self, table: pa.Table) -> Batch:
        """The steps of a run → arrays, as `StepLoader.load_several` gives them, and `step` for each image."""
        steps = table["steps"][0].as_py()
        batch = self._loader.load_several(steps, self._rank, self._world)
        return {**batch, "step": np.repeat(steps, len(batch["label"]) // len(steps))}


def training_loader(job: TrainingJob) -> Any:
    """What reads rows of the training split as the recipe's policy changes them."""
    from ray_app.training.loader import plain_loader
    from ray_app.transforms.policy import make_policy

    shape = job.card.preprocessing.shape
    return plain_loader(job, "train", make_policy(job.config.augmentation, side=shape[0] if shape else None, statistics=job.statistics))


def batches(job: TrainingJob, first: int, rank: int, world: int) -> Iterator[Batch]:
    """The batches of one rank from step `first` to the last, in order. Runs inside a worker; leaving early ends the loaders."""
    _prepare(job)
    for start in range(first, job.total_steps, STEPS_PER_EXECUTION):
        yield from _execution(job, range(start, min(start + STEPS_PER_EXECUTION, job.total_steps)), rank, world)


def _execution(job: TrainingJob, steps: range, rank: int, world: int) -> Iterator[Batch]:
    from ray.data import ActorPoolStrategy
    from ray.data.read_api import from_blocks

    together = _together(job, world)
    runs = [steps[start : start + together] for start in range(0, len(steps), together)]
    loaded = from_blocks([pa.table({"steps": [list(run)]}) for run in runs]).map_batches(
        Loader,
        fn_constructor_args=(job, rank, world),
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=min(job.layout.loaders, len(runs)), max_tasks_in_flight_per_actor=IN_FLIGHT),
        num_cpus=job.layout.loader_cpus,
        label_selector=dict(job.config.cluster.labels) or None,
    )
    arriving = loaded.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=AHEAD)
    for run, several in zip(runs, arriving, strict=True):
        size = len(whole(several)["step"]) // len(run)
        for number, step in enumerate(run):
            batch = {name: values[number * size : (number + 1) * size] for name, values in several.items()}
            assert batch["step"][0] == step, "Ray Data kept the order"
            yield batch


def _together(job: TrainingJob, world: int) -> int:
    """How many steps are read in one go."""
    height, width = job.card.preprocessing.shape or (1, 1)
    planes = 5 if job.wants_masks else 3
    return max(1, min(MOST_TOGETHER, RUN_BYTES * world // (job.config.loop.batch * planes * height * width)))


def _prepare(job: TrainingJob) -> None:
    import ray.data
    from ray.data import ExecutionResources

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = WHOLE_BATCHES
    context.custom_execution_callback_classes = [Unhurried]
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=_hand_over_limit(job))


def _hand_over_limit(job: TrainingJob) -> float:
    """Bytes that may wait for one worker, so that all workers of a node together do not fill its object store."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    together = math.ceil(job.layout.workers / max(len(nodes), 1))
    smallest = min(node["Resources"].get("object_store_memory", math.inf) for node in nodes)
    return float(HAND_OVER_SHARE * smallest / together)
