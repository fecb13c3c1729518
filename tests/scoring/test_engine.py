"""Which blocks go where and come back: the engine on a real local Ray, with pipelines whose work costs nothing."""

import os
import signal
from collections import Counter

import pytest
import ray

from benchmarks import costless
from ray_app.archives import BlockRef
from ray_app.errors import ClusterError, ConfigError
from ray_app.scoring import engine, messages, pipelines, workers
from ray_app.scoring.layout import ScoringLayout

FUSED = ScoringLayout("fused", (2,), 0, 64, worker_cpus=0.4)
SPLIT = ScoringLayout("split", (2,), 2, 64, worker_cpus=0.2, scorer_cpus=0.1, piece_members=16, piece_bytes=16_000)


class Quiet:
    """A stopper that nobody asks to stop, and a watch."""

    reason = None
    avoided = frozenset()

    def progressed(self):
        pass


def scored(blocks, layout, tmp_path, *, quiet=None, layouts=None, sleep_s=0.0):
    job = workers.ScoringJob(None, costless.ONE_POOL, None, 1, tmp_path, None, decode_limit_s=sleep_s, decode_bytes=100)
    quiet = quiet or Quiet()
    return engine.score_blocks(blocks, job, layouts or (lambda: layout), stopper=quiet, watch=quiet)


@pytest.fixture
def costless_pipelines(ray_cluster, monkeypatch):
    monkeypatch.setattr(pipelines, "FusedPipeline", costless.CostlessFused)
    monkeypatch.setattr(pipelines, "SplitPipeline", costless.CostlessSplit)


@pytest.mark.parametrize("layout", [FUSED, SPLIT], ids=["fused", "split"])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_every_block_is_reported_once(costless_pipelines, tmp_path, layout, count):
    found = Counter(report.ref.block for report in scored(costless.blocks(count, 40), layout, tmp_path))
    assert found == Counter(range(count))


def test_blocks_that_are_not_known_yet_are_waited_for_while_others_end(costless_pipelines, tmp_path):
    """A listing that goes on: the first block is reported before the last one is known."""
    reported = []

    def listing():
        yield from costless.blocks(2, 40)
        while len(reported) < 2:
            yield None
        yield BlockRef(1, 0, 40, 4000, "part-00000-00000.parquet", 0)

    for report in scored(listing(), FUSED, tmp_path):
        reported.append((report.ref.manifest, report.ref.block))
    assert sorted(reported) == [(0, 0), (0, 1), (1, 0)]


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


def test_what_a_lost_pipeline_had_goes_again_and_nothing_else(costless_pipelines, tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "FusedPipeline", MortalPipeline)
    found = Counter(report.ref.block for report in scored(costless.blocks(60, 40), FUSED, tmp_path))
    assert (tmp_path / "grave").exists()
    assert found == Counter(range(60))


class LostPipeline(costless.CostlessFused):
    def turn(self, refs, orders):
        os.kill(os.getpid(), signal.SIGKILL)


def test_pipelines_that_are_always_lost_end_the_run(costless_pipelines, tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "FusedPipeline", LostPipeline)
    monkeypatch.setattr(engine, "MOST_LOST", 1)
    one = ScoringLayout("fused", (1,), 0, 64, worker_cpus=0.4)
    with pytest.raises(ClusterError, match="the pipeline failed") as caught:
        list(scored(costless.blocks(3, 40), one, tmp_path))
    assert "resumes" in caught.value.hint


def test_want_of_memory_names_the_setting():
    assert "cluster.workers" in engine._translated(ray.exceptions.OutOfMemoryError("the node was short of memory")).hint


class Refusing(costless.CostlessDecoder):
    def work(self, message):
        raise ConfigError("no such thing", hint="another")


class RefusingPipeline(costless.CostlessSplit):
    decoder = Refusing


def test_what_a_stage_meets_arrives_whole(costless_pipelines, tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "SplitPipeline", RefusingPipeline)
    with pytest.raises(ConfigError, match="no such thing") as caught:
        list(scored(costless.blocks(3, 40), SPLIT, tmp_path))
    assert caught.value.hint == "another"


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


def test_a_decoder_that_dies_costs_its_pieces_another_try(costless_pipelines, tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "SplitPipeline", DyingPipeline)
    found = Counter(report.ref.block for report in scored(costless.blocks(40, 40), SPLIT, tmp_path))
    assert (tmp_path / "grave").exists()
    assert found == Counter(range(40))


def test_pipelines_are_added_while_the_run_goes_on(costless_pipelines, tmp_path, monkeypatch):
    """Nodes that come late are at work with the next look at the cluster, not with the next wave."""
    monkeypatch.setattr(engine, "LAYOUT_EVERY_S", 0.0)
    started = []
    begun = engine.PipelinePool._started
    monkeypatch.setattr(engine.PipelinePool, "_started", lambda pool: started.append(len(started)) or begun(pool))
    size, reported = [1], 0

    def layout():
        return ScoringLayout("fused", (size[0],), 0, 64, worker_cpus=0.4)

    for _ in scored(costless.blocks(200, 40), None, tmp_path, layouts=layout, sleep_s=0.02):
        reported += 1
        if reported == 5:
            assert started == [0]
            size[0] = 2
    assert started == [0, 1]
    assert reported == 200


def test_a_worker_that_was_started_again_between_two_pieces_loads_before_it_works(tmp_path):
    """Ray starts one that died when nobody asked it anything, and its pipeline hears nothing of that."""
    job = workers.ScoringJob(None, costless.ONE_POOL, None, 1, tmp_path, None, decode_limit_s=0.0)
    [ref] = costless.blocks(1, 16)
    scored_piece = costless.SleepingScorer(job, ("null",), at_once=False).take(messages.OpenPiece(ref, 0, "a.jpg", messages.BlockWork()))
    assert isinstance(scored_piece, messages.OpenPiece)


class DyingScorer(costless.SleepingScorer):
    """Dies once in the middle of a piece."""

    def work(self, message):
        grave = self._job.crumbs / "grave"
        if not grave.exists():
            grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().work(message)


class ScorerDiesPipeline(costless.CostlessSplit):
    scorer = DyingScorer


def test_a_pipeline_that_loses_all_workers_of_a_stage_gives_its_blocks_back(ray_cluster, tmp_path):
    """So that others can have them: a GPU that went may never come back. If it does, the pipeline takes blocks again."""
    job = workers.ScoringJob(None, costless.ONE_POOL, None, 1, tmp_path, None, decode_limit_s=0.0, decode_bytes=100)
    actor = ray.remote(ScorerDiesPipeline).options(num_cpus=0.1).remote(job, SPLIT, 1e9)
    waiting, back, reported, room = list(costless.blocks(3, 40)), [], set(), 0
    while len(reported) < 3:
        turn = ray.get(actor.turn.remote(waiting if room else [], messages.Orders(shares=(1, 1))))
        waiting, room = [] if room else waiting, turn.room
        for one in turn.messages:
            if isinstance(one, messages.HandedBack):
                back.append(one.ref)
                waiting.append(one.ref)
            else:
                reported.add(one.ref.block)
    ray.kill(actor)
    assert back
    assert reported == {0, 1, 2}
