"""Scenes, cameras, decoders and histories: sizes, seeds, and that nothing is moved or tinted on the
way.
"""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from tests.simulation import camera
from tests.simulation.archive import DECODERS, SPLITS, repaint
from tests.simulation.camera import CAMERAS, files_of_one_history, masks
from tests.simulation.scenes import FAMILIES, render

DEMOSAICS = (
    camera.bilinear,
    camera.edge_directed,
    camera.gradient_weighted,
    camera.constant_hue,
    camera.chroma_median,
)


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


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("demosaic", DEMOSAICS)
def test_demosaicing_keeps_flat_colour_and_every_measured_sample_of_a_ramp(demosaic, corner):
    cfa = masks(24, 32, corner)
    assert (cfa.reshape(12, 2, 16, 2, 3).sum(axis=(1, 3)) == [1, 2, 1]).all(), (
        "of every cell one red, two green, one blue"
    )
    flat = np.broadcast_to(np.array([0.2, 0.5, 0.3], np.float32), (24, 32, 3))
    out = demosaic((flat * cfa).sum(axis=-1), cfa)
    np.testing.assert_allclose(out, flat, atol=1e-5)
    ramp = np.repeat(
        np.linspace(0.2, 0.8, 32, dtype=np.float32)[None, :, None], 24, axis=0
    ) * np.ones(3, np.float32)
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
    # A picture that were shifted by a pixel or two would correlate worse with the original than
    # with its own neighbour.
    coarse = [
        block.reshape(12, 8, 16, 8, 3).mean(axis=(1, 3)).ravel()
        for block in (picture.astype(float), painted.astype(float))
    ]
    assert np.corrcoef(coarse)[0, 1] > 0.93


def test_splits_have_nothing_in_common_name_what_exists_and_leave_nothing_out():
    for one, other in itertools.combinations(SPLITS.values(), 2):
        assert not {*one.scenes, *one.cameras, *one.decoders} & {
            *other.scenes,
            *other.cameras,
            *other.decoders,
        }
    assert {name for split in SPLITS.values() for name in split.scenes} == set(FAMILIES)
    assert {name for split in SPLITS.values() for name in split.cameras} == set(CAMERAS)
    assert {name for split in SPLITS.values() for name in split.decoders} == set(DECODERS)


@pytest.mark.parametrize("side", [80, 50])
def test_a_history_ends_in_the_asked_size(side):
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)
    for _ in range(20):
        suffix, files = files_of_one_history(rng, [pixels, pixels], side)
        assert suffix in (".jpg", ".png", ".webp")
        assert files[0] == files[1]
        assert Image.open(io.BytesIO(files[0])).size == (side, side)
