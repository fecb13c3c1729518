"""Every page as people meet it: axe finds nothing, figures stay on one line, paper and weight are
bounded. In a real Chromium.
"""

import pytest

from ray_app.ensembles import load_ensemble_card
from ray_app.reports.audit import render_audit
from tests.make.browser import chromium, only_with_chromium
from tests.make.real_run import score_photos, write_photos
from tests.reports import pages
from tests.reports.audit_example import FACTS, images
from tests.reports.real_pages import (
    BROKEN_FIGURES,
    EAGER,
    FITS,
    paper_pages,
    weight_of,
    write_pages,
)

pytestmark = pytest.mark.slow
only_with_chromium()

REAL = ("report", "gallery", "check", "checks")
EXAMPLES = ("run", "training", "evaluation", "identifier", "audit")
MAX_PAPER = {"report": 5, "check": 2}
# Bytes of a page, of the page with gzip, its elements, and bytes of its largest picture. The run
# has 28 images (docs/performance.md has the demo's).
MAX_WEIGHT = {
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
    run = score_photos(load_ensemble_card("tiny"), photos, folder / "run")
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


@pytest.mark.parametrize("name", MAX_WEIGHT)
def test_page_is_light_and_loads_nothing(shown, written, name):
    page = shown(name)
    weight = weight_of(written[name], page)
    limits = zip(weight.values(), MAX_WEIGHT[name], strict=True)
    assert all(found <= limit for found, limit in limits), weight
    assert weight["picture"] > 1_000
    assert paper_pages(page) <= MAX_PAPER.get(name, 100)
    requested = [url for url in page.requested if not url.startswith("data:")]
    assert requested == [written[name].as_uri()]
    assert page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")


def test_picture_is_enlarged_and_closed_by_keys(shown):
    page = shown("gallery")
    page.select_option("#order", "size")
    names = page.eval_on_selector_all(".tile", "tiles => tiles.map(tile => tile.dataset.name)")
    is_open = "document.getElementById('enlarged').open"
    page.focus(".tile:nth-child(3) button.frame")
    page.keyboard.press("Enter")
    assert page.evaluate(is_open)
    assert page.text_content("#which") == "Image 3 of 28"
    large = page.locator("#large img")
    assert large.evaluate("one => one.decode().then(() => one.naturalWidth)") == 640
    small = page.locator(".tile img").first.bounding_box()["width"]
    assert large.bounding_box()["width"] > small
    page.keyboard.press("ArrowRight")
    assert page.text_content("#which") == "Image 4 of 28"
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    assert page.text_content("#which") == "Image 1 of 28"
    assert page.is_disabled("#before")
    for key in ("ArrowRight", "ArrowRight", "Escape"):
        page.keyboard.press(key)
    assert not page.evaluate(is_open)
    focused = "document.activeElement.closest('.tile').dataset.name"
    assert page.evaluate(focused) == names[2]
