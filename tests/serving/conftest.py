"""Fixtures of the serving room."""

import shutil

import pytest
import yaml

from ray_app.config import config_root
from tests.make.browser import chromium
from tests.make.page_browser import Visitor
from tests.serving.http.live import serving
from tests.serving.in_process import local_endpoint
from tests.serving.page_app import Mood, make_app


@pytest.fixture(scope="session")
def local():
    """(url, app) of the whole application without Ray, with the shipped ensemble."""
    with local_endpoint() as running:
        yield running


@pytest.fixture(scope="session")
def several(tmp_path_factory):
    """(ensemble card, names) of small detectors that import little: a shared backbone, masks,
    images at their own size.
    """
    from benchmarks.seeded import seeded_card, write_card
    from tests.make.cards import small_cards

    folder, names = tmp_path_factory.mktemp("several"), ["native"]
    shipped = config_root() / "detectors"
    tiny = yaml.safe_load((shipped / "touchstone-tiny.yaml").read_text())
    shutil.copy(shipped / tiny["weights"]["uri"], folder)
    whole = {key: tiny["preprocessing"][key] for key in ("resize", "mean", "std")}
    (folder / "native.yaml").write_text(
        yaml.safe_dump(tiny | {"name": "native", "preprocessing": whole})
    )
    for card in small_cards():
        if card.name in ("clip-d-10k-plus", "unifd", "maskclip"):
            write_card(seeded_card(card, folder / "weights", seed=3), folder / f"{card.name}.yaml")
            names.append(card.name)
    path, members = folder / "ensemble.yaml", [{"detector": f"{name}.yaml"} for name in names]
    card = {"name": "several", "title": "Small detectors", "rule": "mean-logit"}
    path.write_text(yaml.safe_dump(card | {"members": members}))
    return path, tuple(names)


@pytest.fixture(scope="module")
def page_and_mood():
    """The page over HTTP in real Chromium, and the mood of what answers it."""
    mood = Mood()
    with serving(make_app(mood)) as port, chromium() as browser:
        yield mood, Visitor(browser, f"http://127.0.0.1:{port}")


@pytest.fixture
def mood(page_and_mood):
    """How the endpoint behind the page answers; as it was before at the next test."""
    return page_and_mood[0].reset()


@pytest.fixture
def visitor(page_and_mood, mood):
    """A person at the page."""
    yield page_and_mood[1]
    page_and_mood[1].leave()
