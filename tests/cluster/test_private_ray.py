"""The folder of a local Ray, and the environment that its processes inherit. No Ray is started."""

import os
import subprocess
import sys

import pytest

from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import cluster
from ray_app.cluster.ray_folder import private_folder

HOLDING = "from ray_app.cluster.ray_folder import private_folder\nwith private_folder() as folder:\n    print(folder, flush=True)\n    input()"

USERS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_AUTH_TOKEN": "of-a-cluster",
    "RAY_AUTH_TOKEN_PATH": "/a/file",
    "TOUCHSTONE_TOKENS": "a",
    "MINE": "b",
}
TWICE = """
import os
from ray_app.cluster.local_ray import private_ray
names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "TOUCHSTONE_TOKENS", "MINE")
before = [os.environ.get(name) for name in names]
for _ in range(2):
    with private_ray(("MINE",)) as folder:
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert not {"RAY_AUTH_TOKEN_PATH", "TOUCHSTONE_TOKENS", "MINE"} & os.environ.keys()
        print(os.environ["RAY_AUTH_TOKEN"])
    assert [os.environ.get(name) for name in names] == before
"""


@pytest.fixture
def base(monkeypatch, tmp_path_factory):
    """Where folders are made; it has a short name, as sockets need."""
    base = tmp_path_factory.mktemp("b")
    short = f"/tmp/b{os.getpid()}"
    os.symlink(base, short)
    monkeypatch.setenv("RAY_TMPDIR", short)
    yield base
    os.unlink(short)


def run_program(program, environment):
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


def names(base):
    return {path.name for path in base.iterdir()}


def test_private_folder_removes_only_folders_of_ended_processes(base):
    with private_folder() as ended:
        assert ended.stat().st_mode & 0o777 == 0o700
    assert names(base) == {ended.name}  # with the logs in it
    (base / "ts-of-others").mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    holding = subprocess.Popen([sys.executable, "-c", HOLDING], **pipes)
    held = os.path.basename(holding.stdout.readline().strip())
    with private_folder() as mine:
        assert names(base) == {held, mine.name, "ts-of-others"}
        holding.kill()
        holding.communicate()
        with private_folder() as another:
            assert names(base) == {mine.name, another.name, "ts-of-others"}


def test_base_too_long_for_sockets_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 8)))
    with private_folder() as folder:
        assert str(folder.parent) == "/tmp"


def test_environment_of_a_private_ray_is_restored(base):
    """In a process of its own: this one may be connected to a Ray, which asks for its secret all
    the time.
    """
    done = run_program(TWICE, {**os.environ, **USERS})
    assert done.returncode == 0, done.stderr
    seen = done.stdout.split()
    assert len({*seen, "of-a-cluster"}) == 3
    assert min(map(len, seen)) == 64


IMPORTED_BEFORE = """
import ray
from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import cluster
from ray_app.errors import ClusterError
try:
    with cluster(ClusterConfig()):
        print("started")
except ClusterError as error:
    print(error.message, error.exit_code)
"""


def test_local_ray_is_refused_if_ray_was_imported_before():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = run_program(IMPORTED_BEFORE, environment)
    assert "Ray was imported before Touchstone" in done.stdout, done.stdout + done.stderr
    assert done.stdout.endswith("5\n")


def test_running_ray_is_left_as_it_is(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with cluster(ClusterConfig()):
        assert os.environ["RAY_AUTH_MODE"] == "disabled"


SERVING = """
import sys
from ray_app.cluster.config import ClusterConfig
from ray_app.serving import ray_server
from ray_app.serving.config import ServeConfig

def start(*_, **__):
    sys.exit("Ray is imported" if "ray" in sys.modules else 0)

ray_server.cluster = start
with ray_server.endpoint(ServeConfig(ensembles=("tiny",)), "127.0.0.1", 0, ClusterConfig()):
    sys.exit("Ray was not started")
"""


def test_endpoint_imports_ray_only_when_it_starts_ray():
    done = run_program(SERVING, dict(os.environ))
    assert (done.returncode, done.stderr) == (0, "")
