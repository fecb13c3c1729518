"""A source that grows while it is read: `Feed` keeps a limited number of items under way, and gives further ones as these come to an end.

    with Feed(items, most=lambda: 12) as feed:
        for message in stream(feed.reader(), pools):
            feed.ended()

What it gives lies in an actor on the driver's node (`FeedLog`), of which the source, a generator task of Ray Data on the same node, reads
every item by its place. So a generator that Ray begins anew gives the same items in the same order.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")
_LOOK_EVERY_S = 0.5  # for orders
_ENDING_S = 60.0  # for the next item, which somebody is making when all ends
_AT_ONCE = 64


class FeedLog:
    """The actor: items in the order in which they were given, and where one may be begun."""

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._is_closed = self._is_halted = False
        self._avoided = frozenset[str]()
        self._changed = asyncio.Condition()

    async def add(self, *items: Any, closed: bool = False) -> None:
        """Further items, the last of all where it is `closed`."""
        async with self._changed:
            self._items += items
            self._is_closed |= closed
            self._changed.notify_all()

    async def take(self, place: int) -> list[Any]:
        """The items from a place on, as soon as there are some; none behind the last, or where all has to end."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._items) > place or self._is_closed or self._is_halted)
            return self._items[place : place + _AT_ONCE]

    async def order(self, halted: bool, avoided: frozenset[str]) -> None:
        """`halted`: no item is to be begun any more; `avoided`: nor any on these nodes."""
        async with self._changed:
            self._is_halted, self._avoided = halted, avoided
            self._changed.notify_all()

    async def welcomes(self, node: str) -> bool:
        """Whether an item may be begun on this node."""
        return not self._is_halted and node not in self._avoided


class Feed(Generic[T]):
    """The driver's side. `items` are made in a thread, one when there is room for it; `most`: how many may be under way.

    Asked twice a second: `halted` and `avoided`, see `FeedLog.order`; `waits` is called while nothing is under way, and `leaves` when the
    block ends before the items do.
    """

    def __init__(
        self,
        items: Iterable[T],
        *,
        most: Callable[[], int],
        halted: Callable[[], bool] = lambda: False,
        avoided: Callable[[], frozenset[str]] = frozenset,
        waits: Callable[[], None] = lambda: None,
        leaves: Callable[[], None] = lambda: None,
    ) -> None:
        self._coming, self._returned = iter(items), deque[T]()
        self._most, self._halted, self._avoided, self._waits, self._leaves = most, halted, avoided, waits, leaves
        self._open, self._is_over, self._is_left = 0, False, False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        import ray

        from ray_app.cluster.ray_cluster import on_own_node

        self.log: Any = ray.remote(num_cpus=0)(FeedLog).options(label_selector=on_own_node()).remote()
        self._ends = False
        self._threads = [threading.Thread(target=work, daemon=True, name=work.__name__) for work in (self._feed, self._order)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import ray

        if self._threads[0].is_alive():  # it waits for an item, or for room
            self._is_left = True
            self._leaves()
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_ENDING_S)
        ray.kill(self.log)

    def reader(self) -> Callable[[], Iterator[T]]:
        """What gives every item in order, in whatever process it is called."""
        log = self.log

        def read() -> Iterator[T]:
            import ray

            place = 0
            while items := ray.get(log.take.remote(place)):
                yield from items
                place += len(items)

        return read

    def ended(self, returned: T | None = None) -> None:
        """An item has come to its end; or it was not begun, and is to be given again."""
        with self._changed:
            self._open -= 1
            if returned is not None:
                self._returned.append(returned)
            self._changed.notify_all()

    def has_more(self) -> bool:
        """Whether there are items that nobody has begun; to be asked outside of the block. Raises what the items raised."""
        if self._is_left:
            return True
        if not self._returned and not self._is_over:
            self._returned.extend(self._next())
        if not self._returned and self._error is not None:
            raise self._error
        return bool(self._returned)

    def _next(self) -> list[T]:
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
        while self._has_room() and (item := self._next()):
            with self._changed:
                self._open += 1
            self.log.add.remote(*item)
        self.log.add.remote(closed=True)

    def _has_room(self) -> bool:
        """Whether a further item is wanted, once there is room for it."""
        with self._changed:
            while not (self._ends or self._halted()) and self._open >= self._most():
                self._changed.wait(_LOOK_EVERY_S)
            return not (self._ends or self._halted())

    def _order(self) -> None:
        while not self._ends:
            self.log.order.remote(self._halted(), self._avoided())
            with self._changed:
                if not self._open:
                    self._waits()
                if not self._ends:
                    self._changed.wait(_LOOK_EVERY_S)
