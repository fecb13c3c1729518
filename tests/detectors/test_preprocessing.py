import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from ray_app.detectors import Preprocessing
from ray_app.detectors.preprocessing import Resize
from ray_app.errors import InputError, Status
from tests.make.networks.fill import pattern_image

SHORT440 = Preprocessing(resize=Resize(mode="short_side", size=440))
SQUASHES = [
    Preprocessing(resize=Resize(mode="squash", size=size), filter=mode)
    for size in (256, 512)
    for mode in ("bilinear", "bicubic")
]

# torch rounds the weights of its filter to 16 bits.
MOST_LEVELS = {"bilinear": 1, "bicubic": 2}

# Of Pillow 12.3's Image.thumbnail((256, 256), BILINEAR): (width, height), and the first 16 digits
# of the pixels' SHA-256. Sides of 1024 px and more are first reduced by whole blocks; for the last
# shape Pillow 13 takes columns before rows.
THUMBNAILS = {
    (275, 375): ((256, 188), "cd537b2af0c45015"),
    (1025, 750): ((187, 256), "5cb132a17d75b012"),
    (1, 2250): ((256, 1), "1890f659ae70f18d"),
    (650, 250): ((98, 256), "9c7c5556f0742a80"),
}

# Of one call of Pillow 12.0's and 12.3's Image.resize on tall patterns: the first 16 digits of the
# pixels' SHA-256, by height, width, size and filter. Pillow 13.0's call differs in several of the
# squashed ones.
PORTRAITS = {
    "squash": {
        (640, 480, 224, "bicubic"): "faf49a14960f295f",
        (640, 480, 256, "bilinear"): "be51b81e24ba58c7",
        (1500, 1000, 384, "bicubic"): "84da9227311ac212",
        (1500, 1000, 512, "bilinear"): "67e2cfc8075d31ab",
        (97, 61, 224, "bicubic"): "35d4bd8c7c52e3ee",
        (97, 61, 512, "bilinear"): "b584a6c21dba5b70",
    },
    "short_side": {
        (640, 480, 224, "bicubic"): "8e77942008629b9f",
        (640, 480, 440, "bilinear"): "44c1b4d4e2656dda",
        (1500, 1000, 336, "bilinear"): "da20eb2be7823f3c",
        (97, 61, 224, "bicubic"): "757922f025568f5c",
        (97, 61, 440, "bilinear"): "79741db6bcaf1be0",
    },
}

# Sum and first 16 digits of the SHA-256 of what cv2.resize (4.14 and 5.0, INTER_LINEAR) makes of a
# pattern at 512 × 512; the first is MaskCLIP's case B.
OPENCV = {
    (360, 480): (100_157_080, "c9b4f4876efa477a"),
    (1024, 1024): (100_384_482, "9314dca54b563bff"),
    (1024, 768): (100_329_977, "75d875329ec3865d"),
    (97, 61): (100_259_686, "349f761b9ef6d475"),
    (13, 1): (45_532_160, "3ad72e1ca00c95b8"),
}


def image(height, width):
    return Image.fromarray(pattern_image(height, width))


def sha(pixels):
    return hashlib.sha256(pixels.tobytes()).hexdigest()[:16]


def test_short_side_truncates_the_long_one():
    assert SHORT440.prepare(image(300, 400)).shape == (440, 586, 3)
    assert SHORT440.prepare(image(400, 300)).shape == (586, 440, 3)


def test_a_small_image_can_be_mirrored_instead():
    pixels = pattern_image(5, 3)
    mirrored = Preprocessing(center_crop=16, pad="mirror").prepare(Image.fromarray(pixels))
    np.testing.assert_array_equal(
        mirrored, np.pad(pixels, ((5, 6), (6, 7), (0, 0)), mode="symmetric")
    )


def test_a_thumbnail_can_keep_to_its_corner():
    pixels = pattern_image(31, 47)
    cornered = Preprocessing(resize=Resize(mode="thumbnail", size=64), center_crop=64, pad="corner")
    prepared = cornered.prepare(Image.fromarray(pixels))
    np.testing.assert_array_equal(prepared[cornered.image_area(47, 31)], pixels)
    assert prepared.sum() == pixels.sum()
    shrunk = cornered.prepare(Image.new("RGB", (301, 200), (1, 1, 1)))
    assert shrunk.sum() == shrunk[cornered.image_area(301, 200)].size > 0
    assert SHORT440.image_area(47, 31) == (slice(None), slice(None))
    with pytest.raises(ValueError, match="thumbnail"):
        Preprocessing(center_crop=64, pad="corner")


RESIZES = (
    Resize(),
    Resize(mode="squash", size=20),
    Resize(mode="short_side", size=21),
    Resize(mode="squash", size=20, thumbnail_first=30),
)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    crop=st.sampled_from([None, 7, 32]),
    resize=st.sampled_from(RESIZES),
    resampler=st.sampled_from(["pillow", "torch", "opencv"]),
    speed=st.sampled_from(["exact", "fast"]),
    pad=st.sampled_from(["black", "mirror"]),
)
def test_every_size_gives_the_promised_array(height, width, crop, resize, resampler, speed, pad):
    preprocessing = Preprocessing(resize=resize, center_crop=crop, resampler=resampler, pad=pad)
    pixels = preprocessing.with_resize(speed).prepare(image(height, width))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert pixels.ndim == 3
    if preprocessing.shape is not None:
        assert pixels.shape == (*preprocessing.shape, 3)


