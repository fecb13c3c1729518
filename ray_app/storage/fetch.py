"""Bytes of listed files: `Fetcher` reads them whole, in part, ahead and as seekable files, with
retries and adaptive concurrency.

`read`, `read_range` and `size` are single requests of one version ("" = whichever), without
retries: they raise what the libraries raise. `guard`: which web servers may be requested, for
places that are no local ones; `left`: the seconds that a request may take.
"""

import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from itertools import chain
from typing import Any, Protocol, TypeVar

from ray_app.errors import ConfigError, InputError, SourceError, Status, describe_error
from ray_app.storage import errors, http, object_store, ranged, s3
from ray_app.storage.http import WEB, Guard
from ray_app.storage.retry import Attempt, CancelledError, Gate, Retrier, RetryPolicy
from ray_app.storage.urls import (
    bucket_and_key,
    canonical,
    local_path,
    scheme_of,
    strip_secrets,
    version_of,
)

T = TypeVar("T")

# Tiny files would fill a budget of bytes with hundreds of thousands of requests; this many per
# thread keep it busy.
_AHEAD_PER_THREAD = 16

_NO_SERVERS = Guard()
_REMOTE_THREADS, _LOCAL_THREADS = 16, 1
# Large enough that a fast network is busy with one request after the other, small enough to be held
# by every reader.
WINDOW_BYTES = 4 * 2**20


def read_ahead(
    jobs: Iterable[tuple[int, Callable[[threading.Event], T]]], *, depth_bytes: int, threads: int
) -> Iterator[T | InputError]:
    """Every job's answer in order, or the InputError that it raised, up to `depth_bytes` in flight
    or waiting.

    A job is (bytes to reserve, what to call). One that is larger than `depth_bytes` still passes,
    alone. Leaving early sets the event that every job gets.
    """
    cancelled = threading.Event()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
    waiting: deque[tuple[int, Future[T]]] = deque()
    in_flight = 0
    arriving = iter(jobs)
    try:
        upcoming = next(arriving, None)
        while waiting or upcoming is not None:
            if upcoming is not None and (
                not waiting
                or (
                    in_flight + upcoming[0] <= depth_bytes
                    and len(waiting) < threads * _AHEAD_PER_THREAD
                )
            ):
                size, job = upcoming
                waiting.append((size, pool.submit(job, cancelled)))
                in_flight += size
                upcoming = next(arriving, None)
                continue
            size, result = waiting.popleft()
            error = result.exception()
            yield error if isinstance(error, InputError) else result.result()
            del result  # or its bytes would live until the next ones are wanted
            in_flight -= size
    finally:
        cancelled.set()
        pool.shutdown(wait=False, cancel_futures=True)


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
        """-1 where the store does not state it."""


