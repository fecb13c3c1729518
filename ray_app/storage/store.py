"""One root under which a run keeps its files, wherever that is. Knows names and bytes; knows nothing of what they mean."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import fsspec

from ray_app.storage import fetch
from ray_app.storage.errors import is_missing, unreachable
from ray_app.storage.fetch import Retrier, RetryPolicy
from ray_app.storage.http import Guard
from ray_app.storage.object_store import backend_for
from ray_app.storage.urls import canonical, join, strip_secrets

T = TypeVar("T")

# A run directory is asked a few times a minute; a wrong endpoint must be said within seconds, not minutes.
_PATIENCE = RetryPolicy(attempts=5, base_s=0.2, cap_s=5.0, deadline_s=300.0)
_REQUESTS = 16  # files that are removed at once


class Store:
    """A folder, bucket prefix or other fsspec URL. Paths are relative, with `/`; what appears under one appears whole.

    Every method raises StorageError, with a hint, when the place is out of reach or refuses. Picklable: the copy opens the same
    URL with the environment of the process it lands in.
    """

    def __init__(self, url: str, retrier: Retrier | None = None) -> None:
        self._root = canonical(url)
        self._backend = backend_for(self._root)
        self._retrier = retrier or Retrier(_PATIENCE)
        self.url = strip_secrets(self._root)

    @classmethod
    def open(cls, url: str) -> "Store":
        """The store at a URL or path; touches nothing yet. Raises ConfigError for a scheme that cannot be opened."""
        return cls(url)

    def below(self, folder: str) -> "Store":
        """The store that is one folder of this one."""
        return Store(join(self._root, folder), self._retrier)

    def __reduce__(self) -> tuple[object, ...]:
        return (Store, (self._root,))

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def read(self, path: str) -> bytes:
        """The bytes at `path`. Raises FileNotFoundError when there is nothing."""
        found = self._ask("read", path, self._backend.read)
        if found is None:
            raise FileNotFoundError(f"{self.url}/{path}")
        return found

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """The bytes at `path` from `start` to `end`, fewer only where the file ends. Raises StorageError also when there is nothing."""
        return self._must("read", path, lambda place, left: fetch.read_range(place, Guard.of([self._root]), "", start, end - start, left))

    def write(self, path: str, data: bytes) -> None:
        """Put `data` at `path`, over whatever is there; a reader sees the old or the new, never a part."""
        self._must("write", path, self._backend.write, data)

    def write_file(self, path: str, source: Path) -> None:
        """The same with the content of a file of this machine, which may be larger than memory; each part is retried on its own."""
        place = join(self._root, path)
        try:
            self._backend.write_file(place, source, self._retrier.call)
        except Exception as error:
            raise unreachable(error, place, "write") from error

    def create(self, path: str, data: bytes) -> bool:
        """Put `data` at `path` only if nothing is there, False if something is. Of many that try at once, one succeeds.

        `data` should differ from writer to writer: an answer that got lost is recognised by it.
        """
        return self._must("write", path, self._backend.create, data)

    def exists(self, path: str) -> bool:
        """Whether there is a file at `path`."""
        return bool(self._ask("read", path, self._backend.exists))

    def names(self, folder: str) -> list[str]:
        """Base names of the files directly in `folder`, sorted; none when there is no such folder."""
        return sorted(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the files directly in `folder`, by base name; none when there is no such folder."""
        return {name: size for name, size in self._entries(folder) if size is not None}

    def folders(self, folder: str) -> list[str]:
        """Base names of the folders directly in `folder`, sorted; none when there is no such folder."""
        return sorted(name for name, size in self._entries(folder) if size is None)

    def delete(self, path: str) -> None:
        """Remove the file at `path`; nothing happens when there is none."""
        self._ask("write", path, self._backend.delete)

    def clear(self, folder: str) -> None:
        """Remove all files below `folder`, and on a disk the emptied folders; "" is the whole store, which itself stays."""
        prefix = f"{folder}/" if folder else ""
        if names := self.names(folder):
            with ThreadPoolExecutor(_REQUESTS) as pool:
                list(pool.map(lambda name: self.delete(prefix + name), names))
        for name in self.folders(folder):
            self.clear(prefix + name)
        if folder:
            self._backend.drop_folder(join(self._root, folder))

    def filesystem_and_path(self, path: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """fsspec's file system and its own spelling of `path`, for readers that seek (pyarrow)."""
        return self._backend.filesystem_and_path(join(self._root, path))

    def _entries(self, folder: str) -> list[tuple[str, int | None]]:
        return self._ask("list", folder, self._backend.entries) or []

    def _ask(self, doing: str, path: str, request: Callable[[str, float], T]) -> T | None:
        """The answer, or None when there is nothing at `path`."""
        place = join(self._root, path)
        try:
            return self._retrier.call(partial(request, place))
        except Exception as error:
            if is_missing(error):
                return None
            raise unreachable(error, place, doing) from error

    def _must(self, doing: str, path: str, request: Callable[..., T], *given: bytes) -> T:
        place = join(self._root, path)
        try:
            return self._retrier.call(partial(request, place, *given))
        except Exception as error:
            raise unreachable(error, place, doing) from error
