"""The bag of operations: how often, in which order, and each with its published range."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ray_app.transforms.ops import ImageSample, jpeg
from ray_app.transforms.policies.papers import OPERATIONS, CommunityForensicsPolicy
from tests.transforms.given import by_pixels, rng, share_near, textured

DRAWS = 3000


def results(name, sample, count, side=384):
    """What an operation makes of a sample in so many draws."""
    stream = rng(8)
    return [OPERATIONS[name](sample, side, stream) for _ in range(count)]


def masks(name, mask, count):
    sample = ImageSample(mask.convert("RGB"), mask, 1)
    return [np.asarray(result.mask) for result in results(name, sample, count)]


def test_operations_are_drawn_up_to_twice_equally_often():
    policy, stream = CommunityForensicsPolicy(crop=384), rng(0)
    bags = [Counter(policy.draw(stream)) for _ in range(DRAWS)]
    assert len(OPERATIONS) == 11
    for name in OPERATIONS:
        times = Counter(bag[name] for bag in bags)
        assert set(times) == {0, 1, 2}
        assert all(share_near(times[n], DRAWS, 1 / 3) for n in (0, 1, 2)), (name, times)


def test_the_order_is_random():
    policy, stream = CommunityForensicsPolicy(crop=384), rng(1)
    drawn = [policy.draw(stream) for _ in range(DRAWS)]
    first = Counter(names[0] for names in drawn if names)
    assert all(share_near(first[name], first.total(), 1 / 11) for name in OPERATIONS)
    # A repeat is not next to its twin as a rule: they would be, if the bag were not shuffled.
    twins = [names for names in drawn if names.count("jpeg") == 2 and len(names) > 8]
    neighbours = sum(
        abs(np.subtract(*np.flatnonzero(np.array(names) == "jpeg"))) == 1 for names in twins
    )
    assert 0 < neighbours < len(twins) / 3


@pytest.mark.parametrize(("crop", "short"), [(384, 440), (224, 256)])
def test_without_operations_it_is_a_crop_of_the_resize(crop, short):
    image = textured(600, 500).image
    result = CommunityForensicsPolicy(crop=crop, repeats=(0, 0))(
        ImageSample(image, None, 1), rng(0)
    ).image
    whole = np.asarray(image.resize((int(short * 600 / 500), short), Image.Resampling.BILINEAR))
    windows = np.lib.stride_tricks.sliding_window_view(whole, (crop, crop, 3))[:, :, 0]
    left_upper = np.argwhere((windows[:, :, 0] == np.asarray(result)[0]).all((-1, -2)))
    assert any(np.array_equal(windows[y, x], np.asarray(result)) for y, x in left_upper)


def test_jpeg_has_quality_75_to_100():
    sample = textured()
    known = by_pixels(jpeg, sample.image, range(60, 101))
    drawn = {known[result.image.tobytes()] for result in results("jpeg", sample, 600)}
    assert drawn == set(range(75, 101))


def test_resize_brings_the_short_side_to_385_to_472():
    sample = ImageSample(Image.new("L", (440, 450)), None, 1)
    short = [min(result.image.size) for result in results("resize", sample, 700)]
    assert (min(short), max(short)) == (385, 472)


def test_rotation_reaches_15_degrees_and_no_more():
    ruler = Image.new("L", (201, 201))
    ruler.paste(255, (100, 99, 201, 102))  # from the centre to the right
    angles = []
    for turned in masks("rotate", ruler, 150):
        angles.append(np.degrees(np.arctan2(100 - np.flatnonzero(turned[:, 190]).mean(), 90)))
    assert -15.5 < min(angles) < -13.5
    assert 13.5 < max(angles) < 15.5
    assert abs(np.mean(angles)) < 3


def test_translation_reaches_a_tenth_of_either_side():
    dot = Image.new("L", (200, 100))
    dot.putpixel((100, 50), 255)
    places = np.array([np.argwhere(mask)[0] for mask in masks("translate", dot, 500)])
    assert places.min(axis=0).tolist() == [50 - 10, 100 - 20]
    assert places.max(axis=0).tolist() == [50 + 10, 100 + 20]


def test_shear_leaves_the_middle_and_slants_both_axes():
    cross = Image.new("L", (201, 201))
    cross.paste(255, (0, 99, 201, 102))
    slants = []
    for mask in masks("shear", cross, 100):
        assert mask[100, 100] == 255
        slants.append(np.degrees(np.arctan2(np.flatnonzero(mask[:, 180]).mean() - 100, 80)))
    assert 11 < max(slants) < 16.5
    assert -16.5 < min(slants) < -11


def test_padding_frames_up_to_a_twentieth():
    widths = []
    for mask in masks("pad", Image.new("L", (200, 200), 255), 200):
        assert mask.shape == (200, 200)
        widths.append(int((mask[100, :100] == 0).sum()))
    assert (min(widths), 8 <= max(widths) <= 10) == (0, True)


def test_cut_out_covers_two_to_six_hundredths_of_half():
    red, mask = Image.new("RGB", (200, 160), (255, 0, 0)), Image.new("L", (200, 160), 255)
    shares, greys = [], set()
    for result in results("cut-out", ImageSample(red, mask, 1), 600):
        covered, pixels = np.asarray(result.mask) == 0, np.asarray(result.image)
        assert np.array_equal(covered, pixels[..., 1] == pixels[..., 0])
        shares.append(covered.mean())
        greys |= set(pixels[covered][:, 0].tolist())
    taken = [share for share in shares if share]
    assert share_near(len(taken), 600, 0.5)
    assert 0.019 < min(taken) < 0.024
    assert 0.056 < max(taken) < 0.061
    assert len(greys) > 100


@pytest.mark.parametrize("name", ["mirror", "upend"])
def test_flips_take_half_of_the_images(name):
    sample = textured()
    changed = [
        result.image.tobytes() != sample.image.tobytes() for result in results(name, sample, 600)
    ]
    assert share_near(sum(changed), 600, 0.5)


def test_resized_crop_takes_at_least_nine_tenths():
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    sample = ImageSample(Image.fromarray(np.stack([ramp, ramp.T, ramp], -1)), None, 1)
    taken = []
    for result in results("resized-crop", sample, 200, side=96):
        pixels = np.asarray(result.image).astype(int)
        assert pixels.shape == (96, 96, 3)
        taken.append((np.ptp(pixels[..., 0]) + 2) * (np.ptp(pixels[..., 1]) + 2) / 200**2)
    assert min(taken) > 0.86
    assert max(taken) < 1.03
