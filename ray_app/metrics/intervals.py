"""95 % intervals: DeLong's for an AUC (`auc_of`), Clopper and Pearson's for a proportion
(`proportion`), Student's for a mean (`mean_figure`), and the percentile bootstrap (`resampled`). Of
independent images; else ray_app.metrics.clusters.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics.arrays import Counts, FigureFacts, ScoreHistogram, undefined

Z95 = 1.959963984540054  # 97.5 % point of the normal distribution
CLOPPER_PEARSON, DELONG = "clopper-pearson", "delong"

STUDENT, BOOTSTRAP = "student", "bootstrap"
DRAWS = 1000


class Auc(NamedTuple):
    """An area under the ROC curve and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def auc_of(fakes: ScoreHistogram, reals: ScoreHistogram) -> Auc:
    """AUC of m fakes against n reals with its interval; ties count half, each image is independent.
    O(k log l), k and l distinct scores.

    The variance is DeLong's (1988), by ranks in place of pairs (Sun and Xu 2014). The interval is
    taken on the logit of the AUC, so that it stays within 0 and 1. Where no such interval exists
    (AUC 0 or 1, all scores alike, one image of a class) it is the exact one of as many independent
    pairs as there are disjoint ones, min(m, n): wide, but never of no width. Raises ValueError
    where a class is missing.
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
        return Auc(auc, *share_interval(auc, pairs))
    middle, half = math.log(auc / (1 - auc)), Z95 * math.sqrt(spread) / (auc * (1 - auc))
    return Auc(auc, inverse_logit(middle - half), inverse_logit(middle + half))


def proportion(successes: int, n: int, why: str) -> FigureFacts:
    """A share of n images with its Clopper–Pearson interval; of none it is not defined, and `why`
    says so.
    """
    if not n:
        return undefined(why)
    return FigureFacts(
        value=successes / n, interval=proportion_interval(successes, n), method=CLOPPER_PEARSON, n=n
    )


def proportion_interval(successes: float, n: float, tail: float = 0.025) -> tuple[float, float]:
    """The exact 95 % interval of a proportion (Clopper and Pearson 1934), which covers no less than
    that.

    `tail`: how often the truth may lie beyond each end, where another interval than 95 % is wanted.
    Both counts may be effective ones, of images that are not independent, and then need not be
    whole. Raises ValueError where n is 0 or the successes are not 0 … n.
    """
    from scipy.special import betaincinv

    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} is no proportion")
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return low, high


def share_interval(share: float, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a share of n images that need not be a whole number of them: the
    ends of the two nearest ones.
    """
    return proportion_interval(math.floor(share * n), n)[0], proportion_interval(
        math.ceil(share * n), n
    )[1]


def mean_figure(
    values: ArrayLike, why: str, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> FigureFacts:
    """The mean of values (n,), each image counting once; NaN stands for an image without a value,
    and `n` counts the others.

    The 95 % interval is Student's, cut at `bounds`, outside which no value can lie. A single image
    and images that are all alike say nothing of their spread: they have none. Of no image at all
    the figure is not defined, and `why` says so.
    """
    from scipy.special import stdtrit

    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[~np.isnan(numbers)]
    n = len(numbers)
    if not n:
        return undefined(why)
    mean = float(numbers.mean())
    spread = float(numbers.std(ddof=1)) if n > 1 and numbers.min() < numbers.max() else 0.0
    if spread == 0:
        return FigureFacts(value=mean, n=n)
    half = float(stdtrit(n - 1, 0.975)) * spread / math.sqrt(n)
    return FigureFacts(
        value=mean,
        interval=(max(bounds[0], mean - half), min(bounds[1], mean + half)),
        method=STUDENT,
        n=n,
    )


def resampled(value: float, drawn: Sequence[float], n: int) -> FigureFacts:
    """A figure of n images with the percentile interval of its bootstrap replicates; none where
    they are all alike, or there are none.
    """
    if not len(drawn) or min(drawn) == max(drawn):
        return FigureFacts(value=value, n=n)
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    return FigureFacts(value=value, interval=(low, high), method=BOOTSTRAP, n=n)


def _spread_of_reals(
    fakes: ScoreHistogram, below: Counts, upto: Counts, n: int, mean: float
) -> float:
    """Squares, summed over n reals, of how far the share of fakes under each lies from the mean of
    those shares.

    The reals fall into runs at and between the fakes' values; all reals of a run have the same
    share of fakes under them.
    """
    m, passed = fakes.n, fakes.passed[1:]
    at = float((upto - below) @ ((passed - fakes.counts / 2) / m - mean) ** 2)
    between = float((np.append(below[1:], n) - upto) @ (passed / m - mean) ** 2)
    return at + between + float(below[0]) * mean**2


def inverse_logit(value: float) -> float:
    """The share whose log-odds these are."""
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
