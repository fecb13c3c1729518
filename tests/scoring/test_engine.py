"""Which blocks go where and come back: the engine on a real local Ray, with pipelines whose work costs nothing."""

import os
import signal
from collections import Counter

import pytest

from benchmarks import costless
from ray_app.scoring import engine, messages, pipelines, workers
from ray_app.scoring.layout import ScoringLayout

FUSED = ScoringLayout("fused", (2,), 0, 64, worker_cpus=0.4)
SPLIT = ScoringLayout("split", (1,), 2, 64, worker_cpus=0.2, scorer_cpus=0.1, piece_members=16, piece_bytes=16_000)


class Quiet:
    """A stopper that nobody asks to stop, and a watch."""

    reason = None
    avoided = frozenset()

    def progressed(self):
        pass


def scored(blocks, layout, tmp_path, *, quiet=None, sleep_s=0.0):
    job = workers.ScoringJob(None, costless.ONE_POOL, None, 1, tmp_path, None, decode_limit_s=sleep_s, decode_bytes=100)
    quiet = quiet or Quiet()
    return engine.score_blocks(blocks, job, lambda: layout, stopper=quiet, watch=quiet)


def counted(*given):
    return Counter(report.ref.block for report in scored(*given))


@pytest.fixture
def costless_pipelines(ray_cluster, monkeypatch):
    monkeypatch.setattr(pipelines, "FusedPipeline", costless.CostlessFused)
    monkeypatch.setattr(pipelines, "SplitPipeline", costless.CostlessSplit)


def test_every_block_is_reported_once(costless_pipelines, tmp_path):
    assert counted(costless.blocks(0, 40), FUSED, tmp_path) == Counter()
    assert counted(costless.blocks(100, 40), FUSED, tmp_path) == Counter(range(100))


def test_a_stop_hands_back_what_is_not_begun(costless_pipelines, tmp_path):
    quiet = Quiet()
    reports = scored(costless.blocks(500, 40), FUSED, tmp_path, quiet=quiet, sleep_s=0.05)
    next(reports)
    quiet.reason = "enough"
    reported = []
    with pytest.raises(KeyboardInterrupt, match="enough"):
        reported.extend(reports)
    assert len(reported) < 150


class MortalPipeline(costless.CostlessFused):
    """Dies once in the middle of a block, as the system's killer of processes would have it."""

    def _say(self, *said):
        grave = self._job.crumbs / "grave"
        if any(isinstance(one, messages.BlockReport) and one.ref.block == 20 for one in said) and not grave.exists():
            grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super()._say(*said)


class Dying(costless.CostlessDecoder):
    """Dies once in the middle of a piece."""

    def work(self, message):
        grave = self._job.crumbs / "grave"
        if message.ref.block == 5 and not grave.exists():
            grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().work(message)


class DyingPipeline(costless.CostlessSplit):
    decoder = Dying


@pytest.mark.parametrize(("layout", "pipeline"), [(FUSED, MortalPipeline), (SPLIT, DyingPipeline)], ids=["fused", "split"])
def test_what_a_lost_worker_had_goes_again_and_nothing_else(costless_pipelines, tmp_path, monkeypatch, layout, pipeline):
    monkeypatch.setattr(pipelines, f"{layout.kind.capitalize()}Pipeline", pipeline)
    assert counted(costless.blocks(40, 40), layout, tmp_path) == Counter(range(40))
    assert (tmp_path / "grave").exists()
