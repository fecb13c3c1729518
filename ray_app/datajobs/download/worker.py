"""The workers of a download session: a `DownloadWorker` fetches, checks and stores on an event loop in a thread; `crew_for` starts one
here or actors on Ray, each for its own hosts. A redirect is handed back: the worker whose host it is now may be another one.
"""

import asyncio
import queue
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from ray_app.datajobs.download.config import OK, CollectConfig, Failed
from ray_app.datajobs.download.http import Host, HttpClient, HttpResponse
from ray_app.datajobs.download.sink import CheckedImage, Checker, DownloadResult, FileSink, ShardSink, Sink, Task
from ray_app.errors import ClusterError, Status, TouchstoneError, describe_error
from ray_app.storage import Store, strip_secrets

T = TypeVar("T")
_WRITERS = 16
WORKER_CPUS = 0.5  # it waits most of the time; its decoders are the work
_TAKE_S = 5.0
_MOST_DEATHS = 3
_STALL_S = 900.0
_CLOSE_S = 300.0  # a last shard may be on its way to a slow store


@dataclass
class DownloadReport:
    """A worker's report since the last: (id, status) of what ended, ids that are committed, redirects, and its own fault."""

    ended: list[tuple[str, str]] = field(default_factory=list)
    committed: list[str] = field(default_factory=list)
    moved: list[Task] = field(default_factory=list)
    fault: TouchstoneError | None = None

    def __bool__(self) -> bool:
        return bool(self.ended or self.committed or self.moved or self.fault)


