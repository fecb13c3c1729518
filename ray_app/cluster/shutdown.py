"""Stop a scoring run gracefully: start no new work, commit running work, then exit.

`ShutdownController` collects the reasons to stop: signals, limits of hours and cost, and nodes that
are taken away. `StallWatchdog` checks the controller in a thread, and also detects a stall.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType

from ray_app.errors import ClusterError

# Clouds give 30 to 120 s between the notice and the end, Kubernetes 30 s.
SIGNAL_GRACE_S = 25.0
LIMIT_GRACE_S = 60.0
# Ray kills a submitted job this long after `ray job stop`, unless RAY_JOB_STOP_WAIT_TIME_S is set
# for the job or on the head.
JOB_STOP_WAIT_S = 3.0
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray passes a submitted job its config in it.
# The part of that time for noticing the end of the grace time, writing the session's state, and
# returning nodes and lease.
JOB_END_S = 3.0


def job_stop_wait_s() -> float | None:
    """Return the seconds between the signal of `ray job stop` and the kill by Ray.

    Returns:
        None if this process is not a submitted job.
    """
    if _JOB_VARIABLE not in os.environ:
        return None
    try:
        return float(int(os.environ["RAY_JOB_STOP_WAIT_TIME_S"]))
    except (KeyError, ValueError):
        return JOB_STOP_WAIT_S


def signal_grace_s(configured_s: float | None = None) -> float:
    """Return how many seconds running work gets to finish after a signal.

    `configured_s` is the setting `cluster.grace_s`. If it is None, the time is `SIGNAL_GRACE_S`. In
    a submitted Ray job, the time is shortened, if necessary, to end before Ray kills the job.
    """
    grace_s = SIGNAL_GRACE_S if configured_s is None else configured_s
    wait_s = job_stop_wait_s()
    return grace_s if wait_s is None else max(0.0, min(grace_s, wait_s - JOB_END_S))


class ShutdownController:
    """Collect the reasons to stop a scoring run, and measure how much time running work has left.

    A reason is a signal, a limit of hours or cost, or that this machine will be taken away. Other
    nodes that will be taken away get no new work. The scoring run reads the attributes and acts on
    them. The controller itself only raises KeyboardInterrupt at a second signal.

    Args:
        say: A function that prints one line.
        grace_s: Seconds that running work gets to finish, whatever the reason to stop. If it is
            None, the caller of `request_stop` decides, and signals give `SIGNAL_GRACE_S`. A signal
            to a submitted Ray job may leave less time (see `signal_grace_s`).
        clock: A function that returns the time in seconds.

    Attributes:
        reason: The first reason to stop, or None.
        at_once: Whether the next signal stops the run immediately.
        draining_nodes: Ids of the nodes that get no new work.
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
        self.draining_nodes: frozenset[str] = frozenset()
        self._announced: tuple[str | None, frozenset[str]] = (None, frozenset())
        self._signals = 0
        self._killed_after_s: float | None = None

    def request_stop(self, reason: str, grace_s: float) -> None:
        """Request that the run starts no new work, and set a deadline for running work.

        If this method is called several times, the first reason and the earliest deadline apply.

        Args:
            reason: The reason to stop, as text for the user.
            grace_s: Seconds from now to the deadline. If the controller was created with `grace_s`,
                that value is used instead.
        """
        self._end_in(grace_s if self._grace_s is None else self._grace_s, reason)

    def _end_in(self, seconds: float, reason: str) -> None:
        self._until = min(self._until, self._clock() + seconds)
        self.reason = self.reason or reason

    def avoid_nodes(self, nodes: Iterable[str]) -> None:
        """Request that no new work starts on the nodes with these ids."""
        self.draining_nodes |= frozenset(nodes)

    @property
    def is_overdue(self) -> bool:
        """Whether a stop was requested, and the time for running work to finish is over."""
        return self._clock() >= self._until

    def announce(self) -> None:
        """Print a new reason to stop, or newly draining nodes, if there are any.

        Call this method every second, but never from a signal handler.
        """
        new = (self.reason, self.draining_nodes)
        if new == self._announced:
            return
        if self.reason != self._announced[0]:
            remaining_s = max(0.0, self._until - self._clock())
            kill = (
                f" (Ray kills a job {wait_s:g} s after its stop: RAY_JOB_STOP_WAIT_TIME_S)"
                if (wait_s := self._killed_after_s)
                else ""
            )
            self._say(
                f"stopping: {self.reason}; running work has {remaining_s:.0f} s to be committed{kill}; a second signal stops at once"
            )
        if self.draining_nodes != self._announced[1]:
            self._say(
                f"{len(self.draining_nodes)} node{'s' * (len(self.draining_nodes) > 1)} will be taken away and get no new work"
            )
        self._announced = new

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT for the `with` block.

        The first signal requests a stop, and the next one raises KeyboardInterrupt.
        """
        previous = {}
        if threading.current_thread() is threading.main_thread():
            previous = {
                signum: signal.signal(signum, self._on_signal)
                for signum in (signal.SIGTERM, signal.SIGINT)
            }
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)
            # A run that had no running work left may end before the watchdog's next second.
            self.announce()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self.at_once or self._signals > 1:
            raise KeyboardInterrupt(self.reason or signal.Signals(signum).name)
        self._killed_after_s = job_stop_wait_s()
        self._end_in(signal_grace_s(self._grace_s), signal.Signals(signum).name)


class StallWatchdog:
    """Interrupt a `with` block if its time to stop is over or it makes no progress.

    The `with` block has to run in the main thread, because no other thread can be interrupted. A
    second thread calls `tick` once a second, and may interrupt the `with` block by an exception:

    - the exception of `tick`, if it raises one;
    - KeyboardInterrupt, if `stopper.is_overdue`;
    - ClusterError, if no block of images is finished in `stall_timeout_s`.

    Args:
        stall_timeout_s: Maximum seconds without a finished block of images.
        stopper: The controller that collects the reasons to stop.
        tick: A function that is called each second in the second thread.

    Attributes:
        is_idle: Whether all blocks of images are finished. `tick` sets it. While it is True, the
            stall timeout does not run.
    """

    def __init__(
        self, stall_timeout_s: float, stopper: ShutdownController, tick: Callable[[], None]
    ) -> None:
        self._stall_timeout_s, self._stopper, self._tick = stall_timeout_s, stopper, tick
        self._progressed_at = time.monotonic()
        self.is_idle = False
        self._over = threading.Event()
        self._reason: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def progressed(self) -> None:
        """Note that a block of images is finished, which restarts the stall timeout."""
        self._progressed_at, self.is_idle = time.monotonic(), False

    def __enter__(self) -> "StallWatchdog":
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
            except BaseException as reason:  # The main thread has to raise it, whatever it is.
                self._reason = reason
                self._stopper.at_once = True
                # A flag alone would not wake a thread that waits for a lock.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    def _check(self) -> None:
        if self._stopper.is_overdue:
            raise KeyboardInterrupt(self._stopper.reason)
        if self.is_idle:
            self._progressed_at = time.monotonic()
        elif time.monotonic() - self._progressed_at > self._stall_timeout_s:
            raise make_stall_error(self._stall_timeout_s)


def make_stall_error(stall_timeout_s: float) -> ClusterError:
    """Return the error for a command whose workers make no progress.

    Args:
        stall_timeout_s: The time in seconds in which no worker finished anything.

    Returns:
        The error, for the caller to raise.
    """
    return ClusterError(
        f"the workers finished nothing in {stall_timeout_s:.0f} s; stopped, committed results are kept",
        hint="check that the cluster has nodes for their processes, or wait longer with --set cluster.stall_timeout_s=…",
    )
