"""Listing sources: `list_objects` streams names, sizes and versions in the order of uris.

A source is one file, a folder or key prefix, a pattern (`s3://bucket/2024/**/*.jpg`), or one https URL. Pattern letters count only where
nothing has that literal name. Symbolic links to files are listed, links to folders are not followed (so no cycle can hang a run).
"""

import difflib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ray_app.errors import ConfigError, StorageError
from ray_app.storage import errors, fetch, http, key_ranges, object_store, urls
from ray_app.storage.http import WEB, Guard
from ray_app.storage.key_ranges import ObjectInfo


@dataclass
class LinkedFolders:
    """Symbolic links to folders that a listing did not follow: how many, and the first of them."""

    count: int = 0
    example: str = ""

    def add(self, other: "LinkedFolders") -> None:
        """Count those of another listing too."""
        self.count, self.example = self.count + other.count, self.example or other.example


_passed_by: ContextVar[LinkedFolders | None] = ContextVar("linked folders", default=None)


@contextmanager
def noting_linked_folders() -> Iterator[LinkedFolders]:
    """Counts, in this thread and inside the block, what listings do not follow: it is no member, and yet should be reported."""
    noted = LinkedFolders()
    token = _passed_by.set(noted)
    try:
        yield noted
    finally:
        _passed_by.reset(token)


def list_objects(source: str, guard: Guard | None = None) -> Iterator[ObjectInfo]:
    """Every file of a source, sorted by uri, with secrets stripped; memory does not grow with their number.

    `guard`: where a web server may redirect to; null = to itself, or to the public Internet.
    Raises: ConfigError when nothing is there, StorageError when the store is out of reach or refuses, both at the first step.
    """
    place = urls.canonical(source)
    guard = guard or Guard.of([place])
    try:
        found = _list(place, guard)
        first = next(found, None)
        if first is None and is_pattern(place):
            found = _matching(place, guard)
            first = next(found, None)
        if first is not None:
            yield from chain([first], found)
    except (ConfigError, StorageError):
        raise
    except Exception as error:
        raise errors.unreachable(error, place, "list") from error
    if first is None:
        raise _nothing_at(place)


def is_pattern(source: str) -> bool:
    """Whether a source is read as a pattern, where nothing has that literal name; a web address never is."""
    return urls.has_magic(source) and urls.scheme_of(source) not in WEB


def base_of(source: str) -> str:
    """The part of a source that relative paths begin after: its folder, or the folder before its first pattern."""
    place = urls.canonical(source)
    is_literal = not urls.has_magic(place) or (urls.scheme_of(place) == "file" and os.path.lexists(urls.local_path(place)))
    return place if is_literal else urls.split_at_magic(place)[0]


def _list(place: str, guard: Guard) -> Iterator[ObjectInfo]:
    scheme = urls.scheme_of(place)
    if scheme == "file":
        return _list_local(urls.local_path(place))
    if scheme == "s3":
        return key_ranges.list_prefix(place)
    return _list_web(place, guard) if scheme in WEB else _list_other(place)


def _matching(place: str, guard: Guard) -> Iterator[ObjectInfo]:
    base, pattern = urls.split_at_magic(place)
    matches = urls.full_matcher(pattern)
    skipped = len(base.rstrip("/")) + 1
    return (info for info in _list(base or "/", guard) if matches(urls.local_path(info.uri)[skipped:]))


def not_there(path: str) -> ConfigError:
    """What to say of a file or folder of this machine that is not there, with the nearest name beside it."""
    folder, name = os.path.split(os.path.abspath(path))
    nearest = difflib.get_close_matches(name, os.listdir(folder) if os.access(folder, os.R_OK) else (), 1)
    hint = (
        f"did you mean {os.path.join(os.path.dirname(path), nearest[0])}?" if nearest else "check the spelling, and the folder you are in"
    )
    return ConfigError(f"{path}: no such file or folder", hint=hint)


