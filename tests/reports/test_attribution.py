from ray_app.reports.attribution import identifier_lines, render_identifier_report
from tests.reports.identifier_example import CLASSES, example_identifier
from tests.reports.page_reader import PageReader
from tests.reports.pages import page_of


def text_of(kind):
    return PageReader(page_of("identifier", kind)).text


def test_figures_stand_side_by_side_with_what_was_not_measured():
    words = text_of("example")
    for said in (
        "Which of four generators: 87.0 % of test images of 4 classes rightly named.",
        "macro F1 90.0 % 88.0 % to 92.0 % 87.0 % 85.0 % to 89.0 %",
        "Not measured, given no name: real images: no real image, or reals are a class.",
        "on test it was 6.1 % (4.1 % to 8.1 %), and 71.0 % (69.0 % to 73.0 %) of those of unknown generators.",
        "sdxl sdxl_1.0/juggernaut-xl 41",
        "gaudi 120 71.0 %",
    ):
        assert said in words
    assert all(f"{name} " in words and f"{n:,}" in words for name, n in CLASSES.items())
    assert "no test image says what share it is" in text_of("no test")
    assert "Every image is given a name" in text_of("no open set")


def test_of_very_many_generators_the_most_frequent_are_shown():
    facts = example_identifier()
    row = facts["test"]["classes"][0]
    many = [row | {"name": f"g{place:04}"} for place in range(200)]
    facts |= {"classes": dict.fromkeys((one["name"] for one in many), 9), "families": {one["name"]: "f" for one in many}}
    page = render_identifier_report(facts | {"test": facts["test"] | {"classes": many}})
    assert "140 rarer ones not shown." in PageReader(page).text
    assert "g0059" in page
    assert "g0060" not in page


def test_lines_for_the_terminal():
    lines = identifier_lines(example_identifier())
    assert lines[0].endswith("87.0 % of test images of 4 classes rightly named.")
    assert "most often confused: sdxl taken for sdxl_1.0/juggernaut-xl (41), flux.1-dev taken for midjourney-6 (7)" in lines
    assert lines[-1].endswith("--identifier s3://lab/makers/identifier.yaml --out NEW")
