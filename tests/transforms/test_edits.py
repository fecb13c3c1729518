"""Altered photographs: as much of the area as was said, by texture from elsewhere that meets what surrounds it, and nothing besides."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label, laplace

from ray_app.transforms.edits import altered, drawn_region
from tests.images.factory import photo
from tests.transforms.given import rng

SHARES = (0.05, 0.2, 0.5)
PHOTO = photo(320, 240)


def changed(image, result):
    """(H, W): where any channel differs."""
    return (np.asarray(image) != np.asarray(result)).any(axis=2)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("size", [(320, 240), (200, 333)])
def test_as_much_is_altered_as_was_said_and_the_rest_keeps_its_values(share, size):
    image = photo(*size)
    for seed in range(4):
        result = altered(image, share, rng(seed))
        assert (result.size, result.mode) == (size, "RGB")
        # The outline is soft: about half of it lies outside of the region.
        assert 0.8 * share < changed(image, result).mean() < share + 0.08


def test_the_same_draws_give_the_same_picture_and_others_another():
    before = PHOTO.tobytes()
    made = [altered(PHOTO, 0.2, rng(seed)).tobytes() for seed in range(4)]
    assert made == [altered(PHOTO, 0.2, rng(seed)).tobytes() for seed in range(4)]
    assert len({*made, before}) == 5
    assert PHOTO.tobytes() == before


def test_what_fills_is_the_picture_s_own_texture():
    """The noise is that of the photograph, where a harmonic filling alone would be smooth."""

    def noise(pixels, where):
        return np.std(laplace(pixels[..., 1].astype(float))[where])

    result = altered(PHOTO, 0.2, rng(1))
    inside = np.abs(np.asarray(PHOTO, int) - np.asarray(result, int)).max(axis=2) > 0
    before, after = noise(np.asarray(PHOTO), inside), noise(np.asarray(result), inside)
    assert 0.7 * before < after < 1.3 * before


@pytest.mark.parametrize("share", SHARES)
def test_a_picture_whose_colour_drifts_stays_without_a_seam(share):
    """Shifted texture of a gradient is the gradient again, once its offset is continued from the outline."""
    y, x = np.mgrid[0:240, 0:320]
    smooth = Image.fromarray(np.stack([x * 0.5 + 40, y * 0.5 + 60, (x + y) * 0.25 + 30], axis=2).astype(np.uint8))
    for seed in range(4):
        pixels = np.asarray(altered(smooth, share, rng(seed)), float)
        for axis in (0, 1):
            assert np.abs(np.diff(pixels, axis=axis)).max() <= 8


@pytest.mark.parametrize("share", SHARES)
def test_the_region_is_of_one_piece_or_nearly_and_of_exactly_that_share(share):
    for seed in range(6):
        region = drawn_region((96, 128), share, rng(seed))
        assert region.sum() == round(share * 96 * 128)
        pieces, count = label(region)
        assert np.bincount(pieces.ravel())[1:].max() > 0.9 * region.sum(), count


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 3), (1, 400), (66_000, 2)])
@pytest.mark.parametrize("share", SHARES)
def test_pictures_of_any_shape(size, share):
    image = photo(*size)
    result = altered(image, share, rng(0))
    assert (result.size, result.mode) == (size, "RGB")
    assert (result.tobytes() == image.tobytes()) <= (min(size) < 4)
