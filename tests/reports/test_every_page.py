"""Every report: its pages hold no more than text, whatever names are in them, and its lines stay
lines.
"""

import base64
import hashlib
import re

import pytest

from tests.reports import hostile, pages
from tests.reports.page_reader import PageReader, read

PAGE_TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "div", "header", "footer"),
    *("main", "section", "h1", "h2", "h3", "details", "summary"),
}
TEXT_TAGS = {
    "p",
    "a",
    "dl",
    "dt",
    "dd",
    "ul",
    "li",
    "span",
    "strong",
    "small",
    "i",
    "b",
    "bdi",
    "br",
    "wbr",
    "figure",
    "figcaption",
    "img",
}
TABLE_TAGS = {"table", "caption", "thead", "tbody", "tr", "th", "td"}
CHOICE_TAGS = {"script", "button", "select", "option", "fieldset", "legend", "label", "input"}
SORTED_TAGS = {*CHOICE_TAGS, "code"}  # of `check`, whose one script sorts
GALLERY_TAGS = {*CHOICE_TAGS, "nav", "dialog"}
DRAWING_TAGS = {"svg", "g", "rect", "line", "circle", "path", "text", "desc", "title"}


def _loads_nothing(page, *, sorts=False):
    found = read(page)
    assert {tag for tag, _ in found.tags} <= PAGE_TAGS | TEXT_TAGS | TABLE_TAGS | DRAWING_TAGS | (
        SORTED_TAGS if sorts else set()
    )
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        if tag == "a":  # a person may follow it, the page loads nothing from there
            assert re.match(r"file:///|https://[A-Za-z0-9.-]+/", attributes["href"]), attributes
            assert attributes["rel"] == "noreferrer"
            continue
        for name in (
            "src",
            "href",
            "action",
            "srcset",
            "xlink:href",
            "data",
            "poster",
            "background",
        ):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, name)
    assert not re.search(
        r"""(src|href)\s*=\s*["']?\s*(https?:)?//""",
        re.sub("<title>.*?</title>", "", page).replace("&#34;", "“"),
    )
    assert "@import" not in page
    assert "url(" not in page


def _has_its_policy_before_anything_it_rules(page, *, sorts=False):
    names = [tag for tag, _ in read(page).tags]
    policy = next(
        attributes for attributes in read(page).attributes("meta") if attributes.get("http-equiv")
    )
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    )
    scripts = [found for found in re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)]
    allowed = re.findall(r"script-src ([^;]*);", policy["content"])
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    ]
    assert hashes == ([] if not sorts else hashes[:1])
    assert not scripts or allowed == hashes  # the page's own script and no other
    assert names.index("style") > names.index("meta")


def _can_be_read_without_seeing_it(page):
    found = read(page)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in found.tags].count("h1") == 1
    names = [tag for tag, _ in found.tags]
    assert names.count("table") == names.count("caption") == names.count("thead")
    assert all(
        attributes.get("scope") in ("row", "col", "rowgroup")
        for attributes in found.attributes("th")
    )
    for _, attributes in found.tags:
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(ids)
    for attributes in found.attributes("svg"):
        assert attributes.get("aria-hidden") == "true" or (
            attributes["role"] == "img" and attributes["aria-labelledby"]
        )
    assert all("alt" in attributes for attributes in found.attributes("img"))
    assert found.attributes("html") == [{"lang": "en"}]


def _is_plain_printable_text(page):
    page.encode("utf-8")
    assert page.replace("\n", "").isprintable()
    assert max(map(len, page.splitlines())) < 60_000


@pytest.mark.parametrize(("report", "kind"), pages.EXAMPLES)
def test_examples(report, kind):
    check_page(pages.page_of(report, kind))


def check_page(page, *, sorts=False):
    _loads_nothing(page, sorts=sorts)
    _has_its_policy_before_anything_it_rules(page, sorts=sorts)
    _can_be_read_without_seeing_it(page)
    _is_plain_printable_text(page)


@pytest.mark.parametrize("report", [name for name in pages.HOSTILE_PAGES if name != "gallery"])
def test_hostile_texts_stay_text(report):
    for text in hostile.NAMES.values():
        check_page(pages.HOSTILE_PAGES[report](text), sorts=report == "check")


def test_hostile_texts_in_a_gallery_become_no_link_and_no_picture_of_another_kind():
    for text in hostile.NAMES.values():
        page = pages.HOSTILE_PAGES["gallery"](text)
        found = PageReader(page)
        assert {one["href"] for one in found.attributes("a")} == {"index.html", "page-00003.html"}
        assert {tag for tag, _ in found.tags} <= PAGE_TAGS | TEXT_TAGS | DRAWING_TAGS | GALLERY_TAGS
        assert all(
            one["src"].startswith("data:image/jpeg;base64,") for one in found.attributes("img")
        )
        assert len(found.attributes("img")) == 1
        assert not [
            name for _, attributes in found.tags for name in attributes if name.startswith("on")
        ]
        _is_plain_printable_text(page)


@pytest.mark.parametrize("report", pages.HOSTILE_PAGES)
def test_a_template_in_a_name_is_not_rendered(report):
    assert "49{%" not in pages.HOSTILE_PAGES[report](hostile.NAMES["template"])


@pytest.mark.parametrize("report", pages.HOSTILE_LINES)
def test_lines_stay_lines(report):
    for text in hostile.NAMES.values():
        for line in pages.HOSTILE_LINES[report](text):
            line.encode("utf-8")
            assert line.isprintable()
