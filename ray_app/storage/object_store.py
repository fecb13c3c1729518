"""Three kinds of place that a store can be: local files, S3 objects, anything else that fsspec opens.

Each keeps the same promises (read, write, write_file, create, entries, delete) over full paths, raises the exceptions of its
libraries, and never retries: `store` does both for all of them.

The Hugging Face hub as a place to read from: one commit of each repository for as long as a process lives.

A branch moves; a commit does not. What is listed, what is compared and what is read are therefore always of one state, and only a
process that starts later may find another, which the files' own ids (git blobs) then tell.
"""

import contextlib
import errno
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import fsspec

from ray_app.errors import ConfigError
from ray_app.storage import s3
from ray_app.storage.errors import is_conflict, is_missing
from ray_app.storage.s3 import Call, put_file
from ray_app.storage.urls import bucket_and_key, canonical, scheme_of, strip_secrets

_EXTRA = {"gs": "gcs", "gcs": "gcs"}
_FLAT = frozenset({"gs", "gcs", "hf", "http", "https", "az", "abfs", "abfss"})  # no folders to be made there
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})  # file systems without hard links say one of these
_UNFINISHED = ".touchstone-"  # what a killed writer leaves behind; never listed as a name


class Backend(Protocol):
    """What `Store` asks of a kind of place; `left` is the seconds that the request may take."""

    def read(self, path: str, left: float) -> bytes:
        """All bytes; raises what `is_missing` recognises when there are none."""

    def write(self, path: str, data: bytes, left: float) -> None:
        """Put a file there, whole or not at all."""

    def write_file(self, path: str, source: Path, call: Call) -> None:
        """The same with a file of this machine, however large; each request goes through `call`."""

    def create(self, path: str, data: bytes, left: float) -> bool:
        """Put a file there unless one is; of many at once, one is told True."""

    def exists(self, path: str, left: float) -> bool:
        """Whether a file is there."""

    def entries(self, folder: str, left: float) -> list[tuple[str, int | None]]:
        """Base names directly in a folder with their bytes, None for what is a folder itself."""

    def delete(self, path: str, left: float) -> None:
        """Remove a file."""

    def drop_folder(self, folder: str) -> None:
        """Remove a folder that is empty, where there are folders at all."""

    def filesystem_and_path(self, path: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """What fsspec calls this place."""


def backend_for(url: str) -> Backend:
    """The backend of a URL's scheme. Raises ConfigError for a scheme that is unknown or whose package is missing."""
    scheme = scheme_of(url)
    if scheme == "file":
        return _LocalFiles()
    return _S3Objects() if scheme == "s3" else _OtherFiles(url)


def fsspec_for(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """fsspec's file system and path for a URL. Raises ConfigError as above."""
    options: dict[str, Any] = {"use_listings_cache": False} if scheme_of(url) in ("gs", "gcs") else {}
    try:
        if scheme_of(url) == "s3":
            return s3.filesystem(), "/".join(bucket_and_key(url)).rstrip("/")
        fs, path = fsspec.core.url_to_fs(canonical(url), **options)
    except ImportError as error:
        extra = _EXTRA.get(scheme_of(url))
        hint = f"pip install 'touchstone[{extra}]'" if extra else None
        raise ConfigError(f"{strip_secrets(url)}: {error}", hint=hint) from None
    except ValueError as error:
        raise ConfigError(f"{strip_secrets(url)}: {error}", hint="known: a path, file://, s3://, gs://, https://, hf://") from None
    return fs, path


class _LocalFiles:
    """Files that appear whole: written beside their place and renamed, or linked where they must be new."""

    def read(self, path: str, left: float) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def write(self, path: str, data: bytes, left: float) -> None:
        with _written_aside(path, io.BytesIO(data)) as aside:
            os.replace(aside, path)

    def write_file(self, path: str, source: Path, call: Call) -> None:
        def copy(left: float) -> None:
            with open(source, "rb") as data, _written_aside(path, data) as aside:
                os.replace(aside, path)

        call(copy)

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

    def entries(self, folder: str, left: float) -> list[tuple[str, int | None]]:
        listed: list[tuple[str, int | None]] = []
        with os.scandir(folder) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):  # gone since
                    if not entry.name.startswith(_UNFINISHED):
                        listed.append((entry.name, None if entry.is_dir() else entry.stat().st_size))
        return listed

    def delete(self, path: str, left: float) -> None:
        os.unlink(path)

    def drop_folder(self, folder: str) -> None:
        with contextlib.suppress(OSError):  # not there, not empty
            os.rmdir(folder)

    def filesystem_and_path(self, path: str) -> tuple[fsspec.AbstractFileSystem, str]:
        return fsspec.filesystem("file"), path


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


class _S3Objects:
    """Objects: a PUT is atomic, and `If-None-Match: *` makes it exclusive."""

    def read(self, path: str, left: float) -> bytes:
        bucket, key = bucket_and_key(path)
        return s3.get(bucket, key, timeout_s=left)

    def write(self, path: str, data: bytes, left: float) -> None:
        bucket, key = bucket_and_key(path)
        s3.put(bucket, key, data, timeout_s=left)

    def write_file(self, path: str, source: Path, call: Call) -> None:
        put_file(*bucket_and_key(path), source, call)

    def create(self, path: str, data: bytes, left: float) -> bool:
        bucket, key = bucket_and_key(path)
        try:
            s3.put(bucket, key, data, timeout_s=left, only_if_absent=True)
        except Exception as error:
            if not is_conflict(error):
                raise
            return self._is_ours(path, data, left)
        return True

    def _is_ours(self, path: str, data: bytes, left: float) -> bool:
        # The PUT whose answer was lost may be our own; what is created carries a random token, so equal bytes are ours.
        try:
            return self.read(path, left) == data
        except Exception as error:
            if is_missing(error):
                return False  # it was another's, who has removed it since
            raise

    def exists(self, path: str, left: float) -> bool:
        bucket, key = bucket_and_key(path)
        try:
            s3.head(bucket, key, timeout_s=left)
        except Exception as error:
            if is_missing(error):
                return False
            raise
        return True

    def entries(self, folder: str, left: float) -> list[tuple[str, int | None]]:
        bucket, key = bucket_and_key(folder)
        prefix = f"{key}/" if key else ""
        found: list[tuple[str, int | None]] = []
        for answer in s3.pages(bucket, prefix, lambda ask: ask(left), delimiter="/"):
            found += [(item["Prefix"][len(prefix) : -1], None) for item in answer.get("CommonPrefixes", ())]
            found += [(item["Key"][len(prefix) :], item["Size"]) for item in answer.get("Contents", ()) if item["Key"] != prefix]
        return found

    def delete(self, path: str, left: float) -> None:
        bucket, key = bucket_and_key(path)
        s3.delete(bucket, key, timeout_s=left)

    def drop_folder(self, folder: str) -> None:
        pass

    def filesystem_and_path(self, path: str) -> tuple[fsspec.AbstractFileSystem, str]:
        return fsspec_for(path)


class _OtherFiles:
    """Whatever else fsspec opens: memory, Google storage, a web server, the hub. As atomic as that place itself is."""

    def __init__(self, url: str) -> None:
        self._fs, _ = fsspec_for(url)
        self._has_folders = scheme_of(url) not in _FLAT

    def _inside(self, path: str) -> str:
        return str(self._fs._strip_protocol(path))

    def _placed(self, path: str) -> str:
        inside = self._inside(path)
        if self._has_folders:
            self._fs.makedirs(self._fs._parent(inside), exist_ok=True)
        return inside

    def read(self, path: str, left: float) -> bytes:
        data: bytes = self._fs.cat_file(self._inside(path))
        return data

    def write(self, path: str, data: bytes, left: float) -> None:
        self._fs.pipe_file(self._placed(path), data)

    def write_file(self, path: str, source: Path, call: Call) -> None:
        call(lambda left: self._fs.put_file(str(source), self._placed(path)))

    def create(self, path: str, data: bytes, left: float) -> bool:
        try:
            self._fs.pipe_file(self._placed(path), data, mode="create")
        except Exception as error:
            if is_conflict(error):
                return False
            raise
        return True

    def exists(self, path: str, left: float) -> bool:
        try:
            return bool(self._fs.info(self._inside(path))["type"] == "file")
        except FileNotFoundError:
            return False

    def entries(self, folder: str, left: float) -> list[tuple[str, int | None]]:
        found = self._fs.ls(self._inside(folder), detail=True)
        return [
            (item["name"].rstrip("/").rpartition("/")[2], None if item["type"] == "directory" else int(item.get("size") or 0))
            for item in found
        ]

    def delete(self, path: str, left: float) -> None:
        self._fs.rm_file(self._inside(path))

    def drop_folder(self, folder: str) -> None:
        pass

    def filesystem_and_path(self, path: str) -> tuple[fsspec.AbstractFileSystem, str]:
        return self._fs, self._inside(path)


def reading_place(url: str) -> tuple[Any, str]:
    """fsspec's file system and path for a URL that is only read; on the hub, at the commit that this process has seen first.

    Raises as `fsspec_for`, and what the hub's client raises.
    """
    return (filesystem(), pinned(url)) if scheme_of(url) == "hf" else fsspec_for(url)


def filesystem() -> Any:
    """The process's HfFileSystem for the present HF_ENDPOINT; its listings are kept, since commits do not change."""
    return _filesystem(os.getpid(), os.environ.get("HF_ENDPOINT"))


@lru_cache(maxsize=4)
def _filesystem(pid: int, endpoint: str | None) -> Any:
    from huggingface_hub import HfFileSystem  # a third of a second, for those who read from the hub

    # fsspec would make one for each thread, and every one would list every folder anew.
    return HfFileSystem(endpoint=endpoint, skip_instance_cache=True)


def pinned(url: str) -> str:
    """The path, as HfFileSystem spells it, at the commit that its branch points to now. Raises FileNotFoundError and httpx's errors."""
    fs = filesystem()
    found = fs.resolve_path(url)
    if not hasattr(found, "revision"):
        return str(found.unresolve())  # a bucket has no commits
    root = f"{found.repo_type}s/{found.repo_id}@{_commit(os.getpid(), fs.endpoint, found.repo_type, found.repo_id, found.revision)}"
    return f"{root}/{found.path_in_repo}".rstrip("/")


@lru_cache(maxsize=256)
def _commit(pid: int, endpoint: str, repo_type: str, repo_id: str, revision: str) -> str:
    from huggingface_hub import HfApi

    return str(HfApi(endpoint=endpoint).repo_info(repo_id, revision=revision, repo_type=repo_type).sha)
