"""Which blocks go where and come back: the engine on a real local Ray, with stages whose work costs
nothing.
"""

import os
import signal
from collections import Counter
from dataclasses import replace

import pytest

from ray_app.cluster.ray_cluster import current_node_id
from ray_app.runs import RunDirectory
from ray_app.scoring import engine
from ray_app.scoring.control import Control, start_control
from ray_app.scoring.layout import ScoringLayout
from ray_app.scoring.stages import ScoringJob
from ray_app.scoring.turns import Turn
from tests.scoring import costless

FUSED = ScoringLayout("fused", (2,), 0, 64, worker_cpus=0.4)
SPLIT = ScoringLayout("split", (1,), 2, 64, worker_cpus=0.2, scorer_cpus=0.1)
FEW = replace(SPLIT, decoders=1)


class Quiet:
    """A watch that nobody needs."""

    def progressed(self):
        pass


def run_at(folder):
    return RunDirectory.open(str(folder / "run"))


def job_in(folder, control, sleep_s=0.0):
    return ScoringJob(
        run_at(folder), costless.ONE_POOL, None, 1, folder, control,
        decode_limit_s=sleep_s, decode_bytes=100,
    )  # fmt: skip


def scored(blocks, layout, folder, *, sleep_s=0.0, avoid_after_first=False, **stages):
    """The reports of one turn over these blocks, as the engine yields them."""
    with start_control(layout.max_open_blocks) as control, costless.costless(**stages):
        turn = Turn(run_at(folder), control, control.begin_turn(), blocks)
        job = job_in(folder, control, sleep_s)
        for report in engine.score_turn(turn, job, layout, Quiet()):
            if avoid_after_first:
                control.stop(False, [current_node_id()])
            yield report


def counted(*given, **stages):
    return Counter(report.ref.block for report in scored(*given, **stages))


@pytest.mark.parametrize(
    ("layout", "blocks"),
    [(FEW, 12), pytest.param(FUSED, 60, marks=pytest.mark.slow)],
    ids=["split", "fused"],
)
def test_engine_reports_every_block_once(ray_cluster, tmp_path, layout, blocks):
    """More blocks than may be in progress."""
    assert counted(costless.block_list(blocks, 40), layout, tmp_path) == Counter(range(blocks))


@pytest.mark.slow
def test_turn_without_blocks_has_no_report(ray_cluster, tmp_path):
    assert counted(costless.block_list(0, 40), FEW, tmp_path) == Counter()


@pytest.mark.slow
def test_leaving_node_starts_no_further_block(ray_cluster, tmp_path):
    one = replace(FUSED, scorers=(1,))
    blocks = costless.block_list(100, 40)
    reports = scored(blocks, one, tmp_path, avoid_after_first=True, sleep_s=0.05)
    assert 0 < len(list(reports)) < 3 * one.max_open_blocks


def test_worker_starts_a_block_only_if_the_control_allows_it(tmp_path):
    control, [block] = Control(5), costless.block_list(1, 40)

    def is_started(node_id, *, is_first=True):
        start = control.begin("BlockDecoder", block.place, is_first=is_first, node_id=node_id)
        if start.is_allowed:
            control.end("BlockDecoder", block.place)
        return start.is_allowed

    for is_stopped, avoided, expected in (
        (False, [], True),
        (False, ["there"], True),
        (False, ["here", "there"], False),
        (True, (), False),
    ):
        control.stop(is_stopped, avoided)
        assert is_started("here") == expected, (is_stopped, avoided)
        assert is_started("here", is_first=False), "a block in progress is completed"


def die_once(job, ref):
    """As the system's killer of processes would have it, in the middle of a block."""
    grave = job.marker_dir / "grave"
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


class MortalTensorScorer(costless.CostlessTensorScorer):
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
def test_blocks_of_a_lost_process_are_repeated_once(ray_cluster, tmp_path, stage):
    layout, mortal = MORTALS[stage]
    found = counted(costless.block_list(16, 40), layout, tmp_path, **{stage: mortal})
    assert found == Counter(range(16))
    assert (tmp_path / "grave").exists()
