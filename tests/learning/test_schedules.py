import math

import pytest

from ray_app.learning.config import Schedule
from ray_app.learning.schedules import rate_at, warmup_steps


def rates(total, *steps, rate=2.0, **schedule):
    return [rate_at(Schedule(**schedule), rate, step, total) for step in steps]


def test_warm_up_rises_to_the_rate_and_the_shape_begins_there():
    assert rates(100, 0, 1, 8, 9, 10, shape="linear", warmup=10) == pytest.approx([0.2, 0.4, 1.8, 2.0, 2.0])
    assert rates(100, 11, 55, 100, shape="linear", warmup=10) == pytest.approx([2 * 89 / 90, 1.0, 0.0])


def test_cosine_by_its_formula_with_a_floor():
    # Community Forensics: 20 % warm-up, then down to a thousandth.
    passed = (30 - 20) / 80
    expected = 2.0 * (0.001 + 0.999 * (1 + math.cos(math.pi * passed)) / 2)
    assert rates(100, 19, 30, 60, 100, shape="cosine", warmup=0.2, floor=0.001) == pytest.approx([2.0, expected, 1.001, 0.002])


def test_without_warm_up_the_first_step_has_the_whole_rate():
    assert rates(75_000, 0, 10, 75_000, rate=5e-5, shape="linear") == pytest.approx([5e-5, 5e-5 * (1 - 10 / 75_000), 0.0])
    assert rates(50, 0, 10, 49, shape="constant") == [2.0, 2.0, 2.0]


def test_a_share_of_steps_and_a_number_of_steps():
    assert warmup_steps(Schedule(warmup=0.05), 1010) == 50
    assert warmup_steps(Schedule(warmup=1), 1010) == 1
    assert warmup_steps(Schedule(), 1010) == 0


def test_past_the_end_the_floor_holds_and_a_warm_up_over_everything_ends_at_the_rate():
    assert rates(100, 100, 5000, floor=0.1) == pytest.approx([0.2, 0.2])
    assert rates(10, 0, 9, warmup=10) == pytest.approx([0.2, 2.0])
