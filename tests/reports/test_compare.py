import re

import pytest

from ray_app.reports.compare import comparison_lines, render_comparison
from tests.reports import hostile
from tests.reports.comparison_example import example_comparison
from tests.reports.every_page import check_in_browser
from tests.reports.page_reader import PageReader

KINDS = {"example": {}, "equal": {"shift": 0.0}, "strangers": {"shared": False}, "nothing": {"n": 0}, "one": {"n": 1}}


@pytest.fixture(scope="module")
def pages():
    made = {kind: render_comparison(example_comparison(**how)) for kind, how in KINDS.items()}
    return made | {name: render_comparison(example_comparison(text, n=60)) for name, text in hostile.NAMES.items()}


@pytest.fixture(scope="module", params=[*KINDS, *hostile.NAMES])
def page(request, pages):
    return pages[request.param]


def test_a_template_in_a_name_stays_text(pages):
    assert hostile.NAMES["template"] in PageReader(pages["template"]).text


def test_the_page_says_what_changed(pages):
    text = PageReader(pages["example"]).text
    document = example_comparison()
    assert document["headline"] in text
    for finding in document["findings"]:
        assert finding["text"] in text
    assert "scores of touchstone-tiny rose by 0.30 log-odds on average +0.294 to +0.304 log-odds < 0.0001" in text
    matrix = document["verdicts"]["matrix"]
    row = f"fake {matrix['fake']['fake']:,} {matrix['fake']['abstain']} {matrix['fake']['real']}"
    assert row in text
    assert "Detectors of A alone: npr ." in text
    assert "3 settings that differ" in text
    assert "Run A" in text
    assert "Run B, not finished" in text
    assert "Against the labels 800 fakes and 1,600 real images" in text
    assert "ok corrupt_ image" in text


def test_nothing_is_said_of_equal_runs(pages):
    assert "Nothing that is both significant and not negligible." in PageReader(pages["equal"]).text
    assert "No difference" in PageReader(pages["equal"]).text


def test_strangers_have_no_pairs(pages):
    text = PageReader(pages["strangers"]).text
    assert "Scores, image by image" not in text
    assert "Drift of score distributions" in text
    assert "scores of touchstone-tiny are distributed otherwise" in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_terminal_says_the_same(kind):
    document = example_comparison(**KINDS[kind])
    lines = comparison_lines(document)
    assert lines[0] == document["headline"]
    assert not [line for line in lines if re.search(r"nan|None", line)]
    if kind == "example":
        assert "images: 2,400 in both runs, 0 only in A, 0 only in B (matched by image_id)" in lines
        assert "not finished: run B" in lines
        assert any(line.startswith("touchstone-tiny") and "+0.299" in line for line in lines)
        assert any(line.startswith("ensemble: AUC 0.9") for line in lines)


@pytest.mark.parametrize("name", hostile.NAMES)
def test_lines_are_lines(name):
    for line in comparison_lines(example_comparison(hostile.NAMES[name], n=60)):
        assert line.isprintable()


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("name", [*KINDS, *hostile.NAMES])
def test_a_page_fits_its_window_and_asks_for_nothing(browser, pages, name, width, tmp_path):
    (tmp_path / "page.html").write_text(pages[name], encoding="utf-8")
    check_in_browser(browser, tmp_path / "page.html", width)
