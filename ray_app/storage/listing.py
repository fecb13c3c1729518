"""List sources: `list_objects` streams names, sizes, and versions in the order of uris.

A source is one file, a folder or key prefix, a pattern (`s3://bucket/2024/**/*.jpg`), or one https
URL. Pattern letters only count if nothing has that literal name. Symbolic links to files are
listed, links to folders are not followed (so no cycle can hang a run). A folder in the source that
cannot be listed is reported (`ClosedFolder`), and everything else is listed.
"""

import difflib
import os
from collections.abc import Iterator
from itertools import chain

from ray_app.errors import ConfigError, StorageError
from ray_app.storage import errors, urls
from ray_app.storage.http import WEB, Guard
from ray_app.storage.place import ClosedFolder, Enters, ObjectInfo
from ray_app.storage.places import place_for


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
            _walk(place, guard, enters_noted)
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
        return next(_walk(place, Guard.of([place]), lambda _: True), None) is not None
    except (ConfigError, StorageError):
        raise
    except Exception as error:
        raise errors.unreachable(error, place, "list") from error


def _walk(place: str, guard: Guard, enters: Enters) -> Iterator[ObjectInfo]:
    return place_for(place, guard, pins_commits=True).walk(place, enters)


def _matching(base: str, pattern: str, guard: Guard, enters: Enters) -> Iterator[ObjectInfo]:
    matches, may_match_below = urls.full_matcher(pattern), urls.matcher_below([f"/{pattern}"])
    skipped = len(base.rstrip("/")) + 1

    def enters_matching(folder: str) -> bool:
        return may_match_below(urls.local_path(folder)[skipped:]) and enters(folder)

    for info in _walk(base or "/", guard, enters_matching):
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
