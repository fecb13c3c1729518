"""Show the progress of a training on the terminal: `TrainingProgress`."""

from collections.abc import Mapping
from typing import Any, TextIO

from ray_app.cluster.progress import Progress
from ray_app.reports.format import duration

_METRICS = (("loss", "loss {:.4f}"), ("rate", "rate {:.2e}"), ("images_per_s", "{:,.1f} img/s"))


class TrainingProgress(Progress):
    """A progress line that is rewritten in place on a terminal, otherwise one log line per minute.

    The remaining time is estimated from this session's steps.

    Args:
        total: Number of all steps.
        stream: Where the line is written. None for the standard error stream.
        **kwargs: Further arguments of `Progress`.
    """

    def __init__(self, total: int, *, stream: TextIO | None = None, **kwargs: Any) -> None:
        super().__init__(total, name="train", stream=stream, **kwargs)
        self._line: Mapping[str, Any] = {}

    def show(self, line: Mapping[str, Any]) -> None:
        """Show the metrics of a training step.

        Args:
            line: The metrics, such as `step` and `loss`. The key `judged` has the result of the
                last validation as text.
        """
        self._done, self._line = line["step"] + 1, line
        self.advance(0, 0)

    def close(self) -> None:
        """Draw the progress line a last time and end it, if a step was shown."""
        if self._recent:
            super().close()

    def line(self, now: float) -> str:
        """Return the current progress line."""
        if not self._recent:
            return f"{self._name}  starting workers"
        percentage = f" ({self._done / self._total:.0%})" if self._total else ""
        metrics = [text.format(self._line[key]) for key, text in _METRICS if key in self._line]
        rate = self._rate(now)
        remaining = [f"ETA {duration((self._total - self._done) / rate)}"] if rate else []
        return "  ".join(
            [
                f"{self._name}  step {self._done:,}/{self._total:,}{percentage}",
                *metrics,
                *remaining,
                *filter(None, [self._line.get("judged", "")]),
            ]
        )
