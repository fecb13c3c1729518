import numpy as np
import pytest
from scipy.stats import binom

from ray_app.metrics.significance import holm, mcnemar_of, mid_p


def test_mcnemar_rejects_impossible_counts():
    low, high = mcnemar_of(0, 0, 10).difference.interval
    assert low == -high < 0
    assert mcnemar_of(0, 0, 0).p is None
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
