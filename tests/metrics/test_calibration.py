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
    """Platt's objective, written out: cross-entropy with targets (N₊ + 1) / (N₊ + 2) and 1 / (N₋ +
    2).
    """
    fakes, reals = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (fakes + 1) / (fakes + 2), 1 / (reals + 2))

    def loss(parameters):
        log_odds = parameters[0] * scores + parameters[1]
        return float(
            (target * np.logaddexp(0, -log_odds) + (1 - target) * np.logaddexp(0, log_odds)).sum()
        )

    return loss


@pytest.mark.parametrize(("shift", "stretch"), [(0, 1), (-900, 40), (0, 1e-3)])
def test_slope_and_intercept_are_the_least_of_platts_loss(shift, stretch):
    scores, labels = drawn()
    least = minimize(
        platts_loss(scores, labels),
        [0.0, 0.0],
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-12},
    )
    found = fit_platt(stretch * scores + shift, labels)
    assert found.slope * stretch == pytest.approx(least.x[0], rel=1e-5)
    assert found.intercept + found.slope * shift == pytest.approx(least.x[1], rel=1e-5)


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
    groups = [
        (labels[bin_of == one], chances[bin_of == one])
        for one in range(bins)
        if (bin_of == one).any()
    ]
    weight, share, mean = np.array(
        [(len(truth), truth.mean(), chance.mean()) for truth, chance in groups]
    ).T
    drawn = np.random.default_rng(0).normal(
        share, np.sqrt(share * (1 - share) / weight), (draws, len(groups))
    )
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
    for one, mine in zip(
        found,
        np.split(np.argsort(chances), np.cumsum([one["n"] for one in found])[:-1]),
        strict=True,
    ):
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


def test_of_too_little_there_is_no_calibration_error_and_reliability_of_what_there_is():
    for fakes, reals in (([1.0] * 200, []), ([], [1.0] * 200)):
        assert measure(METRICS["ece"], images(fakes, reals)).why == "it needs real and fake images"
    assert (
        measure(METRICS["ece"], images([1.0] * 50, [0.0] * 49)).why
        == "it needs 100 images or more; there are 99"
    )
    assert reliability(images([], [])) == []
    assert reliability(images([0.0], []))[0]["fake_share"] == 1
