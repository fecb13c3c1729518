"""Repeat requests that may succeed later: `RetryPolicy`, `Retrier`, and `Gate`, which limits how
many requests run at once.

A request with retries reads from top to bottom:

    for attempt in retrier.attempts():
        with attempt as timeout_s:
            data = place.read(path, timeout_s=timeout_s)
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field

from pydantic import Field

from ray_app.config import Frozen
from ray_app.storage import errors


class RetryPolicy(Frozen):
    """How patient one request is: exponential backoff with full jitter, so that a thousand workers
    do not come back together.

    `attempts`: requests at most. `base_s`, `cap_s`: the first and the longest pause, in seconds.
    `deadline_s`: for one file, all its attempts and pauses.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ ("full
    jitter").
    """

    attempts: int = Field(default=6, ge=1)
    base_s: float = Field(default=0.25, gt=0)
    cap_s: float = Field(default=20.0, gt=0)
    deadline_s: float = Field(default=120.0, gt=0)

    def pauses(self, chance: Callable[[], float]) -> Iterator[float]:
        """Yield the seconds to wait after each failed attempt except the last.

        Args:
            chance: Returns random numbers in [0, 1).
        """
        for attempt in range(self.attempts - 1):
            yield chance() * min(self.cap_s, self.base_s * 2.0**attempt)


class CancelledError(Exception):
    """The result of this request is not needed any more."""


class Gate:
    """Limit how many requests run at once: half as many after a throttle, one more after a full
    round of answers, never more than `width`.

    `entered` counts the requests, including repeated ones.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.entered = 0
        self._open = float(width)
        self._inside = 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._inside < int(self._open))
            self._inside += 1
            self.entered += 1

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._changed:
            self._inside -= 1
            if error is None:
                self._open = min(self.width, self._open + 1 / self._open)
            elif errors.is_throttle(error):
                self._open = max(1.0, self._open / 2)
            self._changed.notify_all()


class Attempt:
    """One attempt at a request. The block inside receives the seconds that are left.

    An exception of the block ends the attempt and not the loop: `Retrier.attempts` either makes
    another attempt or raises the exception.
    """

    __slots__ = ("_clock", "_deadline", "_gate", "error")

    def __init__(self, deadline: float, clock: Callable[[], float], gate: Gate | None) -> None:
        self.error: Exception | None = None
        self._deadline, self._clock, self._gate = deadline, clock, gate

    def __enter__(self) -> float:
        if self._gate is not None:
            self._gate.__enter__()
        return self._deadline - self._clock()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if self._gate is not None:
            self._gate.__exit__(kind, error, trace)
        if not isinstance(error, Exception):
            return False
        self.error = error
        return True


@dataclass
class Retrier:
    """Make attempts until one succeeds, fails permanently, or the policy's patience is over. Count
    throttled and repeated requests. Threads may share a retrier.
    """

    policy: RetryPolicy
    _: KW_ONLY
    sleep: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    throttled: int = 0
    retried: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def attempts(
        self, cancelled: threading.Event | None = None, gate: Gate | None = None
    ) -> Iterator[Attempt]:
        """Yield attempts until the block of one succeeds.

        Args:
            cancelled: Once set, no further attempt is made.
            gate: Limits the attempts that run at once.

        Raises:
            Exception: The exception of the last attempt, as it is.
            CancelledError: `cancelled` was set during a pause.
        """
        deadline = self.clock() + self.policy.deadline_s
        pauses: Iterator[float] | None = None
        while True:
            attempt = Attempt(deadline, self.clock, gate)
            yield attempt
            # The attempt keeps no exception, whose traceback would keep the attempt.
            error, attempt.error = attempt.error, None
            if error is None:
                return
            pauses = pauses or self.policy.pauses(self.chance)
            pause = self._pause_after(error, pauses)
            if pause is None or self.clock() + pause >= deadline:
                raise error
            with self._counting:
                self.retried += 1
            del error
            self._wait(pause, cancelled)

    def _pause_after(self, error: Exception, pauses: Iterator[float]) -> float | None:
        if errors.is_throttle(error):
            with self._counting:
                self.throttled += 1
        return next(pauses, None) if errors.is_transient(error) else None

    def _wait(self, pause: float, cancelled: threading.Event | None) -> None:
        # A thread asleep for 20 s would hold up the end of an interrupted process; only an injected
        # clock sleeps otherwise.
        if cancelled is not None and self.sleep is time.sleep:
            cancelled.wait(pause)
        else:
            self.sleep(pause)
        if cancelled is not None and cancelled.is_set():
            raise CancelledError
