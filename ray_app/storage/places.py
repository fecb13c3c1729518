"""Read and write files on S3 (`S3`) and other stores (`Fsspec`), and read web servers (`Web`).

`choose_backend` returns one of these backends, or `storage.local.Local`, for the scheme of a URL.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import fsspec
from typing_extensions import override

from ray_app.errors import ConfigError, SourceError, Status
from ray_app.storage import errors, http, key_prefixes, object_store, s3, urls
from ray_app.storage.http import WEB, Guard
from ray_app.storage.local import Local
from ray_app.storage.place import Backend, ClosedFolder, Enters, Entry, ObjectInfo
from ray_app.storage.retry import Retrier

# Parts of a file that is written to S3 with several requests: their size, and how many are written
# at the same time.
PART_BYTES, _MAX_PARTS_AT_ONCE = 32 * 2**20, 2

_LOCAL = Local()
# Stores whose exclusive creation was tested. Other stores may check and then write, so that two
# writers may both succeed.
_EXCLUSIVE = frozenset({"memory", "s3", "gs", "gcs", "az", "abfs", "abfss"})
# Stores without folders.
_FLAT = frozenset({"s3", "gs", "gcs", "hf", "az", "abfs", "abfss"})


def choose_backend(url: str, guard: Guard, *, pins_commits: bool = False) -> Backend:
    """Return the storage backend for a URL, which its scheme decides.

    All other code uses this function to choose a backend. If `pins_commits`, each repository of the
    Hugging Face Hub is read at the commit that this process saw first, only for reading. Raises
    ConfigError if the scheme is unknown or its package missing. With `pins_commits`, the first
    request raises this error.
    """
    scheme = urls.get_scheme(url)
    if scheme == "file":
        return _LOCAL
    if scheme == "s3":
        return S3()
    if scheme in WEB:
        return Web(guard)
    if not pins_commits:
        object_store.open_fsspec(url)
    return Fsspec(scheme, pins_commits=pins_commits)


class Fsspec(Backend):
    """The backend for stores that fsspec opens, such as Google Cloud, Azure, or Hugging Face Hub.

    A write is atomic only if the store makes it atomic.
    """

    max_deletes = 1

    def __init__(self, scheme: str, *, pins_commits: bool = False) -> None:
        self.is_exclusive = scheme in _EXCLUSIVE
        self._has_folders = scheme not in _FLAT
        # Otherwise files of the hub would read megabytes ahead of each range.
        self._range_options = {"cache_type": "none"} if scheme == "hf" else {}
        self._pins_commits = pins_commits

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
        fs, inside = self._find(path)
        size = None
        if version or max_bytes is not None or length is not None:
            info = _request(fs, "info", timeout_s, inside)
            errors.require_version(version, urls.get_version(info))
            errors.refuse_packed(_get_content_encoding(info))
            size = info.get("size")
        if max_bytes is not None and size is not None and size > max_bytes:
            raise errors.make_too_large_error(size, max_bytes)
        if length is None:
            data: bytes = _request(fs, "cat_file", timeout_s, inside)
            errors.require_length(len(data), size)
            return data
        end = start + length if size is None else min(start + length, size)
        if end <= start:
            return b""
        data = _request(
            fs, "cat_file", timeout_s, inside, start=start, end=end, **self._range_options
        )
        errors.require_length(len(data), None if size is None else end - start)
        return data

    @override
    def size(self, path: str, *, version: str = "", timeout_s: float) -> int:
        fs, inside = self._find(path)
        return _get_size(_request(fs, "info", timeout_s, inside), version)

    @override
    def exists(self, path: str, *, timeout_s: float) -> bool:
        fs, inside = self._find(path)
        try:
            return bool(_request(fs, "info", timeout_s, inside)["type"] == "file")
        except FileNotFoundError as error:
            if not errors.is_missing(error):
                raise
            return False

    @override
    def copy_to(self, path: str, target: Path, *, timeout_s: float) -> None:
        fs, inside = self._find(path)
        _request(fs, "get_file", timeout_s, inside, str(target))

    @override
    def write(self, path: str, data: bytes, *, timeout_s: float) -> None:
        fs, inside = self._find_to_write(path)
        _request(fs, "pipe_file", timeout_s, inside, data)

    @override
    def write_file(self, path: str, source: Path, *, timeout_s: float) -> None:
        fs, inside = self._find_to_write(path)
        _request(fs, "put_file", timeout_s, str(source), inside)

    @override
    def create(self, path: str, data: bytes, *, timeout_s: float) -> bool:
        fs, inside = self._find_to_write(path)
        try:
            _request(fs, "pipe_file", timeout_s, inside, data, mode="create")
        except Exception as error:
            if not errors.is_conflict(error):
                raise
            try:
                # The answer to an earlier attempt may have been lost: see `Store.create`.
                return self.read(path, timeout_s=timeout_s) == data
            except Exception as lost:
                if errors.is_missing(lost):  # Another process created the file, and deleted it.
                    return False
                raise
        return True

    @override
    def list(self, folder: str, *, timeout_s: float, prefix: str = "") -> list[Entry]:
        fs, inside = self._find(folder)
        items = _request(fs, "ls", timeout_s, inside, detail=True)
        names = (item["name"].rstrip("/").rpartition("/")[2] for item in items)
        return [
            Entry(name, None)
            if item["type"] == "directory"
            else Entry(name, int(item.get("size") or 0))
            for name, item in zip(names, items, strict=True)
            if name.startswith(prefix)
        ]

    @override
    def walk(self, source: str, enters: Enters) -> Iterator[ObjectInfo]:
        retrier = Retrier(key_prefixes.PATIENCE)
        try:
            for attempt in retrier.attempts():
                with attempt as timeout_s:
                    fs, path = self._find(source)
                    info = _request(fs, "info", timeout_s, path)
        except FileNotFoundError:
            return
        if info["type"] == "file":
            yield _make_info(source, info)
            return
        skipped = len(path.rstrip("/"))
        pending = [iter(_list_sorted(fs, path, retrier))]
        while pending:
            for entry in pending[-1]:
                uri = source + entry["name"][skipped:]
                if entry["type"] != "directory":
                    yield _make_info(uri, entry)
                elif enters(uri.rstrip("/")):
                    try:
                        pending.append(iter(_list_sorted(fs, entry["name"], retrier)))
                    except Exception as error:
                        reason = errors.make_folder_error(error)
                        if reason.status not in (Status.SOURCE_DENIED, Status.SOURCE_MISSING):
                            # The store gave no answer after many attempts, so listing the rest of
                            # it would fail, too.
                            raise
                        yield ClosedFolder(uri.rstrip("/"), -1, "", reason)
                        continue
                    break
            else:
                pending.pop()

    @override
    def delete(self, path: str, *, timeout_s: float) -> None:
        fs, inside = self._find(path)
        _request(fs, "rm_file", timeout_s, inside)

    @override
    def delete_many(self, paths: Sequence[str], *, timeout_s: float) -> None:
        for path in paths:
            self.delete(path, timeout_s=timeout_s)

    @override
    def drop_folder(self, folder: str) -> None:
        pass  # Most of these stores have no folders.

    def _find(self, path: str) -> tuple[fsspec.AbstractFileSystem, str]:
        return (object_store.open_for_reading if self._pins_commits else object_store.open_fsspec)(
            path
        )

    def _find_to_write(self, path: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """Find a file that is about to be written, and make its folder."""
        fs, inside = self._find(path)
        if self._has_folders:
            fs.makedirs(inside.rpartition("/")[0] or fs.root_marker, exist_ok=True)
        return fs, inside


class S3(Fsspec):
    """The backend for S3. It reads, lists, and deletes in bulk by `storage.s3`, not by s3fs.

    It writes, copies to local files, and deletes single files by s3fs.

    One request is enough to read a file or to check that it exists. A read fails if the file does
    not have the given version. If some of many files cannot be deleted, the error names one file.
    """

    max_deletes = s3.MAX_DELETED

    def __init__(self) -> None:
        super().__init__("s3")

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
        bucket, key = urls.split_bucket(path)
        if length is None:
            return s3.get(bucket, key, timeout_s=timeout_s, version=version, max_bytes=max_bytes)
        return s3.get_range(bucket, key, start, length, timeout_s=timeout_s, version=version)

    @override
    def size(self, path: str, *, version: str = "", timeout_s: float) -> int:
        info = s3.head(*urls.split_bucket(path), timeout_s=timeout_s)
        s3.require_version(version, info, info["ContentLength"])
        return int(info["ContentLength"])

    @override
    def exists(self, path: str, *, timeout_s: float) -> bool:
        return s3.find(*urls.split_bucket(path), timeout_s=timeout_s) is not None

    @override
    def write_file(self, path: str, source: Path, *, timeout_s: float) -> None:
        fs, inside = self._find(path)
        parts = {"chunksize": PART_BYTES, "max_concurrency": _MAX_PARTS_AT_ONCE}
        _request(fs, "put_file", timeout_s, str(source), inside, **parts)

    @override
    def list(self, folder: str, *, timeout_s: float, prefix: str = "") -> list[Entry]:
        bucket, key = urls.split_bucket(folder)
        above = f"{key}/" if key else ""
        entries: list[Entry] = []
        position: s3.Position | None = None
        while True:
            page = s3.page(
                bucket, above + prefix, timeout_s=timeout_s, delimiter="/", position=position
            )
            entries += [
                Entry(item["Prefix"][len(above) : -1], None)
                for item in page.get("CommonPrefixes", ())
            ]
            entries += [
                Entry(item["Key"][len(above) :], item["Size"])
                for item in page.get("Contents", ())
                if item["Key"] != above
            ]
            position = s3.find_next(bucket, above + prefix, page)
            if position is None:
                return entries

    @override
    def walk(self, source: str, enters: Enters) -> Iterator[ObjectInfo]:
        return key_prefixes.list_prefix(source)

    @override
    def delete_many(self, paths: Sequence[str], *, timeout_s: float) -> None:
        buckets_and_keys = [urls.split_bucket(path) for path in paths]
        s3.delete_objects(
            buckets_and_keys[0][0], [key for _, key in buckets_and_keys], timeout_s=timeout_s
        )


class Web(Fsspec):
    """The backend for plain web servers, from which files can only be read.

    A server that `guard` does not trust is requested only if its address is public. This also
    applies to targets of redirects. `copy_to` and `list` work only for trusted servers, because
    fsspec makes these requests itself, without that check.
    """

    def __init__(self, guard: Guard) -> None:
        super().__init__("https")
        self._guard = guard

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
        if length is None:
            return http.get(
                path, self._guard, version=version, max_bytes=max_bytes, timeout_s=timeout_s
            )
        return http.get_range(
            path, self._guard, start, length, version=version, timeout_s=timeout_s
        )

    @override
    def size(self, path: str, *, version: str = "", timeout_s: float) -> int:
        return _get_size(http.head(path, self._guard, timeout_s=timeout_s), version)

    @override
    def exists(self, path: str, *, timeout_s: float) -> bool:
        try:
            http.head(path, self._guard, timeout_s=timeout_s)
        except Exception as error:
            if errors.is_missing(error):
                return False
            raise
        return True

    @override
    def walk(self, source: str, enters: Enters) -> Iterator[ObjectInfo]:
        try:
            for attempt in Retrier(key_prefixes.PATIENCE).attempts():
                with attempt as timeout_s:
                    info = http.head(source, self._guard, timeout_s=timeout_s)
        except Exception as error:
            if errors.is_missing(error):
                return
            raise
        yield _make_info(urls.strip_secrets(source), info)

    @override
    def write(self, path: str, data: bytes, *, timeout_s: float) -> None:
        _refuse_to_write(path)

    @override
    def write_file(self, path: str, source: Path, *, timeout_s: float) -> None:
        _refuse_to_write(path)

    @override
    def create(self, path: str, data: bytes, *, timeout_s: float) -> bool:
        _refuse_to_write(path)

    @override
    def delete(self, path: str, *, timeout_s: float) -> None:
        _refuse_to_write(path)

    def _find(self, path: str) -> tuple[fsspec.AbstractFileSystem, str]:
        if not self._guard.trusts(path):
            raise SourceError(
                Status.SOURCE_DENIED, "only a web server that you named as a source can be listed"
            )
        return object_store.open_fsspec(path)


def _refuse_to_write(path: str) -> NoReturn:
    raise ConfigError(
        f"{urls.strip_secrets(path)}: cannot write to a web server, which can only be read",
        hint="write to a path, s3://, gs://, or az://",
    )


def _request(fs: Any, name: str, timeout_s: float, *args: Any, **kwargs: Any) -> Any:
    """Call a method of a file system, within `timeout_s` seconds if it can be interrupted.

    Raises FSTimeoutError if the method took too long.
    """
    if not fs.async_impl:
        return getattr(fs, name)(*args, **kwargs)
    return fsspec.asyn.sync(fs.loop, getattr(fs, f"_{name}"), *args, timeout=timeout_s, **kwargs)


def _list_sorted(fs: Any, folder: str, retrier: Retrier) -> list[Mapping[str, Any]]:
    """List a folder in the order of whole uris, in which a folder ends with a slash."""
    for attempt in retrier.attempts():
        with attempt as timeout_s:
            items = _request(fs, "ls", timeout_s, folder, detail=True)
    entries = [entry for entry in items if entry["name"].rstrip("/") != folder.rstrip("/")]
    return sorted(
        entries,
        key=lambda entry: entry["name"].rstrip("/") + ("/" if entry["type"] == "directory" else ""),
    )


def _get_size(info: Mapping[str, Any], version: str) -> int:
    errors.require_version(version, urls.get_version(info))
    if info.get("size") is None:
        raise SourceError(Status.SOURCE_DENIED, "the server does not state the size of the file")
    return int(info["size"])


def _get_content_encoding(info: Mapping[str, Any]) -> str | None:
    """Return the Content-Encoding of an object on Google Cloud Storage or Azure Blob Storage."""
    settings = info.get("content_settings") or {}
    encoding: str | None = info.get("contentEncoding") or settings.get("content_encoding")
    return encoding


def _make_info(uri: str, info: Mapping[str, Any]) -> ObjectInfo:
    size = info.get("size")
    return ObjectInfo(uri, -1 if size is None else size, urls.get_version(info))
