import numpy as np
import pytest
from scipy.stats import ks_2samp

from ray_app.metrics.drift import drift_of, kolmogorov_smirnov, quantiles_of, stability_index
from ray_app.metrics.histograms import ScoreHistogram


def normal(seed, n, centre=0.0, decimals=9):
    return np.random.default_rng(seed).normal(centre, 1, n).round(decimals)


@pytest.mark.parametrize("decimals", [9, 0])
@pytest.mark.parametrize(("n", "m"), [(300, 200), (50, 4_000), (1, 3)])
def test_kolmogorov_smirnov_is_scipys(n, m, decimals):
    first, second = normal(0, n, decimals=decimals), normal(1, m, 0.3, decimals)
    found = kolmogorov_smirnov(ScoreHistogram.of(first), ScoreHistogram.of(second))
    theirs = ks_2samp(first, second, method="asymp")
    assert found[0] == pytest.approx(theirs.statistic, abs=1e-12)
    assert found[1] == pytest.approx(theirs.pvalue, abs=1e-9)
    apart = abs((first <= found[2]).mean() - (second <= found[2]).mean())
    assert apart == pytest.approx(found[0], abs=1e-12)


def test_the_stability_index_is_its_definition():
    first, second = normal(0, 1_000), normal(1, 3_000, 0.4)
    edges = np.quantile(np.concatenate([first, second]), np.arange(1, 10) / 10, method="inverted_cdf")
    counts = [np.bincount(np.searchsorted(edges, one, "left"), minlength=10) + 0.5 for one in (first, second)]
    a, b = (one / one.sum() for one in counts)
    found = stability_index(ScoreHistogram.of(first), ScoreHistogram.of(second))
    assert found[0] == pytest.approx(((a - b) * np.log(a / b)).sum(), abs=1e-12)
    assert found == pytest.approx(stability_index(ScoreHistogram.of(second), ScoreHistogram.of(first)))
    assert found[1] < 1e-6


def test_both_err_as_often_as_they_say():
    found = [drift_of(ScoreHistogram.of(normal(seed, 400)), ScoreHistogram.of(normal(seed + 5_000, 300))) for seed in range(400)]
    assert 0.02 <= np.mean([one.psi_p < 0.05 for one in found]) <= 0.08
    assert 0.015 <= np.mean([one.ks_p < 0.05 for one in found]) <= 0.07


def test_the_same_scores_have_not_drifted():
    one = ScoreHistogram.of(normal(0, 500))
    assert drift_of(one, one).row() == {"ks": 0.0, "ks_p": 1.0, "at": one.values[0], "psi": 0.0, "psi_p": 1.0}


def test_few_values_make_few_bins():
    first, second = ScoreHistogram.of([0.0] * 90 + [1.0] * 10), ScoreHistogram.of([0.0] * 10 + [1.0] * 90)
    index, p = stability_index(first, second)
    shares = np.array([90.5, 10.5]) / 101
    assert index == pytest.approx(2 * (shares[0] - shares[1]) * np.log(shares[0] / shares[1]))
    assert p < 1e-9
    assert stability_index(ScoreHistogram.of([2, 2]), ScoreHistogram.of([2])) == (0.0, 1.0)


def test_no_scores_are_no_drift():
    nothing, one = ScoreHistogram.of([]), ScoreHistogram.of([1.0])
    assert drift_of(nothing, one) is None
    with pytest.raises(ValueError, match="there are 0 and 1"):
        kolmogorov_smirnov(nothing, one)
    with pytest.raises(ValueError, match="no quantile"):
        quantiles_of(nothing, (0.5,))


def test_quantiles_are_scores_that_there_are():
    scores = normal(0, 99, decimals=1)
    shares = (0.05, 0.5, 0.95, 1.0)
    expected = np.quantile(scores, shares, method="inverted_cdf")
    assert quantiles_of(ScoreHistogram.of(scores), shares) == pytest.approx(expected)
