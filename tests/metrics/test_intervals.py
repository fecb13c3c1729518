import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest

from ray_app.metrics.arrays import ScoreHistogram
from ray_app.metrics.intervals import auc_of, mean_figure, proportion_interval
from tests.metrics.drawn import auc_interval


def delong_by_pairs(fakes, reals):
    """DeLong (1988) as it is written down: a matrix of all pairs, its row and column means, their
    variances.
    """
    pairs = (fakes[:, None] > reals) + 0.5 * (fakes[:, None] == reals)
    return pairs.mean(), pairs.mean(1).var(ddof=1) / len(fakes) + pairs.mean(0).var(ddof=1) / len(
        reals
    )


@pytest.mark.parametrize("digits", [8, 1, 0])
@pytest.mark.parametrize(("m", "n"), [(2, 3), (40, 7), (31, 200)])
def test_the_interval_is_delongs_over_all_pairs(m, n, digits):
    rng = np.random.default_rng([m, n])
    fakes, reals = rng.normal(1, 1, m).round(digits), rng.normal(0, 2, n).round(digits)
    auc, variance = delong_by_pairs(fakes, reals)
    assert 0 < auc < 1
    logit, half = np.log(auc / (1 - auc)), 1.959964 * np.sqrt(variance) / (auc * (1 - auc))
    found = auc_of(ScoreHistogram.of(fakes), ScoreHistogram.of(reals))
    assert found.value == pytest.approx(auc, abs=1e-12)
    assert (found.low, found.high) == pytest.approx(
        tuple(1 / (1 + np.exp(-np.array([logit - half, logit + half])))), abs=1e-6
    )


def test_a_perfect_auc_is_not_certain():
    low, high = auc_interval(np.arange(40), np.repeat([0, 1], [10, 30]))
    assert high == 1
    assert low == pytest.approx(0.025 ** (1 / 10))
    assert auc_interval(-np.arange(40), np.repeat([0, 1], [10, 30])) == pytest.approx((0, 1 - low))


@pytest.mark.parametrize(
    ("fakes", "reals"),
    [([1.0], [0.0, 2.0, 3.0]), ([0.0, 5.0], [1.0]), ([2.0, 2.0, 2.0], [2.0, 2.0])],
)
def test_where_there_is_no_variance_the_interval_is_wide_and_holds_the_auc(fakes, reals):
    auc = auc_of(ScoreHistogram.of(fakes), ScoreHistogram.of(reals))
    assert auc.low < auc.value < auc.high
    assert auc.high - auc.low > 0.8


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 40), (40, 40), (3, 17), (999, 1000), (1, 10_000)]
)
def test_proportions_have_clopper_and_pearsons_interval(successes, n):
    exact = binomtest(successes, n).proportion_ci(0.95, method="exact")
    assert proportion_interval(successes, n) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_the_interval_of_a_mean_is_student_s_and_ends_where_values_do():
    values = np.random.default_rng(0).random(12) * 0.2 + 0.4
    found = mean_figure(values, "none")
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert (found.value, *found.interval) == pytest.approx((values.mean(), low, high), abs=1e-12)
    assert (found.n, found.method) == (12, "student")
    assert mean_figure([0.0, 0.0, 1.0], "none").interval == (0.0, 1.0)
    assert mean_figure([-1.0, 1.0], "none", bounds=(-1, 1)).interval == (-1, 1)
    assert mean_figure([0.7] * 3, "none").ends is None, "values all alike say nothing of the spread"
