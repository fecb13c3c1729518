"""Tests of two systems on the same images: of their AUCs (`delong`), of the shares that are right
(`mcnemar`); Holm's correction (`holm`).

Where images come in clusters, of generators and sources, both ask whether the systems would differ
on further ones (Obuchowski 1997, 1998), with Student's t of as many clusters as there are: tests of
independent images find differences between equal systems, each better at some generators.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.metrics import clusters
from ray_app.metrics.arrays import Bools, FigureFacts, Floats, checked, undefined
from ray_app.metrics.intervals import Z95

PairedTest = Literal["delong", "mcnemar", "clustered delong", "clustered mcnemar"]
Names = NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Paired:
    """`difference`: b's figure less a's, with its interval. `p`: two-sided; None with `why` where
    the test is not defined.
    """

    test: PairedTest
    n: int
    difference: FigureFacts
    p: float | None
    why: str | None = None

    def row(self) -> dict[str, Any]:
        """As plain JSON, without Holm's correction, which needs all tests."""
        return {
            "test": self.test,
            "n": self.n,
            "difference": self.difference.row(),
            "p": self.p,
            "why": self.why,
        }


def delong(
    scores_a: ArrayLike, scores_b: ArrayLike, fakes: ArrayLike, names: Names | None = None
) -> Paired:
    """Whether two AUCs on the same images differ. O(n log n).

    Scores (n,) of a and b; `fakes`, `names` (n,): whether each image is fake, and the generator or
    source by which images are clustered.

    DeLong, DeLong and Clarke-Pearson (1988) by mid-ranks (Sun and Xu 2014); ties count half. The
    interval is the normal one, cut at −1 and 1. A class with fewer than `clusters.FEWEST_CLUSTERS`
    names is one of independent images; where one has more, the test is the clustered one. Raises
    ValueError as `checked` does.
    """
    (first, fake), (second, _) = checked(scores_a, fakes), checked(scores_b, fakes)
    n, m = len(fake), int(fake.sum())
    if min(m, n - m) < 2:
        return Paired(
            "delong",
            n,
            undefined("two fakes and two real images are the least that it takes", n),
            None,
            "too few images",
        )
    (auc_a, found_a, passed_a), (auc_b, found_b, passed_b) = (
        _placements(first, fake),
        _placements(second, fake),
    )
    difference, changes = auc_b - auc_a, (found_b - found_a, passed_b - passed_a)
    parts = _classes(fake, names)
    if any(count for _, count in parts):
        samples = [
            clusters.ClassSample(change, *part, len(change))
            for change, part in zip(changes, parts, strict=True)
        ]
        return _clustered(
            "clustered delong",
            difference,
            [one.spread_of(one.scores, even=True) for one in samples],
            n,
        )
    variance = sum(float(change.var(ddof=1)) / len(change) for change in changes)
    if variance <= 0:
        return _unvaried("delong", difference, n)
    half = Z95 * math.sqrt(variance)
    figure = FigureFacts(
        value=difference,
        interval=(max(-1.0, difference - half), min(1.0, difference + half)),
        method="delong",
        n=n,
    )
    return Paired("delong", n, figure, math.erfc(abs(difference) / math.sqrt(2 * variance)))


def mcnemar(
    right_a: ArrayLike,
    right_b: ArrayLike,
    fakes: ArrayLike | None = None,
    names: Names | None = None,
) -> Paired:
    """Whether two systems are right on different shares of the same images: bool (n,) each.

    `fakes` and `names` (n,): as in `delong`; without clusters this is `mcnemar_of`. The share of
    fakes is taken as it is. Raises ValueError for lengths that differ.
    """
    first, second = np.asarray(right_a, dtype=np.bool_), np.asarray(right_b, dtype=np.bool_)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"right_a {first.shape} and right_b {second.shape} must be two rows of one length"
        )
    fake = np.zeros(len(first), np.bool_) if fakes is None else np.asarray(fakes, dtype=np.bool_)
    parts = _classes(fake, names)
    if not any(count for _, count in parts):
        return mcnemar_of(int((first & ~second).sum()), int((second & ~first).sum()), len(first))
    change = second.astype(np.float64) - first
    spreads = []
    for mine, part in zip((fake, ~fake), parts, strict=True):
        if some := int(mine.sum()):
            least = _variance_of_images(change[mine])
            spread = clusters.Spread(least, least, math.inf)
            if part[1]:
                spread = (
                    clusters.ClassSample(change[mine], *part, some)
                    .spread_of(change[mine], even=True)
                    .at_least(spread)
                )
            spreads.append(spread.scaled((some / len(fake)) ** 2))
    return _clustered("clustered mcnemar", float(change.mean()), spreads, len(fake))


