import numpy as np
import pytest
from scipy import stats

from ray_app.metrics.label_quality import class_differences, confident_learning, crossed_probabilities

RNG = np.random.default_rng(0)
FAKES = np.arange(600) % 3 == 0


def test_differences_of_the_classes_are_scipy_s_and_the_strongest_comes_first():
    formats = np.where(FAKES, "PNG", "JPEG").astype(object)
    formats[~FAKES] = np.where(np.arange(400) < 100, "PNG", "JPEG")
    numbers = np.where(FAKES, RNG.normal(0.5, 1, 600), RNG.normal(0, 1, 600))
    first, second, nothing = class_differences({"none": np.full(600, 3.0), "number": numbers, "format": formats}, FAKES)
    assert (first.name, first.value, first.fake, first.real, first.strength) == ("format", "PNG", 1.0, 0.25, "strong")
    assert first.p == pytest.approx(stats.chi2_contingency([[100, 300], [200, 0]]).pvalue)
    assert (second.name, second.n_real, second.n_fake) == ("number", 400, 200)
    assert second.effect == pytest.approx(stats.ks_2samp(numbers[~FAKES], numbers[FAKES]).statistic)
    assert (nothing.effect, nothing.strength) == (0, "none")


def test_labels_are_doubted_by_probabilities_that_no_image_of_their_group_taught():
    """Equations 1 and 2 of arXiv 1911.00068 by hand; each group has a direction of its own, which only those that saw it know."""
    found = confident_learning([0.1, 0.2, 0.9, 0.8, 0.7], [False, False, False, True, True])
    assert found.thresholds == pytest.approx((0.6, 0.75))
    assert found.suspicious(np.array([False, False, False, True, True])).tolist() == [2]
    assert found.expected[0] == pytest.approx([2, 1])
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 6)
    fakes = rng.random(100)[groups] < 0.5
    features = rng.normal(0, 1, (100, 200))[groups] * 3 + rng.normal(0, 0.1, (600, 200))
    assert np.mean((crossed_probabilities(features, fakes, groups) > 0.5) == fakes) < 0.65
    assert np.mean((crossed_probabilities(features, fakes, np.arange(600)) > 0.5) == fakes) > 0.95
