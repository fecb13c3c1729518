"""What must hold of every page: tests to import, which take the HTML as fixture `page`, and a check in a browser."""

import re

from tests.reports.page_reader import read

PAGE_TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "div", "header", "footer"),
    *("main", "section", "h1", "h2", "h3", "details", "summary"),
}
TEXT_TAGS = {"p", "dl", "dt", "dd", "ul", "li", "span", "strong", "small", "i", "b", "bdi", "br", "wbr", "figure", "figcaption", "img"}
TABLE_TAGS = {"table", "caption", "thead", "tbody", "tr", "th", "td"}
DRAWING_TAGS = {"svg", "g", "rect", "line", "circle", "path", "text", "desc", "title"}


def test_a_page_loads_and_runs_nothing(page):
    found = read(page)
    assert {tag for tag, _ in found.tags} <= PAGE_TAGS | TEXT_TAGS | TABLE_TAGS | DRAWING_TAGS
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "action", "srcset", "xlink:href", "data", "poster", "background"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, name)
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", re.sub("<title>.*?</title>", "", page).replace("&#34;", "“"))
    assert "@import" not in page
    assert "url(" not in page


def test_the_policy_comes_before_anything_it_rules(page):
    names = [tag for tag, _ in read(page).tags]
    policy = next(attributes for attributes in read(page).attributes("meta") if attributes.get("http-equiv"))
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert "script" not in policy["content"]
    assert names.index("style") > names.index("meta")


def test_a_page_can_be_read_without_seeing_it(page):
    found = read(page)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in found.tags].count("h1") == 1
    names = [tag for tag, _ in found.tags]
    assert names.count("table") == names.count("caption") == names.count("thead")
    assert all(attributes.get("scope") in ("row", "col") for attributes in found.attributes("th"))
    for _, attributes in found.tags:
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(ids)
    for attributes in found.attributes("svg"):
        assert attributes.get("aria-hidden") == "true" or (attributes["role"] == "img" and attributes["aria-labelledby"])
    assert all("alt" in attributes for attributes in found.attributes("img"))
    assert found.attributes("html") == [{"lang": "en"}]


def test_a_page_is_plain_printable_text(page):
    page.encode("utf-8")
    assert all(character.isprintable() or character == "\n" for character in page)
    assert max(map(len, page.splitlines())) < 60_000


def check_in_browser(browser, page, width):
    """Shown with everything opened, a page fits its window, runs nothing, complains of nothing and asks for no other file."""
    browser.show(page, width=width)
    browser.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), (page, width)
    assert browser.ask("innerWidth") == width
    asked = [event["request"]["url"].split(":")[0] for event in browser.called("Network.requestWillBeSent")]
    assert asked.count("file") == 1
    assert set(asked) <= {"file", "data"}
    assert browser.called("Log.entryAdded") == []
    assert browser.called("Runtime.consoleAPICalled") == []
    assert browser.called("Page.javascriptDialogOpening") == []
    assert browser.ask("document.scripts.length") == 0
