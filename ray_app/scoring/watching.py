"""Looks after a run while its main thread waits inside Ray: a thread that ticks, tells workers to stop, and notices a standstill."""

import _thread
import threading
import time
from collections.abc import Callable
from types import TracebackType

from ray_app.errors import ClusterError
from ray_app.scoring.stopping import Stopper


class Watch:
    """`with Watch(…) as watch:` in the main thread, which alone can be interrupted.

    Calls `tick` each second; what it raises, the stopper's time being over, or no block ending in `stall_timeout_s` interrupts the
    block, from which that very exception is then raised (KeyboardInterrupt for the stopper).
    """

    def __init__(self, stall_timeout_s: float, stopper: Stopper, tick: Callable[[], None]) -> None:
        self._stall_timeout_s, self._stopper, self._tick = stall_timeout_s, stopper, tick
        self._heard = time.monotonic()
        self._over = threading.Event()
        self._reason: BaseException | None = None
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def progressed(self) -> None:
        """A block has ended."""
        self._heard = time.monotonic()

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if self._reason is not None and isinstance(error, KeyboardInterrupt):
            raise self._reason from None

    def _look(self) -> None:
        while not self._over.wait(1.0):
            try:
                self._tick()
                self._stopper.tell()
                self._check()
            except BaseException as reason:  # whatever it is, the main thread is to raise it
                self._reason = reason
                self._stopper.at_once = True
                _thread.interrupt_main()
                return

    def _check(self) -> None:
        if self._stopper.overdue:
            raise KeyboardInterrupt(self._stopper.reason)
        if time.monotonic() - self._heard > self._stall_timeout_s:
            raise ClusterError(
                f"no block ended in {self._stall_timeout_s:.0f} s; stopped, what is committed is kept",
                hint="are there nodes for the plan shown above? --set cluster.stall_timeout_s=… waits longer",
            )
