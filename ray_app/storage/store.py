"""`Store`: one root under which a run keeps its files: a local folder, an S3 prefix, or anything
else that fsspec opens.

A `Place` makes single requests and raises the exceptions of its libraries. `Store` repeats the
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
from ray_app.storage.places import place_for
from ray_app.storage.retry import Attempt, Retrier, RetryPolicy

# A run directory is read a few times a minute; a wrong endpoint must be reported within seconds,
# not minutes.
_PATIENCE = RetryPolicy(attempts=5, base_s=0.2, cap_s=5.0, deadline_s=300.0)
_TRANSFER_S = 3600.0
_REQUESTS = 16  # files that are removed at once


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
        self._place = place_for(self._root, Guard.of([self._root]))
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
        url = self._full(path)
        for attempt in self._attempts("read", url, is_optional=True):
            with attempt as timeout_s:
                return self._place.read(url, timeout_s=timeout_s)
        raise FileNotFoundError(f"{self.url}/{path}")

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Return the bytes at `path` from `start` to `end`, fewer only if the file ends there.

        Raises:
            StorageError: No file is there, or the store fails.
        """
        url = self._full(path)
        for attempt in self._attempts("read", url):
            with attempt as timeout_s:
                data = self._place.read(url, start, end - start, timeout_s=timeout_s)
        return data

    def open_file(self, path: str) -> io.BufferedReader | ranged.RangedFile:
        """Open the file at `path` for a reader that seeks (pyarrow). Each range of the file is
        requested with the store's patience. For one thread.

        Raises:
            StorageError: No file is there, or the store fails; also raised by reads of the file.
        """
        url = self._full(path)
        for attempt in self._attempts("read", url):
            with attempt as timeout_s:
                if self.local_path(path):
                    return open(url, "rb")
                size = self._place.size(url, timeout_s=timeout_s)
        return ranged.RangedFile(
            lambda start, length: self.read_range(path, start, start + length),
            size,
            ranged.WINDOW_BYTES,
        )

    def copy_to(self, path: str, target: Path) -> None:
        """Copy the file at `path` to a file of this machine. The file may be larger than memory and
        the copy may take an hour.

        Raises:
            StorageError: No file is there, or the store fails.
        """
        url = self._full(path)
        for attempt in self._attempts("read", url, deadline_s=_TRANSFER_S):
            with attempt as timeout_s:
                self._place.copy_to(url, target, timeout_s=timeout_s)

    def write(self, path: str, data: bytes) -> None:
        """Write `data` to `path` and replace what is there. A reader sees the old or the new file,
        never a part.
        """
        url = self._full(path)
        for attempt in self._attempts("write", url):
            with attempt as timeout_s:
                self._place.write(url, data, timeout_s=timeout_s)

    def write_file(self, path: str, source: Path) -> None:
        """Write the content of a file of this machine to `path`. The file may be larger than memory
        and the copy may take an hour.
        """
        url = self._full(path)
        for attempt in self._attempts("write", url, deadline_s=_TRANSFER_S):
            with attempt as timeout_s:
                self._place.write_file(url, source, timeout_s=timeout_s)

    def create(self, path: str, data: bytes) -> bool:
        """Write `data` to `path` only if nothing is there. Of several writers, one gets True.

        `data` should differ from writer to writer: a store recognises it if an answer was lost.
        """
        url = self._full(path)
        for attempt in self._attempts("write", url):
            with attempt as timeout_s:
                is_new = self._place.create(url, data, timeout_s=timeout_s)
        return is_new

    @property
    def is_exclusive(self) -> bool:
        """Whether `create` can keep two writers apart: at such places a server may still ignore
        what it is asked for (see `Lease`).
        """
        return self._place.is_exclusive

    def exists(self, path: str) -> bool:
        """Return whether there is a file at `path`."""
        url = self._full(path)
        for attempt in self._attempts("read", url, is_optional=True):
            with attempt as timeout_s:
                return self._place.exists(url, timeout_s=timeout_s)
        return False

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """Return the base names of the files directly in `folder` that begin with `prefix`, sorted;
        none if there is no such folder.
        """
        entries = self._entries(folder, prefix)
        return sorted(entry.name for entry in entries if entry.size is not None)

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the files directly in `folder`, by base name; none when there is no such folder."""
        return {entry.name: entry.size for entry in self._entries(folder) if entry.size is not None}

    def folders(self, folder: str) -> list[str]:
        """Base names of the folders directly in `folder`, sorted; none when there is no such
        folder.
        """
        return sorted(entry.name for entry in self._entries(folder) if entry.size is None)

    def delete(self, path: str) -> None:
        """Remove the file at `path`; nothing happens if there is none."""
        url = self._full(path)
        for attempt in self._attempts("write", url, is_optional=True):
            with attempt as timeout_s:
                self._place.delete(url, timeout_s=timeout_s)

    def delete_all(self, paths: Iterable[str]) -> None:
        """Remove files, many with one request where the place can; nothing happens for those that
        are not there.

        One that cannot be removed is an error, and says which.
        """
        left = list(paths)
        if len(left) > 1 and self._place.max_deletes > 1 and not self._one_by_one:
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
        for start in range(0, len(paths), self._place.max_deletes):
            batch = [self._full(path) for path in paths[start : start + self._place.max_deletes]]
            try:
                for attempt in self._retrier.attempts():
                    with attempt as timeout_s:
                        self._place.delete_many(batch, timeout_s=timeout_s)
            except Exception as error:
                if not errors.refuses_batches(error):
                    raise errors.unreachable(error, batch[0], "write") from error
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
        self._place.drop_folder(self._full(folder))

    def local_path(self, path: str) -> Path | None:
        """Return where `path` is on this machine; None if the store is elsewhere."""
        url = self._full(path)
        return Path(url) if isinstance(self._place, Local) else None

    def _entries(self, folder: str, prefix: str = "") -> list[Entry]:
        url = self._full(folder)
        for attempt in self._attempts("list", url, is_optional=True):
            with attempt as timeout_s:
                return self._place.list(url, timeout_s=timeout_s, prefix=prefix)
        return []

    def _full(self, path: str) -> str:
        return join(self._root, path)

    def _attempts(
        self, doing: str, url: str, *, is_optional: bool = False, deadline_s: float | None = None
    ) -> Iterator[Attempt]:
        """Yield attempts at a request until one succeeds.

        Args:
            doing: What the request does, for the error.
            url: The full path, for the error.
            is_optional: If nothing is at `url`, the attempts end, and no error is raised.
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
                raise errors.unreachable(error, url, doing) from error
