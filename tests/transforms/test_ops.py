"""Operations on pixels against those that published code used: torchvision's, scipy's, OpenCV's,
Pillow's, and MaskCLIP's edges.
"""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter
from torchvision.transforms import RandomErasing, RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as torchvision
from torchvision.transforms.v2.functional import gaussian_blur

from ray_app.transforms import ops
from ray_app.transforms.ops import ImageSample
from tests.make.images import photo
from tests.make.networks.fill import pattern_image
from tests.make.networks.small_maskclip import ellipse
from tests.transforms.given import marked, rng, seen_and_told


def boxed(rows, columns, shape=(12, 16)):
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


def drawn(height, width):
    return ellipse(height, width)[0].numpy() > 0


RECT = boxed(slice(3, 8), slice(4, 11))
CORNER = boxed(slice(0, 5), slice(0, 6))


@pytest.mark.parametrize(
    ("mask", "width", "pixels", "checksum", "inside"),
    [
        (RECT, 3, 44, 836, 20),
        (RECT, 7, 107, 2033, 35),
        (CORNER, 5, 40, 438, 18),
        (drawn(512, 512), 7, 3180, 2238720, 1572),
        (drawn(360, 480), 7, 2724, 1593540, 1344),
    ],
)
def test_edges_are_the_reference_s(mask, width, pixels, checksum, inside):
    """MaskCLIP's own counts: golden/maskclip.md §2 and §5.3."""
    edge = ops.edge_map(mask, width)
    rows, columns = np.nonzero(edge)
    found = len(rows), (rows + 2 * columns).sum(), (edge & mask).sum()
    assert found == (pixels, checksum, inside)


@pytest.mark.parametrize("size", [(300, 200), (97, 641)])
def test_the_short_side_is_torchvision_s_resize(size):
    image = photo(*size)
    sample = ImageSample(image, None, 1)
    ours = ops.resize_short_side(sample, 64, ops.Resampling.BILINEAR, rng(0)).image
    theirs = torchvision.resize(image, 64, InterpolationMode.BILINEAR)
    assert ours.tobytes() == theirs.tobytes()


def test_rotation_is_torchvision_s():
    sample = marked()
    ours = ops.rotate(sample, 11.5, ops.Resampling.BILINEAR)
    image = torchvision.rotate(sample.image, 11.5, InterpolationMode.BILINEAR)
    mask = torchvision.rotate(sample.mask, 11.5, InterpolationMode.NEAREST)
    assert (ours.image.tobytes(), ours.mask.tobytes()) == (image.tobytes(), mask.tobytes())


@pytest.mark.parametrize(
    "change",
    [
        ops.mirror,
        ops.flip_vertically,
        lambda sample: ops.turn_quarters(sample, 1),
        lambda sample: ops.crop_sample(sample, (13, 7, 101, 99)),
        lambda sample: ops.resize_sample(sample, (77, 131), ops.Resampling.NEAREST),
        lambda sample: ops.rotate(sample, -23, ops.Resampling.NEAREST),
        lambda sample: ops.random_crop(sample, 200, rng(1)),
        lambda sample: ops.random_crop(sample, 60, rng(2)),
    ],
)
def test_without_filters_the_mask_is_exactly_where_the_image_is(change):
    seen, told = seen_and_told(change(marked()))
    assert np.array_equal(seen, told)
    assert told.any()


def test_a_crop_comes_from_everywhere():
    columns = np.tile(np.arange(10, dtype=np.uint8), (12, 1))
    sample = ImageSample(Image.fromarray(np.stack([columns] * 3, -1)), Image.fromarray(columns), 1)
    stream = rng(3)
    starts = [np.asarray(ops.random_crop(sample, 8, stream).mask)[0, 0] for _ in range(200)]
    assert set(starts) == {0, 1, 2}


def test_a_small_image_is_mirrored_out():
    image = Image.fromarray(np.array([[1, 2]], np.uint8))
    grown = np.asarray(ops.random_crop(ImageSample(image, image, 1), 4, rng(0)).mask)
    assert grown.tolist() == [[1, 1, 2, 2]] * 4


def test_strip_is_cut_anywhere_to_sixteen_times_its_width():
    positions = np.arange(2000) // 8
    strip = Image.fromarray(np.tile(positions.astype(np.uint8), (2, 1)))
    stream = rng(4)
    starts = set()
    sample = ImageSample(strip.convert("RGB"), strip, 1)
    for _ in range(200):
        result = ops.resize_short_side(sample, 4, ops.Resampling.NEAREST, stream)
        assert result.mask.size == (64, 4)
        starts.add(int(np.asarray(result.mask)[0, 0]))
    assert min(starts) < 10
    assert max(starts) > 235


