"""Fixtures that several rooms share."""

import os
import resource
import secrets

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.s3_server import S3Server

# One Ray at a time: two would share two cores, and every file in a process of its own would start one.
STARTS_RAY = (
    *(
        "tests/scoring/",
        "tests/cluster/",
        "tests/datajobs/download/",
        "tests/datajobs/generate/",
        "tests/training/",
        "tests/evaluation/on_ray/",
    ),
    *("tests/test_readme.py", "tests/test_profile_walk.py", "tests/test_strangers.py"),
)


# Every Ray of a test obeys this run alone: those that tests start by hand inherit it, those of the product make a secret of their own.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

# Processes that tests let die by a signal leave no core file, which would lie in the checkout.
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


class OneRay(LoadFileScheduling):
    """Under `pytest -n`: one file in one process, so that its fixtures are made once; all that starts a Ray in the same one."""

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return "ray" if file.startswith(STARTS_RAY) else file


def pytest_xdist_make_scheduler(config, log):
    return OneRay(config, log)


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


@pytest.fixture(scope="session")
def eight(tmp_path_factory):
    """An ensemble card over eight small detectors with seeded weights, in a folder of their own."""
    from tests.scoring.eight import write_eight

    return write_eight(tmp_path_factory.mktemp("eight"))
