"""What figures are computed from and given as: checked arrays (`checked`), exact score histograms
(`ScoreHistogram`), one figure with its interval or its reason (`FigureFacts`).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import model_serializer

from ray_app.config import Section

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ScoreHistogram:
    """Distinct scores in ascending order, float64 (k,), and how many images have each, int64 (k,):
    none only where they were resampled.

    It loses nothing but the order of the images, and two of them merge into that of both: so a run
    of any size is read in pieces.
    """

    values: Floats
    counts: Counts

    @classmethod
    def of(cls, scores: ArrayLike) -> "ScoreHistogram":
        """That of scores (n,) in any order, maybe none. Raises ValueError for scores that are not
        finite.
        """
        numbers = np.asarray(scores, dtype=np.float64)
        _require_finite(numbers)
        return cls(*np.unique(numbers, return_counts=True))

    @classmethod
    def merged(cls, histograms: Iterable["ScoreHistogram"]) -> "ScoreHistogram":
        """That of all images of several."""
        pieces = [one for one in histograms if len(one.values)]
        if not pieces:
            return cls(np.empty(0), np.empty(0, np.int64))
        if len(pieces) == 1:
            return pieces[0]
        values = np.concatenate([one.values for one in pieces])
        order = np.argsort(values, kind="stable")  # which merges runs that are in order already
        values = values[order]
        starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        return cls(
            values[starts],
            np.add.reduceat(np.concatenate([one.counts for one in pieces])[order], starts),
        )

    @cached_property
    def passed(self) -> Counts:
        """How many images score lower than each value, and last how many there are: int64 (k + 1,)."""
        passed = np.zeros(len(self.counts) + 1, np.int64)
        np.cumsum(self.counts, out=passed[1:])
        return passed

    @property
    def n(self) -> int:
        """How many images."""
        return int(self.passed[-1])

    def below(self, thresholds: Floats) -> Counts:
        """How many images score lower than each of some thresholds (t,): int64 (t,)."""
        return self.passed[np.searchsorted(self.values, thresholds, "left")]

    def below_and_up_to(self, thresholds: Floats) -> tuple[Counts, Counts]:
        """How many images score lower than each of some thresholds (t,), and how many no higher,
        from one search: int64 (t,) each.
        """
        places = np.searchsorted(self.values, thresholds, "left")
        below = self.passed[places]
        if len(self.values):
            places += self.values[np.minimum(places, len(self.values) - 1)] == thresholds
        return below, self.passed[places]

    def above(self, threshold: float) -> int:
        """How many images score higher."""
        return self.n - int(self.passed[np.searchsorted(self.values, threshold, "right")])

    def at_or_above(self, threshold: float) -> int:
        """How many images score so high or higher."""
        return self.n - int(self.passed[np.searchsorted(self.values, threshold, "left")])

    def ranked(self, ranks: ArrayLike) -> Floats:
        """The scores that stand at some places (r,), 0 … n − 1, of all scores in ascending order."""
        return self.values[np.searchsorted(self.passed, ranks, "right") - 1]


class FigureFacts(Section):
    """One figure, as metrics give it and documents hold it. `value`: the number, finite;
    `interval`: the two ends of its 95 % interval, by `method`, empty where it has none; `n`: images
    that it is of; `why`: the reason why there is no value, or no interval.

    Read from a document it may be anything of these types: `number` and `ends` are what is usable.
    """

    value: float | None = None
    interval: tuple[float, ...] = ()
    method: str = ""
    n: int = 0
    why: str = ""

    @model_serializer
    def row(self) -> dict[str, Any]:
        """As plain JSON: all five keys, null for what there is none of."""
        interval = list(self.interval) or None
        return {
            "value": self.value,
            "interval": interval,
            "method": self.method or None,
            "n": self.n,
            "why": self.why or None,
        }

    @property
    def number(self) -> float | None:
        """The value, where it is a number."""
        return self.value if self.value is not None and math.isfinite(self.value) else None

    @property
    def ends(self) -> tuple[float, float] | None:
        """The ends of its interval, where it has one."""
        usable = (
            self.number is not None
            and len(self.interval) == 2
            and all(map(math.isfinite, self.interval))
        )
        return (self.interval[0], self.interval[1]) if usable else None

    @property
    def least(self) -> float | None:
        """The lower end of its interval, else the value."""
        return self.ends[0] if self.ends else self.number

    @property
    def bare(self) -> "FigureFacts":
        """The same without its interval, for where that would be of something else than its
        neighbours'.
        """
        return self.model_copy(update={"interval": (), "method": ""})

    @property
    def complement(self) -> "FigureFacts":
        """The share of the others."""
        if self.number is None:
            return self
        ends = (1 - self.ends[1], 1 - self.ends[0]) if self.ends else ()
        return self.model_copy(update={"value": 1 - self.number, "interval": ends})

    def with_interval(self, ends: tuple[float, float], method: str) -> "FigureFacts":
        """The same with another interval."""
        return self.model_copy(update={"interval": ends, "method": method, "why": ""})


NOT_MEASURED = FigureFacts(why="not measured")


def checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Bools]:
    """Scores as float64 (n,) and whether each is of a fake, bool (n,).

    Raises ValueError for lengths that differ, no scores at all, scores that are not finite, and
    labels other than 0 and 1.
    """
    numbers = np.asarray(scores, dtype=np.float64)
    marks: NDArray[Any] = np.asarray(labels)
    if numbers.ndim != 1 or numbers.shape != marks.shape:
        raise ValueError(
            f"scores {numbers.shape} and labels {marks.shape} must be two rows of one length"
        )
    if not len(numbers):
        raise ValueError("there are no scores")
    _require_finite(numbers)
    if not np.isin(marks, (0, 1)).all():
        raise ValueError(
            f"labels must be 0 (real) or 1 (fake), not {marks[~np.isin(marks, (0, 1))][0]!r}"
        )
    return numbers, marks.astype(np.bool_)


def figure_rows(figures: Mapping[str, FigureFacts]) -> dict[str, Any]:
    """Figures by name as plain JSON."""
    return {name: figure.row() for name, figure in figures.items()}


def undefined(why: str, n: int = 0) -> FigureFacts:
    """No figure, and why."""
    return FigureFacts(n=n, why=why)


def _require_finite(numbers: Floats) -> None:
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise ValueError(
            f"{len(bad):,} of {len(numbers):,} scores are not finite, the first at position {bad[0]}: {numbers[bad[0]]}"
        )
