"""Pending blocks → committed parts on Ray Data, one pool of actors per stage: `score_blocks` yields a report per committed block.

Blocks go in waves, one Ray Data execution each, so that the driver holds a bounded number of them. What a wave leaves, because workers
handed it back or because the wave was lost with its nodes, goes into the next. What survives a kill is whatever was committed.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import cast

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset, ExecutionResources
from ray.data.read_api import from_blocks
from ray.exceptions import RayError, RayTaskError

from ray_app.archives import BlockRef
from ray_app.cluster.shutdown import OUT_OF_MEMORY_HINT, Stopper, Watch
from ray_app.errors import ClusterError, TouchstoneError, describe_error, is_want_of_memory
from ray_app.scoring import messages, workers
from ray_app.scoring.layout import COMMIT_CPUS, ScoringLayout

HAND_OVER_SHARE = 0.4
WHOLE_BLOCKS = 1 << 30  # one row is one Ray block between stages; its size is bounded by the plan instead
# A new wave costs about 10 s of start-up, a block costs the driver about 20 KB: long enough for the one, bounded for the other.
WAVE_BLOCKS_PER_WORKER = 300
WAVE_BLOCKS = (2_000, 20_000)
MOST_LOST_WAVES = 3


def score_blocks(
    blocks: Iterable[BlockRef], job: workers.ScoringJob, layout: Callable[[], ScoringLayout], *, stopper: Stopper, watch: Watch
) -> Iterator[messages.BlockReport]:
    """Run the pipeline and yield a report per block as it is committed; `layout` is called anew for every wave.

    To be iterated in the main thread, inside `watch`. Raises KeyboardInterrupt where a stop was requested and blocks are left,
    ClusterError after `MOST_LOST_WAVES` waves in a row that failed before any block was committed, and whatever TouchstoneError a
    worker met.
    """
    _prepare()
    waiting, left, lost = iter(blocks), dict[tuple[int, int], BlockRef](), 0
    while True:
        planned = layout()
        size = min(max(WAVE_BLOCKS[0], WAVE_BLOCKS_PER_WORKER * planned.workers), WAVE_BLOCKS[1])
        wave = {**left, **{(ref.manifest, ref.block): ref for ref in islice(waiting, max(size - len(left), 0))}}
        if not wave:
            return
        if stopper.reason is not None:
            raise KeyboardInterrupt(stopper.reason)
        left = dict(wave)
        try:
            for report in _executed(wave.values(), job, planned):
                del left[report.ref.manifest, report.ref.block]
                lost = 0
                watch.progressed()
                yield report
        except TouchstoneError:
            raise
        except Exception as error:  # Ray's own, and what Ray Data lets through from below it
            lost += 1
            if lost > MOST_LOST_WAVES or not _is_loss(error):
                raise _translated(error) from error


def _prepare() -> None:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = WHOLE_BLOCKS
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=_hand_over_limit())


def _executed(wave: Iterable[BlockRef], job: workers.ScoringJob, layout: ScoringLayout) -> Iterator[messages.BlockReport]:
    """The reports of one Ray Data execution; a block that was handed back has none."""
    # Blocks enter as tables of one row that are in the object store: no read tasks, no merged files, no repartition (specs/ray.md §F3–F6).
    tables = [messages.table_of(messages.PendingBlock(ref)) for ref in wave]
    dataset = _pipeline(from_blocks(tables), job, layout.limited_to(len(tables)))
    for row in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        report = messages.report_of(cast(pa.Table, row))
        if report is not None:
            yield report


def _is_loss(error: Exception) -> bool:
    """Whether workers, nodes or objects were lost, rather than a stage raising something."""
    return isinstance(error, RayError) and (not isinstance(error, RayTaskError) or isinstance(error.cause, RayError))


def _translated(error: Exception) -> TouchstoneError:
    hint = "the same command resumes; worker logs are in the Ray session folder"
    texts = str(error)
    if is_want_of_memory(error) or "OutOfMemory" in texts or "OOM" in texts:
        hint = OUT_OF_MEMORY_HINT
    return ClusterError(f"the pipeline failed: {describe_error(error)}", hint=hint)


def _hand_over_limit() -> float:
    """Bytes that may wait between the stages: what one node's object store holds well before it spills (at 80 %), since the
    decoders that run ahead may all stand on one node.
    """
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return float(HAND_OVER_SHARE * min(node["Resources"].get("object_store_memory", math.inf) for node in nodes if node["Alive"]))


def _pipeline(dataset: Dataset, job: workers.ScoringJob, layout: ScoringLayout) -> Dataset:
    if layout.kind == "fused":
        return _stage(dataset, workers.BlockScorer, (job,), layout, layout.scorers[0], num_cpus=layout.worker_cpus)
    dataset = _stage(dataset, workers.BlockDecoder, (job,), layout, layout.decoders, num_cpus=layout.worker_cpus)
    for pool, size in zip(job.spec.all_pools, layout.scorers, strict=True):
        worker = workers.TensorScorer if pool in job.spec.pools else workers.BlockDescriber
        dataset = _stage(dataset, worker, (job, pool), layout, size, num_cpus=layout.scorer_cpus, num_gpus=layout.scorer_gpus or None)
    return _stage(dataset, workers.BlockCommitter, (job,), layout, layout.committers, num_cpus=COMMIT_CPUS / layout.committers)


def _stage(
    dataset: Dataset,
    worker: type,
    given: tuple[object, ...],
    layout: ScoringLayout,
    size: int,
    *,
    num_cpus: float,
    num_gpus: float | None = None,
) -> Dataset:
    """One pool of actors. Ray restarts those that die, elsewhere if need be, and repeats what they had; a pool of fixed size gives its
    idle actors back, with their GPUs, as soon as the stage before has nothing more for it.
    """
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
