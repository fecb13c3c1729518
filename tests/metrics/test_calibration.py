import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from ray_app.detectors.card import Platt
from ray_app.metrics import fit_platt
from ray_app.metrics.calibration import expected_calibration_error
from ray_app.metrics.curves import reliability
from ray_app.metrics.registry import METRICS, measure
from ray_app.metrics.uncertainty import proportion_interval
from tests.metrics.drawn import BOTH, images, joined


def drawn(n=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return rng.normal(4 * labels - 3, 2.5), labels


def platts_loss(scores, labels):
    """Platt's objective: cross-entropy with targets (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2)."""
    fakes, reals = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (fakes + 1) / (fakes + 2), 1 / (reals + 2))

    def loss(parameters):
        log_odds = parameters[0] * scores + parameters[1]
        of_fakes, of_reals = np.logaddexp(0, -log_odds), np.logaddexp(0, log_odds)
        return float((target * of_fakes + (1 - target) * of_reals).sum())

    return loss


@pytest.mark.parametrize(("shift", "stretch"), [(0, 1), (-900, 40), (0, 1e-3)])
def test_slope_and_intercept_minimise_platts_loss(shift, stretch):
    scores, labels = drawn()
    options = {"xatol": 1e-9, "fatol": 1e-12}
    loss = platts_loss(scores, labels)
    least = minimize(loss, [0.0, 0.0], method="Nelder-Mead", options=options)
    found = fit_platt(stretch * scores + shift, labels)
    assert found.slope * stretch == pytest.approx(least.x[0], rel=1e-5)
    assert found.intercept + found.slope * shift == pytest.approx(least.x[1], rel=1e-5)


def test_scores_that_separate_the_classes_get_a_finite_slope():
    found = fit_platt([-2.0, -1.0, 1.0, 2.0], [0, 0, 1, 1])
    assert 0 < found.slope < 3
    assert found.intercept == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("outliers", [(1e7, -1e7), (1e7, 1e7), (-1e7, -1e7), (1e3, -1e3)])
@pytest.mark.parametrize("labels_of_outliers", [(1, 0), (0, 1), (1, 1), (0, 0)])
def test_two_outliers_do_not_decide_the_slope(outliers, labels_of_outliers, caplog):
    scores, labels = drawn()
    expected = fit_platt(scores, labels)
    assert not caplog.records
    found = fit_platt([*scores, *outliers], [*labels, *labels_of_outliers])
    assert f"2 of {len(scores) + 2} scores are far outside" in caplog.text
    n_wrong = sum(
        (score > 0) != label for score, label in zip(outliers, labels_of_outliers, strict=True)
    )
    assert found.slope == pytest.approx(expected.slope, rel=[0.02, 0.3, 0.5][n_wrong])


def test_rare_fakes_far_from_all_reals_are_not_outliers():
    rng = np.random.default_rng(0)
    labels = np.arange(1000) < 5
    scores = np.where(labels, rng.normal(20, 1, 1000), rng.normal(-5, 0.1, 1000))
    least = minimize(platts_loss(scores, labels), [0.1, 0.0], method="Nelder-Mead")
    assert fit_platt(scores, labels).slope == pytest.approx(least.x[0], rel=1e-2)


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        ([1.0, 2.0], [1, 1], "0 real and 2 fake"),
        ([1.0, 1.0], [0, 1], "scores that differ"),
        ([2.0, 1.0, 2.5, 0.5], [0, 1, 0, 1], "fakes score no higher than reals"),
        ([float("nan"), 1.0], [0, 1], "not finite"),
    ],
)
def test_scores_that_cannot_be_calibrated_are_refused(scores, labels, words):
    with pytest.raises(ValueError, match=words):
        fit_platt(scores, labels)


