"""v1 touches fakes alone, a fifth of them by each step; v2 ends in one of five ways through a
codec.
"""

import numpy as np
import pytest
from PIL import Image

from ray_app.errors import ConfigError
from ray_app.transforms.ops import ImageSample, avif, has_avif, jpeg, webp
from ray_app.transforms.policies.papers import RealMatching, RealStatistics, SocialMedia, compress
from ray_app.transforms.policy import Augmentation, make_policy
from tests.transforms.given import by_pixels, marked, rng, share_near, textured

DRAWS = 800


def matching(areas, sharpness, **arguments):
    return RealMatching(
        statistics=RealStatistics(np.array(areas), np.array(sharpness)), **arguments
    )


def test_v1_leaves_real_images_as_they_are():
    sample = textured(label=0)
    policy = matching([999], [0.0], probability=1)
    assert all(policy(sample, rng(seed)) is sample for seed in range(20))


def test_v1_gives_a_fifth_of_fakes_the_area_of_a_real_image():
    areas = [40 * 30, 100 * 80, 300 * 200]
    policy, sample = matching(areas, [1e12]), ImageSample(Image.new("RGB", (90, 60)), None, 1)
    sizes = [policy(sample, rng(seed)).image.size for seed in range(DRAWS)]
    resized = [size for size in sizes if size != (90, 60)]
    assert share_near(len(resized), DRAWS, 0.2)
    for area in areas:
        near = [size for size in resized if abs(size[0] * size[1] / area - 1) < 0.06]
        assert share_near(len(near), len(resized), 1 / 3)
        assert all(abs(width / height - 1.5) < 0.06 for width, height in near)


def test_v1_noise_and_jpeg_have_their_shares_and_strengths():
    """Areas equal the image's own and every real image is far sharper, so only noise and JPEG
    remain.
    """
    sample = textured()
    policy = matching([sample.image.width * sample.image.height], [1e12])
    known = by_pixels(
        lambda image, quality: jpeg(image, quality, swap_channels=True),
        sample.image,
        range(50, 101),
    )
    original, qualities, noise = np.asarray(sample.image).astype(int), [], []
    for seed in range(DRAWS):
        pixels = np.asarray(policy(sample, rng(seed)).image).astype(int)
        difference = pixels - original
        if pixels.astype(np.uint8).tobytes() in known:
            qualities.append(known[pixels.astype(np.uint8).tobytes()])
        elif difference.any() and not difference[..., 1:].any():
            noise.append(difference[..., 0])
    assert share_near(len(qualities), DRAWS, 0.2 * 0.8)
    assert share_near(len(noise), DRAWS, 0.2 * 0.8)
    assert (min(qualities), max(qualities), set(qualities)) == (70, 94, set(range(70, 95)))
    assert np.std(noise) == pytest.approx(5, abs=0.1)
    assert np.mean(noise) == pytest.approx(0, abs=0.05)


def test_v1_blurs_a_fifth_of_those_sharper_than_a_real_image():
    sample = textured()
    area = sample.image.width * sample.image.height

    def blurred(sharpness):
        policy, original = matching([area], [sharpness]), np.asarray(sample.image).astype(int)
        drawn = (policy(sample, rng(seed)).image for seed in range(DRAWS))
        differences = [np.asarray(image).astype(int) - original for image in drawn]
        # A blur of σ 0.3 moves values by a grey level or two; noise moves red alone, and JPEG all
        # of them by more.
        return [d for d in differences if d[..., 1].any() and np.abs(d).max() <= 4]

    assert share_near(len(blurred(0.0)), DRAWS, 0.2 * 0.8 * 0.8)
    assert not blurred(1e12)


@pytest.fixture(scope="module")
def ways():
    """What v2 makes of one image so many times, and the qualities that explain it."""
    image = textured(32, 24).image
    known = {
        "none": {image.tobytes(): 0},
        "jpeg": by_pixels(jpeg, image, range(40, 101)),
        "webp": by_pixels(
            lambda image, quality: webp(image, quality, method=0), image, range(50, 101)
        ),
        "webp instead": by_pixels(webp, image, range(50, 101)),
        "avif": by_pixels(avif, image, range(30, 96)) if has_avif() else {},
    }

    def explained(with_avif):
        stream = rng(11)
        found: dict[str, list[int]] = {name: [] for name in [*known, "twice"]}
        for _ in range(DRAWS):
            pixels = compress(image, stream, with_avif=with_avif).tobytes()
            name = next((name for name, made in known.items() if pixels in made), "twice")
            found[name].append(known[name][pixels] if name != "twice" else 0)
        return found

    return explained


