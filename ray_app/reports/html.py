"""Pages by Jinja (`render`): every text is escaped, and `visible` shows what would hide or reorder
it.
"""

import base64
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ray_app.errors import ConfigError
from ray_app.reports import format as wording
from ray_app.storage.urls import local_path

_PLAIN_HOST = re.compile(r"https://[A-Za-z0-9.-]+(:[0-9]+)?/")
_LONGEST_NAME = 96
_LONGEST_TEXT = 240
_LONGEST_TITLE = 2_000
_MOST_ENTRIES = 12
_MOST_SETTINGS = 500


def render(template: str, **facts: Any) -> str:
    """Fill a template of `templates/`. An expression without a value is an error."""
    return _environment().get_template(template).render(**facts)


def render_in_pieces(template: str, **facts: Any) -> Iterator[str]:
    """As `render`, piece by piece: for a page that should not lie in memory as a whole."""
    return _environment().get_template(template).generate(**facts)


def script_hash(template: str) -> str:
    """SHA-256 of a script of `templates/` in base64, by which the policy of the one page that
    includes it lets it run.
    """
    return base64.b64encode(hashlib.sha256(render(template).encode()).digest()).decode()


def jpeg_uri(data: bytes | str | None) -> str | None:
    """A JPEG's bytes, or base64 of them, as a data URI; None for anything else, so that no other
    type can be smuggled into a page.
    """
    try:
        data = base64.b64decode(data or b"", validate=True) if not isinstance(data, bytes) else data
    except ValueError:
        return None
    return (
        f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        if data.startswith(b"\xff\xd8\xff")
        else None
    )


def file_link(uri: str, member: str | None, beside: str = "") -> str | None:
    """Where a browser finds a file: `file://` of a local one, `https://` of one on the web whose
    address is all that it takes.

    From a page in the folder `beside`, the way to a local file, where a folder other than the root
    holds both.

    None inside a container, for buckets, and for addresses with a name, a password or a query: a
    report is passed on.
    """
    if member is not None or not uri.isprintable():
        return None
    try:
        if uri.startswith("https://") and _PLAIN_HOST.match(uri) and not {"?", "#"} & set(uri):
            return "https://" + quote(uri.removeprefix("https://"), safe="/:%")
        path = local_path(uri)
        if not path.startswith("/") or path.startswith("//"):
            return None
        if beside and os.path.commonpath([beside, path]) != "/":
            # a colon is quoted, so no name becomes a scheme
            return quote(os.fsencode(os.path.relpath(path, beside)))
        return "file://" + quote(os.fsencode(path))
    # A list may name a file of another host, whose row says so.
    except (UnicodeEncodeError, ConfigError):
        return None


def settings(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A nested mapping as dotted keys with their values, cut where a page would become endless."""
    return list(_flat(value))[:_MOST_SETTINGS]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ray_app.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = (
        "count",
        "number",
        "percent",
        "probability",
        "duration",
        "size",
        "moment",
        "meaning",
        "signed",
    )
    environment.filters.update({name: getattr(wording, name) for name in own})
    environment.filters.update(
        jpeg=jpeg_uri,
        short_name=lambda text: wording.shortened(text, _LONGEST_NAME),
        short_title=lambda text: wording.shortened(text, _LONGEST_TITLE),
        short_text=lambda text: wording.shortened(text, _LONGEST_TEXT),
        path_parts=_path_parts,
        breakable=_breakable,
        unbroken=_unbroken,
    )
    environment.globals.update(
        words=wording,
        file_link=file_link,
        most_entries=_MOST_ENTRIES,
    )
    return environment


def _finalize(value: object) -> object:
    # Runs on every expression of the template before it is escaped, so that no name can be
    # forgotten.
    return (
        wording.visible(value)
        if isinstance(value, str) and not isinstance(value, Markup)
        else value
    )


def _path_parts(uri: str, member: str | None) -> tuple[str, str]:
    """What leads to a file, and its own name."""
    folder, slash, leaf = (uri if member is None else member).rpartition("/")
    return (folder + slash if member is None else f"{uri} › {folder}{slash}"), leaf


def _breakable(text: str) -> Markup:
    """Lines may break after a slash or an underscore, as a reader would."""
    return Markup("").join(
        piece + Markup("<wbr>") if piece in "/_" else piece
        for piece in re.split("([/_])", wording.visible(text))
        if piece
    )


def _unbroken(text: str) -> Markup:
    """A sentence in which numbers and their per cent signs stay on one line."""
    return escape(wording.visible(text)).replace(" %", Markup("&nbsp;%"))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """A nested mapping as dotted keys with their values; lists of plain values stay on one line."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{path}[{index}]")
    else:
        text = (
            ", ".join(map(str, value))
            if isinstance(value, list)
            else ""
            if value is None or value == {}
            else str(value)
        )
        yield path, text or wording.NONE
