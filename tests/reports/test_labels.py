import pytest

from ray_app.reports.labels import labels_lines, render_labels
from tests.reports import hostile
from tests.reports.every_page import check_in_browser
from tests.reports.labels_example import example_labels, example_pictures
from tests.reports.page_reader import PageReader

KINDS = {
    "example": {},
    "clean": {"found": False},
    "not doubted": {"why": "the classifier tells the classes apart with an AUC of 0.55 only"},
}


@pytest.fixture(scope="module")
def pages():
    made = {kind: render_labels(example_labels(**how), example_pictures()) for kind, how in KINDS.items()}
    made["index"] = render_labels(example_labels() | {"suspicious": None}, {})
    return made | {name: render_labels(example_labels(text), {}) for name, text in hostile.NAMES.items()}


@pytest.fixture(scope="module", params=[*KINDS, "index", *hostile.NAMES])
def page(request, pages):
    return pages[request.param]


def test_the_page_says_what_was_found(pages):
    text = PageReader(pages["example"]).text
    for one in example_labels()["differences"]:
        assert one["text"] in text
    assert "4 images by the same bytes" in text
    assert pages["example"].count("data:image/jpeg;base64,") == 12 + 2 * 4
    assert "83 expected" in text
    assert "Files alone tell the classes apart" in text


def test_a_clean_set_is_said_to_be_so(pages):
    text = PageReader(pages["clean"]).text
    assert "Nothing alarming" in text
    assert "No difference that is both beyond chance and not small" in text
    assert "Nothing stands under both labels" in text
    assert "Files alone" not in text


def test_why_nothing_was_doubted_is_said(pages):
    assert "No label was doubted: the classifier tells" in PageReader(pages["not doubted"]).text
    assert "No label was doubted: that takes a run" in PageReader(pages["index"]).text


@pytest.mark.parametrize("text", [None, *hostile.NAMES.values()])
def test_lines_are_printable(text):
    lines = list(labels_lines(example_labels(text)))
    assert all(character.isprintable() for line in lines for character in line)
    assert any(line.startswith("doubted: 147 of 4,000 labels") for line in lines)


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("name", ["example", "clean", "long", "wide", "stacked"])
def test_a_page_fits_its_window(browser, pages, tmp_path, name, width):
    path = tmp_path / "page.html"
    path.write_text(pages[name], encoding="utf-8")
    check_in_browser(browser, path, width)
