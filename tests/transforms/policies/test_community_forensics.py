"""The bag of operations: how often, in which order, and each with its published range."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ray_app.transforms.ops import ImageSample, jpeg
from ray_app.transforms.policies.papers import OPERATIONS, CommunityForensicsPolicy
from tests.transforms.given import by_pixels, rng, share_near, textured

DRAWS = 3000


def test_every_operation_is_drawn_none_to_two_times_and_equally_often():
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
def test_without_operations_it_is_the_authors_resize_and_a_crop_of_it(crop, short):
    image = textured(600, 500).image
    result = CommunityForensicsPolicy(crop=crop, repeats=(0, 0))(
        ImageSample(image, None, 1), rng(0)
    ).image
    whole = np.asarray(image.resize((int(short * 600 / 500), short), Image.Resampling.BILINEAR))
    windows = np.lib.stride_tricks.sliding_window_view(whole, (crop, crop, 3))[:, :, 0]
    assert (windows[:, :, 0, 0] == np.asarray(result)[0, 0]).all(-1).any()
    left_upper = np.argwhere((windows[:, :, 0] == np.asarray(result)[0]).all((-1, -2)))
    assert any(np.array_equal(windows[y, x], np.asarray(result)) for y, x in left_upper)


def test_jpeg_has_quality_75_to_100():
    sample, stream = textured(), rng(2)
    known = by_pixels(jpeg, sample.image, range(60, 101))
    drawn = [known[OPERATIONS["jpeg"](sample, 384, stream).image.tobytes()] for _ in range(600)]
    assert set(drawn) == set(range(75, 101))


def test_resize_brings_the_short_side_to_385_to_472():
    stream = rng(3)
    sample = ImageSample(Image.new("L", (440, 450)), None, 1)
    short = [min(OPERATIONS["resize"](sample, 384, stream).image.size) for _ in range(700)]
    assert (min(short), max(short)) == (385, 472)


def test_rotation_reaches_15_degrees_and_no_more():
    ruler = Image.new("L", (201, 201))
    ruler.paste(255, (100, 99, 201, 102))  # from the centre to the right
    stream = rng(4)
    angles = []
    for _ in range(150):
        turned = np.asarray(
            OPERATIONS["rotate"](ImageSample(ruler.convert("RGB"), ruler, 1), 384, stream).mask
        )
        angles.append(np.degrees(np.arctan2(100 - np.flatnonzero(turned[:, 190]).mean(), 90)))
    assert -15.5 < min(angles) < -13.5
    assert 13.5 < max(angles) < 15.5
    assert abs(np.mean(angles)) < 3


def dot_after(name, stream, size=(200, 100)):
    """Where the pixel in the middle went, relative to its place."""
    mask = Image.new("L", size)
    middle = size[0] // 2, size[1] // 2
    mask.putpixel(middle, 255)
    y, x = np.argwhere(
        np.asarray(OPERATIONS[name](ImageSample(mask.convert("RGB"), mask, 1), 384, stream).mask)
    )[0]
    return int(x) - middle[0], int(y) - middle[1]


def test_translation_reaches_a_tenth_of_either_side():
    stream = rng(5)
    across, down = zip(*(dot_after("translate", stream) for _ in range(500)), strict=True)
    assert (min(across), max(across), min(down), max(down)) == (-20, 20, -10, 10)


def test_shear_leaves_the_middle_and_slants_both_axes():
    stream = rng(6)
    cross = Image.new("L", (201, 201))
    cross.paste(255, (0, 99, 201, 102))
    slants = []
    for _ in range(100):
        mask = np.asarray(
            OPERATIONS["shear"](ImageSample(cross.convert("RGB"), cross, 1), 384, stream).mask
        )
        assert mask[100, 100] == 255
        slants.append(np.degrees(np.arctan2(np.flatnonzero(mask[:, 180]).mean() - 100, 80)))
    assert 11 < max(slants) < 16.5
    assert -16.5 < min(slants) < -11


def test_padding_keeps_the_size_and_frames_in_grey_up_to_a_twentieth():
    sample = ImageSample(
        Image.new("RGB", (200, 200), (255, 0, 0)), Image.new("L", (200, 200), 255), 1
    )
    stream = rng(7)
    widths = []
    for _ in range(200):
        result = OPERATIONS["pad"](sample, 384, stream)
        assert result.image.size == (200, 200)
        widths.append(int((np.asarray(result.mask)[100, :100] == 0).sum()))
    assert (min(widths), 8 <= max(widths) <= 10) == (0, True)


def test_cut_out_covers_two_to_six_hundredths_in_half_of_the_images_and_clears_the_mask():
    sample = ImageSample(
        Image.new("RGB", (200, 160), (255, 0, 0)), Image.new("L", (200, 160), 255), 1
    )
    stream = rng(8)
    shares, greys = [], set()
    for _ in range(600):
        result = OPERATIONS["cut-out"](sample, 384, stream)
        covered = np.asarray(result.mask) == 0
        assert np.array_equal(
            covered, np.asarray(result.image)[..., 1] == np.asarray(result.image)[..., 0]
        )
        shares.append(covered.mean())
        greys |= set(np.asarray(result.image)[covered][:, 0].tolist())
    taken = [share for share in shares if share]
    assert share_near(len(taken), 600, 0.5)
    assert 0.019 < min(taken) < 0.024
    assert 0.056 < max(taken) < 0.061
    assert len(greys) > 100


@pytest.mark.parametrize("name", ["mirror", "upend"])
def test_flips_take_half_of_the_images(name):
    sample, stream = textured(), rng(9)
    changed = sum(
        OPERATIONS[name](sample, 384, stream).image.tobytes() != sample.image.tobytes()
        for _ in range(600)
    )
    assert share_near(changed, 600, 0.5)


def test_the_resized_crop_takes_at_least_nine_tenths_by_six_filters():
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    sample = ImageSample(Image.fromarray(np.stack([ramp, ramp.T, ramp], -1)), None, 1)
    stream = rng(10)
    taken = []
    for _ in range(200):
        pixels = np.asarray(OPERATIONS["resized-crop"](sample, 96, stream).image).astype(int)
        assert pixels.shape == (96, 96, 3)
        taken.append((np.ptp(pixels[..., 0]) + 2) * (np.ptp(pixels[..., 1]) + 2) / 200**2)
    assert min(taken) > 0.86
    assert max(taken) < 1.03
