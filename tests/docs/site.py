"""A built site, read as a reader's browser does."""

from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from ray_app.runs.schema import row_schema

_ADDRESSES = {
    "a": "href",
    "img": "src",
    "script": "src",
    "link": "href",
    "source": "src",
    "iframe": "src",
}


def every_column():
    """The names of all columns that a row may have."""
    schema = row_schema(["d"], pa.null(), ["d"], ["d"], views=["v"], second_look=True,
                        identified=True, described=True, measured=["texture", "graphics"])  # fmt: skip
    return set(schema.names)


class Document(HTMLParser):
    """One page: its anchors, what it links to, what it loads, the words of its code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.code: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self._open.append(tag)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if address := given.get(_ADDRESSES.get(tag, "")):
            (self.links if tag == "a" else self.loaded).append(address)
        if tag == "code":
            self.code.append("")

    def handle_endtag(self, tag):
        while tag in self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "code" in self._open:
            self.code[-1] += data


class Site:
    """All pages of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def pages(self) -> dict[Path, Document]:
        return {path: Document(path) for path in sorted(self.folder.rglob("*.html"))}

    def broken(self) -> list[str]:
        """Links within the site to what is not there, with the page that has them."""
        found = []
        for path, page in self.pages.items():
            for address in page.links + page.loaded:
                parts = urlsplit(address)
                if parts.scheme or parts.netloc or path.name == "404.html":
                    continue
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                lost = (
                    parts.fragment
                    and target in self.pages
                    and unquote(parts.fragment) not in self.pages[target].anchors
                )
                if not target.exists() or lost:
                    found.append(f"{path.relative_to(self.folder)}: {address}")
        return found
