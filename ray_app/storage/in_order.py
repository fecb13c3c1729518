"""Several slow iterators read side by side, told one after the other. Knows threads; knows nothing of what passes through."""

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_END = object()


def in_order(parts: Iterable[list[T] | Iterator[T]], *, at_once: int, ahead: int) -> Iterator[T]:
    """All items of the first part, then all of the second, …, while `at_once` parts are being read, each up to `ahead` items early.

    A part that is a list is there already and needs no reader. An exception of a part comes out at
    its place; leaving early stops the readers.
    """
    stopped = threading.Event()
    running: deque[Iterator[T]] = deque()
    waiting = iter(parts)
    try:
        while True:
            while len(running) < at_once and (part := next(waiting, None)) is not None:
                running.append(iter(part) if isinstance(part, list) else _Reader(part, ahead, stopped).items())
            if not running:
                return
            yield from running[0]
            running.popleft()
    finally:
        stopped.set()


class _Reader(Generic[T]):
    """One part and the thread that reads it."""

    def __init__(self, part: Iterator[T], ahead: int, stopped: threading.Event) -> None:
        self._read: queue.Queue[object] = queue.Queue(maxsize=ahead)
        self._part, self._stopped = part, stopped
        threading.Thread(target=self._run, name="list", daemon=True).start()

    def _run(self) -> None:
        try:
            for item in self._part:
                self._put(item)
                if self._stopped.is_set():
                    return
            self._put(_END)
        except BaseException as error:
            self._put(error)

    def _put(self, item: object) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._read.put(item, timeout=0.2)
                return

    def items(self) -> Iterator[T]:
        while (item := self._read.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item  # type: ignore[misc]
