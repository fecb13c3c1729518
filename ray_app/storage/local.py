"""Read and write files on this machine (`Local`), and list folders of any size (`walk_folder`)."""

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from typing_extensions import override

from ray_app.storage import errors, urls
from ray_app.storage.place import Backend, ClosedFile, ClosedFolder, Enters, Entry, ObjectInfo

# Errors of process-wide or machine-wide limits, which do not concern one folder.
_NO_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
# File systems without hard links raise one of these.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_UNFINISHED = ".touchstone-"  # A killed writer leaves a file with this prefix. It is never listed.


@dataclass
class NotedFolders:
    """The number of folders that a listing left out for one reason, with an example.

    The reason is that they are links, which are not followed, or that they cannot be listed.
    Reports show the number.

    Attributes:
        count: The number of folders.
        example: The path or uri of the first of these folders. "" if there is none.
    """

    count: int = 0
    example: str = ""

    def add(self, other: "NotedFolders") -> None:
        """Add the folders of another listing to this count."""
        self.count, self.example = self.count + other.count, self.example or other.example


_linked: ContextVar[NotedFolders | None] = ContextVar("linked folders", default=None)


@contextlib.contextmanager
def count_linked_folders() -> Iterator[NotedFolders]:
    """Count the links to folders that listings find during a `with` block.

    Listings do not follow these links. Reports show their number. The yielded count grows while the
    block lists folders, in the same thread.
    """
    linked = NotedFolders()
    token = _linked.set(linked)
    try:
        yield linked
    finally:
        _linked.reset(token)


