"""Noise of the strength that was asked for, gamma by its formula, sharpening by Pillow's filter."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ray_app.perturbations.tones import noisy, sharpened, with_gamma
from tests.images.factory import photo

GREY = Image.new("RGB", (300, 600), (128, 128, 128))


@pytest.mark.parametrize("sigma", [1.7320508, 5.0])
def test_noise_has_the_deviation_and_no_mean(sigma):
    difference = np.asarray(noisy(GREY, sigma, np.random.default_rng(0))).astype(float) - 128
    # Rounding to whole levels adds a twelfth to the variance; of 540,000 values the sampling error is below 1 %.
    assert difference.var() == pytest.approx(sigma**2 + 1 / 12, rel=0.01)
    assert abs(difference.mean()) < 0.05
    flat = difference.reshape(-1, 3)
    assert abs(np.corrcoef(flat[:, 0], flat[:, 1])[0, 1]) < 0.01


def test_noise_in_bands_is_that_of_one_draw():
    drawn = np.random.default_rng(7).standard_normal((600, 300, 3), np.float32) * np.float32(3)
    expected = np.clip(np.rint(128 + drawn), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(noisy(GREY, 3, np.random.default_rng(7))), expected)


def test_noise_is_clipped():
    pixels = np.asarray(noisy(Image.new("RGB", (50, 50), (255, 0, 255)), 20, np.random.default_rng(0)))
    assert pixels[:, :, 0].min() > 128
    assert pixels[:, :, 1].max() < 128


def test_gamma_is_the_formula():
    image = photo(30, 20)
    expected = np.rint(255 * (np.asarray(image) / 255) ** 1.05).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(with_gamma(image, 1.05)), expected)


def test_sharpening_is_pillow_s_unsharp_mask():
    image = photo(30, 20)
    assert sharpened(image, 30, 1).tobytes() == image.filter(ImageFilter.UnsharpMask(1, 30, 0)).tobytes()
    assert sharpened(image, 30, 1).tobytes() != image.tobytes()
