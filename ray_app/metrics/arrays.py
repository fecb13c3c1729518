"""What metrics are computed from: checked arrays (`checked`) and exact histograms of scores
(`ScoreHistogram`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


def _require_finite(numbers: Floats) -> None:
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise ValueError(
            f"{len(bad):,} of {len(numbers):,} scores are not finite, the first at position {bad[0]}: {numbers[bad[0]]}"
        )
