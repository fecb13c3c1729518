import pytest

from ray_app.training.config import Loop


def test_a_seed_that_nothing_can_be_drawn_from_is_refused_with_the_recipe():
    assert Loop(batch=2, steps=1, seed=0).seed == 0
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Loop(batch=2, steps=1, seed=-1)
