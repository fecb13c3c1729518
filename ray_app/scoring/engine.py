"""Turn pending blocks into committed parts in one Ray Data pipeline (`score_turn`).

    manifest ─ BlockRef ─> BlockDecoder ─ OpenBlock ─> TensorScorer ─ OpenBlock ─> … ─> BlockCommitter ─ BlockReport ─> driver
    manifest ─ BlockRef ─> BlockScorer ─ BlockReport ─> driver                                            (without GPUs: all in one pool)
    manifest ─ BlockRef ─> StoredBlockScorer ─ BlockReport ─> driver                                      (stored embeddings)

At each arrow, a Ray block is one row with a block of images of the manifest:

- BlockRef: the positions of its members in the manifest. About 100 bytes.
- OpenBlock after the decoders: all its members with their statuses, and their prepared uint8 tensors,
  or their files if detectors keep sizes. At most 512 MiB, in Ray's object store, never in the driver.
  After the last pool that looks at images, it contains only statuses and scores.
- BlockReport: the message that the part is written, with the work that it took. About 1 kB. The
  driver sees only these.

The parts are the checkpoint: a kill loses the blocks in progress and nothing else. At most
`max_open_blocks` of the layout are in progress, so what waits between the stages fits the object
store.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from ray_app.cluster.shutdown import StallWatchdog
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
    turn: Turn, job: ScoringJob, layout: ScoringLayout, orders: OrderWriter, watch: StallWatchdog
) -> Iterator[BlockReport]:
    """Run the pipeline over the blocks of a turn, and yield a report for each committed block.

    A block that was not started, because of a stop or because its node will be taken away, yields no
    report. It has no part, so it stays pending.

    Args:
        turn: The blocks.
        job: What every process needs.
        layout: The processes. `orders.window` bounds how many blocks are in progress.
        orders: The orders of the command. More blocks are released here as others finish.
        watch: Notices a stall.

    Yields:
        A report for each committed block.

    Raises:
        ClusterError: If Ray gave up.
        TouchstoneError: If a stage failed with this error.
    """
    with closing(stream(turn, build_pools(job, layout), name="score")) as messages:
        for finished, message in enumerate(messages, 1):
            watch.progressed()
            orders.release(finished)
            if isinstance(message, BlockReport):
                yield message


def build_pools(job: ScoringJob, layout: ScoringLayout) -> list[Pool]:
    """Return the stages as pools of processes.

    Scorers wait only for a GPU. Decoders use the cores of a node that scorers leave free.
    """

    def pool(
        stage: type[Stage], size: int, cpus: float, gpus: float = 0.0, *arguments: Any
    ) -> Pool:
        return Pool(
            stage,
            (job, *arguments),
            size,
            None if layout.grows else size,
            cpus,
            gpus,
            layout.labels,
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
