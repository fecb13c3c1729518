import numpy as np
import pytest
from scipy.stats import binomtest, t

from ray_app.metrics.uncertainty import (
    Replicates,
    difference_p_value,
    effective_count,
    jackknife,
    make_stratum,
    mean_replicates,
    proportion_interval,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (3, 10), (50, 50), (7, 1000)])
def test_proportion_interval_equals_scipy(successes, n):
    expected = binomtest(successes, n).proportion_ci(0.95, "exact")
    assert proportion_interval(successes, n) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("successes", "n"), [(2, 1), (-1, 3), (0, 0)])
def test_proportion_interval_rejects_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="successes must be between"):
        proportion_interval(successes, n)


def test_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(0).normal(size=20)
    every = np.ones(20, bool)
    stratum = make_stratum(20, np.arange(20).astype(object))
    [part] = mean_replicates(values, [(stratum, every)])
    low, high = jackknife(values.mean(), [part], "plain")
    half = t.ppf(0.975, 19) * values.std(ddof=1) / np.sqrt(20)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_jackknife_of_unequal_groups_is_that_of_their_means():
    values = np.random.default_rng(1).normal(size=400)
    names = np.repeat(np.arange(10), [4, 10, 20, 30, 40, 50, 60, 70, 56, 60]).astype(object)
    [part] = mean_replicates(values, [(make_stratum(400, names), np.ones(400, bool))])
    low, high = jackknife(values.mean(), [part], "plain")
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * t.ppf(0.975, 399) / 20, rel=0.8)


def test_logit_interval_stays_between_0_and_1():
    values = np.full(10, 0.97) + np.linspace(-0.02, 0.02, 10)
    low, high = jackknife(0.97, [Replicates(values, np.full(10, 0.1))])
    assert 0 < low < 0.97 < high < 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_jackknife_at_an_end_of_the_scale_has_no_interval(value):
    assert jackknife(value, [Replicates(np.full(10, value), np.full(10, 0.1))]) is None


def test_effective_count_is_between_groups_and_images():
    rng = np.random.default_rng(2)
    every = np.ones(2_000, bool)
    names = np.repeat(np.arange(40), 50).astype(object)
    hits = rng.random(2_000) < 0.8
    of_images = effective_count(hits, [(make_stratum(2_000), every)], hits.mean(), 2_000)
    assert of_images == pytest.approx(2_000, rel=0.01)
    alike = np.repeat(rng.random(40) < 0.8, 50)
    strata = [(make_stratum(2_000, names), every)]
    assert effective_count(alike, strata, alike.mean(), 2_000) == pytest.approx(40, rel=0.15)
    assert effective_count(every, strata, 1.0, 2_000) == 40


def test_p_of_difference_is_students():
    values = np.random.default_rng(3).normal(0.1, 1, 30)
    [part] = mean_replicates(
        values, [(make_stratum(30, np.arange(30).astype(object)), values > -9)]
    )
    score = values.mean() / values.std(ddof=1) * np.sqrt(30)
    assert difference_p_value(values.mean(), [part]) == pytest.approx(2 * t.sf(abs(score), 29))
