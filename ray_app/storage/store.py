"""Read and write files below one root (`Store`): a local folder, an S3 prefix, or another URL.

A `Backend` makes single requests and raises the exceptions of its libraries. `Store` retries the
requests and translates the exceptions.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ray_app.storage import errors, ranged, urls
from ray_app.storage.http import Guard
from ray_app.storage.local import Local
from ray_app.storage.place import Entry
from ray_app.storage.places import choose_backend
from ray_app.storage.retry import Attempt, Retrier, RetryPolicy

# A run directory is read a few times a minute. A wrong endpoint must be reported within seconds.
_PATIENCE = RetryPolicy(attempts=5, base_s=0.2, cap_s=5.0, deadline_s=300.0)
_TRANSFER_S = 3600.0
_REQUESTS = 16  # Files that are deleted at the same time.


def join(base: str, path: str) -> str:
    """Return the path or URL of `path` below `base`.

    Raises:
        ValueError: The path leads out of `base`, as a name from untrusted data might.
    """
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise ValueError(f"path must be inside the store, got {path!r}")
    return f"{base.rstrip('/')}/{path}" if path else base


class Store:
    """Reads and writes the files in a folder, a bucket prefix, or another fsspec URL.

    Paths are relative to this folder or prefix, the root, with `/`. A new file becomes visible only
    when it is complete. If the store is unreachable or refuses a request, methods raise
    StorageError with a hint. A store can be pickled. The copy opens the same URL with the
    environment of its own process.

    Args:
        url: The URL or path of the root.
        retrier: Retries requests. None uses the default policy.
    """

    def __init__(self, url: str, retrier: Retrier | None = None) -> None:
        self._root = urls.canonicalize(url)
        self._backend = choose_backend(self._root, Guard.from_urls([self._root]))
        self._retrier = retrier or Retrier(_PATIENCE)
        # Whether the store has refused a request that deletes many files.
        self._deletes_singly = False
        self.url = urls.strip_secrets(self._root)

    @classmethod
    def open(cls, url: str) -> "Store":
        """Return the store at a URL or path, with the default retries. No request is made.

        Use the constructor instead to set the retries.

        Raises:
            ConfigError: The scheme is unknown, its package is missing, or the URL is invalid.
        """
        return cls(url)

    def subdir(self, folder: str) -> "Store":
        """Return a store whose root is a folder of this store. No request is made."""
        return Store(join(self._root, folder), self._retrier)

    def __reduce__(self) -> tuple[object, ...]:
        return (Store, (self._root,))

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def read(self, path: str) -> bytes:
        """Return the content of the file at `path`.

        Raises:
            FileNotFoundError: There is no file at `path`.
        """
        url = self._resolve(path)
        for attempt in self._attempts("read", url, is_optional=True):
            with attempt as timeout_s:
                return self._backend.read(url, timeout_s=timeout_s)
        raise FileNotFoundError(f"{self.url}/{path}")

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Return the bytes of a file from `start` to `end`, or fewer if the file ends before `end`.

        Args:
            path: The path of the file.
            start: The position of the first byte.
            end: The position after the last byte.

        Raises:
            StorageError: There is no file at `path`, or the store fails.
        """
        url = self._resolve(path)
        for attempt in self._attempts("read", url):
            with attempt as timeout_s:
                data = self._backend.read(url, start, end - start, timeout_s=timeout_s)
        return data

    def open_file(self, path: str) -> io.BufferedReader | ranged.RangedFile:
        """Open the file at `path` as a seekable file for a reader in one thread, such as pyarrow.

        Each range of the file is requested with retries.

        Raises:
            StorageError: There is no file at `path`, or the store fails. Reads of the file may also
                raise it.
        """
        url = self._resolve(path)
        for attempt in self._attempts("read", url):
            with attempt as timeout_s:
                if self.local_path(path):
                    return open(url, "rb")
                size = self._backend.size(url, timeout_s=timeout_s)
        return ranged.RangedFile(
            lambda start, length: self.read_range(path, start, start + length),
            size,
            ranged.WINDOW_BYTES,
        )

    def copy_to(self, path: str, target: Path) -> None:
        """Copy the file at `path` to the local file `target`.

        The file may be larger than memory, and the copy may take an hour.

        Raises:
            StorageError: There is no file at `path`, or the store fails.
        """
        url = self._resolve(path)
        for attempt in self._attempts("read", url, deadline_s=_TRANSFER_S):
            with attempt as timeout_s:
                self._backend.copy_to(url, target, timeout_s=timeout_s)

    def write(self, path: str, data: bytes) -> None:
        """Write `data` to `path`, and replace an existing file.

        A concurrent reader gets the old or the new content, never a part of it.
        """
        url = self._resolve(path)
        for attempt in self._attempts("write", url):
            with attempt as timeout_s:
                self._backend.write(url, data, timeout_s=timeout_s)

    def write_file(self, path: str, source: Path) -> None:
        """Write the content of the local file `source` to `path`.

        The file may be larger than memory, and the copy may take an hour.
        """
        url = self._resolve(path)
        for attempt in self._attempts("write", url, deadline_s=_TRANSFER_S):
            with attempt as timeout_s:
                self._backend.write_file(url, source, timeout_s=timeout_s)

    def create(self, path: str, data: bytes) -> bool:
        """Write `data` to `path` if there is no file, and return whether this call wrote it.

        If several processes write the same path, only one gets True. If the response to a
        successful write is lost, the retry finds the file, and the content shows which process
        wrote it. Therefore each process should write different data.

        Args:
            path: The path of the file.
            data: Its content.

        Returns:
            True if this call wrote the file. False if there was a file.
        """
        url = self._resolve(path)
        for attempt in self._attempts("write", url):
            with attempt as timeout_s:
                is_new = self._backend.create(url, data, timeout_s=timeout_s)
        return is_new

    @property
    def is_exclusive(self) -> bool:
        """Whether `create` lets only one of several writers succeed on this kind of store.

        A server may still ignore the condition of the write, which `Lease` detects.
        """
        return self._backend.is_exclusive

    def exists(self, path: str) -> bool:
        """Return whether there is a file at `path`."""
        url = self._resolve(path)
        for attempt in self._attempts("read", url, is_optional=True):
            with attempt as timeout_s:
                return self._backend.exists(url, timeout_s=timeout_s)
        return False

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """Return the sorted base names of the files directly in `folder` that begin with `prefix`.

        The result is empty if the folder does not exist.
        """
        entries = self._entries(folder, prefix)
        return sorted(entry.name for entry in entries if entry.size is not None)

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes in bytes of the files directly in `folder`, by base name.

        The result is empty if the folder does not exist.
        """
        return {entry.name: entry.size for entry in self._entries(folder) if entry.size is not None}

    def folders(self, folder: str) -> list[str]:
        """Return the sorted base names of the folders directly in `folder`.

        The result is empty if the folder does not exist.
        """
        return sorted(entry.name for entry in self._entries(folder) if entry.size is None)

    def delete(self, path: str) -> None:
        """Delete the file at `path`, if it exists."""
        url = self._resolve(path)
        for attempt in self._attempts("write", url, is_optional=True):
            with attempt as timeout_s:
                self._backend.delete(url, timeout_s=timeout_s)

    def delete_all(self, paths: Iterable[str]) -> None:
        """Delete files, with one request for many files if the store supports it.

        Missing files are ignored.

        Raises:
            StorageError: A file cannot be deleted. The error names the file.
        """
        remaining = list(paths)
        if len(remaining) > 1 and self._backend.max_deletes > 1 and not self._deletes_singly:
            remaining = self._delete_in_batches(remaining)
        if len(remaining) == 1:
            self.delete(remaining[0])
        elif remaining:
            with ThreadPoolExecutor(_REQUESTS) as pool:
                list(pool.map(self.delete, remaining))

    def _delete_in_batches(self, paths: Sequence[str]) -> list[str]:
        """Delete files in batches, and return the remaining files if the store has no batches."""
        for start in range(0, len(paths), self._backend.max_deletes):
            batch = [
                self._resolve(path) for path in paths[start : start + self._backend.max_deletes]
            ]
            try:
                for attempt in self._retrier.attempts():
                    with attempt as timeout_s:
                        self._backend.delete_many(batch, timeout_s=timeout_s)
            except Exception as error:
                if not errors.refuses_batches(error):
                    raise errors.make_unreachable_error(error, batch[0], "write") from error
                self._deletes_singly = True
                return list(paths[start:])
        return []

    def clear(self, folder: str) -> None:
        """Delete all files below `folder`, and on a disk also the empty folders.

        "" clears the whole store. The root itself is not deleted.
        """
        prefix = f"{folder}/" if folder else ""
        entries = self._entries(folder)
        self.delete_all(sorted(prefix + entry.name for entry in entries if entry.size is not None))
        for name in sorted(entry.name for entry in entries if entry.size is None):
            self.clear(prefix + name)
        if folder:
            self.drop_folder(folder)

    def drop_folder(self, folder: str) -> None:
        """Remove a folder if it exists and is empty."""
        self._backend.drop_folder(self._resolve(folder))

    def local_path(self, path: str) -> Path | None:
        """Return the local path of the file at `path`, or None if the store is not local."""
        url = self._resolve(path)
        return Path(url) if isinstance(self._backend, Local) else None

    def _entries(self, folder: str, prefix: str = "") -> list[Entry]:
        url = self._resolve(folder)
        for attempt in self._attempts("list", url, is_optional=True):
            with attempt as timeout_s:
                return self._backend.list(url, timeout_s=timeout_s, prefix=prefix)
        return []

    def _resolve(self, path: str) -> str:
        return join(self._root, path)

    def _attempts(
        self, doing: str, url: str, *, is_optional: bool = False, deadline_s: float | None = None
    ) -> Iterator[Attempt]:
        """Yield attempts at a request until one succeeds.

        Args:
            doing: The verb for the operation, for the error.
            url: The full path, for the error.
            is_optional: Whether a missing file ends the attempts without an error.
            deadline_s: Seconds for all attempts together. None uses the policy.

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
                raise errors.make_unreachable_error(error, url, doing) from error
