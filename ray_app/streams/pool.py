"""Stream the items of a source through one actor pool after another, on Ray Data (`stream`).

    items ──(one generator task, on the driver's node)──> Pool ──> Pool ──> … ──> the driver

At every arrow, an item is a Ray block with one row, and an actor processes one such block per call.
Pools start further processes on nodes that join later. If a process or a node is lost, Ray repeats
its work. docs/architecture.md has measurements.
"""

import logging
import math
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, DataContext, DataIterator, Dataset, ExecutionResources
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import ActorUnavailableError, RayError
from typing_extensions import override

from ray_app.cluster.ray_cluster import select_current_node
from ray_app.cluster.shutdown import make_stall_error
from ray_app.errors import ClusterError, describe_error, is_out_of_memory
from ray_app.streams.private_api import EXECUTION_CALLBACKS
from ray_app.streams.stage import (
    IN_FLIGHT,
    OUT_OF_MEMORY_HINT,
    WORKER_LOGS_HINT,
    Stage,
    StageFailure,
    deserialize,
    serialize,
)


@dataclass(frozen=True)
class Pool:
    """The settings of the processes (Ray actors) that run one stage of a stream.

    If a process dies, Ray repeats the item that it worked on, without a limit.

    Attributes:
        stage: The class of which each process has one instance.
        stage_args: Arguments of `stage.start`.
        size: Initial and minimum number of processes.
        max_size: Maximum number of processes. None allows as many as fit on the nodes, including
            nodes that join later.
        cpus: CPUs of each process.
        gpus: GPUs of each process.
        labels: Labels that the nodes of the processes must have.
        in_flight: Messages of each process: one that it works on, and those that wait for it.
    """

    stage: type[Stage]
    stage_args: tuple[Any, ...]
    size: int
    max_size: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    in_flight: int = IN_FLIGHT

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments with which Ray Data's `map_batches` starts this pool."""
        # With a lower minimum, Ray Data ends processes of one pool when another one grows, and starts
        # them again later.
        strategy = ActorPoolStrategy(
            min_size=self.size,
            max_size=self.max_size,
            max_tasks_in_flight_per_actor=self.in_flight,
        )
        options = {"fn_constructor_args": self.stage_args, "compute": strategy, "num_cpus": self.cpus, "batch_size": 1,
                   "batch_format": "pyarrow", "zero_copy_batch": True}  # fmt: skip
        return (
            options
            | ({"num_gpus": self.gpus} if self.gpus else {})
            | ({"label_selector": dict(self.labels)} if self.labels else {})
        )


class ItemSource(Datasource):
    """A data source for Ray Data that yields the items of an iterator.

    One task reads the whole iterator. Each item becomes one row.

    Args:
        items: A function that returns the iterator. It is called in that task.
    """

    def __init__(self, items: Callable[[], Iterator[Any]]) -> None:
        self._items = items

    @override
    def estimate_inmemory_data_size(self) -> int | None:
        """Return None, because the size is unknown: the source may be growing."""
        return None

    @override
    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """Return the single task that reads all items.

        Ray Data calls this method. The arguments have no effect.
        """
        items = self._items
        return [
            ReadTask(
                lambda: map(serialize, items()),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None),
            )
        ]


def dataset(
    items: Callable[[], Iterator[Any]],
    pools: Sequence[Pool] = (),
    *,
    ordered: bool = False,
    store_bytes: float | None = None,
    stall_s: float | None = None,
) -> Dataset:
    """Return a lazy Ray Data pipeline that passes items through pools.

    The pipeline starts when its results are read with `messages`. It has Ray Data settings of its
    own, so other pipelines in this process keep theirs.

    Args:
        items: A function that returns the items. It is called in a Ray task, not in this process.
        pools: The pools that every item passes, in order.
        ordered: Whether results keep the order of the items.
        store_bytes: Maximum bytes of results that wait between the pools and the reader. None lets
            Ray decide.
        stall_s: The pipeline fails after this many seconds without a result of any pool. None sets
            no limit.

    Returns:
        The pipeline. Each row is a serialised result.
    """
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # The errors are raised, too.
    # A source may have fewer items than a pool has processes.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
    context = DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None  # Stages measure their processes themselves.
    context.target_max_block_size = 1  # One byte, so that every row is a block of its own.
    # Weights stay loaded until all work is done.
    context.autoscaling_config.actor_pool_util_downscaling_threshold = 0.0
    context.custom_execution_callback_classes = EXECUTION_CALLBACKS
    context.execution_no_progress_timeout_s = stall_s or -1
    context.execution_options.preserve_order = ordered
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=store_bytes
    )
    with DataContext.current(context):
        source = ray.data.read_datasource(
            ItemSource(items),
            num_cpus=0,
            concurrency=1,
            override_num_blocks=1,
            label_selector=select_current_node(),
        )
    return add_pools(source, pools)


