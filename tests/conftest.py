"""Fixtures that several rooms share."""

import atexit
import gc
import os
import resource
import secrets
import shutil
import signal
import tempfile
import threading
from collections import Counter
from pathlib import Path

import hypothesis
import pytest
from xdist.scheduler import LoadGroupScheduling

from tests.groups import GROUPS, group_of
from tests.make.servers.s3 import S3Server

# Every Ray of a test accepts requests from this run alone. Ray reads these variables when a test
# module imports it.
os.environ |= {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}

# No test reads the weights or trust lists that whoever runs them has fetched.
os.environ["TOUCHSTONE_CACHE"] = os.path.join(
    tempfile.gettempdir(), "touchstone-tests-fetch-nothing"
)

# One thread per process of tests: small tensors gain nothing from a second one, and on a busy
# machine threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Processes that tests let die by a signal leave no core file, which would lie in the checkout.
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

# The same cases on every machine, however slow or busy it is; nothing is kept beside the checkout.
hypothesis.settings.register_profile(
    "any machine",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any machine")

# A test that sends SIGINT means it: who starts the tests in the background of a shell would have it
# ignored in all their children.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--group",
        choices=tuple(GROUPS),
        help="of the slow tests those of this group (tests/groups.py)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """What starts a Ray comes first, in one process of tests, since several Rays would share the
    cores. A slow test has a group.
    """
    for item in items:
        if "ray_cluster" in item.fixturenames:
            item.add_marker(pytest.mark.ray)
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))
            # Not in pyproject.toml: pytest would import Ray before the variables above are set.
            item.add_marker(
                pytest.mark.filterwarnings("error::ray.util.annotations.RayDeprecationWarning")
            )
    slow = {item: group_of(item.path) for item in items if item.get_closest_marker("slow")}
    if lost := sorted({str(item.path) for item, group in slow.items() if group is None}):
        raise pytest.UsageError(
            f"slow tests that no group of tests/groups.py has: {', '.join(lost)}"
        )
    if group := config.getoption("group"):
        config.hook.pytest_deselected(items=[item for item in items if slow.get(item) != group])
        items[:] = [item for item in items if slow.get(item) == group]
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


def pytest_xdist_auto_num_workers(config):
    """As many processes as cores that these tests may use, and two on one core: one may wait for a
    Ray.
    """
    return max(2, len(os.sched_getaffinity(0)))


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


class ByFile(LoadGroupScheduling):
    """A file's tests in one process, what starts a Ray in another."""

    def _split_scope(self, nodeid):
        scope = super()._split_scope(nodeid)
        return nodeid.partition("::")[0] if scope == nodeid else scope


# What is loaded before the first test stays: a collection of garbage that looks through all of
# torch each time takes seconds. Given back before the process ends, or extension modules would
# complain of what is left of them.
gc.disable()
atexit.register(gc.unfreeze)


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter):
    """Seconds per package of tests, the slowest first."""
    seconds = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds["/".join(Path(report.location[0]).parts[:2])] += report.duration
    if len(seconds) > 1:
        terminalreporter.section("seconds per package")
        terminalreporter.write_line(
            "  ".join(f"{package} {spent:.0f}" for package, spent in seconds.most_common())
        )


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
    from tests.make.stages import without_ray

    with without_ray():
        yield


@pytest.fixture
def score(tmp_path):
    """Score a source into a run directory and return (finished, rows by path); the stages in this
    process.
    """
    from tests.make.runs import score_here

    def run(source, out=None, **settings):
        return score_here(out or tmp_path / "run", source, **settings)

    return run


@pytest.fixture(scope="session")
def sample_archive(tmp_path_factory):
    """An archive of 14 files, five of them odd: a text, cut, empty, CMYK, and animated."""
    from tests.simulation.archive import build_sample_archive

    folder = tmp_path_factory.mktemp("sample") / "archive"
    build_sample_archive(folder, files=14)
    return folder


@pytest.fixture
def archive(sample_archive, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(sample_archive, tmp_path / "archive"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of a few photographs, a file that is none, and one that ends early."""
    from tests.make.real_run import write_photos

    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def plain_run(photos, tmp_path_factory):
    """URL of a run that the demonstration ensemble scored, which has no guarantee."""
    from ray_app.ensembles import load_ensemble_card
    from tests.make.real_run import score_photos

    return score_photos(
        load_ensemble_card("tiny"), photos, tmp_path_factory.mktemp("plain") / "run"
    )


@pytest.fixture
def faulty(monkeypatch):
    """An S3 server that fails as a test says; the AWS_* variables point at it."""
    from tests.make.servers.faulty import FaultyServer

    with FaultyServer() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server


@pytest.fixture(scope="session")
def wild(tmp_path_factory):
    """A web server with hosts of every kind, one for all tests of this process."""
    from tests.make.servers.wild import wild_web

    with wild_web(tmp_path_factory.mktemp("wild")) as web:
        yield web


@pytest.fixture(scope="module")
def one_thread():
    """Torch computes in one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def eight(tmp_path_factory):
    """An ensemble card over eight small detectors with seeded weights, in a folder of their own."""
    from tests.make.cards import write_eight

    return write_eight(tmp_path_factory.mktemp("eight"))


@pytest.fixture(scope="session")
def wheel_environment():
    """The wheel of this tree, installed in an environment that has nothing else: see
    tests/make/wheel.py.
    """
    from tests.make.wheel import WheelEnvironment

    return WheelEnvironment.of_this_tree()
