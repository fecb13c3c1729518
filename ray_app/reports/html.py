"""Render HTML pages of reports with Jinja (`render`).

All text is escaped as HTML, and `escape_invisible` escapes characters that would hide or reorder text.
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
_MAX_NAME_WIDTH = 96
_MAX_TEXT_WIDTH = 240
_MAX_TITLE_WIDTH = 2_000
_MAX_ENTRIES = 12
_MAX_SETTINGS = 500


def render(template: str, **facts: Any) -> str:
    """Render an HTML template of the folder `templates/`. An undefined variable is an error."""
    return _environment().get_template(template).render(**facts)


def render_in_pieces(template: str, **facts: Any) -> Iterator[str]:
    """Yield a rendered template in chunks, so that a large page is never in memory as a whole."""
    return _environment().get_template(template).generate(**facts)


def script_hash(template: str) -> str:
    """Return the SHA-256 of a script of the folder `templates/`, in base64.

    The page that includes the script names this hash in its Content-Security-Policy, which allows
    no other script.
    """
    return base64.b64encode(hashlib.sha256(render(template).encode()).digest()).decode()


def jpeg_uri(data: bytes | str | None) -> str | None:
    """Return the bytes of a JPEG, or their base64, as a data URI.

    Return None for any other data, so that no other type gets into a page.
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


def file_link(uri: str, member: str | None, page_folder: str = "") -> str | None:
    """Return a link to a file for a browser.

    Args:
        uri: URI of the file.
        member: Name of the file inside the container `uri`. None if it is not in a container.
        page_folder: Absolute path of the folder of the page. A local file gets a relative link if
            both have a common folder other than the root. "" for absolute links.

    Returns:
        A `file://` or `https://` link, or a relative link. None for files in containers and
        buckets. None also for URLs with a user, a password, or a query: these can be secret, and
        reports are passed on.
    """
    if member is not None or not uri.isprintable():
        return None
    try:
        if uri.startswith("https://") and _PLAIN_HOST.match(uri) and not {"?", "#"} & set(uri):
            return "https://" + quote(uri.removeprefix("https://"), safe="/:%")
        path = local_path(uri)
        if not path.startswith("/") or path.startswith("//"):
            return None
        if page_folder and os.path.commonpath([page_folder, path]) != "/":
            # Quoting escapes the colon, so that a name cannot become a scheme.
            return quote(os.fsencode(os.path.relpath(path, page_folder)))
        return "file://" + quote(os.fsencode(path))
    # A list may contain a file URL of another host, which has no local path.
    except (UnicodeEncodeError, ConfigError):
        return None


def settings(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flatten nested settings to (dotted key, value) pairs for a table, at most 500 of them."""
    return list(_flatten(value))[:_MAX_SETTINGS]


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
    filters = (
        "count",
        "number",
        "percent",
        "probability",
        "duration",
        "size",
        "format_time",
        "describe_status",
        "signed",
    )
    environment.filters.update({name: getattr(wording, name) for name in filters})
    environment.filters.update(
        jpeg=jpeg_uri,
        short_name=lambda text: wording.truncate(text, _MAX_NAME_WIDTH),
        short_title=lambda text: wording.truncate(text, _MAX_TITLE_WIDTH),
        short_text=lambda text: wording.truncate(text, _MAX_TEXT_WIDTH),
        path_parts=_split_path,
        breakable=_allow_breaks,
        unbroken=_keep_units,
    )
    environment.globals.update(
        words=wording,
        file_link=file_link,
        most_entries=_MAX_ENTRIES,
    )
    return environment


def _finalize(value: object) -> object:
    # Jinja calls this function for every expression before it escapes the value, so that no value
    # can be forgotten.
    return (
        wording.escape_invisible(value)
        if isinstance(value, str) and not isinstance(value, Markup)
        else value
    )


def _split_path(uri: str, member: str | None) -> tuple[str, str]:
    """Return the path up to a file, and the file's own name."""
    folder, slash, leaf = (uri if member is None else member).rpartition("/")
    return (folder + slash if member is None else f"{uri} › {folder}{slash}"), leaf


def _allow_breaks(text: str) -> Markup:
    """Allow line breaks after slashes and underscores."""
    return Markup("").join(
        part + Markup("<wbr>") if part in "/_" else part
        for part in re.split("([/_])", wording.escape_invisible(text))
        if part
    )


def _keep_units(text: str) -> Markup:
    """Prevent line breaks between numbers and their per cent signs."""
    return escape(wording.escape_invisible(text)).replace(" %", Markup("&nbsp;%"))


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield a nested mapping as (dotted key, value) pairs; a list of plain values is one value."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{path}[{index}]")
    else:
        text = (
            ", ".join(map(str, value))
            if isinstance(value, list)
            else ""
            if value is None or value == {}
            else str(value)
        )
        yield path, text or wording.NONE
