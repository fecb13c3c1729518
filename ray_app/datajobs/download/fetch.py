"""Fetch URLs within the limits of their hosts, check that each is an image, and store it.

`fetch_images` is the entry point and keeps up to a thousand URLs in progress. For each of them,
`_Session` waits until the limits of the host allow a request, and requests the URL. It then decodes
the response, stores the image, and records the outcome. `Host` has the limits of one host. `Queue`
chooses the next URL so that all hosts get requests in turn.
"""

import asyncio
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import replace
from hashlib import sha256
from typing import Any

from ray_app.datajobs.download.config import CollectConfig, Politeness
from ray_app.datajobs.download.sink import Row, Sink, Task, make_row
from ray_app.datajobs.parts import OK
from ray_app.errors import InputError, Status
from ray_app.images import formats
from ray_app.inference.decoder_pool import IsolatedDecoders
from ray_app.storage import ssrf
from ray_app.storage.guarded_http import FetchFailed, FetchRules, GuardedClient

_WRITERS = 16
_DECODE_LIMIT_S = 20.0
_POLL_INTERVAL_S = 1.0
_MAX_IN_PROGRESS = 1000
_PER_REQUEST = 4  # URLs in progress per concurrent request that their host allows.
_MAYBE_TRUNCATED = frozenset((Status.CORRUPT_IMAGE, Status.TRUNCATED_IMAGE, Status.EMPTY_FILE))

# Shortest and longest pause between the starts of two requests to a host that throttles. The pause
# doubles each time.
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.05, 10.0

Watch = Callable[[Sequence[str]], None]


def fetch_images(tasks: Sequence[Task], config: CollectConfig, sink: Sink, watch: Watch) -> None:
    """Download the URLs of all tasks, and store the images and a row on each URL.

    Args:
        tasks: The URLs to download.
        config: Limits and retries.
        sink: Stores images and rows. It is closed at the end.
        watch: Function that is called at least once per second with the statuses of the URLs that
            were finished since its last call. If it raises an exception, the rows of all finished
            URLs are committed, and the exception is passed on.

    Raises:
        StorageError: If an image or a row cannot be written.
        KeyboardInterrupt: If the process is interrupted, after the rows of all finished URLs are
            committed.
    """
    decoders = IsolatedDecoders(
        config.images,
        processes=config.limits.decoders,
        wall_limit_s=_DECODE_LIMIT_S,
        memory_limit_bytes=None,
    )
    with closing(decoders), closing(sink):
        asyncio.run(_Session(config, sink, decoders, watch).run(tasks))


