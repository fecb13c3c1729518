"""Whether two piles of scores come from one distribution: Kolmogorov and Smirnov's test and the population stability index.

Knows two histograms, of images that need not be the same; knows no pairs. Where the images are the same, both p are too cautious.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_app.metrics.arrays import Floats
from ray_app.metrics.histograms import Counts, ScoreHistogram

BINS = 10
_PIECE = 2**18  # scores that are looked at together


@dataclass(frozen=True, slots=True)
class Drift:
    """`ks`: the largest distance of the cumulative shares, 0 … 1, at score `at`. `psi`: the stability index. `p`s: of no drift at all."""

    ks: float
    ks_p: float
    at: float
    psi: float
    psi_p: float

    def row(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"ks": self.ks, "ks_p": self.ks_p, "at": self.at, "psi": self.psi, "psi_p": self.psi_p}


def drift_of(first: ScoreHistogram, second: ScoreHistogram) -> Drift | None:
    """All of it; None where one has no score."""
    if not first.n or not second.n:
        return None
    ks, ks_p, at = kolmogorov_smirnov(first, second)
    psi, psi_p = stability_index(first, second)
    return Drift(ks, ks_p, at, psi, psi_p)


def kolmogorov_smirnov(first: ScoreHistogram, second: ScoreHistogram) -> tuple[float, float, float]:
    """The two-sample statistic, its two-sided p, and the score at which the shares are farthest apart.

    p is scipy's asymptotic one: Kolmogorov's distribution of as many images as nm / (n + m). With ties it is too large rather than too
    small. Raises ValueError where one has no score.
    """
    from scipy.stats import kstwo

    n, m = _sizes(first, second)
    distance, at = 0.0, float(min(first.values[0], second.values[0]))
    for one, other in ((first, second), (second, first)):
        # A piece at a time: of 10⁷ distinct scores, arrays of all of them would be most of the memory.
        for start in range(0, len(one.values), _PIECE):
            values = one.values[start : start + _PIECE]
            apart = np.abs(one.passed[start + 1 : start + 1 + len(values)] / one.n - _up_to(other, values) / other.n)
            place = int(apart.argmax())
            if apart[place] > distance:
                distance, at = float(apart[place]), float(values[place])
    p = float(kstwo.sf(distance, max(1, round(n * m / (n + m))))) if distance > 0 else 1.0
    return distance, min(1.0, p), at


def stability_index(first: ScoreHistogram, second: ScoreHistogram, bins: int = BINS) -> tuple[float, float]:
    """The population stability index over bins of equal count of both together, and the p of its being 0. Symmetric.

    A bin counts half an image more than it has, so that an empty one stays finite. Below 0.1 is usually called stable, above 0.25 a
    change. Without drift it is about χ² of (bins − 1) over nm / (n + m) (Yurdakul 2018): in small runs it is large by chance alone.
    Fewer bins are left where scores tie. Raises ValueError where one has no score.
    """
    from scipy.stats import chi2

    n, m = _sizes(first, second)
    ends = np.unique([_first_reached(first, second, math.ceil(share * (n + m) / bins)) for share in range(1, bins)])
    counts = [np.diff(_up_to(one, ends), prepend=0, append=one.n) for one in (first, second)]
    filled = counts[0] + counts[1] > 0  # after the highest score there may be no image
    if filled.sum() < 2:
        return 0.0, 1.0
    halved = [one[filled] + 0.5 for one in counts]
    share_a, share_b = (one / one.sum() for one in halved)
    index = float(((share_a - share_b) * np.log(share_a / share_b)).sum())
    return index, float(chi2.sf(index * n * m / (n + m), int(filled.sum()) - 1))


def quantiles_of(scores: ScoreHistogram, shares: tuple[float, ...]) -> list[float]:
    """The scores under or at which these shares of the images are, shares in (0, 1]. Raises ValueError where there is no score."""
    if not scores.n:
        raise ValueError("no score, no quantile")
    upto = np.cumsum(scores.counts)
    places = np.searchsorted(upto, [math.ceil(share * upto[-1] - 1e-9) for share in shares])
    found: list[float] = scores.values[places].tolist()
    return found


def _sizes(first: ScoreHistogram, second: ScoreHistogram) -> tuple[int, int]:
    n, m = first.n, second.n
    if not n or not m:
        raise ValueError(f"drift needs scores on both sides; there are {n:,} and {m:,}")
    return n, m


def _up_to(scores: ScoreHistogram, values: Floats) -> Counts:
    """How many images score so high or lower, for each of some values."""
    return scores.passed[np.searchsorted(scores.values, values, "right")]


def _first_reached(first: ScoreHistogram, second: ScoreHistogram, images: int) -> float:
    """The lowest score at or under which there are so many images of both together."""
    found = []
    for one, other in ((first, second), (second, first)):
        low, high = 0, len(one.values)
        while low < high:
            middle = (low + high) // 2
            reached = int(one.passed[middle + 1]) + int(_up_to(other, one.values[middle : middle + 1])[0]) >= images
            low, high = (low, middle) if reached else (middle + 1, high)
        found += [float(one.values[low])] if low < len(one.values) else []
    return min(found)
