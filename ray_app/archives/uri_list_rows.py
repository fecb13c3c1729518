"""`ListEntries`: one row of a list → one member; which uris a list may name, and which it must not."""

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ray_app.archives.members import ListedMember, RefusedMember, VersionlessFile
from ray_app.errors import ConfigError, Status
from ray_app.storage import canonical, errors, local_path, strip_secrets, urls
from ray_app.storage.local import local_version

# fsspec opens more: archives in archives, caches, shells. A list has no need of them.
SCHEMES = frozenset({"s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https", "file"})
_WINDOWS = re.compile(r"\\|^[A-Za-z]:/")
_WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]|\\\\")
# read without fsspec: in their names :: is two letters like others
UNCHAINED = ("s3", "http", "https", "file")


class ListEntries:
    """Rows of one list, in order. A relative uri is below the list's folder; `version` or `etag`,
    and `size_bytes`, say what a store's own listing would; every other column becomes `input`.
    """

    def __init__(self, list_uri: str, column: str) -> None:
        self._list, self._column = list_uri, column
        self._is_local = urls.scheme_of(list_uri) == "file"
        place = local_path(list_uri) if self._is_local else list_uri.partition("?")[0]
        self._folder = place.rpartition("/")[0]
        self._row = 0
        self._buckets: set[str] = set()

    def members(self, rows: Iterable[dict[str, Any]]) -> Iterator[ListedMember]:
        """A member per row. Raises ConfigError, naming file and row, for one without a uri."""
        for row in rows:
            self._row += 1
            uri = row.pop(self._column, None)
            if not isinstance(uri, str) or not uri:
                raise ConfigError(
                    f"{self._list}: row {self._row} has no text in its column '{self._column}'",
                    hint="each row should name one image",
                )
            version, etag, size = (
                row.pop("version", None),
                row.pop("etag", None),
                row.pop("size_bytes", None),
            )
            yield self._member(
                uri, _version(version, etag), size if type(size) is int and size >= 0 else -1, row
            )

    def _member(self, uri: str, version: str, size: int, others: dict[str, Any]) -> ListedMember:
        place, refused = self._place(uri)
        if refused is None and not version and place.startswith(("/", "file:")):
            size, version, is_closed = _local_facts(place)
            if is_closed:
                return VersionlessFile(place, None, 0, version, size, others)
            if not version and _WINDOWS.search(uri):
                refused = _windows_path(uri, place)
        return ListedMember(place, None, 0, version, size, others, None, refused)

    def _place(self, uri: str) -> tuple[str, RefusedMember | None]:
        """The full uri, as a listing of its store would spell it, and why it must not be read."""
        if uri.startswith("s3://") and "\0" not in uri:
            # Of a hundred million uris in a few buckets, nothing but the bucket is to be looked at.
            bucket = uri[5:].partition("/")[0]
            if bucket not in self._buckets:
                place, refused = _checked(uri)
                if refused is not None:
                    return place, refused
                self._buckets.add(bucket)
            return uri.rstrip("/"), None
        scheme = urls.scheme_of(uri)
        if "\0" in uri or scheme not in SCHEMES or (scheme not in UNCHAINED and "::" in uri):
            return uri, RefusedMember(
                Status.UNSAFE_MEMBER,
                "a list may name files by path, s3://, gs://, az://, hf:// and https://",
            )
        if scheme == "file" and (uri.startswith("/") or uri.lower().startswith("file:")):
            if not self._is_local:
                return uri, RefusedMember(
                    Status.UNSAFE_MEMBER, "a list from elsewhere may not name local files"
                )
            place, refused = _checked(uri)
            return (place, refused) if refused is not None else (urls.local_uri(place), None)
        return self._below_folder(uri) if scheme == "file" else _checked(uri)

    def _below_folder(self, uri: str) -> tuple[str, RefusedMember | None]:
        if self._is_local:
            return urls.local_uri(os.path.abspath(os.path.join(self._folder or "/", uri))), None
        scheme, mark, below = self._folder.partition("://")
        root, _, folder = below.partition("/")
        path = posixpath.normpath(posixpath.join("/", folder, uri))
        if posixpath.normpath(posixpath.join(folder, uri)).startswith(".."):
            return uri, RefusedMember(
                Status.UNSAFE_MEMBER, f"a relative uri that leads out of {scheme}{mark}{root}"
            )
        return _checked(f"{scheme}{mark}{root}{path}")


def _checked(uri: str) -> tuple[str, RefusedMember | None]:
    shown = strip_secrets(uri)
    if shown != uri:
        return shown, RefusedMember(
            Status.SOURCE_DENIED,
            "the list signs this uri; secrets are not kept, so a worker cannot read it: list the object itself (s3://BUCKET/KEY) "
            "and give the workers credentials of their own",
        )
    try:
        return canonical(uri), None
    except ConfigError as error:
        return uri, RefusedMember(Status.SOURCE_MISSING, error.message)


def _windows_path(uri: str, place: str) -> RefusedMember | None:
    """Return why a path that Windows wrote names nothing here, or None if it names something."""
    if os.path.lexists(local_path(place)):
        return None
    other = "it is a path of Windows: name the file as it is called on this machine"
    advice = (
        other
        if _WINDOWS_ROOT.match(uri)
        else "it has backslashes, as Windows writes them: write / in their place"
    )
    return RefusedMember(Status.SOURCE_MISSING, f"{uri}: no such file; {advice}")


def _version(version: Any, etag: Any) -> str:
    stated = etag if version is None else version
    return "" if stated is None else str(stated).strip('"')


def _local_facts(place: str) -> tuple[int, str, bool]:
    """Return size and version as a listing of the folder gives them, and whether the file is there
    but they cannot be read.
    """
    try:
        found = os.stat(local_path(place))
    except OSError as error:
        return -1, "", not errors.is_missing(error)
    except ValueError:
        return -1, "", False
    return found.st_size, local_version(found), False
