import math

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from ray_app.metrics.significance import delong, holm, mcnemar, mcnemar_of, mid_p


def two_systems(seed, n=60, ties=False, same=0.5, gain=0.0):
    draw = np.random.default_rng(seed)
    fake = np.arange(n) % 3 == 0
    shared = draw.normal(fake, 1)
    a, b = (same * shared + (1 - same) * draw.normal(fake * (1 + extra), 1) for extra in (0, gain))
    return (a.round(0), b.round(0), fake) if ties else (a, b, fake)


def covariance_by_pairs(scores, fake):
    """DeLong's own definition: structural components from every pair of a fake and a real image."""
    wins = [[(x > y) + 0.5 * (x == y) for y in one[~fake]] for one in scores for x in one[fake]]
    table = np.array(wins).reshape(2, fake.sum(), (~fake).sum())
    return np.cov(table.mean(2)) / fake.sum() + np.cov(table.mean(1)) / (~fake).sum()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_delong_is_its_definition(seed, ties):
    a, b, fake = two_systems(seed, ties=ties)
    found = delong(a, b, fake)
    difference = roc_auc_score(fake, b) - roc_auc_score(fake, a)
    matrix = covariance_by_pairs((a, b), fake)
    error = math.sqrt(matrix[0, 0] + matrix[1, 1] - 2 * matrix[0, 1])
    assert found.difference.value == pytest.approx(difference, abs=1e-12)
    assert found.difference.interval == pytest.approx(
        (difference - 1.959963985 * error, difference + 1.959963985 * error), abs=1e-9
    )
    assert found.p == pytest.approx(math.erfc(abs(difference) / error / math.sqrt(2)), abs=1e-9)
    assert (found.test, found.n, found.difference.method) == ("delong", 60, "delong")


def test_delong_of_equal_systems_and_where_it_is_not_defined():
    a, _, fake = two_systems(0)
    same = delong(a, 2 * a + 1, fake)
    assert (same.difference.value, same.p, same.why) == (0.0, 1.0, None)
    few = delong([1, 2, 3], [1, 2, 3], [1, 0, 0]).row()
    assert (few["p"], few["n"], few["why"]) == (None, 3, "too few images")
    assert few["difference"]["why"] == "two fakes and two real images are the least that it takes"
    turned = delong([0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1])
    assert (turned.difference.value, turned.p, turned.why) == (-1.0, None, "the AUCs do not vary")
    with pytest.raises(ValueError, match="not finite"):
        delong([np.nan, 1], [1, 2], [0, 1])


def test_mcnemar_counts_what_one_alone_gets_right():
    draw = np.random.default_rng(0)
    a, b = draw.random(500) < 0.8, draw.random(500) < 0.7
    found = mcnemar(a, b)
    assert found == mcnemar_of(int((a & ~b).sum()), int((b & ~a).sum()), 500)
    assert found.difference.value == pytest.approx(b.mean() - a.mean())
    assert found.difference.interval[0] < found.difference.value < found.difference.interval[1]
    assert mcnemar([], []).p is None
    low, high = mcnemar_of(0, 0, 10).difference.interval
    assert low == -high < 0
    with pytest.raises(ValueError, match="one length"):
        mcnemar([True], [True, False])
    with pytest.raises(ValueError, match="no counts"):
        mcnemar_of(3, 3, 5)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 4), (3, 9), (7, 7), (120, 160)])
def test_mid_p_is_its_definition(only_a, only_b):
    n = only_a + only_b
    chances = binom.pmf(np.arange(n + 1), n, 0.5)
    observed = chances[only_a]
    as_odd = np.isclose(chances, observed, rtol=1e-9)
    expected = chances[(chances < observed) & ~as_odd].sum() + 0.5 * chances[as_odd].sum()
    expected = 1.0 if only_a == only_b else expected
    assert mid_p(only_a, n) == pytest.approx(min(1, expected), abs=1e-9)
    assert mcnemar_of(only_a, only_b, n + 10).p == mid_p(only_a, n)


def test_the_interval_of_mcnemar_covers():
    draw = np.random.default_rng(2)
    ends = [
        mcnemar_of(*draw.multinomial(100, [0.05, 0.12, 0.83])[:2].tolist(), 100).difference.interval
        for _ in range(500)
    ]
    assert 0.93 <= np.mean([low <= 0.07 <= high for low, high in ends]) <= 0.985


def test_holm_by_hand():
    found = holm([0.01, None, 0.04, 0.03, 0.005])
    assert found.pop(1) is None
    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
