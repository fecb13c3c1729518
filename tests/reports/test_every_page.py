"""Every report: its pages hold no more than text, whatever names are in them, and its lines stay
lines.
"""

import base64
import hashlib
import re

import pytest

from tests.make.page_reader import read
from tests.reports import hostile, pages

TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "div", "header", "footer"),
    *("main", "section", "h1", "h2", "h3", "details", "summary"),
    *("p", "a", "dl", "dt", "dd", "ul", "li", "span", "strong", "small", "i", "b", "bdi", "br"),
    *("wbr", "figure", "figcaption", "img"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td"),
    *("svg", "g", "rect", "line", "circle", "path", "text", "desc"),
}
CHOICES = {"script", "button", "select", "option", "fieldset", "legend", "label", "input"}
# Reports with a script of their own, which sorts and filters.
SCRIPTED = {"check": CHOICES | {"code"}, "gallery": CHOICES | {"nav", "dialog"}}
LOADING = ("src", "href", "action", "srcset", "xlink:href", "data", "poster", "background")
GALLERY_LINKS = {"index.html", "page-00003.html"}


def check_page(page, report):
    check_loads_nothing(page, report)
    check_policy(page, report)
    check_is_accessible(page)
    page.encode("utf-8")
    assert page.replace("\n", "").isprintable()
    assert max(map(len, page.splitlines())) < 60_000


def check_loads_nothing(page, report):
    tags = read(page).tags
    assert {tag for tag, _ in tags} <= TAGS | SCRIPTED.get(report, set())
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        if tag == "a":  # A person may follow a link; the page loads nothing from it.
            if report != "gallery" or attributes["href"] not in GALLERY_LINKS:
                assert re.match(r"file:///|https://[A-Za-z0-9.-]+/", attributes["href"]), attributes
                assert attributes["rel"] == "noreferrer"
            continue
        for name in LOADING:
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, name)
        if tag == "img":
            assert attributes["src"].startswith("data:image/jpeg;base64,/9j/")
    text = re.sub("<title>.*?</title>", "", page).replace("&#34;", "“")
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//|@import|url\(""", text)


def check_policy(page, report):
    """The policy precedes what it governs, and admits only the page's own script."""
    metas = read(page).attributes("meta")
    policy = next(one for one in metas if one.get("http-equiv") == "Content-Security-Policy")
    default = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert policy["content"].startswith(default)
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    assert len(scripts) == (report in SCRIPTED)
    allowed = re.findall(r"script-src ([^;]*);", policy["content"])
    assert allowed == [f"'sha256-{digest}'" for digest in digests]
    names = [tag for tag, _ in read(page).tags]
    assert names.index("style") > names.index("meta")


def check_is_accessible(page):
    found = read(page)
    names = [tag for tag, _ in found.tags]
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert names.count("h1") == 1
    assert names.count("table") == names.count("caption") == names.count("thead")
    assert {one.get("scope") for one in found.attributes("th")} <= {"row", "col", "rowgroup"}
    for _, attributes in found.tags:
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(ids)
    for one in found.attributes("svg"):
        is_named = one.get("role") == "img" and one["aria-labelledby"]
        assert is_named or one.get("aria-hidden") == "true"
    assert all("alt" in attributes for attributes in found.attributes("img"))
    assert found.attributes("html") == [{"lang": "en"}]


@pytest.mark.parametrize(("report", "kind"), pages.EXAMPLES)
def test_page_of_example_is_safe(report, kind):
    check_page(pages.page_of(report, kind), report)


@pytest.mark.parametrize("report", pages.HOSTILE_PAGES)
def test_page_of_hostile_texts_is_safe(report):
    for text in hostile.NAMES.values():
        page = pages.HOSTILE_PAGES[report](text)
        check_page(page, report)
        assert "49{%" not in page, "a template in a name was rendered"


@pytest.mark.parametrize("report", pages.HOSTILE_LINES)
def test_lines_of_hostile_texts_stay_lines(report):
    for text in hostile.NAMES.values():
        for line in pages.HOSTILE_LINES[report](text):
            line.encode("utf-8")
            assert line.isprintable()
