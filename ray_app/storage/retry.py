"""When to ask a store again, and how many may ask at once. Knows clocks and chance; knows nothing of what is asked."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, TypeVar

from pydantic import Field

from ray_app.config import Frozen
from ray_app.storage import errors

T = TypeVar("T")
Call = Callable[[Callable[[float], Any]], Any]  # `Retrier.call` for those who only pass it on: asks with the seconds left, and again


class RetryPolicy(Frozen):
    """How patient one request is: exponential backoff with full jitter, so that a thousand workers do not come back together.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ ("full jitter").
    """

    attempts: int = Field(default=6, ge=1)
    base_s: float = Field(default=0.25, gt=0)
    cap_s: float = Field(default=20.0, gt=0)
    deadline_s: float = Field(default=120.0, gt=0)  # for one member, all its attempts and pauses

    def pauses(self, chance: Callable[[], float]) -> Iterator[float]:
        """Seconds to wait after each failed attempt but the last; `chance` gives numbers in [0, 1)."""
        for attempt in range(self.attempts - 1):
            yield chance() * min(self.cap_s, self.base_s * 2.0**attempt)


class CancelledError(Exception):
    """Nobody waits for this request any more."""


@dataclass
class Retrier:
    """Asks until it is answered, refused for good, or out of patience. Counts what it met; safe to share between threads."""

    policy: RetryPolicy
    _: KW_ONLY
    sleep: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    throttled: int = 0
    retried: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def call(
        self, ask: Callable[[float], T], cancelled: threading.Event | None = None, gate: AbstractContextManager[None] | None = None
    ) -> T:
        """The answer of `ask(seconds left)`, each time within `gate`. Raises the last exception as it is, or CancelledError."""
        deadline = self.clock() + self.policy.deadline_s
        pauses: Iterator[float] | None = None
        while True:
            try:
                with gate or nullcontext():
                    return ask(deadline - self.clock())
            except Exception as error:
                pauses = pauses or self.policy.pauses(self.chance)
                pause = self._pause_after(error, pauses)
                if pause is None or self.clock() + pause >= deadline:
                    raise
                with self._counting:
                    self.retried += 1
            self._wait(pause, cancelled)

    def _pause_after(self, error: Exception, pauses: Iterator[float]) -> float | None:
        if errors.is_throttle(error):
            with self._counting:
                self.throttled += 1
        return next(pauses, None) if errors.is_transient(error) else None

    def _wait(self, pause: float, cancelled: threading.Event | None) -> None:
        # A thread asleep for 20 s would hold up the end of an interrupted process; only an injected clock sleeps otherwise.
        if cancelled is not None and self.sleep is time.sleep:
            cancelled.wait(pause)
        else:
            self.sleep(pause)
        if cancelled is not None and cancelled.is_set():
            raise CancelledError


class Gate:
    """How many requests run at once: half as many after a throttle, one more after a full round of answers, never more than `width`.

    `entered` counts the requests, those made again among them.
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

    @property
    def open(self) -> int:
        """How many may be inside now."""
        return int(self._open)
