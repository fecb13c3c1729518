import pytest

from ray_app.reports import render_run_report
from ray_app.reports.training import render_training_report
from tests.reports import hostile
from tests.reports.every_page import check_in_browser
from tests.reports.example import example_summary
from tests.reports.test_run import hostile_summary, thumbnail
from tests.reports.test_training import hostile_facts
from tests.reports.training_example import example_facts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    thumbnails = {row["image_id"]: thumbnail() for row in example_summary()["top"]}
    pages = {"example": render_run_report(example_summary(), thumbnails=thumbnails), "empty": render_run_report({})}
    pages |= {name: render_run_report(hostile_summary(text)) for name, text in hostile.NAMES.items()}
    pages |= {"training": render_training_report(example_facts()), "training empty": render_training_report({})}
    pages |= {f"training {name}": render_training_report(hostile_facts(text)) for name, text in hostile.NAMES.items()}
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return folder


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize(
    "name", [f"{kind}{name}" for kind in ("", "training ") for name in ("empty", *hostile.NAMES)] + ["example", "training"]
)
def test_a_page_fits_its_window_and_asks_for_nothing(browser, folder, name, width):
    check_in_browser(browser, folder / f"{name}.html", width)


@pytest.mark.parametrize(("scheme", "media", "is_dark"), [("light", "screen", False), ("dark", "screen", True), ("dark", "print", False)])
def test_paper_is_dark_on_a_dark_screen_and_never_in_print(browser, folder, scheme, media, is_dark):
    browser.show(folder / "example.html", width=1000, scheme=scheme, media=media)
    red = browser.ask("+getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (red < 128) == is_dark


def test_bars_and_thumbnails_are_drawn(browser, folder):
    browser.show(folder / "example.html", width=1000)
    assert (
        browser.ask("Math.max(...[...document.querySelectorAll('.histogram rect')].map(bar => bar.getBoundingClientRect().height))") > 150
    )
    assert browser.ask("[...document.images].every(image => image.complete && image.naturalWidth === 8)")
    assert browser.ask("document.images.length") == 11


def test_lines_and_thumbnails_of_a_training_are_drawn(browser, folder):
    browser.show(folder / "training.html", width=1000)
    assert browser.ask("Math.min(...[...document.querySelectorAll('.lines .line')].map(line => line.getBoundingClientRect().width))") > 80
    assert browser.ask("[...document.images].every(image => image.complete && image.naturalWidth === 96)")
    assert browser.ask("document.images.length") == 15
