"""A source that grows while it is read: `Feed` keeps a limited number of items under way, and gives
further ones as these come to an end.

    with Feed(items, most=lambda: 12) as feed:
        for message in stream(feed.log.items, pools):
            feed.ended()

The items are in an actor on the driver's node (`Ledger`). The source, a generator task of Ray Data
on the same node, reads each item from the actor by its place (`FeedLog`), so a generator that Ray
starts again gives the same items in the same order.

`in_pool` is an `archives.Each` for functions that read images, which runs them in a pool of
processes.
"""

import math
import pickle
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from operator import length_hint
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from ray_app.cluster.ray_cluster import MOST_AT_ONCE, TASK_CPUS, at_once, on_own_node
from ray_app.errors import ClusterError
from ray_app.streams.stage import IN_FLIGHT, OUT_OF_MEMORY_HINT, Stage

T = TypeVar("T")
R = TypeVar("R")
_LOOK_EVERY_S = 0.5  # for orders, and for room
_POLL_S = 0.1  # for the next item
_ENDING_S = 60.0  # for the next item, which is being made when all ends
_RETRIES = 3  # of an item whose process died


class Ledger:
    """Hold the items of a feed, its orders, and how often each item was started. Runs as an actor,
    which ends with the driver.
    """

    def __init__(self) -> None:
        self._items: dict[int, bytes] = {}
        self._starts: Counter[int] = Counter()
        self._orders: tuple[bool, frozenset[str]] = (False, frozenset())

    def put(self, place: int, item: bytes) -> None:
        """Keep a pickled item at its place."""
        self._items[place] = item

    def item(self, place: int) -> tuple[bytes | None, bool]:
        """Return the pickled item at a place, or None if it is not there yet, and whether no item
        may start any more.
        """
        return self._items.get(place), self._orders[0]

    def order(self, halted: bool, avoided: frozenset[str]) -> None:
        """Replace the orders."""
        self._orders = halted, avoided

    def orders(self) -> tuple[bool, frozenset[str]]:
        """Return whether no item may start any more, and the nodes on which none may."""
        return self._orders

    def start(self, place: int) -> int:
        """Count a start of an item, and return how often the item was started before."""
        self._starts[place] += 1
        return self._starts[place] - 1

    def close(self) -> None:
        """Forget the items. A reader of them finishes."""
        self._orders = True, frozenset()
        self._items.clear()


def start_ledger() -> Any:
    """Start a ledger on this node. It reserves no CPU."""
    import ray

    return ray.remote(num_cpus=0, label_selector=on_own_node())(Ledger).remote()


@dataclass(frozen=True)
class FeedLog:
    """Items in the order in which the driver gave them, and where an item may start; for any
    process of the cluster.
    """

    ledger: Any

    def put(self, place: int, item: Any) -> None:
        """Give an item its place. None means that no further item follows."""
        self._call("put", place, pickle.dumps(item))

    def items(self) -> Iterator[Any]:
        """Yield each item as soon as it is there, until the last item or until no more may start."""
        place = 0
        while True:
            data, halted = self._call("item", place)
            if data is None:
                if halted:
                    return
                time.sleep(_POLL_S)
                continue
            if (item := pickle.loads(data)) is None:  # noqa: S301  (written by the driver)
                return
            yield item
            place += 1

    def order(self, halted: bool, avoided: frozenset[str]) -> None:
        """Say whether no item may start any more, and on which nodes none may."""
        self._call("order", halted, avoided)

    def may_begin(self, node: str) -> bool:
        """Return whether an item may start on this node."""
        halted, avoided = self._call("orders")
        return not halted and node not in avoided

    def begin(self, place: int) -> int:
        """Count a start of an item, and return how often the item was started before."""
        started: int = self._call("start", place)
        return started

    def close(self) -> None:
        """Forget the items. A reader of them finishes."""
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self.ledger, method).remote(*arguments))


