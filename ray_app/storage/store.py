"""`Store`: one root under which a run keeps its files: a local folder, an S3 prefix, or anything
else that fsspec opens.

Each kind of place keeps the promises of `Files`, raises the exceptions of its libraries and never
retries: `Store` translates and retries for all of them.
"""

import contextlib
import errno
import io
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fsspec

from ray_app.storage import errors, fetch, object_store, ranged, s3, urls
from ray_app.storage.http import Guard
from ray_app.storage.retry import Attempt, Retrier, RetryPolicy

# A run directory is read a few times a minute; a wrong endpoint must be reported within seconds,
# not minutes.
_PATIENCE = RetryPolicy(attempts=5, base_s=0.2, cap_s=5.0, deadline_s=300.0)
_TRANSFER_S = 3600.0
_REQUESTS = 16  # files that are removed at once
PART_BYTES, _PARTS_AT_ONCE = 32 * 2**20, 2  # of a file that goes to S3 in several requests
# no folders to be made there
_FLAT = frozenset({"s3", "gs", "gcs", "hf", "http", "https", "az", "abfs", "abfss"})
# Where creation is known to be exclusive, and was tried; elsewhere fsspec may only look first,
# which two can do at once.
_EXCLUSIVE = frozenset({"file", "memory", "s3", "gs", "gcs", "az", "abfs", "abfss"})
# file systems without hard links say one of these
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_UNFINISHED = ".touchstone-"  # what a killed writer leaves behind; never listed as a name


class Entry(NamedTuple):
    """What is directly in a folder: a base name, the bytes of a file (None: a folder), and what is
    another once its content is.
    """

    name: str
    size: int | None
    version: str = ""


def join(base: str, path: str) -> str:
    """`path` below `base`; a path that would leave it is refused, so that a name read from data can
    do no harm.
    """
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise ValueError(f"not a path inside the store: {path!r}")
    return f"{base.rstrip('/')}/{path}" if path else base


