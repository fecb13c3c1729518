"""Pending blocks → committed parts: one Ray Data pipeline (`score_turn`).

    manifest ─ BlockRef ─> BlockDecoder ─ OpenBlock ─> TensorScorer ─ OpenBlock ─> … ─> BlockCommitter ─ BlockReport ─> driver
    manifest ─ BlockRef ─> BlockScorer ─ BlockReport ─> driver                                            (without GPUs: all in one pool)
    manifest ─ BlockRef ─> StoredBlockScorer ─ BlockReport ─> driver                                      (stored embeddings)

What one Ray block is, at each arrow: a block of images of the manifest, as one row.
- BlockRef: where its members stand in the manifest. About 100 bytes.
- OpenBlock behind the decoders: all its members, with a status each and their prepared uint8
tensors, or their files where detectors keep
  sizes; 512 MiB at most, in Ray's object store, never in the driver. Behind the last pool that looks at images: statuses and scores.
- BlockReport: that the part is written, with what it took. About 1 kB, all that the driver sees.

The parts are the checkpoint: a kill loses the blocks in progress and nothing else. No more blocks
are in progress than the layout's `most_open`, so what waits between the stages fits the object
store.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from ray_app.cluster.shutdown import Watch
from ray_app.scoring.layout import COMMIT_CPUS, ScoringLayout
from ray_app.scoring.orders import OrderWriter
from ray_app.scoring.stages import (
    BlockCommitter,
    BlockDecoder,
    BlockReport,
    BlockScorer,
    ScoringJob,
    StoredBlockScorer,
    scorer_stages,
)
from ray_app.scoring.turns import Turn
from ray_app.streams.pool import Pool, stream
from ray_app.streams.stage import Stage


def score_turn(
    turn: Turn, job: ScoringJob, layout: ScoringLayout, orders: OrderWriter, watch: Watch
) -> Iterator[BlockReport]:
    """Run the pipeline over the blocks of a turn, and yield a report for each committed block.

    Blocks that were not started, because of a stop or on a node that will be taken away, give no
    report: they have no part, so they are pending.

    Args:
        turn: The blocks.
        job: What every process needs.
        layout: The processes. `orders.window` bounds how many blocks are in progress.
        orders: The orders of the command; blocks are released here as others finish.
        watch: Notices a standstill.

    Raises:
        ClusterError: Ray gave up.
        TouchstoneError: A stage failed with this error.
    """
    with closing(stream(turn, pools_of(job, layout), name="score")) as messages:
        for finished, message in enumerate(messages, 1):
            watch.progressed()
            orders.release(finished)
            if isinstance(message, BlockReport):
                yield message


def pools_of(job: ScoringJob, layout: ScoringLayout) -> list[Pool]:
    """The stages as pools of processes. Scorers wait for nothing but a GPU; what they leave of a
    node's cores, decoders fill.
    """

    def pool(stage: type[Stage], size: int, cpus: float, gpus: float = 0.0, *given: Any) -> Pool:
        return Pool(
            stage, (job, *given), size, None if layout.grows else size, cpus, gpus, layout.labels
        )

    if layout.kind == "fused":
        stage = BlockScorer if job.stored is None else StoredBlockScorer
        return [pool(stage, layout.scorers[0], layout.worker_cpus)]
    scorers = [
        pool(stage, size, layout.scorer_cpus, layout.scorer_gpus, *arguments)
        for (stage, arguments), size in zip(scorer_stages(job), layout.scorers, strict=True)
    ]
    return [
        pool(BlockDecoder, layout.decoders, layout.worker_cpus),
        *scorers,
        pool(BlockCommitter, layout.committers, COMMIT_CPUS),
    ]
