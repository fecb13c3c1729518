"""Scores of one cell, counted as they stream by. Knows numbers; knows nothing of images."""

import numpy as np
import numpy.typing as npt

from ray_app.metrics.histograms import ScoreHistogram

Scores = npt.NDArray[np.float32] | npt.NDArray[np.float64]
_WAITING = 16_384


class Tally:
    """Distinct scores and how often each was met, exactly, in 4 bytes a count and as many a score as its column has.

    What comes in waits until there is as much of it as was counted before, so that a stream of n scores costs O(n log n).
    """

    __slots__ = ("_counts", "_values", "_waiting", "_weights")

    def __init__(self) -> None:
        self._values: Scores = np.empty(0, np.float32)
        self._counts: npt.NDArray[np.uint32] = np.empty(0, np.uint32)
        self._waiting: list[Scores] = []
        self._weights = 0

    def add(self, scores: Scores) -> None:
        """Count finite scores (n,)."""
        self._waiting.append(scores)
        self._weights += len(scores)
        if self._weights > max(_WAITING, len(self._values)):
            self._settle()

    def merge(self, other: "Tally") -> None:
        """Count what another has counted."""
        self._settle()
        other._settle()
        self._join(other._values, other._counts)

    def histogram(self) -> ScoreHistogram:
        """All that was counted."""
        self._settle()
        return ScoreHistogram(self._values.astype(np.float64), self._counts.astype(np.int64))

    def __getstate__(self) -> tuple[Scores, npt.NDArray[np.uint32]]:
        self._settle()
        return self._values, self._counts

    def __setstate__(self, state: tuple[Scores, npt.NDArray[np.uint32]]) -> None:
        self._values, self._counts = state
        self._waiting, self._weights = [], 0

    def _settle(self) -> None:
        if self._weights:
            values, counts = np.unique(np.concatenate(self._waiting), return_counts=True)
            self._waiting, self._weights = [], 0
            self._join(values, counts.astype(np.uint32))

    def _join(self, values: Scores, counts: npt.NDArray[np.uint32]) -> None:
        if not len(self._values):
            self._values, self._counts = values, counts
            return
        both = np.concatenate([self._values, values])
        turn = np.argsort(both, kind="stable")  # two ascending runs are merged
        both = both[turn]
        firsts = np.flatnonzero(np.r_[True, both[1:] != both[:-1]]) if len(both) else np.empty(0, np.int64)
        sums = np.add.reduceat(np.concatenate([self._counts, counts])[turn], firsts) if len(firsts) else np.empty(0, np.uint32)
        self._values, self._counts = both[firsts], sums.astype(np.uint32)
