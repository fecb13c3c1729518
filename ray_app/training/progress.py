"""The progress line of a training (`TrainingProgress`)."""

from collections.abc import Mapping
from typing import Any, TextIO

from ray_app.cluster.progress import Progress
from ray_app.reports.format import duration

_SHOWN = (("loss", "loss {:.4f}"), ("rate", "rate {:.2e}"), ("images_per_s", "{:,.1f} img/s"))


class TrainingProgress(Progress):
    """Rewritten in place on a terminal, one log line per minute elsewhere; the time left counts
    from this session's first steps.
    """

    def __init__(self, total: int, *, stream: TextIO | None = None, **given: Any) -> None:
        super().__init__(total, name="train", stream=stream, **given)
        self._line: Mapping[str, Any] = {}

    def show(self, line: Mapping[str, Any]) -> None:
        """Show the metrics of a step, and under `judged` the last validation in a few words."""
        self._done, self._line = line["step"] + 1, line
        self.advance(0, 0)

    def close(self) -> None:
        """Draw a last time and leave the line, if there were steps."""
        if self._recent:
            super().close()

    def line(self, now: float) -> str:
        """The progress line as it stands."""
        if not self._recent:
            return f"{self._name}  starting workers"
        share = f" ({self._done / self._total:.0%})" if self._total else ""
        figures = [text.format(self._line[key]) for key, text in _SHOWN if key in self._line]
        rate = self._rate(now)
        left = [f"ETA {duration((self._total - self._done) / rate)}"] if rate else []
        return "  ".join(
            [
                f"{self._name}  step {self._done:,}/{self._total:,}{share}",
                *figures,
                *left,
                *filter(None, [self._line.get("judged", "")]),
            ]
        )
