"""95 % intervals: DeLong's for the area under the ROC curve, Clopper and Pearson's for a proportion. Each image counts as independent.

Knows histograms of scores, and counts; knows no generators and no thresholds.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics.arrays import checked
from ray_app.metrics.figure import Figure, undefined
from ray_app.metrics.histograms import Counts, ScoreHistogram

Z95 = 1.959963984540054  # 97.5 % point of the normal distribution
CLOPPER_PEARSON, DELONG = "clopper-pearson", "delong"


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
    found = auc_of(ScoreHistogram.of(numbers[fake]), ScoreHistogram.of(numbers[~fake]))
    return found.low, found.high


def auc_of(fakes: ScoreHistogram, reals: ScoreHistogram) -> Auc:
    """AUC of m fakes against n reals with its interval; ties count half. O(k log l) for k and l distinct scores.

    The variance is DeLong's (1988), by ranks in place of pairs (Sun and Xu 2014). The interval is taken on the logit of the AUC, so that
    it stays within 0 and 1. Where no such interval exists (AUC 0 or 1, all scores alike, one image of a class) it is the exact one of as
    many independent pairs as there are disjoint ones, min(m, n): wide, but never of no width. Raises ValueError where a class is missing.
    """
    m, n = fakes.n, reals.n
    if not m or not n:
        raise ValueError("an AUC needs real and fake images")
    below, upto = reals.below_and_up_to(fakes.values)
    beaten = (below + upto) / (2 * n)  # of each fake: the share of reals under it
    auc = float(fakes.counts @ beaten) / m
    spread = 0.0 if m < 2 else float(fakes.counts @ (beaten - auc) ** 2) / (m - 1) / m
    spread += 0.0 if n < 2 else _spread_of_reals(fakes, below, upto, n, 1 - auc) / (n - 1) / n
    if min(m, n) < 2 or not 0 < auc < 1 or spread <= 0:
        pairs = min(m, n)
        wins = auc * pairs
        return Auc(auc, proportion_interval(math.floor(wins), pairs)[0], proportion_interval(math.ceil(wins), pairs)[1])
    middle, half = math.log(auc / (1 - auc)), Z95 * math.sqrt(spread) / (auc * (1 - auc))
    return Auc(auc, _sigmoid(middle - half), _sigmoid(middle + half))


def _spread_of_reals(fakes: ScoreHistogram, below: Counts, upto: Counts, n: int, mean: float) -> float:
    """Squares, summed over n reals, of how far the share of fakes under each lies from the mean of those shares.

    The reals fall into runs at and between the fakes' values; all reals of a run have the same share of fakes under them.
    """
    m, passed = fakes.n, fakes.passed[1:]
    at = float((upto - below) @ ((passed - fakes.counts / 2) / m - mean) ** 2)
    between = float((np.append(below[1:], n) - upto) @ (passed / m - mean) ** 2)
    return at + between + float(below[0]) * mean**2


def proportion(successes: int, n: int, why: str) -> Figure:
    """A share of n images with its Clopper–Pearson interval; of none it is not defined, and `why` says so."""
    return Figure(successes / n, proportion_interval(successes, n), CLOPPER_PEARSON, n) if n else undefined(why)


def proportion_interval(successes: int, n: int, tail: float = 0.025) -> tuple[float, float]:
    """The exact 95 % interval of a proportion (Clopper and Pearson 1934), which covers no less than that.

    `tail`: how often the truth may lie beyond each end, where another interval than 95 % is wanted.
    Raises ValueError where n is 0 or the successes are not 0 … n.
    """
    from scipy.special import betaincinv

    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} is no proportion")
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return low, high


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
