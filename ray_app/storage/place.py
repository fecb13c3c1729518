"""Define the interface of all kinds of storage (`Backend`), and the records of listings."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from ray_app.errors import SourceError

# Called with the uri of a folder. Returns whether the folder is listed.
Enters = Callable[[str], bool]


class Entry(NamedTuple):
    """A file or folder that is directly in a listed folder.

    Attributes:
        name: The base name of the file or folder.
        size: The size of a file in bytes. None for a folder.
    """

    name: str
    size: int | None


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One file in the listing of a store.

    Attributes:
        uri: The uri of the file.
        size_bytes: The size in bytes, -1 if it is unknown.
        version: The ETag, otherwise the size and the mtime in ns, otherwise "".
    """

    uri: str
    size_bytes: int
    version: str


@dataclass(frozen=True, slots=True)
class ClosedFolder(ObjectInfo):
    """A folder whose files could not be listed completely, as an entry of a listing.

    `error` has the reason. The listing continues with the next folder.
    """

    error: SourceError


class ClosedFile(ObjectInfo):
    """A file whose size and version could not be read, as an entry of a listing."""

    __slots__ = ()


class Backend(Protocol):
    """One kind of storage: this machine, S3, a web server, or another storage that fsspec opens.

    `Store` and `Fetcher` call a backend, and add the retries. Paths are full paths or URLs. Each
    method makes one attempt of up to `timeout_s` seconds. Exceptions are those of the libraries,
    which `storage.errors` translates. `version` is the version that a file must have; "" accepts
    any version.
    """

    is_exclusive: bool
    """Whether `create` lets only one of several writers succeed. A server may still ignore this."""
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
        """Read a part of a file, or the whole file.

        Args:
            path: The path or URL of the file.
            start: The position of the first byte.
            length: The number of bytes. Fewer are returned only if the file ends. None reads the
                whole file.
            version: The version that the file must have. "" accepts any version.
            max_bytes: The maximum size of a file that is read as a whole. None sets no limit.
            timeout_s: Seconds for the attempt.

        Raises:
            InputError: The whole file is over `max_bytes`.
        """

    def size(self, path: str, *, version: str = "", timeout_s: float) -> int:
        """Return the size of a file in bytes.

        Args:
            path: The path or URL of the file.
            version: The version that the file must have. "" accepts any version.
            timeout_s: Seconds for the attempt.

        Raises:
            SourceError: The server does not state the size.
        """

    def exists(self, path: str, *, timeout_s: float) -> bool:
        """Return whether a file exists."""

    def copy_to(self, path: str, target: Path, *, timeout_s: float) -> None:
        """Copy a file of any size to a local file.

        Args:
            path: The file.
            target: The path of the local file.
            timeout_s: Seconds for the attempt.
        """

    def write(self, path: str, data: bytes, *, timeout_s: float) -> None:
        """Write a file completely or not at all, and replace an existing file.

        Args:
            path: The file.
            data: Its content.
            timeout_s: Seconds for the attempt.
        """

    def write_file(self, path: str, source: Path, *, timeout_s: float) -> None:
        """Write a file with the content of a local file of any size.

        Args:
            path: The file.
            source: The path of the local file.
            timeout_s: Seconds for the attempt.
        """

    def create(self, path: str, data: bytes, *, timeout_s: float) -> bool:
        """Write a file only if it does not exist.

        Args:
            path: The file.
            data: Its content.
            timeout_s: Seconds for the attempt.

        Returns:
            True if the file was written, False if it exists already.
        """

    def list(self, folder: str, *, timeout_s: float, prefix: str = "") -> list[Entry]:
        """List the files and folders directly in a folder.

        If the folder is missing, some backends raise an exception, and others return no entry.

        Args:
            folder: The folder.
            timeout_s: Seconds for the attempt.
            prefix: The text with which listed names must begin.
        """

    def walk(self, source: str, enters: Enters) -> Iterator[ObjectInfo]:
        """Yield the file `source`, or all files below it in the order of uris.

        Nothing is yielded if `source` does not exist. Unlike other methods, a walk makes many
        requests and retries each of them.

        Args:
            source: The path or URL of a file or folder.
            enters: A function that is called with the uri of each subfolder. If it returns False,
                the subfolder is skipped. S3 and web servers do not call it.

        Returns:
            An iterator of the files. A folder that cannot be listed is a `ClosedFolder`.
        """

    def delete(self, path: str, *, timeout_s: float) -> None:
        """Delete a file. If the file is missing, some backends raise an exception."""

    def delete_many(self, paths: Sequence[str], *, timeout_s: float) -> None:
        """Delete up to `max_deletes` files with one request. Raise an error if a file remains."""

    def drop_folder(self, folder: str) -> None:
        """Remove a folder if it is empty. Do nothing if the storage has no folders."""
