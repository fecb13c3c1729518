"""`Place`: what each kind of storage can do, and the records that listings of it give."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from ray_app.errors import SourceError

# Called with the uri of a folder: whether anything in the folder may count.
Enters = Callable[[str], bool]


class Entry(NamedTuple):
    """A file or folder directly in a folder: its base name, and of a file the size in bytes. The
    size of a folder is None.
    """

    name: str
    size: int | None


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One file as its store lists it: size -1 if unknown; version = ETag, else size and mtime in
    ns, else "".
    """

    uri: str
    size_bytes: int
    version: str


@dataclass(frozen=True, slots=True)
class ClosedFolder(ObjectInfo):
    """A folder whose files could not be listed, or not all of them, and why."""

    error: SourceError


class ClosedFile(ObjectInfo):
    """A file whose size and version could not be read, although its name is in its folder."""

    __slots__ = ()


class Place(Protocol):
    """One kind of storage: this machine, S3, a web server, or another that fsspec opens.

    Paths are full paths or URLs. Each method is one attempt of up to `timeout_s` seconds, without
    retries, and raises the exceptions of the libraries below, for `storage.errors` to translate. A
    `version` is compared with the version of the file; "" is any version.
    """

    is_exclusive: bool
    """Whether `create` lets one of several writers succeed. A server may still ignore that."""
    max_deletes: int
    """The number of files that one request can delete."""

    def read(
        self,
        path: str,
        start: int = 0,
        length: int | None = None,
        *,
        version: str = "",
        max_bytes: int | None = None,
        timeout_s: float,
    ) -> bytes:
        """Return `length` bytes from `start`, fewer only if the file ends there; without a length
        the whole file. Raises InputError if the whole file is over `max_bytes`.
        """

    def size(self, path: str, *, version: str = "", timeout_s: float) -> int:
        """Return the size in bytes. Raises SourceError if the server does not state it."""

    def exists(self, path: str, *, timeout_s: float) -> bool:
        """Return whether a file is there."""

    def copy_to(self, path: str, target: Path, *, timeout_s: float) -> None:
        """Copy a file of any size to a file of this machine."""

    def write(self, path: str, data: bytes, *, timeout_s: float) -> None:
        """Write a file, whole or not at all."""

    def write_file(self, path: str, source: Path, *, timeout_s: float) -> None:
        """Write a file with the content of a file of this machine, of any size."""

    def create(self, path: str, data: bytes, *, timeout_s: float) -> bool:
        """Write a file unless a file is there; False if one is."""

    def list(self, folder: str, *, timeout_s: float, prefix: str = "") -> list[Entry]:
        """List what is directly in a folder, and has a name that begins with `prefix`."""

    def walk(self, source: str, enters: Enters) -> Iterator[ObjectInfo]:
        """Yield the file `source`, or all files below it in the order of uris; nothing if nothing
        is there. A walk makes many requests, and repeats each one by itself.
        """

    def delete(self, path: str, *, timeout_s: float) -> None:
        """Delete a file."""

    def delete_many(self, paths: Sequence[str], *, timeout_s: float) -> None:
        """Delete up to `max_deletes` files by one request. Raises an error if any file stays."""

    def drop_folder(self, folder: str) -> None:
        """Remove an empty folder, if the storage has folders."""
