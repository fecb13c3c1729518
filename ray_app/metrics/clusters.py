"""Compute how many independent images grouped images are worth (`effective_size`).

The computation is for rates of rare events, such as a false-positive rate of 0.1 %. Images of one
source have similar scores, so they are worth fewer independent images. The similarity matters in
the tail of the scores, which few images reach.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics.arrays import Bools, Counts, Floats

MIN_BOUND_GROUPS = 10
"""Minimum number of groups for a bound that also holds for groups outside the data.

The number is from Cameron, Gelbach and Miller (2008).
"""
# Confidence of the quantiles that reduce the effective size if there are few groups.
_CONFIDENCE = 0.95
# Standard deviations over which the tail is integrated.
_GRID = np.linspace(-8, 8, 801)


@dataclass(frozen=True)
class EffectiveSize:
    """The number of independent images that grouped images are worth.

    Images of one group, such as those of one source, have similar scores. A rate over them is
    therefore less precise than a rate over as many independent images.

    Attributes:
        n: Number of images.
        groups: Number of groups.
        largest: The largest group, as it is numbered in the argument `groups` of `effective_size`.
        largest_share: Fraction of the images in the largest group.
        effective: Number of independent images that would give an equally precise rate. It is n if
            each group has one image, and 0 if one group has all of several images.
    """

    n: int
    groups: int
    largest: int
    largest_share: float
    effective: float


def effective_size(scores: ArrayLike, groups: ArrayLike, fraction: float) -> EffectiveSize:
    """Return how many independent images would give an equally precise rate as grouped images.

    The rate is the fraction of images whose scores reach a threshold, such as a false-positive
    rate. Use the function to bound this rate on real images of few sources. Images of one group,
    such as those of one source, have similar scores, so they are worth fewer independent images.

    The number is n / deff · (t / t_df)² (Korn and Graubard 1998, "Confidence intervals for
    proportions with small expected number of positive counts"). deff is the larger one of two
    design effects. The first is the observed effect, from the variance of group totals above the
    threshold. It is too uncertain if few images reach the threshold. The second is 1 + (b − 1) ρ
    (Kish 1965). b is the average size of an image's group. ρ is the correlation, within groups, of
    reaching the threshold (`tail_correlation`; Donner 1986). It follows from the correlation of the
    scores (`rank_correlation`). The second effect does not account for rare groups that differ from
    the others.

    Args:
        scores: Scores (n,).
        groups: The group (n,) of each image, whole numbers.
        fraction: Fraction of the images that reach the threshold.

    Returns:
        The number of independent images, with facts on the groups.
    """
    from scipy.stats import norm, t

    values = np.asarray(scores, np.float64)
    names, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    n, m = len(values), len(sizes)
    largest, largest_share = (int(names[sizes.argmax()]), float(sizes.max() / n)) if n else (0, 0.0)
    if m == n or m < 2:
        return EffectiveSize(n, m, largest, largest_share, float(n if m == n else 0))
    observed = _observed_effect(values >= np.quantile(values, 1 - fraction), codes, sizes)
    mean_size = float((sizes.astype(np.float64) ** 2).sum()) / n
    expected = 1 + (mean_size - 1) * tail_correlation(
        rank_correlation(values, codes, sizes), fraction
    )
    few_groups_factor = float(t.ppf(_CONFIDENCE, m - 1) / norm.ppf(_CONFIDENCE)) ** 2
    return EffectiveSize(
        n, m, largest, largest_share, n / (max(observed, expected, 1.0) * few_groups_factor)
    )


def rank_correlation(scores: Floats, codes: Counts, sizes: Counts) -> float:
    """Return how similar the scores of one group are: the intraclass correlation, at most 1.

    The correlation is computed by analysis of variance, after the scores were transformed to normal
    scores by their ranks.

    Args:
        scores: Scores (n,).
        codes: Groups (n,), 0 … m − 1.
        sizes: Sizes of the groups (m,).
    """
    from scipy.stats import norm, rankdata

    n, m = len(scores), len(sizes)
    normal = norm.ppf((rankdata(scores) - 0.5) / n)
    means = np.bincount(codes, weights=normal) / sizes
    between = float(sizes @ (means - normal.mean()) ** 2) / (m - 1)
    within = float(((normal - means[codes]) ** 2).sum()) / (n - m)
    size = (n - float((sizes.astype(np.float64) ** 2).sum()) / n) / (m - 1)
    total = between + (size - 1) * within
    return (between - within) / total if total > 0 else 0.0


def tail_correlation(correlation: float, fraction: float) -> float:
    """Return how strongly reaching a threshold correlates between two images of one group.

    The scores of the images are treated as normal. The correlated events are that one image reaches
    the threshold, and that the other one does. The result is 0 if `correlation` is negative.

    Args:
        correlation: The correlation of the scores of two images of one group.
        fraction: The fraction of all images that reach the threshold.

    Returns:
        The correlation of the events.
    """
    from scipy.stats import norm

    rho = min(max(correlation, 0.0), 0.999)
    weights = norm.pdf(_GRID) / norm.pdf(_GRID).sum()
    above = norm.sf((norm.isf(fraction) - np.sqrt(rho) * _GRID) / np.sqrt(1 - rho))
    return max(0.0, float(weights @ above**2 - fraction**2) / (fraction * (1 - fraction)))


def _observed_effect(above: Bools, codes: Counts, sizes: Counts) -> float:
    """Return the design effect of group totals on the fraction above a threshold.

    The effect is the variance of the fraction, from the totals of groups, divided by its variance
    for the same number of independent images.
    """
    n, m, fraction = len(above), len(sizes), float(above.mean())
    if not 0 < fraction < 1:
        return 1.0
    totals = np.bincount(codes, weights=above)
    return (
        m
        / (m - 1)
        * float(((totals - sizes * fraction) ** 2).sum())
        / (n * fraction * (1 - fraction))
    )
