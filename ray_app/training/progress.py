"""One line that says how far a training is: step, loss, rate, images per second, what is left. Fed from the board."""

from typing import Any, TextIO

from ray_app.reports.wording import duration
from ray_app.scoring.progress import Progress
from ray_app.training.board import Told

_SHOWN = (("loss", "loss {:.4f}"), ("rate", "rate {:.2e}"), ("images_per_s", "{:,.1f} img/s"))


class TrainingProgress(Progress):
    """Rewritten in place on a terminal, one log line per 30 s elsewhere; the time left counts from this session's first steps."""

    def __init__(self, total: int, *, stream: TextIO | None = None, **given: Any) -> None:
        super().__init__(total, name="train", stream=stream, **given)
        self._told = Told({})
        self._judged = ""

    def judged(self, text: str) -> None:
        """What is known of the last validation, in a few words."""
        self._judged = text

    def show(self, told: Told) -> None:
        """What the board says now."""
        if told.steps > self._told.steps:
            self._done = told.figures.get("step", -1) + 1
            if self._first_at is None:
                self._first_at, self._first_batch, self._before = self._clock(), 0, self._done
            self._told = told
            self.advance(0, 0)
        self.redraw()

    def line(self, now: float) -> str:
        """The progress line as it stands."""
        if self._first_at is None:
            return f"{self._name}  starting workers"
        share = f" ({self._done / self._total:.0%})" if self._total else ""
        figures = [text.format(self._told.figures[key]) for key, text in _SHOWN if key in self._told.figures]
        rate = self._rate(now)
        left = [f"ETA {duration((self._total - self._done) / rate)}"] if rate else []
        return "  ".join([f"{self._name}  step {self._done:,}/{self._total:,}{share}", *figures, *left, *filter(None, [self._judged])])
