"""Score pending blocks in one Ray Data pipeline, and write their rows (`score_turn`).

A block is a group of members (files) that is scored as a unit. The result rows of a block are
written to one file, which is called a part.

    manifest ─ BlockRef ─> BlockDecoder ─ OpenBlock ─> TensorScorer ─ OpenBlock ─> … ─> BlockCommitter ─ BlockReport ─> driver
    manifest ─ BlockRef ─> BlockScorer ─ BlockReport ─> driver                                            (fused layout: all in one pool)
    manifest ─ BlockRef ─> StoredBlockScorer ─ BlockReport ─> driver                                      (stored embeddings)

At each arrow, a block of Ray Data is one row with a message about one block of the manifest:

- BlockRef has the positions of the block's members in the manifest, in about 100 bytes.
- OpenBlock has all members of the block with their statuses. After the decoders, it also has their
  prepared uint8 tensors, or their files if detectors read images at their original size. These are
  up to 512 MiB in Ray's object store, and never in the driver. After the last pool that reads
  images, only statuses and scores are left.
- BlockReport shows that the block's part is written, and how much work it took, in about 1 kB. For
  a block that is not started, the driver receives `NotStarted` instead.

The parts are the checkpoint: if a run is killed, only the blocks in progress are lost. The layout
limits their number (`max_open_blocks`), so that messages between stages fit into the object store.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from ray_app.cluster.shutdown import StallWatchdog
from ray_app.scoring.layout import COMMIT_CPUS, ScoringLayout
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
from ray_app.streams.stage import IN_FLIGHT, Stage

# Messages of a scorer or committer. It may take a block in 10 ms, and Ray Data needs several times as
# long to give it the next one.
SHORT_IN_FLIGHT = 8
# A committer requests so little of a core that Ray Data would start hundreds. One takes 150 MB, and
# commits 20 blocks per second to S3.
MAX_COMMITTERS = 8
RELEASES = 8  # While as many blocks finish as may be in progress.


def score_turn(
    turn: Turn, job: ScoringJob, layout: ScoringLayout, watch: StallWatchdog
) -> Iterator[BlockReport]:
    """Score the blocks of a turn in one Ray Data pipeline, and yield a report for each of them.

    A turn is the list of blocks that one pipeline scores. A block is committed when its rows are
    written to the run directory. A block is not started if the run stops or if its node will be
    taken away. Such a block gets no report and stays pending.

    Args:
        turn: The blocks to score. Whenever blocks finish, this function releases more of them.
        job: The data that every worker process needs.
        layout: The kinds and numbers of worker processes.
        watch: The watchdog, which stops a run without progress. It is informed of each message.

    Yields:
        A report for each committed block.

    Raises:
        ClusterError: If Ray gave up, for example because workers died repeatedly.
        TouchstoneError: If a stage raised this error.
    """
    # A call to an actor costs the driver a millisecond.
    at_once = max(1, layout.max_open_blocks // RELEASES)
    with closing(stream(turn, build_pools(job, layout), name="score")) as messages:
        for finished, message in enumerate(messages, 1):
            watch.progressed()
            if finished % at_once == 0:
                turn.control.release(finished)
            if isinstance(message, BlockReport):
                yield message


def build_pools(job: ScoringJob, layout: ScoringLayout) -> list[Pool]:
    """Return the stages of a run, each as a pool of worker processes for Ray Data.

    A scorer mostly waits for its GPU, so it reserves few cores. Decoders use the other cores of the
    node.
    """

    def pool(
        stage: type[Stage],
        size: int,
        cpus: float,
        gpus: float = 0.0,
        *arguments: Any,
        in_flight: int = IN_FLIGHT,
        max_size: int | None = None,
    ) -> Pool:
        return Pool(
            stage,
            (job, *arguments),
            size,
            max_size if layout.grows else size,
            cpus,
            gpus,
            layout.labels,
            in_flight,
        )

    if layout.kind == "fused":
        stage = BlockScorer if job.stored is None else StoredBlockScorer
        return [pool(stage, layout.scorers[0], layout.worker_cpus)]
    scorers = [
        pool(
            stage,
            size,
            layout.scorer_cpus,
            layout.scorer_gpus,
            *arguments,
            in_flight=SHORT_IN_FLIGHT,
        )
        for (stage, arguments), size in zip(scorer_stages(job), layout.scorers, strict=True)
    ]
    return [
        pool(BlockDecoder, layout.decoders, layout.worker_cpus),
        *scorers,
        pool(
            BlockCommitter,
            layout.committers,
            COMMIT_CPUS,
            in_flight=SHORT_IN_FLIGHT,
            max_size=max(layout.committers, MAX_COMMITTERS),
        ),
    ]
