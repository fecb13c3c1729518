"""Calibration: Platt scaling (`fit_platt`), and how good scores are as probabilities: log-loss,
Brier score, reliability, ECE.

The probability of fake is the sigmoid of the calibrated score with a calibration, and of the score
without.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.detectors.card import Platt
from ray_app.ensembles import calibrate
from ray_app.metrics import clusters, intervals, operating_points
from ray_app.metrics.arrays import Bools, FigureFacts, Floats, ScoreHistogram, checked, undefined

FEWEST_FOR_ECE = 100
# of a reliability diagram: the interval of a share of fewer says next to nothing
FEWEST_IN_BIN = 20
_LARGEST = np.finfo(np.float64).max


def fit_platt(scores: ArrayLike, labels: ArrayLike) -> Platt:
    """Platt scaling of log-odds (n,) on labels (n,), 1 = fake: the slope and intercept of the least
    cross-entropy.

    The targets are Platt's (1999), drawn in from 0 and 1 by the size of each class, so that scores
    which separate the classes still get a finite slope. The probabilities are right where as large
    a share is fake as here. Raises ValueError where one class is missing or where the scores do not
    rise from real to fake, and as `checked` does.
    """
    numbers, fake = _both_classes(scores, labels)
    slope, intercept = _least_cross_entropy(numbers, fake)
    if slope <= 0:
        raise ValueError(
            f"fakes score no higher than reals (slope {slope:.3g} on {len(numbers):,} images): calibration would turn the verdict"
        )
    return Platt(slope=slope, intercept=intercept)


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15
) -> float:
    """How far P(fake) (n,) lies from the share that is fake, on average over `bins` of equal width,
    by images (Guo et al. 2017).

    Raises ValueError for probabilities outside 0 … 1, and as `checked` does.
    """
    chances, fake = checked(probabilities, labels)
    if chances.min() < 0 or chances.max() > 1:
        raise ValueError(
            f"probabilities lie between 0 and 1; these go from {chances.min():g} to {chances.max():g}"
        )
    _, expected = binned(chances, np.ones(len(chances)), bins)
    n_fake, _ = binned(chances, fake.astype(np.float64), bins)
    return float(np.abs(expected - n_fake).sum() / len(chances))


def log_loss(
    fakes: ScoreHistogram, reals: ScoreHistogram, calibration: Platt | None = None
) -> FigureFacts:
    """The mean cross-entropy (natural logarithm) of the log-odds, without clipping: a sure score
    that is wrong costs all that it says.
    """
    return _mean_loss(losses, fakes, reals, calibration)


def brier_score(
    fakes: ScoreHistogram, reals: ScoreHistogram, calibration: Platt | None = None
) -> FigureFacts:
    """The mean square of what chance and truth, 0 or 1, are apart (Brier 1950)."""
    return _mean_loss(squares, fakes, reals, calibration)


def debiased_ece(
    fakes: ScoreHistogram, reals: ScoreHistogram, calibration: Platt | None = None, bins: int = 15
) -> FigureFacts:
    """The expected calibration error (Guo et al. 2017, bins of equal width) less the part of it
    that comes from the bins' being finite.

    The plain one is above 0 even of perfect chances, the more so the fewer images. The correction
    is that of Kumar, Liang and Ma (2019) for the mean of absolute differences, `debias=True, p=1`
    in their library `uncertainty-calibration`: twice the error less what it would be on average
    with the bins' shares drawn anew, from normal distributions with the shares' binomial variances.
    That average is computed (the mean of a folded normal) where theirs is of 1,000 draws. Never
    below 0. It removes most of the bias, not all. Not defined with one class or with fewer than
    `FEWEST_FOR_ECE` images, of which the correction is mostly noise.
    """
    n = fakes.n + reals.n
    if not fakes.n or not reals.n:
        return undefined(operating_points.ONE_CLASS, n)
    if n < FEWEST_FOR_ECE:
        return undefined(f"it needs {FEWEST_FOR_ECE} images or more; there are {n}", n)
    by_class = [
        binned(_chances(one.values, calibration), one.counts, bins) for one in (fakes, reals)
    ]
    total, expected = by_class[0][0] + by_class[1][0], by_class[0][1] + by_class[1][1]
    filled = total > 0
    in_bin, n_fake, expected = total[filled], by_class[0][0][filled], expected[filled]
    share = n_fake / in_bin
    gap = np.abs(expected / in_bin - share)
    redrawn = _mean_of_folded(gap, np.sqrt(share * (1 - share) / in_bin))
    return FigureFacts(value=max(0.0, float(in_bin @ (2 * gap - redrawn)) / n), n=n)


def losses(scores: Floats, is_fake: bool, calibration: Platt | None = None) -> Floats:
    """The cross-entropy of each score (n,) of one class, in nats."""
    odds = _log_odds(scores, calibration)
    found: Floats = np.logaddexp(0, -odds if is_fake else odds)
    return found


def squares(scores: Floats, is_fake: bool, calibration: Platt | None = None) -> Floats:
    """The square of what chance and truth are apart, of each score (n,) of one class."""
    found: Floats = (_chances(scores, calibration) - is_fake) ** 2
    return found


def bin_gaps(
    classes: Sequence[tuple[clusters.ClassSample, bool, float]],
    calibration: Platt | None = None,
    bins: int = 15,
) -> tuple[Floats, Floats]:
    """Of each bin how far chances lie above truths, in shares of all images (bins,), and the
    covariance of that (bins, bins).

    `classes`: scores, whether they are fakes, and the class's share. Of clusters the covariance is
    widened by Student's t of theirs; the variance of a bin is no less than of a share with one more
    fake and one more real.
    """
    gap, spread = np.zeros(bins), np.zeros((bins, bins))
    n_fake, n, images = np.zeros(bins), np.zeros(bins), 0
    for sample, is_fake, share in classes:
        probabilities = _chances(sample.scores, calibration)
        bin_of = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
        apart = np.zeros((len(probabilities), bins))
        apart[np.arange(len(probabilities)), bin_of] = probabilities - is_fake
        gap += share * apart.mean(axis=0)
        spread += share**2 * clusters.covariance_of(apart - apart.mean(axis=0), sample)
        counts = np.bincount(bin_of, minlength=bins)
        n, n_fake, images = (
            n + counts,
            n_fake + counts * is_fake,
            images + max(sample.n, len(probabilities)),
        )
    smoothed = (n_fake + 1) / (n + 2)
    least = n / max(n.sum(), 1) * smoothed * (1 - smoothed) / max(images, 1)
    spread[np.diag_indices(bins)] = np.maximum(np.diag(spread), least)
    return gap, spread


def reliability(
    fakes: ScoreHistogram, reals: ScoreHistogram, calibration: Platt | None = None, bins: int = 10
) -> list[dict[str, Any]]:
    """Bins of equal count over the stated chances, in order: least and greatest chance (`low`,
    `high`), `n`, their mean `probability`, `fake_share` and its `interval` (Clopper and Pearson's).

    At most `bins` of them, each of `FEWEST_IN_BIN` images or more where there are as many; images
    of one chance are never divided. The calibration errors have bins of equal width.
    """
    values = np.concatenate([_chances(one.values, calibration) for one in (fakes, reals)])
    counts = np.concatenate([fakes.counts, reals.counts]).astype(np.int64)
    chances, place_of = np.unique(values, return_inverse=True)
    n = np.bincount(place_of, weights=counts).astype(np.int64)
    n_fake = np.bincount(
        place_of[: len(fakes.values)], weights=fakes.counts, minlength=len(chances)
    ).astype(np.int64)
    total = int(n.sum())
    if not total:
        return []
    found = []
    start, passed = 0, np.concatenate([[0], np.cumsum(n)])
    for left in range(min(bins, max(1, total // FEWEST_IN_BIN)), 0, -1):
        if start == len(chances):
            break
        share = -((passed[start] - total) // left)  # of what is left, rounded up
        end = int(np.searchsorted(passed, passed[start] + share))
        end = len(chances) if total - passed[end] < FEWEST_IN_BIN else end
        inside, fake = int(n[start:end].sum()), int(n_fake[start:end].sum())
        found.append(
            {
                "low": float(chances[start]),
                "high": float(chances[end - 1]),
                "n": inside,
                "probability": float(chances[start:end] @ n[start:end]) / inside,
                "fake_share": fake / inside,
                "interval": list(intervals.proportion_interval(fake, inside)),
            }
        )
        start = end
    return found


def binned(chances: Floats, weights: NDArray[Any], bins: int) -> tuple[Floats, Floats]:
    """Chances 0 … 1 (k,) in bins of equal width, each as often as its weight: how many are in each
    bin, and their sum.
    """
    bin_of = np.minimum((chances * bins).astype(np.int64), bins - 1)
    sums = [
        np.bincount(bin_of, weights=each, minlength=bins).astype(np.float64)
        for each in (weights, weights * chances)
    ]
    return sums[0], sums[1]


def _both_classes(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Bools]:
    numbers, fake = checked(scores, labels)
    n_fake, n_real = int(fake.sum()), int((~fake).sum())
    if not n_fake or not n_real:
        raise ValueError(
            f"calibration needs real and fake images; there are {n_real:,} real and {n_fake:,} fake"
        )
    if numbers.min() == numbers.max():
        raise ValueError(
            f"calibration needs scores that differ; all {len(numbers):,} are {numbers[0]:g}"
        )
    return numbers, fake


def _least_cross_entropy(numbers: Floats, fake: Bools) -> tuple[float, float]:
    """Return the slope and intercept of logistic regression on scores (n,) that differ, with
    Platt's targets.
    """
    from sklearn.linear_model import LogisticRegression

    n_fake, n_real = int(fake.sum()), int((~fake).sum())
    centre = numbers.mean()
    scale = np.sqrt(np.mean((numbers - centre) ** 2))
    target = np.where(fake, (n_fake + 1) / (n_fake + 2), 1 / (n_real + 2))
    # Each score stands there twice, as fake and as real, and weighs as much as its target says.
    twice = np.tile((numbers - centre) / scale, 2)[:, None]
    both, weights = np.repeat([1, 0], len(numbers)), np.concatenate([target, 1 - target])
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10)
    model.fit(twice, both, sample_weight=weights)
    slope = float(model.coef_[0, 0] / scale)
    return slope, float(model.intercept_[0] - slope * centre)


def _mean_loss(
    loss: Callable[[Floats, bool, Platt | None], Floats],
    fakes: ScoreHistogram,
    reals: ScoreHistogram,
    calibration: Platt | None,
) -> FigureFacts:
    n = fakes.n + reals.n
    total = sum(
        float(loss(one.values, is_fake, calibration) @ (one.counts / n))
        for one, is_fake in ((fakes, True), (reals, False))
        if one.n
    )
    return FigureFacts(value=total, n=n) if n else undefined("there are no images")


def _log_odds(scores: Floats, calibration: Platt | None) -> Floats:
    if calibration is None:
        return scores
    with np.errstate(over="ignore"):
        return np.clip(calibrate(scores, calibration), -_LARGEST, _LARGEST)


def _chances(scores: Floats, calibration: Platt | None) -> Floats:
    from scipy.special import expit

    chances: Floats = expit(_log_odds(scores, calibration))
    return chances


def _mean_of_folded(mean: Floats, deviation: Floats) -> Floats:
    """E|X| of normal X (k,), its mean not negative; of no deviation it is the mean."""
    from scipy.special import erf

    with np.errstate(over="ignore", under="ignore"):
        ratio = mean / np.maximum(deviation, np.finfo(np.float64).tiny)
        folded: Floats = deviation * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + mean * erf(
            ratio / np.sqrt(2)
        )
    return folded
