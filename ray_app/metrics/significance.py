"""Tests of two systems on the same images: DeLong's of their AUCs (`delong_paired`), McNemar's (`mcnemar`), Holm's correction (`holm`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.metrics.arrays import Floats, MetricEstimate, checked, undefined
from ray_app.metrics.intervals import Z95


@dataclass(frozen=True, slots=True)
class Paired:
    """`difference`: b's figure less a's, with its interval. `p`: two-sided; None with `why` where the test is not defined."""

    test: Literal["delong", "mcnemar"]
    n: int
    difference: MetricEstimate
    p: float | None
    why: str | None = None

    def row(self) -> dict[str, Any]:
        """As plain JSON, without Holm's correction, which needs all tests."""
        return {"test": self.test, "n": self.n, "difference": self.difference.row(), "p": self.p, "why": self.why}


def delong_paired(scores_a: ArrayLike, scores_b: ArrayLike, fakes: ArrayLike) -> Paired:
    """Whether two AUCs on the same images differ: scores (n,) of a and of b, and whether each image is fake, (n,). O(n log n).

    DeLong, DeLong and Clarke-Pearson (1988) by mid-ranks (Sun and Xu 2014); ties count half. The interval is the normal one, cut at
    −1 and 1. Raises ValueError as `checked` does.
    """
    (first, fake), (second, _) = checked(scores_a, fakes), checked(scores_b, fakes)
    n, m = len(fake), int(fake.sum())
    if min(m, n - m) < 2:
        return Paired("delong", n, undefined("two fakes and two real images are the least that it takes", n), None, "too few images")
    (auc_a, found_a, passed_a), (auc_b, found_b, passed_b) = _placements(first, fake), _placements(second, fake)
    difference = auc_b - auc_a
    variance = _variance_of_mean(found_b - found_a) + _variance_of_mean(passed_b - passed_a)
    if variance <= 0:
        even = difference == 0
        return Paired("delong", n, MetricEstimate(difference, n=n), 1.0 if even else None, None if even else "the AUCs do not vary")
    half = Z95 * math.sqrt(variance)
    interval = (max(-1.0, difference - half), min(1.0, difference + half))
    p = math.erfc(abs(difference) / math.sqrt(2 * variance))
    return Paired("delong", n, MetricEstimate(difference, interval, "delong", n), p)


def mcnemar(right_a: ArrayLike, right_b: ArrayLike) -> Paired:
    """Whether two systems are right on different shares of the same images: bool (n,) each. Raises ValueError for lengths that differ."""
    first, second = np.asarray(right_a, dtype=np.bool_), np.asarray(right_b, dtype=np.bool_)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"right_a {first.shape} and right_b {second.shape} must be two rows of one length")
    return mcnemar_of(int((first & ~second).sum()), int((second & ~first).sum()), len(first))


def mcnemar_of(only_a: int, only_b: int, n: int) -> Paired:
    """The same from counts: images on which only a, or only b, is right, among n. Raises ValueError for counts that cannot be.

    p is the mid-p of the exact binomial test for any n, which keeps its level without the exact test's waste (Fagerland, Lydersen and
    Laake 2013). The interval is Wald's with Bonett and Price's (2012) adjustment; it has a width where nothing differs, too.
    """
    if min(only_a, only_b) < 0 or only_a + only_b > n:
        raise ValueError(f"{only_a} and {only_b} of {n} are no counts")
    if not n:
        return Paired("mcnemar", 0, undefined("there are no images"), None, "there are no images")
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    middle, half = share_b - share_a, Z95 * math.sqrt((share_a + share_b - (share_b - share_a) ** 2) / (n + 2))
    interval = (max(-1.0, middle - half), min(1.0, middle + half))
    return Paired("mcnemar", n, MetricEstimate((only_b - only_a) / n, interval, "bonett-price", n), mid_p(only_a, only_a + only_b))


def mid_p(successes: int, n: int) -> float:
    """The two-sided mid-p of so many successes among n, where either outcome is as likely as the other; 1 for no trial."""
    from scipy.stats import binom

    fewer = min(successes, n - successes)
    return min(1.0, float(2 * binom.cdf(fewer, n, 0.5) - binom.pmf(fewer, n, 0.5))) if n else 1.0


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Each p corrected for all of them (Holm 1979), in the same order; None stays None and is no test.

    Whoever calls significant what is below α here errs at all, in the whole family, with a chance of at most α.
    """
    tests = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, place) in enumerate(tests):
        highest = max(highest, min(1.0, p * (len(tests) - rank)))
        corrected[place] = highest
    return corrected


def _placements(scores: Floats, fake: NDArray[np.bool_]) -> tuple[float, Floats, Floats]:
    """The AUC; of each fake the share of reals under it; of each real the share of fakes above it; a tie is half."""
    from scipy.stats import rankdata

    m, n = int(fake.sum()), int((~fake).sum())
    ranks = rankdata(scores)
    found = (ranks[fake] - rankdata(scores[fake])) / n
    passed = 1 - (ranks[~fake] - rankdata(scores[~fake])) / m
    return float(found.mean()), found, passed


def _variance_of_mean(values: Floats) -> float:
    return float(values.var(ddof=1)) / len(values)