@pytest.mark.parametrize(("size", "sigma"), [(3, 0.3), (7, 1.4)])
def test_a_blur_is_torchvision_s_gaussian(size, sigma):
    image = photo(40, 30)
    ours = np.asarray(ops.blur(image, ops.gaussian_taps(size, sigma))).astype(int)
    theirs = np.asarray(gaussian_blur(image, [size, size], [sigma, sigma])).astype(int)
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.01
    assert ops.blur(photo(1, 5), ops.gaussian_taps(size, sigma)).size == (1, 5)


def test_opencv_s_kernel_is_the_documented_one():
    assert ops.opencv_taps(3).tolist() == [0.25, 0.5, 0.25]
    half = [0.03125, 0.109375, 0.21875]
    assert ops.opencv_taps(7).tolist() == [*half, 0.28125, *reversed(half)]
    # getGaussianKernel: sigma = 0.3 * ((ksize - 1) * 0.5 - 1) + 0.8
    for size, sigma in ((11, 2.0), (15, 2.6), (19, 3.2), (23, 3.8)):
        expected = ops.gaussian_taps(size, sigma)
        np.testing.assert_allclose(ops.opencv_taps(size), expected, rtol=1e-12)


PICTURE = photo(96, 64)


def test_swapped_red_and_blue_lose_what_the_other_would():
    def loss(image, **options):
        saved = np.asarray(ops.jpeg(image, 60, **options)).astype(float)
        return np.square(saved - np.asarray(image)).mean(axis=(0, 1))

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    as_is, swapped = loss(noise), loss(noise, swap_channels=True)
    assert as_is[2] > as_is[0]
    assert swapped[0] > swapped[2]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (ops.capped_size((4000, 3000), 2048), (2048, 1536)),
        (ops.capped_size((300, 200), 1024), (300, 200)),
        (ops.capped_size((5000, 2), 1000), (1000, 1)),
        # a screen is turned as the image is
        (ops.fitted_size((3000, 4000), (1920, 1080)), (1080, 1440)),
        (ops.fitted_size((2000, 500), (1920, 1080)), (1920, 480)),
        (ops.fitted_size((9, 9), (1920, 1080)), (9, 9)),
        (ops.scaled_size((1, 3), 0.5), (1, 2)),
    ],
)
def test_caps_and_screens_only_shrink(found, expected):
    assert found == expected


# Of one call of Pillow 12.3's Image.resize on tall patterns, all of which Pillow 13.0's makes
# otherwise: the first 16 digits of the pixels' SHA-256, by (height, width), (width, height) after
# it, and filter.
PORTRAITS = {
    ((640, 480), (384, 384), "bilinear"): "27f61eb9b34c9eb6",
    ((640, 480), (600, 400), "bicubic"): "52d63c33fb4e47b3",
    ((400, 300), (384, 384), "lanczos"): "de43fc706dfb3752",
}


def test_a_centre_crop_is_the_middle():
    image = photo(80, 40)
    expected = image.crop((10, 5, 70, 35))
    assert ops.centre_crop(image, 0.75).tobytes() == expected.tobytes()


GREY = Image.new("RGB", (300, 600), (128, 128, 128))


def test_noise_in_bands_is_that_of_one_draw():
    drawn = np.random.default_rng(7).standard_normal((600, 300, 3), np.float32) * np.float32(3)
    expected = np.clip(np.rint(128 + drawn), 0, 255).astype(np.uint8)
    found = ops.add_noise(GREY, 3, np.random.default_rng(7))
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_nothing_and_everything_have_no_edge():
    for shape in ((12, 16), (1, 1), (3, 2)):
        assert not ops.edge_map(np.zeros(shape, bool)).any()
        assert not ops.edge_map(np.ones(shape, bool)).any()
    with pytest.raises(ValueError, match="odd"):
        ops.edge_map(RECT, 4)


def test_random_parts_are_torchvision_s_resized_crops():
    """Mean and spread of the area and of the log aspect over 3000 draws of each."""
    size, share, ratio, stream = (200, 120), (0.5, 1.0), (0.5, 2.0), rng(5)
    blank, sample = torch.zeros(1, 120, 200), ImageSample(Image.new("L", size), None, 1)
    theirs = [RandomResizedCrop.get_params(blank, share, ratio)[2:] for _ in range(3000)]
    parts = [ops.crop_random_part(sample, share, ratio, stream).image.size for _ in range(3000)]
    theirs, ours = np.array(theirs, float), np.array(parts, float)[:, ::-1]
    for figure in (lambda hw: hw.prod(axis=1) / 24_000, lambda hw: np.log(hw[:, 1] / hw[:, 0])):
        assert figure(ours).mean() == pytest.approx(figure(theirs).mean(), abs=0.03)
        assert figure(ours).std() == pytest.approx(figure(theirs).std(), abs=0.03)


