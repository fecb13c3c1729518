"""Reasons to stop, and runs that stop before everything is scored."""

import os
import queue
import signal
import threading

import pytest

from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.shutdown import Stopper, Watch, job_stop_wait_s
from ray_app.errors import RESUMABLE, ClusterError, ExitCode
from ray_app.runs import RunDirectory
from ray_app.scoring.config import Prices
from tests.scoring.conftest import files_below


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def said():
    return []


@pytest.fixture
def stopper(clock, said):
    return Stopper(say=said.append, clock=clock)


def test_a_stop_is_announced_once_with_the_time_that_is_left(clock, stopper, said):
    stopper.ask("--max-hours 2 is over", 60)
    clock.now += 10
    stopper.tell()
    stopper.tell()
    assert said == ["stopping: --max-hours 2 is over; running work has 50 s to be committed; a second signal stops at once"]


def test_a_node_that_will_be_taken_away_is_avoided_while_the_others_go_on(stopper, said):
    stopper.avoid({"there"})
    stopper.avoid(())
    stopper.tell()
    assert stopper.avoided == {"there"}
    assert stopper.reason is None
    assert not stopper.overdue
    assert said == ["1 node will be taken away and get no new work"]


def test_the_first_reason_is_kept_and_the_shortest_time(clock, stopper):
    stopper.ask("--max-cost 10 is spent", 60)
    stopper.ask("SIGTERM", 25)
    assert stopper.reason == "--max-cost 10 is spent"
    clock.now += 24
    assert not stopper.overdue
    clock.now += 1
    assert stopper.overdue


def test_a_configured_grace_time_replaces_all(clock):
    stopper = Stopper(say=print, grace_s=5, clock=clock)
    stopper.ask("SIGTERM", 25)
    clock.now += 5
    assert stopper.overdue


def test_a_main_thread_that_waits_for_a_queue_is_interrupted(stopper):
    """As Ray Data's consumer did while all nodes were drained: a flag that Python reads between two instructions would not wake it."""
    silence: queue.Queue[None] = queue.Queue()
    rescue = threading.Timer(10.0, silence.put, [None])
    rescue.start()
    try:
        with pytest.raises(ClusterError, match="no block ended"), stopper.listening(), Watch(0.1, stopper, lambda: None):
            silence.get()
        assert rescue.is_alive(), "it was woken by what it waited for"
    finally:
        rescue.cancel()
        rescue.join()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_interrupts(stopper, signum):
    before = signal.getsignal(signum)
    with stopper.listening():
        os.kill(os.getpid(), signum)
        assert stopper.reason == signum.name
        with pytest.raises(KeyboardInterrupt, match=signum.name):
            os.kill(os.getpid(), signum)
    assert signal.getsignal(signum) is before


@pytest.mark.parametrize(
    ("wait", "configured", "left_s", "named"),
    [
        (None, None, 0, "3 s"),
        ("10", None, 7, "10 s"),
        ("60", None, 25, "60 s"),
        ("60", 40, 40, "60 s"),
        ("10", 40, 7, "10 s"),
        ("?", 5, 0, "3 s"),
    ],
)
def test_a_submitted_job_says_the_time_that_ray_leaves_it(clock, said, monkeypatch, wait, configured, left_s, named):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    if wait is not None:
        monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", wait)
    stopper = Stopper(say=said.append, grace_s=configured, clock=clock)
    with stopper.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        stopper.tell()
    assert said == [
        f"stopping: SIGTERM; running work has {left_s} s to be committed "
        f"(Ray kills a job {named} after its stop: RAY_JOB_STOP_WAIT_TIME_S); a second signal stops at once"
    ]
    clock.now += left_s
    assert stopper.overdue


def test_ray_gives_a_stopped_job_as_long_as_we_say(monkeypatch):
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
    from ray.dashboard.modules.job.job_supervisor import JobSupervisor

    assert job_stop_wait_s() is None
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")
    assert job_stop_wait_s() == JobSupervisor.DEFAULT_RAY_JOB_STOP_WAIT_TIME_S


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
    committed = run.read_json("sessions/00001.json")["rows"]
    finished, rows = score_on_ray(archive, block_members=2, batch_slots=2)
    assert len(rows) == len(files_below(archive))
    assert finished.summary["session"]["rows"] == len(rows) - committed
    assert finished.exit_code is ExitCode.DONE
