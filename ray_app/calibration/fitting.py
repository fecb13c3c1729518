"""One calibration from scores and labels: Platt scaling, temperature scaling or isotonic regression. Knows numbers alone."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ray_app.detectors.cards import Calibration, Isotonic
from ray_app.errors import ConfigError
from ray_app.metrics.arrays import Bools, Floats, checked
from ray_app.metrics.calibrating import fit_platt

Method = Literal["platt", "isotonic", "temperature"]

MOST_KNOTS = 200


def fit(scores: ArrayLike, fake: ArrayLike, method: Method = "platt", *, what: str = "the scores") -> Calibration:
    """The calibration of log-odds (n,) on labels (n,), 1 = fake; its chances are right where as large a share is fake as here.

    `platt` and `temperature`: see `metrics.fit_platt`. `isotonic`: see `fit_isotonic`. Raises ConfigError, which names `what`, where a
    class is missing, where scores are not finite, and where fakes score no higher than reals.
    """
    try:
        return fit_isotonic(scores, fake) if method == "isotonic" else fit_platt(scores, fake, intercept=method == "platt")
    except ValueError as error:
        raise ConfigError(f"{what} cannot be calibrated: {error}", hint="name the others with --detector, or look at the labels") from error


def fit_isotonic(scores: ArrayLike, fake: ArrayLike) -> Isotonic:
    """Isotonic regression (Zadrozny and Elkan 2002) with straight lines between the middles of its level pieces (Oron and Flournoy 2017).

    So scores keep their order, except beyond the first and the last middle. The chance of a piece with k fakes of n is drawn in to
    (k + ½) / (n + 1), whose log-odds are finite, and the pieces made to rise once more after that. At most MOST_KNOTS of them are kept.
    Raises ValueError where the curve is level, and as `checked` does.
    """
    from sklearn.isotonic import IsotonicRegression

    numbers, is_fake = checked(scores, fake)
    if is_fake.all() or not is_fake.any():
        raise ValueError(f"calibration needs real and fake images; all {len(numbers):,} are {'fake' if is_fake.all() else 'real'}")
    middles, n_fake, n = _pieces(numbers, is_fake, IsotonicRegression().fit_transform(numbers, is_fake))
    drawn_in = IsotonicRegression().fit_transform(middles, (n_fake + 0.5) / (n + 1), sample_weight=n)
    middles, weighed, weights = _pieces(middles, drawn_in * n, drawn_in, n)
    if len(middles) < 2:
        raise ValueError(f"fakes score no higher than reals: isotonic regression of {len(numbers):,} images is level")
    kept = np.unique(np.linspace(0, len(middles) - 1, min(len(middles), MOST_KNOTS)).round().astype(int))
    chances = (weighed / weights)[kept]
    return Isotonic(knots=tuple(zip(middles[kept].tolist(), np.log(chances / (1 - chances)).tolist(), strict=True)))


def _pieces(scores: Floats, fakes: Floats | Bools, level: Floats, weights: Floats | None = None) -> tuple[Floats, Floats, Floats]:
    """Of each level piece of a curve over scores (n,): its mean score, its fakes and its images; in rising order."""
    n = np.ones(len(scores)) if weights is None else weights
    _, piece = np.unique(level, return_inverse=True)
    summed, fakes_in, n_in = (np.bincount(piece, weights=each).astype(np.float64) for each in (scores * n, fakes, n))
    return summed / n_in, fakes_in, n_in
