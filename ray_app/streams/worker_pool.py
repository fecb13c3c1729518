"""Apply a function to items in a pool of processes, on Ray's actors (`map_in_pool`).

The scoring pipeline runs on Ray Data instead (`streams.pool`). `map_in_pool` is for functions whose
items are produced while others are processed, such as downloads.
"""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import length_hint
from typing import Any, Generic, TypeVar

from ray_app.cluster.ray_cluster import MAX_TASKS, TASK_CPUS, max_concurrency
from ray_app.cluster.shutdown import make_stall_error
from ray_app.errors import ClusterError, TouchstoneError, describe_error, is_out_of_memory
from ray_app.streams.stage import OUT_OF_MEMORY_HINT, WORKER_LOGS_HINT, to_touchstone_error

T = TypeVar("T")
R = TypeVar("R")
_RETRIES = 3  # Maximum repetitions of an item whose process died.
_WAIT_S = 0.1
_RESIZE_S = 1.0
_JOIN_S = 60.0


@dataclass(frozen=True)
class _Task(Generic[T]):
    """An item at its position, and how many processes died while working on it."""

    number: int
    item: T
    deaths: int = 0


@dataclass(frozen=True)
class _Failure:
    """The exception of the function."""

    error: TouchstoneError


class _Death:
    """The process that worked on an item died."""


class _Worker:
    """One process of the pool. Runs as an actor."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def start(self) -> None:
        """Return once the process has started."""

    def apply(self, item: Any) -> Any:
        """Return what the function returns for an item, or what it raises."""
        try:
            return self._function(item)
        except Exception as error:
            return _Failure(to_touchstone_error(error, type(self._function).__name__))


class _Items(Generic[T]):
    """Iterate over items in a thread, one at a time as they are requested."""

    def __init__(self, items: Iterable[T]) -> None:
        self._requests = threading.Semaphore(0)
        self._arrived: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._is_closed = False
        self.is_over = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(iter(items),), daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Request one more item."""
        self._requests.release()

    def take(self) -> Iterator[T]:
        """Yield the items that have arrived."""
        while True:
            try:
                yield self._arrived.get_nowait()
            except queue.Empty:
                return

    def close(self) -> None:
        """Request no further item."""
        self._is_closed = True
        self._requests.release()

    def join(self) -> None:
        """Wait until no item is being made, for a limited time."""
        self._thread.join(_JOIN_S)

    def _run(self, items: Iterator[T]) -> None:
        try:
            while True:
                self._requests.acquire()
                if self._is_closed:
                    return
                self._arrived.put(next(items))
        except StopIteration:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.is_over = True


class _Pool(Generic[T, R]):
    """The processes, and which process works on which item.

    `width` is the number of processes that the pool should have.
    """

    def __init__(
        self,
        function: Callable[[T], R],
        *,
        size: int | None,
        cpus: float,
        gpus: float,
        labels: Mapping[str, str],
    ) -> None:
        import ray

        self._size, self._cpus = size, cpus
        actor = ray.remote(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, label_selector=dict(labels)
        )(_Worker)
        self._actor: Any = actor
        self._function = ray.put(function)
        self._tasks: dict[Any, tuple[Any, _Task[T] | None]] = {}
        self._idle: list[Any] = []
        self._resized_at = 0.0
        self.width = size or max_concurrency(cpus)

    @property
    def working(self) -> int:
        """The number of items that are being processed."""
        return sum(task is not None for _, task in self._tasks.values())

    def resize(self, needed: int) -> None:
        """Start the processes that a number of items needs, up to `width`."""
        existing = len(self._idle) + len(self._tasks)
        if existing and time.monotonic() - self._resized_at < _RESIZE_S:
            return
        self._resized_at = time.monotonic()
        self.width = self._size or max_concurrency(self._cpus)
        for _ in range(min(self.width, needed, MAX_TASKS) - existing):
            actor = self._actor.remote(self._function)
            self._tasks[actor.start.remote()] = actor, None

    def submit(self, task: _Task[T]) -> bool:
        """Give an item to an idle process; False if there is none."""
        if not self._idle:
            return False
        actor = self._idle.pop()
        self._tasks[actor.apply.remote(task.item)] = actor, task
        return True

    def finished(self) -> Iterator[tuple[_Task[T], R | _Failure | _Death]]:
        """Wait briefly, and yield the items that have finished with their results.

        Raises:
            ClusterError: Ray gave up, or a process did not start.
        """
        import ray
        from ray.exceptions import (
            ActorDiedError,
            ActorUnavailableError,
            OutOfMemoryError,
            RayError,
        )

        if not self._tasks:
            return
        completed, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=_WAIT_S)
        for reference in completed:
            actor, task = self._tasks.pop(reference)
            try:
                result = ray.get(reference)
            except (ActorDiedError, ActorUnavailableError, OutOfMemoryError) as error:
                if task is None:
                    raise ClusterError(
                        f"a worker did not start: {describe_error(error)}", hint=WORKER_LOGS_HINT
                    ) from error
                yield task, _Death()
                continue
            except RayError as error:
                hint = OUT_OF_MEMORY_HINT if is_out_of_memory(error) else WORKER_LOGS_HINT
                raise ClusterError(
                    f"a worker process failed: {describe_error(error)}", hint=hint
                ) from error
            self._idle.append(actor)
            if task is not None:
                yield task, result

    def close(self) -> None:
        """End all processes."""
        import ray

        for actor in [*self._idle, *(actor for actor, _ in self._tasks.values())]:
            ray.kill(actor)


