"""Fetch URLs within the limits of their hosts, check that each is an image, and store it.

Read from top to bottom: `fetch_images` keeps up to a thousand URLs in progress. For each of them
`_Session` waits for the host, requests the URL, decodes the answer, stores it, and notes how the
URL ended. `Host` has the limits of one host, `Queue` takes turns between hosts.
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
from ray_app.datajobs.download.sink import Row, Sink, Task, row_of
from ray_app.datajobs.parts import OK
from ray_app.errors import InputError, Status
from ray_app.images import formats
from ray_app.inference.decoder_pool import IsolatedDecoders
from ray_app.storage import ssrf
from ray_app.storage.guarded_http import FetchFailed, FetchRules, GuardedClient

_WRITERS = 16
_DECODE_LIMIT_S = 20.0
_WATCH_EVERY_S = 1.0
_MAX_IN_PROGRESS = 1000
_PER_REQUEST = 4  # URLs in progress for each request that their host may have at once
_MAYBE_CUT = frozenset((Status.CORRUPT_IMAGE, Status.TRUNCATED_IMAGE, Status.EMPTY_FILE))

# Pauses between the starts of two requests to a host that throttles: doubled each time, from the
# first to the second of these.
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.05, 10.0

Watch = Callable[[Sequence[str]], None]


def fetch_images(tasks: Sequence[Task], config: CollectConfig, sink: Sink, watch: Watch) -> None:
    """Fetch all tasks into the sink.

    Args:
        tasks: URLs to fetch.
        config: Limits, retries, and manners.
        sink: Where images and rows go.
        watch: Called once a second or more often with the statuses of the URLs that ended since.

    Raises:
        StorageError: An image or a row cannot be written.
        KeyboardInterrupt: A signal, after the rows of all ended URLs are committed; so is whatever
            `watch` raises.
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
    """All URLs of one call, in one event loop."""

    def __init__(
        self, config: CollectConfig, sink: Sink, decoders: IsolatedDecoders, watch: Watch
    ) -> None:
        self._config, self._sink, self._decoders, self._watch = config, sink, decoders, watch
        self._hosts: dict[str, Host] = {}
        self._ended: list[str] = []

    async def run(self, tasks: Sequence[Task]) -> None:
        limits = self._config.limits
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(_WRITERS, thread_name_prefix="write"))
        self._room = asyncio.Semaphore(limits.connections)
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

        def note_end(done: asyncio.Task[None]) -> None:
            running.discard(done)
            has_ended.set()

        async with asyncio.TaskGroup() as group:
            committing = group.create_task(self._commit_regularly())
            while True:
                while len(running) < _MAX_IN_PROGRESS and (task := self._queue.next()) is not None:
                    started = group.create_task(self._collect(task))
                    running.add(started)
                    started.add_done_callback(note_end)
                if not running:
                    break
                has_ended.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_WATCH_EVERY_S):
                        await has_ended.wait()
                self._report()
            committing.cancel()
        self._report()

    def _report(self) -> None:
        ended, self._ended = self._ended, []
        self._watch(ended)

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
        """Note the image that a killed session stored without its row, so that no request is made.
        Return whether there is one.
        """
        for name in task.there:
            async with self._room:
                try:
                    data = await asyncio.to_thread(self._sink.read, name)
                    facts = await self._check(data)
                except (FileNotFoundError, FetchFailed):
                    continue
                await self._store(task, data, facts, "/" + name.rpartition(".")[2])
                return True
        return False

    async def _fetch(self, task: Task) -> None:
        """Request a URL until it ends: an image, a redirect, or a failure that is not retried."""
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
                        host.note_silence()
                    await self._end(
                        task,
                        row_of(
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
        """Make one request, and store its image or queue its redirect. Raises FetchFailed."""
        async with AsyncExitStack() as stack:
            async with host.visit():
                await stack.enter_async_context(self._room)
                answer = await self._client.get(task.url)
            # Other tasks may visit the host while the image is decoded and written inside `_room`.
            host.note_answer()
            task = replace(task, requests=task.requests + 1)
            if answer.moved is None:
                facts = await self._check(answer.data)
                await self._store(task, answer.data, facts, answer.content_type, http_status=200)
                return
        if task.hops >= self._config.limits.max_redirects:
            raise FetchFailed(
                Status.SOURCE_DENIED,
                f"redirected more than {task.hops} times",
                http_status=answer.http_status,
            )
        self._queue.add(replace(task, url=answer.moved, hops=task.hops + 1))

    async def _check(self, data: bytes) -> Row:
        """Return facts of bytes that decode. Raises FetchFailed, which is retried if the transfer
        may have been cut.
        """
        return await self._loop.run_in_executor(self._checkers, _facts, self._decoders, data)

    async def _store(
        self, task: Task, data: bytes, facts: Row, content_type: str | None, **request: Any
    ) -> None:
        """Store an image. It holds `_room`: while a shard is published, no more images arrive."""
        place = await asyncio.to_thread(self._sink.keep, task, data, facts["format"], content_type)
        await self._end(
            task, row_of(task, OK, place=place, size_bytes=len(data), **facts, **request), data
        )

    async def _end(self, task: Task, row: Row, data: bytes = b"") -> None:
        await self._in_ledger(self._sink.add, row, data, task)
        self._ended.append(row["status"])

    async def _in_ledger(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function of the sink that one thread at a time may call."""
        await self._loop.run_in_executor(self._ledger, function, *args)


def _facts(decoders: IsolatedDecoders, data: bytes) -> Row:
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
            passing=error.status in _MAYBE_CUT,
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
        host.note_answer()


class Host:
    """The limits of one host, and what its answers said. For one event loop."""

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
        """Wait until one request may start, which the caller makes inside.

        Raises:
            FetchFailed: The host gets no more requests.
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

    def note_answer(self) -> None:
        """Forget silence after a useful answer, and shorten the pauses again."""
        self._silent_urls = 0
        shorter = 0.8 * self._pause_s if self._pause_s > _MIN_PAUSE_S else 0.0
        self._pause_s = max(self._rules.pause_s, shorter)

    def note_silence(self) -> None:
        """Count a URL that ended without any answer, and give the host up after several."""
        self._silent_urls += 1
        if self._silent_urls >= self._rules.give_up_after and self._refusal is None:
            message = f"not asked: {self.name} gave no answer to {self._silent_urls} urls in a row"
            self._refusal = (Status.SOURCE_TIMEOUT, message)

    def slow_down(self, wait_s: float | None) -> None:
        """Lengthen the pauses, and wait as long as Retry-After says. A host that asks for more than
        `longest_wait_s` gets no more requests.
        """
        self._silent_urls = 0
        longer = min(_MAX_PAUSE_S, max(2 * self._pause_s, _MIN_PAUSE_S))
        self._pause_s = max(self._rules.pause_s, longer)
        if wait_s is not None and wait_s > self._rules.longest_wait_s:
            message = f"{self.name} asks to wait {wait_s:.0f} s, and is asked nothing more in this session"
            self._refusal = (Status.SOURCE_THROTTLED, message)
            return
        self._not_before = max(self._not_before, self._clock() + (wait_s or 0.0))


class Queue:
    """Tasks by host, the hosts in turn, with a limited number in progress for each host."""

    def __init__(self, tasks: Iterable[Task], limit: int) -> None:
        self._limit = limit
        self._waiting: OrderedDict[str, deque[Task]] = OrderedDict()
        self._in_progress: Counter[str] = Counter()
        for task in tasks:
            self.add(task)

    def add(self, task: Task) -> None:
        """Add a task that waits."""
        self._waiting.setdefault(task.host, deque()).append(task)

    def next(self) -> Task | None:
        """Return the next task whose host has room, in progress from now on, or None."""
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
        """Note that a task is no longer in progress."""
        self._in_progress[task.host] -= 1


def open_client(config: CollectConfig) -> GuardedClient:
    """Return the client with the SSRF guard that requests the URLs of a list. Call it inside the
    event loop, and close the client.
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
    return GuardedClient(rules, resolver=_resolver(config.resolve), is_allowed_address=is_allowed)


def _allow_any(address: str) -> bool:
    return True


def _resolver(known: Mapping[str, str]) -> ssrf.Resolver:
    async def resolve(host: str, port: int) -> list[tuple[str, int]]:
        return [(known[host], port)] if host in known else await ssrf.system_resolver(host, port)

    return resolve
