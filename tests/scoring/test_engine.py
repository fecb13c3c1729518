"""Which blocks go where and come back: the engine on a real local Ray, with stages whose work costs
nothing.
"""

import os
import signal
from collections import Counter
from dataclasses import replace

import pytest

from ray_app.errors import StorageError
from ray_app.scoring import engine
from ray_app.scoring.layout import ScoringLayout
from ray_app.scoring.stages import ScoringJob
from tests.scoring import costless

FUSED = ScoringLayout("fused", (2,), 0, 64, worker_cpus=0.4)
SPLIT = ScoringLayout("split", (1,), 2, 64, worker_cpus=0.2, scorer_cpus=0.1)
FEW = replace(SPLIT, decoders=1)


class Quiet:
    """A stopper that nobody asks to stop, and a watch."""

    reason = None
    avoided = frozenset()

    def progressed(self):
        pass


def scored(blocks, layout, tmp_path, *, quiet=None, sleep_s=0.0, **stages):
    job = ScoringJob(
        None, costless.ONE_POOL, None, 1, tmp_path, None, decode_limit_s=sleep_s, decode_bytes=100
    )
    quiet = quiet or Quiet()
    with costless.costless(**stages):
        yield from engine.score_blocks(blocks, job, lambda: layout, stopper=quiet, watch=quiet)


def counted(*given, **stages):
    return Counter(report.ref.block for report in scored(*given, **stages))


@pytest.mark.parametrize(
    "layout", [FEW, pytest.param(FUSED, marks=pytest.mark.slow)], ids=["split", "fused"]
)
def test_every_block_is_reported_once_and_what_ends_them_early_is_raised_once_these_are_done(
    ray_cluster, tmp_path, layout
):
    def arriving():
        yield from costless.blocks(20, 40)
        raise StorageError("the store is gone")

    assert counted(costless.blocks(0, 40), layout, tmp_path) == Counter()
    seen = []
    with pytest.raises(StorageError, match="is gone"):
        seen.extend(report.ref.block for report in scored(arriving(), layout, tmp_path))
    assert Counter(seen) == Counter(range(20))


def test_a_stop_hands_back_what_is_not_begun(ray_cluster, tmp_path):
    quiet, blocks = Quiet(), costless.blocks(500, 40)
    one = replace(FUSED, scorers=(1,))
    reports = scored(blocks, one, tmp_path, quiet=quiet, sleep_s=0.05)
    next(reports)
    quiet.reason = "enough"
    reported = []
    with pytest.raises(KeyboardInterrupt, match="enough"):
        reported.extend(reports)
    assert len(reported) < 100
    assert next(blocks).block - len(reported) < 4 * one.most_open


class LastScorer(costless.CostlessScorer):
    """Takes nothing on the first time, as on a node that is to go."""

    def _may_begin(self):
        here = self._job.crumbs / "here"
        goes = here.exists()
        here.touch()
        return goes


@pytest.mark.slow
def test_what_a_leaving_node_hands_back_is_scored_elsewhere(ray_cluster, tmp_path):
    assert counted(costless.blocks(1, 40), FUSED, tmp_path, BlockScorer=LastScorer) == Counter([0])


def die_once(job, ref):
    """As the system's killer of processes would have it, in the middle of a block."""
    grave = job.crumbs / "grave"
    if ref.block == 5 and not grave.exists():
        grave.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class MortalScorer(costless.CostlessScorer):
    def work(self, ref):
        die_once(self._job, ref)
        return super().work(ref)


class MortalDecoder(costless.CostlessDecoder):
    def work(self, ref):
        die_once(self._job, ref)
        return super().work(ref)


class MortalTensorScorer(costless.SleepingScorer):
    def work(self, block):
        die_once(self._job, block.ref)
        return super().work(block)


MORTALS = {
    "BlockScorer": (FUSED, MortalScorer),
    "BlockDecoder": (SPLIT, MortalDecoder),
    "TensorScorer": (SPLIT, MortalTensorScorer),
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", MORTALS)
def test_what_a_lost_process_had_goes_again_and_nothing_else(ray_cluster, tmp_path, stage):
    layout, mortal = MORTALS[stage]
    assert counted(costless.blocks(16, 40), layout, tmp_path, **{stage: mortal}) == Counter(
        range(16)
    )
    assert (tmp_path / "grave").exists()
