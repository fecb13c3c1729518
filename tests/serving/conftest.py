"""Fixtures of the serving room."""

from pathlib import Path

import pytest

import ray_app
from tests.reports.browser import chromium
from tests.serving.in_process import local_endpoint
from tests.serving.page_app import Mood
from tests.serving.page_app import serving as answering
from tests.serving.page_browser import Visitor

REALWORLD = Path(__file__).resolve().parents[3] / "shared" / "realworld"


@pytest.fixture(scope="session")
def local():
    """(url, app) of the whole application without Ray, with the shipped ensemble."""
    with local_endpoint() as running:
        yield running


@pytest.fixture(scope="session")
def ensemble():
    """The shipped ensemble, loaded."""
    return ray_app.load_ensemble("default")


@pytest.fixture(scope="session")
def realworld():
    """Real photographs and generated images, by path; skipped where ../shared is not."""
    if not REALWORLD.is_dir():
        pytest.skip("../shared/realworld is not here")
    return sorted(path for path in REALWORLD.rglob("*") if path.is_file() and path.suffix != ".md")


@pytest.fixture(scope="module")
def page_and_mood():
    """The page over HTTP in real Chromium, and the mood of what answers it."""
    mood = Mood()
    with answering(mood) as url, chromium() as browser:
        yield mood, Visitor(browser, url)


@pytest.fixture
def mood(page_and_mood):
    """How the endpoint behind the page answers; as it was before at the next test."""
    return page_and_mood[0].reset()


@pytest.fixture
def visitor(page_and_mood, mood):
    """A person at the page."""
    yield page_and_mood[1]
    page_and_mood[1].leave()
