"""MaskCLIP's joint policy: every step with the reference's share and range."""

import numpy as np
import pytest
from PIL import Image

from ray_app.detectors.preprocessing import Preprocessing, Resize
from ray_app.transforms.ops import ImageSample
from ray_app.transforms.policies.papers import MaskClipPolicy, _adjust_light, _scale
from tests.make.images import photo
from tests.transforms.given import marked, rng, share_near

POLICY = MaskClipPolicy()


@pytest.fixture(scope="module")
def results():
    sample = marked(100, 60)
    return [POLICY(sample, rng(seed)) for seed in range(600)]


def test_both_sides_scale_by_the_same_four_fifths_to_six_fifths(results):
    long, short = zip(*((max(r.image.size), min(r.image.size)) for r in results), strict=True)
    assert (min(long), max(long)) == (80, 119)
    assert all(abs(w / 100 - h / 60) < 0.02 for w, h in zip(long, short, strict=True))
    assert np.mean(long) == pytest.approx(99.5, abs=1.5)


def test_a_quarter_lie_on_their_side_and_none_is_final(results):
    assert share_near(sum(r.image.height > r.image.width for r in results), 600, 0.5 * 0.5)
    assert {(r.finished, r.label) for r in results} == {(False, 1)}, (
        "the label is the loader's to recompute"
    )


def test_light_and_contrast_within_a_tenth(results):
    ground = np.array([np.median(np.asarray(r.image).reshape(-1, 3), axis=0) for r in results])
    # 90 and 60 of the ground, × 0.9 to 1.1, ± 25.5.
    assert ground.min() >= 60 * 0.9 - 25.5 - 2
    assert ground.max() <= 90 * 1.1 + 25.5 + 2
    assert np.ptp(ground[:, 0]) > 45
    levels = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(3, 0).T[None].copy())
    expected = [int(min(max(level * np.float32(1.05) - 10.2, 0), 255)) for level in range(256)]
    assert (
        np.asarray(_adjust_light(levels, brightness=-0.04, contrast=0.05))[0, :, 0].tolist()
        == expected
    )


@pytest.fixture(scope="module")
def grain():
    """Of noise in three independent colours, the contrast between neighbours after the policy:
    (400, 3) red, blue and light.
    """
    pixels = rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    noise = ImageSample(Image.fromarray(pixels), None, 1)
    contrasts = []
    for seed in range(400):
        pixels = np.asarray(POLICY(noise, rng(1, seed)).image).astype(float)
        red, blue, light = pixels[..., 0], pixels[..., 2], pixels @ (0.299, 0.587, 0.114)
        planes = (red, blue, red - blue, light)
        contrasts.append([np.diff(plane, axis=1).std() for plane in planes])
    return np.array(contrasts).T


def test_jpeg_in_a_fifth_of_the_images_takes_red_for_blue(grain):
    """JPEG halves the resolution of colour and keeps that of light; of the channels it keeps least
    of the one it takes for blue.
    """
    red, blue, colour, light = grain
    compressed = colour / light < 1.4
    assert share_near(int(compressed.sum()), 400, 0.2)
    less_red = red < blue
    assert less_red[compressed].mean() > 0.9
    assert less_red[~compressed].mean() < 0.7


def test_blurred_in_a_fifth_of_the_images(grain):
    assert share_near(int((grain[3] < 21).sum()), 400, 0.2)


def test_scaling_is_opencv_s_without_antialias():
    image = photo(100, 100)
    opencv = Preprocessing(resize=Resize(mode="squash", size=80), resampler="opencv").prepare(image)
    ours = np.asarray(_scale(ImageSample(image, None, 1), 0.805).image)
    assert ours.shape == opencv.shape
    assert np.abs(ours.astype(int) - opencv).max() <= 1
