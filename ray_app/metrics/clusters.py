"""How surely a figure is known where images come in clusters, of generators or sources: a `Spread`
for each class, and what follows.

`spread_of` estimates a variance from what each cluster contributes, `ends_of` gives a 95 %
interval, `probability_of` the p of a difference. One method for every figure: clusters left out one
at a time (the jackknife: Efron and Stein 1981; Obuchowski 1997 for AUCs).

How many independent images grouped ones are worth (`effective_size`), for rates of rare events:
images of one source score alike, and what counts is how alike they are in the tail, which few of
them reach.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from ray_app.metrics.arrays import Bools, Counts, Floats
from ray_app.metrics.intervals import inverse_logit

CLUSTER_JACKKNIFE = "cluster jackknife"
# of two nothing can be said of further ones: Student's t of one degree of freedom is 12.7
FEWEST_CLUSTERS = 3
MOST_CLUSTERS = 100  # more are put together at random, which costs no width
BLOCKS = 30  # of images, where a figure has no formula for what an image contributes
# of the degrees of freedom count, above _SURE: clusters' figures are skewed, which Student's t does
# not know
_CAUTION = 2 / 3
_SURE = 2.25

Scale = Literal["plain", "log", "logit"]
Codes = npt.NDArray[np.int64]


class Spread(NamedTuple):
    """Variance of a figure that one class brings in, towards smaller and towards larger values, and
    its degrees of freedom.
    """

    below: float
    above: float
    freedom: float

    def at_least(self, other: "Spread") -> "Spread":
        """Never less variance than another has: clusters of images cannot vary less than images."""
        return self._replace(below=max(self.below, other.below), above=max(self.above, other.above))

    def scaled(self, factor: float) -> "Spread":
        """With variances times a factor."""
        return self._replace(below=self.below * factor, above=self.above * factor)


NOTHING = Spread(0.0, 0.0, math.inf)


class ClassSample(NamedTuple):
    """One class: scores (m,), the cluster of each (m,) 0 … `clusters` − 1, and of how many images
    `n` they are a sample.

    With fewer than `FEWEST_CLUSTERS` `clusters` is 0: images are taken for independent.
    """

    scores: Floats
    codes: Codes
    clusters: int
    n: int

    @classmethod
    def of(
        cls,
        scores: Floats,
        names: npt.NDArray[np.object_] | None = None,
        n: int | None = None,
        seed: int = 0,
    ) -> "ClassSample":
        """Of scores (m,), the NaN left out, with the names (m,) of their clusters; more than
        MOST_CLUSTERS of them are put together.
        """
        there = np.isfinite(scores)
        kept = scores[there]
        codes, clusters = (
            (np.zeros(len(kept), np.int64), 0) if names is None else codes_of(names[there], seed)
        )
        return cls(kept, codes, clusters, len(kept) if n is None else n)

    @property
    def weights(self) -> Floats:
        """The share of each cluster, (clusters,)."""
        return np.bincount(self.codes, minlength=self.clusters) / len(self.codes)

    def spread_of(self, values: Floats, *, even: bool = False) -> Spread:
        """That of the mean of values (m,), one for each score; of images it is brought to all n.
        `even`: as in `spread_of`.
        """
        images = spread_of(values - values.mean(), even=even).scaled(len(values) / max(self.n, 1))
        if not self.clusters:
            return images
        sums = np.bincount(self.codes, values - values.mean(), self.clusters)
        return spread_of(sums / len(values), self.weights, even=even).at_least(images)


def codes_of(names: npt.NDArray[np.object_], seed: int = 0) -> tuple[Codes, int]:
    """The cluster of each name (m,), and how many there are; 0 where there are fewer than
    `FEWEST_CLUSTERS`.
    """
    distinct, codes = np.unique(names.astype(str), return_inverse=True)
    if len(distinct) < FEWEST_CLUSTERS:
        return np.zeros(len(names), np.int64), 0
    if len(distinct) > MOST_CLUSTERS:
        codes = (np.random.default_rng(seed).permutation(len(distinct)) % MOST_CLUSTERS)[codes]
    return codes.astype(np.int64), min(len(distinct), MOST_CLUSTERS)


def spread_of(
    contributions: Floats, weights: Floats | None = None, *, even: bool = False
) -> Spread:
    """That of a figure to which clusters contribute (k,): for a mean, weight times how far each
    one's own mean lies off.

    `weights` (k,) add up to 1; None: contributions are of k images, in units of the mean, not
    divided by k. The variance has no bias where clusters vary alike, whatever their sizes; the
    degrees of freedom are those of Bell and McCaffrey (2002), less where contributions have heavy
    tails. Where clusters lie farther off on one side, the variance on that side is larger, and
    degrees of freedom are taken away for what few clusters do not show of a skewed distribution;
    not where it is `even`, as that of a difference of two systems is.
    """
    k = len(contributions)
    if k < 2:
        return NOTHING
    if weights is None:
        parts, off, freedom = contributions**2 / (k * (k - 1)), contributions, k - 1.0
    else:
        bends = weights**2 / (1 - weights)
        residual = np.eye(k) - weights
        form = residual.T @ (bends[:, None] * residual)
        parts = (
            contributions**2 / (1 - weights) * (float((weights**2).sum()) / float(np.trace(form)))
        )
        off, freedom = contributions / weights, float(np.trace(form)) ** 2 / float((form**2).sum())
    variance = float(parts.sum())
    if variance <= 0:
        return Spread(0.0, 0.0, freedom)
    squares = (off / np.abs(off).max()) ** 2
    kurtosis = max(0.0, k * float((squares**2).sum()) / float(squares.sum()) ** 2 - 3)
    freedom = 2 / (2 / freedom + kurtosis / k)
    if even:
        return Spread(variance, variance, max(1.0, freedom))
    freedom = _cautious(freedom)
    return Spread(
        max(variance, 2 * float(parts[off < 0].sum())),
        max(variance, 2 * float(parts[off > 0].sum())),
        freedom,
    )


def covariance_of(values: Floats, sample: ClassSample) -> Floats:
    """The covariance (d, d) of the mean of centred values (m, d), one row a score: over clusters
    where there are any, else over images.

    Over clusters it is widened so that the normal distribution has the width of Student's t.
    """
    m = len(values)
    if m < 2:
        return np.zeros((values.shape[1], values.shape[1]))
    images: Floats = values.T @ values / (m * (m - 1)) * (m / max(sample.n, m))
    if not sample.clusters:
        return images
    sums = (
        np.stack(
            [np.bincount(sample.codes, column, sample.clusters) for column in values.T], axis=1
        )
        / m
    )
    found: Floats = (sums / np.sqrt(1 - sample.weights)[:, None]).T @ (
        sums / np.sqrt(1 - sample.weights)[:, None]
    )
    found *= (_t(_cautious(sample.clusters - 1)) / _t(math.inf)) ** 2
    short = np.diag(images) > np.diag(found)
    found[short, short] = np.diag(images)[short]
    return found


def ends_of(
    value: float, spreads: Sequence[Spread], scale: Scale = "logit"
) -> tuple[float, float] | None:
    """A figure's 95 % interval; None where nothing varies, or the figure is at an end of its scale.

    Each class has Student's t of its own clusters, and the squares of the widths add up, which
    never covers less than it says (Banerjee 1960). On a `logit` (0 … 1) or `log` (from 0) scale, so
    that ends stay within.
    """
    low, high = (
        math.sqrt(sum(_t(one.freedom) ** 2 * getattr(one, side) for one in spreads))
        for side in ("below", "above")
    )
    if (
        not low
        or not high
        or (scale != "plain" and value <= 0)
        or (scale == "logit" and value >= 1)
    ):
        return None
    if scale == "plain":
        return value - low, value + high
    if scale == "log":
        return value * math.exp(-min(low / value, 700)), value * math.exp(min(high / value, 700))
    slope, middle = value * (1 - value), math.log(value / (1 - value))
    return inverse_logit(middle - low / slope), inverse_logit(middle + high / slope)


def probability_of(difference: float, spreads: Sequence[Spread]) -> float:
    """The two-sided p of a difference's being 0: 1 less the confidence at which its interval ends
    there.
    """
    from scipy.special import stdtrit

    side = "below" if difference > 0 else "above"
    parts = [(one.freedom, float(getattr(one, side))) for one in spreads]
    if not difference or not any(variance for _, variance in parts):
        return 1.0 if not difference else 0.0
    low, high = -745.0, 0.0  # of the logarithm of p
    for _ in range(60):
        middle = (low + high) / 2
        tail = math.exp(middle) / 2
        reach = sum(
            float(stdtrit(min(freedom, 1e9), tail)) ** 2 * variance for freedom, variance in parts
        )
        low, high = (middle, high) if reach > difference**2 else (low, middle)
    return math.exp(high)


def left_out(figure: Callable[[Floats], float], counts: Floats) -> Spread:
    """The spread of a figure of one class by counts (k, v) of its clusters at v scores, each left
    out; `figure` takes counts (v,).
    """
    if len(counts) < 2:  # without the only cluster there is no figure
        return NOTHING
    every = counts.sum(axis=0)
    weights = counts.sum(axis=1) / every.sum()
    value = figure(every)
    return spread_of(
        np.array(
            [
                (1 - weight) * (value - figure(every - one))
                for weight, one in zip(weights, counts, strict=True)
            ]
        ),
        weights,
    )


def blocks_of(m: int, seed: int = 0) -> Codes:
    """m images in BLOCKS random blocks of equal size, or each by itself where there are fewer: the
    block of each (m,).
    """
    return np.random.default_rng(seed).permutation(m) % min(BLOCKS, max(m, 1))


def _cautious(freedom: float) -> float:
    """Fewer degrees of freedom; found by simulation (tests/statistics/test_generators.py)."""
    return max(1.0, _CAUTION * freedom, min(freedom, _SURE))


def _t(freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(min(freedom, 1e9), 0.975))


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
