"""What one process does for some urls (`Downloader`): fetch within each host's limits, decode, put
in place, write down how each ended.

A `Unit` is urls of hosts that no other process asks meanwhile. It returns when all its urls have
ended, or when its time is over; what it returns as ended is committed.
"""

import asyncio
import math
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice
from typing import Any

from ray_app.datajobs.download.config import CollectConfig
from ray_app.datajobs.download.hosts import Host, open_client
from ray_app.datajobs.download.sink import Row, Sink, Task, owner_of, row_of
from ray_app.datajobs.parts import OK
from ray_app.errors import InputError, Status
from ray_app.images import formats
from ray_app.inference.decoder_pool import IsolatedDecoders
from ray_app.storage import Store
from ray_app.storage.guarded_http import FetchFailed

_WRITERS = 16
_WALL_LIMIT_S = 20.0  # of a decoder
_LOOK_EVERY_S = 1.0
_MOST_IN_HAND = 1000
_PER_PLACE = 4  # urls in hand for each request that their host may have at once
_TORN = frozenset((Status.CORRUPT_IMAGE, Status.TRUNCATED_IMAGE, Status.EMPTY_FILE))

Watch = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class Unit:
    """Urls of the hosts that are number `part` of `parts` (`owner_of`); `hosts`: what is known of
    those that were asked before.
    """

    tasks: Sequence[Task]
    part: int = 0
    parts: int = 1
    hosts: dict[str, Host] = field(default_factory=dict)


@dataclass
class Fetched:
    """What became of a unit. `ended`: statuses that `watch` has not had; `left`: tasks that were
    not begun, or are another part's now.
    """

    part: int
    ended: list[str]
    left: list[Task]
    hosts: dict[str, Host]


