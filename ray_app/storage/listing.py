"""Which files a source holds: names, sizes and versions, streamed in the order of their uris. Reads no file.

A source is one file, a folder or key prefix, a pattern (`s3://bucket/2024/**/*.jpg`), or one https URL. Pattern letters count only
where nothing has that literal name. Symbolic links to files are listed, links to folders are not followed (so no cycle can hang a run).
"""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

from ray_app.errors import ConfigError, StorageError
from ray_app.storage import s3, web
from ray_app.storage.errors import is_missing, unreachable
from ray_app.storage.globs import full_matcher, has_magic, split_at_magic
from ray_app.storage.hub import reading_place
from ray_app.storage.in_order import in_order
from ray_app.storage.locations import bucket_and_key, canonical, local_path, local_uri, scheme_of, strip_secrets
from ray_app.storage.retrying import Call, Retrier, RetryPolicy
from ray_app.storage.versions import local_version, version_of
from ray_app.storage.web import WEB, Guard

PATIENCE = RetryPolicy(attempts=6, base_s=0.25, cap_s=10.0, deadline_s=300.0)
# Prefixes listed at once, and pages (1000 keys, about 300 kB) that each may run ahead: bounds memory to some 80 MB.
_PREFIXES_AT_ONCE, _PAGES_AHEAD = 8, 32

