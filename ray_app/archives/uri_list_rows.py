"""Convert the rows of a list of uris into members of an archive (`ListEntries`).

It also checks which uris a list may name. A remote list, for example, may not name local files.
"""

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ray_app.archives.members import ListedMember, RefusedMember, VersionlessFile
from ray_app.errors import ConfigError, Status
from ray_app.storage import canonicalize, errors, local_path, strip_secrets, urls
from ray_app.storage.local import local_version

# fsspec opens other schemes too: archives in archives, caches, shells. A list does not need them.
SCHEMES = frozenset({"s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https", "file"})
_WINDOWS = re.compile(r"\\|^[A-Za-z]:/")
_WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]|\\\\")
# Schemes that are read without fsspec, so that :: in their names has no special meaning.
UNCHAINED = ("s3", "http", "https", "file")
_SECRET = RefusedMember(
    Status.SOURCE_DENIED,
    "the uri has a signature or secret, which is not kept, so a worker cannot read it: list the object itself (s3://BUCKET/KEY) "
    "and give the workers credentials of their own",
)


class ListEntries:
    """Converts the rows of one list of uris into members, in order.

    A relative uri is resolved against the list's folder. The optional columns `version` (or `etag`)
    and `size_bytes` must have the values that the file's store states for it. Every other column is
    kept for the results in the member's `input`.
    """

    def __init__(self, list_uri: str, column: str) -> None:
        self._list, self._column = list_uri, column
        self._is_local = urls.get_scheme(list_uri) == "file"
        path = local_path(list_uri) if self._is_local else list_uri.partition("?")[0]
        self._folder = path.rpartition("/")[0]
        self._row = 0

    def members(self, rows: Iterable[dict[str, Any]]) -> Iterator[ListedMember]:
        """Yield a member per row.

        Raises ConfigError with the list and the row if a row has no uri.
        """
        for row in rows:
            self._row += 1
            uri = row.pop(self._column, None)
            if not isinstance(uri, str) or not uri:
                raise ConfigError(
                    f"{self._list}: row {self._row} has no text in its column '{self._column}'",
                    hint="write the path or URL of one image into this column of each row",
                )
            version, etag, size = (
                row.pop("version", None),
                row.pop("etag", None),
                row.pop("size_bytes", None),
            )
            yield self._member(
                uri,
                _read_version(version, etag),
                size if type(size) is int and size >= 0 else -1,
                row,
            )

    def _member(self, uri: str, version: str, size: int, others: dict[str, Any]) -> ListedMember:
        full_uri, refused = self._resolve(uri)
        # Without their secrets, uris of several rows may be equal, also to a public uri.
        occurrence = self._row if refused is _SECRET else 0
        if refused is None and not version and full_uri.startswith(("/", "file:")):
            size, version, is_closed = _stat_local(full_uri)
            if is_closed:
                return VersionlessFile(full_uri, None, 0, version, size, others)
            if not version and _WINDOWS.search(uri):
                refused = _explain_windows_path(uri, full_uri)
        return ListedMember(full_uri, None, occurrence, version, size, others, None, refused)

    def _resolve(self, uri: str) -> tuple[str, RefusedMember | None]:
        """Return the full uri as a listing of its store spells it, and why it must not be read."""
        if uri.startswith("s3://") and "\0" not in uri:
            # A list may have a hundred million uris, and a uri with a valid bucket has no secret.
            try:
                urls.split_bucket(uri)
            except ConfigError:
                return _check_uri(uri)
            return uri.rstrip("/"), None
        scheme = urls.get_scheme(uri)
        if "\0" in uri or scheme not in SCHEMES or (scheme not in UNCHAINED and "::" in uri):
            return uri, RefusedMember(
                Status.UNSAFE_MEMBER,
                "a list may not name this kind of uri, only paths, s3://, gs://, az://, hf://, and https://",
            )
        if scheme == "file" and (uri.startswith("/") or uri.lower().startswith("file:")):
            if not self._is_local:
                return uri, RefusedMember(
                    Status.UNSAFE_MEMBER, "a list that is not a local file may not name local files"
                )
            full_uri, refused = _check_uri(uri, self._folder or "/")
            return (full_uri, refused) if refused is not None else (urls.local_uri(full_uri), None)
        return self._resolve_relative(uri) if scheme == "file" else _check_uri(uri)

    def _resolve_relative(self, uri: str) -> tuple[str, RefusedMember | None]:
        if self._is_local:
            return urls.local_uri(os.path.abspath(os.path.join(self._folder or "/", uri))), None
        scheme, mark, below = self._folder.partition("://")
        if scheme == "s3":
            root, folder = urls.split_bucket(self._folder)
        else:
            root, _, folder = below.partition("/")
        path = posixpath.normpath(posixpath.join("/", folder, uri))
        if posixpath.normpath(posixpath.join(folder, uri)).startswith(".."):
            return uri, RefusedMember(
                Status.UNSAFE_MEMBER, f"the relative uri leads out of {scheme}{mark}{root}"
            )
        return _check_uri(f"{scheme}{mark}{root}{path}")


def _check_uri(uri: str, folder: str = "") -> tuple[str, RefusedMember | None]:
    without_secrets = strip_secrets(uri)
    if without_secrets != uri:
        return without_secrets, _SECRET
    try:
        return canonicalize(local_path(uri, folder)), None
    except ConfigError as error:
        return uri, RefusedMember(Status.SOURCE_MISSING, error.message)


def _explain_windows_path(uri: str, path: str) -> RefusedMember | None:
    """Return the reason why a Windows path names no file here, or None if it names one."""
    if os.path.lexists(local_path(path)):
        return None
    foreign = "it is a Windows path: write the path that the file has on this machine"
    advice = (
        foreign
        if _WINDOWS_ROOT.match(uri)
        else "it has backslashes, as Windows writes them: replace them with /"
    )
    return RefusedMember(Status.SOURCE_MISSING, f"{uri}: no such file; {advice}")


def _read_version(version: Any, etag: Any) -> str:
    value = etag if version is None else version
    return "" if value is None else str(value).strip('"')


def _stat_local(path: str) -> tuple[int, str, bool]:
    """Return the size and version of a local file, and whether it exists but cannot be read.

    Size and version are those that a listing of the folder has.
    """
    try:
        status = os.stat(local_path(path))
    except OSError as error:
        return -1, "", not errors.is_missing(error)
    except ValueError:
        return -1, "", False
    return status.st_size, local_version(status), False
