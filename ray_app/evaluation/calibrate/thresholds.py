"""Calibrations (`fit`: Platt scaling), thresholds (`choose_threshold`) and a cascade's band
(`choose_band`).

Thresholds are chosen on held-out scores of one class, so that what is promised of them holds.
"""

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ray_app.detectors.card import Platt
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.config import MAX_FPR
from ray_app.metrics import calibration, uncertainty
from ray_app.metrics.arrays import Bools, Floats
from ray_app.metrics.clusters import EffectiveSize


@dataclass(frozen=True)
class ChosenThreshold:
    """A threshold and what was seen of it: of `n_real` reals, worth `effective` independent ones of
    `groups` groups, `false_positives` reach it, and `upper_bound` is the exact bound of that.
    """

    fake_above: float
    n_real: int
    false_positives: int
    upper_bound: float
    groups: int
    effective: float


@dataclass(frozen=True)
class Band:
    """Both ends belong to it. `share`: of the images it was chosen on, at their prevalence;
    `upper_bound`: what it is at most.
    """

    low: float
    high: float
    share: float
    upper_bound: float


_HINT = "check whether real and fake are swapped in the labels, or name the other detectors with --detector"


def fit(scores: ArrayLike, fake: ArrayLike, *, what: str = "the scores") -> Platt:
    """Fit Platt scaling of log-odds (n,) on labels (n,), 1 = fake; its chances are right where as
    large a share is fake as here.

    Raises ConfigError, which names `what`, where a class is missing, where scores are not finite,
    and where fakes score no higher than reals.
    """
    try:
        return calibration.fit_platt(scores, fake)
    except ValueError as error:
        raise ConfigError(f"{what} cannot be calibrated: {error}", hint=_HINT) from error


def choose_threshold(
    reals: ArrayLike,
    target: float,
    confidence: float = 0.95,
    *,
    size: EffectiveSize | None = None,
) -> ChosenThreshold:
    """The lowest threshold that the scores of reals (n,) allow: the smallest double that no more
    than `allowed` of them reach.

    With that confidence no more than the target share of further reals, drawn as these were and
    independent of each other, reach it: a threshold at an order statistic exceeds the target as
    often as a binomial of that many falls so low (Wilks 1941), whatever the distribution, with ties
    less often. Nothing else may have been fitted on these scores. `size`: what reals in groups are
    worth; the share that is allowed is then that of so many independent ones, and the promise is as
    good as that number is (docs/calibration.md). Raises ConfigError where they are too few.
    """
    scores = np.sort(np.asarray(reals, np.float64))
    n, few = len(scores), reals_needed(target, confidence)
    worth = n if size is None else size.effective
    if worth < few:
        grouped = (
            ""
            if size is None or size.groups == size.n
            else f", which are worth {size.effective:,.0f} independent ones"
        )
        raise ConfigError(
            f"thresholds are chosen on {n:,} reals{grouped}; a {100 * target:g} % target at {100 * confidence:g} % needs {few:,}",
            hint=hint_for_few_reals(worth, confidence),
        )
    most = false_positives_allowed(n, target, confidence, effective=worth)
    chosen = float(np.nextafter(scores[n - 1 - most], np.inf))
    return seen_at(chosen, scores, confidence, size=size)


def measured_threshold(reals: Floats, rate: float) -> float:
    """Return the lowest threshold that at most this fraction of the reals reach. Of further reals
    more may.
    """
    allowed = min(math.floor(rate * len(reals) * (1 + 1e-12)), len(reals) - 1)
    return float(np.nextafter(np.sort(reals)[len(reals) - 1 - allowed], np.inf))


def seen_at(
    fake_above: float,
    reals: Floats,
    confidence: float = 0.95,
    *,
    size: EffectiveSize | None = None,
) -> ChosenThreshold:
    """A threshold with what these reals show of it, whatever it was chosen on."""
    n, reached = len(reals), int(np.count_nonzero(reals >= fake_above))
    worth, groups = (float(n), n) if size is None else (size.effective, size.groups)
    bound = uncertainty.proportion_interval(reached * worth / n, worth, 1 - confidence)[1]
    return ChosenThreshold(fake_above, n, reached, bound, groups, worth)


def reals_needed(target: float, confidence: float = 0.95) -> int:
    """The fewest reals that can show a false-positive rate under the target: none of them is a
    false positive by chance too seldom.
    """
    return math.ceil(math.log(1 - confidence) / math.log1p(-target))