class Downloader:
    """Fetches units, one after the other; to be sent to its process before the first.

    `records`: where rows are kept; `columns`: what stands beside an image in a shard; `limit_s`: no
    further url of a unit is begun after so long; `watch` is called once a second or more often,
    with the statuses of the urls that ended since.
    """

    def __init__(
        self,
        config: CollectConfig,
        records: str,
        columns: Sequence[str],
        *,
        limit_s: float = math.inf,
        watch: Watch | None = None,
    ) -> None:
        self._config, self._records, self._columns = config, records, columns
        self._limit_s, self._watch = limit_s, watch
        self._runner: asyncio.Runner | None = None

    def __call__(self, unit: Unit) -> Fetched:
        """Fetch a unit. Raises StorageError, and what `watch` raises, after what has ended is
        committed.
        """
        if self._runner is None:
            self._runner = asyncio.Runner()
            self._runner.run(self._open())
        return self._runner.run(self._fetched(unit))

    def close(self) -> None:
        """End connections and decoders."""
        if self._runner is not None:
            self._runner.run(self._http.close())
            self._runner.close()
            self._checking.shutdown()
            self._decoders.close()
            self._ledger.submit(self._sink.close)
            self._ledger.shutdown()

    async def _open(self) -> None:
        config = self._config
        self._sink = Sink(Store.open(config.out), Store.open(self._records), config, self._columns)
        self._http, self._room = open_client(config), asyncio.Semaphore(config.limits.connections)
        processes = config.limits.decoders
        self._decoders = IsolatedDecoders(
            config.images, processes=processes, wall_limit_s=_WALL_LIMIT_S, memory_limit_bytes=None
        )
        self._checking = ThreadPoolExecutor(processes, thread_name_prefix="decode")
        self._ledger = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(_WRITERS, thread_name_prefix="write"))

    async def _fetched(self, unit: Unit) -> Fetched:
        self._until = time.monotonic() + self._limit_s
        self._unit, self._news, self._elsewhere = unit, list[str](), list[Task]()
        self._queue = Queue(unit.tasks, self._config.politeness.per_host * _PER_PLACE)
        self._running, self._changed = set[asyncio.Task[None]](), asyncio.Event()
        self._fault: BaseException | None = None
        committing = asyncio.create_task(self._commit_now_and_then())
        committing.add_done_callback(self._is_over)
        try:
            while self._fault is None:
                while (
                    time.monotonic() < self._until
                    and len(self._running) < _MOST_IN_HAND
                    and (task := self._queue.next()) is not None
                ):
                    self._running.add(running := asyncio.create_task(self._collect(task)))
                    running.add_done_callback(self._is_over)
                if not self._running:
                    break
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._changed.wait()
                if self._watch is not None:
                    news, self._news = self._news, []
                    self._watch(news)
        finally:
            under_way = [committing, *self._running]
            for one in under_way:
                one.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            await self._loop.run_in_executor(self._ledger, lambda: self._sink.commit(end=True))
        if self._fault is not None:
            raise self._fault
        return Fetched(unit.part, self._news, [*self._queue.rest(), *self._elsewhere], unit.hosts)

    def _is_over(self, one: asyncio.Task[None]) -> None:
        self._running.discard(one)
        self._changed.set()
        if not one.cancelled() and one.exception() is not None:
            self._fault = self._fault or one.exception()

    async def _commit_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._config.commit_s)
            await self._loop.run_in_executor(self._ledger, self._sink.commit)

    async def _collect(self, task: Task) -> None:
        try:
            if not await self._found(task):
                await self._fetch(task)
        finally:
            self._queue.ended(task)

    async def _found(self, task: Task) -> bool:
        """Whether an earlier session put a whole image in this id's place, and did not come to
        write that down; no request is made.
        """
        for name in task.there:
            async with self._room:
                try:
                    data = await asyncio.to_thread(self._sink.read, name)
                    facts = await self._checked(data)
                except (FileNotFoundError, FetchFailed):
                    continue
                await self._keep(task, data, facts, "/" + name.rpartition(".")[2])
                return True
        return False

    async def _fetch(self, task: Task) -> None:
        """Request until there is an answer for good: an image, a redirect, a failure that stays
        one; or the unit's time is over.
        """
        host = self._unit.hosts.setdefault(task.host, Host(task.host, self._config.politeness))
        retry, until = self._config.retry, time.monotonic() + self._config.retry.deadline_s
        pauses = islice(retry.pauses(random.random), task.tries, None)
        before: str | None = None
        while True:
            try:
                await self._once(task, host)
                return
            except TimeoutError:  # it waited for its host
                self._elsewhere.append(task)
                return
            except FetchFailed as failure:
                task = replace(task, requests=task.requests + failure.asked, tries=task.tries + 1)
                _note(host, failure)
                is_same = failure.sha256 is not None and failure.sha256 == before
                pause = next(pauses, None) if failure.passing and not is_same else None
                if pause is None or time.monotonic() + pause > until:
                    if failure.asked and not failure.answered:
                        host.silent()
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
                before = failure.sha256
            if time.monotonic() + pause > self._until:
                self._elsewhere.append(task)
                return
            await asyncio.sleep(pause)

    async def _once(self, task: Task, host: Host) -> None:
        """One request, and what comes of it. Raises FetchFailed, TimeoutError where the unit's time
        is over before the host is free.
        """
        async with AsyncExitStack() as held:
            async with (
                asyncio.timeout_at(None if math.isinf(self._until) else self._until) as waiting,
                host.visit(),
            ):
                waiting.reschedule(None)
                await held.enter_async_context(self._room)
                answer = await self._http.get(task.url)
            # Others may ask this host while the image is decoded and written, within `_room`.
            host.answered()
            task = replace(task, requests=task.requests + 1)
            if answer.moved is None:
                await self._keep(
                    task,
                    answer.data,
                    await self._checked(answer.data),
                    answer.content_type,
                    http_status=200,
                )
                return
        if task.hops >= self._config.limits.max_redirects:
            raise FetchFailed(
                Status.SOURCE_DENIED,
                f"redirected more than {task.hops} times",
                http_status=answer.http_status,
            )
        task = replace(task, url=answer.moved, hops=task.hops + 1, tries=0)
        is_ours = owner_of(task.host, self._unit.parts) == self._unit.part
        (self._queue.add if is_ours else self._elsewhere.append)(task)

    async def _keep(
        self, task: Task, data: bytes, facts: Row, content_type: str | None, **request: Any
    ) -> None:
        """Put an image in its place. Inside `_room`: while a shard is published, no more may pile
        up.
        """
        place = await asyncio.to_thread(self._sink.keep, task, data, facts["format"], content_type)
        await self._end(
            task, row_of(task, OK, place=place, size_bytes=len(data), **facts, **request), data
        )

    async def _end(self, task: Task, row: Row, data: bytes = b"") -> None:
        await self._loop.run_in_executor(self._ledger, self._sink.add, row, data, task)
        self._news.append(row["status"])

    async def _checked(self, data: bytes) -> Row:
        """Facts of bytes that decode. Raises FetchFailed; `passing` where a torn transfer may be
        the reason.
        """
        return await self._loop.run_in_executor(self._checking, _facts, self._decoders, data)


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
            passing=error.status in _TORN,
            sha256=digest,
            http_status=200,
        ) from None
    return {
        "sha256": digest,
        "format": str(facts.format),
        "width": facts.width or 0,
        "height": facts.height or 0,
    }


def _note(host: Host, failure: FetchFailed) -> None:
    if (failure.asked and failure.status == Status.SOURCE_THROTTLED) or failure.wait_s is not None:
        host.throttled(failure.wait_s)
    elif failure.asked and failure.answered:
        host.answered()


class Queue:
    """Urls by host, the hosts in turn; of one host at most `most` in hand."""

    def __init__(self, tasks: Iterable[Task], most: int) -> None:
        self._most = most
        self._waiting: OrderedDict[str, deque[Task]] = OrderedDict()
        self._in_hand: Counter[str] = Counter()
        for task in tasks:
            self.add(task)

    def add(self, task: Task) -> None:
        """One more that waits."""
        self._waiting.setdefault(task.host, deque()).append(task)

    def next(self) -> Task | None:
        """The next one whose host has room, in hand from here on; None where there is none now."""
        host = next((host for host in self._waiting if self._in_hand[host] < self._most), None)
        if host is None:
            return None
        task = self._waiting[host].popleft()
        self._waiting.move_to_end(host)
        if not self._waiting[host]:
            del self._waiting[host]
        self._in_hand[host] += 1
        return task

    def ended(self, task: Task) -> None:
        """One is out of hand."""
        self._in_hand[task.host] -= 1

    def rest(self) -> list[Task]:
        """All that still wait."""
        return [task for tasks in self._waiting.values() for task in tasks]