class Feed(Generic[T]):
    """The driver's side. `items` are made in a thread, one when there is room for it; a None among
    them: there is none yet. Where none came for `idle_s`, or some have been under way all that
    time, the stream ends, to be begun again for the next one (`has_more`).

    Asked twice a second: `most`, how many may be under way; `halted` and `avoided`, see
    `FeedLog.order`. `waits` is called while nothing is under way, and `leaves` when the block ends
    before the items do.
    """

    def __init__(
        self,
        items: Iterable[T | None],
        *,
        most: Callable[[], int],
        halted: Callable[[], bool] = lambda: False,
        avoided: Callable[[], frozenset[str]] = frozenset,
        waits: Callable[[], None] = lambda: None,
        leaves: Callable[[], None] = lambda: None,
        idle_s: float = math.inf,
    ) -> None:
        self._idle_s = idle_s
        self._coming, self._returned = iter(items), deque[T]()
        self._most, self._halted, self._avoided, self._waits, self._leaves = (
            most,
            halted,
            avoided,
            waits,
            leaves,
        )
        self._open, self._is_over, self._is_left = 0, False, False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        self.log, self._given, self._ends, self._limit = (
            FeedLog(start_ledger()),
            0,
            threading.Event(),
            self._most(),
        )
        self._threads = [
            threading.Thread(target=self._until_lost, args=(work,), daemon=True)
            for work in (self._feed, self._order)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._threads[0].is_alive():  # it waits for an item, or for room
            self._is_left = True
            self._leaves()
        self._ends.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_ENDING_S)
        self._until_lost(self.log.close)

    def _until_lost(self, work: Callable[[], None]) -> None:
        """A head that is gone ends the run elsewhere, in better words."""
        from ray.exceptions import RayError

        with suppress(RayError, RuntimeError):
            work()

    def ended(self, returned: T | None = None) -> None:
        """An item has come to its end; or it was not begun, and is to be given again."""
        with self._changed:
            self._open -= 1
            if returned is not None:
                self._returned.append(returned)
            self._changed.notify_all()

    def has_more(self) -> bool:
        """Whether there are items that are not begun, once that is known; asked outside of the
        block. Raises what the items raised.
        """
        if self._is_left:
            return True
        while not self._returned and not self._is_over:
            self._returned.extend(item for item in self._next() if item is not None)
        if not self._returned and self._error is not None:
            raise self._error
        return bool(self._returned)

    def _next(self) -> list[T] | list[T | None]:
        """The next item, those that came back first; none behind the last."""
        if self._returned:
            return [self._returned.popleft()]
        try:
            return [next(self._coming)]
        except StopIteration:
            pass
        except BaseException as error:
            self._error = error
        self._is_over = True
        return []

    def _feed(self) -> None:
        since = rested = time.monotonic()
        while self._has_room() and (item := self._next()):
            if item[0] is None:
                # what a lost node had waits for a place until a stream ends
                rested = rested if self._open else time.monotonic()
                if time.monotonic() - (rested if self._open else since) < self._idle_s:
                    continue
                print("processes end until something comes", file=sys.stderr, flush=True)
                break
            with self._changed:
                self._open += 1
            self.log.put(self._given, item[0])
            self._given += 1
            since = time.monotonic()
        self.log.put(self._given, None)

    def _has_room(self) -> bool:
        """Whether a further item is wanted, once there is room for it."""
        with self._changed:
            while (
                not (is_over := self._ends.is_set() or self._halted()) and self._open >= self._limit
            ):
                self._changed.wait(_LOOK_EVERY_S)
            return not is_over

    def _order(self) -> None:
        given: tuple[bool, frozenset[str]] = (False, frozenset())
        while not self._ends.wait(_LOOK_EVERY_S):
            self._limit = self._most()
            if (orders := (self._halted(), self._avoided())) != given:
                self.log.order(*orders)
                given = orders
            if not self._open:
                self._waits()


class Applier(Stage):
    """Apply a function to numbered items. An item whose process died is repeated a limited number
    of times.
    """

    def start(self, *given: Any) -> None:
        """Keep the function, the log of the items, and the maximum number of repetitions of an
        item.
        """
        self._function, self._log, self._retries = given

    def work(self, message: tuple[int, Any]) -> Any:
        """Return what the function returns for the item. Raises ClusterError if the item was
        repeated too often.
        """
        number, item = message
        if (deaths := self._log.begin(number)) > self._retries:
            raise ClusterError(
                f"item {number} was given up: {deaths} worker{'s' * (deaths > 1)} died while working on it, "
                "most likely because memory ran out",
                hint=OUT_OF_MEMORY_HINT,
            )
        return self._function(item)


def in_pool(
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
    leaves: Callable[[], None] = lambda: None,
) -> Generator[R, None, None]:
    """Yield the result of the function for every item, from a pool of processes.

    Args:
        function: Must tolerate that it is called again for an item whose process died.
        items: Iterated in a thread of this process.
        size: Number of processes; None starts as many as the cluster has room for, including nodes
            that come later.
        cpus: CPUs of each process.
        gpus: GPUs of each process.
        labels: Labels that the nodes of the processes must have.
        retries: How often to repeat an item whose process died.
        ordered: Whether results keep the order of the items.
        stall_s: Fail after so many seconds without a result.
        leaves: Called if the reader leaves before the items end, so that their source can stop
            waiting.

    Raises:
        TouchstoneError: The function raised this error, or another exception, whose traceback is in
            the message.
        ClusterError: Ray gave up, or an item was repeated too often.
    """
    from ray_app.streams.pool import Pool, stream  # Ray Data: only where it runs

    begin = min(length_hint(items, MOST_AT_ONCE) or 1, size or at_once())
    name = type(function).__name__
    with Feed(
        enumerate(items), most=lambda: IN_FLIGHT * (size or at_once()), leaves=leaves
    ) as feed:
        pool = Pool(
            Applier,
            (function, feed.log, retries),
            begin,
            begin if size else MOST_AT_ONCE,
            cpus,
            gpus,
            labels or {},
        )
        with closing(
            stream(feed.log.items, [pool], name=name, ordered=ordered, stall_s=stall_s)
        ) as results:
            for result in results:
                feed.ended()
                yield result
    feed.has_more()
