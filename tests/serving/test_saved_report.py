"""What a person takes away from the endpoint's page: a report of one image as a file."""

import re

import pytest

from tests.reports.browser import only_with_chromium
from tests.reports.real_pages import FITS, paper_pages
from tests.serving.page_app import shipped_ensemble
from tests.serving.page_browser import PHOTO, encoded, score_one

only_with_chromium()


@pytest.fixture
def saved(visitor, mood, tmp_path):
    """The file that “Save report” gives, shown by itself; a mask lies over its picture."""

    def save(name="photo.jpg", data=PHOTO):
        page = visitor.visit()
        score_one(page, name, data)
        with page.expect_download() as download:
            page.click("text=Save report")
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        assert visitor.complaints == []
        alone = page.context.new_page()
        alone.requested = []
        alone.on("request", lambda request: alone.requested.append(request.url))
        alone.goto(path.as_uri())
        return path, alone

    return save


def test_a_saved_report_has_picture_verdict_bars_notices_and_who_said_it_when(saved):
    path, page = saved()
    expected = shipped_ensemble().score([PHOTO])[0]
    assert path.name == "touchstone-photo.html"
    text = page.text_content("body")
    notices = ("Demonstration ensemble", "Not calibrated", "What this does not mean")
    for words in (expected.facts.sha256, "f" * 64, *notices, "127.0.0.1", "0123456789abcdef"):
        assert words in text, words
    assert re.search(r"Checked\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", text)
    assert page.text_content("h1") == "What was said of photo.jpg"
    assert page.get_attribute(".bar-scale", "data-score") in text
    assert page.evaluate(
        "[...document.images].map(one => [one.naturalWidth, one.src.slice(0, 15)])"
    ) == [[320, "data:image/jpeg"]]
    assert [url for url in page.requested if not url.startswith("data:")] == [path.as_uri()]
    assert page.locator("button, script, select, input").count() == 0
    assert page.evaluate(FITS)
    assert paper_pages(page) <= 2
    page.close()


def test_a_saved_report_names_the_operating_point(saved, mood):
    mood.points = True
    _, page = saved()
    facts = page.text_content("header .facts")
    assert "Operating point1 % false positives" in facts
    page.close()


def test_a_hostile_name_stays_text_and_a_picture_that_the_browser_cannot_show_is_left_out(saved):
    path, page = saved("<img src=x onerror=alert(1)>\u202e.tif", encoded(4, "TIFF"))
    assert path.name == "touchstone-img-src-x-onerror-alert-1.html"
    assert page.locator("img").count() == 0
    assert "<img src=x" in page.text_content("h1")
    assert "TIFF" in page.text_content(".placeholder")
    page.close()