class _Session:
    """Fetches all URLs of one call, in one event loop."""

    def __init__(
        self, config: CollectConfig, sink: Sink, decoders: IsolatedDecoders, watch: Watch
    ) -> None:
        self._config, self._sink, self._decoders, self._watch = config, sink, decoders, watch
        self._hosts: dict[str, Host] = {}
        self._new_statuses: list[str] = []

    async def run(self, tasks: Sequence[Task]) -> None:
        limits = self._config.limits
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(_WRITERS, thread_name_prefix="write"))
        self._slots = asyncio.Semaphore(limits.connections)
        self._queue = Queue(tasks, self._config.politeness.per_host * _PER_REQUEST)
        self._client = open_client(self._config)
        with (
            ThreadPoolExecutor(limits.decoders, thread_name_prefix="decode") as self._checkers,
            ThreadPoolExecutor(1, thread_name_prefix="ledger") as self._ledger,
        ):
            try:
                await self._run_all()
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from None
            finally:
                await self._in_ledger(self._sink.publish)
                await self._client.close()

    async def _run_all(self) -> None:
        running: set[asyncio.Task[None]] = set()
        has_ended = asyncio.Event()

        def on_done(done: asyncio.Task[None]) -> None:
            running.discard(done)
            has_ended.set()

        async with asyncio.TaskGroup() as group:
            committing = group.create_task(self._commit_regularly())
            while True:
                while len(running) < _MAX_IN_PROGRESS and (task := self._queue.next()) is not None:
                    job = group.create_task(self._collect(task))
                    running.add(job)
                    job.add_done_callback(on_done)
                if not running:
                    break
                has_ended.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_INTERVAL_S):
                        await has_ended.wait()
                self._report()
            committing.cancel()
        self._report()

    def _report(self) -> None:
        statuses, self._new_statuses = self._new_statuses, []
        self._watch(statuses)

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._config.commit_s)
            await self._in_ledger(self._sink.commit)

    async def _collect(self, task: Task) -> None:
        try:
            if not await self._is_stored(task):
                await self._fetch(task)
        finally:
            self._queue.remove(task)

    async def _is_stored(self, task: Task) -> bool:
        """Add the row of an image that a killed session stored without it.

        Return whether there is such an image, in which case no request is necessary.
        """
        for name in task.existing_files:
            async with self._slots:
                try:
                    data = await asyncio.to_thread(self._sink.read, name)
                    facts = await self._check(data)
                except (FileNotFoundError, FetchFailed):
                    continue
                await self._store(task, data, facts, "/" + name.rpartition(".")[2])
                return True
        return False

    async def _fetch(self, task: Task) -> None:
        """Request a URL until there is an image, a redirect, or a failure that is not retried."""
        host = self._hosts.setdefault(task.host, Host(task.host, self._config.politeness))
        deadline = time.monotonic() + self._config.retry.deadline_s
        pauses = self._config.retry.pauses(random.random)
        digest: str | None = None
        while True:
            try:
                await self._request(task, host)
                return
            except FetchFailed as failure:
                task = replace(task, requests=task.requests + failure.asked)
                _adapt(host, failure)
                is_same = failure.sha256 is not None and failure.sha256 == digest
                pause = next(pauses, None) if failure.passing and not is_same else None
                if pause is None or time.monotonic() + pause > deadline:
                    if failure.asked and not failure.answered:
                        host.count_silence()
                    await self._end(
                        task,
                        make_row(
                            task,
                            failure.status,
                            detail=failure.detail,
                            http_status=failure.http_status,
                        ),
                    )
                    return
                digest = failure.sha256
            await asyncio.sleep(pause)

    async def _request(self, task: Task, host: "Host") -> None:
        """Make one request, and store its image or queue its redirect, or raise FetchFailed."""
        async with AsyncExitStack() as stack:
            async with host.visit():
                await stack.enter_async_context(self._slots)
                response = await self._client.get(task.url)
            # Other tasks may visit the host while the image is decoded and written. The slot stays
            # in use, which bounds the number of images in memory.
            host.count_answer()
            task = replace(task, requests=task.requests + 1)
            if response.moved is None:
                facts = await self._check(response.data)
                await self._store(
                    task, response.data, facts, response.content_type, http_status=200
                )
                return
        if task.hops >= self._config.limits.max_redirects:
            raise FetchFailed(
                Status.SOURCE_DENIED,
                f"redirected more than {task.hops} times",
                http_status=response.http_status,
            )
        self._queue.add(replace(task, url=response.moved, hops=task.hops + 1))

    async def _check(self, data: bytes) -> Row:
        """Return the columns on an image, or raise FetchFailed if it does not decode.

        The failure is retried if the transfer may have been incomplete.
        """
        return await self._loop.run_in_executor(self._checkers, _inspect, self._decoders, data)

    async def _store(
        self, task: Task, data: bytes, facts: Row, content_type: str | None, **request: Any
    ) -> None:
        """Store an image and add its row.

        The caller holds a slot, so that no more images arrive than slots while a shard is uploaded.
        """
        path = await asyncio.to_thread(self._sink.keep, task, data, facts["format"], content_type)
        await self._end(
            task, make_row(task, OK, place=path, size_bytes=len(data), **facts, **request), data
        )

    async def _end(self, task: Task, row: Row, data: bytes = b"") -> None:
        await self._in_ledger(self._sink.add, row, data, task)
        self._new_statuses.append(row["status"])

    async def _in_ledger(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function of the sink that must not run in two threads at a time."""
        await self._loop.run_in_executor(self._ledger, function, *args)


def _inspect(decoders: IsolatedDecoders, data: bytes) -> Row:
    digest = sha256(data).hexdigest()
    if data and formats.sniff_format(data) is None:
        raise FetchFailed(
            Status.UNSUPPORTED_FORMAT,
            formats.describe_unsupported(data),
            sha256=digest,
            http_status=200,
        )
    try:
        facts = decoders.decode(data).facts
    except InputError as error:
        raise FetchFailed(
            error.status,
            error.detail,
            passing=error.status in _MAYBE_TRUNCATED,
            sha256=digest,
            http_status=200,
        ) from None
    return {
        "sha256": digest,
        "format": str(facts.format),
        "width": facts.width or 0,
        "height": facts.height or 0,
    }


def _adapt(host: "Host", failure: FetchFailed) -> None:
    if (failure.asked and failure.status == Status.SOURCE_THROTTLED) or failure.wait_s is not None:
        host.slow_down(failure.wait_s)
    elif failure.asked and failure.answered:
        host.count_answer()


class Host:
    """Limit the requests to one host, and adapt the pauses between them to its responses.

    Call `visit` around each request. Report a response that throttles (such as status 429) or has
    Retry-After with `slow_down`, and any other response with `count_answer`. Report a URL that
    ended without any response with `count_silence`. Use an object in one event loop only.

    Args:
        name: Name of the host.
        rules: Limits on the requests to a host.
        clock: Function that returns the current time in seconds.
    """

    def __init__(
        self, name: str, rules: Politeness, clock: Callable[[], float] = time.time
    ) -> None:
        self.name, self._rules, self._clock = name, rules, clock
        self._not_before = self._next_start = 0.0
        self._pause_s = rules.pause_s
        self._silent_urls = 0
        self._refusal: tuple[Status, str] | None = None
        self._slots, self._starting = asyncio.Semaphore(rules.per_host), asyncio.Lock()

    @asynccontextmanager
    async def visit(self) -> AsyncIterator[None]:
        """Wait until a request to the host may start. Make the request inside this context.

        Raises:
            FetchFailed: If the host gets no more requests, because it did not respond or requested
                too long a wait.
        """
        async with self._slots:
            async with self._starting:
                while (
                    self._refusal is None
                    and (wait := max(self._not_before, self._next_start) - self._clock()) > 0
                ):
                    await asyncio.sleep(wait)
                if self._refusal is not None:
                    raise FetchFailed(*self._refusal, asked=False)
                self._next_start = self._clock() + self._pause_s
            yield

    def count_answer(self) -> None:
        """Shorten the pauses between requests after a response that does not throttle.

        The count of consecutive URLs without a response (`count_silence`) starts at 0 again.
        """
        self._silent_urls = 0
        shorter = 0.8 * self._pause_s if self._pause_s > _MIN_PAUSE_S else 0.0
        self._pause_s = max(self._rules.pause_s, shorter)

    def count_silence(self) -> None:
        """Count a URL that ended without any response from the host.

        After `Politeness.give_up_after` such URLs in a row, `visit` refuses further requests.
        """
        self._silent_urls += 1
        if self._silent_urls >= self._rules.give_up_after and self._refusal is None:
            message = f"not requested: {self.name} did not respond to {self._silent_urls} consecutive urls"
            self._refusal = (Status.SOURCE_TIMEOUT, message)

    def slow_down(self, wait_s: float | None) -> None:
        """Lengthen the pauses between requests to the host, and delay the next one by Retry-After.

        A host that requests a wait above `longest_wait_s` gets no more requests.

        Args:
            wait_s: Seconds that Retry-After requests. None if the response has no such header.
        """
        self._silent_urls = 0
        longer = min(_MAX_PAUSE_S, max(2 * self._pause_s, _MIN_PAUSE_S))
        self._pause_s = max(self._rules.pause_s, longer)
        if wait_s is not None and wait_s > self._rules.longest_wait_s:
            message = f"{self.name} asks to wait {wait_s:.0f} s, so it gets no more requests in this session"
            self._refusal = (Status.SOURCE_THROTTLED, message)
            return
        self._not_before = max(self._not_before, self._clock() + (wait_s or 0.0))


class Queue:
    """A queue of the URLs to download, which serves all hosts in turn.

    Each host has at most `limit` tasks in progress.

    Args:
        tasks: The first tasks.
        limit: Maximum number of tasks in progress per host.
    """

    def __init__(self, tasks: Iterable[Task], limit: int) -> None:
        self._limit = limit
        self._waiting: OrderedDict[str, deque[Task]] = OrderedDict()
        self._in_progress: Counter[str] = Counter()
        for task in tasks:
            self.add(task)

    def add(self, task: Task) -> None:
        """Add a pending task."""
        self._waiting.setdefault(task.host, deque()).append(task)

    def next(self) -> Task | None:
        """Return the next task to start, or None if no task may start now.

        No task may start if none is pending, or if each host with pending tasks has its maximum
        number in progress. A returned task counts as in progress until `remove` is called.
        """
        host = next((h for h in self._waiting if self._in_progress[h] < self._limit), None)
        if host is None:
            return None
        task = self._waiting[host].popleft()
        self._waiting.move_to_end(host)
        if not self._waiting[host]:
            del self._waiting[host]
        self._in_progress[host] += 1
        return task

    def remove(self, task: Task) -> None:
        """Report that a task from `next` has ended, so that its host may get another one."""
        self._in_progress[task.host] -= 1


def open_client(config: CollectConfig) -> GuardedClient:
    """Open an HTTP client for the URLs of a list, with a guard against SSRF.

    Call this function inside the event loop, and close the client after use.
    """
    limits = config.limits
    rules = FetchRules(
        config.politeness.agent,
        limits.max_bytes,
        connect_timeout_s=limits.connect_timeout_s,
        read_timeout_s=limits.read_timeout_s,
        total_timeout_s=limits.total_timeout_s,
        schemes=("http", "https"),
        port=None,
        is_literal_allowed=True,
        bare_names=config.allow_private,
        keep_alive=True,
    )
    is_allowed = _allow_any if config.allow_private else ssrf.is_public_address
    return GuardedClient(
        rules, resolver=_make_resolver(config.resolve), is_allowed_address=is_allowed
    )


def _allow_any(address: str) -> bool:
    return True


def _make_resolver(addresses: Mapping[str, str]) -> ssrf.Resolver:
    async def resolve(host: str, port: int) -> list[tuple[str, int]]:
        return (
            [(addresses[host], port)]
            if host in addresses
            else await ssrf.system_resolver(host, port)
        )

    return resolve