def hint_for_few_reals(reals: float, confidence: float = 0.95) -> str:
    """Return the way out if reals are too few for a target.

    Args:
        reals: The independent reals that thresholds are chosen on.
        confidence: Confidence of the bound on the false-positive rate.
    """
    more = "label more real images"
    if reals < 1:
        return more
    smallest = -math.expm1(math.log1p(-confidence) / reals)
    rounded = math.ceil(1000 * smallest) / 1000
    return f"{more}, or allow --fpr {rounded:g} or more" if rounded < MAX_FPR else more


def false_positives_allowed(
    n_real: int, target: float, confidence: float = 0.95, *, effective: float | None = None
) -> int:
    """The most false positives k among n reals whose upper bound is within the target: P(Bin(n,
    target) ≤ k) ≤ 1 − confidence; −1 if none.

    The bound is Clopper and Pearson's (1934), one-sided; of reals that are worth fewer, that of as
    large a share of the `effective` ones.
    """
    worth = n_real if effective is None else effective
    share = worth / max(n_real, 1)
    return (
        bisect_right(
            range(n_real),
            target,
            key=lambda k: uncertainty.proportion_interval(k * share, worth, 1 - confidence)[1],
        )
        - 1
    )


def real_below(fakes: ArrayLike, miss: float = 0.05, *, fake_above: float) -> float:
    """The highest threshold up to which no more than the share `miss` of the fakes (n,) lie; never
    above `fake_above`.

    A share that was seen, not a bound: fakes of few generators are no sample of all. Raises
    ConfigError where there are no fakes.
    """
    scores = np.sort(np.asarray(fakes, np.float64))
    if not len(scores):
        raise ConfigError("thresholds are chosen on 0 fakes", hint="label fake images")
    most = math.floor(miss * len(scores) * (1 + 1e-12))
    if most >= len(scores):
        return fake_above
    return min(fake_above, float(np.nextafter(scores[most], -np.inf)))


def choose_band(
    early: Floats,
    fake: Bools,
    *,
    share: float,
    prevalence: float,
    target: float,
    confidence: float = 0.95,
) -> Band:
    """Return the band of `early` scores (n,) in which all detectors score an image.

    Half of the target rate of reals lies above the band, which leaves the other half to the scores
    of all detectors. The band begins as low as the share allows. The share is that of images of
    which `prevalence` are fake, and it is kept by the exact upper bounds of both classes' shares,
    each of half of what 1 − `confidence` leaves.

    Raises:
        ConfigError: There are too few images to bound so small a share.
    """
    values = np.unique(early)
    classes = [
        (np.sort(early[fake == kind]), weight)
        for kind, weight in ((False, 1 - prevalence), (True, prevalence))
    ]
    upto = [
        (np.append(0, np.searchsorted(scores, values, "right")), len(scores), weight)
        for scores, weight in classes
    ]
    reals = classes[0][0]
    high = reals[len(reals) - 1 - int(target / 2 * len(reals))]
    end = int(np.searchsorted(values, high))

    def bound(start: int) -> float:
        """Return the upper bound of the share of the images from a value to the end."""
        inside = [(int(counts[end + 1] - counts[start]), n) for counts, n, _ in upto]
        bounds = [
            uncertainty.proportion_interval(k, n, (1 - confidence) / 2)[1] if n else 1.0
            for k, n in inside
        ]
        return sum(weight * most for (_, _, weight), most in zip(upto, bounds, strict=True))

    start = bisect_left(range(end + 1), True, key=lambda place: bound(place) <= share)
    if start > end:
        raise ConfigError(
            f"no band of at most {100 * share:g} % of the images can be told from {len(early):,} images",
            hint="label more images, or give a larger --share",
        )
    low = float(values[start])
    inside: Bools = (early >= low) & (early <= high)
    return Band(low, float(high), share_at(inside, fake, prevalence), bound(start))


def share_at(inside: Bools, fake: Bools, prevalence: float) -> float:
    """The share of images inside where `prevalence` of all are fake."""
    rates = [
        float(inside[fake == kind].mean()) if (fake == kind).any() else 0.0
        for kind in (False, True)
    ]
    return (1 - prevalence) * rates[0] + prevalence * rates[1]
