import pytest

from ray_app.reports.leaderboard import render_leaderboard
from tests.reports import hostile
from tests.reports.evaluation_example import example_document, large_document
from tests.reports.every_page import check_in_browser
from tests.reports.test_leaderboard import hostile_document


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    evaluations = {
        "example": [("s3://lab/evaluations/a", example_document()), ("b", large_document())],
        "empty": [],
        **{name: [(text, hostile_document(text))] for name, text in hostile.NAMES.items() if name in ("long", "wide", "stacked", "remote")},
    }
    for name, told in evaluations.items():
        (folder / f"{name}.html").write_text(render_leaderboard(told), encoding="utf-8")
    return folder


@pytest.mark.parametrize("width", [390, 768, 1440])
@pytest.mark.parametrize("name", ["example", "empty", "long", "wide", "stacked", "remote"])
def test_it_fits_its_window_and_asks_for_nothing(browser, pages, name, width):
    check_in_browser(browser, pages / f"{name}.html", width)


def test_narrow_windows_name_every_figure_beside_it(browser, pages):
    label = "getComputedStyle(document.querySelector('.ranks td[data-label]'), '::before').content"
    browser.show(pages / "example.html", width=390)
    assert browser.ask(label) == '"ROC AUC"' or "attr" in browser.ask(label)
    browser.show(pages / "example.html", width=1440)
    assert browser.ask(label) == "none"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_follows_the_scheme(browser, pages, scheme):
    browser.show(pages / "example.html", width=1000, scheme=scheme)
    red = browser.ask("+getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (red < 128) == (scheme == "dark")
