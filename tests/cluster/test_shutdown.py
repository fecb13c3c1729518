"""Reasons to stop, and runs that stop before everything is scored."""

import os
import queue
import signal
import threading

import pytest
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.dashboard.modules.job.job_supervisor import JobSupervisor

from ray_app.cluster.shutdown import ShutdownController, StallWatchdog, job_stop_wait_s
from ray_app.errors import RESUMABLE, ClusterError, ExitCode
from ray_app.runs import RunDirectory
from ray_app.scoring.run import ScoringRun
from ray_app.scoring.session import ScoringSession
from tests.make.leases import is_released
from tests.make.runs import files_below


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stopper(clock):
    """One that keeps what it says."""
    said = []
    made = ShutdownController(say=said.append, clock=clock)
    made.said = said
    return made


def test_leaving_node_is_avoided_and_others_continue(stopper):
    stopper.avoid_nodes({"there"})
    stopper.avoid_nodes(())
    stopper.announce()
    assert stopper.draining_nodes == {"there"}
    assert stopper.reason is None
    assert not stopper.is_overdue
    assert stopper.said == ["1 node will be taken away and get no new work"]


def test_first_reason_and_shortest_time_are_kept(clock, stopper):
    configured = ShutdownController(say=print, grace_s=5, clock=clock)
    configured.request_stop("SIGTERM", 25)
    stopper.request_stop("--max-cost 10 is spent", 60)
    stopper.request_stop("SIGTERM", 25)
    assert stopper.reason == "--max-cost 10 is spent"
    clock.now += 5
    assert configured.is_overdue
    clock.now += 19
    assert not stopper.is_overdue
    clock.now += 1
    assert stopper.is_overdue


def test_standstill_interrupts_a_waiting_main_thread(stopper):
    """As Ray Data's consumer did while all nodes were drained: a flag that Python reads between two
    instructions would not wake it.
    """
    silence: queue.Queue[None] = queue.Queue()
    rescue = threading.Timer(10.0, silence.put, [None])
    rescue.start()
    try:
        with (
            pytest.raises(ClusterError, match="the workers finished nothing"),
            stopper.handle_signals(),
            StallWatchdog(0.1, stopper, lambda: None),
        ):
            silence.get()
        assert rescue.is_alive(), "it was woken by what it waited for"
    finally:
        rescue.cancel()
        rescue.join()


def test_resting_run_is_no_standstill(stopper):
    watch = StallWatchdog(-1.0, stopper, lambda: None)  # each moment is one
    watch.is_idle = True
    watch._check()
    watch.progressed()
    with pytest.raises(ClusterError, match="the workers finished nothing"):
        watch._check()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_requests_a_stop_and_second_interrupts(stopper, signum):
    before = signal.getsignal(signum)
    with stopper.handle_signals():
        os.kill(os.getpid(), signum)
        assert stopper.reason == signum.name
        with pytest.raises(KeyboardInterrupt, match=signum.name):
            os.kill(os.getpid(), signum)
    assert signal.getsignal(signum) is before


def test_submitted_job_reports_the_time_ray_leaves_it(clock, monkeypatch):
    assert job_stop_wait_s() is None
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")
    assert job_stop_wait_s() == JobSupervisor.DEFAULT_RAY_JOB_STOP_WAIT_TIME_S
    for wait, configured, left_s, named in (
        (None, None, 0, 3),
        ("60", None, 25, 60),
        ("60", 40, 40, 60),
        ("10", 40, 7, 10),
        ("?", 5, 0, 3),
    ):
        if wait is not None:
            monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", wait)
        said = []
        stopper = ShutdownController(say=said.append, grace_s=configured, clock=clock)
        with stopper.handle_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            stopper.announce()
        [line] = said
        assert line.startswith(f"stopping: SIGTERM; running work has {left_s} s to be committed")
        assert f"Ray kills a job {named} s after its stop: RAY_JOB_STOP_WAIT_TIME_S" in line
        clock.now += left_s
        assert stopper.is_overdue


def test_limits_stop_intake_and_the_same_call_resumes(
    score, archive, tmp_path, monkeypatch, capsys
):
    ticked, tick, committed = threading.Event(), ScoringRun._tick, ScoringSession.add_block
    # Each block waits for the clock to be looked at, as a long one would.
    monkeypatch.setattr(ScoringRun, "_tick", lambda run, *given: (tick(run, *given), ticked.set()))
    monkeypatch.setattr(
        ScoringSession,
        "add_block",
        lambda session, report: (committed(session, report), ticked.wait(20), ticked.clear()),
    )
    small, done = {"block_members": 2, "batch_slots": 2, "cluster": {"grace_s": 20}}, 0
    run = RunDirectory.open(str(tmp_path / "run"))
    for number, limit in enumerate(
        [{"max_hours": 1e-6}, {"max_cost": 1e-9, "prices": {"per_hour": 1.0}}], start=1
    ):
        with pytest.raises(KeyboardInterrupt) as caught:
            score(archive, **limit, **small)
        assert RESUMABLE in caught.value.__notes__
        assert f"stopping: --{next(iter(limit)).replace('_', '-')}" in capsys.readouterr().err
        session = run.read_json(f"sessions/{number:05d}.json")
        assert session["state"] == "interrupted"
        assert is_released(run.store)
        done += session["rows"]
    monkeypatch.undo()
    finished, rows = score(archive, **small)
    assert len(rows) == len(files_below(archive))
    assert 0 < finished.summary["session"]["rows"] == len(rows) - done
    assert finished.exit_code is ExitCode.DONE