def add_pools(steps: Dataset, pools: Sequence[Pool]) -> Dataset:
    """Append pools to a pipeline that `dataset` returned, and return the longer pipeline.

    Args:
        steps: The pipeline.
        pools: The pools that every item also passes, in order, after the present pools.

    Returns:
        The longer pipeline. `steps` is unchanged.
    """
    for pool in pools:
        steps = steps.map_batches(pool.stage, **pool.options())
    return steps


def stream(
    items: Callable[[], Iterator[Any]],
    pools: Sequence[Pool],
    *,
    name: str,
    ordered: bool = False,
    stall_s: float | None = None,
) -> Generator[Any, None, None]:
    """Pass items through one pool after another, and yield the last pool's result for each item.

    A stage can end the work on an item early by returning a `TerminalMessage`. Later stages skip
    it, and it is yielded as the result of the item. Close the generator to end all processes early.

    Args:
        items: A function that returns the items. It is called in a Ray task, not in this process.
        pools: The pools that every item passes, in order.
        name: The name of the pipeline on Ray's dashboard.
        ordered: Whether results keep the order of the items.
        stall_s: Fail after this many seconds without a result of any pool. None sets no limit.

    Raises:
        TouchstoneError: A stage raised it. For any other exception of a stage, the message contains
            the traceback.
        ClusterError: Ray gave up, a stage ran out of memory, or no pool had a result for `stall_s`.
    """
    pipeline = dataset(items, pools, ordered=ordered, stall_s=stall_s)
    pipeline.set_name(name)
    return messages(pipeline, stall_s=stall_s)


def messages(
    pipeline: Dataset | DataIterator, *, ahead: int = 0, stall_s: float | None = None
) -> Generator[Any, None, None]:
    """Run a pipeline that `dataset` returned, and yield its results.

    If you do not read all results, close the generator to end all processes.

    Args:
        pipeline: The dataset, or the iterator over it that a worker of Ray Train gets.
        ahead: Number of results that Ray fetches in advance.
        stall_s: The `stall_s` that the dataset was built with, which the error message states.

    Raises:
        TouchstoneError: A stage raised it. For any other exception of a stage, the message contains
            the traceback.
        ClusterError: Ray gave up, a stage ran out of memory, or no pool had a result for `stall_s`.
    """
    arriving = iter(
        pipeline.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=ahead)
    )
    with closing(arriving):  # type: ignore[type-var]  # Closing the generator ends the execution.
        while (table := _next_table(arriving, stall_s)) is not None:
            message = deserialize(table)
            if isinstance(message, StageFailure):
                raise message.error
            yield message


def _next_table(arriving: Iterator[pa.Table], stall_s: float | None) -> pa.Table | None:
    try:
        return next(arriving, None)
    except ExecutionTimeoutError as error:
        raise make_stall_error(stall_s or math.inf) from error
    except RayError as error:
        is_killed = isinstance(error, ActorUnavailableError) or any(
            marker in str(error) for marker in ("OutOfMemory", "OOM")
        )
        hint = OUT_OF_MEMORY_HINT if is_killed or is_out_of_memory(error) else WORKER_LOGS_HINT
        raise ClusterError(f"the pipeline failed: {describe_error(error)}", hint=hint) from error
