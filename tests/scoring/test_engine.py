"""Which blocks go where and come back: the engine on a real local Ray, with stages whose work costs
nothing.
"""

import os
import signal
from collections import Counter
from dataclasses import replace

import pytest

from ray_app.cluster.ray_cluster import own_node
from ray_app.runs import RunDirectory
from ray_app.scoring import engine
from ray_app.scoring.layout import ScoringLayout
from ray_app.scoring.orders import OrderWriter
from ray_app.scoring.stages import ScoringJob
from ray_app.scoring.turns import Turn
from tests.scoring import costless

LEASE = 7

FUSED = ScoringLayout("fused", (2,), 0, 64, worker_cpus=0.4)
SPLIT = ScoringLayout("split", (1,), 2, 64, worker_cpus=0.2, scorer_cpus=0.1)
FEW = replace(SPLIT, decoders=1)


class Quiet:
    """A watch that nobody needs."""

    def progressed(self):
        pass


def run_at(folder):
    return RunDirectory.open(str(folder / "run"))


def scored(blocks, layout, tmp_path, *, orders=None, sleep_s=0.0, **stages):
    """The reports of one turn over these blocks, as the engine yields them."""
    run = run_at(tmp_path)
    job = ScoringJob(
        run,
        costless.ONE_POOL,
        None,
        1,
        tmp_path,
        None,
        decode_limit_s=sleep_s,
        decode_bytes=100,
        lease=LEASE,
    )
    orders = orders or OrderWriter(run.store, LEASE, layout.most_open)
    turn = Turn(run, LEASE, orders.begin_turn(), blocks)
    with costless.costless(**stages):
        yield from engine.score_turn(turn, job, layout, orders, Quiet())


def counted(*given, **stages):
    return Counter(report.ref.block for report in scored(*given, **stages))


@pytest.mark.parametrize(
    "layout", [FEW, pytest.param(FUSED, marks=pytest.mark.slow)], ids=["split", "fused"]
)
def test_every_block_is_reported_once(ray_cluster, tmp_path, layout):
    assert counted(costless.block_list(0, 40), layout, tmp_path) == Counter()
    assert counted(costless.block_list(60, 40), layout, tmp_path) == Counter(range(60))


def test_a_stop_leaves_blocks_that_are_not_started(ray_cluster, tmp_path):
    one = replace(FUSED, scorers=(1,))
    orders = OrderWriter(run_at(tmp_path).store, LEASE, one.most_open)
    reports = scored(costless.block_list(500, 40), one, tmp_path, orders=orders, sleep_s=0.05)
    next(reports)
    orders.stop(True, ())
    assert len(list(reports)) < 3 * one.most_open


def test_orders_of_an_earlier_command_stop_nothing(ray_cluster, tmp_path):
    earlier = OrderWriter(run_at(tmp_path).store, LEASE - 1, 5)
    earlier.begin_turn()
    earlier.stop(True, ())
    assert counted(costless.block_list(5, 40), FEW, tmp_path) == Counter(range(5))


def test_a_node_that_leaves_starts_no_block(ray_cluster, tmp_path):
    orders = OrderWriter(run_at(tmp_path).store, LEASE, FUSED.most_open)
    orders.stop(False, [own_node()])
    assert list(scored(costless.block_list(5, 40), FUSED, tmp_path, orders=orders)) == []


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
    assert counted(costless.block_list(16, 40), layout, tmp_path, **{stage: mortal}) == Counter(
        range(16)
    )
    assert (tmp_path / "grave").exists()
