from ray_app.reports.identification import identifier_lines
from tests.make.page_reader import PageReader
from tests.reports.identifier_example import CLASSES, example_identifier
from tests.reports.pages import page_of


def text_of(kind):
    return PageReader(page_of("identifier", kind)).text


def test_page_shows_figures_and_what_was_not_measured():
    words = text_of("example")
    for said in (
        "Which of four generators: 87.0 % of test images of 4 classes named correctly.",
        "macro F1 90.0 % 88.0 to 92.0 % 87.0 % 85.0 to 89.0 %",
        "Not measured, given no name: real images: no real image, or reals are a class.",
        "on test it was 6.1 % (4.1 to 8.1 %), and 71.0 % (69.0 to 73.0 %) of those of unknown generators.",
        "sdxl sdxl_1.0/juggernaut-xl 41",
        "gaudi 120 71.0 %",
    ):
        assert said in words
    assert all(f"{name} " in words and f"{n:,}" in words for name, n in CLASSES.items())
    assert "it was not measured on test images" in text_of("no test")
    assert "Every image is given a name" in text_of("no open set")


def test_lines_for_the_terminal():
    lines = identifier_lines(example_identifier())
    assert lines[0].endswith("87.0 % of test images of 4 classes named correctly.")
    assert (
        "most frequent confusions: sdxl named sdxl_1.0/juggernaut-xl (41), flux.1-dev named midjourney-6 (7)"
        in lines
    )
    assert "profile: {identifier: s3://lab/makers/identifier.yaml}" in lines[-1]
