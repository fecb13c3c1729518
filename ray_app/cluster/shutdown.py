"""Graceful shutdown of a session: intake ends, work under way may commit, then the session is over.

`Stopper` gathers reasons (signals, hours, cost, nodes that are taken away), and `Watch` runs it
beside the main thread and notices a standstill.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType

from ray_app.errors import ClusterError

SIGNAL_GRACE_S = 25.0  # clouds give 30 to 120 s between the notice and the end, Kubernetes 30 s
LIMIT_GRACE_S = 60.0
# Ray kills a submitted job so long after `ray job stop` unless RAY_JOB_STOP_WAIT_TIME_S, set for
# the job or on the head, says otherwise.
JOB_STOP_WAIT_S = 3.0
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # by which Ray hands a submitted job its config
# of that, to notice the end of the grace, write the session's state, give back nodes and lease
JOB_END_S = 3.0


def job_stop_wait_s() -> float | None:
    """Seconds that Ray leaves this process between the signal of `ray job stop` and its kill; None
    where it is no submitted job.
    """
    if _JOB_VARIABLE not in os.environ:
        return None
    try:
        return float(int(os.environ["RAY_JOB_STOP_WAIT_TIME_S"]))
    except (KeyError, ValueError):
        return JOB_STOP_WAIT_S


def signal_grace_s(configured_s: float | None = None) -> float:
    """Seconds between a signal and the end: those of the config, else `SIGNAL_GRACE_S`, in a
    submitted job no more than Ray leaves it.
    """
    wanted_s = SIGNAL_GRACE_S if configured_s is None else configured_s
    wait_s = job_stop_wait_s()
    return wanted_s if wait_s is None else max(0.0, min(wanted_s, wait_s - JOB_END_S))


class Stopper:
    """Gathers reasons, and measures the time that work under way still has. The engine reads it and
    orders its pipelines.

    `say` prints one line. `grace_s` replaces the grace times of all reasons.
    """

    def __init__(
        self,
        *,
        say: Callable[[str], None],
        grace_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reason: str | None = None
        self.at_once = False
        self._say, self._grace_s, self._clock = say, grace_s, clock
        self._until = float("inf")
        self.avoided: frozenset[str] = frozenset()
        self._announced: tuple[str | None, frozenset[str]] = (None, frozenset())
        self._signals = 0
        self._killed_after_s: float | None = None

    def ask(self, reason: str, grace_s: float) -> None:
        """Begin no further block; give those under way so many seconds. The first reason is kept,
        and the shortest time.
        """
        self._end_in(grace_s if self._grace_s is None else self._grace_s, reason)

    def _end_in(self, seconds: float, reason: str) -> None:
        self._until = min(self._until, self._clock() + seconds)
        self.reason = self.reason or reason

    def avoid(self, nodes: Iterable[str]) -> None:
        """Begin no further block on these nodes."""
        self.avoided |= frozenset(nodes)

    @property
    def overdue(self) -> bool:
        """Whether what is still under way has had its time."""
        return self._clock() >= self._until

    def announce(self) -> None:
        """Say what is new, if anything; called every second, never from a signal handler."""
        new = (self.reason, self.avoided)
        if new == self._announced:
            return
        if self.reason != self._announced[0]:
            left = max(0.0, self._until - self._clock())
            kill = (
                f" (Ray kills a job {wait_s:g} s after its stop: RAY_JOB_STOP_WAIT_TIME_S)"
                if (wait_s := self._killed_after_s)
                else ""
            )
            self._say(
                f"stopping: {self.reason}; running work has {left:.0f} s to be committed{kill}; a second signal stops at once"
            )
        if self.avoided != self._announced[1]:
            self._say(
                f"{len(self.avoided)} node{'s' * (len(self.avoided) > 1)} will be taken away and get no new work"
            )
        self._announced = new

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the first SIGTERM or SIGINT requests a stop and the next raises
        KeyboardInterrupt.
        """
        kept = {}
        if threading.current_thread() is threading.main_thread():
            kept = {
                signum: signal.signal(signum, self._on_signal)
                for signum in (signal.SIGTERM, signal.SIGINT)
            }
        try:
            yield
        finally:
            for signum, handler in kept.items():
                signal.signal(signum, handler)
            # also of a run that had nothing under way any more before the second was over
            self.announce()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self.at_once or self._signals > 1:
            raise KeyboardInterrupt(self.reason or signal.Signals(signum).name)
        self._killed_after_s = job_stop_wait_s()
        self._end_in(signal_grace_s(self._grace_s), signal.Signals(signum).name)


class Watch:
    """`with Watch(…) as watch:` in the main thread, which alone can be interrupted.

    Calls `tick` each second; what it raises, the stopper's time being over, or no block ending in
    `stall_timeout_s` interrupts the block, from which that very exception is then raised
    (KeyboardInterrupt for the stopper).
    """

    def __init__(self, stall_timeout_s: float, stopper: Stopper, tick: Callable[[], None]) -> None:
        self._stall_timeout_s, self._stopper, self._tick = stall_timeout_s, stopper, tick
        self._progressed_at = time.monotonic()
        # No block is pending, so none can end.
        self.rests = False
        self._over = threading.Event()
        self._reason: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def progressed(self) -> None:
        """A block has ended."""
        self._progressed_at, self.rests = time.monotonic(), False

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._reason is not None and isinstance(error, KeyboardInterrupt):
            raise self._reason from None

    def _run(self) -> None:
        while not self._over.wait(1.0):
            try:
                self._tick()
                self._stopper.announce()
                self._check()
            except BaseException as reason:  # whatever it is, the main thread is to raise it
                self._reason = reason
                self._stopper.at_once = True
                # a flag alone wakes no thread that waits for a lock
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    def _check(self) -> None:
        if self._stopper.overdue:
            raise KeyboardInterrupt(self._stopper.reason)
        if self.rests:
            self._progressed_at = time.monotonic()
        elif time.monotonic() - self._progressed_at > self._stall_timeout_s:
            raise ClusterError(
                f"no block ended in {self._stall_timeout_s:.0f} s; stopped, what is committed is kept",
                hint="check that there are nodes for the plan shown above; --set cluster.stall_timeout_s=… waits longer",
            )
