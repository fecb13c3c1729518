"""Platt scaling (`fit_platt`), and the calibration error of probabilities."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.detectors.card import Platt
from ray_app.metrics.arrays import Bools, Floats, checked


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
