"""Fixtures of the serving room."""

from pathlib import Path

import pytest

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
