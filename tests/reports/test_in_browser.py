"""Every report in a browser: one page of each is loaded once and shown in windows of several widths, on paper and in the dark."""

import csv
import io
import re

import pytest

from ray_app.reports.audit import render_audit
from tests.reports import hostile, pages
from tests.reports.browser import CHROMIUM, Browser, chromium
from tests.reports.page_reader import contrast
from tests.reports.test_audit import FACTS, images

WIDTHS = (390, 768, 1440)
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
# All that tries to break out of a page, the short ones first, since long texts are cut; and what cannot be broken into lines.
HOSTILE = {"every text": "".join(sorted(hostile.NAMES.values(), key=len)), "long": hostile.NAMES["long"]}


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with chromium() as started:
        yield Browser(started)


@pytest.fixture
def check(browser, tmp_path):
    """Shown with everything opened, a page fits windows of all widths, runs nothing, complains of nothing and asks for no other file."""

    def loaded(page, scripts=0):
        path = tmp_path / "page.html"
        path.write_text(page, encoding="utf-8")
        browser.show(path, width=WIDTHS[0])
        browser.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
        for width in WIDTHS:
            browser.resize(width)
            assert browser.ask(FITS), width
            assert browser.ask("innerWidth") == width
        requested = [event["request"]["url"].split(":")[0] for event in browser.called("Network.requestWillBeSent")]
        assert requested.count("file") == 1
        assert set(requested) <= {"file", "data"}
        for event in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
            assert browser.called(event) == [], event
        assert browser.ask("document.scripts.length") == scripts

    return loaded


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("report", pages.HOSTILE_PAGES)
def test_hostile_texts_stay_inside_their_page(check, report, text):
    check(pages.HOSTILE_PAGES[report](HOSTILE[text]), scripts=int(report in ("gallery", "leaderboard")))


@pytest.mark.parametrize("report", [report for report, kinds in pages.DOCUMENTS.items() if "empty" in kinds])
def test_an_empty_page_fits_its_window(check, report):
    check(pages.page_of(report, "empty"))


@pytest.mark.parametrize(
    ("report", "kind"),
    [(report, "example") for report in ("comparison", "labels", "identifier")]
    + [("evidence", "many"), ("evidence", "said"), ("run", "profile")],
)
def test_an_example_fits_its_window(check, report, kind):
    check(pages.page_of(report, kind))


def check_paper(browser):
    """Dark on a dark screen, and never in print."""
    for scheme, media, is_dark in (("light", "screen", False), ("dark", "screen", True), ("dark", "print", False)):
        browser.resize(1000, scheme=scheme, media=media)
        assert (red_of(browser, "document.body", "backgroundColor") < 128) == is_dark


def red_of(browser, element, style):
    return browser.ask(f"+getComputedStyle({element}).{style}.match(/\\d+/)[0]")


def check_pictures(browser, count, width):
    browser.page.evaluate("Promise.all([...document.images].map(one => { one.loading = 'eager'; return one.decode(); }))")
    assert browser.ask(f"[...document.images].every(image => image.naturalWidth >= {width})")
    assert browser.ask("document.images.length") == count


def test_a_run(browser, check):
    check(pages.page_of("run"))
    check_pictures(browser, 11, 8)
    tallest = "Math.max(...[...document.querySelectorAll('.histogram rect')].map(bar => bar.getBoundingClientRect().height))"
    assert browser.ask(tallest) > 150
    check_paper(browser)


def test_a_training(browser, check):
    check(pages.page_of("training"))
    check_pictures(browser, 15, 96)
    assert browser.ask("Math.min(...[...document.querySelectorAll('.lines .line')].map(line => line.getBoundingClientRect().width))") > 80


def test_a_leaderboard(browser, check):
    check(pages.page_of("leaderboard"), scripts=1)
    order = "[...document.querySelector('.ranks tbody').querySelectorAll('th b')].map(one => one.textContent).join('|')"
    before = browser.ask(order).split("|")
    browser.ask("[...document.querySelectorAll('.ranks thead button')][1].click()")
    assert browser.ask(order).split("|") == sorted(before, key=str.lower)
    assert browser.ask("document.querySelector('.ranks [aria-sort]').textContent") == "System"
    browser.ask("[...document.querySelectorAll('.ranks thead button')][1].click()")
    assert browser.ask(order).split("|") == sorted(before, key=str.lower, reverse=True)
    browser.resize(1440)
    label = "getComputedStyle(document.querySelector('.ranks td[data-label]'), '::before').content"
    assert browser.ask(label) == "none"
    browser.resize(390)
    assert browser.ask(label) == '"ROC AUC"' or "attr" in browser.ask(label)
    check_paper(browser)


