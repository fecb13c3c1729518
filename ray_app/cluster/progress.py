"""Show the progress of a command in one line (`Progress`).

On a terminal, the line is rewritten in place. On any other output, a new line is printed each minute.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from ray_app.reports.format import duration

LOG_EVERY_S = 60.0
DRAW_EVERY_S = 0.2
# The rate and the remaining time follow the work of the last minutes, because nodes come and go.
RECENT_S = 300.0
_NOTE_EVERY_S = 5.0


class Progress:
    """Count members of an archive against a total, and print the progress in one line.

    A member is one image file. The line has the count, the rate, the remaining time, and the number
    of members without a score. The rate is that of the last minutes. The time before the first call
    of `advance` does not count for the rate, because processes start in it.

    Args:
        total: The expected number of members; see also `grow`.
        done: The number of members that earlier sessions have finished.
        name: The first word of the line.
        note: A function that returns a text for the end of each log line. Terminals do not show it.
        stream: The output. None means standard error.
        clock: A function that returns the time in seconds.
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
        # Times and the number of members that were done then: the first result, then samples.
        self._recent: deque[tuple[float, int]] = deque()
        self._drawn_at = clock()

    def advance(self, members: int, bad: int) -> None:
        """Add finished members to the count.

        Args:
            members: The number of finished members.
            bad: The number of finished members without a score.
        """
        now = self._clock()
        self._done, self._bad = self._done + members, self._bad + bad
        self._remember(now)
        if now - self._drawn_at >= (DRAW_EVERY_S if self._terminal else LOG_EVERY_S):
            self._draw(now, self._note)

    def grow(self, members: int, *, goes_on: bool) -> None:
        """Add newly listed members to the total.

        Args:
            members: The number of new members.
            goes_on: Whether the listing is still in progress. The remaining time is then unknown.
        """
        self._total, self._goes_on = self._total + members, goes_on

    def say(self, text: str) -> None:
        """Print a text on its own line, above the progress line."""
        self._stream.write(f"\r\x1b[K{text}\n" if self._terminal else f"{text}\n")
        self._stream.flush()

    def redraw(self) -> None:
        """Print the progress line again if it is old, even if no member was finished since then.

        Call this regularly, because a long wait without output would look like a stall. The line is
        old after 1 s on a terminal, and after 60 s elsewhere.
        """
        now = self._clock()
        if now - self._drawn_at >= (1.0 if self._terminal else LOG_EVERY_S):
            self._draw(now, self._note)

    def close(self) -> None:
        """Print the progress line a last time, and end it with a line break."""
        self._draw(self._clock(), None)
        if self._terminal:
            self._stream.write("\n")
        self._stream.flush()

    def line(self, now: float) -> str:
        """Return the text of the progress line at a time `now` of the clock, in seconds."""
        progress = (
            ", listing continues"
            if self._goes_on
            else f" ({self._done / self._total:.0%})"
            if self._total
            else ""
        )
        parts = [f"{self._name}  {self._done:,}/{self._total:,}{progress}"]
        rate = self._rate(now)
        if rate:
            parts += [
                f"{rate:,.1f} img/s",
                *([] if self._goes_on else [f"ETA {duration((self._total - self._done) / rate)}"]),
            ]
        return "  ".join([*parts, f"no score {self._bad:,}"])

    def _remember(self, now: float) -> None:
        """Store the current count a few times a minute, and drop old counts.

        The last of the counts that are older than `RECENT_S` is kept.
        """
        if not self._recent or now - self._recent[-1][0] >= _NOTE_EVERY_S:
            self._recent.append((now, self._done))
        while len(self._recent) > 1 and now - self._recent[1][0] >= RECENT_S:
            self._recent.popleft()

    def _rate(self, now: float) -> float | None:
        if not self._recent:
            return None
        since, previous_done = self._recent[0]
        return (
            (self._done - previous_done) / (now - since)
            if self._done > previous_done and now > since
            else None
        )

    def _draw(self, now: float, note: Callable[[], str] | None) -> None:
        self._drawn_at = now
        line = self.line(now)
        if not self._terminal and note is not None:
            line = f"{line}  {note()}"
        self._stream.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        self._stream.flush()
