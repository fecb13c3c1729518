"""What a page consists of, read with the standard library's HTML parser."""

import re
from functools import lru_cache
from html.parser import HTMLParser

_VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}


class PageReader(HTMLParser):
    """All tags with their attributes, in order; fails on a tag that is not closed where it should
    be.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> with nothing open"
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "title", "desc", "script"):
            self.words.append(data)


@lru_cache(maxsize=2)
def read(page: str) -> PageReader:
    """A page that several tests in a row ask about is read once."""
    return PageReader(page)


def contrast(one: str, other: str) -> float:
    """WCAG contrast ratio of two colours, #rrggbb or rgb(r, g, b)."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    hexadecimal = (
        [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
        if colour.startswith("#")
        else None
    )
    channels = [
        channel / 255 for channel in hexadecimal or map(int, re.findall(r"\d+", colour)[:3])
    ]
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in channels
    ]
    return sum(
        weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True)
    )
