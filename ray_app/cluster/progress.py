"""One line of progress (`Progress`): rewritten in place on a terminal, one log line per minute
elsewhere.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from ray_app.reports.format import duration

LOG_EVERY_S = 60.0
DRAW_EVERY_S = 0.2
# the rate, and so the time that is left, follow what was done lately: nodes come and go
RECENT_S = 300.0
_NOTE_EVERY_S = 5.0


class Progress:
    """Counts members against a total. The rate is that of the last minutes, from the first result
    on, so that start-up does not spoil it.

    `note` is asked for each log line what it should say besides.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        name: str = "score",
        note: Callable[[], str] | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._name, self._note, self._clock = total, name, note, clock
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._done, self._bad = done, 0
        self._goes_on = False
        # when so many were done: the first result, then now and then
        self._recent: deque[tuple[float, int]] = deque()
        self._drawn_at = clock()

    def advance(self, members: int, bad: int) -> None:
        """Add finished members, some of them without a score."""
        now = self._clock()
        self._done, self._bad = self._done + members, self._bad + bad
        self._remember(now)
        if now - self._drawn_at >= (DRAW_EVERY_S if self._terminal else LOG_EVERY_S):
            self._draw(now, self._note)

    def grow(self, members: int, *, goes_on: bool) -> None:
        """Add members to the total; while `goes_on` more may come, so that the time left is not
        known.
        """
        self._total, self._goes_on = self._total + members, goes_on

    def say(self, text: str) -> None:
        """A remark on its own line, above the progress line."""
        self._stream.write(f"\r\x1b[K{text}\n" if self._terminal else f"{text}\n")
        self._stream.flush()

    def redraw(self) -> None:
        """Bring the line up to date although nothing finished, so that a long first block does not
        look like a hang.
        """
        now = self._clock()
        if now - self._drawn_at >= (1.0 if self._terminal else LOG_EVERY_S):
            self._draw(now, self._note)

    def close(self) -> None:
        """Draw a last time and leave the line."""
        self._draw(self._clock(), None)
        if self._terminal:
            self._stream.write("\n")
        self._stream.flush()

    def line(self, now: float) -> str:
        """The progress line as it stands."""
        share = (
            ", listing goes on"
            if self._goes_on
            else f" ({self._done / self._total:.0%})"
            if self._total
            else ""
        )
        parts = [f"{self._name}  {self._done:,}/{self._total:,}{share}"]
        rate = self._rate(now)
        if rate:
            parts += [
                f"{rate:,.1f} img/s",
                *([] if self._goes_on else [f"ETA {duration((self._total - self._done) / rate)}"]),
            ]
        return "  ".join([*parts, f"bad {self._bad:,}"])

    def _remember(self, now: float) -> None:
        """Keep how far it is, a few times a minute; of what is older than `RECENT_S` the last
        alone.
        """
        if not self._recent or now - self._recent[-1][0] >= _NOTE_EVERY_S:
            self._recent.append((now, self._done))
        while len(self._recent) > 1 and now - self._recent[1][0] >= RECENT_S:
            self._recent.popleft()

    def _rate(self, now: float) -> float | None:
        if not self._recent:
            return None
        since, before = self._recent[0]
        return (
            (self._done - before) / (now - since) if self._done > before and now > since else None
        )

    def _draw(self, now: float, note: Callable[[], str] | None) -> None:
        self._drawn_at = now
        line = self.line(now)
        if not self._terminal and note is not None:
            line = f"{line}  {note()}"
        self._stream.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        self._stream.flush()
