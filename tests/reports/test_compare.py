import re

import pytest

from ray_app.reports.compare import comparison_lines
from tests.reports.comparison_example import example_comparison
from tests.reports.page_reader import PageReader
from tests.reports.pages import DOCUMENTS, page_of


def text_of(kind):
    return PageReader(page_of("comparison", kind)).text


def test_the_page_says_what_changed():
    text, document = text_of("example"), example_comparison()
    counts = document["verdicts"]["matrix"]["fake"]
    for said in (
        *(document["headline"], *(finding["text"] for finding in document["findings"])),
        "scores of touchstone-tiny rose by 0.30 log-odds on average +0.294 to +0.304 log-odds < 0.0001",
        f"fake {counts['fake']:,} {counts['abstain']} {counts['real']}",
        "Detectors of A alone: npr .",
        "3 settings that differ",
        "Run B, not finished",
        "Against the labels 800 fakes and 1,600 real images",
    ):
        assert said in text


def test_nothing_is_said_of_equal_runs_and_strangers_have_no_pairs():
    assert "Nothing that is both significant and not negligible." in text_of("equal")
    strangers = text_of("strangers")
    assert "Scores, image by image" not in strangers
    assert "scores of touchstone-tiny are distributed differently" in strangers


@pytest.mark.parametrize("kind", DOCUMENTS["comparison"])
def test_the_terminal_says_the_same(kind):
    document = DOCUMENTS["comparison"][kind]()
    lines = comparison_lines(document)
    assert lines[0] == document["headline"]
    assert not [line for line in lines if re.search(r"nan|None", line)]
