"""Systems of several evaluations as a table for the terminal (`leaderboard_lines`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_app.metrics.values import MetricValue
from ray_app.reports import format as wording
from ray_app.reports import text


@dataclass(frozen=True)
class LeaderboardEntry:
    """One system of one evaluation.

    Attributes:
        evaluation: The directory of the evaluation, without secrets.
        system: Name of the detector or the ensemble.
        title: Its title.
        metric: The metric that orders the table.
        n: Images that it scored.
        in_training: Generators of these images that it was trained on.
        unseen: Generators that it was not trained on.
        generators: All generators of these images.
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
        """Return the columns of the table by name."""
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


def leaderboard_lines(entries: Sequence[LeaderboardEntry], figure: str, width: int) -> list[str]:
    """Return the table, at most `width` columns wide, and how to read it."""
    heads = [
        "system",
        "evaluation",
        wording.name_metric(figure),
        "95 % interval",
        "images",
        "generators in training",
    ]
    rows = [
        [
            wording.visible(one.title),
            wording.visible(one.evaluation),
            wording.format_metric(figure, one.metric.value),
            wording.format_metric_interval(figure, one.metric) or wording.NONE,
            f"{one.n:,}",
            _seen(one),
        ]
        for one in entries
    ]
    undefined = {one.metric.why: None for one in entries if one.metric.value is None}
    return [
        *text.table(heads, rows, width, right={2, 3, 4}),
        "",
        *(f"{wording.NONE}: {wording.visible(why)}" for why in undefined if why),
        "A metric of images of generators that were in training says little about others.",
        "Overlapping intervals do not show which system is better: evaluate one run with both.",
    ]


def _seen(entry: LeaderboardEntry) -> str:
    if not entry.in_training and not entry.unseen:
        return "not known"
    unknown = entry.generators - entry.in_training - entry.unseen
    rest = f", {unknown:,} not known" if unknown else ""
    return f"{entry.in_training:,} of {entry.generators:,}{rest}"
