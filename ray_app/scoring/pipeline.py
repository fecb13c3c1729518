"""Pending blocks → committed parts, on Ray Data. Yields one report per committed block.

Blocks enter as one-row tables already in the object store: no read tasks, no merged files, no repartition; each block is committed
by the worker that finishes it, so what survives a kill is whatever was committed (specs/ray.md §F3–F6 for what else was tried).
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, cast

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset

from ray_app.archives import BlockRef
from ray_app.errors import ClusterError, TouchstoneError
from ray_app.scoring.plan import COMMIT_CPUS, GPU_SCORER_CPUS, WORKER_CPUS, Layout
from ray_app.scoring.workers import BlockCommitter, BlockDecoder, BlockScorer, Job, Report, TensorScorer, block_table, report_of

WHOLE_BLOCKS = 1 << 30  # one row is one Ray block between stages; its size is bounded by the plan instead


def score_blocks(
    blocks: Sequence[BlockRef], job: Job, layout: Layout, *, stall_timeout_s: float, tick: Callable[[], None]
) -> Iterator[Report]:
    """Run the pipeline and yield a report per block as it is committed; `tick` is called about once a second.

    Raises ClusterError when no block ends within `stall_timeout_s`, and whatever TouchstoneError a worker raised.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = WHOLE_BLOCKS
    dataset = ray.data.from_arrow([block_table(ref) for ref in blocks])
    arriving = _Arriving(_pipeline(dataset, job, layout.limited_to(len(blocks))))
    heard = time.monotonic()
    while True:
        item = arriving.get(timeout_s=1.0)
        if item is not None:
            heard = time.monotonic()
            if item is _Arriving.END:
                return
            yield item
        elif time.monotonic() - heard > stall_timeout_s:
            raise ClusterError(
                f"no block ended in {stall_timeout_s:.0f} s; stopped, what is committed is kept",
                hint="are there nodes for the plan shown above? `--set cluster.stall_timeout_s=…` waits longer",
            )
        tick()


def _pipeline(dataset: Dataset, job: Job, layout: Layout) -> Dataset:
    if layout.kind == "fused":
        return _stage(dataset, BlockScorer, job, layout.scorers, num_cpus=WORKER_CPUS)
    dataset = _stage(dataset, BlockDecoder, job, layout.decoders, num_cpus=WORKER_CPUS)
    dataset = _stage(dataset, TensorScorer, job, layout.scorers, num_cpus=GPU_SCORER_CPUS, num_gpus=1)
    return _stage(dataset, BlockCommitter, job, 1, num_cpus=COMMIT_CPUS)


def _stage(dataset: Dataset, worker: type, job: Job, size: int, *, num_cpus: float, num_gpus: float | None = None) -> Dataset:
    pool = ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2)
    return dataset.map_batches(
        worker,
        fn_constructor_args=(job,),
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=pool,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )


class _Arriving:
    """The dataset's output, consumed in a thread so that the main one can watch the clock and hear signals."""

    END: Final[Report] = {}

    def __init__(self, dataset: Dataset) -> None:
        self._queue: queue.SimpleQueue[Report | Exception] = queue.SimpleQueue()
        threading.Thread(target=self._consume, args=(dataset,), daemon=True).start()

    def get(self, timeout_s: float) -> Report | None:
        """The next report, END, or None when none came in time. Raises what went wrong."""
        try:
            item = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(item, Exception):
            raise item
        return item

    def _consume(self, dataset: Dataset) -> None:
        try:
            for row in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                self._queue.put(report_of(cast(pa.Table, row)))
            self._queue.put(self.END)
        except TouchstoneError as error:
            self._queue.put(error)
        except Exception as error:
            said = str(error).strip().splitlines() or [""]
            self._queue.put(ClusterError(f"the pipeline failed: {type(error).__name__}: {said[0]}",
                                         hint="the same command resumes; worker logs are in the Ray session folder"))  # fmt: skip
