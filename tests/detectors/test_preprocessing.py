from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_app.detectors import Preprocessing, list_cards
from ray_app.detectors.preprocessing import Resize
from ray_app.errors import InputError, Status
from tests.detectors.fill import pattern_image

PHOTOS = Path(__file__).resolve().parents[2] / ".." / "shared" / "realworld"
SHORT440 = Preprocessing(resize=Resize(mode="short_side", size=440))
SQUASHES = [Preprocessing(resize=Resize(mode="squash", size=size), filter=mode) for size in (256, 512) for mode in ("bilinear", "bicubic")]


def image(height, width):
    return Image.fromarray(pattern_image(height, width))


def test_short_side_truncates_the_long_one():
    assert SHORT440.prepare(image(300, 400)).shape == (440, 586, 3)
    assert SHORT440.prepare(image(400, 300)).shape == (586, 440, 3)


def test_half_offsets_of_a_crop_go_to_the_even_side():
    pixels = pattern_image(9, 11)
    np.testing.assert_array_equal(Preprocessing(center_crop=4).prepare(Image.fromarray(pixels)), pixels[2:6, 4:8])


def test_a_small_image_is_padded_with_black():
    pixels = pattern_image(97, 61)
    padded = Preprocessing(center_crop=224).prepare(Image.fromarray(pixels))
    np.testing.assert_array_equal(padded[63:160, 81:142], pixels)
    assert padded.sum() == pixels.sum()


def test_padding_and_cropping_meet_in_one_image():
    pixels = pattern_image(50, 9)
    padded = Preprocessing(center_crop=20).prepare(Image.fromarray(pixels))
    np.testing.assert_array_equal(padded[:, 5:14], pixels[15:35])
    assert padded[:, :5].sum() == padded[:, 14:].sum() == 0


def test_a_small_image_can_be_mirrored_instead():
    pixels = pattern_image(5, 3)
    mirrored = Preprocessing(center_crop=16, pad="mirror").prepare(Image.fromarray(pixels))
    np.testing.assert_array_equal(mirrored, np.pad(pixels, ((5, 6), (6, 7), (0, 0)), mode="symmetric"))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    crop=st.sampled_from([None, 7, 32]),
    resize=st.sampled_from([Resize(), Resize(mode="squash", size=20), Resize(mode="short_side", size=21)]),
    resampler=st.sampled_from(["pillow", "torch"]),
    speed=st.sampled_from(["exact", "fast"]),
    pad=st.sampled_from(["black", "mirror"]),
)
def test_every_size_gives_the_promised_array(height, width, crop, resize, resampler, speed, pad):
    preprocessing = Preprocessing(resize=resize, center_crop=crop, resampler=resampler, pad=pad)
    pixels = preprocessing.prepare(image(height, width), speed)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert pixels.ndim == 3
    if preprocessing.shape is not None:
        assert pixels.shape == (*preprocessing.shape, 3)


def test_the_same_size_is_left_alone():
    pixels = pattern_image(256, 256)
    for preprocessing in SQUASHES[:2]:
        np.testing.assert_array_equal(preprocessing.prepare(Image.fromarray(pixels)), pixels)


def test_pillow_resizes_rows_before_columns_under_every_version():
    # Pillow 13 resizes this shape columns first, which changes 3 % of the pixels by one grey level.
    source = image(640, 480)
    rows_first = source.resize((512, 640), Image.Resampling.BILINEAR).resize((512, 512), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(SQUASHES[2].prepare(source), np.asarray(rows_first))


def test_a_strip_that_would_not_fit_into_memory_is_refused():
    with pytest.raises(InputError) as caught:
        SHORT440.prepare(Image.new("RGB", (1, 60_000)))
    assert caught.value.status is Status.IMAGE_TOO_LARGE


def photographs():
    return sorted((PHOTOS / "camera").glob("*.jpg"))[::5] + sorted((PHOTOS / "generated").glob("*.png"))[:1]


def difference(preprocessing, source):
    exact = preprocessing.prepare(source).astype(int)
    return np.abs(exact - preprocessing.prepare(source, "fast"))


@pytest.mark.parametrize("preprocessing", [SHORT440, *SQUASHES], ids=lambda p: f"{p.resize.mode}{p.resize.size}-{p.filter}")
def test_fast_is_at_most_one_grey_level_away(preprocessing):
    patterns = [image(*size) for size in ((300, 400), (640, 480), (1024, 768), (97, 61), (768, 1024))]
    apart = [difference(preprocessing, source) for source in patterns]
    apart += [difference(preprocessing, Image.open(path).convert("RGB")) for path in photographs()]
    assert max(levels.max() for levels in apart) <= 1
    assert np.mean([levels.mean() for levels in apart]) < 0.03


def test_equal_preprocessings_are_one_key():
    first, second = (Preprocessing.model_validate({"resize": {"mode": "squash", "size": 8}, "mean": [0.5, 0.5, 0.5]}) for _ in range(2))
    assert len({first: 1, second: 2}) == 1
    assert {card.preprocessing for card in list_cards()}
