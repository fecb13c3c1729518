import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from ray_app.metrics import expected_calibration_error, fit_platt


def drawn(n=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return rng.normal(4 * labels - 3, 2.5), labels


def platts_loss(scores, labels):
    """Platt's objective, written out: cross-entropy with targets (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2)."""
    fakes, reals = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (fakes + 1) / (fakes + 2), 1 / (reals + 2))

    def loss(parameters):
        log_odds = parameters[0] * scores + parameters[1]
        return float((target * np.logaddexp(0, -log_odds) + (1 - target) * np.logaddexp(0, log_odds)).sum())

    return loss


@pytest.mark.parametrize(("shift", "stretch"), [(0, 1), (-900, 40), (0, 1e-3)])
def test_slope_and_intercept_are_the_least_of_platts_loss(shift, stretch):
    scores, labels = drawn()
    least = minimize(platts_loss(scores, labels), [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    found = fit_platt(stretch * scores + shift, labels)
    assert found.slope * stretch == pytest.approx(least.x[0], rel=1e-5)
    assert found.intercept + found.slope * shift == pytest.approx(least.x[1], rel=1e-5)


def test_with_many_images_it_is_a_logistic_regression_without_penalty():
    scores, labels = drawn(200_000)
    plain = LogisticRegression(C=np.inf).fit(scores[:, None], labels)
    found = fit_platt(scores, labels)
    assert (found.slope, found.intercept) == pytest.approx((plain.coef_[0, 0], plain.intercept_[0]), rel=1e-3)


def test_calibrated_scores_are_chances():
    scores, labels = drawn(20_000)
    fit, rest = slice(0, 10_000), slice(10_000, None)
    found = fit_platt(scores[fit], labels[fit])
    before = expected_calibration_error(1 / (1 + np.exp(-scores[rest])), labels[rest])
    after = expected_calibration_error(1 / (1 + np.exp(-(found.slope * scores[rest] + found.intercept))), labels[rest])
    assert before > 0.05
    assert after < 0.02


def test_scores_that_separate_the_classes_get_a_finite_slope():
    found = fit_platt([-2.0, -1.0, 1.0, 2.0], [0, 0, 1, 1])
    assert 0 < found.slope < 3
    assert found.intercept == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        ([1.0, 2.0], [1, 1], "0 real and 2 fake"),
        ([1.0, 1.0], [0, 1], "scores that differ"),
        ([2.0, 1.0, 2.5, 0.5], [0, 1, 0, 1], "fakes score no higher than reals"),
        ([float("nan"), 1.0], [0, 1], "not finite"),
    ],
)
def test_what_cannot_be_calibrated_says_why(scores, labels, words):
    with pytest.raises(ValueError, match=words):
        fit_platt(scores, labels)


def test_the_calibration_error_by_hand():
    assert expected_calibration_error([0.9, 0.9, 0.9, 0.9, 0.1], [1, 1, 0, 0, 0], bins=10) == pytest.approx((4 * 0.4 + 0.1) / 5)
    assert expected_calibration_error([0.0, 1.0], [0, 1]) == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        expected_calibration_error([-1.0, 3.0], [0, 1])
