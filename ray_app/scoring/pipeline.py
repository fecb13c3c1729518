"""Pending blocks → committed parts, on Ray Data. Yields one report per committed block.

Blocks enter as one-row tables already in the object store: no read tasks, no merged files, no repartition; each block is committed
by the worker that finishes it, so what survives a kill is whatever was committed (specs/ray.md §F3–F6 for what else was tried).
"""

import _thread
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import cast

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset, ExecutionResources
from ray.data.read_api import from_blocks

from ray_app.archives import BlockRef
from ray_app.errors import ClusterError, TouchstoneError, said
from ray_app.scoring.plan import COMMIT_CPUS, Layout
from ray_app.scoring.workers import BlockCommitter, BlockDecoder, BlockScorer, Job, Report, TensorScorer, block_table, report_of

HAND_OVER_SHARE = 0.4
WHOLE_BLOCKS = 1 << 30  # one row is one Ray block between stages; its size is bounded by the plan instead


def score_blocks(
    blocks: Sequence[BlockRef], job: Job, layout: Layout, *, stall_timeout_s: float, tick: Callable[[], None]
) -> Iterator[Report]:
    """Run the pipeline and yield a report per block as it is committed; `tick` is called once a second and may raise to stop the run.

    To be iterated in the main thread, which alone hears signals. Raises ClusterError when no block ends within `stall_timeout_s`,
    what `tick` raises, and whatever TouchstoneError a worker met.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = WHOLE_BLOCKS
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=_hand_over_limit())
    dataset = _pipeline(from_blocks([block_table(ref) for ref in blocks]), job, layout.limited_to(len(blocks)))
    with _Watch(stall_timeout_s, tick) as watch:
        for row in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            watch.progressed()
            yield report_of(cast(pa.Table, row))


def _hand_over_limit() -> float:
    """Bytes that may wait between the stages: what one node's object store holds well before it spills (at 80 %), since the
    decoders that run ahead may all stand on one node.
    """
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return float(HAND_OVER_SHARE * min(node["Resources"].get("object_store_memory", math.inf) for node in nodes if node["Alive"]))


def _pipeline(dataset: Dataset, job: Job, layout: Layout) -> Dataset:
    if layout.kind == "fused":
        return _stage(dataset, BlockScorer, (job,), layout, layout.scorers[0], num_cpus=layout.worker_cpus)
    dataset = _stage(dataset, BlockDecoder, (job,), layout, layout.decoders, num_cpus=layout.worker_cpus)
    for pool, size in zip(job.spec.pools, layout.scorers, strict=True):
        dataset = _stage(dataset, TensorScorer, (job, pool), layout, size, num_cpus=layout.scorer_cpus, num_gpus=layout.scorer_gpus or None)
    return _stage(dataset, BlockCommitter, (job,), layout, layout.committers, num_cpus=COMMIT_CPUS / layout.committers)


def _stage(
    dataset: Dataset, worker: type, given: tuple[object, ...], layout: Layout, size: int, *, num_cpus: float, num_gpus: float | None = None
) -> Dataset:
    pool = ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2)
    return dataset.map_batches(
        worker,
        fn_constructor_args=given,
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=pool,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        label_selector=dict(layout.labels) or None,
    )


class _Watch:
    """Looks after the loop while it waits inside Ray: calls `tick` each second, and interrupts the main thread when the run must stop."""

    def __init__(self, stall_timeout_s: float, tick: Callable[[], None]) -> None:
        self._stall_timeout_s, self._tick = stall_timeout_s, tick
        self._heard = time.monotonic()
        self._over = threading.Event()
        self._reason: BaseException | None = None
        self._thread = threading.Thread(target=self._look, daemon=True)

    def progressed(self) -> None:
        """A block has ended."""
        self._heard = time.monotonic()

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if isinstance(error, KeyboardInterrupt) and self._reason is not None:
            raise self._reason from None
        if isinstance(error, Exception) and not isinstance(error, TouchstoneError):
            raise ClusterError(f"the pipeline failed: {said(error)}",
                               hint="the same command resumes; worker logs are in the Ray session folder") from error  # fmt: skip

    def _look(self) -> None:
        while not self._over.wait(1.0):
            try:
                self._tick()
                if time.monotonic() - self._heard > self._stall_timeout_s:
                    raise ClusterError(
                        f"no block ended in {self._stall_timeout_s:.0f} s; stopped, what is committed is kept",
                        hint="are there nodes for the plan shown above? --set cluster.stall_timeout_s=… waits longer",
                    )
            except BaseException as reason:
                self._reason = reason
                _thread.interrupt_main()
                return
