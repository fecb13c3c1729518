from ray_app.reports.audit import labels_lines
from tests.reports.labels_example import example_labels
from tests.reports.page_reader import PageReader
from tests.reports.pages import page_of


def test_the_page_and_the_terminal_say_what_was_found():
    text = PageReader(page_of("labels", "example")).text
    for one in example_labels()["differences"]:
        assert one["text"] in text
    assert "4 images by the same bytes" in text
    assert page_of("labels", "example").count("data:image/jpeg;base64,") == 12 + 2 * 2
    assert any(line.startswith("doubted: 147 of 4,000 labels") for line in labels_lines(example_labels()))


def test_a_clean_set_is_said_to_be_so():
    text = PageReader(page_of("labels", "clean")).text
    assert "Nothing alarming" in text
    assert "Files alone" not in text
