"""Fixtures that several rooms share."""

import gc
import os
import resource
import secrets
from collections import Counter
from pathlib import Path

import pytest

from tests.s3_server import S3Server

# Every Ray of a test obeys this run alone: those that tests start by hand inherit it, those of the product make a secret of their own.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

# One thread per process of tests: small tensors gain nothing from a second one, and on a busy machine threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Processes that tests let die by a signal leave no core file, which would lie in the checkout.
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

MAKEFILE = Path(__file__).resolve().parents[1] / "Makefile"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What uses the shared Ray is marked so, since `make test` runs it in a process of its own, which looks in RAY_TESTS alone."""
    [paths] = [line.split()[2:] for line in MAKEFILE.read_text().splitlines() if line.startswith("RAY_TESTS :=")]
    for item in items:
        if "ray_cluster" in item.fixturenames:
            item.add_marker(pytest.mark.ray)
        if item.get_closest_marker("ray") and not item.get_closest_marker("slow") and not item.nodeid.startswith(tuple(paths)):
            raise pytest.UsageError(
                f"{item.nodeid} starts a Ray and lies outside RAY_TESTS of the Makefile: `make test` would leave it out"
            )


def pytest_collection_finish():
    """What is loaded by now stays: a collection of garbage that looks through all of torch each time takes seconds."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Given back before the process ends, or extension modules would complain of what is left of them."""
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter):
    """Seconds per package of tests, the slowest first."""
    seconds = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds["/".join(Path(report.location[0]).parts[:2])] += report.duration
    if len(seconds) > 1:
        terminalreporter.section("seconds per package")
        terminalreporter.write_line("  ".join(f"{package} {spent:.0f}" for package, spent in seconds.most_common()))


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """A running S3 server; the AWS_* variables of this process and its children point at it."""
    environment = pytest.MonkeyPatch()
    with S3Server.start(tmp_path_factory.mktemp("s3")) as server:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        environment.delenv("AWS_PROFILE", raising=False)
        yield server
        environment.undo()


@pytest.fixture(scope="session")
def ray_cluster(s3):
    """One local Ray; after `s3`, since workers inherit the environment that finds the server."""
    from ray_app.cluster.config import ClusterConfig
    from ray_app.cluster.ray_cluster import cluster

    with cluster(ClusterConfig(cpus=2, object_store_bytes=200 * 2**20)):
        yield


@pytest.fixture
def off_ray():
    """Runs that the test starts have their stages in this process."""
    from tests.scoring.stages import without_ray

    with without_ray():
        yield


@pytest.fixture(scope="session")
def eight(tmp_path_factory):
    """An ensemble card over eight small detectors with seeded weights, in a folder of their own."""
    from tests.scoring.eight import write_eight

    return write_eight(tmp_path_factory.mktemp("eight"))


@pytest.fixture(scope="session")
def wheel_environment():
    """The wheel of this tree, installed in an environment that has nothing else: see tests/wheel.py."""
    from tests.wheel import WheelEnvironment

    return WheelEnvironment.of_this_tree()
