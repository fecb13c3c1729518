"""Fixtures that several rooms share."""

import pytest

from tests.s3_server import S3Server


def pytest_collection_modifyitems(items):
    """Under `pytest -n`: one file in one process, so that its fixtures are made once; all that starts a Ray in the same one."""
    for item in items:
        starts_ray = item.get_closest_marker("ray") or "ray_cluster" in item.fixturenames
        item.add_marker(pytest.mark.xdist_group("ray" if starts_ray else item.nodeid.partition("::")[0]))


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
    from ray_app.scoring import ClusterConfig
    from ray_app.scoring.cluster import cluster

    with cluster(ClusterConfig(cpus=2, object_store_bytes=200 * 2**20)):
        yield


@pytest.fixture(scope="session")
def eight(tmp_path_factory):
    """An ensemble card over eight small detectors with seeded weights, in a folder of their own."""
    from tests.scoring.eight import write_eight

    return write_eight(tmp_path_factory.mktemp("eight"))