@pytest.mark.skipif(not has_avif(), reason="this Pillow has no AVIF")
def test_v2_compresses_by_the_published_shares_and_qualities(ways):
    found = ways(True)
    shares = {
        "none": 0.15 + 0.2 * 0.05,
        "jpeg": 0.45 * 0.7 + 0.10,
        "webp": 0.2 * 0.95,
        "avif": 0.10,
        "twice": 0.45 * 0.3,
    }
    for name, share in shares.items():
        assert share_near(len(found[name]), DRAWS, share), (name, len(found[name]))
    assert (min(found["jpeg"]), max(found["jpeg"])) == (55, 95)
    # Two qualities may give a picture so small the same pixels.
    assert 65 <= min(found["webp"]) <= 67
    assert 88 <= max(found["webp"]) <= 90
    assert 40 <= min(found["avif"]) <= 43
    assert 77 <= max(found["avif"]) <= 81


def test_v2_without_avif_takes_webp_in_its_place(ways):
    found = ways(False)
    assert not found["avif"]
    assert share_near(len(found["webp"]) + len(found["webp instead"]), DRAWS, 0.2 * 0.95 + 0.10)


def test_v2_refuses_avif_only_where_there_is_none(monkeypatch):
    monkeypatch.setattr("ray_app.transforms.ops.has_avif", lambda: False)
    with pytest.raises(ConfigError, match="this Pillow has no AVIF"):
        make_policy(Augmentation(policy="openfake-v2", arguments={"avif": True}), side=64)
    assert SocialMedia(crop=64)(textured(), rng(0)).image.size == (64, 64)


# The draws do not depend on the pixels: samples of one size get the same changes from the same
# seed.
V2 = SocialMedia(crop=64, avif=False)


def masked(pixels, size=(240, 200)):
    mask = Image.fromarray(np.broadcast_to(pixels, size[::-1]).astype(np.uint8) * 255)
    return ImageSample(Image.new("RGB", size, (120, 120, 120)), mask, 1)


def stripes_seen(line):
    return np.count_nonzero(np.diff(line.astype(int)))


def test_v2_crops_half_to_all_of_the_picture():
    across, down = masked(np.arange(240)[None] // 5 % 2), masked(np.arange(200)[:, None] // 5 % 2)
    shares = []
    for seed in range(300):
        columns = stripes_seen(np.asarray(V2(across, rng(seed)).mask)[32])
        rows = stripes_seen(np.asarray(V2(down, rng(seed)).mask)[:, 32])
        shares.append(columns * rows * 25 / (240 * 200))
    assert 0.4 < min(shares) < 0.6
    assert max(shares) > 0.85


@pytest.fixture(scope="module")
def greys():
    """What v2 makes of a flat grey, all of it altered: pixels and mask, 600 times."""
    drawn = (V2(masked(1), rng(seed)) for seed in range(600))
    return [(np.asarray(result.image).astype(int), np.asarray(result.mask) > 0) for result in drawn]


def test_v2_rotates_half_of_them_by_up_to_15_degrees(greys):
    def outside(degrees):
        return (np.asarray(Image.new("L", (64, 64), 255).rotate(degrees)) == 0).mean()

    left_out = np.array([(~mask).mean() for _, mask in greys])
    # A turn of under a degree or so moves no pixel out of the frame.
    assert share_near(int((left_out > outside(1.5)).sum()), 600, 0.5 * 13.5 / 15)
    assert outside(14) < left_out.max() <= outside(15)


def test_v2_mirrors_a_tenth():
    right = masked(np.arange(240)[None] > 120)
    masks = [np.asarray(V2(right, rng(seed)).mask) for seed in range(800)]
    mirrored = sum(mask[:, :32].mean() > mask[:, 32:].mean() for mask in masks)
    # Some crops lie on one side of the middle alone; they show no side or the other one by their
    # corners.
    assert 0.06 < mirrored / 800 < 0.15


def test_v2_changes_brightness_of_four_in_five(greys):
    """Contrast and saturation leave a flat grey as it is."""
    levels = np.array([pixels[32, 32, 1] for pixels, _ in greys])
    assert 120 * 0.7 - 3 <= levels.min() <= 120 * 0.73
    assert 120 * 1.27 <= levels.max() <= 120 * 1.3 + 3
    assert share_near(int((np.abs(levels - 120) > 4).sum()), 600, 0.8 * (1 - 4.5 / 36))


def test_v2_shrinks_what_is_larger_than_2048_first():
    big = ImageSample(Image.new("RGB", (4100, 90)), Image.new("L", (4100, 90)), 0)
    assert SocialMedia(crop=64, avif=False)(big, rng(0)).mask.size == (64, 64)
    small = SocialMedia(crop=64, largest=32, avif=False)(marked(320, 240), rng(3))
    # Of a marker 32 pixels across nothing finer than two pixels is left.
    assert len(np.unique(np.asarray(small.image).reshape(-1, 3), axis=0)) > 10
    image = textured(1100, 300).image
    sizes = {compress(image, rng(seed), with_avif=False).size for seed in range(25)}
    assert sizes == {(1100, 300)}, "what a codec shrank grows back"
