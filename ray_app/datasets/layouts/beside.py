"""Files that tell of images which lie elsewhere, as CSV and JSON. Knows places and rows, not what a row means."""

import csv
import io
import json
import posixpath
from collections.abc import Iterator
from typing import Any

from ray_app.errors import ConfigError, InputError
from ray_app.storage import Fetcher, canonical, strip_secrets

_MOST_BYTES = 2**31  # the largest published one has 195 MB


def read_json(place: str) -> Any:
    """The content of a JSON file at any URL. Raises ConfigError."""
    try:
        return json.loads(_fetcher(place).fetch(shown(place), "", _MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{shown(place)}: not JSON: {error}") from None
    except InputError as error:
        raise ConfigError(f"{shown(place)}: {error.detail}") from None


def read_csv(place: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header, streamed, each with the number of its line. Raises ConfigError, also for a row that has not
    as many values as the header.
    """
    try:
        with _fetcher(place).open(shown(place), "") as file:
            lines = csv.DictReader(io.TextIOWrapper(io.BufferedReader(file), "utf-8-sig", newline=""), strict=True)
            for row in lines:
                if None in row or None in row.values():
                    raise ConfigError(f"{shown(place)}: line {lines.line_num} has not as many values as the header")
                yield lines.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown(place)}: not a CSV: {error}") from None
    except InputError as error:
        raise ConfigError(f"{shown(place)}: {error.detail}") from None


def shown(place: str) -> str:
    """The place without secrets, as errors and indexes name it."""
    return strip_secrets(canonical(place))


def place_below(root: str, path: str) -> str:
    """The full name of a file that a row calls `path`: as it is where it is absolute or a URL, else below `root`."""
    if "://" in path or path.startswith("/"):
        return shown(path)
    scheme, mark, below = root.rpartition("://")
    return scheme + mark + posixpath.normpath(posixpath.join(below, path))


def root_of(root: str | None, file: str) -> str:
    """The folder that a file's paths are below: the one its user names, else its own; spelt as the uris of an archive are."""
    return shown(file).rpartition("/")[0] if root is None else shown(root)


def entered(found: dict[str, Any], place: str, value: Any, file: str) -> None:
    """Note what a file says of an image. Raises ConfigError where it says something else of the same image elsewhere."""
    if found.setdefault(place, value) != value:
        raise ConfigError(f"{shown(file)}: {place} is there twice, as [{found[place]}] and as [{value}]")


def _fetcher(place: str) -> Fetcher:
    return Fetcher(signed=[place])
