import numpy as np
import pytest

from ray_app.datasets.simulation.scenes import FAMILIES, render


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scene_is_light_of_the_asked_size_and_depends_on_its_seed_alone(family):
    scene = render(family, np.random.default_rng(3), 64, 96)
    assert scene.shape == (64, 96, 3)
    assert scene.dtype == np.float32
    assert np.isfinite(scene).all()
    assert scene.min() >= 0
    assert scene.std() > 0
    assert np.array_equal(scene, render(family, np.random.default_rng(3), 64, 96))
    assert not np.array_equal(scene, render(family, np.random.default_rng(4), 64, 96))
