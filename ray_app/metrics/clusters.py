"""How many independent images grouped ones are worth (`effective_size`), for rates of rare events:
images of one source score alike, and what counts is how alike they are in the tail, which few of
them reach.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics.arrays import Bools, Counts, Floats

FEWEST_GROUPS = 10
"""From fewer groups nothing can be known of further ones (Cameron, Gelbach and Miller 2008)."""
_CONFIDENCE = 0.95  # of the quantiles by which few groups count for less
_GRID = np.linspace(-8, 8, 801)  # standard deviations, over which the tail is integrated


@dataclass(frozen=True)
class EffectiveSize:
    """`n` images of `groups` groups, the largest of which has the number `largest` and
    `largest_share` of the images.

    `effective`: of how many independent images a rate would be known as well; n where each group
    has one image.
    """

    n: int
    groups: int
    largest: int
    largest_share: float
    effective: float


def effective_size(scores: ArrayLike, groups: ArrayLike, share: float) -> EffectiveSize:
    """That of scores (n,) of images in groups (n,), whole numbers, for the rate of images above the
    threshold that `share` of them reach.

    n / deff · (t / t_df)² (Korn and Graubard 1998, "Confidence intervals for proportions with small
    expected number of positive counts"). deff is the larger one of two design effects: that of the
    variance of group totals above the threshold, and 1 + (b − 1) ρ (Kish 1965), b the size of an
    image's group on average. ρ is the correlation of being above it, for images of one group whose
    scores, as normal ones, are correlated as the analysis of variance of their ranks has it (Donner
    1986). The former alone is too unsure where few images reach the threshold, the latter knows
    nothing of groups that are rare and apart.
    """
    from scipy.stats import norm, t

    numbers = np.asarray(scores, np.float64)
    names, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    n, m = len(numbers), len(sizes)
    largest, largest_share = (int(names[sizes.argmax()]), float(sizes.max() / n)) if n else (0, 0.0)
    if m == n or m < 2:
        return EffectiveSize(n, m, largest, largest_share, float(n if m == n else 0))
    seen = _observed_effect(numbers >= np.quantile(numbers, 1 - share), codes, sizes)
    mean_size = float((sizes.astype(np.float64) ** 2).sum()) / n
    expected = 1 + (mean_size - 1) * tail_correlation(
        rank_correlation(numbers, codes, sizes), share
    )
    few = float(t.ppf(_CONFIDENCE, m - 1) / norm.ppf(_CONFIDENCE)) ** 2
    return EffectiveSize(n, m, largest, largest_share, n / (max(seen, expected, 1.0) * few))


def rank_correlation(scores: Floats, codes: Counts, sizes: Counts) -> float:
    """The intraclass correlation of scores (n,) made normal by their ranks, by analysis of
    variance; groups by `codes` (n,), 0 … m − 1.
    """
    from scipy.stats import norm, rankdata

    n, m = len(scores), len(sizes)
    normal = norm.ppf((rankdata(scores) - 0.5) / n)
    means = np.bincount(codes, weights=normal) / sizes
    between = float(sizes @ (means - normal.mean()) ** 2) / (m - 1)
    within = float(((normal - means[codes]) ** 2).sum()) / (n - m)
    size = (n - float((sizes.astype(np.float64) ** 2).sum()) / n) / (m - 1)
    spread = between + (size - 1) * within
    return (between - within) / spread if spread > 0 else 0.0


def tail_correlation(correlation: float, share: float) -> float:
    """The correlation of lying above the quantile that `share` of a normal population exceeds, for
    two that are so correlated.

    Of negative correlations it is 0.
    """
    from scipy.stats import norm

    rho = min(max(correlation, 0.0), 0.999)
    weights = norm.pdf(_GRID) / norm.pdf(_GRID).sum()
    above = norm.sf((norm.isf(share) - np.sqrt(rho) * _GRID) / np.sqrt(1 - rho))
    return max(0.0, float(weights @ above**2 - share**2) / (share * (1 - share)))


def _observed_effect(above: Bools, codes: Counts, sizes: Counts) -> float:
    """The variance of the share above, by totals of groups, over that of as many independent
    images.
    """
    n, m, share = len(above), len(sizes), float(above.mean())
    if not 0 < share < 1:
        return 1.0
    totals = np.bincount(codes, weights=above)
    return m / (m - 1) * float(((totals - sizes * share) ** 2).sum()) / (n * share * (1 - share))
