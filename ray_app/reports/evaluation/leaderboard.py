"""Format the systems of several evaluations as a table for the terminal (`leaderboard_lines`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_app.metrics.values import MetricValue
from ray_app.reports import format as wording
from ray_app.reports import text


@dataclass(frozen=True)
class LeaderboardEntry:
    """One system of one evaluation, as a line of the leaderboard.

    Attributes:
        evaluation: The directory of the evaluation, without secrets.
        system: Name of the detector or the ensemble.
        title: Title of the detector or the ensemble.
        metric: Value and interval of the metric that orders the table, such as the AUC.
        n: Number of images that the system scored.
        in_training: Number of generators of these images that the system was trained on.
        unseen: Number of generators of these images that the system was not trained on.
        generators: Number of all generators of these images.
    """

    evaluation: str
    system: str
    title: str
    metric: MetricValue
    n: int
    in_training: int
    unseen: int
    generators: int

    def to_dict(self) -> dict[str, Any]:
        """Return the values of this line by column, as JSON-compatible values."""
        return {
            "evaluation": self.evaluation,
            "system": self.system,
            "title": self.title,
            **self.metric.to_dict(),
            "n": self.n,
            "in_training": self.in_training,
            "unseen": self.unseen,
            "generators": self.generators,
        }


def leaderboard_lines(entries: Sequence[LeaderboardEntry], metric: str, width: int) -> list[str]:
    """Return the table of `touchstone runs leaderboard`, and sentences on how to read it.

    Args:
        entries: The systems (detectors and ensembles) in the order of the table.
        metric: Key of the metric that orders the table.
        width: Maximum width of the table in columns.
    """
    headers = [
        "system",
        "evaluation",
        wording.name_metric(metric),
        "95 % interval",
        "images",
        "generators in training",
    ]
    rows = [
        [
            wording.escape_invisible(entry.title),
            wording.escape_invisible(entry.evaluation),
            wording.format_metric(metric, entry.metric.value),
            wording.format_metric_interval(metric, entry.metric) or wording.NONE,
            f"{entry.n:,}",
            _count_generators_in_training(entry),
        ]
        for entry in entries
    ]
    undefined = {entry.metric.why: None for entry in entries if entry.metric.value is None}
    return [
        *text.table(headers, rows, width, right={2, 3, 4}),
        "",
        *(f"{wording.NONE}: {wording.escape_invisible(reason)}" for reason in undefined if reason),
        "A metric of images of generators that were in training says little about others.",
        "Overlapping intervals do not show which system is better: evaluate one run with both.",
    ]


def _count_generators_in_training(entry: LeaderboardEntry) -> str:
    if not entry.in_training and not entry.unseen:
        return "not known"
    unknown = entry.generators - entry.in_training - entry.unseen
    unknown_text = f", {unknown:,} not known" if unknown else ""
    return f"{entry.in_training:,} of {entry.generators:,}{unknown_text}"
