"""Calibrations (`fit`: Platt scaling), thresholds (`choose_threshold`) and a cascade's band
(`choose_band`).

Thresholds are chosen on held-out scores of one class, so that what is promised of them holds. The
band of early scores is the one that finds most fakes at its share.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from ray_app.detectors.card import Platt
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.data import Places
from ray_app.metrics import calibration, uncertainty
from ray_app.metrics.arrays import Bools, Floats, ScoreHistogram
from ray_app.metrics.clusters import EffectiveSize

_STARTS = 48
_RESAMPLES = 32
_FEW = 20_000  # images; of more, one estimate from them is sure enough


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
    reals: ScoreHistogram | ArrayLike,
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
    scores = reals if isinstance(reals, ScoreHistogram) else ScoreHistogram.of(reals)
    few, worth = reals_needed(target, confidence), scores.n if size is None else size.effective
    if worth < few:
        grouped = (
            ""
            if size is None or size.groups == size.n
            else f", which are worth {size.effective:,.0f} independent ones"
        )
        raise ConfigError(
            f"thresholds are chosen on {scores.n:,} reals{grouped}; a {100 * target:g} % target at {100 * confidence:g} % needs {few:,}",
            hint="label more real images, or take a larger --fpr",
        )
    most = false_positives_allowed(scores.n, target, confidence, effective=worth)
    # the highest score that is not to be reached
    beaten = float(scores.ranked(scores.n - 1 - most))
    chosen = float(np.nextafter(beaten, np.inf))
    return seen_at(chosen, scores, confidence, size=size)


def seen_at(
    fake_above: float,
    reals: ScoreHistogram,
    confidence: float = 0.95,
    *,
    size: EffectiveSize | None = None,
) -> ChosenThreshold:
    """A threshold with what these reals show of it, whatever it was chosen on."""
    worth, reached = (
        float(reals.n) if size is None else size.effective,
        reals.at_or_above(fake_above),
    )
    bound = uncertainty.proportion_interval(reached * worth / reals.n, worth, 1 - confidence)[1]
    return ChosenThreshold(
        fake_above, reals.n, reached, bound, reals.n if size is None else size.groups, worth
    )


def reals_needed(target: float, confidence: float = 0.95) -> int:
    """The fewest reals that can show a false-positive rate under the target: none of them is a
    false positive by chance too seldom.
    """
    return math.ceil(math.log(1 - confidence) / math.log1p(-target))


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


def real_below(
    fakes: ScoreHistogram | ArrayLike, miss: float = 0.05, *, fake_above: float
) -> float:
    """The highest threshold up to which no more than the share `miss` of the fakes (n,) lie; never
    above `fake_above`.

    A share that was seen, not a bound: fakes of few generators are no sample of all. Raises
    ConfigError where there are no fakes.
    """
    scores = fakes if isinstance(fakes, ScoreHistogram) else ScoreHistogram.of(fakes)
    if not scores.n:
        raise ConfigError("thresholds are chosen on 0 fakes", hint="label fake images")
    most = math.floor(miss * scores.n * (1 + 1e-12))
    if most >= scores.n:
        return fake_above
    return min(fake_above, float(np.nextafter(scores.ranked(most), -np.inf)))


def choose_band(
    early: Floats,
    late: Floats,
    fake: Bools,
    *,
    share: float,
    prevalence: float,
    target: float,
    confidence: float = 0.95,
) -> Band:
    """The band of `early` scores (n,) inside which `late` ones count, such that the share of images
    in it is at most `share`.

    Of bands that start at different places and are as wide as the share allows, the one with which
    most fakes are found where the share `target` of reals is called fake; of equal ones, the one
    with the smaller log-loss. So small a share of reals is few images, and which band they favour
    is chance: what is found is the mean over resampled images. The share is that of images of which
    `prevalence` are fake, and it is kept by the exact upper bounds of both classes' shares, each of
    half of what 1 − `confidence` leaves. Raises ConfigError where there are too few images to bound
    so small a share.
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

    def bound(start: int, end: int) -> float:
        """What the share of the images between two of the values is at most."""
        return sum(
            weight
            * (
                uncertainty.proportion_interval(
                    int(counts[end + 1] - counts[start]), n, (1 - confidence) / 2
                )[1]
                if n
                else 1.0
            )
            for counts, n, weight in upto
        )

    drawn = _resampled(fake)
    best: tuple[tuple[float, float], Band] | None = None
    for start in np.unique(np.linspace(0, len(values) - 1, _STARTS).round().astype(int)).tolist():
        end = start + bisect_right(range(start, len(values)), share, key=partial(bound, start)) - 1
        if end < start:
            continue
        low, high = float(values[start]), float(values[end])
        inside = (early >= low) & (early <= high)
        scores = np.where(inside, late, early)
        found = [_found(scores[reals], scores[fakes], target) for reals, fakes in drawn]
        worth = (
            float(np.mean(found)),
            -float(np.logaddexp(0, np.where(fake, -scores, scores)).mean()),
        )
        if best is None or worth > best[0]:
            best = worth, Band(low, high, share_at(inside, fake, prevalence), bound(start, end))
    if best is None:
        raise ConfigError(
            f"no band of at most {100 * share:g} % of the images can be told from {len(early):,} images",
            hint="label more images, or give a larger --share",
        )
    return best[1]


def share_at(inside: Bools, fake: Bools, prevalence: float) -> float:
    """The share of images inside where `prevalence` of all are fake."""
    rates = [
        float(inside[fake == kind].mean()) if (fake == kind).any() else 0.0
        for kind in (False, True)
    ]
    return (1 - prevalence) * rates[0] + prevalence * rates[1]


def _resampled(fake: Bools) -> list[tuple[Places, Places]]:
    """Places of reals and of fakes, drawn anew with replacement, each time as many; all of them
    once where they are many.
    """
    classes = np.flatnonzero(~fake), np.flatnonzero(fake)
    if len(fake) > _FEW:
        return [classes]
    random = np.random.default_rng(0)
    reals, fakes = (
        [random.choice(places, len(places)) for _ in range(_RESAMPLES)] for places in classes
    )
    return list(zip(reals, fakes, strict=True))


def _found(reals: Floats, fakes: Floats, target: float) -> float:
    """The share of fakes above the threshold that the share `target` of reals reach."""
    place = len(reals) - 1 - int(target * len(reals))
    return float((fakes > np.partition(reals, place)[place]).mean())
