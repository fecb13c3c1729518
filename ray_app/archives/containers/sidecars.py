"""WebDataset's sidecars: small text files that describe the image beside them, by its name. Knows names and text; reads nothing.

A key is the path up to the first dot of the base name (https://github.com/webdataset/webdataset#the-webdataset-format): `a/7.jpg`,
`a/7.json` and `a/7.cls` are one sample when they stand side by side.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby, islice

from ray_app.archives.members import Listed

_COLUMNS = ("json", "cls", "txt")
MAX_SIDECAR_BYTES = 64 * 1024
# A sample has a handful of files; a key that goes on for ever is another way of naming, and must not fill memory.
_MOST_OF_ONE_KEY = 64


def sidecar_column(name: str, size_bytes: int) -> str | None:
    """The column that a member would become; None for one that is no sidecar by its name or size."""
    key, ending = _split(name)
    is_one = ending.lower() in _COLUMNS and key.rpartition("/")[2] != "" and 0 <= size_bytes <= MAX_SIDECAR_BYTES
    return ending.lower() if is_one else None


def sample_key(name: str) -> str:
    """The key of the sample that a file belongs to."""
    return _split(name)[0]


def as_text(data: bytes) -> str | None:
    """A sidecar's text; None for what is no text, which stays a member."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def join_sidecars(found: Iterable[tuple[Listed, str | None]]) -> Iterator[Listed]:
    """Members in order, those with a text as columns of the others of their key. An orphan, or a second of one column, stays a member."""
    for _, sample in groupby(found, key=lambda item: sample_key(item[0].member or "")):
        while part := list(islice(sample, _MOST_OF_ONE_KEY)):
            yield from _joined(part)


def _joined(sample: list[tuple[Listed, str | None]]) -> Iterator[Listed]:
    if all(text is not None for _, text in sample):
        yield from (item for item, _ in sample)
        return
    columns: dict[str, str] = {}
    members: list[Listed] = []
    for item, text in sample:
        column = sidecar_column(item.member or "", item.size_bytes)
        if text is None or column is None or column in columns:
            members.append(item)
        else:
            columns[column] = text
    yield from (replace(item, input=item.input | columns) for item in members)


def _split(name: str) -> tuple[str, str]:
    """Key and ending: `a.b/c.tar.gz` is (`a.b/c`, `tar.gz`)."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending
