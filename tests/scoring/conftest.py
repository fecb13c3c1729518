import pytest

from tests.make.runs import score_into


@pytest.fixture
def score_on_ray(ray_cluster, tmp_path):
    """As `score`, on a real local Ray."""

    def run(source, out=None, **settings):
        return score_into(out or tmp_path / "run", source, **settings)

    return run
