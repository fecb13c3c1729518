"""List sources: `list_objects` streams names, sizes, and versions in the order of uris;
`walk_folder` streams the paths in a local folder.

A source is one file, a folder or key prefix, a pattern (`s3://bucket/2024/**/*.jpg`), or one https
URL. Pattern letters only count if nothing has that literal name. Symbolic links to files are
listed, links to folders are not followed (so no cycle can hang a run). A folder in the source that
cannot be listed is reported (`ClosedFolder`), and everything else is listed.
"""

import difflib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ray_app.errors import ConfigError, SourceError, Status, StorageError
from ray_app.storage import errors, fetch, http, key_ranges, object_store, urls
from ray_app.storage.http import WEB, Guard
from ray_app.storage.key_ranges import ObjectInfo
from ray_app.storage.retry import Retrier

# Called with the uri of a folder: whether anything in the folder may count.
Enters = Callable[[str], bool]

# of this process or machine, not of one folder
_NO_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class ClosedFolder(ObjectInfo):
    """A folder whose files could not be listed, or not all of them, and why."""

    error: SourceError


class ClosedFile(ObjectInfo):
    """A file whose size and version could not be read, although its name is in its folder."""

    __slots__ = ()


@dataclass
class NotedFolders:
    """The number of folders of one kind in a listing, such as links to folders, and the path of the
    first.
    """

    count: int = 0
    example: str = ""

    def add(self, other: "NotedFolders") -> None:
        """Count the folders of another listing too."""
        self.count, self.example = self.count + other.count, self.example or other.example


_passed_by: ContextVar[NotedFolders | None] = ContextVar("linked folders", default=None)


@contextmanager
def noting_linked_folders() -> Iterator[NotedFolders]:
    """Counts, in this thread and inside the block, what listings do not follow: it is no member,
    and yet should be reported.
    """
    noted = NotedFolders()
    token = _passed_by.set(noted)
    try:
        yield noted
    finally:
        _passed_by.reset(token)


def list_objects(
    source: str, guard: Guard | None = None, *, enters: Enters = lambda _: True
) -> Iterator[ObjectInfo]:
    """List every file of a source, sorted by uri, with secrets stripped; memory does not grow with
    the number of files.

    A folder of the source that cannot be listed is a `ClosedFolder`.

    Args:
        source: A file, a folder, a key prefix, a pattern, or one https URL.
        guard: The web servers that a server may redirect to. Defaults to itself and the public
            Internet.
        enters: Called with the uri of a folder before it is listed; False leaves the folder out. A
            bucket has no folders.

    Raises:
        ConfigError: No file is there. Raised at the first step, as the others.
        StorageError: The store is unreachable, or the source itself cannot be listed.
    """
    place = urls.canonical(source)
    guard = guard or Guard.of([place])
    has_left_out = False

    def enters_noted(folder: str) -> bool:
        nonlocal has_left_out
        is_wanted = enters(folder)
        has_left_out |= not is_wanted
        return is_wanted

    try:
        base, pattern = split_source(place)
        found = (
            _list(place, guard, enters_noted)
            if pattern is None
            else _matching(base, pattern, guard, enters_noted)
        )
        first = next(found, None)
        if first is not None:
            yield from chain([first], found)
    except (ConfigError, StorageError):
        raise
    except Exception as error:
        raise errors.unreachable(error, place, "list") from error
    if first is None and not has_left_out:
        raise _nothing_at(place)


def split_source(source: str) -> tuple[str, str | None]:
    """Split a source into the place that relative paths begin after, and the pattern behind it,
    which is None for a literal name.

    A name with pattern letters is literal if the store has it. A web address is always literal.
    Raises StorageError.
    """
    place = urls.canonical(source)
    if not urls.has_magic(place) or urls.scheme_of(place) in WEB or _is_there(place):
        return place, None
    return urls.split_at_magic(place)


def is_pattern(source: str) -> bool:
    """Whether a source is a pattern, and not the literal name of a file, folder, or prefix. Raises
    StorageError.
    """
    return split_source(source)[1] is not None


def base_of(source: str) -> str:
    """Return the folder or prefix that paths of a source are relative to. Raises StorageError."""
    return split_source(source)[0]