class Fetcher:
    """Reads members with patience, and counts what it met. One per process; safe to share between
    threads.

    `signed` are source URLs as the user gave them: a member whose uri is one of them without its
    secrets is read with them. `guard` says which web servers are requested; null = those of
    `signed`, and the public Internet.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        signed: Sequence[str] = (),
        guard: Guard | None = None,
        retrier: Retrier | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._retrier = retrier or Retrier(policy or RetryPolicy())
        self._named, self._signed = tuple(signed), dict[str, str]()
        for url in signed:
            if "://" in url and strip_secrets(url) != url:
                self._signed[strip_secrets(canonical(url))] = canonical(url)
        if guard is not None:
            self.guard = guard
        if gate is not None:
            self._gate = gate
        self._counting = threading.Lock()
        self.bytes_read = 0

    def __reduce__(self) -> tuple[object, ...]:
        return (
            partial(
                Fetcher, self._retrier.policy, signed=tuple(self._signed.values()), guard=self.guard
            ),
            (),
        )

    @cached_property
    def _gate(self) -> Gate:
        return Gate(64)

    @cached_property
    def guard(self) -> Guard:
        """Which web servers are requested."""
        return Guard.of(self._named)

    @property
    def counts(self) -> dict[str, int]:
        """By name, since the start: `bytes_read`; `requests` that went over a network, which is
        what a store bills (local files ask for none); `retried`: those that were made again;
        `throttled`: answers that asked to slow down.
        """
        retrier = self._retrier
        return {
            "bytes_read": self.bytes_read,
            "requests": self._gate.entered,
            "retried": retrier.retried,
            "throttled": retrier.throttled,
        }

    def fetch(
        self, uri: str, version: str, max_bytes: int, cancelled: threading.Event | None = None
    ) -> bytes:
        """All bytes of the object, which is still of `version` ("" = whichever). Nothing is
        requested again once it is `cancelled`.

        Raises: SourceError (missing, denied, throttled, timeout, changed), InputError
        (image_too_large, before the body is read).
        """
        for attempt, url, guard in self._attempts(uri, cancelled):
            with attempt as left:
                data = read(url, guard, version, max_bytes, left)
        with self._counting:
            self.bytes_read += len(data)
        return data

    def prefetch(
        self, members: Iterable[Fetchable], *, depth_bytes: int, max_bytes: int
    ) -> Iterator[bytes | InputError]:
        """Every member's bytes in order, or the reason why not, read ahead up to `depth_bytes` in
        flight or waiting.

        One that is larger than `depth_bytes` still passes, alone. Larger than `max_bytes` is
        refused without a request. All are in the first one's store, or in one like it.
        """
        arriving = iter(members)
        first = next(arriving, None)
        if first is not None:
            jobs = map(partial(self._job, max_bytes), chain([first], arriving))
            yield from read_ahead(jobs, depth_bytes=depth_bytes, threads=_threads(first.uri))

    def fetch_range(
        self,
        uri: str,
        version: str,
        start: int,
        length: int,
        cancelled: threading.Event | None = None,
    ) -> bytes:
        """The `length` bytes from `start` of the object, which is still of `version`; fewer only
        where the object ends.

        Raises SourceError (missing, denied, throttled, timeout, changed).
        """
        if not length:
            return b""
        for attempt, url, guard in self._attempts(uri, cancelled):
            with attempt as left:
                data = read_range(url, guard, version, start, length, left)
        with self._counting:
            self.bytes_read += len(data)
        return data

    def prefetch_ranges(
        self, uri: str, version: str, ranges: Iterable[tuple[int, int]], *, depth_bytes: int
    ) -> Iterator[bytes | InputError]:
        """The bytes of every (start, length) of one object in order, or the reason why not, read
        ahead as in `prefetch`.
        """
        jobs = (
            (length, partial(self.fetch_range, uri, version, start, length))
            for start, length in ranges
        )
        return read_ahead(jobs, depth_bytes=depth_bytes, threads=_threads(uri))

    def size(self, uri: str, version: str) -> int:
        """How many bytes the object has. Raises SourceError, also where the store does not say."""
        for attempt, url, guard in self._attempts(uri):
            with attempt as left:
                size_bytes = size(url, guard, version, left)
        return size_bytes

    def open(
        self, uri: str, version: str, size_bytes: int = -1, *, window: int = WINDOW_BYTES
    ) -> ranged.RangedFile:
        """The object as a seekable file that holds one window of it at a time; any read raises what
        `fetch_range` does.

        `size_bytes` saves a request where it is known. For one thread.
        """
        size = size_bytes if size_bytes >= 0 else self.size(uri, version)
        return ranged.RangedFile(partial(self.fetch_range, uri, version), size, window)

    def _job(
        self, max_bytes: int, member: Fetchable
    ) -> tuple[int, Callable[[threading.Event], bytes]]:
        """What reads a member, and bytes to reserve: nothing for what is refused unread, the limit
        for what is unknown.
        """
        if member.size_bytes > max_bytes:
            return 0, partial(_refuse, errors.too_large(member.size_bytes, max_bytes))
        return max_bytes if member.size_bytes < 0 else member.size_bytes, partial(
            self.fetch, member.uri, member.version, max_bytes
        )

    def _attempts(
        self, uri: str, cancelled: threading.Event | None = None
    ) -> Iterator[tuple[Attempt, str, Guard]]:
        """Yield attempts at a request for one member, each with its URL and the servers that may be
        requested.

        Raises:
            InputError: The reason of the last attempt, or that the request was cancelled.
        """
        url = self._signed.get(uri, uri)
        is_local = "://" not in url or scheme_of(url) == "file"
        guard = _NO_SERVERS if is_local else self.guard
        try:
            for attempt in self._retrier.attempts(cancelled, None if is_local else self._gate):
                yield attempt, url, guard
        except CancelledError:
            raise SourceError(
                Status.SOURCE_TIMEOUT, "given up, since the result is no longer needed"
            ) from None
        except InputError:
            raise
        except ConfigError as error:  # The scheme is unknown.
            raise SourceError(
                Status.SOURCE_DENIED, "; ".join(filter(None, [error.message, error.hint]))
            ) from error
        except ValueError as error:  # A list may name something that is not a URL.
            if isinstance(error, OSError):  # A refused certificate is both.
                raise errors.translate(error, url) from error
            raise SourceError(
                Status.SOURCE_MISSING, f"{strip_secrets(url)}: {describe_error(error)}"
            ) from error
        except Exception as error:
            raise errors.translate(error, url) from error


def _threads(uri: str) -> int:
    return _LOCAL_THREADS if "://" not in uri or scheme_of(uri) == "file" else _REMOTE_THREADS


def _refuse(reason: InputError, cancelled: threading.Event) -> bytes:
    raise reason


def read(place: str, guard: Guard, version: str, max_bytes: int, left: float) -> bytes:
    """The whole object. Raises InputError when it is over `max_bytes`."""
    if "://" not in place:  # a plain path, as most are
        return _read_local(place, version, 0, max_bytes, max_bytes)
    scheme = scheme_of(place)
    if scheme == "file":
        return _read_local(local_path(place), version, 0, max_bytes, max_bytes)
    if scheme == "s3":
        bucket, key = bucket_and_key(place)
        return s3.get(bucket, key, timeout_s=left, etag=version, max_bytes=max_bytes)
    if scheme in WEB:
        return http.get(place, guard, version=version, max_bytes=max_bytes, timeout_s=left)
    return _read_other(place, version, None, 0, max_bytes)


def read_range(
    place: str, guard: Guard, version: str, start: int, length: int, left: float
) -> bytes:
    """The `length` bytes from `start`, fewer only where the object ends."""
    scheme = scheme_of(place)
    if scheme == "file":
        return _read_local(local_path(place), version, start, length)
    if scheme == "s3":
        bucket, key = bucket_and_key(place)
        return s3.get_range(bucket, key, start, length, timeout_s=left, etag=version)
    if scheme in WEB:
        return http.get_range(place, guard, start, length, version=version, timeout_s=left)
    return _read_other(place, version, start, length)


def size(place: str, guard: Guard, version: str, left: float) -> int:
    """How many bytes the object has. Raises SourceError where the store does not say."""
    scheme = scheme_of(place)
    if scheme == "file":
        found = os.stat(local_path(place))
        errors.require_version(version, local_version(found))
        if not stat.S_ISREG(found.st_mode):
            raise errors.ObjectChangedError("it is no longer a file")
        return found.st_size
    if scheme == "s3":
        bucket, key = bucket_and_key(place)
        answer = s3.head(bucket, key, timeout_s=left)
        info = {"size": answer["ContentLength"], "ETag": answer["ETag"]}
    elif scheme in WEB:
        info = http.head(place, guard, timeout_s=left)
    else:
        fs, path = object_store.reading_place(place)
        info = fs.info(path)
    errors.require_version(version, version_of(info))
    if info.get("size") is None:
        raise SourceError(Status.SOURCE_DENIED, "the server does not say how large it is")
    return int(info["size"])


def local_version(found: os.stat_result) -> str:
    """The version of a local file: size and mtime in ns."""
    return f"{found.st_size}-{found.st_mtime_ns}"


def _read_local(
    path: str, version: str, start: int, length: int, max_bytes: int | None = None
) -> bytes:
    """Bytes of a regular file that is of `version`, and is the same when they are there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        before = os.fstat(descriptor)
        errors.require_version(version, local_version(before))
        if not stat.S_ISREG(before.st_mode):
            raise errors.ObjectChangedError("it is no longer a file")
        if max_bytes is not None and before.st_size > max_bytes:
            raise errors.too_large(before.st_size, max_bytes)
        wanted = max(0, min(length, before.st_size - start))
        data = os.pread(descriptor, wanted, start)
        while len(data) < wanted and (
            more := os.pread(descriptor, wanted - len(data), start + len(data))
        ):
            data += more
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if len(data) != wanted or (after.st_size, after.st_mtime_ns) != (
        before.st_size,
        before.st_mtime_ns,
    ):
        raise errors.ObjectChangedError("it changed while it was read")
    return data


def _read_other(
    place: str, version: str, start: int | None, length: int, max_bytes: int | None = None
) -> bytes:
    """Through fsspec: the `length` bytes from `start`, fewer where the object ends; all of it where
    `start` is None.
    """
    fs, path = object_store.reading_place(place)
    info: dict[str, Any] = fs.info(path)
    errors.require_version(version, version_of(info))
    known = info.get("size")
    if max_bytes is not None and known is not None and known > max_bytes:
        raise errors.too_large(known, max_bytes)
    if start is None:
        data: bytes = fs.cat_file(path)
        errors.require_length(len(data), known)
        return data
    wanted = length if known is None else max(0, min(length, int(known) - start))
    # The hub's files would read megabytes ahead of each range.
    options = {"cache_type": "none"} if scheme_of(place) == "hf" else {}
    data = fs.cat_file(path, start=start, end=start + wanted, **options) if wanted else b""
    errors.require_length(len(data), None if known is None else wanted)
    return data
