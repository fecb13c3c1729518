"""What a person takes away from the endpoint's page: a report of one image as a file."""

import re

import pytest

from tests.make.browser import only_with_chromium
from tests.make.page_browser import PHOTO, encoded, score_one
from tests.reports.real_pages import FITS, paper_pages
from tests.serving.page_app import shipped_ensemble

only_with_chromium()

pytestmark = pytest.mark.slow


@pytest.fixture
def save(visitor, mood, tmp_path):
    """Save the report of an image; returns its path, and the page that shows the file."""
    shown = []

    def save_report(name="photo.jpg", data=PHOTO):
        page = visitor.visit()
        score_one(page, name, data)
        with page.expect_download() as download:
            page.click("text=Save report")
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        assert visitor.complaints == []
        alone = page.context.new_page()
        shown.append(alone)
        alone.requested = []
        alone.on("request", lambda request: alone.requested.append(request.url))
        alone.goto(path.as_uri())
        return path, alone

    yield save_report
    for alone in shown:
        alone.close()


def test_saved_report_stands_alone_with_all_facts(save, mood):
    mood.points = True
    path, page = save()
    expected = shipped_ensemble().score([PHOTO])[0]
    assert path.name == "touchstone-photo.html"
    text = page.text_content("body")
    for words in (
        *("Demonstration ensemble", "Not calibrated", "What this does not mean", "127.0.0.1"),
        *(expected.facts.sha256, "Fingerprint of the ensemble0.01", "0123456789abcdef"),
    ):
        assert words in text, words
    assert re.search(r"Checked\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", text)
    assert page.text_content("h1") == "Verdict on photo.jpg"
    assert page.get_attribute(".bar-scale", "data-score") in text
    images = "[...document.images].map(one => [one.naturalWidth, one.src.slice(0, 15)])"
    assert page.evaluate(images) == [[320, "data:image/jpeg"]]
    assert [url for url in page.requested if not url.startswith("data:")] == [path.as_uri()]
    assert page.locator("button, script, select, input").count() == 0
    assert "Operating point1 % false positives" in page.text_content("header .facts")
    assert page.evaluate(FITS)
    assert paper_pages(page) <= 2


def test_saved_report_keeps_hostile_name_as_text(save):
    path, page = save("<img src=x onerror=alert(1)>\u202e.tif", encoded(4, "TIFF"))
    assert path.name == "touchstone-img-src-x-onerror-alert-1.html"
    assert page.locator("img").count() == 0
    assert "<img src=x" in page.text_content("h1")
    assert "TIFF" in page.text_content(".placeholder")
