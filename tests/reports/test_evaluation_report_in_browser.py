import pytest

from ray_app.reports.evaluation.page import render_evaluation
from tests.reports import hostile
from tests.reports.evaluation_example import example_document, large_document
from tests.reports.every_page import check_in_browser
from tests.reports.hostile_evaluation import hostile_document

DOCUMENTS = {"example": example_document, "large": large_document, "empty": dict} | {
    f"hostile {name}": lambda text=text: hostile_document(text) for name, text in hostile.NAMES.items()
}
WIDE = ("example", "large", "empty", "hostile long", "hostile wide", "hostile remote")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, make in DOCUMENTS.items():
        (folder / f"{name}.html").write_text(render_evaluation(make()), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("name", "width"), [(name, 390) for name in DOCUMENTS] + [(name, 1440) for name in WIDE])
def test_a_page_fits_its_window_and_asks_for_nothing(browser, folder, name, width):
    check_in_browser(browser, folder / f"{name}.html", width)


def test_the_table_and_its_published_columns_need_no_scrolling_on_a_desk(browser, folder):
    for name in ("example", "large"):
        browser.show(folder / f"{name}.html", width=1440)
        assert browser.ask("(box => box.scrollWidth <= box.clientWidth)(document.querySelector('.scroll'))")


def test_the_answers_are_on_the_first_screen(browser, folder):
    browser.show(folder / "example.html", width=1440)
    assert browser.ask("document.querySelector('.answers').getBoundingClientRect().top") < 600


def test_curves_and_marks_are_drawn_inside_their_planes(browser, folder):
    browser.show(folder / "example.html", width=1440)
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


def test_pictures_are_shown(browser, folder):
    browser.show(folder / "example.html", width=1000)
    assert browser.ask("[...document.images].every(image => image.complete && image.naturalWidth >= 96)")
    assert browser.ask("document.images.length") == 22


@pytest.mark.parametrize(("scheme", "media", "is_dark"), [("light", "screen", False), ("dark", "screen", True), ("dark", "print", False)])
def test_lines_have_the_colours_of_their_paper(browser, folder, scheme, media, is_dark):
    browser.show(folder / "example.html", width=1000, scheme=scheme, media=media)
    red = "+getComputedStyle({}).{}.match(/\\d+/)[0]"
    assert (browser.ask(red.format("document.body", "backgroundColor")) < 128) == is_dark
    assert (browser.ask(red.format("document.querySelector('.trace.s0')", "stroke")) > 128) == is_dark


def test_in_print_nothing_is_cut_off_and_what_is_folded_is_open(browser, folder):
    browser.show(folder / "example.html", width=690, media="print")
    assert browser.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.ask("Math.min(...[...document.querySelectorAll('details table')].map(one => one.getBoundingClientRect().height))") > 20