_Page = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One file as its store lists it: size -1 where unknown; version = ETag, else size and mtime in ns, else ""."""

    uri: str
    size_bytes: int
    version: str


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
    """Counts, in this thread and inside the block, what listings do not follow: it is no member, and yet should be said."""
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
    place = canonical(source)
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
        raise unreachable(error, place, "list") from error
    if first is None:
        raise ConfigError(f"{strip_secrets(place)}: no such file or folder, or nothing in it", hint=_empty_hint(place))


def is_pattern(source: str) -> bool:
    """Whether a source is read as a pattern, where nothing has that literal name; a web address never is."""
    return has_magic(source) and scheme_of(source) not in WEB


def base_of(source: str) -> str:
    """The part of a source that relative paths begin after: its folder, or the folder before its first pattern."""
    place = canonical(source)
    is_literal = not has_magic(place) or (scheme_of(place) == "file" and os.path.lexists(local_path(place)))
    return place if is_literal else split_at_magic(place)[0]


def _list(place: str, guard: Guard) -> Iterator[ObjectInfo]:
    scheme = scheme_of(place)
    if scheme == "file":
        return _list_local(local_path(place))
    if scheme == "s3":
        return _list_s3(place)
    return _list_web(place, guard) if scheme in WEB else _list_other(place)


def _matching(place: str, guard: Guard) -> Iterator[ObjectInfo]:
    base, pattern = split_at_magic(place)
    matches = full_matcher(pattern)
    skipped = len(base.rstrip("/")) + 1
    return (info for info in _list(base or "/", guard) if matches(local_path(info.uri)[skipped:]))


def _empty_hint(place: str) -> str | None:
    scheme = scheme_of(place)
    if scheme == "file" and os.path.isdir(place):
        return "the folder has no files; linked folders are not followed, name them as sources of their own"
    if scheme == "s3" and not has_magic(place):
        return f"a prefix ends at a slash; for names that begin so, say '{place}*'"
    if scheme == "hf":
        return "check the spelling and the revision; private and gated repositories want HF_TOKEN, or `hf auth login`"
    return "pattern letters count as they are: *.jpg is not A.JPG" if has_magic(place) else None


def _list_local(path: str) -> Iterator[ObjectInfo]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode):
        yield from _list_folder(path)
    elif stat.S_ISREG(found.st_mode):
        yield ObjectInfo(local_uri(path), found.st_size, local_version(found))


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
            yield ObjectInfo(local_uri(path), 0, "")
        return
    if stat.S_ISREG(found.st_mode):
        yield ObjectInfo(local_uri(path), found.st_size, local_version(found))
    elif stat.S_ISDIR(found.st_mode) and (noted := _passed_by.get()) is not None:
        noted.add(LinkedFolders(1, path))


def _list_s3(place: str) -> Iterator[ObjectInfo]:
    bucket, key = bucket_and_key(place)
    prefix = f"{key}/" if key else ""
    empty = True
    for info in _list_prefix(bucket, prefix):
        empty = False
        yield info
    if empty and key:
        try:
            found = Retrier(PATIENCE).call(lambda left: s3.head(bucket, key, timeout_s=left))
        except Exception as error:
            if is_missing(error):
                return
            raise
        yield ObjectInfo(f"s3://{bucket}/{key}", found["ContentLength"], found["ETag"].strip('"'))


def _list_prefix(bucket: str, prefix: str) -> Iterator[ObjectInfo]:
    """One request for a small prefix; a large one is divided at its folders, which are listed side by side and told in order."""
    call = Retrier(PATIENCE).call
    first = call(lambda left: s3.page(bucket, prefix, timeout_s=left))
    if not first.get("IsTruncated"):
        yield from objects_of(bucket, first)
        return

    for page in in_order(_divided(bucket, prefix, call), at_once=_PREFIXES_AT_ONCE, ahead=_PAGES_AHEAD):
        yield from objects_of(bucket, page)


def _divided(bucket: str, prefix: str, call: Call) -> Iterator[list[_Page] | Iterator[_Page]]:
    """Folders as listings still to be made, the objects between them as pages already read, all in key order."""

    def only_folder(prefix: str) -> str | None:
        page = call(lambda left: s3.page(bucket, prefix, timeout_s=left, delimiter="/", limit=2))
        folders = page.get("CommonPrefixes", ())
        return folders[0]["Prefix"] if len(folders) == 1 and not page.get("Contents") and not page.get("IsTruncated") else None

    while deeper := only_folder(prefix):
        prefix = deeper
    for page in s3.pages(bucket, prefix, call, delimiter="/"):
        entries = [(item["Key"], item) for item in page.get("Contents", ())] + [
            (item["Prefix"], None) for item in page.get("CommonPrefixes", ())
        ]
        for is_folder, group in groupby(sorted(entries, key=itemgetter(0)), key=lambda entry: entry[1] is None):
            if is_folder:
                yield from (s3.pages(bucket, folder, call) for folder, _ in group)
            else:
                yield [{"Contents": [item for _, item in group]}]


def objects_of(bucket: str, page: dict[str, Any]) -> Iterator[ObjectInfo]:
    """The files on one page of an S3 listing."""
    for item in page.get("Contents", ()):
        # Consoles mark an empty folder by an empty object whose key ends in a slash.
        if not (item["Key"].endswith("/") and item["Size"] == 0):
            yield ObjectInfo(f"s3://{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))


def _list_web(url: str, guard: Guard) -> Iterator[ObjectInfo]:
    try:
        info = Retrier(PATIENCE).call(lambda left: web.head(url, guard, timeout_s=left))
    except Exception as error:
        if is_missing(error):
            return
        raise
    yield _told(strip_secrets(url), info)


def _list_other(place: str) -> Iterator[ObjectInfo]:
    call = Retrier(PATIENCE).call
    try:
        fs, path = call(lambda _: reading_place(place))
        info = call(lambda _: fs.info(path))
    except FileNotFoundError:
        return
    if info["type"] == "file":
        yield _told(place, info)
        return
    for entry in _walk(fs, path, call):
        yield _told(place + entry["name"][len(path.rstrip("/")) :], entry)


def _walk(fs: Any, folder: str, call: Call) -> Iterator[Mapping[str, Any]]:
    entries = [entry for entry in call(lambda _: fs.ls(folder, detail=True)) if entry["name"].rstrip("/") != folder.rstrip("/")]
    for entry in sorted(entries, key=lambda entry: entry["name"].rstrip("/") + ("/" if entry["type"] == "directory" else "")):
        if entry["type"] == "directory":
            yield from _walk(fs, entry["name"], call)
        else:
            yield entry


def _told(uri: str, info: Mapping[str, Any]) -> ObjectInfo:
    size = info.get("size")
    return ObjectInfo(uri, -1 if size is None else size, version_of(info))
