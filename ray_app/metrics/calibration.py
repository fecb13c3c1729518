"""Fit Platt scaling (`fit_platt`), and measure the calibration error of probabilities."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.detectors.card import Platt
from ray_app.ensembles.outliers import limit_outliers
from ray_app.metrics.arrays import Bools, Floats, check_scores


def fit_platt(scores: ArrayLike, labels: ArrayLike) -> Platt:
    """Fit Platt scaling of log-odds, which minimises the cross-entropy.

    The targets are those of Platt (1999). They replace 0 and 1 by values closer to ½, which depend
    on the size of each class, so that even scores that separate the classes get a finite slope. The
    probabilities are right for images with the same fraction of fakes as in `labels`. A few scores
    far outside of the range of all others count as being at a limit (`limit_outliers`). Scores (n,)
    are log-odds, and labels (n,) are 1 for fake. Raises ValueError if a class is missing, all
    scores are equal, fakes score no higher than reals, or the input is invalid (`check_scores`).
    """
    values, fake = _check_classes(scores, labels)
    slope, intercept = _fit_logistic(limit_outliers(values, fake), fake)
    if slope <= 0:
        raise ValueError(
            f"fakes score no higher than reals (slope {slope:.3g} on {len(values):,} images): calibration would invert the verdict"
        )
    return Platt(slope=slope, intercept=intercept)


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15
) -> float:
    """Return the expected calibration error (ECE, Guo et al. 2017) of probabilities.

    The images are sorted into bins by P(fake). The error is the mean over bins of the distance
    between the mean P(fake) and the fraction of fakes in the bin, weighted by the number of images.
    Bins have equal width. Labels (n,) are 1 for fake. Raises ValueError if a probability is outside
    0 … 1, or the input is invalid (`check_scores`).
    """
    p_fake, fake = check_scores(probabilities, labels)
    if p_fake.min() < 0 or p_fake.max() > 1:
        raise ValueError(
            f"probabilities must be between 0 and 1, got {p_fake.min():g} to {p_fake.max():g}"
        )
    _, expected = bin_sums(p_fake, np.ones(len(p_fake)), bins)
    n_fake, _ = bin_sums(p_fake, fake.astype(np.float64), bins)
    return float(np.abs(expected - n_fake).sum() / len(p_fake))


def bin_sums(p_fake: Floats, weights: NDArray[Any], bins: int) -> tuple[Floats, Floats]:
    """Sort weighted probabilities (k,) into bins of equal width, and sum them per bin.

    The sums (bins,) of the weights, and of probability × weight, are for a calibration error.
    Weights are 1 to count all images, or the labels to count fakes.
    """
    bin_of = np.minimum((p_fake * bins).astype(np.int64), bins - 1)
    sums = [
        np.bincount(bin_of, weights=column, minlength=bins).astype(np.float64)
        for column in (weights, weights * p_fake)
    ]
    return sums[0], sums[1]


def _check_classes(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Bools]:
    values, fake = check_scores(scores, labels)
    n_fake, n_real = int(fake.sum()), int((~fake).sum())
    if not n_fake or not n_real:
        raise ValueError(
            f"calibration needs real and fake images, got {n_real:,} real and {n_fake:,} fake"
        )
    if values.min() == values.max():
        raise ValueError(
            f"calibration needs scores that differ, but all {len(values):,} scores are {values[0]:g}"
        )
    return values, fake


def _fit_logistic(values: Floats, fake: Bools) -> tuple[float, float]:
    """Return the slope and intercept of logistic regression with Platt's targets."""
    from sklearn.linear_model import LogisticRegression

    n_fake, n_real = int(fake.sum()), int((~fake).sum())
    centre = values.mean()
    scale = np.sqrt(np.mean((values - centre) ** 2))
    target = np.where(fake, (n_fake + 1) / (n_fake + 2), 1 / (n_real + 2))
    # Each score occurs twice, as fake and as real. The weights are its target and 1 - target.
    features = np.tile((values - centre) / scale, 2)[:, None]
    classes, weights = np.repeat([1, 0], len(values)), np.concatenate([target, 1 - target])
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10)
    model.fit(features, classes, sample_weight=weights)
    slope = float(model.coef_[0, 0] / scale)
    return slope, float(model.intercept_[0] - slope * centre)
