"""in-the-wild: one picture per seed, of one size whatever came, its mask by the same geometry, and
each change as often as it says.
"""

import numpy as np
import pytest
from PIL import Image

from ray_app.errors import ConfigError
from ray_app.transforms.ops import ImageSample, jpeg
from ray_app.transforms.policies import in_the_wild
from ray_app.transforms.policies.in_the_wild import InTheWild
from ray_app.transforms.policy import Augmentation, make_policy
from tests.transforms.given import rng, share_near, textured

NEVER = {"resized": 0, "saved": 0, "saved_twice": 0, "screens": 0}


@pytest.fixture
def no_changes(monkeypatch):
    """Without blur, noise, sharpening and tone, of which no argument tells the share."""
    monkeypatch.setattr(in_the_wild, "_CHANGES", {})


def test_labels_do_not_show():
    """Real and generated pictures have one history: the draws are the same."""
    policy = InTheWild(crop=64)
    for seed in range(12):
        real, fake = (policy(textured(200, 160, label=label), rng(seed)) for label in (0, 1))
        assert (real.image.tobytes(), real.label, fake.label) == (fake.image.tobytes(), 0, 1)


def test_image_without_a_crop_stays_whole():
    whole = make_policy(Augmentation(policy="in-the-wild"), side=48)(textured(90, 70), rng(0))
    assert not whole.finished
    assert whole.image.size != (48, 48)


@pytest.mark.parametrize("size", [(1, 1), (63, 65), (20_000, 2)])
def test_image_of_any_size_becomes_the_crop(size):
    policy = InTheWild(crop=64, screens=0.5)
    sample = ImageSample(textured(*size).image, Image.new("L", size, 255), 1)
    for seed in range(12):
        found = policy(sample, rng(seed))
        assert (found.image.size, found.image.mode) == ((64, 64), "RGB")
        assert (found.mask.size, found.mask.mode) == ((64, 64), "L")
        assert found.finished


def test_a_resized_picture_keeps_a_part_of_its_scale(no_changes):
    """Of a ramp from left to right the crop shows more, the more it was shrunk: from 0.45 to 1.15
    of its size.
    """
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3)))
    policy = InTheWild(crop=64, **{**NEVER, "resized": 1})
    drawn = (policy(ImageSample(ramp, None, 0), rng(seed)).image for seed in range(100))
    shown = [np.ptp(np.asarray(image)[..., 0].astype(int)) for image in drawn]
    assert 64 / 1.15 - 6 < min(shown) < 64 / 0.9
    assert 64 / 0.55 < max(shown) < 64 / 0.45 + 6


def test_a_screen_s_bars_were_not_altered(no_changes):
    policy = InTheWild(crop=100, **{**NEVER, "screens": 1})
    green, mask = Image.new("RGB", (100, 100), (90, 200, 60)), Image.new("L", (100, 100), 255)
    sample = ImageSample(green, mask, 1)
    for seed in range(20):
        found = policy(sample, rng(seed))
        pixels, mask = np.asarray(found.image), np.asarray(found.mask) > 0
        bars = (pixels == pixels[..., :1]).all(-1)  # grey; the picture is green
        assert np.array_equal(bars, ~mask)
        assert 0.7**2 - 0.03 < mask.mean() < 0.95**2 + 0.03
        level = np.unique(pixels[bars])
        assert len(level) == 1
        assert level[0] < 40 or level[0] >= 216


def test_with_no_share_at_all_only_crop_and_mirror_are_left(no_changes):
    sample, policy = textured(90, 70), InTheWild(crop=64, **NEVER)
    pixels = np.asarray(sample.image)
    windows = {}
    for top in range(70 - 64 + 1):
        for left in range(90 - 64 + 1):
            part = pixels[top : top + 64, left : left + 64]
            windows[part.tobytes()], windows[part[:, ::-1].tobytes()] = False, True
    mirrored = [windows[policy(sample, rng(seed)).image.tobytes()] for seed in range(200)]
    assert share_near(sum(mirrored), 200, 0.5)


def test_shares_of_one_happen_every_time(no_changes):
    policy = InTheWild(crop=64, quality=(80, 80), **{**NEVER, "saved": 1})
    once, codecs = textured(64, 64), {"jpeg": 0, "webp": 0}
    known = {
        jpeg(once.image, 80).tobytes(): "jpeg",
        in_the_wild.ops.webp(once.image, 80, method=2).tobytes(): "webp",
    }
    for pixels, name in list(known.items()):
        saved = Image.frombytes("RGB", (64, 64), pixels)
        known[saved.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()] = name
    for seed in range(300):
        codecs[known[policy(once, rng(seed)).image.tobytes()]] += 1
    assert share_near(codecs["webp"], 300, 0.25)
    twice = InTheWild(crop=64, quality=(80, 80), **{**NEVER, "saved": 1, "saved_twice": 1})
    assert not any(twice(once, rng(seed)).image.tobytes() in known for seed in range(20))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crop", 4),
        ("resized", 1.1),
        ("longest_short_side", 0),
        ("strength", 1),
        ("scale", [0.9, 0.5]),
        ("quality", [0, 101]),
    ],
)
def test_invalid_argument_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"in-the-wild: .*{name}"):
        make_policy(Augmentation(policy="in-the-wild", arguments={name: value}), side=64)