def map_in_pool(
    function: Callable[[T], R],
    items: Iterable[T],
    /,
    *,
    size: int | None = None,
    cpus: float = TASK_CPUS,
    gpus: float = 0.0,
    labels: Mapping[str, str] | None = None,
    retries: int = _RETRIES,
    ordered: bool = True,
    stall_s: float | None = None,
) -> Generator[R, None, None]:
    """Apply a function to every item in a pool of processes, and yield the results.

    Args:
        function: The function. It must tolerate that it is called again for an item whose process
            died.
        items: The items, which are iterated in a thread of this process.
        size: Number of processes. None starts as many as fit on the cluster, including nodes that
            join later.
        cpus: CPUs of each process.
        gpus: GPUs of each process.
        labels: Labels that the nodes of the processes must have.
        retries: How often to repeat an item whose process died.
        ordered: Whether results keep the order of the items.
        stall_s: Fail after this many seconds without a result. None sets no limit.

    Raises:
        TouchstoneError: The function raised it. For any other exception of the function, the
            message contains the traceback.
        ClusterError: Ray gave up, memory ran out, more than `retries` processes died with one item,
            or there was no result for `stall_s`.
        Exception: Iterating `items` raised it. The results of earlier items are yielded first.
    """
    pool = _Pool[T, R](function, size=size, cpus=cpus, gpus=gpus, labels=labels or {})
    # A list that is shorter than the pool is wide needs only as many processes as it has items.
    needed = length_hint(items, MAX_TASKS) or 1
    arriving = _Items(enumerate(items))
    try:
        yield from _results(pool, arriving, needed, retries, ordered, stall_s)
    finally:
        arriving.close()
        arriving.join()
        pool.close()
    if arriving.error is not None:
        raise arriving.error


def _results(
    pool: _Pool[T, R],
    arriving: "_Items[tuple[int, T]]",
    needed: int,
    retries: int,
    ordered: bool,
    stall_s: float | None,
) -> Iterator[R]:
    waiting: list[_Task[T]] = []
    results: dict[int, R | _Failure] = {}
    requested = received = following = 0
    progressed_at = time.monotonic()
    while True:
        is_over = arriving.is_over
        for number, item in arriving.take():
            waiting.append(_Task(number, item))
            received += 1
        if is_over and received == following:
            return
        # Request one item per process, and one more for each process that is about to finish.
        while requested - following < 2 * pool.width and not is_over:
            arriving.request()
            requested += 1
        is_idle = not waiting and not pool.working
        _submit(pool, waiting, needed)
        if is_idle:  # Only the source is working.
            time.sleep(_WAIT_S / 10)
        if _take_results(pool, waiting, results, retries) or is_idle:
            progressed_at = time.monotonic()
        while results and (following in results or not ordered):
            yield _unwrap(results.pop(following if ordered else next(iter(results))))
            following += 1
            progressed_at = time.monotonic()
        if stall_s is not None and time.monotonic() - progressed_at > stall_s:
            raise make_stall_error(stall_s)


def _submit(pool: _Pool[T, R], waiting: list[_Task[T]], needed: int) -> None:
    """Give waiting items to processes, after starting processes for them."""
    if waiting:
        pool.resize(needed)
    while waiting and pool.submit(waiting[0]):
        waiting.pop(0)


def _take_results(
    pool: _Pool[T, R], waiting: list[_Task[T]], results: dict[int, R | _Failure], retries: int
) -> bool:
    """Collect the available results, and repeat items whose process died.

    Returns:
        Whether any item has finished.

    Raises:
        ClusterError: More than `retries` processes died while they worked on one item.
    """
    has_finished = False
    for task, result in pool.finished():
        has_finished = True
        if not isinstance(result, _Death):
            results[task.number] = result
            continue
        deaths = task.deaths + 1
        if deaths > retries:
            raise ClusterError(
                f"item {task.number} was given up: {deaths} worker{'s' * (deaths > 1)} died while working on it, "
                "most likely because memory ran out",
                hint=OUT_OF_MEMORY_HINT,
            )
        waiting.insert(0, _Task(task.number, task.item, deaths))
    return has_finished


def _unwrap(result: R | _Failure) -> R:
    if isinstance(result, _Failure):
        raise result.error
    return result