@pytest.mark.parametrize("kind", ["example", "large"])
def test_the_table_of_an_evaluation_needs_no_scrolling_on_a_desk(browser, check, kind):
    check(pages.page_of("evaluation", kind))
    assert browser.ask("(box => box.scrollWidth <= box.clientWidth)(document.querySelector('.scroll'))")
    if kind == "example":
        check_pictures(browser, 22, 96)
        check_curves(browser)
        check_paper(browser)
        for scheme, media, is_dark in (("light", "screen", False), ("dark", "screen", True), ("dark", "print", False)):
            browser.resize(1000, scheme=scheme, media=media)
            assert (red_of(browser, "document.querySelector('.trace.s0')", "stroke") > 128) == is_dark
        check_print(browser)


def check_curves(browser):
    """Curves and marks are drawn inside their planes."""
    assert browser.ask("Math.min(...[...document.querySelectorAll('.plane .clipped')].map(one => one.getBoundingClientRect().width))") > 250
    outside = """[...document.querySelectorAll('.plane')].flatMap(plane => {
        const box = plane.querySelector('.clipped').getBoundingClientRect();
        return [...plane.querySelectorAll('.spot')].filter(spot => {
            const own = spot.getBoundingClientRect(), x = (own.left + own.right) / 2, y = (own.top + own.bottom) / 2;
            return own.width && (x < box.left - 8 || x > box.right + 8 || y < box.top - 8 || y > box.bottom + 8);
        });
    }).length"""
    assert browser.ask(outside) == 0
    assert browser.ask("document.querySelectorAll('.plane .spot').length") > 60


def check_print(browser):
    """In print nothing is cut off, the statements are there, and what is left to the screen is named."""
    browser.resize(690, media="print")
    assert browser.ask(FITS)
    assert browser.ask("document.querySelector('.answers').getBoundingClientRect().height") > 100
    assert "the glossary" in browser.ask("document.querySelector('.print-only').innerText")
    assert browser.ask("document.querySelector('[aria-labelledby=h-glossary]').getBoundingClientRect().height") == 0


def shown(browser, page, tmp_path, width=1440):
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    browser.show(path, width=width)


@pytest.mark.parametrize("kind", ["example", "large", "only fakes", "no generator, no view"])
def test_the_first_screen_of_an_evaluation_is_a_sentence_a_chart_and_a_table(browser, tmp_path, kind):
    shown(browser, pages.page_of("evaluation", kind), tmp_path)
    ends = browser.ask(
        "['h1', '.opening .rows', '.opening .glance'].map(one => document.querySelector(one).getBoundingClientRect().bottom)"
    )
    assert max(ends) < 900
    below = "[...document.querySelectorAll('main > section:not(.opening)')].map(one => one.getBoundingClientRect().top)"
    assert min(browser.ask(below)) > 850
    words = browser.ask("document.querySelector('h1').innerText")
    assert words.count(". ") == 0
    assert not re.search(r"0\.\d{3}", words), "no figure of four digits"


@pytest.mark.parametrize("kind", pages.DOCUMENTS["evaluation"])
def test_an_evaluation_prints_on_five_sheets(browser, tmp_path, kind):
    shown(browser, pages.page_of("evaluation", kind), tmp_path)
    browser.resize(1000, media="print")
    paper = browser.page.pdf(format="A4", prefer_css_page_size=True)
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", paper)) <= 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("report", "kind"), [("evaluation", "no table"), ("evaluation", "only fakes"), ("comparison", "example"), ("leaderboard", "example")]
)
def test_axe_finds_nothing_in_figures(browser, tmp_path, report, kind):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    shown(browser, pages.page_of(report, kind), tmp_path)
    browser.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert broken_rules(axe, browser.page, {}) == []
    browser.resize(1440, scheme="dark")
    assert broken_rules(axe, browser.page, {"runOnly": ["color-contrast"]}) == []  # all else is the same in the dark


