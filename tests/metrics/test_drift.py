"""Shifts of archives: no chance difference is noticed at any prevalence."""

import numpy as np
import pytest
from scipy.stats import binom, chi2

from ray_app.metrics.drift import LIMIT_PSI, NOTICED_P, NOTICED_PSI, find_shifts

REAL = np.array([0.1] * 10)
FAKE = np.array([0.01, 0.01, 0.01, 0.02, 0.05, 0.05, 0.05, 0.1, 0.2, 0.5])


def drawn(rng, n_real, n_fake, n, fraction):
    """Counts of an archive with this fraction of fakes, of reals, and of fakes."""
    return (
        rng.multinomial(n, (1 - fraction) * REAL + fraction * FAKE),
        rng.multinomial(n_real, REAL),
        rng.multinomial(n_fake, FAKE),
    )


@pytest.mark.parametrize(
    ("n_real", "n_fake", "n", "fraction"),
    [(300, 100, 10**7, 0.4), (3000, 1000, 60, 0.02), (500, 500, 500, 1.0), (300, 0, 200, 0.0)],
)
def test_chance_is_not_noticed_at_any_prevalence(n_real, n_fake, n, fraction):
    rng = np.random.default_rng([1, n_real, n])
    archives = [drawn(rng, n_real, n_fake, n, fraction) for _ in range(300)]
    shifts = [find_shifts({"score": counts})["score"] for counts in archives]
    assert sum(shift.is_noticed for shift in shifts) <= binom.isf(0.001, 300, NOTICED_P)
    over = sum(shift.psi > shift.chance for shift in shifts)
    assert over <= binom.isf(0.001, 300, NOTICED_P), f"{over} indices of 300 above those of chance"


def test_mixture_of_a_large_archive_has_its_fraction_of_fakes():
    counts = 10**6 * (0.7 * REAL + 0.3 * FAKE)
    shift = find_shifts({"score": (counts, 10**6 * REAL, 10**6 * FAKE)})["score"]
    assert shift.fakes == pytest.approx(0.3)
    assert shift.psi < 1e-6
    assert shift.images == 10**6
    assert shift.limit == NOTICED_PSI


def test_index_and_limit_are_their_formulas_without_fakes():
    archive, real = np.array([100, 300, 600]), np.array([500, 300, 200])
    shift = find_shifts({"score": (archive, real, np.zeros(3))})["score"]
    found, expected = ((counts + 0.5) / (counts.sum() + 1.5) for counts in (archive, real))
    assert shift.psi == pytest.approx(((found - expected) * np.log(found / expected)).sum())
    assert shift.chance == pytest.approx(chi2.isf(NOTICED_P, 2) * (1 / 1000 + 1 / 1000))
    assert shift.fakes == 0


def test_limit_falls_with_images_to_that_of_stable_populations():
    shifts = [
        find_shifts({"score": (n * REAL, 10**6 * REAL, 10**6 * FAKE)})["score"]
        for n in (10, 100, 150, 10_000)
    ]
    assert [shift.is_conclusive for shift in shifts] == [False, False, True, True]
    assert shifts[0].limit > shifts[1].limit > LIMIT_PSI > shifts[2].limit > NOTICED_PSI
    assert shifts[3].limit == NOTICED_PSI


def test_large_shift_is_beyond_the_limit():
    shifted = np.roll(REAL * np.linspace(0.2, 1.8, 10), 3)
    large = find_shifts({"score": (10_000 * shifted, 3000 * REAL, 3000 * REAL)})["score"]
    assert large.psi > LIMIT_PSI
    assert large.is_noticed
    assert large.is_beyond
    small = find_shifts({"score": (60 * shifted, 3000 * REAL, 3000 * REAL)})["score"]
    assert small.psi > LIMIT_PSI
    assert not small.is_noticed, "an index that chance alone can have"


def test_scores_bound_the_fraction_of_fakes():
    """Fakes are PNG and score high. Reals that are PNG too score low."""
    score, form = ([900, 100], [100, 900]), ([1000, 0], [0, 1000])
    fakes = {"score": ([100, 900], *score), "format": ([0, 1000], *form)}
    assert not any(shift.is_noticed for shift in find_shifts(fakes).values())
    reals = {"score": ([900, 100], *score), "format": ([0, 1000], *form)}
    assert find_shifts(reals)["format"].is_beyond
    assert not find_shifts(reals)["score"].is_noticed
    assert not find_shifts({"format": reals["format"]})["format"].is_noticed


def test_fakes_of_one_generator_alone_stay_within_the_limit():
    """One generator of three writes PNG, and an archive has fakes of that generator alone."""
    score = ([3700, 1300], [2700, 300], [100, 900])
    counts = {"score": score, "format": ([4250, 750], [3000, 0], [667, 333])}
    shifts = find_shifts(counts)
    assert shifts["format"].fakes > shifts["score"].fakes
    assert not any(shift.is_beyond for shift in shifts.values())


def test_property_of_some_images_is_mixed_by_all_images():
    """All reals are JPEG and one fake of ten: at 50 % fakes, one JPEG of eleven is fake."""
    quality = ([1000, 100], [10_000, 0], [0, 1000])
    counts = {"score": ([1000, 1000], [10_000, 0], [0, 10_000]), "jpeg_quality": quality}
    shift = find_shifts(counts)["jpeg_quality"]
    assert shift.psi < 0.001
    assert shift.fakes == pytest.approx(0.5)


def test_property_without_images_is_not_compared():
    nothing = np.zeros(2, int)
    assert find_shifts({"score": (nothing, [5, 5], [5, 5])}) == {}
    counts = {"score": ([5, 5], [5, 5], [5, 5]), "jpeg_quality": ([5, 5], nothing, [5, 5])}
    assert list(find_shifts(counts)) == ["score"]
    assert find_shifts({}) == {}
