"""Tests of two systems on the same images where images come in clusters: whether they would differ on further generators and sources.

`delong_of` compares AUCs (Obuchowski 1997), `mcnemar_of_shares` shares judged correctly (Obuchowski 1998), both with Student's t of as many
clusters as there are. Tests of independent images find differences between equal systems, each better at some generators.
"""

import math

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from ray_app.metrics import clusters, significance
from ray_app.metrics.arrays import Bools, Floats, MetricEstimate, checked

Names = npt.NDArray[np.object_]


def delong_of(scores_a: ArrayLike, scores_b: ArrayLike, fakes: ArrayLike, names: Names | None) -> significance.Paired:
    """Whether two AUCs on the same images differ: scores (n,) of a and b, whether each image is fake, and whose it is (n,).

    A class with fewer than `clusters.FEWEST_CLUSTERS` names is one of independent images; where both are, or `names` is None, this is
    `delong_paired`. Raises ValueError as that does.
    """
    (first, fake), (second, _) = checked(scores_a, fakes), checked(scores_b, fakes)
    parts = _classes(fake, names)
    if not any(count for _, count in parts) or min(int(fake.sum()), int((~fake).sum())) < 2:
        return significance.delong_paired(first, second, fake)
    (auc_a, found_a, passed_a), (auc_b, found_b, passed_b) = (significance.placements(one, fake) for one in (first, second))
    spreads = [
        clusters.ClassSample(change, *part, len(change)).spread_of(change, even=True)
        for change, part in zip((found_b - found_a, passed_b - passed_a), parts, strict=True)
    ]
    return _paired("clustered delong", auc_b - auc_a, spreads, len(fake))


def mcnemar_of_shares(right_a: ArrayLike, right_b: ArrayLike, fakes: ArrayLike, names: Names | None) -> significance.Paired:
    """Whether two systems tell different shares of the same images right: bool (n,) each, whether each is fake, and whose it is (n,).

    As `delong_of`; without clusters this is `mcnemar`. The share of fakes is taken as it is. Raises ValueError for lengths that differ.
    """
    first, second, fake = (np.asarray(one, dtype=np.bool_) for one in (right_a, right_b, fakes))
    parts = _classes(fake, names) if first.shape == second.shape == fake.shape else []
    if not any(count for _, count in parts):
        return significance.mcnemar(first, second)
    change = second.astype(np.float64) - first
    spreads = []
    for mine, part in zip((fake, ~fake), parts, strict=True):
        if some := int(mine.sum()):
            least = _of_images(change[mine])
            spread = (
                clusters.ClassSample(change[mine], *part, some)
                .spread_of(change[mine], even=True)
                .at_least(clusters.Spread(least, least, math.inf))
            )
            spreads.append((spread if part[1] else clusters.Spread(least, least, math.inf)).scaled((some / len(fake)) ** 2))
    return _paired("clustered mcnemar", float(change.mean()), spreads, len(fake))


def _classes(fake: Bools, names: Names | None) -> list[tuple[clusters.Codes, int]]:
    """Of fakes and of reals the cluster of each image, and how many there are."""
    if names is None:
        return [(np.zeros(int(mine.sum()), np.int64), 0) for mine in (fake, ~fake)]
    return [clusters.codes_of(names[mine]) for mine in (fake, ~fake)]


def _of_images(change: Floats) -> float:
    """The variance of a mean of −1, 0 and 1, with one more of either (Bonett and Price 2012), so that it is never none."""
    n = len(change)
    fewer, more = ((int((change == one).sum()) + 1) / (n + 2) for one in (-1, 1))
    return (fewer + more - (more - fewer) ** 2) / (n + 2)


def _paired(
    test: significance.PairedTest, difference: float, spreads: list[clusters.Spread], n: int,
) -> significance.Paired:  # fmt: skip
    ends = clusters.ends_of(difference, spreads, "plain")
    if ends is None:
        even = difference == 0
        return significance.Paired(
            test, n, MetricEstimate(difference, n=n), 1.0 if even else None, None if even else "the AUCs do not vary"
        )
    interval = max(-1.0, ends[0]), min(1.0, ends[1])
    return significance.Paired(
        test, n, MetricEstimate(difference, interval, clusters.CLUSTER_JACKKNIFE, n), clusters.probability_of(difference, spreads)
    )
