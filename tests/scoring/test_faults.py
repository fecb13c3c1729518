"""A worker that dies costs nothing; a terminated run says how to resume and exits 130."""

import os
import signal
from pathlib import Path

import pytest

from ray_app.runs import RunDirectory
from ray_app.simulation.archive import write_photographs
from tests.scoring.conftest import family_of, kill_family, start, wait_until

pytestmark = pytest.mark.ray


def scoring_workers(process):
    names = {}
    for pid in family_of(process.pid):
        try:
            names[pid] = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
    return [pid for pid, name in names.items() if b"BlockScorer" in name]


@pytest.mark.timeout(400)
def test_a_killed_worker_costs_nothing_and_sigterm_is_resumable(tmp_path):
    source, out = tmp_path / "photos", tmp_path / "run"
    write_photographs(source, 1200, size=(640, 480))
    run = RunDirectory.open(str(out))
    process = start(str(source), str(out))
    try:
        wait_until(lambda: run.parts(0) or process.poll() is not None)
        victim = wait_until(lambda: scoring_workers(process))[0]
        os.kill(victim, signal.SIGKILL)
        committed = len(run.parts(0))
        # More than was in flight: the pool goes on, with the dead worker's block given to another.
        wait_until(lambda: len(run.parts(0)) >= committed + 6 or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    finally:
        kill_family(process)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == f"interrupted; what is committed is kept. The same command resumes {out}"
    assert not run.store.exists("lease.json")
    assert run.read_json("sessions/00001.json")["state"] == "interrupted"
