"""A source that grows while it is read: `Feed` keeps a limited number of items under way, and gives further ones as these come to an end.

    with Feed(items, most=lambda: 12) as feed:            # items may give None: the next one is not known yet
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

from ray_app.cluster.ray_cluster import on_own_node

T = TypeVar("T")
_LOOK_EVERY_S = 0.5  # for orders, and for items that were not known
_AT_ONCE = 64


class FeedLog:
    """The actor: items in the order in which they were given, and where one may be begun."""

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._is_closed = self._is_halted = False
        self._avoided = frozenset[str]()
        self._changed = asyncio.Condition()

    async def add(self, items: list[Any], closed: bool, halted: bool, avoided: frozenset[str]) -> None:
        """Further items. `closed`: they are the last; `halted`: none is to be begun any more; `avoided`: nor any on these nodes."""
        async with self._changed:
            self._items += items
            self._is_closed, self._is_halted, self._avoided = closed, halted, avoided
            self._changed.notify_all()

    async def take(self, place: int) -> list[Any]:
        """The items from a place on, as soon as there are some; none behind the last."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._items) > place or self._is_closed)
            return self._items[place : place + _AT_ONCE]

    async def welcomes(self, node: str) -> bool:
        """Whether an item may be begun on this node."""
        return not self._is_halted and node not in self._avoided


class Feed(Generic[T]):
    """The driver's side. `most`: how many items may be under way; `halted`, `avoided`: see `FeedLog.add`; `waits`: called while nothing is
    under way and the next item is not known. All of them are called about twice a second, in a thread.
    """

    def __init__(
        self,
        items: Iterable[T | None],
        *,
        most: Callable[[], int],
        halted: Callable[[], bool] = lambda: False,
        avoided: Callable[[], frozenset[str]] = frozenset,
        waits: Callable[[], None] = lambda: None,
    ) -> None:
        self._coming, self._returned = iter(items), deque[T]()
        self._most, self._halted, self._avoided, self._waits = most, halted, avoided, waits
        self._open, self._is_over, self._ends = 0, False, False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        import ray

        self.log: Any = ray.remote(num_cpus=0)(FeedLog).options(label_selector=on_own_node()).remote()
        self._ends = False
        self._thread = threading.Thread(target=self._feed, name="feed", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import ray

        with self._changed:
            self._ends = True
            self._changed.notify_all()
        self._thread.join()
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
        """Whether there are items that nobody has begun, or may be; to be asked outside of the block. Raises what the items raised."""
        if self._error is not None:
            raise self._error
        if not self._returned and not self._is_over:
            item = next(self._coming, self)
            self._is_over = item is self
            if item is not self and item is not None:
                self._returned.append(item)  # type: ignore[arg-type]
        return not self._is_over or bool(self._returned)

    def _feed(self) -> None:
        told: tuple[bool, bool, frozenset[str]] | None = None
        while True:
            halted, avoided, items = self._halted(), self._avoided(), list[T]()
            try:
                items += () if halted or (told and told[0]) else self._next()
            except BaseException as error:
                self._error = error
            closed = halted or self._error is not None or (self._is_over and not self._returned) or (told is not None and told[0])
            if items or told != (closed, halted, avoided):
                told = (closed, halted, avoided)
                self.log.add.remote(items, *told)
            with self._changed:
                if not self._open and not closed:
                    self._waits()
                if self._ends or (not items and self._changed.wait(_LOOK_EVERY_S) and self._ends):
                    return

    def _next(self) -> Iterator[T]:
        """The items that there is room for, those that came back first."""
        room = self._most()
        while self._open < room:
            item = self._returned.popleft() if self._returned else next(self._coming, self)
            if item is self:
                self._is_over = True
            if item is self or item is None:
                return
            with self._changed:
                self._open += 1
            yield item  # type: ignore[misc]
