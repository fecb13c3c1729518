"""Pipelines whose work costs nothing, so that what is left is the engine: used by benchmarks.cluster and by tests of the engine.

A scorer may sleep in a device's place; how long it then waited for its input stands in the reports, as counts in microseconds.
"""

import os
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.archives import BlockRef
from ray_app.inference.batch import Batch
from ray_app.scoring import messages
from ray_app.scoring.pipelines import FusedPipeline, OpenBlock, SplitPipeline
from ray_app.scoring.workers import PieceDecoder, ScoringJob, TensorScorer

ONE_POOL = SimpleNamespace(all_pools=(("null",),), pools=(("null",),))  # what the engine reads of a spec
BUSY_US, WAITED_US = "busy_us", "waited_us"
SECONDS = dict.fromkeys(("fetch", "wait", "decode", "prepare", "score", "identify", "describe", "write"), 0.001)


def work(**counts: int) -> messages.BlockWork:
    """A report's usual content."""
    return messages.BlockWork(SECONDS, {"requests": 64, "bytes_read": 10**7, "decoded": 64, **counts}, 10**9)


class CostlessScorer:
    """In place of `BlockScorer`; sleeps `job.decode_limit_s` per block."""

    def __init__(self, job: ScoringJob) -> None:
        self._sleep_s = job.decode_limit_s

    def take(self, message: BlockRef) -> messages.BlockReport:
        """A report of a block that nobody read."""
        time.sleep(self._sleep_s)
        return messages.BlockReport(message, 0, work())

    def commit(self, report: messages.BlockReport) -> messages.BlockReport:
        """Nothing is written."""
        return report


class CostlessDecoder(PieceDecoder):
    """Gives as many bytes per image as `job.decode_bytes` says, all of them zero."""

    def start(self) -> None:
        """Make the pixels."""
        self._pixels = np.zeros((1, self._job.decode_bytes or 1), np.uint8)

    def work(self, message: messages.Piece) -> messages.OpenPiece:
        """Pixels of a piece that nobody read."""
        pixels = np.broadcast_to(self._pixels, (len(message.members), *self._pixels.shape[1:])).copy()
        return messages.OpenPiece(message.ref, message.start, str(os.getpid()), work(), (Batch((), (pixels,), ()),))


class SleepingScorer(TensorScorer):
    """Sleeps `job.decode_limit_s` per piece, and counts how long it had nothing to do before."""

    def start(self) -> None:
        """Nothing is loaded."""
        self._ended: float | None = None

    def work(self, message: messages.OpenPiece) -> messages.OpenPiece:
        """A piece without its pixels."""
        began = time.monotonic()
        waited = 0.0 if self._ended is None else began - self._ended
        time.sleep(self._job.decode_limit_s)
        self._ended = time.monotonic()
        spent = work(**{BUSY_US: round(1e6 * (self._ended - began)), WAITED_US: round(1e6 * waited)})
        return messages.OpenPiece(message.ref, message.start, message.first, message.work.joined(spent))


class CostlessFused(FusedPipeline):
    """A core that does nothing."""

    scorer = CostlessScorer


class CostlessSplit(SplitPipeline):
    """Decoders and scorers that do nothing; blocks are neither read nor written."""

    decoder = CostlessDecoder
    scorer = SleepingScorer

    def _read(self, ref: BlockRef) -> pa.Table:
        return pa.table({"uri": [f"s3://bucket/{ref.block}/{number}.jpg" for number in range(ref.members)]})

    def _commit(self, block: OpenBlock) -> messages.BlockReport:
        total = messages.BlockWork()
        for start in sorted(block.scored):
            total = total.joined(block.scored[start].work)
        return messages.BlockReport(block.ref, 0, total)


def blocks(count: int, members: int) -> Any:
    """References to blocks that are nowhere."""
    return (BlockRef(0, number, members, members * 10**5, "part-00000-00000.parquet", number % 64) for number in range(count))
