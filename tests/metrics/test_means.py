import numpy as np
import pytest
from scipy import stats

from ray_app.metrics.figure import Figure, undefined
from ray_app.metrics.means import mean_figure, ratio_figure, resampled


def test_the_interval_is_student_s():
    values = np.random.default_rng(0).random(12) * 0.2 + 0.4
    found = mean_figure(values, "none")
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert (found.value, *found.interval) == pytest.approx((values.mean(), low, high), abs=1e-12)
    assert (found.n, found.method) == (12, "student")


def test_the_interval_ends_where_values_do():
    assert mean_figure([0.0, 0.0, 1.0], "none").interval == (0.0, 1.0)
    assert mean_figure([-1.0, 1.0], "none", bounds=(-1, 1)).interval == (-1, 1)


def test_images_without_a_value_do_not_count():
    assert mean_figure([np.nan, 0.5, np.nan], "none") == Figure(0.5, n=1)
    assert mean_figure([np.nan], "no image has one") == undefined("no image has one")
    assert mean_figure([], "no image has one") == undefined("no image has one")


def test_values_all_alike_have_no_interval():
    assert mean_figure([0.7] * 3, "none").interval is None


def test_a_ratio_is_that_of_the_means():
    rng = np.random.default_rng(0)
    over, under = rng.random(50), rng.random(50) + 0.5
    found = ratio_figure(over, under, "none")
    assert found.value == pytest.approx(over.mean() / under.mean(), abs=1e-12)
    assert found.interval[0] < found.value < found.interval[1]
    assert ratio_figure([1.0], [2.0], "none") == Figure(0.5, n=1)
    assert ratio_figure([1.0], [0.0], "none") == undefined("what it is divided by is 0 on average", 1)
    assert ratio_figure([], [], "none") == undefined("none")


def test_replicates_that_agree_say_nothing_of_the_spread():
    assert resampled(0.5, [0.5, 0.5], 2) == Figure(0.5, n=2)
    assert resampled(0.5, np.linspace(0, 1, 1001), 9).interval == pytest.approx((0.025, 0.975))