class DownloadWorker:
    """A worker for some hosts. `records`: where rows are kept, `columns`: what stands beside an image in a shard."""

    def __init__(self, config: CollectConfig, records: str, columns: Sequence[str]) -> None:
        self._config = config
        store, kept = Store.open(config.out), Store.open(records)
        self._keeper: Sink = FileSink(store, kept, config.folder) if config.form == "files" else ShardSink(store, kept, config, columns)
        self._checker = Checker(config.images, config.limits.decoders)
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")
        self._ledger = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._reports: queue.SimpleQueue[DownloadReport] = queue.SimpleQueue()
        self._hosts: dict[str, Host] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="collect", daemon=True)
        self._thread.start()
        self._on_loop(self._open()).result()

    def give(self, tasks: Sequence[Task]) -> None:
        """More to do; returns at once."""
        self._loop.call_soon_threadsafe(self._begin, list(tasks))

    def take(self, timeout_s: float) -> DownloadReport:
        """What has happened since the last time, after `timeout_s` at most; at once when there is something."""
        report = DownloadReport()
        try:
            one = self._reports.get(timeout=timeout_s)
            while True:
                report.ended += one.ended
                report.committed += one.committed
                report.moved += one.moved
                report.fault = report.fault or one.fault
                one = self._reports.get_nowait()
        except queue.Empty:
            return report

    def close(self) -> DownloadReport:
        """Stop what is under way, commit what has ended, end all processes; returns the last report."""
        self._on_loop(self._shut()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._checker.close()
        self._writers.shutdown()
        self._ledger.shutdown()
        return self.take(0)

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _open(self) -> None:
        self._http = HttpClient(self._config)
        self._room = asyncio.Semaphore(self._config.limits.connections)
        self._committing = self._loop.create_task(self._commit_now_and_then())

    async def _shut(self) -> None:
        self._committing.cancel()
        for one in (under_way := list(self._running)):
            one.cancel()
        await asyncio.gather(self._committing, *under_way, return_exceptions=True)
        await self._http.close()
        await self._commit(end=True)
        await self._loop.run_in_executor(self._ledger, self._keeper.close)

    def _begin(self, tasks: Sequence[Task]) -> None:
        for one in tasks:
            running = self._loop.create_task(self._collect(one))
            self._running.add(running)
            running.add_done_callback(self._running.discard)

    async def _commit_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._config.commit_s)
            await self._commit()

    async def _commit(self, *, end: bool = False) -> None:
        with self._faults():
            committed = await self._loop.run_in_executor(self._ledger, lambda: self._keeper.commit(end=end))
            self._reports.put(DownloadReport(committed=committed))

    async def _collect(self, task: Task) -> None:
        with self._faults():
            if not await self._found(task):
                await self._fetch(task)

    async def _found(self, task: Task) -> bool:
        """Whether an earlier session put a whole image in this id's place, and did not come to write that down; no request is made."""
        async with self._room:
            for name in task.there:
                try:
                    data = await self._written(self._keeper.read, name)
                    whole = await asyncio.wrap_future(self._checker.check(data))
                except (FileNotFoundError, Failed):
                    continue
                kept = await self._written(self._keeper.keep, task, data, whole.format, "/" + name.rpartition(".")[2])
                await self._end(task, self._good(task, data, whole, kept, None), data)
                return True
        return False

    async def _fetch(self, task: Task) -> None:
        """Request until there is an answer for good: an image, a redirect, or a failure that stays one."""
        host = self._hosts.setdefault(task.host, Host(task.host, self._config.politeness))
        retry, until = self._config.retry, time.monotonic() + self._config.retry.deadline_s
        pauses = retry.pauses(random.random)
        before: str | None = None
        while True:
            try:
                await self._once(task, host)
                return
            except Failed as failure:
                task = replace(task, requests=task.requests + failure.asked)
                self._note_host(host, failure)
                is_same = failure.sha256 is not None and failure.sha256 == before
                pause = next(pauses, None) if failure.passing and not is_same else None
                if pause is None or time.monotonic() + pause > until:
                    if failure.asked and not failure.answered:
                        host.silent()
                    await self._end(task, self._bad(task, failure))
                    return
                before = failure.sha256
            await asyncio.sleep(pause)

    async def _once(self, task: Task, host: Host) -> None:
        async with host.visit() as place, self._room:
            answer = await self._http.get(task.url)
            place.leave()  # others may ask this host while the image is decoded and written
            host.answered()
            task = replace(task, requests=task.requests + 1)
            if answer.moved is None:
                await self._kept(task, answer)
                return
        if task.hops >= self._config.limits.max_redirects:
            raise Failed(Status.SOURCE_DENIED, f"redirected more than {task.hops} times", http_status=answer.http_status)
        self._reports.put(DownloadReport(moved=[replace(task, url=answer.moved, hops=task.hops + 1)]))

    async def _kept(self, task: Task, answer: HttpResponse) -> None:
        whole = await asyncio.wrap_future(self._checker.check(answer.data))
        place = await self._written(self._keeper.keep, task, answer.data, whole.format, answer.content_type)
        await self._end(task, self._good(task, answer.data, whole, place, 200), answer.data)

    async def _end(self, task: Task, outcome: DownloadResult, data: bytes = b"") -> None:
        """Write down how a task ended, and report it. Of an image inside `_room`: while a shard is published, no more may pile up."""
        committed = await self._loop.run_in_executor(self._ledger, self._keeper.add, outcome, data, task)
        self._reports.put(DownloadReport(ended=[(task.id, outcome.status)], committed=committed))

    def _note_host(self, host: Host, failure: Failed) -> None:
        if (failure.asked and failure.status == Status.SOURCE_THROTTLED) or failure.wait_s is not None:
            host.throttled(failure.wait_s)
        elif failure.asked and failure.answered:
            host.answered()

    async def _written(self, function: Callable[..., T], *arguments: Any) -> T:
        return await self._loop.run_in_executor(self._writers, function, *arguments)

    def _good(self, task: Task, data: bytes, whole: CheckedImage, place: str | None, http_status: int | None) -> DownloadResult:
        facts = {"sha256": whole.sha256, "format": whole.format, "width": whole.width, "height": whole.height, "size_bytes": len(data)}
        request = {"http_status": http_status, "requests": task.requests, "final_url": strip_secrets(task.url)}
        return DownloadResult(task.id, task.wanted, OK, None, place, **facts, **request)  # type: ignore[arg-type]

    def _bad(self, task: Task, failure: Failed) -> DownloadResult:
        return DownloadResult(task.id, task.wanted, failure.status, failure.detail, http_status=failure.http_status, requests=task.requests,
                       final_url=strip_secrets(task.url))  # fmt: skip

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """What is no fault of a url ends the session: storage out of reach, a bug. It is reported, since nobody waits for a task."""
        try:
            yield
        except TouchstoneError as error:
            self._reports.put(DownloadReport(fault=error))
        except Exception as error:
            bug = TouchstoneError(f"collecting failed: {describe_error(error)}", hint="this looks like a bug")
            self._reports.put(DownloadReport(fault=bug))


class Crew(Protocol):
    """`size` workers, by number."""

    size: int

    def give(self, worker: int, tasks: Sequence[Task]) -> None:
        """More for one worker."""

    def take(self, timeout_s: float) -> list[tuple[int, DownloadReport | None]]:
        """The workers' reports, after so long at most; None of one that died, which is there again. Raises ClusterError."""

    def close(self) -> list[tuple[int, DownloadReport]]:
        """Stop all; their last reports."""


