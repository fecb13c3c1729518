"""One line of progress (`Progress`): rewritten in place on a terminal, one log line per 30 s elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

LOG_EVERY_S = 30.0
DRAW_EVERY_S = 0.2


class Progress:
    """Counts members against a total. The rate counts from the first result, so that start-up does not spoil the ETA."""

    def __init__(
        self, total: int, *, done: int = 0, name: str = "score", stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._name, self._clock = total, name, clock
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._done, self._before = done, done
        self._bad = self._first_batch = 0
        self._first_at: float | None = None
        self._drawn_at = clock()

    def advance(self, members: int, bad: int) -> None:
        """Add finished members, some of them without a score."""
        now = self._clock()
        self._done, self._bad = self._done + members, self._bad + bad
        if self._first_at is None:
            self._first_at, self._first_batch = now, members
        if now - self._drawn_at >= (DRAW_EVERY_S if self._terminal else LOG_EVERY_S):
            self._draw(now)

    def say(self, text: str) -> None:
        """A remark on its own line, above the progress line."""
        self._stream.write(f"\r\x1b[K{text}\n" if self._terminal else f"{text}\n")
        self._stream.flush()

    def redraw(self) -> None:
        """Bring the line up to date although nothing finished, so that a long first block does not look like a hang."""
        now = self._clock()
        if now - self._drawn_at >= (1.0 if self._terminal else LOG_EVERY_S):
            self._draw(now)

    def close(self) -> None:
        """Draw a last time and leave the line."""
        self._draw(self._clock())
        if self._terminal:
            self._stream.write("\n")
        self._stream.flush()

    def line(self, now: float) -> str:
        """The progress line as it stands."""
        share = f" ({self._done / self._total:.0%})" if self._total else ""
        parts = [f"{self._name}  {self._done:,}/{self._total:,}{share}"]
        rate = self._rate(now)
        if rate:
            parts += [f"{rate:,.1f} img/s", f"ETA {_duration((self._total - self._done) / rate)}"]
        return "  ".join([*parts, f"bad {self._bad:,}"])

    def _rate(self, now: float) -> float | None:
        counted = self._done - self._before - self._first_batch
        if self._first_at is None or counted <= 0 or now <= self._first_at:
            return None
        return counted / (now - self._first_at)

    def _draw(self, now: float) -> None:
        self._drawn_at = now
        self._stream.write(f"\r\x1b[K{self.line(now)}" if self._terminal else f"{self.line(now)}\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
