"""One local Ray for the tests of this folder, small archives, and ways to look at a finished run."""

import os
import shutil
from pathlib import Path

import pytest

from ray_app.runs import RunDirectory, current_rows
from ray_app.scoring import ClusterConfig, ScoreConfig
from ray_app.scoring.cluster import cluster
from ray_app.scoring.run import score_archive
from ray_app.simulation.archive import build_sample_archive


@pytest.fixture(scope="session")
def ray_cluster(s3):
    # After s3: workers inherit the environment that finds the server.
    with cluster(ClusterConfig(cpus=2, object_store_bytes=200 * 2**20)):
        yield


@pytest.fixture(scope="session")
def sample_archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "archive"
    build_sample_archive(folder, files=24)
    return folder


@pytest.fixture
def archive(sample_archive, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(sample_archive, tmp_path / "archive"))


@pytest.fixture
def score(ray_cluster, tmp_path):
    """Score a source into a run directory and return (finished, rows by path)."""

    def run(source, out=None, **settings):
        out = str(out or tmp_path / "run")
        settings.setdefault("block_members", 8)
        finished = score_archive(ScoreConfig(source=(str(source),), out=out, **settings))
        return finished, rows_of(out)

    return run


def rows_of(out, **options):
    rows = list(current_rows(RunDirectory.open(str(out)), **options))
    by_uri = {row["uri"]: row for row in rows}
    assert len(by_uri) == len(rows)
    return by_uri


def comparable(row):
    """A row without what differs between two runs over the same bytes."""
    return {name: value for name, value in row.items() if name not in ("image_id", "uri", "attempt", "scored_at")}


def files_below(folder):
    return sorted(os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)
