"""Scenes, cameras, decoders and histories: sizes, seeds, and that nothing is moved or tinted on the
way.
"""

import itertools

import numpy as np
import pytest

from tests.simulation import camera
from tests.simulation.archive import DECODERS, SPLITS, repaint
from tests.simulation.camera import CAMERAS, masks
from tests.simulation.scenes import FAMILIES, render

DEMOSAICS = (camera.bilinear, camera.edge_directed, camera.gradient_weighted)
DEMOSAICS += (camera.constant_hue, camera.chroma_median)


@pytest.mark.parametrize("family", FAMILIES)
def test_scene_is_light_and_depends_on_its_seed_alone(family):
    scene, again, other = (
        render(family, np.random.default_rng(seed), 64, 96) for seed in (3, 3, 4)
    )
    assert scene.shape == (64, 96, 3)
    assert scene.dtype == np.float32
    assert np.isfinite(scene).all()
    assert scene.min() >= 0
    assert np.array_equal(scene, again)
    assert not np.array_equal(scene, other)


@pytest.mark.parametrize("demosaic", DEMOSAICS)
def test_demosaicing_keeps_a_flat_colour_and_a_ramp(demosaic):
    flat = np.broadcast_to(np.array([0.2, 0.5, 0.3], np.float32), (24, 32, 3))
    levels = np.linspace(0.2, 0.8, 32, dtype=np.float32)[None, :, None]
    ramp = np.broadcast_to(levels, (24, 32, 3))
    inner = np.s_[4:-4, 4:-4]
    for corner in itertools.product((0, 1), repeat=2):
        cfa = masks(24, 32, corner)
        # Each cell has one red, two green, and one blue sample.
        assert (cfa.reshape(12, 2, 16, 2, 3).sum(axis=(1, 3)) == [1, 2, 1]).all()
        np.testing.assert_allclose(demosaic((flat * cfa).sum(axis=-1), cfa), flat, atol=1e-5)
        out = demosaic((ramp * cfa).sum(axis=-1), cfa)
        np.testing.assert_allclose(out[inner], ramp[inner], atol=0.02)


@pytest.mark.parametrize("name", CAMERAS)
def test_camera_shoots_noisy_images_by_its_seed_alone(name):
    scene = render("clouds", np.random.default_rng(1), 128, 160)
    shot, again, other = (
        CAMERAS[name].shoot(scene, np.random.default_rng(one)) for one in (2, 2, 3)
    )
    assert shot.shape == (64, 80, 3)
    assert shot.dtype == np.uint8
    assert 20 < shot.mean() < 220
    assert np.array_equal(shot, again)
    assert not np.array_equal(shot, other)


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(5)
    return CAMERAS["reflex"].shoot(render("leaves", rng, 192, 256), rng)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_repaints_the_same_content_in_the_same_place(name, picture):
    painted = repaint(name, picture, np.random.default_rng(6))
    assert painted.shape == picture.shape
    assert painted.dtype == np.uint8
    assert np.array_equal(painted, repaint(name, picture, np.random.default_rng(6)))
    assert abs(float(painted.mean()) - float(picture.mean())) < 6
    # An image that is shifted by a pixel or two correlates worse with the original.
    coarse = [
        block.reshape(12, 8, 16, 8, 3).mean(axis=(1, 3)).ravel()
        for block in (picture.astype(float), painted.astype(float))
    ]
    assert np.corrcoef(coarse)[0, 1] > 0.93


@pytest.mark.parametrize(
    ("kind", "every"), [("scenes", FAMILIES), ("cameras", CAMERAS), ("decoders", DECODERS)]
)
def test_splits_have_each_name_once(kind, every):
    names = [name for split in SPLITS.values() for name in getattr(split, kind)]
    assert sorted(names) == sorted(every)