def broken_rules(axe, page, options):
    found = axe.run(page, options=options | {"resultTypes": ["violations"]}).response["violations"]
    return [(one["id"], [node["target"] for node in one["nodes"]][:3]) for one in found]


@pytest.mark.parametrize("shown", [images(members={1: "in.zip"}), images(hostile.NAMES.values())], ids=["example", "hostile"])
def test_an_audit_fits_its_window(browser, check, shown):
    check(render_audit(FACTS, shown), scripts=1)
    for width in WIDTHS:
        browser.resize(width)
        sizes = browser.ask("[...document.querySelectorAll('button')].map(one => one.getBoundingClientRect().height)")
        assert min(sizes) >= 24  # WCAG 2.2, target size


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    for name, shown in {"example": images(members={1: "in.zip"}), "many": images([f"{number}.jpg" for number in range(40)])}.items():
        (folder / f"{name}.html").write_text(render_audit(FACTS, shown), encoding="utf-8")
    return folder


def press(browser, *keys):
    for key in keys:
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key if len(key) == 1 else "")
        browser.call("Input.dispatchKeyEvent", type="keyUp", key=key)


def said(browser):
    return browser.ask("document.getElementById('said').textContent")


def test_labels_by_keys_and_buttons_stay_and_are_saved_as_a_file(browser, audit):
    page = audit / "example.html"
    browser.show(page, width=1000)
    browser.ask("localStorage.clear()")
    browser.show(page, width=1000)
    assert said(browser) == "0 of 5 labelled"
    press(browser, "r", "F")
    assert said(browser) == "2 of 5 labelled: 1 real, 1 fake"
    assert browser.ask("document.activeElement.dataset.id") == str(2**62 + 2)
    press(browser, "ArrowLeft", "u")
    assert said(browser) == "2 of 5 labelled: 1 real, 1 unsure"
    browser.ask("document.querySelectorAll('.card')[4].querySelector('[data-label=fake]').click()")
    assert browser.ask("document.querySelectorAll('[aria-pressed=true]').length") == 3
    browser.ask("document.querySelectorAll('.card')[4].querySelector('[data-label=fake]').click()")
    assert said(browser) == "2 of 5 labelled: 1 real, 1 unsure"
    press(browser, "f")
    assert browser.ask("document.querySelector('.current').dataset.id") == str(2**62 + 2), "back to the first without a label"
    browser.page.reload()
    assert said(browser) == "3 of 5 labelled: 1 real, 1 fake, 1 unsure"
    rows = list(csv.DictReader(io.StringIO(saved(browser))))
    assert [row["label"] for row in rows] == ["real", "unsure", "", "", "fake"]
    assert [(row["image_id"], row["uri"], row["member"], row["stratum"]) for row in rows] == [
        (str(one.image_id), one.uri, one.member or "", str(one.stratum)) for one in images(members={1: "in.zip"})
    ]
    assert browser.called("Runtime.exceptionThrown") == []


def saved(browser):
    """The file that a click on the button saves."""
    with browser.page.expect_download(timeout=20_000) as saving:
        browser.ask("document.getElementById('save').click()")
    assert saving.value.suggested_filename == "labels.csv"
    return saving.value.path().read_text(encoding="utf-8")


def test_shortcuts_of_the_browser_are_left_alone(browser, audit):
    browser.show(audit / "many.html", width=1000)
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="r", modifiers=2)
    assert said(browser) == "0 of 40 labelled"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_chosen_can_be_read_in_either_scheme(browser, audit, scheme):
    browser.show(audit / "many.html", width=1000, scheme=scheme)
    for word in ("real", "fake", "unsure"):
        browser.ask(f"document.querySelectorAll('.card')[9].querySelector('[data-label={word}]').click()")
        colours = browser.ask(
            "(style => [style.color, style.backgroundColor])(getComputedStyle(document.querySelectorAll('.card')[9]"
            ".querySelector('[aria-pressed=true]')))"
        )
        assert contrast(*colours) >= 4.5, (word, colours)
