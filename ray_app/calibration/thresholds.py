"""Where verdicts begin, chosen on held-out scores so that what is promised of them holds. Knows scores of one class; knows no card."""

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ray_app.errors import ConfigError
from ray_app.metrics.histograms import ScoreHistogram
from ray_app.metrics.intervals import proportion_interval


@dataclass(frozen=True)
class Chosen:
    """A threshold and what was seen of it: of `n_real` reals `false_positives` reach it, and `upper_bound` is the exact bound of that."""

    fake_above: float
    n_real: int
    false_positives: int
    upper_bound: float


def needed(target: float, confidence: float = 0.95) -> int:
    """The fewest reals that can show a false-positive rate under the target: none of them is a false positive by chance too seldom."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-target))


def allowed(n_real: int, target: float, confidence: float = 0.95) -> int:
    """The most false positives k among n reals whose upper bound is within the target: P(Bin(n, target) ≤ k) ≤ 1 − confidence; −1 if none.

    The bound is Clopper and Pearson's (1934), one-sided.
    """
    return bisect_right(range(n_real), target, key=lambda k: proportion_interval(k, n_real, 1 - confidence)[1]) - 1


def choose(reals: ScoreHistogram | ArrayLike, target: float, confidence: float = 0.95) -> Chosen:
    """The lowest threshold that the scores of reals (n,) allow: the smallest double that no more than `allowed` of them reach.

    With that confidence no more than the target share of further reals, drawn as these were and independent of each other, reach it:
    a threshold at an order statistic exceeds the target as often as a binomial of that many falls so low (Wilks 1941), whatever the
    distribution, with ties less often. Nothing else may have been fitted on these scores. Raises ConfigError where they are too few.
    """
    scores = reals if isinstance(reals, ScoreHistogram) else ScoreHistogram.of(reals)
    few = needed(target, confidence)
    if scores.n < few:
        raise ConfigError(
            f"thresholds are chosen on {scores.n:,} reals; a {100 * target:g} % target at {100 * confidence:g} % needs {few:,}",
            hint="label more real images, or take a larger --fpr",
        )
    most = allowed(scores.n, target, confidence)
    beaten = float(scores.ranked(scores.n - 1 - most))  # the highest score that is not to be reached
    fake_above = float(np.nextafter(beaten, np.inf))
    false_positives = scores.at_or_above(fake_above)
    return Chosen(fake_above, scores.n, false_positives, proportion_interval(false_positives, scores.n, 1 - confidence)[1])


def real_below(fakes: ScoreHistogram | ArrayLike, miss: float = 0.05, *, fake_above: float) -> float:
    """The highest threshold up to which no more than the share `miss` of the fakes (n,) lie; never above `fake_above`.

    A share that was seen, not a bound: fakes of few generators are no sample of all. Raises ConfigError where there are no fakes.
    """
    scores = fakes if isinstance(fakes, ScoreHistogram) else ScoreHistogram.of(fakes)
    if not scores.n:
        raise ConfigError("thresholds are chosen on 0 fakes", hint="label fake images")
    most = math.floor(miss * scores.n * (1 + 1e-12))
    if most >= scores.n:
        return fake_above
    return min(fake_above, float(np.nextafter(scores.ranked(most), -np.inf)))
