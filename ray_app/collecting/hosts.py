"""How much a host is asked, and when: at once, in a row, and after it has asked to wait. Knows clocks; speaks no HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from ray_app.collecting.config import Politeness
from ray_app.collecting.statuses import Failed
from ray_app.errors import Status

# Between the starts of two requests to a host that throttles: doubled each time, from the first to the last of these.
_SHORT_S, _LONGEST_PAUSE_S = 0.05, 10.0


def seconds_of(retry_after: str | None, now: datetime) -> float | None:
    """What a Retry-After asks for, in seconds or as an HTTP date (RFC 9110 §10.2.3); None where it says nothing that is understood."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - now).total_seconds())


class Visit:
    """A place at a host; left early, it is free for the next."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places, self._inside = places, True

    def leave(self) -> None:
        """Nothing happens the second time."""
        if self._inside:
            self._inside = False
            self._places.release()


class Host:
    """One host, as long as this worker lives. For one event loop."""

    def __init__(self, name: str, rules: Politeness, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._rules, self._clock = rules, clock
        self._places = asyncio.Semaphore(rules.per_host)
        self._starting = asyncio.Lock()
        self._not_before = self._next_start = 0.0
        self._pause_s = rules.pause_s
        self._silent = 0
        self._refused: tuple[Status, str] | None = None

    @asynccontextmanager
    async def visit(self) -> AsyncIterator[Visit]:
        """Inside, one request may be made. Raises Failed, without any request, once this host is given up."""
        await self._places.acquire()
        place = Visit(self._places)
        try:
            async with self._starting:
                while self._refused is None and (wait := max(self._not_before, self._next_start) - self._clock()) > 0:
                    await asyncio.sleep(wait)
                if self._refused is not None:
                    raise Failed(*self._refused, asked=False)
                self._next_start = self._clock() + self._pause_s
            yield place
        finally:
            place.leave()

    def answered(self) -> None:
        """It said something of use: silence is forgotten, and pauses that it had asked for grow shorter again."""
        self._silent = 0
        self._pause_s = max(self._rules.pause_s, 0.8 * self._pause_s if self._pause_s > _SHORT_S else 0.0)

    def silent(self) -> None:
        """One more url ended without any answer from this host."""
        self._silent += 1
        if self._silent >= self._rules.give_up_after and self._refused is None:
            told = f"not asked: {self.name} gave no answer to {self._silent} urls in a row"
            self._refused = (Status.SOURCE_TIMEOUT, told)

    def throttled(self, wait_s: float | None) -> None:
        """It has asked to slow down, perhaps to wait for so long. Where the rules do not bear that, it is asked nothing more."""
        self._silent = 0
        self._pause_s = max(self._rules.pause_s, min(_LONGEST_PAUSE_S, max(2 * self._pause_s, _SHORT_S)))
        if wait_s is not None and wait_s > self._rules.longest_wait_s:
            told = f"{self.name} asks to wait {wait_s:.0f} s, and is asked nothing more in this session"
            self._refused = (Status.SOURCE_THROTTLED, told)
            return
        self._not_before = max(self._not_before, self._clock() + (wait_s or 0.0))
