"""Archives against mixtures of a population's reals and fakes: chance is not noticed, whatever the
prevalence; shifts are.
"""

import numpy as np
import pytest
from scipy.stats import binom, chi2, chi2_contingency, ks_2samp

from ray_app.metrics.arrays import ScoreHistogram
from ray_app.metrics.drift import (
    LIMIT_PSI,
    NOTICED_P,
    drift_of,
    kolmogorov_smirnov,
    most_fakes,
    quantiles_of,
    shift_of,
    stability_index,
)


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
    edges = np.quantile(
        np.concatenate([first, second]), np.arange(1, 10) / 10, method="inverted_cdf"
    )
    counts = [
        np.bincount(np.searchsorted(edges, one, "left"), minlength=10) + 0.5
        for one in (first, second)
    ]
    a, b = (one / one.sum() for one in counts)
    found = stability_index(ScoreHistogram.of(first), ScoreHistogram.of(second))
    assert found[0] == pytest.approx(((a - b) * np.log(a / b)).sum(), abs=1e-12)
    assert found == pytest.approx(
        stability_index(ScoreHistogram.of(second), ScoreHistogram.of(first))
    )
    # 1,000 × 3,000 / 4,000 images
    assert found[1] == pytest.approx(chi2.sf(found[0] * 750, 9), rel=1e-6)


def test_the_same_scores_have_not_drifted_and_no_scores_are_no_drift():
    same = ScoreHistogram.of(normal(0, 500))
    assert drift_of(same, same).row() == {
        "ks": 0.0,
        "ks_p": 1.0,
        "at": same.values[0],
        "psi": 0.0,
        "psi_p": 1.0,
    }
    nothing, one = ScoreHistogram.of([]), ScoreHistogram.of([1.0])
    assert drift_of(nothing, one) is None
    with pytest.raises(ValueError, match="there are 0 and 1"):
        kolmogorov_smirnov(nothing, one)
    with pytest.raises(ValueError, match="no quantile"):
        quantiles_of(nothing, (0.5,))


REAL = np.array([0.1] * 10)
FAKE = np.array([0.01, 0.01, 0.01, 0.02, 0.05, 0.05, 0.05, 0.1, 0.2, 0.5])


def drawn(rng, n_real, n_fake, n, share, of=REAL):
    return (
        rng.multinomial(n, (1 - share) * of + share * FAKE),
        rng.multinomial(n_real, REAL),
        rng.multinomial(n_fake, FAKE),
    )


@pytest.mark.parametrize(
    ("n_real", "n_fake", "n", "share"),
    [(300, 100, 10**7, 0.4), (3000, 1000, 60, 0.02), (500, 500, 500, 1.0)],
)
def test_chance_is_not_noticed_at_any_prevalence(n_real, n_fake, n, share):
    rng = np.random.default_rng([1, n_real, n])
    shifts = [shift_of(*drawn(rng, n_real, n_fake, n, share)) for _ in range(150)]
    assert sum(shift.noticed() for shift in shifts) <= binom.isf(0.001, 150, NOTICED_P)
    small = sum(shift.p < 0.05 for shift in shifts)
    assert small <= binom.isf(0.001, 150, 0.05), (
        f"p < 0.05 in {small} of 150 archives without a shift"
    )


def test_of_a_large_sample_the_best_share_is_that_of_the_fakes():
    counts = 10**6 * (0.7 * REAL + 0.3 * FAKE)
    shift = shift_of(counts, 10**6 * REAL, 10**6 * FAKE)
    assert shift.share == pytest.approx(0.3, abs=1e-4)
    assert shift.psi < 1e-6
    assert shift.ks < 1e-6
    assert shift.p > 0.99


def test_psi_and_ks_are_their_formulas_and_p_is_pearsons_where_there_are_no_fakes():
    archive, real = np.array([100, 300, 600]), np.array([500, 300, 200])
    shift = shift_of(archive, real, np.zeros(3))
    found, expected = ((one + 0.5) / (one.sum() + 1.5) for one in (archive, real))
    assert shift.psi == pytest.approx(((found - expected) * np.log(found / expected)).sum())
    assert shift.ks == pytest.approx(0.4)
    assert shift_of(
        archive[[1, 2, 0]], real[[1, 2, 0]], np.zeros(3), ordered=False
    ).ks == pytest.approx(0.4)
    assert shift.share == 0
    archive, real = np.array([210, 290, 505]), np.array([520, 680, 800])
    assert shift_of(archive, real, np.zeros(3)).p == pytest.approx(
        chi2_contingency([archive, real]).pvalue, rel=0.02
    )


def test_a_shift_beyond_the_limit_is_noticed_and_beyond():
    shifted = np.roll(REAL * np.linspace(0.2, 1.8, 10), 3)
    shift = shift_of(10_000 * shifted, 3000 * REAL, 3000 * REAL)
    assert shift.psi > LIMIT_PSI
    assert shift.noticed()
    assert shift.beyond()
    assert not shift.noticed(p=0.01), "corrected for others it may be chance"


def test_reals_that_have_become_like_fakes_do_not_pass_for_them_where_scores_say_there_are_none():
    reals, fakes = [0, 0, 1000], [1000, 0, 0]
    archive = [1000, 0, 0]
    assert not shift_of(archive, reals, fakes).noticed()
    assert shift_of(archive, reals, fakes, most_fakes=0.05).beyond()


def test_the_most_fakes_bound_is_seldom_below_the_truth_and_near_it():
    rng = np.random.default_rng(3)
    for share in (0.0, 0.02, 0.3):
        found = [most_fakes(*drawn(rng, 2000, 2000, 5000, share)) for _ in range(150)]
        assert sum(most < share for most in found) <= binom.isf(0.001, 150, NOTICED_P)
        assert max(found) < share + 0.15
    assert most_fakes([10] * 10, [10] * 10, [10] * 10) == 1.0, (
        "where fakes score like reals, any share is possible"
    )
    assert most_fakes([10] * 10, [10] * 10, [0] * 10) == 1.0
