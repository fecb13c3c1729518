"""Every page as people meet it: axe finds nothing, figures stay on one line, paper and weight are
bounded. In a real Chromium.
"""

import pytest

from ray_app.ensembles import load_ensemble_card
from ray_app.reports.audit import render_audit
from tests.reports import pages
from tests.reports.audit_example import FACTS, images
from tests.reports.browser import chromium, only_with_chromium
from tests.reports.real_pages import (
    BROKEN_FIGURES,
    EAGER,
    FITS,
    paper_pages,
    weight_of,
    write_pages,
)
from tests.runs.real_run import score_here, write_photos

pytestmark = pytest.mark.slow
only_with_chromium()

REAL = ("report", "gallery", "check", "checks")
EXAMPLES = ("run", "training", "evaluation", "identifier", "audit")
MOST_PAPER = {"report": 5, "check": 2}
# Bytes of a page, of it with gzip, its elements, and bytes of its largest picture; the run has 28
# images (docs/pages.md has the demo's).
MOST = {
    "report": (260_000, 160_000, 1_400, 10_000),
    "gallery": (2_400_000, 1_800_000, 1_400, 60_000),
    "check": (260_000, 200_000, 300, 150_000),
    "checks": (1_200_000, 900_000, 900, 40_000),
}


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Every page as a file."""
    folder = tmp_path_factory.mktemp("seen")
    photos = write_photos(folder / "photos", 26)
    run = score_here(load_ensemble_card("tiny"), photos, folder / "run")
    found = write_pages(run, str(photos / "photo-3.jpg"), folder / "pages")
    for name in EXAMPLES:
        path = folder / f"example-{name}.html"
        text = (
            render_audit(FACTS, *images(members={1: "in.zip"}))
            if name == "audit"
            else pages.page_of(name)
        )
        path.write_text(text, encoding="utf-8")
        found[f"example-{name}"] = path
    return found


@pytest.fixture
def shown(browser, written):
    """Opens one of them in a window, with its requests."""
    opened = []

    def show(name, width=1440):
        page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme="light", reduced_motion="reduce"
        )
        opened.append(page)
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(written[name].as_uri())
        page.evaluate(EAGER)
        return page

    yield show
    for page in opened:
        page.close()


def check_axe(page, state):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    violations = {"resultTypes": ["violations"]}
    report = axe.run(page, options=violations)
    assert report.violations_count == 0, f"{state}: {report.generate_report()}"
    page.emulate_media(color_scheme="dark")
    # all else is the same in the dark
    report = axe.run(page, options=violations | {"runOnly": ["color-contrast"]})
    assert report.violations_count == 0, f"{state}, dark: {report.generate_report()}"


@pytest.mark.parametrize("name", [*REAL, *(f"example-{one}" for one in EXAMPLES)])
def test_axe_finds_nothing(shown, name):
    check_axe(shown(name), name)


def test_axe_finds_nothing_in_an_enlarged_picture(shown):
    page = shown("gallery", width=390)
    page.click(".tile button.frame")
    check_axe(page, "enlarged")


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("name", [*REAL, "example-run", "example-training"])
def test_no_figure_is_broken_over_two_lines(shown, name, width):
    page = shown(name, width)
    assert page.evaluate(FITS)
    assert page.evaluate(BROKEN_FIGURES) == []


@pytest.mark.parametrize("name", MOST)
def test_page_is_light_and_loads_nothing(shown, written, name):
    page = shown(name)
    weight = weight_of(written[name], page)
    assert all(found <= most for found, most in zip(weight.values(), MOST[name], strict=True)), (
        weight
    )
    assert weight["picture"] > 1_000
    assert paper_pages(page) <= MOST_PAPER.get(name, 100)
    assert [url for url in page.requested if not url.startswith("data:")] == [
        written[name].as_uri()
    ]
    assert page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")


def names_of(page):
    return page.eval_on_selector_all(
        ".tile:not([hidden])", "tiles => tiles.map(tile => tile.dataset.name)"
    )


def test_gallery_is_sorted_and_filtered_by_keys(shown):
    page = shown("gallery")
    assert len(names_of(page)) == 28
    page.focus("#order")
    page.keyboard.type("score")
    scores = page.eval_on_selector_all(".tile", "tiles => tiles.map(tile => tile.dataset.score)")
    known = [float(one) for one in scores if one]
    assert known == sorted(known, reverse=True)
    assert scores[len(known) :] == ["", ""]  # what has no score comes last
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    turned = page.eval_on_selector_all(".tile", "tiles => tiles.map(tile => tile.dataset.score)")
    assert turned == [*scores[: len(known)][::-1], "", ""]
    page.keyboard.press("Tab")
    for _ in range(5):
        page.keyboard.press("ArrowDown")
        wanted = page.evaluate("document.querySelector('[name=shown]:checked').value")
        verdicts = page.eval_on_selector_all(
            ".tile:not([hidden])", "tiles => [...new Set(tiles.map(tile => tile.dataset.verdict))]"
        )
        assert wanted == "all" or verdicts == [wanted]


def test_picture_is_enlarged_and_closed_by_keys(shown):
    page = shown("gallery")
    page.select_option("#order", "size")
    page.focus(".tile:nth-child(3) button.frame")
    page.keyboard.press("Enter")
    assert page.evaluate("document.getElementById('enlarged').open")
    assert page.text_content("#which") == "Image 3 of 28"
    assert (
        page.evaluate(
            "document.querySelector('#large img').decode().then(() => document.querySelector('#large img').naturalWidth)"
        )
        == 640
    )
    small, large = (
        page.evaluate(f"document.querySelector('{one}').getBoundingClientRect().width")
        for one in (".tile img", "#large img")
    )
    assert large > small
    page.keyboard.press("ArrowRight")
    assert page.text_content("#which") == "Image 4 of 28"
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    assert page.text_content("#which") == "Image 1 of 28"
    assert page.is_disabled("#before")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.getElementById('enlarged').open")
    assert (
        page.evaluate("document.activeElement.closest('.tile').dataset.name") == names_of(page)[2]
    )