def _is_there(place: str) -> bool:
    if urls.scheme_of(place) == "file":
        return os.path.lexists(place)
    try:
        return next(_list(place, Guard.of([place]), lambda _: True), None) is not None
    except (ConfigError, StorageError):
        raise
    except Exception as error:
        raise errors.unreachable(error, place, "list") from error


def _list(place: str, guard: Guard, enters: Enters) -> Iterator[ObjectInfo]:
    scheme = urls.scheme_of(place)
    if scheme == "file":
        return _list_local(place, enters)
    if scheme == "s3":
        return key_ranges.list_prefix(place)
    return _list_web(place, guard) if scheme in WEB else _list_other(place, enters)


def _matching(base: str, pattern: str, guard: Guard, enters: Enters) -> Iterator[ObjectInfo]:
    matches, may_match_below = urls.full_matcher(pattern), urls.matcher_below([f"/{pattern}"])
    skipped = len(base.rstrip("/")) + 1

    def enters_matching(folder: str) -> bool:
        return may_match_below(urls.local_path(folder)[skipped:]) and enters(folder)

    for info in _list(base or "/", guard, enters_matching):
        if isinstance(info, ClosedFolder) or matches(urls.local_path(info.uri)[skipped:]):
            yield info


def not_there(path: str) -> ConfigError:
    """What to say of a file or folder of this machine that is not there, with the nearest name
    beside it.
    """
    folder, name = os.path.split(os.path.abspath(path))
    try:
        nearest = difflib.get_close_matches(name, os.listdir(folder), 1)
    except OSError:
        nearest = []
    hint = (
        f"did you mean {os.path.join(os.path.dirname(path), nearest[0])}?"
        if nearest
        else "check the spelling, and the folder you are in"
    )
    return ConfigError(f"{path}: no such file or folder", hint=hint)


def _nothing_at(place: str) -> ConfigError:
    """What to say where a source has no file: a misspelt name, an empty folder, or a pattern that
    nothing matches.
    """
    scheme, shown = urls.scheme_of(place), urls.strip_secrets(place)
    if scheme == "file" and os.path.isdir(place):
        hint = "linked folders are not followed: name them as sources of their own"
        return ConfigError(f"{shown}: the folder has no files in it", hint=hint)
    if scheme == "file" and os.path.lexists(place):
        kind = (
            "a link to nothing"
            if os.path.islink(place) and not os.path.exists(place)
            else "neither a file nor a folder"
        )
        return ConfigError(f"{shown}: it is {kind}", hint="name a file or a folder")
    if urls.has_braces(shown):
        return ConfigError(
            f"{shown}: no such file or folder, and braces are not expanded",
            hint="write a pattern, as in db-*.tar, or name each file",
        )
    if is_pattern(place):
        return ConfigError(
            f"{shown}: no file matches this pattern",
            hint="upper and lower case count: *.jpg does not match A.JPG",
        )
    if scheme == "file":
        return not_there(place)
    hint = {
        "s3": f"check the spelling; for all objects whose names begin so, write '{shown}*'",
        "hf": "check the spelling and the revision; private and gated repositories need HF_TOKEN, or `hf auth login`",
    }.get(scheme, "check the spelling")
    return ConfigError(f"{shown}: no such file or folder, or it has no files in it", hint=hint)


def _list_local(path: str, enters: Enters) -> Iterator[ObjectInfo]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode):
        yield from _list_folder(path, enters)
    elif stat.S_ISREG(found.st_mode):
        yield ObjectInfo(urls.local_uri(path), found.st_size, fetch.local_version(found))


def _list_folder(folder: str, enters: Enters) -> Iterator[ObjectInfo]:
    for path, error in walk_folder(folder, enters):
        if error is not None:
            yield ClosedFolder(urls.local_uri(path), -1, "", errors.closed_folder(error))
            continue
        try:
            found = os.stat(path)
        # The reader of the file meets the same error, and the row of the file shows it.
        except OSError as error_of_file:
            kind = ObjectInfo if errors.is_missing(error_of_file) else ClosedFile
            yield kind(urls.local_uri(path), -1, "")
            continue
        if stat.S_ISREG(found.st_mode):
            yield ObjectInfo(urls.local_uri(path), found.st_size, fetch.local_version(found))
        elif stat.S_ISDIR(found.st_mode) and (noted := _passed_by.get()) is not None:
            noted.add(NotedFolders(1, path))


