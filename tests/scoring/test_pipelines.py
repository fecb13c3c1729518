"""What a pipeline of one core does at once, without Ray."""

import threading

import pytest

from benchmarks import costless
from ray_app.scoring import messages, pipelines, workers

WAIT_S = 60.0


class Overlapping:
    """A scorer whose first block is not committed before the next one is begun."""

    def __init__(self, job):
        self.is_begun = threading.Event()

    def take(self, ref):
        if ref.block == 1:
            self.is_begun.set()
        return ref

    def commit(self, ref):
        assert self.is_begun.wait(WAIT_S)
        return messages.BlockReport(ref, 0, costless.work())


class OverlappingPipeline(pipelines.FusedPipeline):
    scorer = Overlapping


class Failing:
    """A scorer whose blocks cannot be written."""

    def __init__(self, job):
        self.commit = workers.BlockScorer(job, at_once=False).commit

    def take(self, ref):
        return workers.ScoredBlock(ref, None, (), None, messages.BlockWork())


class FailingPipeline(pipelines.FusedPipeline):
    scorer = Failing


def said_by(kind, count, tmp_path):
    """What a pipeline of this kind says of `count` blocks."""
    job = workers.ScoringJob(None, costless.ONE_POOL, None, 1, tmp_path, None)
    pipeline, said = kind(job), []
    refs = list(costless.blocks(count, 4))
    while len(said) < count:
        turn = pipeline.turn(refs, messages.Orders())
        said += turn.messages
        refs = [message.ref for message in turn.messages if isinstance(message, messages.HandedBack)]  # given before it was able
        said = [message for message in said if not isinstance(message, messages.HandedBack)]
    return said


@pytest.fixture(autouse=True)
def off_ray(monkeypatch):
    monkeypatch.setattr(pipelines, "own_node", lambda: "here")


def test_a_block_is_committed_while_the_next_one_is_scored(tmp_path):
    assert [report.ref.block for report in said_by(OverlappingPipeline, 2, tmp_path)] == [0, 1]


def test_a_block_that_cannot_be_written_is_said_with_its_error(tmp_path):
    (failed,) = said_by(FailingPipeline, 1, tmp_path)
    assert failed.error.message.startswith("BlockScorer failed")
