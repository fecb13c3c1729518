"""Retry requests that may succeed later (`RetryPolicy`, `Retrier`).

`AdaptiveLimiter` limits how many requests run at the same time. A request with retries reads from
top to bottom:

    for attempt in retrier.attempts():
        with attempt as timeout_s:
            data = backend.read(path, timeout_s=timeout_s)
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
    """The settings with which a request is retried: exponential backoff with full jitter.

    Each pause is a random time between 0 and a limit, which doubles from pause to pause. So a
    thousand workers do not retry at the same time. Source:
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ ("full jitter").
    """

    attempts: int = Field(default=6, ge=1, description="maximum number of requests for one file")
    base_s: float = Field(default=0.25, gt=0, description="maximum of the first pause in seconds")
    cap_s: float = Field(default=20.0, gt=0, description="maximum of any pause in seconds")
    deadline_s: float = Field(
        default=120.0,
        gt=0,
        description="maximum time for one file in seconds, for all attempts and pauses",
    )

    def pauses(self, chance: Callable[[], float]) -> Iterator[float]:
        """Yield the seconds to wait after each failed attempt except the last.

        Args:
            chance: A function that returns random numbers in [0, 1).
        """
        for attempt in range(self.attempts - 1):
            yield chance() * min(self.cap_s, self.base_s * 2.0**attempt)


class CancelledError(Exception):
    """The error that ends a request whose caller has set its `cancelled` event."""


class AdaptiveLimiter:
    """Limits how many requests run at the same time. Each request runs in a `with` block.

    The limit is halved when a store requests a lower rate. With a limit of N, it is raised by one
    after N successful requests, up to `width`.

    Args:
        width: The maximum of the limit.

    Attributes:
        entered: The total number of requests so far, including repeated requests.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.entered = 0
        self._limit = float(width)
        self._running = 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._running < int(self._limit))
            self._running += 1
            self.entered += 1

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._changed:
            self._running -= 1
            if error is None:
                self._limit = min(self.width, self._limit + 1 / self._limit)
            elif errors.is_throttle(error):
                self._limit = max(1.0, self._limit / 2)
            self._changed.notify_all()


class Attempt:
    """One attempt at a request. `with attempt as timeout_s` gives the seconds until the deadline.

    An exception in the block ends the attempt, but is not raised from it. `Retrier.attempts` then
    yields another attempt, or raises the exception.

    Args:
        deadline: The time at which all attempts must end, as `clock` returns it.
        clock: A function that returns the time in seconds.
        gate: Limits concurrent requests. None is no limit.
    """

    __slots__ = ("_clock", "_deadline", "_gate", "error")

    def __init__(
        self, deadline: float, clock: Callable[[], float], gate: AdaptiveLimiter | None
    ) -> None:
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
    """Repeats a request until it succeeds, fails permanently, or exhausts its retry policy.

    Use `attempts` in a `for` loop. Threads may share a retrier.

    Attributes:
        policy: The number of attempts, the pauses, and the deadline.
        sleep: A function that waits for a number of seconds.
        clock: A function that returns the time in seconds.
        chance: A function that returns random numbers in [0, 1), for the jitter of pauses.
        throttled: The number of failed attempts in which the store asked for fewer requests.
        retried: The number of repeated requests.
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
        self, cancelled: threading.Event | None = None, gate: AdaptiveLimiter | None = None
    ) -> Iterator[Attempt]:
        """Yield attempts until the `with` block of one succeeds.

        Args:
            cancelled: An event. No further attempt is made after it is set.
            gate: Limits the attempts that run at the same time.

        Raises:
            Exception: The exception of the last attempt, unchanged.
            CancelledError: `cancelled` was set during a pause.
        """
        deadline = self.clock() + self.policy.deadline_s
        pauses: Iterator[float] | None = None
        while True:
            attempt = Attempt(deadline, self.clock, gate)
            yield attempt
            # Remove the exception from the attempt, since its traceback refers to the attempt.
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
        # Wait on the event, since a thread that sleeps for 20 s would delay the exit of an
        # interrupted process. An injected clock sleeps by itself.
        if cancelled is not None and self.sleep is time.sleep:
            cancelled.wait(pause)
        else:
            self.sleep(pause)
        if cancelled is not None and cancelled.is_set():
            raise CancelledError
