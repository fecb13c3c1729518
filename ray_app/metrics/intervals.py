"""95 % intervals: DeLong's for the area under the ROC curve, Clopper and Pearson's for a proportion. Each image counts as independent.

Knows sorted scores and counts; knows no generators and no thresholds.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.metrics.arrays import Floats, checked

_Z95 = 1.959963984540054  # 97.5 % point of the normal distribution
_TAIL = 0.025


class Auc(NamedTuple):
    """An area under the ROC curve and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def auc_interval(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """The 95 % interval of the AUC of scores (n,) with labels (n,), 1 = fake.

    Raises ValueError where one class is missing, and as `checked` does.
    """
    numbers, fake = checked(scores, labels)
    if fake.all() or not fake.any():
        raise ValueError("an AUC needs real and fake images")
    found = auc_of(numbers[fake], np.sort(numbers[~fake]))
    return found.low, found.high


def auc_of(fakes: Floats, sorted_reals: Floats) -> Auc:
    """AUC of fakes (m,) against reals (n,), in ascending order, with its interval; ties count half. O(m log m + m log n).

    The variance is DeLong's (1988), by ranks in place of pairs (Sun and Xu 2014). The interval is taken on the logit of the AUC, so that
    it stays within 0 and 1. Where no such interval exists (AUC 0 or 1, all scores alike, one image of a class) it is the exact one of as
    many independent pairs as there are disjoint ones, min(m, n): wide, but never of no width.
    """
    m, n = len(fakes), len(sorted_reals)
    values, counts = np.unique(fakes, return_counts=True)
    below, upto = np.searchsorted(sorted_reals, values, "left"), np.searchsorted(sorted_reals, values, "right")
    beaten = (below + upto) / (2 * n)  # of each fake: the share of reals under it
    auc = float(np.average(beaten, weights=counts))
    # The reals fall into runs at and between the fakes' values; all reals of a run have the same share of fakes under them.
    passed = np.cumsum(counts)
    shares = np.concatenate([[0.0], np.column_stack([passed - counts / 2, passed]).ravel() / m])
    runs = np.diff(np.column_stack([below, upto]).ravel(), prepend=0, append=n)
    spread = _mean_variance(beaten, counts, auc) + _mean_variance(shares, runs, 1 - auc)
    if min(m, n) < 2 or not 0 < auc < 1 or spread <= 0:
        pairs = min(m, n)
        wins = auc * pairs
        return Auc(auc, proportion_interval(math.floor(wins), pairs)[0], proportion_interval(math.ceil(wins), pairs)[1])
    middle, half = math.log(auc / (1 - auc)), _Z95 * math.sqrt(spread) / (auc * (1 - auc))
    return Auc(auc, _sigmoid(middle - half), _sigmoid(middle + half))


def proportion_interval(successes: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a proportion (Clopper and Pearson 1934), which covers no less than that.

    Raises ValueError where n is 0 or the successes are not 0 … n.
    """
    from scipy.special import betaincinv

    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} is no proportion")
    low = float(betaincinv(successes, n - successes + 1, _TAIL)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - _TAIL)) if successes < n else 1.0
    return low, high


def _mean_variance(values: Floats, counts: NDArray[np.int64], mean: float) -> float:
    """The variance of the mean of values, each as often as counted."""
    total = float(counts.sum())
    return float(counts @ (values - mean) ** 2) / (total - 1) / total if total > 1 else 0.0


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