def test_the_calibration_error_by_hand():
    assert expected_calibration_error(
        [0.9, 0.9, 0.9, 0.9, 0.1], [1, 1, 0, 0, 0], bins=10
    ) == pytest.approx((4 * 0.4 + 0.1) / 5)
    assert expected_calibration_error([0.0, 1.0], [0, 1]) == 0
    assert expected_calibration_error([0.5, 0.95], [1, 0], bins=10) == pytest.approx(
        (0.5 + 0.95) / 2
    )
    with pytest.raises(ValueError, match="between 0 and 1"):
        expected_calibration_error([-1.0, 3.0], [0, 1])


ENOUGH = [case for case, both in BOTH.items() if sum(map(len, both)) >= 100]


def debiased_by_drawing(labels, chances, bins=15, draws=5_000):
    """Kumar et al.'s code: twice the plug-in error less the mean error of shares drawn anew."""
    bin_of = np.minimum((chances * bins).astype(int), bins - 1)
    groups = [bin_of == one for one in range(bins) if (bin_of == one).any()]
    weight = np.array([chosen.sum() for chosen in groups])
    share, mean = (np.array([of[chosen].mean() for chosen in groups]) for of in (labels, chances))
    deviation = np.sqrt(share * (1 - share) / weight)
    drawn = np.random.default_rng(0).normal(share, deviation, (draws, len(groups)))
    plain = weight @ np.abs(share - mean) / len(labels)
    return max(0.0, 2 * plain - (np.abs(drawn - mean) @ weight).mean() / len(labels))


@pytest.mark.parametrize("calibration", [None, Platt(slope=0.7, intercept=-0.4)])
@pytest.mark.parametrize("case", ENOUGH)
def test_the_calibration_error_is_kumars_without_the_dice(case, calibration):
    labels, scores = joined(*BOTH[case])
    chances = expit(
        scores if calibration is None else calibration.slope * scores + calibration.intercept
    )
    found = measure(METRICS["ece"], images(*BOTH[case], calibration=calibration))
    assert found.value == pytest.approx(debiased_by_drawing(labels, chances), abs=2e-3)
    assert found.value <= expected_calibration_error(chances, labels) + 1e-12


def test_bins_of_a_reliability_diagram_hold_equally_many_images():
    scores, labels = drawn(2003)
    chances = expit(scores)
    found = reliability(images(scores[labels == 1], scores[labels == 0]))
    assert [one["n"] for one in found] == [201, 201, 201, *[200] * 7]
    bins = np.split(np.argsort(chances), np.cumsum([one["n"] for one in found])[:-1])
    for one, mine in zip(found, bins, strict=True):
        assert (one["low"], one["high"]) == (chances[mine].min(), chances[mine].max())
        assert one["probability"] == pytest.approx(chances[mine].mean())
        assert one["fake_share"] == pytest.approx(labels[mine].mean())
        assert one["interval"] == list(proportion_interval(int(labels[mine].sum()), len(mine)))


@pytest.mark.parametrize(
    ("reals", "fakes", "counts"),
    [
        ([-1.0], [3.0] * 1000, [1001]),
        ([-1.0] * 500, [3.0] * 500, [500, 500]),
        (np.arange(45.0), [], [23, 22]),
    ],
)
def test_ties_stay_together_and_no_bin_is_of_a_few(reals, fakes, counts):
    """One chance is one bin, and a single image is none; of few images there are fewer bins, so
    that each has twenty.
    """
    assert [one["n"] for one in reliability(images(fakes, reals))] == counts


def test_calibration_error_of_few_images_is_undefined():
    for fakes, reals in (([1.0] * 200, []), ([], [1.0] * 200)):
        assert measure(METRICS["ece"], images(fakes, reals)).why == "it needs real and fake images"
    few = measure(METRICS["ece"], images([1.0] * 50, [0.0] * 49))
    assert few.why == "it needs 100 images or more; there are 99"
    assert reliability(images([], [])) == []
    assert reliability(images([0.0], []))[0]["fake_share"] == 1
