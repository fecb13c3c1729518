"""Spreads over clusters against the formulas that they should be, and what intervals and p values
follow.
"""

import numpy as np
import pytest
from scipy import stats

from ray_app.metrics import clusters
from ray_app.metrics.clusters import ClassSample, Spread, effective_size, tail_correlation


def names(sizes):
    return np.repeat([f"g{place}" for place in range(len(sizes))], sizes).astype(object)


def test_equal_clusters_have_the_variance_of_their_means():
    values = np.random.default_rng(0).normal(0, 1, 200) + np.repeat(
        np.random.default_rng(1).normal(0, 2, 10), 20
    )
    spread = ClassSample.of(values, names([20] * 10)).spread_of(values, even=True)
    means = values.reshape(10, 20).mean(axis=1)
    assert spread.below == pytest.approx(means.var(ddof=1) / 10)
    assert 5 < spread.freedom <= 9


def test_unequal_clusters_have_a_variance_without_bias_and_fewer_degrees_of_freedom():
    sizes = [150, 150, *[25] * 8]
    weights = np.array(sizes) / sum(sizes)
    found = []
    for seed in range(2_000):
        means = np.random.default_rng(seed).normal(0, 1, 10)
        found.append(clusters.spread_of(weights * (means - weights @ means), weights, even=True))
    assert np.mean([one.below for one in found]) == pytest.approx((weights**2).sum(), rel=0.05)
    assert max(one.freedom for one in found) < 4


def test_an_interval_is_students_and_stays_on_its_scale():
    spread = Spread(0.01, 0.01, 6)
    half = stats.t.ppf(0.975, 6) * 0.1
    assert clusters.ends_of(2.0, [spread], "plain") == pytest.approx((2 - half, 2 + half))
    low, high = clusters.ends_of(0.9, [spread])
    assert np.log([low / (1 - low), high / (1 - high)]) == pytest.approx(
        np.log(9) + np.array([-half, half]) / 0.09
    )
    assert clusters.ends_of(2.0, [spread], "log") == pytest.approx(
        (2 * np.exp(-half / 2), 2 * np.exp(half / 2))
    )
    assert clusters.ends_of(1.0, [spread]) is None
    assert clusters.ends_of(0.5, [clusters.NOTHING]) is None


@pytest.mark.parametrize("difference", [0.3, -0.3])
def test_p_is_where_the_interval_ends_at_0(difference):
    one, other = Spread(0.01, 0.01, 9), Spread(0.0025, 0.0025, np.inf)
    assert clusters.probability_of(difference, [one]) == pytest.approx(
        2 * stats.t.sf(3, 9), rel=1e-6
    )
    p = clusters.probability_of(difference, [one, other])
    assert stats.t.ppf(1 - p / 2, 9) ** 2 * 0.01 + stats.norm.ppf(
        1 - p / 2
    ) ** 2 * 0.0025 == pytest.approx(0.09, rel=1e-6)
    assert clusters.probability_of(0.0, [one]) == 1.0


def test_a_figure_left_out_block_by_block_is_the_mean_s_own():
    counts = np.random.default_rng(0).integers(1, 9, (12, 5)).astype(float)
    values = np.arange(5.0)
    found = clusters.left_out(lambda some: float(some @ values / some.sum()), counts)
    scores, of = (
        np.tile(values, 12).repeat(counts.ravel().astype(int)),
        np.repeat(np.arange(12), counts.sum(axis=1).astype(int)),
    )
    sample = ClassSample(scores, of, 12, 10**9)
    assert found.below == pytest.approx(sample.spread_of(scores).below, rel=1e-9)


def drawn(sources, each, correlation, seed=0):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(sources), each)
    return correlation**0.5 * rng.standard_normal(sources)[codes] + (
        1 - correlation
    ) ** 0.5 * rng.standard_normal(len(codes)), codes


def test_images_of_a_source_each_are_worth_as_many_as_they_are_and_those_of_one_source_nothing():
    found = effective_size(
        np.random.default_rng(0).normal(size=500), np.arange(500)[::-1] * 7, 0.01
    )
    assert (found.n, found.groups, found.effective) == (500, 500, 500)
    alone = effective_size([1.0, 2.0, 3.0], [5, 5, 5], 0.01)
    assert (alone.effective, alone.largest, alone.largest_share) == (0, 5, 1), (
        "one source alone says nothing of others"
    )


def test_images_of_sources_that_score_alike_are_worth_less():
    worth = {
        correlation: effective_size(*drawn(200, 20, correlation), 0.01).effective
        for correlation in (0.0, 0.3, 0.7)
    }
    assert 2_800 < worth[0.0] <= 4_000
    assert 1_000 < worth[0.3] < 2_400
    assert worth[0.7] < 900


@pytest.mark.parametrize(("correlation", "share"), [(0.1, 0.01), (0.3, 0.01), (0.6, 0.05)])
def test_the_tail_of_a_normal_pair(correlation, share):
    both = stats.multivariate_normal.cdf(
        [stats.norm.ppf(share)] * 2, cov=[[1, correlation], [correlation, 1]]
    )
    assert tail_correlation(correlation, share) == pytest.approx(
        (both - share**2) / (share * (1 - share)), rel=1e-3
    )
    assert tail_correlation(-0.2, share) == pytest.approx(0, abs=1e-12)


def test_a_few_sources_that_score_apart_in_the_tail_count():
    scores, codes = drawn(100, 20, 0.0)
    scores[codes < 3] += 3
    assert effective_size(scores, codes, 0.01).effective < 300