def _nothing_at(place: str) -> ConfigError:
    """What to say where a source has no file: a misspelt name, an empty folder, or a pattern that nothing matches."""
    scheme, shown = urls.scheme_of(place), urls.strip_secrets(place)
    if scheme == "file" and os.path.isdir(place):
        hint = "linked folders are not followed: name them as sources of their own"
        return ConfigError(f"{shown}: the folder has no files in it", hint=hint)
    if scheme == "file" and os.path.lexists(place):
        kind = "a link to nothing" if os.path.islink(place) and not os.path.exists(place) else "neither a file nor a folder"
        return ConfigError(f"{shown}: it is {kind}", hint="name a file or a folder")
    if is_pattern(place):
        return ConfigError(f"{shown}: no file matches this pattern", hint="upper and lower case count: *.jpg does not match A.JPG")
    if scheme == "file":
        return not_there(place)
    hint = {
        "s3": f"check the spelling; for all objects whose names begin so, write '{shown}*'",
        "hf": "check the spelling and the revision; private and gated repositories need HF_TOKEN, or `hf auth login`",
    }.get(scheme, "check the spelling")
    return ConfigError(f"{shown}: no such file or folder, or it has no files in it", hint=hint)


def _list_local(path: str) -> Iterator[ObjectInfo]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode):
        yield from _list_folder(path)
    elif stat.S_ISREG(found.st_mode):
        yield ObjectInfo(urls.local_uri(path), found.st_size, fetch.local_version(found))


def _list_folder(folder: str) -> Iterator[ObjectInfo]:
    # Sorting folders with their slash is the order of whole uris, the one that S3 lists in.
    # Names alone are kept: a flat folder may be huge.
    with os.scandir(folder) as entries:
        names = sorted(entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name for entry in entries)
    for name in names:
        path = f"{folder.rstrip('/')}/{name}"
        if name.endswith("/"):
            yield from _list_folder(path[:-1])
        else:
            yield from _list_entry(path)


def _list_entry(path: str) -> Iterator[ObjectInfo]:
    try:
        found = os.stat(path)
    except OSError:
        if os.path.islink(path):  # dangling: a row that says `source_missing` is more honest than silence
            yield ObjectInfo(urls.local_uri(path), 0, "")
        return
    if stat.S_ISREG(found.st_mode):
        yield ObjectInfo(urls.local_uri(path), found.st_size, fetch.local_version(found))
    elif stat.S_ISDIR(found.st_mode) and (noted := _passed_by.get()) is not None:
        noted.add(LinkedFolders(1, path))


def _list_web(url: str, guard: Guard) -> Iterator[ObjectInfo]:
    try:
        info = fetch.Retrier(key_ranges.PATIENCE).call(lambda left: http.head(url, guard, timeout_s=left))
    except Exception as error:
        if errors.is_missing(error):
            return
        raise
    yield _object_info(urls.strip_secrets(url), info)


def _list_other(place: str) -> Iterator[ObjectInfo]:
    call = fetch.Retrier(key_ranges.PATIENCE).call
    try:
        fs, path = call(lambda _: object_store.reading_place(place))
        info = call(lambda _: fs.info(path))
    except FileNotFoundError:
        return
    if info["type"] == "file":
        yield _object_info(place, info)
        return
    for entry in _walk(fs, path, call):
        yield _object_info(place + entry["name"][len(path.rstrip("/")) :], entry)


def _walk(fs: Any, folder: str, call: Callable[[Callable[[float], Any]], Any]) -> Iterator[Mapping[str, Any]]:
    entries = [entry for entry in call(lambda _: fs.ls(folder, detail=True)) if entry["name"].rstrip("/") != folder.rstrip("/")]
    for entry in sorted(entries, key=lambda entry: entry["name"].rstrip("/") + ("/" if entry["type"] == "directory" else "")):
        if entry["type"] == "directory":
            yield from _walk(fs, entry["name"], call)
        else:
            yield entry


def _object_info(uri: str, info: Mapping[str, Any]) -> ObjectInfo:
    size = info.get("size")
    return ObjectInfo(uri, -1 if size is None else size, urls.version_of(info))