def mcnemar_of(only_a: int, only_b: int, n: int) -> Paired:
    """McNemar's test from counts: images on which only a, or only b, is right, among n. Raises
    ValueError for counts that cannot be.

    p is the mid-p of the exact binomial test for any n, which keeps its level without the exact
    test's waste (Fagerland, Lydersen and Laake 2013). The interval is Wald's with Bonett and
    Price's (2012) adjustment; it has a width where nothing differs, too.
    """
    if min(only_a, only_b) < 0 or only_a + only_b > n:
        raise ValueError(f"{only_a} and {only_b} of {n} are no counts")
    if not n:
        return Paired("mcnemar", 0, undefined("there are no images"), None, "there are no images")
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    middle, half = (
        share_b - share_a,
        Z95 * math.sqrt((share_a + share_b - (share_b - share_a) ** 2) / (n + 2)),
    )
    interval = (max(-1.0, middle - half), min(1.0, middle + half))
    figure = FigureFacts(value=(only_b - only_a) / n, interval=interval, method="bonett-price", n=n)
    return Paired("mcnemar", n, figure, mid_p(only_a, only_a + only_b))


def mid_p(successes: int, n: int) -> float:
    """The two-sided mid-p of so many successes among n, where either outcome is as likely as the
    other; 1 for no trial.
    """
    from scipy.stats import binom

    fewer = min(successes, n - successes)
    return min(1.0, float(2 * binom.cdf(fewer, n, 0.5) - binom.pmf(fewer, n, 0.5))) if n else 1.0


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Each p corrected for all of them (Holm 1979), in the same order; None stays None and is no
    test.

    The chance that anything below α here is no difference, in the whole family, is at most α.
    """
    tests = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, place) in enumerate(tests):
        highest = max(highest, min(1.0, p * (len(tests) - rank)))
        corrected[place] = highest
    return corrected


def _placements(scores: Floats, fake: Bools) -> tuple[float, Floats, Floats]:
    """The AUC of scores (n,); of each fake the share of reals under it; of each real the share of
    fakes above it; a tie is half.
    """
    from scipy.stats import rankdata

    m, n = int(fake.sum()), int((~fake).sum())
    ranks = rankdata(scores)
    found = (ranks[fake] - rankdata(scores[fake])) / n
    passed = 1 - (ranks[~fake] - rankdata(scores[~fake])) / m
    return float(found.mean()), found, passed


def _classes(fake: Bools, names: Names | None) -> list[tuple[clusters.Codes, int]]:
    """Of fakes and of reals the cluster of each image, and how many there are."""
    if names is None:
        return [(np.zeros(int(mine.sum()), np.int64), 0) for mine in (fake, ~fake)]
    return [clusters.codes_of(names[mine]) for mine in (fake, ~fake)]


def _variance_of_images(change: Floats) -> float:
    """The variance of a mean of −1, 0 and 1, with one more of either (Bonett and Price 2012), so
    that it is never none.
    """
    n = len(change)
    fewer, more = ((int((change == one).sum()) + 1) / (n + 2) for one in (-1, 1))
    return (fewer + more - (more - fewer) ** 2) / (n + 2)


def _clustered(
    test: PairedTest, difference: float, spreads: list[clusters.Spread], n: int
) -> Paired:
    ends = clusters.ends_of(difference, spreads, "plain")
    if ends is None:
        return _unvaried(test, difference, n)
    figure = FigureFacts(
        value=difference,
        interval=(max(-1.0, ends[0]), min(1.0, ends[1])),
        method=clusters.CLUSTER_JACKKNIFE,
        n=n,
    )
    return Paired(test, n, figure, clusters.probability_of(difference, spreads))


def _unvaried(test: PairedTest, difference: float, n: int) -> Paired:
    """Of systems of which nothing varies: equal ones, or none that a test is defined for."""
    even = difference == 0
    return Paired(
        test,
        n,
        FigureFacts(value=difference, n=n),
        1.0 if even else None,
        None if even else "the AUCs do not vary",
    )
