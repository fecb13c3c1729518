"""Reasons to stop, what workers are told of them, and runs that stop before everything is scored."""

import os
import signal

import pytest

from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.shutdown import NOTE_EVERY_S, StopNote, Stopper
from ray_app.errors import RESUMABLE, ExitCode, StorageError
from ray_app.runs import RunDirectory
from ray_app.scoring.config import Prices
from ray_app.storage import Store
from tests.scoring.conftest import files_below


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def said():
    return []


@pytest.fixture
def stopper(store, clock, said):
    return Stopper(store, 3, say=said.append, clock=clock)


def test_workers_learn_of_a_stop_from_their_own_session_only(store, clock, stopper, said):
    note, earlier = StopNote(store, 3, "here", clock), StopNote(store, 2, "here", clock)
    assert not note.closes_intake()
    stopper.ask("--max-hours 2 is over", 60)
    stopper.tell()
    assert not note.closes_intake(), "the note was read twice within a second"
    clock.now += NOTE_EVERY_S
    assert note.closes_intake()
    assert not earlier.closes_intake()
    assert "--max-hours 2 is over" in said[0]


def test_a_node_that_will_be_taken_away_takes_no_more_while_the_others_go_on(store, clock, stopper):
    stopper.avoid({"there"})
    stopper.tell()
    assert StopNote(store, 3, "there", clock).closes_intake()
    assert not StopNote(store, 3, "here", clock).closes_intake()
    assert stopper.reason is None
    assert not stopper.overdue


def test_the_first_reason_is_kept_and_the_shortest_time(clock, stopper):
    stopper.ask("--max-cost 10 is spent", 60)
    stopper.ask("SIGTERM", 25)
    assert stopper.reason == "--max-cost 10 is spent"
    clock.now += 24
    assert not stopper.overdue
    clock.now += 1
    assert stopper.overdue


def test_a_configured_grace_time_replaces_all(store, clock):
    stopper = Stopper(store, 1, say=print, grace_s=5, clock=clock)
    stopper.ask("SIGTERM", 25)
    clock.now += 5
    assert stopper.overdue


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_interrupts(stopper, store, signum):
    before = signal.getsignal(signum)
    with stopper.listening():
        os.kill(os.getpid(), signum)
        assert stopper.reason == signum.name
        stopper.tell()
        assert store.exists("stop.00003.json")
        with pytest.raises(KeyboardInterrupt, match=signum.name):
            os.kill(os.getpid(), signum)
    assert signal.getsignal(signum) is before
    assert not store.exists("stop.00003.json")


def test_a_note_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("no folder")
    stopper = Stopper(Store.open(str(tmp_path / "file")), 1, say=print)
    stopper.ask("SIGTERM", 25)
    with pytest.raises(StorageError):
        stopper.tell()


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit",
    [
        pytest.param({"max_hours": 1e-6}, id="hours"),
        pytest.param({"max_cost": 1e-9, "prices": Prices(per_hour=1.0)}, id="cost", marks=pytest.mark.slow),
    ],
)
def test_a_limit_stops_intake_and_the_same_call_resumes(score_on_ray, archive, tmp_path, limit, capsys):
    with pytest.raises(KeyboardInterrupt) as caught:
        score_on_ray(archive, **limit, block_members=2, batch_slots=2, cluster=ClusterConfig(grace_s=20))
    assert RESUMABLE in caught.value.__notes__
    assert f"stopping: --{next(iter(limit)).replace('_', '-')}" in capsys.readouterr().err
    run = RunDirectory.open(str(tmp_path / "run"))
    assert run.read_json("sessions/00001.json")["state"] == "interrupted"
    assert not run.store.exists("lease.json")
    assert not run.store.exists("stop.00001.json")
    committed = run.read_json("sessions/00001.json")["rows"]
    finished, rows = score_on_ray(archive, block_members=2, batch_slots=2)
    assert len(rows) == len(files_below(archive))
    assert finished.summary["session"]["rows"] == len(rows) - committed
    assert finished.exit_code is ExitCode.DONE
