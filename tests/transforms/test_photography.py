"""Retouching and pictures of pictures: denoising that keeps edges, light that evens out, frames,
and maps that stay within the picture.
"""

import numpy as np
import pytest
from PIL import Image

from ray_app.transforms.photography import (
    denoise,
    merge_exposures,
    set_levels,
    show_on_screen,
    tilt,
)
from tests.make.images import photo
from tests.transforms.given import rng


def noisy_step(sigma=6.0):
    """Two level halves, 60 and 180, with noise."""
    levels = np.where(np.arange(128) < 64, 60.0, 180.0)[None, :, None] * np.ones((96, 1, 3))
    noise = np.random.default_rng(0).normal(0, sigma, levels.shape)
    return Image.fromarray((levels + noise).clip(0, 255).astype(np.uint8))


def test_denoising_takes_noise_and_leaves_edges():
    before, after = (np.asarray(image, float) for image in (noisy_step(), denoise(noisy_step(), 6)))
    assert after[:, 8:56].std() < 0.5 * before[:, 8:56].std()
    assert after.mean() == pytest.approx(before.mean(), abs=0.5)
    assert after[:, 66:].mean() - after[:, :62].mean() == pytest.approx(120, abs=1.5)
    moved = [
        np.abs(np.asarray(denoise(noisy_step(), sigma), float) - before).mean()
        for sigma in (0.5, 2, 6, 20)
    ]
    assert moved == sorted(moved)
    assert moved[0] < 0.2


def test_merged_exposures_lift_shadows_and_lower_lights():
    halves = np.where(np.arange(256) < 128, 20, 235)[None, :, None] * np.ones((128, 1, 3))
    merged = np.asarray(merge_exposures(Image.fromarray(halves.astype(np.uint8)), 2), float)
    assert merged[:, :40].mean() > 25
    assert merged[:, -40:].mean() < 225
    assert merged[:, -40:].mean() - merged[:, :40].mean() > 80
    image = photo(160, 120)
    spreads = [np.asarray(merge_exposures(image, stops), float).std() for stops in (0.1, 1, 2)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[0] == pytest.approx(np.asarray(image, float).std(), abs=1)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (10, 900), (1, 1)])
def test_screenshot_shows_the_whole_image_between_bars(size):
    for seed in range(3):
        image = Image.new("RGB", size, (40, 200, 90))
        result = np.asarray(show_on_screen(image, rng(seed), (108, 192)))
        assert result.shape == ((108, 192, 3) if size[0] > size[1] else (192, 108, 3))
        bars = (result == result[..., :1]).all(axis=2)
        grey = np.unique(result[bars])
        assert len(grey) == 1
        assert grey[0] < 40 or grey[0] >= 216
        rows, columns = (~bars).any(axis=1), (~bars).any(axis=0)
        assert 1 <= rows.sum() <= 0.92 * len(rows) + 1
        across, down = columns.sum(), rows.sum()
        assert across / down == pytest.approx(size[0] / size[1], rel=0.1) or min(across, down) < 10
        assert columns.all() or down >= 0.78 * len(rows) - 1
        assert (result[~bars] == (40, 200, 90)).all()


def test_tilt_stays_near_and_shows_nothing_from_outside():
    flat = Image.new("RGB", (200, 150), (90, 140, 200))
    y, x = np.mgrid[0:150, 0:200]
    ramp = Image.fromarray(np.stack([x, y, x * 0], axis=2).astype(np.uint8))
    for seed in range(6):
        assert tilt(flat, rng(seed), 0.05).tobytes() == flat.tobytes()
        moved = np.asarray(tilt(ramp, rng(seed), 0.05), float)
        assert np.abs(moved[..., 0] - x).max() <= 0.05 * 200 + 1
        assert np.abs(moved[..., 1] - y).max() <= 0.05 * 150 + 1
        assert np.abs(moved[..., 0] - x).max() > 1
    assert tilt(photo(), rng(1), 0.05).tobytes() == tilt(photo(), rng(1), 0.05).tobytes()


def test_levels_are_a_line_from_black_to_white():
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2))
    found = np.asarray(set_levels(ramp, 12, 238))[0]
    line = np.linspace(12, 238, 256)[:, None].repeat(3, axis=1)
    np.testing.assert_allclose(found, line, atol=0.5)
    assert (found[0, 0], found[-1, 0]) == (12, 238)
