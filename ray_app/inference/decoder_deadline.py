"""`DecodeDeadline`: the wall limit of what a decoder process does. One thread watches all of them."""

import heapq
import itertools
import subprocess
import threading
import time
from collections.abc import Callable


class DecodeDeadline:
    """Kills a child by its own handle unless the block ends in time; only this can end a read from a child that hangs."""

    def __init__(self, child: subprocess.Popen[bytes], limit_s: float) -> None:
        self.has_passed = False
        self.limit_s = limit_s
        self._child = child
        self._counting: object | None = None  # one for each time that it counts

    def start(self, limit_s: float) -> None:
        """Count from now on."""
        self.limit_s = limit_s
        self._counting = counting = object()
        _WATCHDOG.call_at(time.monotonic() + limit_s, lambda: self._kill(counting))

    def stop(self) -> None:
        """Count no further; whether the time is over is settled then."""
        with _WATCHDOG.settled:
            self._counting = None

    def __enter__(self) -> "DecodeDeadline":
        self.start(self.limit_s)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _kill(self, counting: object) -> None:
        if self._counting is counting:
            self.has_passed = True
            self._child.kill()


class _Watchdog:
    """One thread for all deadlines: a thread for each would cost half a millisecond of every image. It calls while `settled` is held."""

    def __init__(self) -> None:
        self.settled = threading.Condition()
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        """Call at that moment of the monotonic clock."""
        with self.settled:
            heapq.heappush(self._calls, (when, next(self._numbers), call))
            if self._thread is None or not self._thread.is_alive():  # at first, and in a process that was forked
                self._thread = threading.Thread(target=self._run, name="decoder-watchdog", daemon=True)
                self._thread.start()
            elif self._calls[0][0] == when:
                self.settled.notify()

    def _run(self) -> None:
        with self.settled:
            while True:
                while self._calls and self._calls[0][0] <= time.monotonic():
                    heapq.heappop(self._calls)[2]()
                self.settled.wait(self._calls[0][0] - time.monotonic() if self._calls else None)


_WATCHDOG = _Watchdog()
