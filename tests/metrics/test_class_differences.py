import numpy as np
import pytest
from scipy import stats

from ray_app.metrics.class_differences import class_differences

RNG = np.random.default_rng(0)
FAKES = np.arange(600) % 3 == 0


def only(name, column):
    [found] = class_differences({name: column}, FAKES)
    return found


def test_numbers_are_compared_as_scipy_does():
    column = np.where(FAKES, RNG.normal(0.5, 1, 600), RNG.normal(0, 1, 600))
    found, expected = only("x", column), stats.ks_2samp(column[~FAKES], column[FAKES])
    assert found.effect == pytest.approx(expected.statistic)
    assert (found.n_real, found.n_fake) == (400, 200)
    assert abs(found.fake - found.real) == pytest.approx(expected.statistic)
    assert found.medians == pytest.approx((np.median(column[~FAKES]), np.median(column[FAKES])), abs=0.05)


def test_words_are_compared_by_their_shares():
    column = np.where(FAKES, "PNG", "JPEG").astype(object)
    column[~FAKES] = np.where(np.arange(400) < 100, "PNG", "JPEG")
    found = only("format", column)
    assert (found.value, found.fake, found.real, found.effect) == ("PNG", 1.0, 0.25, 0.75)
    table = [[100, 300], [200, 0]]
    assert found.p == pytest.approx(stats.chi2_contingency(table).pvalue)
    assert found.strength == "strong"


def test_the_strongest_comes_first_and_of_equals_the_first_given():
    exact = np.where(FAKES, "PNG", "JPEG").astype(object)
    columns = {"weak": RNG.normal(0, 1, 600), "first": exact, "second": np.where(FAKES, 1.0, 0.0), "none": np.full(600, 3.0)}
    found = class_differences(columns, FAKES)
    assert [one.name for one in found] == ["first", "second", "weak", "none"]
    assert [one.strength for one in found] == ["strong", "strong", "none", "none"]
    assert found[-1].effect == 0
    assert all(one.p_holm >= one.p for one in found)


def test_what_is_not_known_is_left_out():
    few = np.full(600, np.nan)
    few[:30] = 1.0  # ten fakes
    assert class_differences({"few": few, "none": np.full(600, None, object)}, FAKES) == []
    some = np.where(np.arange(600) < 300, np.where(FAKES, 1.0, 2.0), np.nan)
    assert (only("some", some).n_real, only("some", some).n_fake) == (200, 100)


def test_noise_is_rarely_called_a_difference():
    columns = {f"{number}": RNG.normal(0, 1, 600) for number in range(200)}
    assert sum(one.strength != "none" for one in class_differences(columns, FAKES)) <= 1
