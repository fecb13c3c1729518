"""What tells one state of a file from the next. Knows the words that stores use; asks none."""

from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from os import stat_result
from typing import Any

_CONTENT = ("ETag", "etag", "blob_id")
_TIME = ("mtime", "last_modified", "LastModified", "Last-Modified", "updated", "created")


def version_of(info: Mapping[str, Any]) -> str:
    """The version in fsspec's `info` or in HTTP headers: ETag (quotes stripped), else size and mtime in ns, else ""."""
    for name in _CONTENT:
        if info.get(name):
            return str(info[name]).strip('"')
    for name in _TIME:
        if info.get(name) is not None and info.get("size") is not None:
            return f"{info['size']}-{_nanoseconds(info[name])}"
    return ""


def local_version(found: stat_result) -> str:
    """The version of a local file: size and mtime in ns."""
    return f"{found.st_size}-{found.st_mtime_ns}"


def _nanoseconds(when: Any) -> int:
    if isinstance(when, str):
        try:
            when = parsedate_to_datetime(when)
        except ValueError:
            when = datetime.fromisoformat(when)
    seconds = when.timestamp() if isinstance(when, datetime) else float(when)
    return round(seconds * 1_000_000) * 1000  # what stores tell is no finer than microseconds
