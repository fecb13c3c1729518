"""The eight ways in which a square can lie, and nothing else; CNNDetection: blur and JPEG, each in
half of the images, then a crop.
"""

from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from ray_app.transforms.ops import ImageSample, jpeg
from ray_app.transforms.policy import CnnDetection, Flips
from tests.transforms.given import by_pixels, rng, share_near, textured

SMALL = textured(32, 32)
PIXELS = np.asarray(SMALL.image)
EIGHT = {
    np.rot90(p, k).tobytes(): (k, m)
    for m, p in enumerate((PIXELS, PIXELS[:, ::-1]))
    for k in range(4)
}


def drawn(policy, n=1600):
    return Counter(EIGHT[policy(SMALL, rng(seed)).image.tobytes()] for seed in range(n))


def test_all_eight_are_equally_likely():
    counts = drawn(Flips(crop=32))
    assert len(counts) == 8
    assert all(share_near(count, 1600, 1 / 8) for count in counts.values())


def test_without_turns_or_mirror():
    assert set(drawn(Flips(turns=False), 60)) == {(0, 0), (0, 1)}
    assert set(drawn(Flips(mirror=False), 100)) == {(k, 0) for k in range(4)}
    assert set(drawn(Flips(mirror=False, turns=False), 10)) == {(0, 0)}


def test_a_crop_is_final_and_without_one_the_size_stays():
    wide = textured(50, 40)
    cut = Flips(crop=24)(wide, rng(0))
    assert (cut.image.size, cut.finished) == ((24, 24), True)
    whole = Flips(turns=False)(wide, rng(0))
    assert (whole.image.size, whole.finished) == ((50, 40), False)


# ---- CNNDetection

DRAWS = 1200
SQUARE = textured(64, 64)
# No room to crop, so that only blur, JPEG and the mirror remain.
STILL = CnnDetection(crop=64, short_side=64, sigma=(0, 0))


def unmirrored(image):
    return {image.tobytes(), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()}


def test_jpeg_in_half_of_the_images_with_quality_30_to_100():
    known = by_pixels(jpeg, SQUARE.image, range(20, 101))
    results = [STILL(SQUARE, rng(seed)).image for seed in range(DRAWS)]
    as_it_was = sum(SQUARE.image.tobytes() in unmirrored(image) for image in results)
    qualities = [
        known[pixels] for image in results for pixels in unmirrored(image) if pixels in known
    ]
    assert share_near(as_it_was, DRAWS, 0.5)
    assert as_it_was + len(qualities) == DRAWS
    assert (min(qualities), max(qualities)) == (30, 100)
    assert np.mean(qualities) == pytest.approx(65, abs=3.5)


def test_mirrored_in_half_of_the_images():
    policy = CnnDetection(crop=64, short_side=64, probability=0)
    drawn = (policy(SQUARE, rng(seed)).image.tobytes() for seed in range(DRAWS))
    assert share_near(sum(pixels == SQUARE.image.tobytes() for pixels in drawn), DRAWS, 0.5)


def test_the_blur_is_scipy_s_with_sigma_up_to_3():
    dot = Image.new("RGB", (64, 64))
    dot.putpixel((32, 32), (255, 255, 255))
    blurring = CnnDetection(crop=64, short_side=64, quality=(100, 100))
    drawn = (blurring(ImageSample(dot, None, 1), rng(seed)).image for seed in range(300))
    peaks = [np.asarray(image).max() for image in drawn]
    # σ < 0.27 leaves the dot as it is
    assert share_near(sum(peak >= 240 for peak in peaks), 300, 0.5 + 0.5 * 0.09)
    assert min(peaks) < 255 / (2 * np.pi * 2.5**2)
    fixed = CnnDetection(crop=64, short_side=64, sigma=(1.5, 1.5))
    planes = [gaussian_filter(plane, 1.5) for plane in np.moveaxis(np.asarray(SQUARE.image), 2, 0)]
    expected = np.stack(planes, axis=-1).tobytes()
    assert any(expected in unmirrored(fixed(SQUARE, rng(seed)).image) for seed in range(12))


@pytest.mark.parametrize(("crop", "short"), [(224, 256), (112, 128)])
def test_the_short_side_goes_with_the_crop(crop, short):
    """A mask of one row says how tall the picture was: the crop holds a 256th of it."""
    mask = Image.new("L", (short * 2, short))
    mask.paste(255, (0, 0, short * 2, short // 2))
    policy = CnnDetection(crop=crop, probability=0)
    sample = ImageSample(mask.convert("RGB"), mask, 1)
    masks = (np.asarray(policy(sample, rng(seed)).mask) for seed in range(200))
    above = [np.count_nonzero(found[:, 0]) for found in masks]
    assert (max(above), min(above)) == (short // 2, crop - short // 2)
