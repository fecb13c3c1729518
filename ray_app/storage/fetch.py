"""Read listed files with retries and adaptive concurrency (`Fetcher`).

A file is read as a whole, in part, ahead of its use, or as a seekable file.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from itertools import chain
from typing import Protocol, TypeVar

from ray_app.errors import ConfigError, InputError, SourceError, Status, describe_error
from ray_app.storage import errors, ranged
from ray_app.storage.http import Guard
from ray_app.storage.local import Local
from ray_app.storage.place import Backend
from ray_app.storage.places import choose_backend
from ray_app.storage.retry import AdaptiveLimiter, Attempt, CancelledError, Retrier, RetryPolicy
from ray_app.storage.urls import canonicalize, strip_secrets

T = TypeVar("T")

# Tiny files would fill a budget of bytes with hundreds of thousands of requests. This many requests
# per thread keep it busy.
_AHEAD_PER_THREAD = 16

_REMOTE_THREADS, _LOCAL_THREADS = 16, 1


def read_ahead(
    jobs: Iterable[tuple[int, Callable[[threading.Event], T]]], *, depth_bytes: int, threads: int
) -> Iterator[T | InputError]:
    """Run jobs in threads before their results are needed, and yield the results in order.

    A job, which usually reads one file, is a number of bytes to reserve, and a function. The
    function gets an event, which is set when the iterator ends or is closed. At most `depth_bytes`
    are reserved for jobs that run or whose results are not yielded yet. A larger job runs alone. An
    InputError of a job is its result.
    """
    cancelled = threading.Event()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
    pending: deque[tuple[int, Future[T]]] = deque()
    in_flight = 0
    remaining = iter(jobs)
    try:
        next_job = next(remaining, None)
        while pending or next_job is not None:
            if next_job is not None and (
                not pending
                or (
                    in_flight + next_job[0] <= depth_bytes
                    and len(pending) < threads * _AHEAD_PER_THREAD
                )
            ):
                size, job = next_job
                pending.append((size, pool.submit(job, cancelled)))
                in_flight += size
                next_job = next(remaining, None)
                continue
            size, result = pending.popleft()
            error = result.exception()
            yield error if isinstance(error, InputError) else result.result()
            del result  # Otherwise its bytes would stay in memory until the next result.
            in_flight -= size
    finally:
        cancelled.set()
        pool.shutdown(wait=False, cancel_futures=True)


class Fetchable(Protocol):
    """The attributes that a file, or a container such as a tar, needs to be read by a `Fetcher`."""

    @property
    def uri(self) -> str:
        """The uri of what is read, a file or a container such as a tar, without secrets."""

    @property
    def version(self) -> str:
        """The version, such as an ETag, that the listing found. "" accepts any version."""

    @property
    def size_bytes(self) -> int:
        """The size in bytes, -1 if the store does not state it."""


class Fetcher:
    """Reads files of any storage with retries, and counts requests.

    Create one fetcher per process. Threads may share it. `signed` are the URLs that the user gave,
    with their secrets, which the fetcher adds to the URLs of listings. Raises ConfigError if two of
    them are equal without their secrets. `guard` allows by default their servers and the public
    Internet.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        signed: Sequence[str] = (),
        guard: Guard | None = None,
        retrier: Retrier | None = None,
        gate: AdaptiveLimiter | None = None,
    ) -> None:
        self._retrier = retrier or Retrier(policy or RetryPolicy())
        self._signed_urls, self._signed = tuple(signed), dict[str, str]()
        for url in signed:
            if "://" in url and strip_secrets(url) != url:
                public_url, signed_url = strip_secrets(canonicalize(url)), canonicalize(url)
                if self._signed.setdefault(public_url, signed_url) != signed_url:
                    raise ConfigError(
                        f"{public_url}: two URLs differ only in their secrets, which no result may keep",
                        hint="give one of them to each command",
                    )
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
    def _gate(self) -> AdaptiveLimiter:
        return AdaptiveLimiter(64)

    @cached_property
    def guard(self) -> Guard:
        """The web servers that this fetcher may request."""
        return Guard.from_urls(self._signed_urls)

    @property
    def counts(self) -> dict[str, int]:
        """Counters since the fetcher was created, by name.

        `bytes_read` counts bytes. `requests` counts requests over a network, which a store bills.
        `retried` counts repeated requests. `throttled` counts answers that asked for fewer
        requests.
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
        """Return all bytes of an object; a version "" accepts any.

        No request is made after `cancelled` is set. Raises SourceError if the object is not
        available or changed, and InputError if it is over `max_bytes`, before its body is read if
        the store states the size.
        """
        backend, url = self._find(uri)
        for attempt in self._attempts(backend, url, cancelled):
            with attempt as timeout_s:
                data = backend.read(url, version=version, max_bytes=max_bytes, timeout_s=timeout_s)
        with self._counting:
            self.bytes_read += len(data)
        return data

    def prefetch(
        self, members: Iterable[Fetchable], *, depth_bytes: int, max_bytes: int
    ) -> Iterator[bytes | InputError]:
        """Read files before they are needed, and yield their bytes in order.

        The files are all in the same kind of store. At most `depth_bytes` are requested and not
        yielded yet, and a larger file is read alone. A file over `max_bytes` is refused without a
        request.
        """
        remaining = iter(members)
        first = next(remaining, None)
        if first is not None:
            jobs = map(partial(self._make_job, max_bytes), chain([first], remaining))
            threads = self._count_threads(first.uri)
            yield from read_ahead(jobs, depth_bytes=depth_bytes, threads=threads)

    def fetch_range(
        self,
        uri: str,
        version: str,
        start: int,
        length: int,
        cancelled: threading.Event | None = None,
    ) -> bytes:
        """Return `length` bytes of an object from `start`, fewer only if the object ends.

        The version, `cancelled`, and SourceError are as in `fetch`.
        """
        if not length:
            return b""
        backend, url = self._find(uri)
        for attempt in self._attempts(backend, url, cancelled):
            with attempt as timeout_s:
                data = backend.read(url, start, length, version=version, timeout_s=timeout_s)
        with self._counting:
            self.bytes_read += len(data)
        return data

    def prefetch_ranges(
        self, uri: str, version: str, ranges: Iterable[tuple[int, int]], *, depth_bytes: int
    ) -> Iterator[bytes | InputError]:
        """Read ranges of one object before they are needed, and yield their bytes in order.

        A range is (start, length). At most `depth_bytes` are requested and not yielded yet, and a
        longer range is read alone.
        """
        jobs = (
            (length, partial(self.fetch_range, uri, version, start, length))
            for start, length in ranges
        )
        return read_ahead(jobs, depth_bytes=depth_bytes, threads=self._count_threads(uri))

    def size(self, uri: str, version: str) -> int:
        """Return the size of an object in bytes, as its store states it.

        Raises SourceError if the size is unknown.
        """
        backend, url = self._find(uri)
        for attempt in self._attempts(backend, url):
            with attempt as timeout_s:
                size_bytes = backend.size(url, version=version, timeout_s=timeout_s)
        return size_bytes

    def open(
        self, uri: str, version: str, size_bytes: int = -1, *, window: int = ranged.WINDOW_BYTES
    ) -> ranged.RangedFile:
        """Open an object as a seekable file, which one thread reads window by window.

        Each read may raise the exceptions of `fetch_range`. A size of -1 is unknown. A known size
        saves a request.
        """
        size = size_bytes if size_bytes >= 0 else self.size(uri, version)
        return ranged.RangedFile(partial(self.fetch_range, uri, version), size, window)

    def _make_job(
        self, max_bytes: int, member: Fetchable
    ) -> tuple[int, Callable[[threading.Event], bytes]]:
        """Return the bytes to reserve for a member, and the function that reads it.

        Nothing is reserved for a member that is rejected unread, and the limit for an unknown size.
        """
        if member.size_bytes > max_bytes:
            return 0, partial(_refuse, errors.make_too_large_error(member.size_bytes, max_bytes))
        return max_bytes if member.size_bytes < 0 else member.size_bytes, partial(
            self.fetch, member.uri, member.version, max_bytes
        )

    def _count_threads(self, uri: str) -> int:
        return _LOCAL_THREADS if isinstance(self._find(uri)[0], Local) else _REMOTE_THREADS

    def _find(self, uri: str) -> tuple[Backend, str]:
        """Return the storage of a member, and the URL to request from it."""
        url = self._signed.get(uri, uri)
        return choose_backend(url, self.guard, pins_commits=True), url

    def _attempts(
        self, backend: Backend, url: str, cancelled: threading.Event | None = None
    ) -> Iterator[Attempt]:
        """Yield attempts at a request for one member until one succeeds."""
        gate = None if isinstance(backend, Local) else self._gate
        try:
            yield from self._retrier.attempts(cancelled, gate)
        except CancelledError:
            raise SourceError(
                Status.SOURCE_TIMEOUT,
                "the read was cancelled, because its result is no longer needed",
            ) from None
        except InputError:
            raise
        except ConfigError as error:  # The scheme is unknown.
            raise SourceError(
                Status.SOURCE_DENIED, "; ".join(filter(None, [error.message, error.hint]))
            ) from error
        except ValueError as error:  # A list may have a text that is not a URL.
            if isinstance(error, OSError):  # The error of a rejected certificate is both.
                raise errors.translate(error, url) from error
            raise SourceError(
                Status.SOURCE_MISSING, f"{strip_secrets(url)}: {describe_error(error)}"
            ) from error
        except Exception as error:
            raise errors.translate(error, url) from error


def _refuse(reason: InputError, cancelled: threading.Event) -> bytes:
    raise reason