class Local(Backend):
    """The backend for files on this machine.

    A new file becomes visible only when it is complete. It is written under a temporary name in the
    same folder and then renamed, or linked if it must not replace a file. If the file system has no
    hard links, `create` writes the file in place.
    """

    is_exclusive = True
    max_deletes = 1

    @override
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
        path = urls.local_path(path)
        if not version and length is None and max_bytes is None:
            with open(path, "rb") as file:  # It may be a pipe, which has no size.
                return file.read()
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            before = os.fstat(descriptor)
            _require_file(before, version)
            if max_bytes is not None and before.st_size > max_bytes:
                raise errors.make_too_large_error(before.st_size, max_bytes)
            remaining = max(0, before.st_size - start)
            size = remaining if length is None else min(length, remaining)
            data = os.pread(descriptor, size, start)
            while len(data) < size and (
                more := os.pread(descriptor, size - len(data), start + len(data))
            ):
                data += more
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if len(data) != size or (after.st_size, after.st_mtime_ns) != (
            before.st_size,
            before.st_mtime_ns,
        ):
            raise errors.ObjectChangedError("the file changed while it was read")
        return data

    @override
    def size(self, path: str, *, version: str = "", timeout_s: float) -> int:
        stat_result = os.stat(urls.local_path(path))
        _require_file(stat_result, version)
        return stat_result.st_size

    @override
    def exists(self, path: str, *, timeout_s: float) -> bool:
        return os.path.isfile(path)

    @override
    def copy_to(self, path: str, target: Path, *, timeout_s: float) -> None:
        shutil.copyfile(path, target)

    @override
    def write(self, path: str, data: bytes, *, timeout_s: float) -> None:
        with _write_aside(path, io.BytesIO(data)) as aside:
            os.replace(aside, path)

    @override
    def write_file(self, path: str, source: Path, *, timeout_s: float) -> None:
        with open(source, "rb") as data, _write_aside(path, data) as aside:
            os.replace(aside, path)

    @override
    def create(self, path: str, data: bytes, *, timeout_s: float) -> bool:
        with _write_aside(path, io.BytesIO(data)) as aside:
            try:
                os.link(aside, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _create_in_place(path, data)
        return True

    @override
    def list(self, folder: str, *, timeout_s: float, prefix: str = "") -> list[Entry]:
        entries: list[Entry] = []
        with os.scandir(folder) as scan:
            for entry in scan:
                with contextlib.suppress(FileNotFoundError):  # It was deleted since.
                    if entry.name.startswith(_UNFINISHED) or not entry.name.startswith(prefix):
                        continue
                    if entry.is_dir():
                        entries.append(Entry(entry.name, None))
                    else:
                        facts = entry.stat()
                        entries.append(Entry(entry.name, facts.st_size))
        return entries

    @override
    def walk(self, source: str, enters: Enters) -> Iterator[ObjectInfo]:
        try:
            stat_result = os.stat(source)
        except FileNotFoundError:
            return
        if stat.S_ISREG(stat_result.st_mode):
            yield ObjectInfo(
                urls.local_uri(source), stat_result.st_size, local_version(stat_result)
            )
        if not stat.S_ISDIR(stat_result.st_mode):
            return
        for path, error in walk_folder(source, enters):
            if error is not None:
                yield ClosedFolder(urls.local_uri(path), -1, "", errors.make_folder_error(error))
                continue
            try:
                stat_result = os.stat(path)
            # Reading the file raises the same error, which the row of the file then shows.
            except OSError as error_of_file:
                kind = ObjectInfo if errors.is_missing(error_of_file) else ClosedFile
                yield kind(urls.local_uri(path), -1, "")
                continue
            if stat.S_ISREG(stat_result.st_mode):
                yield ObjectInfo(
                    urls.local_uri(path), stat_result.st_size, local_version(stat_result)
                )
            elif stat.S_ISDIR(stat_result.st_mode) and (linked := _linked.get()) is not None:
                linked.add(NotedFolders(1, path))

    @override
    def delete(self, path: str, *, timeout_s: float) -> None:
        os.unlink(path)

    @override
    def delete_many(self, paths: Sequence[str], *, timeout_s: float) -> None:
        for path in paths:
            self.delete(path, timeout_s=timeout_s)

    @override
    def drop_folder(self, folder: str) -> None:
        with contextlib.suppress(OSError):  # It is missing or not empty.
            os.rmdir(folder)


def local_version(stat_result: os.stat_result) -> str:
    """Return the version of a local file: its size and its mtime in ns, as text."""
    return f"{stat_result.st_size}-{stat_result.st_mtime_ns}"


def _require_file(stat_result: os.stat_result, version: str) -> None:
    errors.require_version(version, local_version(stat_result))
    if not stat.S_ISREG(stat_result.st_mode):
        raise errors.ObjectChangedError("the path is no longer a file")


def _create_in_place(path: str, data: bytes) -> bool:
    try:
        with open(path, "xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _write_aside(path: str, data: BinaryIO) -> Iterator[str]:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    aside = os.path.join(folder, f"{_UNFINISHED}{secrets.token_hex(6)}")
    try:
        with open(aside, "xb") as file:
            shutil.copyfileobj(data, file, 2**20)
        yield aside
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)


def walk_folder(
    folder: str, enters: Enters = lambda _: True
) -> Iterator[tuple[str, OSError | None]]:
    """Walk a local folder in the order of uris, without following links to folders.

    Args:
        folder: The path of the folder.
        enters: A function that is called with the uri of each subfolder. If it returns False, the
            subfolder is skipped.

    Yields:
        For each file or other entry, its path and None. For each subfolder that cannot be listed,
        its path and the exception.

    Raises:
        OSError: The folder itself cannot be listed or entered. Or too many files are open in this
            process or on this machine, or no memory is left.
    """
    prefix = folder.rstrip("/") + "/"
    # Raises for a folder that can be listed but not entered, in which every file would be denied.
    os.stat(prefix + ".")
    names, error = _list_names(prefix)
    if error is not None:
        raise error
    # This uses a stack, because folders may be nested more deeply than Python allows recursion.
    stack = [(prefix, iter(names))]
    while stack:
        prefix, remaining = stack[-1]
        for name in remaining:
            path = prefix + name
            if not name.endswith("/"):
                yield path, None
            elif enters(urls.local_uri(path[:-1])):
                names, error = _list_names(path)
                if error is not None:
                    yield path[:-1], error
                stack.append((path, iter(names)))
                break
        else:
            stack.pop()


def _list_names(folder: str) -> tuple[list[str], OSError | None]:
    """Return the sorted names in a folder as far as they can be read, and an error if any.

    Names of folders end with a slash.
    """
    # Folders are sorted with their slash, which is the order of whole uris and of S3 listings.
    # Only names are kept, since a flat folder may be huge.
    names: list[str] = []
    error: OSError | None = None
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(
                    entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name
                )
    except OSError as os_error:
        if os_error.errno in _NO_RESOURCES:
            raise
        error = os_error
    names.sort()
    return names, error
