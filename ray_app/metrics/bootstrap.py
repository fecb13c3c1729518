"""95 % intervals by resampling (Efron's percentile bootstrap), for figures that have none of their own. Knows histograms; knows no figure.

A figure of two histograms of scores is a figure of any other two: a replicate is the same histograms with counts drawn anew, so that
every statistic costs what it costs once, times the replicates. Images are drawn within each class, which therefore never vanishes. Where
a class comes from ten generators or more, whole generators are drawn instead: images of one generator are alike, and an interval that
takes them for independent is too narrow; from fewer, the draw of generators itself says nothing (Cameron, Gelbach and Miller 2008).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_app.metrics.histograms import Counts, ScoreHistogram

LEAST_CLUSTERS = 10
_ENDS = (0.025, 0.975)
_MOST_UNDEFINED = 0.05  # of the replicates; more of them and the rest are a biased choice

Statistic = Callable[[ScoreHistogram, ScoreHistogram], float | None]
Statistics = Callable[[ScoreHistogram, ScoreHistogram], Mapping[str, float | None]]
ByGenerator = Sequence[ScoreHistogram]


class Interval(NamedTuple):
    """The ends of a 95 % interval and how it was made: "bootstrap", or "cluster bootstrap" where generators were drawn."""

    low: float
    high: float
    method: str


def replicates_for(n: int) -> int:
    """How many replicates for n images: 1,000 up to 2,000 images, 500 up to 20,000, else 200; the time is bounded, the noise too."""
    return 1_000 if n <= 2_000 else 500 if n <= 20_000 else 200


def bootstrap_intervals(
    statistics: Statistics, fakes: ScoreHistogram | ByGenerator, reals: ScoreHistogram | ByGenerator, *, replicates: int = 0, seed: int = 0
) -> dict[str, Interval | None]:
    """The interval of each of several statistics, all from the same replicates; `statistics` gives None where one is not defined.

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
