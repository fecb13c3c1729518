import re

import pytest

from ray_app.reports.comparison_report import comparison_lines, render_comparison
from tests.reports import hostile
from tests.reports.browser import CHROMIUM, Browser
from tests.reports.comparison_example import example_comparison
from tests.reports.page_reader import PageReader
from tests.reports.test_run_report import DRAWING_TAGS, PAGE_TAGS, TABLE_TAGS, TEXT_TAGS

KINDS = {"example": {}, "equal": {"shift": 0.0}, "strangers": {"shared": False}, "nothing": {"n": 0}, "one": {"n": 1}}


@pytest.fixture(scope="module")
def pages():
    made = {kind: render_comparison(example_comparison(**how)) for kind, how in KINDS.items()}
    return made | {name: render_comparison(example_comparison(text, n=60)) for name, text in hostile.NAMES.items()}


@pytest.mark.parametrize("name", [*KINDS, *hostile.NAMES])
def test_a_page_loads_and_runs_nothing_whatever_things_are_called(pages, name):
    page = pages[name]
    read = PageReader(page)
    assert {tag for tag, _ in read.tags} <= PAGE_TAGS | TEXT_TAGS | TABLE_TAGS | DRAWING_TAGS
    for tag, attributes in read.tags:
        assert not [one for one in attributes if one.startswith("on")], tag
        for one in ("src", "href", "action", "srcset", "xlink:href", "data", "poster"):
            assert (attributes.get(one) or "data:").startswith("data:"), (tag, one)
    assert all(character.isprintable() or character == "\n" for character in page)
    page.encode("utf-8")
    assert name != "template" or hostile.NAMES["template"] in read.text
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in read.tags].count("h1") == 1
    for _, attributes in read.tags:
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(ids)


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


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
def test_pages_fit_their_window_and_ask_for_nothing(pages, tmp_path):
    with Browser(tmp_path / "profile") as browser:
        for name in pages:
            (tmp_path / f"{name}.html").write_text(pages[name], encoding="utf-8")
            for width in (390, 1440):
                browser.show(tmp_path / f"{name}.html", width=width)
                browser.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
                assert browser.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), (name, width)
                asked = [event["request"]["url"].split(":")[0] for event in browser.called("Network.requestWillBeSent")]
                assert asked.count("file") == 1
                assert set(asked) <= {"file", "data"}
                assert browser.called("Log.entryAdded") == []
                assert browser.called("Page.javascriptDialogOpening") == []
