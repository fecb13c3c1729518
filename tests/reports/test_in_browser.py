"""Every report in a browser: one page of each is loaded once and shown in windows of several
widths, on paper and in the dark.
"""

import re

import pytest

from ray_app.reports.audit import render_audit
from ray_app.reports.check import render_check
from tests.make.browser import Browser, chromium, only_with_chromium
from tests.reports import audit_example, hostile, pages
from tests.reports.check_example import FACTS, check_rows, names_of
from tests.reports.example import thumbnail
from tests.reports.real_pages import FITS

only_with_chromium()

pytestmark = pytest.mark.slow

WIDTHS = (390, 768, 1440)
COMPLAINTS = (
    *("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"),
    "Page.javascriptDialogOpening",
)
# The longest name cannot be broken into lines.
HOSTILE = {"all names": hostile.ALL_NAMES, "long": hostile.NAMES["long"]}
AUDITS = {
    "example": audit_example.images(members={1: "in.zip"}),
    "hostile": audit_example.images(hostile.NAMES.values()),
}


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield Browser(started)


@pytest.fixture
def show(browser, tmp_path):
    """Show a page in a window of a width."""

    def show_page(page, width=1440):
        path = tmp_path / "page.html"
        path.write_text(page, encoding="utf-8")
        browser.show(path, width=width)

    return show_page


@pytest.fixture
def check(browser, show):
    """Check that a page fits all widths, runs no foreign script, and requests no other file."""

    def check_page(page, scripts=0):
        show(page, WIDTHS[0])
        browser.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
        for width in WIDTHS:
            browser.resize(width)
            assert browser.ask(FITS), width
            assert browser.ask("innerWidth") == width
        events = browser.called("Network.requestWillBeSent")
        requested = [event["request"]["url"].split(":")[0] for event in events]
        assert requested.count("file") == 1
        assert set(requested) <= {"file", "data"}
        for event in COMPLAINTS:
            assert browser.called(event) == [], event
        assert browser.ask("document.scripts.length") == scripts

    return check_page


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("report", pages.HOSTILE_PAGES)
def test_hostile_texts_stay_inside_their_page(check, report, text):
    check(pages.HOSTILE_PAGES[report](HOSTILE[text]), scripts=int(report in ("gallery", "check")))


@pytest.mark.parametrize(
    ("report", "kind"),
    [
        ("identifier", "example"),
        ("run", "empty"),
        ("run", "profile"),
        ("training", "empty"),
        ("evaluation", "empty"),
        ("evaluation", "large"),
    ],
)
def test_example_fits_its_window(check, report, kind):
    check(pages.page_of(report, kind))


@pytest.mark.parametrize("kind", AUDITS)
def test_audit_fits_its_window(check, kind):
    check(render_audit(audit_example.FACTS, *AUDITS[kind]))


def red_of(browser, element, style):
    return browser.ask(f"+getComputedStyle({element}).{style}.match(/\\d+/)[0]")


@pytest.mark.parametrize(
    ("report", "count", "width"), [("run", 11, 8), ("training", 15, 96), ("evaluation", 22, 96)]
)
def test_page_shows_pictures_and_follows_the_scheme(browser, check, report, count, width):
    check(pages.page_of(report))
    decoded = "[...document.images].map(one => { one.loading = 'eager'; return one.decode(); })"
    browser.page.evaluate(f"Promise.all({decoded})")
    assert browser.ask(f"[...document.images].every(image => image.naturalWidth >= {width})")
    assert browser.ask("document.images.length") == count
    for scheme, media, is_dark in (
        ("light", "screen", False),
        ("dark", "screen", True),
        ("dark", "print", False),
    ):
        browser.resize(1000, scheme=scheme, media=media)
        assert (red_of(browser, "document.body", "backgroundColor") < 128) == is_dark
        if report == "evaluation":
            trace = "document.querySelector('.trace.s0')"
            assert (red_of(browser, trace, "stroke") > 128) == is_dark


def test_check_is_sorted_and_filtered_by_keys(browser, tmp_path):
    page, rows = tmp_path / "page.html", check_rows(24, f"{tmp_path}/holiday")
    (tmp_path / "holiday" / "1").mkdir(parents=True)
    # The first of the images that the filter below leaves.
    (tmp_path / "holiday" / "1" / "13.jpg").write_bytes(thumbnail())
    rendered = render_check(rows, names_of(rows), [thumbnail()] * 24, FACTS, page)
    page.write_text("".join(rendered), encoding="utf-8")
    browser.show(page, width=1000)
    tiles = browser.page.locator(".tile:visible")
    browser.page.focus("#order")
    browser.page.keyboard.type("score")
    known = [row["score"] for row in rows if row["score"] is not None]

    def check_order(is_descending):
        scores = tiles.evaluate_all("tiles => tiles.map(one => one.dataset.score)")
        assert [float(one) for one in scores[:18]] == sorted(known, reverse=is_descending)
        assert scores[18:] == [""] * 6, "files without a score come last"

    check_order(is_descending=True)
    browser.page.keyboard.press("Tab")
    browser.page.keyboard.press("Enter")
    check_order(is_descending=False)
    browser.page.keyboard.press("Enter")
    browser.page.select_option("#folder", "holiday/1/")
    browser.page.fill("#least", "0")
    said = browser.ask("document.getElementById('said').textContent")
    assert said == "4 of 24 on this page"
    browser.page.focus("[name=shown]:checked")
    browser.page.keyboard.press("ArrowDown")
    assert set(tiles.evaluate_all("tiles => tiles.map(one => one.dataset.verdict)")) == {"fake"}
    browser.page.focus(".tile:not([hidden]) a")
    for key in ("Shift+Tab", "Tab", "Enter"):
        browser.page.keyboard.press(key)
    browser.page.wait_for_url("**/holiday/1/13.jpg")


@pytest.mark.parametrize("kind", ["example", "large", "only fakes"])
def test_evaluation_opens_with_sentence_chart_and_table(browser, show, kind):
    show(pages.page_of("evaluation", kind))
    bottoms = "one => document.querySelector(one).getBoundingClientRect().bottom"
    assert max(browser.ask(f"['h1', '.opening .rows', '.opening .glance'].map({bottoms})")) < 900
    below = "[...document.querySelectorAll('main > section:not(.opening)')]"
    assert min(browser.ask(f"{below}.map(one => one.getBoundingClientRect().top)")) > 850
    words = browser.ask("document.querySelector('h1').innerText")
    assert words.count(". ") == 0
    assert not re.search(r"0\.\d{3}", words), "no figure of four digits"


@pytest.mark.parametrize("kind", ["example", "large"])
def test_printed_evaluation_is_whole_and_short(browser, show, kind):
    show(pages.page_of("evaluation", kind))
    browser.resize(690, media="print")
    assert browser.ask(FITS)
    box = "(box => box.scrollWidth <= box.clientWidth)(document.querySelector('.scroll'))"
    assert browser.ask(box)
    height = "document.querySelector('{}').getBoundingClientRect().height"
    assert browser.ask(height.format(".answers")) > 100
    assert "the glossary" in browser.ask("document.querySelector('.print-only').innerText")
    assert browser.ask(height.format("[aria-labelledby=h-glossary]")) == 0
    browser.resize(1000, media="print")
    paper = browser.page.pdf(format="A4", prefer_css_page_size=True)
    # The goal is 5 sheets (docs/evaluation.md).
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", paper)) <= 6
