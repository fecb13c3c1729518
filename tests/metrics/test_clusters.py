"""Effective sizes of grouped images."""

import numpy as np
import pytest
from scipy import stats

from ray_app.metrics.clusters import effective_size, tail_correlation


def drawn(sources, each, correlation, seed=0):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(sources), each)
    return correlation**0.5 * rng.standard_normal(sources)[codes] + (
        1 - correlation
    ) ** 0.5 * rng.standard_normal(len(codes)), codes


def test_effective_size_is_n_of_own_sources_and_0_of_one():
    scores = np.random.default_rng(0).normal(size=500)
    found = effective_size(scores, np.arange(500)[::-1] * 7, 0.01)
    assert (found.n, found.groups, found.effective) == (500, 500, 500)
    alone = effective_size([1.0, 2.0, 3.0], [5, 5, 5], 0.01)
    assert (alone.effective, alone.largest, alone.largest_share) == (0, 5, 1)


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