class Store:
    """A folder, bucket prefix or other fsspec URL. Paths are relative, with `/`; what appears under
    one appears whole.

    Every method raises StorageError, with a hint, when the place is out of reach or refuses.
    Picklable: the copy opens the same URL with the environment of the process it lands in.
    """

    def __init__(self, url: str, retrier: Retrier | None = None) -> None:
        self._root = urls.canonical(url)
        self._guard = Guard.of([self._root])
        self._backend = _files_of(self._root)
        self._retrier = retrier or Retrier(_PATIENCE)
        self._one_by_one = False  # whether this place was seen to refuse requests that remove many
        self.url = urls.strip_secrets(self._root)

    @classmethod
    def open(cls, url: str) -> "Store":
        """The store at a URL or path; touches nothing yet. Raises ConfigError for a scheme that
        cannot be opened.
        """
        return cls(url)

    def below(self, folder: str) -> "Store":
        """The store that is one folder of this one."""
        return Store(join(self._root, folder), self._retrier)

    def __reduce__(self) -> tuple[object, ...]:
        return (Store, (self._root,))

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def read(self, path: str) -> bytes:
        """Return the bytes at `path`. Raises FileNotFoundError if no file is there."""
        place = self._full(path)
        for attempt in self._attempts("read", place, is_optional=True):
            with attempt as left:
                return self._backend.read(place, left)
        raise FileNotFoundError(f"{self.url}/{path}")

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Return the bytes at `path` from `start` to `end`, fewer only if the file ends there.

        Raises:
            StorageError: No file is there, or the store fails.
        """
        place = self._full(path)
        for attempt in self._attempts("read", place):
            with attempt as left:
                data = fetch.read_range(place, self._guard, "", start, end - start, left)
        return data

    def open_file(self, path: str) -> io.BufferedReader | ranged.RangedFile:
        """Open the file at `path` for a reader that seeks (pyarrow). Each range of the file is
        requested with the store's patience. For one thread.

        Raises:
            StorageError: No file is there, or the store fails; also raised by reads of the file.
        """
        place = self._full(path)
        for attempt in self._attempts("read", place):
            with attempt as left:
                if self.local_path(path):
                    return open(place, "rb")
                size = fetch.size(place, self._guard, "", left)
        return ranged.RangedFile(
            lambda start, length: self.read_range(path, start, start + length),
            size,
            fetch.WINDOW_BYTES,
        )

    def copy_to(self, path: str, target: Path) -> None:
        """Copy the file at `path` to a file of this machine. The file may be larger than memory and
        the copy may take an hour.

        Raises:
            StorageError: No file is there, or the store fails.
        """
        place = self._full(path)
        for attempt in self._attempts("read", place, deadline_s=_TRANSFER_S):
            with attempt as left:
                self._backend.copy_to(place, target, left)

    def write(self, path: str, data: bytes) -> None:
        """Write `data` to `path` and replace what is there. A reader sees the old or the new file,
        never a part.
        """
        place = self._full(path)
        for attempt in self._attempts("write", place):
            with attempt as left:
                self._backend.write(place, data, left)

    def write_file(self, path: str, source: Path) -> None:
        """Write the content of a file of this machine to `path`. The file may be larger than memory
        and the copy may take an hour.
        """
        place = self._full(path)
        for attempt in self._attempts("write", place, deadline_s=_TRANSFER_S):
            with attempt as left:
                self._backend.write_file(place, source, left)

    def create(self, path: str, data: bytes) -> bool:
        """Write `data` to `path` only if nothing is there. Of several writers, one gets True.

        `data` should differ from writer to writer: a store recognises it if an answer was lost.
        """
        place = self._full(path)
        for attempt in self._attempts("write", place):
            with attempt as left:
                is_new = self._backend.create(place, data, left)
        return is_new

    @property
    def is_exclusive(self) -> bool:
        """Whether `create` can keep two writers apart: at such places a server may still ignore
        what it is asked for (see `Lease`).
        """
        return urls.scheme_of(self._root) in _EXCLUSIVE

    def exists(self, path: str) -> bool:
        """Return whether there is a file at `path`."""
        place = self._full(path)
        for attempt in self._attempts("read", place, is_optional=True):
            with attempt as left:
                return self._backend.exists(place, left)
        return False

    def names(self, folder: str) -> list[str]:
        """Base names of the files directly in `folder`, sorted; none when there is no such folder."""
        return sorted(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the files directly in `folder`, by base name; none when there is no such folder."""
        return {entry.name: entry.size for entry in self._entries(folder) if entry.size is not None}

    def versions(self, folder: str) -> dict[str, str]:
        """Versions of the files directly in `folder`, by base name, from one listing: they change
        when the file is written.
        """
        return {
            entry.name: f"{entry.size} {entry.version}"
            for entry in self._entries(folder)
            if entry.size is not None
        }

    def folders(self, folder: str) -> list[str]:
        """Base names of the folders directly in `folder`, sorted; none when there is no such
        folder.
        """
        return sorted(entry.name for entry in self._entries(folder) if entry.size is None)

    def delete(self, path: str) -> None:
        """Remove the file at `path`; nothing happens if there is none."""
        place = self._full(path)
        for attempt in self._attempts("write", place, is_optional=True):
            with attempt as left:
                self._backend.delete(place, left)

    def delete_all(self, paths: Iterable[str]) -> None:
        """Remove files, many with one request where the place can; nothing happens for those that
        are not there.

        One that cannot be removed is an error, and says which.
        """
        left = list(paths)
        if len(left) > 1 and self._backend.at_once > 1 and not self._one_by_one:
            left = self._delete_in_batches(left)
        if len(left) == 1:
            self.delete(left[0])
        elif left:
            with ThreadPoolExecutor(_REQUESTS) as pool:
                list(pool.map(self.delete, left))

    def _delete_in_batches(self, paths: Sequence[str]) -> list[str]:
        """Remove files; returns all that are left where the place turns out to know no such
        request.
        """
        for start in range(0, len(paths), self._backend.at_once):
            places = [self._full(path) for path in paths[start : start + self._backend.at_once]]
            try:
                for attempt in self._retrier.attempts():
                    with attempt as left:
                        self._backend.delete_some(places, left)
            except Exception as error:
                if not errors.refuses_batches(error):
                    raise errors.unreachable(error, places[0], "write") from error
                self._one_by_one = True
                return list(paths[start:])
        return []

    def clear(self, folder: str) -> None:
        """Remove all files below `folder`, and on a disk the emptied folders; "" is the whole
        store, which itself stays.
        """
        prefix = f"{folder}/" if folder else ""
        found = self._entries(folder)
        self.delete_all(sorted(prefix + entry.name for entry in found if entry.size is not None))
        for name in sorted(entry.name for entry in found if entry.size is None):
            self.clear(prefix + name)
        if folder:
            self.drop_folder(folder)

    def drop_folder(self, folder: str) -> None:
        """Remove a folder that is empty; nothing happens where there is none, or anything is in it."""
        self._backend.drop_folder(self._full(folder))

    def local_path(self, path: str) -> Path | None:
        """Return where `path` is on this machine; None if the store is elsewhere."""
        place = self._full(path)
        return Path(place) if urls.scheme_of(place) == "file" else None

    def filesystem_and_path(self, path: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """Return the file system and its own spelling of `path` for a library that reads and writes
        by itself (Ray Train).

        Its client repeats requests; those of the other methods are repeated here.
        """
        return object_store.retrying_fsspec_for(self._full(path))

    def _entries(self, folder: str) -> list[Entry]:
        place = self._full(folder)
        for attempt in self._attempts("list", place, is_optional=True):
            with attempt as left:
                return self._backend.entries(place, left)
        return []

    def _full(self, path: str) -> str:
        return join(self._root, path)

    def _attempts(
        self, doing: str, place: str, *, is_optional: bool = False, deadline_s: float | None = None
    ) -> Iterator[Attempt]:
        """Yield attempts at a request until one succeeds.

        Args:
            doing: What the request does, for the error.
            place: The full path, for the error.
            is_optional: If nothing is at `place`, the attempts end, and no error is raised.
            deadline_s: For all attempts together, if not as in the policy.

        Raises:
            StorageError: The last attempt failed.
        """
        retrier = self._retrier
        if deadline_s is not None:
            retrier = Retrier(retrier.policy.model_copy(update={"deadline_s": deadline_s}))
        try:
            yield from retrier.attempts()
        except Exception as error:
            if not (is_optional and errors.is_missing(error)):
                raise errors.unreachable(error, place, doing) from error


class Files:
    """One kind of place, by full paths: what fsspec opens (memory, Google, Azure, a web server, the
    hub), as atomic as it is there.

    `left` is the seconds that a request may take; none is repeated here, and what is raised is the
    libraries' own.
    """

    at_once = 1  # how many files one request can remove

    def read(self, path: str, left: float) -> bytes:
        """All bytes; raises what `is_missing` recognises when there are none."""
        fs, inside = object_store.fsspec_for(path)
        data: bytes = _request(fs, "cat_file", left, inside)
        return data

    def copy_to(self, path: str, target: Path, left: float) -> None:
        """Copy a file to one of this machine, however large."""
        fs, inside = object_store.fsspec_for(path)
        _request(fs, "get_file", left, inside, str(target))

    def write(self, path: str, data: bytes, left: float) -> None:
        """Put a file there, whole or not at all."""
        fs, inside = _placed(path)
        _request(fs, "pipe_file", left, inside, data)

    def write_file(self, path: str, source: Path, left: float) -> None:
        """The same with a file of this machine, however large."""
        fs, inside = _placed(path)
        in_parts = (
            {"chunksize": PART_BYTES, "max_concurrency": _PARTS_AT_ONCE}
            if urls.scheme_of(path) == "s3"
            else {}
        )
        _request(fs, "put_file", left, str(source), inside, **in_parts)

    def create(self, path: str, data: bytes, left: float) -> bool:
        """Put a file there unless one is; of many at once, one gets True."""
        fs, inside = _placed(path)
        try:
            _request(fs, "pipe_file", left, inside, data, mode="create")
        except Exception as error:
            if not errors.is_conflict(error):
                raise
            try:
                # the answer to our own request may have been lost: see `Store.create`
                return self.read(path, left) == data
            except Exception as gone:
                if errors.is_missing(gone):  # another process created it, and has removed it since
                    return False
                raise
        return True

    def exists(self, path: str, left: float) -> bool:
        """Whether a file is there."""
        fs, inside = object_store.fsspec_for(path)
        try:
            return bool(_request(fs, "info", left, inside)["type"] == "file")
        except FileNotFoundError as error:
            if not errors.is_missing(error):
                raise
            return False

    def entries(self, folder: str, left: float) -> list[Entry]:
        """What is directly in a folder."""
        fs, inside = object_store.fsspec_for(folder)
        found = _request(fs, "ls", left, inside, detail=True)
        names = (item["name"].rstrip("/").rpartition("/")[2] for item in found)
        return [
            Entry(name, None)
            if item["type"] == "directory"
            else Entry(name, int(item.get("size") or 0), _version(item))
            for name, item in zip(names, found, strict=True)
        ]

    def delete(self, path: str, left: float) -> None:
        """Remove a file."""
        fs, inside = object_store.fsspec_for(path)
        _request(fs, "rm_file", left, inside)

    def delete_some(self, paths: Sequence[str], left: float) -> None:
        """Remove up to `at_once` files with one request. Raises for any that stayed."""
        raise NotImplementedError

    def drop_folder(self, folder: str) -> None:
        """Remove a folder that is empty, where there are folders at all."""


def _files_of(url: str) -> Files:
    """Raises ConfigError for a scheme that is unknown or whose package is missing."""
    scheme = urls.scheme_of(url)
    if scheme in ("file", "s3"):
        return _LocalFiles() if scheme == "file" else _S3Objects()
    object_store.fsspec_for(url)
    return Files()


class _LocalFiles(Files):
    """Files that appear whole: written beside their place and renamed, or linked where they must be
    new.
    """

    def read(self, path: str, left: float) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def write(self, path: str, data: bytes, left: float) -> None:
        with _written_aside(path, io.BytesIO(data)) as aside:
            os.replace(aside, path)

    def write_file(self, path: str, source: Path, left: float) -> None:
        with open(source, "rb") as data, _written_aside(path, data) as aside:
            os.replace(aside, path)

    def create(self, path: str, data: bytes, left: float) -> bool:
        with _written_aside(path, io.BytesIO(data)) as aside:
            try:
                os.link(aside, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _created_in_place(path, data)
        return True

    def exists(self, path: str, left: float) -> bool:
        return os.path.isfile(path)

    def entries(self, folder: str, left: float) -> list[Entry]:
        listed: list[Entry] = []
        with os.scandir(folder) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):  # gone since
                    if entry.name.startswith(_UNFINISHED):
                        continue
                    if entry.is_dir():
                        listed.append(Entry(entry.name, None))
                    else:
                        facts = entry.stat()
                        listed.append(
                            Entry(entry.name, facts.st_size, f"{facts.st_mtime_ns} {facts.st_ino}")
                        )
        return listed

    def delete(self, path: str, left: float) -> None:
        os.unlink(path)

    def drop_folder(self, folder: str) -> None:
        with contextlib.suppress(OSError):  # not there, not empty
            os.rmdir(folder)


def _created_in_place(path: str, data: bytes) -> bool:
    try:
        with open(path, "xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _written_aside(path: str, data: BinaryIO) -> Iterator[str]:
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


class _S3Objects(Files):
    """What s3fs does not do as a run needs it: one request to read a file or see whether it is
    there; removals that name what stayed.
    """

    at_once = s3.MOST_DELETED

    def read(self, path: str, left: float) -> bytes:
        bucket, key = urls.bucket_and_key(path)
        return s3.get(bucket, key, timeout_s=left)

    def exists(self, path: str, left: float) -> bool:
        bucket, key = urls.bucket_and_key(path)
        return s3.found(bucket, key, timeout_s=left) is not None

    def entries(self, folder: str, left: float) -> list[Entry]:
        bucket, key = urls.bucket_and_key(folder)
        prefix = f"{key}/" if key else ""
        found: list[Entry] = []
        answer: dict[str, Any] = {"IsTruncated": True}
        while answer.get("IsTruncated"):
            answer = s3.page(
                bucket,
                prefix,
                timeout_s=left,
                delimiter="/",
                after=answer.get("NextContinuationToken"),
            )
            found += [
                Entry(item["Prefix"][len(prefix) : -1], None)
                for item in answer.get("CommonPrefixes", ())
            ]
            files = (item for item in answer.get("Contents", ()) if item["Key"] != prefix)
            found += [
                Entry(item["Key"][len(prefix) :], item["Size"], _version(item)) for item in files
            ]
        return found

    def delete_some(self, paths: Sequence[str], left: float) -> None:
        places = [urls.bucket_and_key(path) for path in paths]
        s3.delete_some(places[0][0], [key for _, key in places], timeout_s=left)


def _request(fs: Any, name: str, left: float, *given: Any, **options: Any) -> Any:
    """What a method of a file system answers within `left` seconds, where it can be given up at
    all. Raises FSTimeoutError.
    """
    if not fs.async_impl:
        return getattr(fs, name)(*given, **options)
    return fsspec.asyn.sync(fs.loop, getattr(fs, f"_{name}"), *given, timeout=left, **options)


def _placed(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """File system and path of a file that is about to be written; its folder is made, where there
    are folders.
    """
    fs, inside = object_store.fsspec_for(path)
    if urls.scheme_of(path) not in _FLAT:
        fs.makedirs(fs._parent(inside), exist_ok=True)
    return fs, inside


# What file systems of fsspec and S3 call the version of a file in a listing, the surest first.
_VERSIONS = (
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "content_md5",
    "blob_id",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
)


def _version(item: dict[str, Any]) -> str:
    """The version of a listed file, "" where its listing says nothing but the size."""
    return next((str(item[name]) for name in _VERSIONS if item.get(name) is not None), "")
