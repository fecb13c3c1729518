import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from ray_app.calibration.fitting import MOST_KNOTS, fit, fit_isotonic
from ray_app.errors import ConfigError
from ray_app.metrics import ScoreHistogram, debiased_ece, fit_platt, log_loss
from tests.calibration.drawn import drawn

METHODS = ("platt", "isotonic", "temperature")


def overconfident(n, seed):
    """Scores five times as sure as they should be, and their labels."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, n)
    return 5 * truth, rng.random(n) < 1 / (1 + np.exp(-truth))


def figures(scores, fake, calibration=None):
    """Log-loss and calibration error of both classes."""
    fakes, reals = ScoreHistogram.of(scores[fake]), ScoreHistogram.of(scores[~fake])
    return [figure(fakes, reals, calibration).value for figure in (log_loss, debiased_ece)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_and_log_loss_fall_on_images_that_nothing_was_fitted_on(method, seed):
    found = fit(*overconfident(2_000, seed), method)
    before, after = (figures(*overconfident(20_000, 100 + seed), calibration) for calibration in (None, found))
    assert before[1] > 0.1
    assert after[1] < 0.25 * before[1]
    assert after[0] < 0.6 * before[0]


def test_platt_is_that_of_the_metrics():
    scores, fake = overconfident(500, 0)
    assert fit(scores, fake) == fit_platt(scores, fake)


def test_temperature_is_that_of_scikit_learn():
    scores, fake = overconfident(20_000, 3)
    found = fit(scores, fake, "temperature")
    assert found.intercept == 0
    # Scores as they are, from a classifier with slope 1, calibrated by scikit-learn's own method.
    asis = LogisticRegression().fit(scores[:, None], fake)
    asis.coef_[:], asis.intercept_[:] = 1, 0
    theirs = CalibratedClassifierCV(FrozenEstimator(asis), method="temperature").fit(scores[:, None], fake)
    chances = 1 / (1 + np.exp(-found(scores)))
    assert chances == pytest.approx(theirs.predict_proba(scores[:, None])[:, 1], abs=2e-3)


def test_isotonic_of_few_scores_by_hand():
    # Level pieces: 0 of 2 fake around 1.5, 1 of 2 around 3.5, 2 of 2 around 5.5; each drawn in to (k + 1/2) / (n + 1).
    found = fit([1, 2, 3, 4, 5, 6], [0, 0, 1, 0, 1, 1], "isotonic")
    drawn_in = np.array([0.5, 1.5, 2.5]) / 3
    assert np.array(found.knots) == pytest.approx(np.stack([[1.5, 3.5, 5.5], np.log(drawn_in / (1 - drawn_in))], axis=1))


def test_pieces_still_rise_after_small_ones_were_drawn_in():
    # 0 of 1, then 1 of 100: drawn in, the first would be 1/4 and the second 1.5/101.
    found = fit([0.0, *[1.0] * 100, 2.0, 2.5], [0, 1, *[0] * 99, 1, 1], "isotonic")
    log_odds = [knot[1] for knot in found.knots]
    assert log_odds == sorted(log_odds)
    assert len(log_odds) == 2


@pytest.mark.parametrize("seed", range(3))
def test_isotonic_keeps_order_and_ends_and_few_knots(seed):
    rng = np.random.default_rng(seed)
    fake = rng.random(200_000) < 0.5
    scores = rng.normal(np.where(fake, 1, 0), 20).round(3)  # hardly a signal, so that there are many small pieces
    found = fit_isotonic(scores + fake, fake)
    assert 2 <= len(found.knots) <= MOST_KNOTS
    at = np.linspace(found.knots[0][0], found.knots[-1][0], 500)
    assert (np.diff(found(at)) >= 0).all()
    assert np.isfinite(found(np.array([-1e9, 1e9]))).all()


def test_many_pieces_are_thinned_to_nearly_the_same_curve():
    scores, fake = overconfident(300_000, 0)
    found = fit_isotonic(scores, fake)
    assert len(found.knots) <= MOST_KNOTS
    truth = scores / 5
    middle = np.abs(truth) < 3
    assert np.abs(1 / (1 + np.exp(-found(scores))) - 1 / (1 + np.exp(-truth)))[middle].max() < 0.03


def test_float32_scores_are_taken_as_they_are():
    images = drawn(300, 200)
    for method in METHODS:
        found = fit(images.scores["fine"], images.fake, method)
        assert np.isfinite(found(images.raw[:, 1])).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("scores", "fake", "words"),
    [
        ([1.0, 2.0, 3.0], [0, 0, 0], "calibration needs real and fake images"),
        ([1.0, np.nan], [0, 1], "1 of 2 scores are not finite"),
        ([5.0, 6.0, -5.0, -6.0], [0, 0, 1, 1], "fakes score no higher than reals"),
    ],
)
def test_what_cannot_be_fitted_is_named(method, scores, fake, words):
    with pytest.raises(ConfigError, match=f"the scores of npr cannot be calibrated: .*{words}"):
        fit(scores, fake, method, what="the scores of npr")
