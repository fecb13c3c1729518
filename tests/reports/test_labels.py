from ray_app.reports.audit import labels_lines
from tests.reports.labels_example import example_labels
from tests.reports.page_reader import PageReader
from tests.reports.pages import page_of


def text_of(kind):
    return PageReader(page_of("labels", kind)).text


def test_the_page_says_what_was_found():
    text = text_of("example")
    for one in example_labels()["differences"]:
        assert one["text"] in text
    assert "4 images by the same bytes" in text
    assert page_of("labels", "example").count("data:image/jpeg;base64,") == 12 + 2 * 4
    assert "83 expected" in text
    assert "Files alone tell the classes apart" in text


def test_a_clean_set_is_said_to_be_so():
    text = text_of("clean")
    assert "Nothing alarming" in text
    assert "No difference that is both beyond chance and not small" in text
    assert "Nothing stands under both labels" in text
    assert "Files alone" not in text


def test_why_nothing_was_doubted_is_said():
    assert "No label was doubted: the classifier tells" in text_of("not doubted")
    assert "No label was doubted: that takes a run" in text_of("index")


def test_the_terminal_says_the_same():
    assert any(line.startswith("doubted: 147 of 4,000 labels") for line in labels_lines(example_labels()))
