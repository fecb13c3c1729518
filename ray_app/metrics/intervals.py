"""95 % intervals: DeLong's for an AUC (`auc_of`), Clopper and Pearson's for a proportion (`proportion`), Student's for a mean
(`mean_figure`), and the percentile bootstrap (`bootstrap_intervals`, `rates_interval`, `ratio_figure`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.metrics.arrays import Counts, MetricEstimate, ScoreHistogram, undefined

Z95 = 1.959963984540054  # 97.5 % point of the normal distribution
CLOPPER_PEARSON, DELONG = "clopper-pearson", "delong"

LEAST_CLUSTERS = 10
_ENDS = (0.025, 0.975)
_MOST_UNDEFINED = 0.05  # of the replicates; more of them and the rest are a biased choice

Statistics = Callable[[ScoreHistogram, ScoreHistogram], Mapping[str, float | None]]
ByGenerator = Sequence[ScoreHistogram]

STUDENT, BOOTSTRAP = "student", "bootstrap"
DRAWS = 1000


class Auc(NamedTuple):
    """An area under the ROC curve and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def auc_of(fakes: ScoreHistogram, reals: ScoreHistogram) -> Auc:
    """AUC of m fakes against n reals with its interval; ties count half, each image is independent. O(k log l), k and l distinct scores.

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


def proportion(successes: int, n: int, why: str) -> MetricEstimate:
    """A share of n images with its Clopper–Pearson interval; of none it is not defined, and `why` says so."""
    return MetricEstimate(successes / n, proportion_interval(successes, n), CLOPPER_PEARSON, n) if n else undefined(why)


def proportion_interval(successes: float, n: float, tail: float = 0.025) -> tuple[float, float]:
    """The exact 95 % interval of a proportion (Clopper and Pearson 1934), which covers no less than that.

    `tail`: how often the truth may lie beyond each end, where another interval than 95 % is wanted. Both counts may be effective ones, of
    images that are not independent, and then need not be whole.
    Raises ValueError where n is 0 or the successes are not 0 … n.
    """
    from scipy.special import betaincinv

    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} is no proportion")
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return low, high


def mean_figure(values: ArrayLike, why: str, *, bounds: tuple[float, float] = (0.0, 1.0)) -> MetricEstimate:
    """The mean of values (n,), each image counting once; NaN stands for an image without a value, and `n` counts the others.

    The 95 % interval is Student's, cut at `bounds`, outside which no value can lie. A single image and images that are all alike say
    nothing of their spread: they have none. Of no image at all the figure is not defined, and `why` says so.
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
        return MetricEstimate(mean, n=n)
    half = float(stdtrit(n - 1, 0.975)) * spread / math.sqrt(n)
    return MetricEstimate(mean, (max(bounds[0], mean - half), min(bounds[1], mean + half)), STUDENT, n)


def ratio_figure(over: ArrayLike, under: ArrayLike, why: str) -> MetricEstimate:
    """The mean of values (n,) by the mean of other values (n,) of the same images, bootstrapped over images.

    Not defined of no image (`why` says so), and where the mean below is not above 0. Raises ValueError for lengths that differ.
    """
    pairs = np.stack([np.asarray(over, np.float64), np.asarray(under, np.float64)])
    n = pairs.shape[1]
    if not n:
        return undefined(why)
    above, below = pairs.mean(axis=1).tolist()
    if below <= 0:
        return undefined("what it is divided by is 0 on average", n)
    generator = np.random.default_rng(0)
    drawn = [pairs[:, generator.integers(n, size=n)].mean(axis=1) for _ in range(DRAWS)] if n > 1 else []
    return resampled(above / below, [float(one[0] / one[1]) for one in drawn if one[1] > 0], n)


def resampled(value: float, drawn: Sequence[float], n: int) -> MetricEstimate:
    """A figure of n images with the percentile interval of its bootstrap replicates; none where they are all alike, or there are none."""
    if not len(drawn) or min(drawn) == max(drawn):
        return MetricEstimate(value, n=n)
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    return MetricEstimate(value, (low, high), BOOTSTRAP, n)


class Interval(NamedTuple):
    """The ends of a 95 % interval and how it was made: "bootstrap", or "cluster bootstrap" where generators were drawn."""

    low: float
    high: float
    method: str


def bootstrap_intervals(
    statistics: Statistics, fakes: ScoreHistogram | ByGenerator, reals: ScoreHistogram | ByGenerator, *, replicates: int = 0, seed: int = 0
) -> dict[str, Interval | None]:
    """The interval of each of several statistics, all from the same replicates; `statistics` gives None where one is not defined.

    Efron's percentile bootstrap. A replicate is the same histograms with counts drawn anew, so that every statistic costs what it costs
    once, times the replicates. Images are drawn within each class, which therefore never vanishes. Where a class comes from ten generators
    or more, whole generators are drawn instead: images of one generator are alike, and an interval that takes them for independent is too
    narrow; from fewer, the draw of generators itself says nothing (Cameron, Gelbach and Miller 2008).

    `fakes`, `reals`: the scores of a class as one histogram, or as one per generator; of ten generators or more whole ones are drawn.
    `replicates`: 0 for as many as `replicates_for` says. None in place of an interval: the statistic is not defined in more than 5 % of
    the replicates, or all of them agree (no fake was missed, say), of which resampling can say nothing.
    """
    classes = [_Class.of(one) for one in (fakes, reals)]
    method = "cluster bootstrap" if any(one.clusters for one in classes) else "bootstrap"
    generator = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    times = replicates or replicates_for(sum(one.n for one in classes))
    for _ in range(times):
        for name, value in statistics(*(one.drawn(generator) for one in classes)).items():
            found.setdefault(name, []).append(math.nan if value is None else value)
    return {name: _percentiles(values, method) for name, values in found.items()}


