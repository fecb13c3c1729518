"""`ray job submit` on a real head: a job that succeeds, one that fails, and the size of what is uploaded."""

import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.scoring.conftest import kill_family, rows_of

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head():
    """A head node on free ports; ended by the ids of its own processes."""
    gcs, dashboard, agent, client, grpc, metrics = free_ports(6)
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{BIN}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory(prefix="ts", dir="/tmp") as folder:
        command = [
            BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=209715200", f"--temp-dir={folder}",
            f"--port={gcs}", f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
            f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}",
        ]  # fmt: skip
        log = open(Path(folder) / "start.log", "w")  # noqa: SIM115
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        environment["RAY_ADDRESS"] = environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
        try:
            wait_for_dashboard(dashboard, process)
            yield environment
        finally:
            kill_family(process)
            log.close()


def wait_for_dashboard(port, process):
    import time
    import urllib.error
    import urllib.request

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError("the dashboard did not come up")


def submit(environment, *arguments):
    command = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", "jobs/score.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)


@pytest.mark.timeout(900)
def test_a_submitted_job_scores_and_a_failing_one_says_what_to_do(head, archive, tmp_path):
    out = tmp_path / "run"
    done = submit(head, "--config", "configs/score/laptop.yaml", archive, "--out", out)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout
    assert len(rows_of(out)) == len(list(path for path in Path(archive).rglob("*") if path.is_file()))

    failed = submit(head, "--config", "configs/score/laptop.yaml", tmp_path / "nowhere", "--out", tmp_path / "other")
    assert failed.returncode == 1
    assert "failed" in failed.stdout + failed.stderr
    assert "nowhere" in failed.stdout
    assert "exit code 2" in failed.stdout + failed.stderr


def test_what_is_uploaded_is_small(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    assert package.stat().st_size < 10 * 2**20
    assert re.search(
        r"jobs/score.py", subprocess.run([sys.executable, "-m", "zipfile", "-l", str(package)], capture_output=True, text=True).stdout
    )