def test_drawn_boxes_are_torchvision_s_erased_boxes():
    blank, stream = torch.zeros(1, 120, 200), rng(6)
    erased = [
        RandomErasing.get_params(blank, (0.02, 0.06), (0.3, 3.3), [0.0])[2:4] for _ in range(3000)
    ]
    drawn = [
        ops.draw_box((200, 120), (0.02, 0.06), (1 / 3.3, 1 / 0.3), stream) for _ in range(3000)
    ]
    covered = [(lower - upper, right - left) for left, upper, right, lower in drawn]
    theirs, ours = np.array(erased, float), np.array(covered, float)
    aspects = (np.log(hw[:, 0] / hw[:, 1]).mean() for hw in (ours, theirs))
    assert next(aspects) == pytest.approx(next(aspects), abs=0.07)
    assert ours.prod(axis=1).mean() == pytest.approx(theirs.prod(axis=1).mean(), rel=0.03)


def test_part_of_a_strip_is_the_largest_centred_part():
    strip, stream = ImageSample(Image.new("L", (3000, 20)), None, 1), rng(7)
    assert ops.draw_box((3000, 20), (0.9, 1.0), (3 / 4, 4 / 3), stream) is None
    assert ops.crop_random_part(strip, (0.9, 1.0), (3 / 4, 4 / 3), stream).image.size == (27, 20)


@pytest.mark.parametrize("codec", [ops.jpeg, ops.webp, *([ops.avif] if ops.has_avif() else [])])
def test_lossy_codec_accepts_images_longer_than_its_limit(codec):
    image = Image.new("RGB", (66_000, 1), (200, 100, 50))
    assert np.abs(np.asarray(codec(image, 80)).astype(int) - (200, 100, 50)).max() < 12


def test_lossless_webp_loses_nothing():
    assert ops.lossless_webp(PICTURE).tobytes() == PICTURE.tobytes()


def test_portraits_are_pillow_12_s_under_every_version():
    for (shape, size, method), digest in PORTRAITS.items():
        pixels = ops.resize(Image.fromarray(pattern_image(*shape)), size, method)
        assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == digest, (shape, size, method)


def test_lanczos_shrinks_and_bicubic_enlarges():
    image = photo(60, 40)
    for size, method in (((20, 20), "LANCZOS"), ((90, 90), "BICUBIC")):
        expected = image.resize(size, getattr(Image.Resampling, method))
        assert ops.resize(image, size, "lanczos-or-bicubic").tobytes() == expected.tobytes()


def test_resize_beyond_memory_returns_the_image():
    image = photo(60, 40)
    assert ops.resize(image, (ops.MAX_PIXELS, 2), "bilinear") is image


def test_random_square_has_the_sides_of_its_range():
    image = photo(100, 64)
    sides = set()
    for seed in range(40):
        square = np.asarray(ops.random_square(image, 10, 2048, 0.625, np.random.default_rng(seed)))
        assert square.shape[0] == square.shape[1]
        sides.add(square.shape[0])
        windows = np.lib.stride_tricks.sliding_window_view(
            np.asarray(image)[:, :, 0], square.shape[:2]
        )
        assert (windows == square[:, :, 0]).all(axis=(2, 3)).any()
    assert 40 <= min(sides) < max(sides) <= 64
    assert len(sides) > 10
    capped = (
        ops.random_square(image, 10, 50, 0.9, np.random.default_rng(seed)) for seed in range(60)
    )
    assert {square.width for square in capped} == {45, 46, 47, 48, 49, 50}
    tiny = ops.random_square(photo(3, 7), 160, 2048, 0.625, np.random.default_rng(1))
    assert tiny.size == (3, 3), "below the range: the short side"


def test_gamma_is_its_formula():
    image = photo(30, 20)
    expected = np.rint(255 * (np.asarray(image) / 255) ** 1.05).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(ops.apply_gamma(image, 1.05)), expected)


def test_sharpening_is_pillow_s_unsharp_mask():
    image = photo(30, 20)
    expected = image.filter(ImageFilter.UnsharpMask(1, 30, 0))
    assert ops.sharpen(image, 30, 1).tobytes() == expected.tobytes() != image.tobytes()


@pytest.mark.parametrize("sigma", [1, 4])
def test_scipy_s_blur_is_that_of_the_published_code(sigma):
    image = photo(40, 30)
    # CNNDetection's and UnivFD's: each channel filtered onto itself.
    theirs = np.array(image)
    for channel in range(3):
        gaussian_filter(theirs[:, :, channel], output=theirs[:, :, channel], sigma=sigma)
    assert ops.scipy_blur(image, sigma).tobytes() == theirs.tobytes()


def test_resize_is_pillow_s():
    image = photo(60, 40)
    for method in ("nearest", "bilinear", "bicubic", "lanczos"):
        expected = image.resize((31, 17), getattr(Image.Resampling, method.upper()))
        assert ops.resize(image, (31, 17), method).tobytes() == expected.tobytes(), method