def rates_interval(rates: Sequence[tuple[int, int]], *, weighted: bool = False, replicates: int = 2_000, seed: int = 0) -> Interval | None:
    """The interval of an average of rates, (hits, n) each: unweighted, or `weighted` by n.

    Of ten rates or more, whole ones are drawn; of fewer, the images of each. None as in `bootstrap_intervals`, and where a rate is of
    no image. Replicates are drawn at once: (replicates, rates).
    """
    hits, sizes = np.array(rates, dtype=np.int64).reshape(-1, 2).T
    if not len(sizes) or sizes.min() < 1:
        return None
    generator = np.random.default_rng(seed)
    if len(rates) >= LEAST_CLUSTERS:
        drawn = generator.integers(0, len(rates), (replicates, len(rates)))
        some, of, method = hits[drawn], sizes[drawn], "cluster bootstrap"
    else:
        some, method = generator.binomial(sizes, hits / sizes, (replicates, len(rates))), "bootstrap"
        of = np.broadcast_to(sizes, some.shape)
    values = some.sum(1) / of.sum(1) if weighted else (some / of).mean(1)
    return _percentiles(values, method)


def replicates_for(n: int) -> int:
    """How many replicates for n images: 1,000 up to 2,000 images, 500 up to 20,000, else 200; the time is bounded, the noise too."""
    return 1_000 if n <= 2_000 else 500 if n <= 20_000 else 200


def _spread_of_reals(fakes: ScoreHistogram, below: Counts, upto: Counts, n: int, mean: float) -> float:
    """Squares, summed over n reals, of how far the share of fakes under each lies from the mean of those shares.

    The reals fall into runs at and between the fakes' values; all reals of a run have the same share of fakes under them.
    """
    m, passed = fakes.n, fakes.passed[1:]
    at = float((upto - below) @ ((passed - fakes.counts / 2) / m - mean) ** 2)
    between = float((np.append(below[1:], n) - upto) @ (passed / m - mean) ** 2)
    return at + between + float(below[0]) * mean**2


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def _percentiles(values: Sequence[float] | NDArray[np.float64], method: str) -> Interval | None:
    numbers = np.asarray(values, dtype=np.float64)
    defined = numbers[np.isfinite(numbers)]
    if len(defined) < (1 - _MOST_UNDEFINED) * len(numbers) or not len(defined) or defined.min() == defined.max():
        return None
    low, high = np.quantile(defined, _ENDS)
    return Interval(float(low), float(high), method)


@dataclass(frozen=True)
class _Class:
    """What is drawn of one class. `places`: of each image or, with clusters, of each cluster's score, its place among the values.

    With `clusters` (how many), `members` says whose a place is and `counts` how many images stand there.
    """

    values: NDArray[np.float64]
    places: NDArray[np.int64]
    n: int
    clusters: int = 0
    members: NDArray[np.int64] | None = None
    counts: Counts | None = None

    @classmethod
    def of(cls, scores: ScoreHistogram | ByGenerator) -> "_Class":
        pieces = [scores] if isinstance(scores, ScoreHistogram) else [one for one in scores if one.n]
        merged = ScoreHistogram.merged(pieces)
        if len(pieces) < LEAST_CLUSTERS:
            return cls(merged.values, np.repeat(np.arange(len(merged.values)), merged.counts), merged.n)
        places = np.searchsorted(merged.values, np.concatenate([one.values for one in pieces]))
        members = np.repeat(np.arange(len(pieces)), [len(one.values) for one in pieces])
        return cls(merged.values, places, merged.n, len(pieces), members, np.concatenate([one.counts for one in pieces]))

    def drawn(self, generator: np.random.Generator) -> ScoreHistogram:
        """One replicate: as many images, or clusters, as there are, drawn with replacement."""
        size = len(self.values)
        if self.clusters and self.members is not None and self.counts is not None:
            times = np.bincount(generator.integers(0, self.clusters, self.clusters), minlength=self.clusters)
            counts = np.bincount(self.places, weights=self.counts * times[self.members], minlength=size).astype(np.int64)
        elif self.n:
            counts = np.bincount(self.places[generator.integers(0, self.n, self.n)], minlength=size)
        else:
            counts = np.zeros(size, np.int64)
        there = counts > 0
        return ScoreHistogram(self.values[there], counts[there])
