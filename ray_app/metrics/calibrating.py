"""From scores to probabilities that can be read as chances: Platt scaling, and how far off it is. Knows arrays; writes no card."""

import numpy as np
from numpy.typing import ArrayLike

from ray_app.detectors.cards import Platt
from ray_app.metrics.arrays import checked
from ray_app.metrics.chances import binned


def fit_platt(scores: ArrayLike, labels: ArrayLike, *, intercept: bool = True) -> Platt:
    """Platt scaling of log-odds (n,) on labels (n,), 1 = fake: the slope and intercept of the least cross-entropy.

    Without `intercept` the slope alone: temperature scaling (Guo et al. 2017). The targets are Platt's (1999), drawn in from 0 and 1 by the
    size of each class, so that scores which separate the classes still get a finite slope. The probabilities are right where as large a
    share is fake as here.
    Raises ValueError where one class is missing or where the scores do not rise from real to fake, and as `checked` does.
    """
    from sklearn.linear_model import LogisticRegression

    numbers, fake = checked(scores, labels)
    n_fake, n_real = int(fake.sum()), int((~fake).sum())
    if not n_fake or not n_real:
        raise ValueError(f"calibration needs real and fake images; there are {n_real:,} real and {n_fake:,} fake")
    centre = numbers.mean() if intercept else 0.0
    scale = np.sqrt(np.mean((numbers - centre) ** 2))
    if scale == 0:
        raise ValueError(f"calibration needs scores that differ; all {len(numbers):,} are {numbers[0]:g}")
    target = np.where(fake, (n_fake + 1) / (n_fake + 2), 1 / (n_real + 2))
    # Each score stands there twice, as fake and as real, and weighs as much as its target says.
    twice = np.tile((numbers - centre) / scale, 2)[:, None]
    both, weights = np.repeat([1, 0], len(numbers)), np.concatenate([target, 1 - target])
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, fit_intercept=intercept)
    model.fit(twice, both, sample_weight=weights)
    slope = float(model.coef_[0, 0] / scale)
    if slope <= 0:
        raise ValueError(
            f"fakes score no higher than reals (slope {slope:.3g} on {len(numbers):,} images): calibration would turn the verdict"
        )
    return Platt(slope=slope, intercept=float(model.intercept_[0] - slope * centre))


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """How far P(fake) (n,) lies from the share that is fake, on average over `bins` of equal width, by images (Guo et al. 2017).

    Raises ValueError for probabilities outside 0 … 1, and as `checked` does.
    """
    chances, fake = checked(probabilities, labels)
    if chances.min() < 0 or chances.max() > 1:
        raise ValueError(f"probabilities lie between 0 and 1; these go from {chances.min():g} to {chances.max():g}")
    _, expected = binned(chances, np.ones(len(chances)), bins)
    n_fake, _ = binned(chances, fake.astype(np.float64), bins)
    return float(np.abs(expected - n_fake).sum() / len(chances))
