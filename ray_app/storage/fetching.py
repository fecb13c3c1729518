"""One member's bytes, whole and of the version that was listed, or the reason why not. Knows nothing of what the bytes are."""

import os
import stat
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain
from typing import Any, Protocol, TypeVar

from ray_app.errors import InputError, SourceError, Status
from ray_app.storage import s3, web
from ray_app.storage.backends import fsspec_for
from ray_app.storage.errors import ObjectChangedError, ShortReadError, too_large, translate
from ray_app.storage.locations import bucket_and_key, canonical, local_path, scheme_of, strip_secrets
from ray_app.storage.retrying import CancelledError, Gate, Retrier, RetryPolicy
from ray_app.storage.versions import local_version, version_of

_REMOTE_THREADS, _LOCAL_THREADS = 16, 1
# Tiny files would fill a budget of bytes with hundreds of thousands of requests; this many per thread keep it busy.
_AHEAD_PER_THREAD = 16


class Fetchable(Protocol):
    """What a fetch needs to know of a member."""

    @property
    def uri(self) -> str:
        """Where it is, without secrets."""

    @property
    def version(self) -> str:
        """Which state of it was listed; "" = whichever."""

    @property
    def size_bytes(self) -> int:
        """-1 where the store has not said it."""


M = TypeVar("M", bound=Fetchable)


class Fetcher:
    """Reads members with patience, and counts what it met. One per process; safe to share between threads.

    `signed` are source URLs as the user gave them: a member whose uri is one of them without its secrets is read with them.
    """

    def __init__(
        self, policy: RetryPolicy | None = None, *, signed: Sequence[str] = (), retrier: Retrier | None = None, gate: Gate | None = None
    ) -> None:
        self._retrier = retrier or Retrier(policy or RetryPolicy())
        self._gate = gate or Gate(64)
        self._signed = {strip_secrets(canonical(url)): canonical(url) for url in signed if strip_secrets(url) != url}
        self._counting = threading.Lock()
        self.bytes_read = 0

    @property
    def throttled(self) -> int:
        """How many answers asked to slow down."""
        return self._retrier.throttled

    @property
    def retried(self) -> int:
        """How many requests were made again."""
        return self._retrier.retried

    def fetch(self, uri: str, version: str, max_bytes: int) -> bytes:
        """All bytes of the object, which is still of `version` ("" = whichever).

        Raises: SourceError (missing, denied, throttled, timeout, changed), InputError (image_too_large, before the body is read).
        """
        return self._fetch(uri, version, max_bytes, None)

    def prefetch(
        self, members: Iterable[M], *, depth_bytes: int, max_bytes: int, threads: int | None = None
    ) -> Iterator[tuple[M, bytes | InputError]]:
        """Every member in order with its bytes or the reason why not, read ahead up to `depth_bytes` in flight or waiting.

        One that is larger than `depth_bytes` still passes, alone. Larger than `max_bytes` is refused without a request.
        `threads` is chosen by the first member's store when not given.
        """
        first, members = _peek(members)
        if first is None:
            return
        threads = threads or (_LOCAL_THREADS if scheme_of(first.uri) == "file" else _REMOTE_THREADS)
        cancelled = threading.Event()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
        waiting: deque[tuple[M, int, Future[bytes | InputError]]] = deque()
        in_flight = 0
        try:
            for member in members:
                size = _budgeted(member.size_bytes, max_bytes)
                while waiting and (in_flight + size > depth_bytes or len(waiting) >= threads * _AHEAD_PER_THREAD):
                    done, freed, result = waiting.popleft()
                    yield done, result.result()
                    in_flight -= freed
                waiting.append((member, size, pool.submit(self._outcome, member, max_bytes, cancelled)))
                in_flight += size
            while waiting:
                done, _, result = waiting.popleft()
                yield done, result.result()
        finally:
            cancelled.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _outcome(self, member: Fetchable, max_bytes: int, cancelled: threading.Event) -> bytes | InputError:
        if member.size_bytes > max_bytes:
            return too_large(member.size_bytes, max_bytes)
        try:
            return self._fetch(member.uri, member.version, max_bytes, cancelled)
        except InputError as error:
            return error

    def _fetch(self, uri: str, version: str, max_bytes: int, cancelled: threading.Event | None) -> bytes:
        place = self._signed.get(uri, uri)
        is_local = scheme_of(place) == "file"

        def ask(left: float) -> bytes:
            with nullcontext() if is_local else self._gate:
                return _read(place, version, max_bytes, left)

        try:
            data = self._retrier.call(ask, cancelled)
        except CancelledError:
            raise SourceError(Status.SOURCE_TIMEOUT, "given up: nobody waits for it") from None
        except InputError:
            raise
        except Exception as error:
            raise translate(error, place) from error
        with self._counting:
            self.bytes_read += len(data)
        return data


def _peek(members: Iterable[M]) -> tuple[M | None, Iterator[M]]:
    rest = iter(members)
    first = next(rest, None)
    return first, rest if first is None else chain([first], rest)


def _budgeted(size: int, max_bytes: int) -> int:
    """Bytes to reserve: nothing for what will be refused, the limit for what is unknown."""
    if size > max_bytes:
        return 0
    return max_bytes if size < 0 else size


def _read(place: str, version: str, max_bytes: int, left: float) -> bytes:
    scheme = scheme_of(place)
    if scheme == "file":
        return _read_local(local_path(place), version, max_bytes)
    if scheme == "s3":
        bucket, key = bucket_and_key(place)
        return s3.get(bucket, key, timeout_s=left, etag=version, max_bytes=max_bytes)
    if scheme in ("http", "https"):
        return web.get(place, version=version, max_bytes=max_bytes, timeout_s=left)
    return _read_other(place, version, max_bytes)


def _read_local(path: str, version: str, max_bytes: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        before = os.fstat(descriptor)
        _same(version, local_version(before))
        if not stat.S_ISREG(before.st_mode):
            raise ObjectChangedError("it is not a file any more")
        if before.st_size > max_bytes:
            raise too_large(before.st_size, max_bytes)
        data = os.read(descriptor, before.st_size)
        while len(data) < before.st_size and (more := os.read(descriptor, before.st_size - len(data))):
            data += more
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if len(data) != before.st_size or local_version(after) != local_version(before):
        raise ObjectChangedError("it changed while it was read")
    return data


def _read_other(place: str, version: str, max_bytes: int) -> bytes:
    fs, path = fsspec_for(place)
    info: dict[str, Any] = fs.info(path)
    _same(version, version_of(info))
    if info.get("size") is not None and info["size"] > max_bytes:
        raise too_large(info["size"], max_bytes)
    data: bytes = fs.cat_file(path)
    if info.get("size") is not None and len(data) != info["size"]:
        raise ShortReadError(f"{len(data)} of {info['size']} bytes came")
    return data


def _same(listed: str, found: str) -> None:
    if listed and found != listed:
        raise ObjectChangedError(f"listed as {listed}, found as {found or 'nothing that names a version'}")
