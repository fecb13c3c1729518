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
    values, counts_a, counts_b = _together(first, second)
    apart = np.abs(np.cumsum(counts_a) / n - np.cumsum(counts_b) / m)
    place = int(apart.argmax())
    distance = float(apart[place])
    p = float(kstwo.sf(distance, max(1, round(n * m / (n + m))))) if distance > 0 else 1.0
    return distance, min(1.0, p), float(values[place])


def stability_index(first: ScoreHistogram, second: ScoreHistogram, bins: int = BINS) -> tuple[float, float]:
    """The population stability index over bins of equal count of both together, and the p of its being 0. Symmetric.

    A bin counts half an image more than it has, so that an empty one stays finite. Below 0.1 is usually called stable, above 0.25 a
    change. Without drift it is about χ² of (bins − 1) over nm / (n + m) (Yurdakul 2018): in small runs it is large by chance alone.
    Fewer bins are left where scores tie. Raises ValueError where one has no score.
    """
    from scipy.stats import chi2

    n, m = _sizes(first, second)
    values, counts_a, counts_b = _together(first, second)
    upto = np.cumsum(counts_a + counts_b) / (n + m)
    # A bin ends with the value at which its share is reached; values that are alike stay in one.
    ends = np.unique(np.searchsorted(upto, np.arange(1, bins) / bins - 1e-12))
    starts = np.unique(np.concatenate([[0], ends + 1]))
    starts = starts[starts < len(values)]
    if len(starts) < 2:
        return 0.0, 1.0
    share_a, share_b = (np.add.reduceat(counts, starts) + 0.5 for counts in (counts_a, counts_b))
    share_a, share_b = share_a / share_a.sum(), share_b / share_b.sum()
    index = float(((share_a - share_b) * np.log(share_a / share_b)).sum())
    return index, float(chi2.sf(index * n * m / (n + m), len(starts) - 1))


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


def _together(first: ScoreHistogram, second: ScoreHistogram) -> tuple[Floats, Counts, Counts]:
    """All values in ascending order, and how many images of either have each."""
    values = np.union1d(first.values, second.values)
    counts = []
    for one in (first, second):
        of = np.zeros(len(values), np.int64)
        of[np.searchsorted(values, one.values)] = one.counts
        counts.append(of)
    return values, counts[0], counts[1]
