import numpy as np
import pytest

from ray_app.datasets.simulation import camera
from ray_app.datasets.simulation.camera import CAMERAS, masks
from ray_app.datasets.simulation.scenes import render

DEMOSAICS = (
    camera.bilinear, camera.malvar, camera.edge_directed, camera.gradient_weighted, camera.constant_hue, camera.chroma_median,
)  # fmt: skip


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("demosaic", DEMOSAICS)
def test_demosaicing_keeps_flat_colour_and_every_measured_sample_of_a_ramp(demosaic, corner):
    cfa = masks(24, 32, corner)
    assert (cfa.reshape(12, 2, 16, 2, 3).sum(axis=(1, 3)) == [1, 2, 1]).all(), "of every cell one red, two green, one blue"
    flat = np.broadcast_to(np.array([0.2, 0.5, 0.3], np.float32), (24, 32, 3))
    out = demosaic((flat * cfa).sum(axis=-1), cfa)
    np.testing.assert_allclose(out, flat, atol=1e-5)
    ramp = np.repeat(np.linspace(0.2, 0.8, 32, dtype=np.float32)[None, :, None], 24, axis=0) * np.ones(3, np.float32)
    out = demosaic((ramp * cfa).sum(axis=-1), cfa)
    np.testing.assert_allclose(out[4:-4, 4:-4], ramp[4:-4, 4:-4], atol=0.02)


@pytest.mark.parametrize("name", CAMERAS)
def test_a_camera_gives_noisy_eight_bit_pictures_that_depend_on_the_seed_alone(name):
    scene = render("clouds", np.random.default_rng(1), 128, 160)
    shot = CAMERAS[name].shoot(scene, np.random.default_rng(2))
    assert shot.shape == (64, 80, 3)
    assert shot.dtype == np.uint8
    assert 20 < shot.mean() < 220
    assert np.array_equal(shot, CAMERAS[name].shoot(scene, np.random.default_rng(2)))
    assert not np.array_equal(shot, CAMERAS[name].shoot(scene, np.random.default_rng(3)))
