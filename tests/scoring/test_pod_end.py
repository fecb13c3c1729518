"""A node that gets SIGTERM while a job runs on it, as the first process of a pod does that is to
go: the run stops in time, resumably.
"""

import json
import signal
import subprocess

import pytest

from ray_app.storage import Store
from tests.make.archives import write_many
from tests.make.leases import is_released
from tests.make.ray_head import BIN, ray_head
from tests.make.runs import ROOT
from tests.make.waiting import wait_until

DRAIN_S = 20


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_run_on_a_pod_that_ends_stops_and_can_be_resumed(tmp_path):
    archive, run = write_many(tmp_path / "archive", 2400), tmp_path / "run"
    with ray_head(RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=str(DRAIN_S)) as head:
        words = ["--ensemble", "tiny", "--set", "block_members=16", "--set", "cluster.grace_s=8"]
        command = ["touchstone", "score", str(archive), "--out", str(run), *words]
        submit = [BIN / "ray", "job", "submit", "--no-wait", "--", *command]
        options = {"env": head.environment | {"PYTHONPATH": str(ROOT)}, "capture_output": True}
        # The agent of the head starts last.
        wait_until(lambda: subprocess.run(submit, timeout=60, **options).returncode == 0, 60)
        wait_until(lambda: len(list(run.rglob("parts*/**/*.parquet"))) > 3, 90)
        head.process.send_signal(signal.SIGTERM)
        [log] = head.logs.glob("job-driver-*.log")
        wait_until(lambda: "\nresume: touchstone score" in log.read_text(), DRAIN_S)
        said = log.read_text()
        head.process.wait(DRAIN_S + 15)
    assert "stopping: this machine will be taken away; running work has 8 s" in said
    assert is_released(Store.open(str(run)))
    assert json.loads((run / "sessions/00001.json").read_text())["state"] == "interrupted"
    assert not (run / "summary.json").exists(), "it was not finished"
