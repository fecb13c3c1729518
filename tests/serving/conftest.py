"""Fixtures of the serving room."""

import socket
from contextlib import contextmanager
from pathlib import Path

import pytest

from ray_app.serving import ServeConfig
from tests.serving.in_process import local_endpoint

REALWORLD = Path(__file__).resolve().parents[3] / "shared" / "realworld"


@pytest.fixture(scope="session")
def local():
    """(url, app) of the whole application without Ray, with the shipped ensemble."""
    with local_endpoint() as running:
        yield running


@pytest.fixture(scope="session")
def realworld():
    """Real photographs and generated images, by path; skipped where ../shared is not."""
    if not REALWORLD.is_dir():
        pytest.skip("../shared/realworld is not here")
    return sorted(path for path in REALWORLD.rglob("*") if path.is_file() and path.suffix != ".md")


@pytest.fixture(scope="session")
def free_port():
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def served(ray_cluster, free_port):
    """The URL of the endpoint on a local Ray, as `touchstone serve` starts it."""
    with serving(ServeConfig(), free_port) as url:
        yield url


@contextmanager
def serving(config, port):
    """The endpoint on the Ray that runs; its URL."""
    from ray_app.scoring import ClusterConfig
    from ray_app.serving.running import endpoint

    with endpoint(config, "127.0.0.1", port, ClusterConfig(cpus=2)) as url:
        yield url