def test_the_same_size_is_left_alone():
    pixels = pattern_image(256, 256)
    for preprocessing in (*SQUASHES[:2], Preprocessing(resize=Resize(mode="thumbnail", size=256))):
        np.testing.assert_array_equal(preprocessing.prepare(Image.fromarray(pixels)), pixels)


@pytest.mark.parametrize("mode", PORTRAITS)
def test_portraits_are_pillow_12_s_under_every_version(mode):
    for (height, width, size, filter), digest in PORTRAITS[mode].items():
        preprocessing = Preprocessing(resize=Resize(mode=mode, size=size), filter=filter)
        pixels = preprocessing.prepare(image(height, width))
        assert sha(pixels) == digest, (height, width, size, filter)


@pytest.mark.parametrize("resize", ["exact", "fast"])
def test_strip_that_would_not_fit_into_memory_is_refused(resize):
    wide = Preprocessing(resize=Resize(mode="squash", size=1100))
    for preprocessing in (SHORT440, wide):
        with pytest.raises(InputError) as caught:
            preprocessing.with_resize(resize).prepare(Image.new("RGB", (1, 62_000)))
        assert caught.value.status is Status.IMAGE_TOO_LARGE


def test_fast_resize_replaces_pillow_alone():
    for preprocessing in (SHORT440, *SQUASHES):
        assert preprocessing.with_resize("exact") is preprocessing
        assert preprocessing.with_resize("fast").resampler == "torch"
    for kept in (
        Preprocessing(resize=Resize(mode="thumbnail", size=256)),
        Preprocessing(center_crop=224),
        SHORT440.model_copy(update={"resampler": "opencv"}),
    ):
        assert kept.with_resize("fast") is kept


def test_thumbnails_are_pillow_s_under_every_version():
    for shape, golden in THUMBNAILS.items():
        pixels = Preprocessing(resize=Resize(mode="thumbnail", size=256)).prepare(image(*shape))
        assert (pixels.shape[1::-1], sha(pixels)) == golden, shape


def test_opencv_is_reproduced_bit_for_bit():
    squash = Preprocessing(resize=Resize(mode="squash", size=512), resampler="opencv")
    for shape, golden in OPENCV.items():
        pixels = squash.prepare(image(*shape))
        assert (int(pixels.sum()), sha(pixels)) == golden, shape


def test_unsupported_preprocessing_is_refused():
    for wrong in (
        {"resize": {"mode": "thumbnail", "size": 9}, "filter": "bicubic"},
        {"resampler": "opencv", "filter": "bicubic"},
        {"resize": {"mode": "thumbnail", "size": 9, "thumbnail_first": 9}},
        {"resize": {"thumbnail_first": 9}},
    ):
        with pytest.raises(ValidationError):
            Preprocessing.model_validate(wrong)


def test_kept_sizes_are_ragged():
    assert Preprocessing(resize=Resize(mode="thumbnail", size=1024)).shape is None
    squashed = Resize(mode="squash", size=224, thumbnail_first=1024)
    assert Preprocessing(resize=squashed).shape == (224, 224)


@pytest.mark.parametrize(
    "preprocessing",
    [SHORT440, *SQUASHES],
    ids=lambda p: f"{p.resize.mode}{p.resize.size}-{p.filter}",
)
def test_fast_resize_is_at_most_two_grey_levels_away(preprocessing):
    fast, levels_away = preprocessing.with_resize("fast"), MOST_LEVELS[preprocessing.filter]
    noise = Image.effect_noise((1024, 768), 60).convert("RGB")
    apart = []
    for source in (image(300, 400), image(640, 480), image(97, 61), noise):
        exact = preprocessing.prepare(source).astype(int)
        apart.append(np.abs(exact - fast.prepare(source)))
    assert max(levels.max() for levels in apart) <= levels_away
    assert np.mean([levels.mean() for levels in apart]) < 0.03


# Pillow keeps the last image in several pieces.
@pytest.mark.parametrize(("height", "width"), [(300, 400), (97, 61), (2400, 2000)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_fast_resize_is_torch_on_a_plain_tensor(height, width, mode):
    source = image(height, width)
    plain = torch.from_numpy(np.array(source).transpose(2, 0, 1).copy())[None]
    wanted = torch.nn.functional.interpolate(plain, (224, 224), mode=mode, antialias=True)[0]
    squash = Preprocessing(resize=Resize(mode="squash", size=224), filter=mode)
    prepared = squash.with_resize("fast").prepare(source)
    assert np.array_equal(prepared, wanted.numpy().transpose(1, 2, 0))
    assert prepared.flags["C_CONTIGUOUS"]
    assert prepared.flags["WRITEABLE"]


def test_a_run_of_before_keeps_its_identity():
    assert Preprocessing(center_crop=8).model_dump(mode="json")["resize"] == {
        "mode": "none",
        "size": None,
    }
    assert Resize(mode="squash", size=8, thumbnail_first=9).model_dump()["thumbnail_first"] == 9
