"""Stages whose work costs nothing, so that what is left is the engine."""

import time
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pyarrow as pa

from ray_app.archives import BlockList
from ray_app.inference.batch import Batch
from ray_app.scoring import engine
from ray_app.scoring.stages import BlockReport, BlockStage, BlockWork, NotStarted, OpenBlock

# What the engine reads of a spec.
ONE_POOL = SimpleNamespace(all_pools=(("null",),), pools=(("null",),))
WORK = BlockWork({"score": 0.001}, {"requests": 64}, 10**9)


class CostlessScorer(BlockStage):
    """In place of `BlockScorer`; sleeps `job.decode_limit_s` per block."""

    def work(self, ref):
        with self._start_block(ref) as may_start:
            if not may_start:
                return NotStarted(ref)
            time.sleep(self._job.decode_limit_s)
            return BlockReport(ref, 0, WORK)


class CostlessDecoder(BlockStage):
    """Gives as many bytes per image as `job.decode_bytes` says, all of them zero."""

    def work(self, ref):
        with self._start_block(ref) as may_start:
            if not may_start:
                return NotStarted(ref)
        pixels = np.zeros((ref.members, self._job.decode_bytes), np.uint8)
        members = pa.table({"uri": ["s3://bucket/a.jpg"] * ref.members})
        return OpenBlock(ref, members, WORK, (Batch((), (pixels,), (), ()),))


class CostlessTensorScorer(BlockStage):
    def work(self, block):
        return OpenBlock(block.ref, block.members, block.work)


class CostlessCommitter(BlockStage):
    """Writes nothing."""

    def work(self, block):
        return BlockReport(block.ref, 0, block.work)


@contextmanager
def costless(**others):
    """Inside, the engine's stages are these; `others` by the name of the stage that they stand for."""
    scorer = others.pop("TensorScorer", CostlessTensorScorer)
    stages = {
        "BlockScorer": CostlessScorer,
        "BlockDecoder": CostlessDecoder,
        "BlockCommitter": CostlessCommitter,
        "scorer_stages": lambda job: [(scorer, (names,)) for names in job.spec.all_pools],
    }
    with mock.patch.multiple(engine, **stages | others):
        yield


def block_list(count, members):
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
