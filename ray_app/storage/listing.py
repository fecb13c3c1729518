"""List the files of a source with their sizes and versions, in the order of uris (`list_objects`).

A source is one file, a folder or key prefix, a pattern (`s3://bucket/2024/**/*.jpg`), or one https
URL. If a file or folder has the name `a[1].jpg`, the source `a[1].jpg` is this name and not a
pattern. Symbolic links to files are listed. Links to folders are not followed, so that a cycle
cannot hang a run. A folder in the source that cannot be listed is reported (`ClosedFolder`), and
everything else is listed.
"""

import difflib
import os
from collections.abc import Iterator
from itertools import chain

from ray_app.errors import ConfigError, StorageError
from ray_app.storage import errors, urls
from ray_app.storage.http import WEB, Guard
from ray_app.storage.place import ClosedFolder, Enters, ObjectInfo
from ray_app.storage.places import choose_backend


def list_objects(
    source: str, guard: Guard | None = None, *, enters: Enters = lambda _: True
) -> Iterator[ObjectInfo]:
    """Yield every file of a source in the order of uris, without secrets in the uris.

    Memory does not grow with the number of files. For a folder in the source that cannot be listed,
    a `ClosedFolder` is yielded.

    Args:
        source: A file, a folder, a key prefix, a pattern, or one https URL.
        guard: The web servers to which a server may redirect. Defaults to the server itself and the
            public Internet.
        enters: A function that is called with the uri of a folder before it is listed. If it
            returns False, the folder is skipped. It is not called for S3, whose buckets have no
            folders.

    Raises:
        ConfigError: The URL is invalid, or the source has no files and `enters` skipped no folder.
        StorageError: The store is unreachable, or the source itself cannot be listed. Like
            ConfigError, it is raised by an iteration and not by the call.
    """
    location = urls.canonicalize(source)
    guard = guard or Guard.from_urls([location])
    has_skipped = False

    def enters_and_note(folder: str) -> bool:
        nonlocal has_skipped
        is_entered = enters(folder)
        has_skipped |= not is_entered
        return is_entered

    try:
        base, pattern = split_source(location)
        objects = (
            _walk(location, guard, enters_and_note)
            if pattern is None
            else _list_matching(base, pattern, guard, enters_and_note)
        )
        first = next(objects, None)
        if first is not None:
            yield from chain([first], objects)
    except (ConfigError, StorageError):
        raise
    except Exception as error:
        raise errors.make_unreachable_error(error, location, "list") from error
    if first is None and not has_skipped:
        raise _make_empty_error(location)


def split_source(source: str) -> tuple[str, str | None]:
    """Split a source into the location to which its files' paths are relative, and its pattern.

    For `s3://bucket/2024/*.jpg`, the result is `("s3://bucket/2024", "*.jpg")`. The pattern is None
    for a literal name. A name with characters of a pattern is literal if the store has a file or
    folder of this name. A web URL is always literal.

    Raises:
        ConfigError: The URL is invalid, or its scheme is unknown.
        StorageError: The store is unreachable.
    """
    location = urls.canonicalize(source)
    if not urls.has_magic(location) or urls.get_scheme(location) in WEB or _exists(location):
        return location, None
    return urls.split_at_magic(location)


def is_pattern(source: str) -> bool:
    """Return whether a source is a pattern, and not the literal name of a file, folder, or prefix.

    Raises:
        StorageError: The store is unreachable.
    """
    return split_source(source)[1] is not None


def find_base(source: str) -> str:
    """Return the folder or prefix at which the relative paths of a source's files begin.

    For the source `s3://bucket/2024/*.jpg`, it is `s3://bucket/2024`.

    Raises:
        StorageError: The store is unreachable.
    """
    return split_source(source)[0]


def _exists(location: str) -> bool:
    if urls.get_scheme(location) == "file":
        return os.path.lexists(location)
    try:
        return next(_walk(location, Guard.from_urls([location]), lambda _: True), None) is not None
    except (ConfigError, StorageError):
        raise
    except Exception as error:
        raise errors.make_unreachable_error(error, location, "list") from error


def _walk(location: str, guard: Guard, enters: Enters) -> Iterator[ObjectInfo]:
    return choose_backend(location, guard, pins_commits=True).walk(location, enters)


def _list_matching(base: str, pattern: str, guard: Guard, enters: Enters) -> Iterator[ObjectInfo]:
    matches, may_match_below = (
        urls.make_full_matcher(pattern),
        urls.make_folder_matcher([f"/{pattern}"]),
    )
    base_length = len(base.rstrip("/")) + 1

    def enters_matching(folder: str) -> bool:
        return may_match_below(urls.local_path(folder)[base_length:]) and enters(folder)

    for info in _walk(base or "/", guard, enters_matching):
        if isinstance(info, ClosedFolder) or matches(urls.local_path(info.uri)[base_length:]):
            yield info


def make_missing_error(path: str) -> ConfigError:
    """Return the error for a missing local file or folder, with the most similar name as a hint."""
    folder, name = os.path.split(os.path.abspath(path))
    try:
        nearest = difflib.get_close_matches(name, os.listdir(folder), 1)
    except OSError:
        nearest = []
    hint = (
        f"did you mean {os.path.join(os.path.dirname(path), nearest[0])}?"
        if nearest
        else "check the spelling, and the current directory"
    )
    return ConfigError(f"{path}: no such file or folder", hint=hint)


def _make_empty_error(location: str) -> ConfigError:
    """Return the error for a source without files.

    The name is misspelt, the folder is empty, or nothing matches the pattern.
    """
    scheme, name = urls.get_scheme(location), urls.strip_secrets(location)
    if scheme == "file" and os.path.isdir(location):
        hint = "name each linked folder as a separate source; links to folders are not followed"
        return ConfigError(f"{name}: the folder has no files in it", hint=hint)
    if scheme == "file" and os.path.lexists(location):
        kind = (
            "a dangling symbolic link"
            if os.path.islink(location) and not os.path.exists(location)
            else "neither a file nor a folder"
        )
        return ConfigError(
            f"{name}: expected a file or a folder, found {kind}", hint="name a file or a folder"
        )
    if urls.has_braces(name):
        return ConfigError(
            f"{name}: no such file or folder, and braces are not expanded",
            hint="write a pattern, as in db-*.tar, or name each file",
        )
    if is_pattern(location):
        return ConfigError(
            f"{name}: no file matches this pattern",
            hint="check upper and lower case: *.jpg does not match A.JPG",
        )
    if scheme == "file":
        return make_missing_error(location)
    hint = {
        "s3": f"check the spelling; for all objects whose names begin with it, write '{name}*'",
        "hf": "check the spelling and the revision; private and gated repositories need HF_TOKEN, or `hf auth login`",
    }.get(scheme, "check the spelling")
    return ConfigError(f"{name}: no such file or folder, or it has no files in it", hint=hint)
