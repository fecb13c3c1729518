"""Sizes after resizes and crops, and that a crop is the part that it says."""

import numpy as np
import pytest
from PIL import Image

from ray_app.perturbations.sizing import MOST_PIXELS, capped_size, centre_crop, fitted_size, random_square, resized, scaled_size
from tests.images.factory import photo


@pytest.mark.parametrize(
    ("size", "cap", "expected"), [((4000, 3000), 2048, (2048, 1536)), ((300, 200), 1024, (300, 200)), ((5000, 2), 1000, (1000, 1))]
)
def test_a_cap_only_shrinks(size, cap, expected):
    assert capped_size(size, cap) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((4000, 3000), (1440, 1080)),
        ((3000, 4000), (1080, 1440)),
        ((2000, 500), (1920, 480)),
        ((1920, 1080), (1920, 1080)),
        ((9, 9), (9, 9)),
    ],
)
def test_a_screen_is_turned_as_the_image_is(size, expected):
    assert fitted_size(size, (1920, 1080)) == expected


def test_half_a_pixel_is_one():
    assert scaled_size((1, 3), 0.5) == (1, 2)


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_a_resize_is_pillow_s(method):
    image = photo(60, 40)
    expected = image.resize((31, 17), getattr(Image.Resampling, method.upper()))
    assert resized(image, (31, 17), method).tobytes() == expected.tobytes()


@pytest.mark.parametrize(("size", "method"), [((20, 20), "LANCZOS"), ((90, 90), "BICUBIC")])
def test_lanczos_shrinks_and_bicubic_enlarges(size, method):
    image = photo(60, 40)
    assert resized(image, size, "lanczos-or-bicubic").tobytes() == image.resize(size, getattr(Image.Resampling, method)).tobytes()


def test_what_would_not_fit_into_memory_is_not_made():
    image = photo(4, 4)
    assert resized(image, (MOST_PIXELS, 2), "bicubic") is image


def test_a_centre_crop_is_the_middle():
    image = photo(80, 40)
    np.testing.assert_array_equal(np.asarray(centre_crop(image, 0.75)), np.asarray(image)[5:35, 10:70])


def test_a_random_square_lies_inside_and_has_the_sides_of_its_range():
    image = photo(100, 64)
    pixels = np.asarray(image)
    sides = set()
    for seed in range(60):
        square = np.asarray(random_square(image, 10, 2048, 0.625, np.random.default_rng(seed)))
        assert square.shape[0] == square.shape[1]
        sides.add(square.shape[0])
        windows = np.lib.stride_tricks.sliding_window_view(pixels[:, :, 0], square.shape[:2])
        assert (windows == square[:, :, 0]).all(axis=(2, 3)).any()
    assert min(sides) >= 40
    assert max(sides) <= 64
    assert len(sides) > 10


@pytest.mark.parametrize(("size", "side"), [((3, 7), 3), ((1, 1), 1), ((120, 159), 120)])
def test_of_an_image_below_the_range_the_square_is_the_short_side(size, side):
    assert random_square(photo(*size), 160, 2048, 0.625, np.random.default_rng(1)).size == (side, side)


def test_no_square_exceeds_the_range():
    image = Image.new("RGB", (400, 300))
    assert {random_square(image, 10, 50, 0.9, np.random.default_rng(seed)).size[0] for seed in range(40)} == {45, 46, 47, 48, 49, 50}
