import numpy as np
import pytest
from scipy import stats

from ray_app.metrics.intervals import mean_figure


def test_interval_of_a_mean_is_students_within_bounds():
    values = np.random.default_rng(0).random(12) * 0.2 + 0.4
    found = mean_figure(values, "none")
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert (found.value, *found.interval) == pytest.approx((values.mean(), low, high), abs=1e-12)
    assert (found.n, found.method) == (12, "student")
    assert mean_figure([0.0, 0.0, 1.0], "none").interval == (0.0, 1.0)
    assert mean_figure([-1.0, 1.0], "none", bounds=(-1, 1)).interval == (-1, 1)
    assert mean_figure([0.7] * 3, "none").interval is None, (
        "values all alike say nothing of the spread"
    )
