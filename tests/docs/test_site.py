"""The documentation site, built strictly: whole, its links hold, its search works from a disk, and
it asks nothing of another host.
"""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from axe_playwright_python.sync_playwright import Axe

import ray_app
from docs_site import settings
from ray_app.cli.main import PERMANENT, touchstone
from ray_app.datasets.layouts import layout_names
from ray_app.detectors import list_cards
from ray_app.errors import Reason, Status
from ray_app.serving.refusal import MESSAGES
from tests.docs.site import Site, every_column
from tests.make.browser import chromium

ROOT = Path(__file__).resolve().parents[2]
LOOKED_AT = (
    *("index.html", "concepts.html", "trust.html"),
    *(
        f"reference/{name}.html"
        for name in ("commands-config", "commands-runs", "python", "card-detector", "statuses")
    ),
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site, and what mkdocs said."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return Site(folder)


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def code_on(site, name):
    return set(site.pages[site.folder / f"reference/{name}.html"].code)


def commands(group, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_reference_has_every_command_and_option(built):
    for path, command in commands(touchstone):
        name = path[0] if len(path) > 1 else "core"
        page = built.pages[built.folder / f"reference/commands-{name}.html"]
        assert "-".join(("touchstone", *path)) in page.anchors
        shown = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
        options = {name for one in shown for name in (*one.opts, *one.secondary_opts)}
        assert options <= set(" ".join(page.code).replace(",", " ").split()), path
    assert {f"touchstone {name}" for name in PERMANENT} <= code_on(built, "commands-core")


def test_reference_has_every_key_column_status_and_card(built):
    for name, (model, _) in settings.CONFIGS.items():
        assert {key.path for key in settings.iter_keys(model)} <= code_on(built, f"config-{name}")
    for name, (model, *_) in settings.CARDS.items():
        assert {key.path for key in settings.iter_keys(model)} <= code_on(built, f"card-{name}")
    assert every_column() <= code_on(built, "columns")
    assert {*Status, *Reason} <= code_on(built, "statuses")
    assert MESSAGES.keys() <= code_on(built, "http")
    anchors = built.pages[built.folder / "reference/detectors.html"].anchors
    assert {card.name.replace(".", "") for card in list_cards()} <= anchors
    assert set(layout_names()) <= built.pages[built.folder / "reference/layouts.html"].anchors


def test_python_reference_shows_every_public_name(built):
    page = built.pages[built.folder / "reference/python.html"]
    names = [name for name in ray_app.__all__ if name != "errors"]
    errors = [
        name
        for name, value in vars(ray_app.errors).items()
        if isinstance(value, type) and issubclass(value, ray_app.errors.TouchstoneError)
    ]
    shown = {f"ray_app.{name}" for name in names} | {f"ray_app.errors.{name}" for name in errors}
    assert shown <= page.anchors
    assert "ray_app.Ensemble.score" in page.anchors


def test_every_link_has_a_target(built):
    assert len(built.pages) > 50
    assert built.broken() == []


def test_no_page_loads_anything_from_another_host(built):
    assert [
        address for page in built.pages.values() for address in page.loaded if "//" in address
    ] == []


def test_search_works_from_a_disk(built, browser):
    context = browser.new_context(offline=True)
    page, asked, complaints = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((built.folder / "index.html").as_uri())
    page.locator("[data-md-component=search-query]").press_sequentially("abstain")
    page.locator(".md-search-result__link").first.wait_for(timeout=60_000)
    assert "abstain" in page.locator(".md-search-result__list").inner_text().lower()
    assert [
        address for address in asked if not address.startswith(("file:", "data:", "blob:"))
    ] == []
    assert complaints == []
    context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_pages_fit_and_can_be_read_by_everyone(built, browser, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    for name in LOOKED_AT:
        page.goto((built.folder / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width, name
        found = Axe().run(page).response["violations"]
        assert [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found] == [], name
    context.close()
