"""An evaluation whose names all try to break out of their page."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from tests.reports.evaluation_example import small_document

# What decides where something stands is a word of the document; all the rest comes from files and people.
_WORDS = {"label", "kind", "seen", "output", "test", "method", "picture", "thumbnail"}


@cache
def hostile_document(text: str) -> dict[str, Any]:
    """Systems, generators, views, formats and sizes bear the text with a number behind it; every other text is the text itself."""
    document = small_document()
    first = document["systems"][0]
    names = [one["name"] for part in (document["systems"], first["generators"], first["views"], document["table"]["rows"]) for one in part]
    names += ["JPEG", "PNG", "WEBP", "1–4 MP"]
    renamed = {name: f"{text}{index}" for index, name in enumerate(names)}
    found: dict[str, Any] = _poisoned(document, renamed, text)
    found["mistakes"] = [
        {**one, "label": label, "thumbnail": "<svg onload=alert(1)>"} for one in found["mistakes"][:2] for label in ("fake", "real")
    ]
    found["overlays"] = [{**one, "picture": "PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+"} for one in found["overlays"]]
    found["data"]["statuses"] |= {text or "other": 3}
    found["data"]["shortcut"]["warnings"] = [text, text + "2"]
    found["data"]["shortcut"]["features"] = [text]
    found["run"]["identity"] = {text or "key": {text or "key": [text]}}
    found["localization"]["unreadable"] = [{"reason": text, "n": 2, "example": text}]
    return found


def _poisoned(value: Any, renamed: Mapping[str, str], text: str, key: str = "") -> Any:
    if isinstance(value, str):
        return value if key in _WORDS else renamed.get(value, text)
    if isinstance(value, Mapping):
        return {renamed.get(name, name): _poisoned(item, renamed, text, name) for name, item in value.items()}
    return [_poisoned(item, renamed, text, key) for item in value] if isinstance(value, list | tuple) else value