def walk_folder(
    folder: str, enters: Enters = lambda _: True
) -> Iterator[tuple[str, OSError | None]]:
    """Walk a local folder in the order of uris, without following links to folders.

    Args:
        folder: The path of the folder.
        enters: Called with the uri of each folder below; False leaves the folder out.

    Yields:
        The path of everything that is not a folder, with None; and the path of each folder below that cannot be listed, with the reason.

    Raises:
        OSError: The folder itself cannot be listed or entered, or this process has no resources
            left.
    """
    prefix = folder.rstrip("/") + "/"
    # A folder that can be listed but not entered: every file in it would be denied.
    os.stat(prefix + ".")
    names, error = _names_in(prefix)
    if error is not None:
        raise error
    # A stack and no recursion: folders may be nested more deeply than Python's calls.
    waiting = [(prefix, iter(names))]
    while waiting:
        prefix, rest = waiting[-1]
        for name in rest:
            path = prefix + name
            if not name.endswith("/"):
                yield path, None
            elif enters(urls.local_uri(path[:-1])):
                names, error = _names_in(path)
                if error is not None:
                    yield path[:-1], error
                waiting.append((path, iter(names)))
                break
        else:
            waiting.pop()


def _names_in(folder: str) -> tuple[list[str], OSError | None]:
    """Return the sorted names in a folder, those of folders with a slash, as far as they can be
    read, and what ended them early.
    """
    # Sorting folders with their slash is the order of whole uris, the one that S3 lists in.
    # Only names are kept: a flat folder may be huge.
    names: list[str] = []
    error: OSError | None = None
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(
                    entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name
                )
    except OSError as ended:
        if ended.errno in _NO_RESOURCES:
            raise
        error = ended
    names.sort()
    return names, error


def _list_web(url: str, guard: Guard) -> Iterator[ObjectInfo]:
    try:
        for attempt in Retrier(key_ranges.PATIENCE).attempts():
            with attempt as left:
                info = http.head(url, guard, timeout_s=left)
    except Exception as error:
        if errors.is_missing(error):
            return
        raise
    yield _object_info(urls.strip_secrets(url), info)


def _list_other(place: str, enters: Enters) -> Iterator[ObjectInfo]:
    retrier = Retrier(key_ranges.PATIENCE)
    try:
        for attempt in retrier.attempts():
            with attempt:
                fs, path = object_store.reading_place(place)
                info = fs.info(path)
    except FileNotFoundError:
        return
    if info["type"] == "file":
        yield _object_info(place, info)
        return
    skipped = len(path.rstrip("/"))
    waiting = [iter(_entries_in(fs, path, retrier))]
    while waiting:
        for entry in waiting[-1]:
            uri = place + entry["name"][skipped:]
            if entry["type"] != "directory":
                yield _object_info(uri, entry)
            elif enters(uri.rstrip("/")):
                try:
                    waiting.append(iter(_entries_in(fs, entry["name"], retrier)))
                except Exception as error:
                    reason = errors.closed_folder(error)
                    if reason.status not in (Status.SOURCE_DENIED, Status.SOURCE_MISSING):
                        # The store gave no answer, after many attempts: nothing else of it will be
                        # listed either.
                        raise
                    yield ClosedFolder(uri.rstrip("/"), -1, "", reason)
                    continue
                break
        else:
            waiting.pop()


def _entries_in(fs: Any, folder: str, retrier: Retrier) -> list[Mapping[str, Any]]:
    for attempt in retrier.attempts():
        with attempt:
            found = fs.ls(folder, detail=True)
    entries = [entry for entry in found if entry["name"].rstrip("/") != folder.rstrip("/")]
    return sorted(
        entries,
        key=lambda entry: entry["name"].rstrip("/") + ("/" if entry["type"] == "directory" else ""),
    )


def _object_info(uri: str, info: Mapping[str, Any]) -> ObjectInfo:
    size = info.get("size")
    return ObjectInfo(uri, -1 if size is None else size, urls.version_of(info))
