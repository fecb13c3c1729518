import numpy as np
import pytest
import torch
from scipy.special import expit
from torchmetrics.functional.classification import binary_calibration_error

from ray_app.detectors.cards import Platt
from ray_app.metrics import ScoreHistogram, debiased_ece, expected_calibration_error, proportion_interval, reliability
from tests.metrics.drawn import BOTH, EMPTY, histograms, joined

ENOUGH = [case for case, both in BOTH.items() if sum(map(len, both)) >= 100]


def debiased_by_drawing(labels, chances, bins=15, draws=20_000):
    """Kumar et al.'s code: twice the plug-in error less the mean error of shares drawn anew."""
    bin_of = np.minimum((chances * bins).astype(int), bins - 1)
    groups = [(labels[bin_of == one], chances[bin_of == one]) for one in range(bins) if (bin_of == one).any()]
    weight, share, mean = np.array([(len(truth), truth.mean(), chance.mean()) for truth, chance in groups]).T
    drawn = np.random.default_rng(0).normal(share, np.sqrt(share * (1 - share) / weight), (draws, len(groups)))
    plain = weight @ np.abs(share - mean) / len(labels)
    return max(0.0, 2 * plain - (np.abs(drawn - mean) @ weight).mean() / len(labels))


@pytest.mark.parametrize("calibration", [None, Platt(slope=0.7, intercept=-0.4)])
@pytest.mark.parametrize("case", ENOUGH)
def test_the_calibration_error_is_kumars_without_the_dice(case, calibration):
    labels, scores = joined(*BOTH[case])
    chances = expit(scores if calibration is None else calibration.slope * scores + calibration.intercept)
    found = debiased_ece(*histograms(*BOTH[case]), calibration)
    assert found.value == pytest.approx(debiased_by_drawing(labels, chances), abs=2e-3)
    assert found.value <= expected_calibration_error(chances, labels) + 1e-12


@pytest.mark.parametrize("case", ENOUGH)
def test_the_plain_error_is_torchmetrics_and_the_bins_add_up_to_it(case):
    labels, scores = joined(*BOTH[case])
    bins = reliability(*histograms(*BOTH[case]))
    plain = sum(one["n"] * abs(one["probability"] - one["fake_share"]) for one in bins) / len(scores)
    assert plain == pytest.approx(expected_calibration_error(expit(scores), labels), abs=1e-12)
    theirs = binary_calibration_error(torch.from_numpy(expit(scores)), torch.from_numpy(labels), n_bins=15, norm="l1")
    assert plain == pytest.approx(float(theirs), abs=1e-6)  # it counts in float32


def test_good_chances_of_few_images_are_hardly_blamed():
    rng = np.random.default_rng(2)
    plain, debiased = [], []
    for _ in range(100):
        chances = rng.random(300)
        fake, scores = rng.random(300) < chances, np.log(chances / (1 - chances))
        plain.append(expected_calibration_error(chances, fake))
        debiased.append(debiased_ece(*histograms(scores[fake], scores[~fake])).value)
    assert np.mean(plain) > 0.06
    assert np.mean(debiased) < 0.6 * np.mean(plain)


def test_bad_chances_of_many_images_are_blamed_in_full():
    fakes, reals = histograms(np.full(50_000, 3.0), np.full(50_000, 3.0))
    assert debiased_ece(fakes, reals).value == pytest.approx(expit(3) - 0.5, abs=1e-9)


@pytest.mark.parametrize(
    ("fakes", "reals", "why"),
    [
        ([1.0] * 200, [], "it needs real and fake images"),
        ([], [1.0] * 200, "it needs real and fake images"),
        ([1.0] * 50, [0.0] * 49, "it needs 100 images or more; there are 99"),
    ],
)
def test_of_too_little_there_is_no_calibration_error(fakes, reals, why):
    assert debiased_ece(*histograms(fakes, reals)).why == why


def test_reliability_by_hand():
    found = reliability(*histograms([5.0, 5.0, -5.0], [-5.0, -1e300, 1e300]), bins=4)
    low, high = expit(-5.0), expit(5.0)
    assert found == [
        {"low": 0, "high": 0.25, "n": 3, "probability": pytest.approx(2 * low / 3), "fake_share": pytest.approx(1 / 3),
         "interval": list(proportion_interval(1, 3))},
        {"low": 0.75, "high": 1, "n": 3, "probability": pytest.approx((2 * high + 1) / 3), "fake_share": pytest.approx(2 / 3),
         "interval": list(proportion_interval(2, 3))},
    ]  # fmt: skip
    assert reliability(EMPTY, EMPTY) == []
    assert reliability(ScoreHistogram.of([0.0]), EMPTY)[0]["fake_share"] == 1
