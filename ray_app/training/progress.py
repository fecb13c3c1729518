"""How far a training is: workers report to a `ProgressBoard`, an actor that the driver reads;
`TrainingProgress` is the terminal's line.

The board also carries the wish to stop the other way. No result depends on it.
"""

import pickle
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TextIO

from ray_app.cluster.progress import Progress
from ray_app.cluster.ray_cluster import own_node
from ray_app.errors import TouchstoneError
from ray_app.reports.format import duration

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_NODE = "ray.io/node-id"  # the label that every node has
_SHOWN = (("loss", "loss {:.4f}"), ("rate", "rate {:.2e}"), ("images_per_s", "{:,.1f} img/s"))


@dataclass(frozen=True)
class ProgressReport:
    """What the driver reads: the last figures of rank 0, how many steps this session has made, how
    often validation showed a sign of life, and what ended it all, if anything did.
    """

    figures: dict[str, Any]
    steps: int = 0
    beats: int = 0
    failure: bytes | None = None

    def error(self) -> TouchstoneError | None:
        """The error of a worker that no repetition would help."""
        return None if self.failure is None else pickle.loads(self.failure)  # noqa: S301  (made by a worker of this session)


class ProgressBoard:
    """The actor itself; `report` returns whether training is to save and stop."""

    def __init__(self) -> None:
        self._report = ProgressReport({})
        self._stop = False

    def report(self, figures: dict[str, Any], steps: int) -> bool:
        """Rank 0's figures, and how many steps it made since its last report."""
        self._report = replace(self._report, figures=figures, steps=self._report.steps + steps)
        return self._stop

    def fail(self, failure: bytes, *, only_before_steps: bool = False) -> None:
        """A worker met what would happen again; with `only_before_steps`, that is so only while no
        step of this session was made.
        """
        if self._report.failure is None and not (only_before_steps and self._report.steps):
            self._report = replace(self._report, failure=failure)

    def beat(self) -> None:
        """A checkpoint is still being judged."""
        self._report = replace(self._report, beats=self._report.beats + 1)

    def stop(self) -> None:
        """Ask the workers to save and stop."""
        self._stop = True

    def read(self) -> ProgressReport:
        """All reports so far."""
        return self._report


def start_progress_board() -> "ActorHandle[ProgressBoard]":
    """Start a board on this node. It reserves no CPU."""
    import ray

    board: ActorHandle[ProgressBoard] = ray.remote(num_cpus=0, label_selector={_NODE: own_node()})(
        ProgressBoard
    ).remote()  # type: ignore[assignment]
    return board


class TrainingProgress(Progress):
    """Rewritten in place on a terminal, one log line per minute elsewhere; the time left counts
    from this session's first steps.
    """

    def __init__(self, total: int, *, stream: TextIO | None = None, **given: Any) -> None:
        super().__init__(total, name="train", stream=stream, **given)
        self._report = ProgressReport({})
        self._judged = ""

    def judged(self, text: str) -> None:
        """What is known of the last validation, in a few words."""
        self._judged = text

    def show(self, report: ProgressReport) -> None:
        """What the board says now."""
        if report.steps > self._report.steps:
            self._done = report.figures.get("step", -1) + 1
            self._report = report
            self.advance(0, 0)
        self.redraw()

    def line(self, now: float) -> str:
        """The progress line as it stands."""
        if not self._recent:
            return f"{self._name}  starting workers"
        share = f" ({self._done / self._total:.0%})" if self._total else ""
        figures = [
            text.format(self._report.figures[key])
            for key, text in _SHOWN
            if key in self._report.figures
        ]
        rate = self._rate(now)
        left = [f"ETA {duration((self._total - self._done) / rate)}"] if rate else []
        return "  ".join(
            [
                f"{self._name}  step {self._done:,}/{self._total:,}{share}",
                *figures,
                *left,
                *filter(None, [self._judged]),
            ]
        )