class HereCrew:
    """One worker, in this process."""

    size = 1

    def __init__(self, config: CollectConfig, records: str, columns: Sequence[str]) -> None:
        self._collector = DownloadWorker(config, records, columns)

    def give(self, worker: int, tasks: Sequence[Task]) -> None:
        """More to do."""
        self._collector.give(tasks)

    def take(self, timeout_s: float) -> list[tuple[int, DownloadReport | None]]:
        """Its report; it does not die without us."""
        return [(0, self._collector.take(timeout_s))]

    def close(self) -> list[tuple[int, DownloadReport]]:
        """Stop it."""
        return [(0, self._collector.close())]


class RayCrew:
    """Actors. One that dies with its machine is replaced, a few times."""

    def __init__(self, config: CollectConfig, records: str, columns: Sequence[str], size: int) -> None:
        import ray

        options: dict[str, Any] = {"num_cpus": WORKER_CPUS, "max_concurrency": 4, "scheduling_strategy": "SPREAD"}
        if config.cluster.labels:
            options["label_selector"] = dict(config.cluster.labels)
        self._kind: Any = ray.remote(**options)(DownloadWorker)
        self._arguments = (config, records, list(columns))
        self._stall_s = config.cluster.stall_timeout_s or _STALL_S
        self.size, self._deaths, self._heard_at = size, [0] * size, time.monotonic()
        self._actors: list[Any] = [self._kind.remote(*self._arguments) for _ in range(size)]
        self._pending = {actor.take.remote(_TAKE_S): number for number, actor in enumerate(self._actors)}

    def give(self, worker: int, tasks: Sequence[Task]) -> None:
        """More for one actor."""
        self._actors[worker].give.remote(list(tasks))

    def take(self, timeout_s: float) -> list[tuple[int, DownloadReport | None]]:
        """The actors' reports. Raises ClusterError where one dies again and again, or nothing is heard of any for long."""
        import ray

        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=timeout_s)
        reports: list[tuple[int, DownloadReport | None]] = []
        for answer in ready:
            worker = self._pending.pop(answer)
            try:
                reports.append((worker, ray.get(answer)))
            except ray.exceptions.RayActorError as error:
                self._replace(worker, error)
                reports.append((worker, None))
            self._pending[self._actors[worker].take.remote(_TAKE_S)] = worker
        self._watch(bool(ready))
        return reports

    def close(self) -> list[tuple[int, DownloadReport]]:
        """Stop all actors; those that are gone, or do not end in time, have no report."""
        import ray

        found = []
        # A `take` that was still open may have the last report instead of `close`.
        answers = self._pending | {actor.close.remote(): worker for worker, actor in enumerate(self._actors)}
        ended, _ = ray.wait(list(answers), num_returns=len(answers), timeout=_CLOSE_S)
        for answer in ended:
            with suppress(ray.exceptions.RayError):
                found.append((answers[answer], ray.get(answer)))
        for actor in self._actors:
            ray.kill(actor)
        return found

    def _replace(self, worker: int, error: Exception) -> None:
        import ray

        self._deaths[worker] += 1
        if self._deaths[worker] > _MOST_DEATHS:
            raise ClusterError(
                f"a worker died {self._deaths[worker]} times", hint="most likely for want of memory: --set limits.connections=8 needs less"
            ) from error
        # It may only be out of reach: then it would keep requesting from its hosts beside the new one.
        ray.kill(self._actors[worker])
        self._actors[worker] = self._kind.remote(*self._arguments)

    def _watch(self, heard: bool) -> None:
        now = time.monotonic()
        self._heard_at = now if heard else self._heard_at
        if now - self._heard_at > self._stall_s:
            raise ClusterError(
                f"nothing was heard of any worker for {self._stall_s:.0f} s", hint="has the cluster room for them? --set cluster.workers=1"
            )


@contextmanager
def crew_for(config: CollectConfig, records: str, columns: Sequence[str], *, on_ray: bool, hosts: int) -> Iterator[Crew]:
    """The workers, for as long as the block lasts; whoever leaves it early calls `close` first, to hear the last of them."""
    if not on_ray:
        yield HereCrew(config, records, columns)
        return
    from ray_app.cluster.ray_cluster import cluster, resources

    with cluster(config.cluster):
        cpus, _, _ = resources(config.cluster)
        yield RayCrew(config, records, columns, config.cluster.workers or max(1, min(int(cpus), hosts)))
