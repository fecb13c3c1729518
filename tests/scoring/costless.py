"""Stages whose work costs nothing, so that what is left is the engine.

A scorer may sleep in a device's place; how long it then waited for its input stands in the reports,
as counts in microseconds.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pyarrow as pa

from ray_app.archives import BlockList, BlockRef
from ray_app.inference.batch import Batch
from ray_app.scoring import engine
from ray_app.scoring.stages import BlockReport, BlockStage, BlockWork, NotStarted, OpenBlock

# what the engine reads of a spec
ONE_POOL = SimpleNamespace(all_pools=(("null",),), pools=(("null",),))
BUSY_US, WAITED_US = "busy_us", "waited_us"
SECONDS = dict.fromkeys(
    ("fetch", "wait", "decode", "prepare", "score", "identify", "describe", "write"), 0.001
)


def work(**counts: int) -> BlockWork:
    """A report's usual content."""
    return BlockWork(SECONDS, {"requests": 64, "bytes_read": 10**7, "decoded": 64, **counts}, 10**9)


class CostlessScorer(BlockStage):
    """In place of `BlockScorer`; sleeps `job.decode_limit_s` per block."""

    def work(self, ref: BlockRef) -> BlockReport | NotStarted:
        """A report of a block that nobody read."""
        if not self._may_start():
            return NotStarted(ref)
        time.sleep(self._job.decode_limit_s)
        return BlockReport(ref, 0, work())


class CostlessDecoder(BlockStage):
    """Gives as many bytes per image as `job.decode_bytes` says, all of them zero."""

    def work(self, ref: BlockRef) -> OpenBlock | NotStarted:
        """Pixels of a block that nobody read."""
        if not self._may_start():
            return NotStarted(ref)
        pixels = np.zeros((ref.members, self._job.decode_bytes or 1), np.uint8)
        return OpenBlock(
            ref,
            pa.table({"uri": ["s3://bucket/a.jpg"] * ref.members}),
            work(),
            (Batch((), (pixels,), (), ()),),
        )


class SleepingScorer(BlockStage):
    """Sleeps `job.decode_limit_s` per block, and counts how long it had nothing to do before."""

    def _load(self) -> None:
        """Nothing was done yet."""
        self._ended: float | None = None

    def work(self, block: OpenBlock) -> OpenBlock:
        """A block without its pixels."""
        began = time.monotonic()
        waited = 0.0 if self._ended is None else began - self._ended
        time.sleep(self._job.decode_limit_s)
        self._ended = time.monotonic()
        spent = work(
            **{BUSY_US: round(1e6 * (self._ended - began)), WAITED_US: round(1e6 * waited)}
        )
        return OpenBlock(block.ref, block.members, block.work.joined(spent))


class CostlessCommitter(BlockStage):
    """Writes nothing."""

    def work(self, block: OpenBlock) -> BlockReport:
        """A report of a block without a part."""
        return BlockReport(block.ref, 0, block.work)


@contextmanager
def costless(**others: type[BlockStage]) -> Iterator[None]:
    """Inside, the engine's stages are these; `others` by the name of the stage that they stand for."""
    scorer = others.pop("TensorScorer", SleepingScorer)
    stages = {
        "BlockScorer": CostlessScorer,
        "BlockDecoder": CostlessDecoder,
        "BlockCommitter": CostlessCommitter,
        "scorer_stages": lambda job: [(scorer, (names,)) for names in job.spec.all_pools],
    }
    with mock.patch.multiple(engine, **stages | others):
        yield


def block_list(count: int, members: int) -> BlockList:
    """Blocks that are nowhere, as a turn has them."""
    columns = {
        "block": pa.array(range(count), pa.int32()),
        "file": pa.array(["part-00000-00000.parquet"] * count, pa.string()),
        "row_group": pa.array([number % 64 for number in range(count)], pa.int32()),
        "members": pa.array([members] * count, pa.int32()),
        "size_bytes": pa.array([members * 10**5] * count, pa.int64()),
        "manifest": pa.array([0] * count, pa.int32()),
    }
    return BlockList(pa.table(columns))
