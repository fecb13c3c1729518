"""One request for one object's bytes, whatever store keeps it: whole, in part, or only its size. Retries nothing.

Each answers for the version that was asked for ("" = whichever) or raises; exceptions are the libraries', for `errors` to translate.
`guard` says which web servers are asked.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray_app.errors import SourceError, Status
from ray_app.storage import s3, web
from ray_app.storage.errors import ObjectChangedError, ShortReadError, too_large
from ray_app.storage.hub import reading_place
from ray_app.storage.locations import bucket_and_key, local_path, scheme_of
from ray_app.storage.versions import local_version, version_of
from ray_app.storage.web import WEB, Guard


def read(place: str, version: str, max_bytes: int, left: float, guard: Guard) -> bytes:
    """The whole object. Raises InputError when it is over `max_bytes`."""
    scheme = scheme_of(place)
    if scheme == "file":
        return _read_local(local_path(place), version, max_bytes)
    if scheme == "s3":
        bucket, key = bucket_and_key(place)
        return s3.get(bucket, key, timeout_s=left, etag=version, max_bytes=max_bytes)
    if scheme in WEB:
        return web.get(place, guard, version=version, max_bytes=max_bytes, timeout_s=left)
    return _read_other(place, version, max_bytes)


def read_range(place: str, version: str, start: int, length: int, left: float, guard: Guard) -> bytes:
    """The `length` bytes from `start`, fewer only where the object ends."""
    scheme = scheme_of(place)
    if scheme == "file":
        return _read_local_range(local_path(place), version, start, length)
    if scheme == "s3":
        bucket, key = bucket_and_key(place)
        return s3.get_range(bucket, key, start, length, timeout_s=left, etag=version)
    if scheme in WEB:
        return web.get_range(place, guard, start, length, version=version, timeout_s=left)
    return _read_other_range(place, version, start, length)


def size(place: str, version: str, left: float, guard: Guard) -> int:
    """How many bytes the object has. Raises SourceError where the store does not say."""
    scheme = scheme_of(place)
    if scheme == "file":
        with _opened(local_path(place), version) as (_, found):
            return found.st_size
    if scheme == "s3":
        bucket, key = bucket_and_key(place)
        answer = s3.head(bucket, key, timeout_s=left)
        info = {"size": answer["ContentLength"], "ETag": answer["ETag"]}
    elif scheme in WEB:
        info = web.head(place, guard, timeout_s=left)
    else:
        fs, path = reading_place(place)
        info = fs.info(path)
    same(version, version_of(info))
    if info.get("size") is None:
        raise SourceError(Status.SOURCE_DENIED, "the server does not say how large it is")
    return int(info["size"])


def same(listed: str, found: str) -> None:
    """Raises ObjectChangedError when what was found is not the version that was listed."""
    if listed and found != listed:
        raise ObjectChangedError(f"listed as {listed}, found as {found or 'nothing that names a version'}")


@contextmanager
def _opened(path: str, version: str) -> Iterator[tuple[int, os.stat_result]]:
    """A descriptor of a regular file that is of `version`, and still is when the block ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        before = os.fstat(descriptor)
        same(version, local_version(before))
        if not stat.S_ISREG(before.st_mode):
            raise ObjectChangedError("it is not a file any more")
        yield descriptor, before
        if local_version(os.fstat(descriptor)) != local_version(before):
            raise ObjectChangedError("it changed while it was read")
    finally:
        os.close(descriptor)


def _read_local(path: str, version: str, max_bytes: int) -> bytes:
    with _opened(path, version) as (descriptor, found):
        if found.st_size > max_bytes:
            raise too_large(found.st_size, max_bytes)
        data = os.read(descriptor, found.st_size)
        while len(data) < found.st_size and (more := os.read(descriptor, found.st_size - len(data))):
            data += more
    if len(data) != found.st_size:
        raise ObjectChangedError("it changed while it was read")
    return data


def _read_local_range(path: str, version: str, start: int, length: int) -> bytes:
    with _opened(path, version) as (descriptor, found):
        wanted = max(0, min(length, found.st_size - start))
        data = os.pread(descriptor, wanted, start)
        while len(data) < wanted and (more := os.pread(descriptor, wanted - len(data), start + len(data))):
            data += more
    if len(data) != wanted:
        raise ObjectChangedError("it changed while it was read")
    return data


def _read_other(place: str, version: str, max_bytes: int) -> bytes:
    fs, path = reading_place(place)
    info: dict[str, Any] = fs.info(path)
    same(version, version_of(info))
    if info.get("size") is not None and info["size"] > max_bytes:
        raise too_large(info["size"], max_bytes)
    data: bytes = fs.cat_file(path)
    if info.get("size") is not None and len(data) != info["size"]:
        raise ShortReadError(f"{len(data)} of {info['size']} bytes came")
    return data


def _read_other_range(place: str, version: str, start: int, length: int) -> bytes:
    fs, path = reading_place(place)
    info: dict[str, Any] = fs.info(path)
    same(version, version_of(info))
    known = info.get("size")
    wanted = length if known is None else max(0, min(length, int(known) - start))
    if not wanted:
        return b""
    # The hub's files would read megabytes ahead of each range.
    options = {"cache_type": "none"} if scheme_of(place) == "hf" else {}
    data: bytes = fs.cat_file(path, start=start, end=start + wanted, **options)
    if known is not None and len(data) != wanted:
        raise ShortReadError(f"{len(data)} of {wanted} bytes came")
    return data
