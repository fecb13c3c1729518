"""Fit calibrations (`fit`), and choose the thresholds of an ensemble (`choose_threshold`).

Calibrations use Platt scaling. Thresholds are chosen on held-out scores of one class, so that their
guarantees hold. `choose_band` is for cascades, in which the first detectors score every image and
all detectors score uncertain images. The band is the range of uncertain scores.
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
    """A threshold and its false positives among labelled real images.

    Attributes:
        fake_above: The threshold; scores that reach it are fake.
        n_real: Number of real images.
        false_positives: Number of real images that reach the threshold.
        upper_bound: Exact upper bound of the false-positive rate.
        groups: Number of groups, such as sources, that the real images form. Images of different
            groups are independent.
        effective: Number of independent images that the real images are worth. It equals `n_real`
            if all images are independent.
    """

    fake_above: float
    n_real: int
    false_positives: int
    upper_bound: float
    groups: int
    effective: float


@dataclass(frozen=True)
class Band:
    """The range of uncertain scores in which an image enters the second stage of a cascade.

    In a cascade, a few detectors score every image in the first stage. All detectors score the
    image in the second stage.

    Attributes:
        low: The lowest first-stage score of the band, in log-odds.
        high: The highest first-stage score of the band, in log-odds.
        fraction: The fraction of an archive's images in the band. It is computed for the prevalence
            of fakes that was given to `choose_band`.
        upper_bound: Upper bound of `fraction`.
    """

    low: float
    high: float
    fraction: float
    upper_bound: float


_HINT = "check whether real and fake are swapped in the labels, or select the other detectors with --detector"


def fit(scores: ArrayLike, fake: ArrayLike, *, name: str = "the scores") -> Platt:
    """Fit Platt scaling, which turns a detector's log-odds into calibrated log-odds.

    The resulting probabilities are correct for images with the same fraction of fakes as `fake`
    has.

    Args:
        scores: Log-odds (n,).
        fake: Labels (n,), 1 for fake.
        name: Name of the scores in messages.

    Raises:
        ConfigError: A class is missing, scores are not finite, or fakes score no higher than reals.
    """
    try:
        return calibration.fit_platt(scores, fake)
    except ValueError as error:
        raise ConfigError(f"{name} cannot be calibrated: {error}", hint=_HINT) from error


def choose_threshold(
    reals: ArrayLike,
    target: float,
    confidence: float = 0.95,
    *,
    size: EffectiveSize | None = None,
) -> ChosenThreshold:
    """Return the lowest threshold that keeps the false-positive rate within a target.

    With the given confidence, at most the target fraction of further reals reach the threshold.
    This requires that further reals are drawn as these reals were, that all are independent, and
    that nothing else was fitted on their scores.

    The threshold is the smallest double that at most k = `false_positives_allowed` of the n scores
    reach. For every distribution of scores, its rate exceeds the target with probability P(Bin(n,
    target) ≤ k) at most (Wilks 1941).

    Args:
        reals: Scores of real images (n,).
        target: Target of the false-positive rate.
        confidence: Confidence of the bound.
        size: The number of independent reals that the grouped reals are worth. It replaces n in the
            choice of the allowed fraction of false positives. It is an estimate, so the guarantee
            is not exact (docs/calibration.md). None treats all reals as independent.

    Raises:
        ConfigError: The reals are too few.
    """
    scores = np.sort(np.asarray(reals, np.float64))
    n, needed = len(scores), reals_needed(target, confidence)
    n_effective = n if size is None else size.effective
    if n_effective < needed:
        grouped = (
            ""
            if size is None or size.groups == size.n
            else f", which are worth {size.effective:,.0f} independent ones"
        )
        raise ConfigError(
            f"a false-positive rate of {100 * target:g} % at {100 * confidence:g} % confidence needs {needed:,} real images, got {n:,}{grouped}",
            hint=hint_for_few_reals(n_effective, confidence),
        )
    max_false_positives = false_positives_allowed(n, target, confidence, effective=n_effective)
    threshold = float(np.nextafter(scores[n - 1 - max_false_positives], np.inf))
    return evaluate_threshold(threshold, scores, confidence, size=size)


def lowest_threshold(reals: Floats, rate: float) -> float:
    """Return the lowest threshold that at most the fraction `rate` of the reals reach.

    There is no guarantee: a larger fraction of further reals may reach the threshold.
    """
    allowed = min(math.floor(rate * len(reals) * (1 + 1e-12)), len(reals) - 1)
    return float(np.nextafter(np.sort(reals)[len(reals) - 1 - allowed], np.inf))


def evaluate_threshold(
    fake_above: float,
    reals: Floats,
    confidence: float = 0.95,
    *,
    size: EffectiveSize | None = None,
) -> ChosenThreshold:
    """Count the false positives of any threshold among reals, and bound its false-positive rate.

    Args:
        fake_above: The threshold.
        reals: Scores of real images (n,).
        confidence: Confidence of the bound.
        size: The number of independent reals that the grouped reals are worth. None treats all
            reals as independent.
    """
    n, reached = len(reals), int(np.count_nonzero(reals >= fake_above))
    n_effective, groups = (float(n), n) if size is None else (size.effective, size.groups)
    bound = uncertainty.proportion_interval(reached * n_effective / n, n_effective, 1 - confidence)[
        1
    ]
    return ChosenThreshold(fake_above, n, reached, bound, groups, n_effective)


def reals_needed(target: float, confidence: float = 0.95) -> int:
    """Return the minimum number of reals that can show a false-positive rate within the target.

    With fewer reals, the upper bound of the rate exceeds the target even if none of them is a false
    positive.
    """
    return math.ceil(math.log(1 - confidence) / math.log1p(-target))


def hint_for_few_reals(reals: float, confidence: float = 0.95) -> str:
    """Return the hint for the error that `--fpr` needs more real images.

    Args:
        reals: Number of independent reals that thresholds are chosen on.
        confidence: Confidence of the bound on the false-positive rate.
    """
    hint = "label more real images"
    if reals < 1:
        return hint
    smallest = -math.expm1(math.log1p(-confidence) / reals)
    rounded = math.ceil(1000 * smallest) / 1000
    return f"{hint}, or allow --fpr {rounded:g} or more" if rounded < MAX_FPR else hint


def false_positives_allowed(
    n_real: int, target: float, confidence: float = 0.95, *, effective: float | None = None
) -> int:
    """Return the maximum number of false positives that keeps an upper bound within a target.

    The bound is that of the false-positive rate, one-sided by Clopper and Pearson (1934). The
    number is the largest k with P(Bin(n, target) ≤ k) ≤ 1 − confidence, or −1 if none exists.

    Args:
        n_real: Number of reals n.
        target: Target of the false-positive rate.
        confidence: Confidence of the bound.
        effective: Number of independent reals that the grouped reals are worth. The bound is then
            computed for this number of reals, with an equal fraction of false positives. None
            treats all reals as independent.
    """
    n_effective = n_real if effective is None else effective
    ratio = n_effective / max(n_real, 1)
    return (
        bisect_right(
            range(n_real),
            target,
            key=lambda k: uncertainty.proportion_interval(k * ratio, n_effective, 1 - confidence)[
                1
            ],
        )
        - 1
    )


def choose_real_below(fakes: ArrayLike, miss: float = 0.05, *, fake_above: float) -> float:
    """Return the threshold `real_below`, at or below which the verdict is real.

    It is the highest threshold for which at most the fraction `miss` of the given fakes would be
    called real, but at most `fake_above`. The fraction may be higher for further fakes,
    because fakes of few generators are not a sample of all fakes.

    Args:
        fakes: Scores of fakes (n,).
        miss: Fraction of fakes that may be called real.
        fake_above: The threshold for fakes.

    Raises:
        ConfigError: The list of fakes is empty.
    """
    scores = np.sort(np.asarray(fakes, np.float64))
    if not len(scores):
        raise ConfigError(
            "the threshold of the verdict real is chosen on scores of fake images, but no image is labelled fake",
            hint="label fake images, too",
        )
    max_missed = math.floor(miss * len(scores) * (1 + 1e-12))
    if max_missed >= len(scores):
        return fake_above
    return min(fake_above, float(np.nextafter(scores[max_missed], -np.inf)))


def choose_band(
    early: Floats,
    fake: Bools,
    *,
    fraction: float,
    prevalence: float,
    target: float,
    confidence: float = 0.95,
) -> Band:
    """Choose the range of first-stage scores in which all detectors of a cascade score an image.

    In a cascade, a few detectors score every image in the first stage. This range, the band, has
    the uncertain scores. Images above the band do not enter the second stage, except a random audit
    sample. So the band ends at a score that at most the fraction `target` / 2 of the reals exceed.
    The other half of `target` is left for false positives of the second stage. The band begins as
    low as `fraction` allows. The upper bound of the fraction of images in the band combines the
    exact bounds for both classes, each at half of 1 − `confidence`.

    Args:
        early: Scores of the first stage (n,).
        fake: Labels (n,).
        fraction: Maximum fraction of images in the band.
        prevalence: Fraction of fakes among the images of an archive.
        target: Target of the false-positive rate.
        confidence: Confidence of the bound on the fraction.

    Returns:
        The band.

    Raises:
        ConfigError: There are too few images to bound such a small fraction.
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
        """Return the upper bound of the fraction of images from a value to the end of the band."""
        inside = [(int(counts[end + 1] - counts[start]), n) for counts, n, _ in upto]
        bounds = [
            uncertainty.proportion_interval(k, n, (1 - confidence) / 2)[1] if n else 1.0
            for k, n in inside
        ]
        return sum(weight * rate for (_, _, weight), rate in zip(upto, bounds, strict=True))

    start = bisect_left(range(end + 1), True, key=lambda index: bound(index) <= fraction)
    if start > end:
        raise ConfigError(
            f"{len(early):,} labelled images are too few to ensure that the band has at most {100 * fraction:g} % of the images",
            hint="label more images, or set a larger --share",
        )
    low = float(values[start])
    inside: Bools = (early >= low) & (early <= high)
    return Band(low, float(high), fraction_at(inside, fake, prevalence), bound(start))


def fraction_at(inside: Bools, fake: Bools, prevalence: float) -> float:
    """Return the fraction of an archive's images that are in the band of a cascade.

    The band is the range of first-stage scores in which all detectors score an image. The fraction
    is computed from labelled images, in which fakes may be more or less frequent than in the
    archive.

    Args:
        inside: Whether each labelled image (n,) is inside the band.
        fake: Labels (n,).
        prevalence: Fraction of fakes in the archive.

    Returns:
        The fraction.
    """
    rates = [
        float(inside[fake == kind].mean()) if (fake == kind).any() else 0.0
        for kind in (False, True)
    ]
    return (1 - prevalence) * rates[0] + prevalence * rates[1]
