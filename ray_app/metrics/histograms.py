"""Scores of one class as an exact, sorted histogram: what every figure of detection is computed from. Knows numbers; knows no labels.

A histogram loses nothing but the order of the images, and two of them merge into that of both: so a run of any size is read in pieces.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.metrics.arrays import Floats

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ScoreHistogram:
    """Distinct scores in ascending order, float64 (k,), and how many images have each, int64 (k,)."""

    values: Floats
    counts: Counts

    @classmethod
    def of(cls, scores: ArrayLike) -> "ScoreHistogram":
        """That of scores (n,) in any order, maybe none. Raises ValueError for scores that are not finite."""
        numbers = np.asarray(scores, dtype=np.float64)
        if not np.isfinite(numbers).all():
            bad = np.flatnonzero(~np.isfinite(numbers))
            raise ValueError(f"{len(bad):,} of {len(numbers):,} scores are not finite, the first at position {bad[0]}: {numbers[bad[0]]}")
        return cls(*np.unique(numbers, return_counts=True))

    @classmethod
    def merged(cls, histograms: Iterable["ScoreHistogram"]) -> "ScoreHistogram":
        """That of all images of several."""
        pieces = [one for one in histograms if len(one.values)]
        if len(pieces) == 1:
            return pieces[0]
        values, places = np.unique(np.concatenate([np.empty(0), *[one.values for one in pieces]]), return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, places, np.concatenate([np.empty(0, np.int64), *[one.counts for one in pieces]]))
        return cls(values, counts)

    @property
    def n(self) -> int:
        """How many images."""
        return int(self.counts.sum())

    def above(self, threshold: float) -> int:
        """How many images score higher."""
        return int(self.counts[np.searchsorted(self.values, threshold, "right") :].sum())

    def at_or_above(self, threshold: float) -> int:
        """How many images score so high or higher."""
        return int(self.counts[np.searchsorted(self.values, threshold, "left") :].sum())
