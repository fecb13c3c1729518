"""Pending blocks → committed parts: one Ray Data pipeline (`score_blocks`).

    manifest ─ BlockRef ─> BlockDecoder ─ OpenBlock ─> TensorScorer ─ OpenBlock ─> … ─> BlockCommitter ─ BlockReport ─> driver
    manifest ─ BlockRef ─> BlockScorer ─ BlockReport ─> driver                                            (without GPUs: all in one pool)

What one Ray block is, at each arrow: a block of images of the manifest, as one row.
- BlockRef: where its members stand in the manifest. About 100 bytes.
- OpenBlock behind the decoders: all its members, with a status each and their prepared uint8
tensors, or their files where detectors keep
  sizes; 512 MiB at most, in Ray's object store, never in the driver. Behind the last pool that looks at images: statuses and scores.
- BlockReport: that the part is written, with what it took. About 1 kB, all that the driver sees.

The parts are the checkpoint: a kill loses the blocks under way and nothing else. No more of them
are under way than the layout's `most_open`, so a stop has little to hand back, and what waits
between the stages fits the object store.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from ray_app.archives import BlockRef
from ray_app.cluster.shutdown import Stopper, Watch
from ray_app.scoring.layout import COMMIT_CPUS, ScoringLayout
from ray_app.scoring.stages import (
    BlockCommitter,
    BlockDecoder,
    BlockDescriber,
    BlockReport,
    BlockScorer,
    HandedBack,
    ScoringJob,
    TensorScorer,
)
from ray_app.streams.feed import Feed
from ray_app.streams.pool import Pool, stream
from ray_app.streams.stage import Stage


def score_blocks(
    blocks: Iterable[BlockRef | None],
    job: ScoringJob,
    layout: Callable[[], ScoringLayout],
    *,
    stopper: Stopper,
    watch: Watch,
    leaves: Callable[[], None] = lambda: None,
    idle_s: float = math.inf,
) -> Iterator[BlockReport]:
    """Run the pipeline and yield a report per block as it is committed; `layout` is asked twice a
    second, since nodes come and go.

    `blocks` are made in a thread, and may take their time: None is one that is not there yet, and
    where none came for `idle_s`, the processes end until one does. `leaves` is called when the rest
    is not wanted. To be iterated in the main thread, inside `watch`. Raises KeyboardInterrupt where
    a stop was requested and blocks are left, ClusterError where Ray gives up, and whatever
    TouchstoneError a stage met; once all blocks that came are scored, what `blocks` raised.
    """
    feed = Feed(
        blocks,
        most=lambda: layout().most_open,
        halted=lambda: stopper.reason is not None,
        avoided=lambda: stopper.avoided,
        waits=watch.progressed,  # only the listing is at work
        leaves=leaves,
        idle_s=idle_s,
    )

    def has_more() -> bool:
        watch.rests = True
        found = feed.has_more()
        watch.progressed()
        return found

    while has_more():  # once more where blocks came back at the very end, or come after a pause
        with (
            feed,
            closing(
                stream(
                    feed.log.items, pools_of(replace(job, feed=feed.log), layout()), name="score"
                )
            ) as messages,
        ):
            for message in messages:
                watch.progressed()
                feed.ended(message.ref if isinstance(message, HandedBack) else None)
                if isinstance(message, BlockReport):
                    yield message
        if stopper.reason is not None and has_more():
            raise KeyboardInterrupt(stopper.reason)


def pools_of(job: ScoringJob, layout: ScoringLayout) -> list[Pool]:
    """The stages as pools of processes. Scorers wait for nothing but a GPU; what they leave of a
    node's cores, decoders fill.
    """

    def pool(stage: type[Stage], size: int, cpus: float, gpus: float = 0.0, *given: Any) -> Pool:
        return Pool(
            stage, (job, *given), size, None if layout.grows else size, cpus, gpus, layout.labels
        )

    if layout.kind == "fused":
        return [pool(BlockScorer, layout.scorers[0], layout.worker_cpus)]
    scorers = [
        pool(
            TensorScorer if names in job.spec.pools else BlockDescriber,
            size,
            layout.scorer_cpus,
            layout.scorer_gpus,
            names,
        )
        for names, size in zip(job.spec.all_pools, layout.scorers, strict=True)
    ]
    return [
        pool(BlockDecoder, layout.decoders, layout.worker_cpus),
        *scorers,
        pool(BlockCommitter, layout.committers, COMMIT_CPUS),
    ]
