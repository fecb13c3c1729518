"""Bytes of listed files: `Fetcher` reads them whole, in part, ahead and as seekable files, with
retries and adaptive concurrency.
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
from ray_app.storage.place import Place
from ray_app.storage.places import place_for
from ray_app.storage.retry import Attempt, CancelledError, Gate, Retrier, RetryPolicy
from ray_app.storage.urls import canonical, strip_secrets

T = TypeVar("T")

# Tiny files would fill a budget of bytes with hundreds of thousands of requests; this many per
# thread keep it busy.
_AHEAD_PER_THREAD = 16

_REMOTE_THREADS, _LOCAL_THREADS = 16, 1


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
        place, url = self._find(uri)
        for attempt in self._attempts(place, url, cancelled):
            with attempt as timeout_s:
                data = place.read(url, version=version, max_bytes=max_bytes, timeout_s=timeout_s)
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
        """The `length` bytes from `start` of the object, which is still of `version`; fewer only
        where the object ends.

        Raises SourceError (missing, denied, throttled, timeout, changed).
        """
        if not length:
            return b""
        place, url = self._find(uri)
        for attempt in self._attempts(place, url, cancelled):
            with attempt as timeout_s:
                data = place.read(url, start, length, version=version, timeout_s=timeout_s)
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
        return read_ahead(jobs, depth_bytes=depth_bytes, threads=self._count_threads(uri))

    def size(self, uri: str, version: str) -> int:
        """How many bytes the object has. Raises SourceError, also where the store does not say."""
        place, url = self._find(uri)
        for attempt in self._attempts(place, url):
            with attempt as timeout_s:
                size_bytes = place.size(url, version=version, timeout_s=timeout_s)
        return size_bytes

    def open(
        self, uri: str, version: str, size_bytes: int = -1, *, window: int = ranged.WINDOW_BYTES
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

    def _count_threads(self, uri: str) -> int:
        return _LOCAL_THREADS if isinstance(self._find(uri)[0], Local) else _REMOTE_THREADS

    def _find(self, uri: str) -> tuple[Place, str]:
        """Return the place of a member, and the URL by which the place is asked for it."""
        url = self._signed.get(uri, uri)
        return place_for(url, self.guard, pins_commits=True), url

    def _attempts(
        self, place: Place, url: str, cancelled: threading.Event | None = None
    ) -> Iterator[Attempt]:
        """Yield attempts at a request for one member until one succeeds.

        Raises:
            InputError: The reason of the last attempt, or that the request was cancelled.
        """
        gate = None if isinstance(place, Local) else self._gate
        try:
            yield from self._retrier.attempts(cancelled, gate)
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


def _refuse(reason: InputError, cancelled: threading.Event) -> bytes:
    raise reason
