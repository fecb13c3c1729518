"""Which pictures show nothing that could be judged.

The perceptual hash: ImageHash's own, of the pixels that are scored.
"""

import io
import struct

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw

from ray_app.images import ImageLimits, decode_image
from ray_app.images.decode import has_content
from ray_app.images.facts import perceptual_hash
from tests.images import layouts, tiff_writer
from tests.make import images
from tests.make.images import encoded, flat, photo


def as_jpeg(image, quality=80):
    return Image.open(io.BytesIO(encoded(image, "JPEG", quality=quality)))


@pytest.mark.parametrize(
    "blank",
    [
        *(lambda size, level=level: flat(level, *size) for level in (0, 16, 128, 255)),
        lambda size: Image.new("RGB", size, (200, 20, 20)),
        lambda size: as_jpeg(flat(4, *size, noise=6)),
        lambda size: as_jpeg(flat(238, *size, noise=2, shade=12)),
    ],
    ids=["black", "video black", "grey", "white", "red", "dark frame", "scanned page"],
)
def test_image_of_one_colour_has_no_content(blank):
    for size in ((1, 1), (500, 300)):
        assert not has_content(blank(size)), size


def page(size=(1240, 1754)):
    image = flat(255, *size)
    ImageDraw.Draw(image).text(
        (size[0] // 2, size[1] // 2), "One word", fill=(0, 0, 0), font_size=28
    )
    return image


def gradient():
    return Image.fromarray(
        np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(200, axis=0)
    )


@pytest.mark.parametrize(
    "picture",
    [
        photo,
        lambda: photo(1200, 900),
        page,
        gradient,
        lambda: flat(128, 500, 300, noise=12),
        lambda: flat(100, 500, 300, shade=40),
    ],
    ids=["photo", "large photo", "word", "gradient", "noise", "strong shade"],
)
def test_image_of_anything_else_has_content(picture):
    assert has_content(picture())


def animation(form: str, *frames: Image.Image) -> bytes:
    first, *rest = (frame.convert("RGBA") for frame in frames)
    return encoded(first, form, save_all=True, append_images=rest)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("alpha", [0, 255], ids=["transparent", "flat"])
def test_animation_with_an_empty_start_shows_a_later_frame(form, alpha):
    # Writers join equal frames.
    empty = [Image.new("RGBA", (120, 90), (grey, 0, 0, alpha)) for grey in range(0, 160, 20)]
    shown = photo(120, 90)
    for count in (1, 8):
        image = decode_image(animation(form, *empty[:count], shown), ImageLimits())
        difference = np.abs(np.asarray(image.pixels).astype(int) - np.asarray(shown))
        assert difference.mean() < 12, count
        assert "animated" in image.facts.flags
        assert "no_content" not in image.facts.flags


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "AVIF"])
def test_animation_without_content_at_its_start_has_none(form):
    empty = [Image.new("RGB", (120, 90), (grey, grey, grey)) for grey in range(0, 180, 20)]
    for frames in ([*empty, photo(120, 90)], empty[:3]):
        facts = decode_image(animation(form, *frames), ImageLimits()).facts
        assert facts.frames == len(frames)
        assert {"animated", "no_content"} <= {*facts.flags}


@pytest.mark.parametrize("form", ["GIF", "PNG"])
def test_animation_with_damaged_frames_is_its_first(form):
    data = animation(form, Image.new("RGB", (120, 90)), photo(120, 90), photo(120, 90))
    if form == "GIF":
        data = data[: len(data) // 2]
    else:
        at = data.index(b"fdAT") + 100
        data = data[:at] + bytes(50) + data[at + 50 :]
    assert "no_content" in decode_image(data, ImageLimits()).facts.flags


def test_animation_with_a_frame_of_another_size_is_its_first():
    data = animation("GIF", Image.new("RGB", (120, 90)), photo(120, 90))
    at = data.rindex(b"," + struct.pack("<4H", 0, 0, 120, 90))
    huge = data[: at + 5] + struct.pack("<2H", 9000, 9000) + data[at + 9 :]
    facts = decode_image(huge, ImageLimits()).facts
    assert (facts.width, "no_content" in facts.flags) == (120, True)


def in_16_bits(bits: int) -> np.ndarray:
    """Samples of a photograph of fewer bits, whose low bits are random."""
    high = np.asarray(photo(60, 50)).astype(int)
    low = np.random.default_rng(0).integers(0, 2 ** (bits - 8), high.shape)
    return high << (bits - 8) | low


def wide_files(samples: np.ndarray) -> dict[str, bytes]:
    alpha = np.full((*samples.shape[:2], 1), 65535)
    with_alpha = np.concatenate([samples, alpha], axis=2)
    return {
        "png": layouts.png(samples, 16, 2),
        "rgba png": layouts.png(with_alpha, 16, 6),
        "grey png": layouts.png(samples[..., :1], 16, 0),
        "tiff": tiff_writer.tiff(samples, 16, tiff_writer.RGB),
        "lzw tiff": tiff_writer.tiff(samples, 16, tiff_writer.RGB, compression=tiff_writer.LZW),
        "big-endian tiff": tiff_writer.tiff(samples, 16, tiff_writer.RGB, order=">", tile=16),
        "rgba tiff": tiff_writer.tiff(with_alpha, 16, tiff_writer.RGB, extra=(2,)),
        "grey tiff": tiff_writer.tiff(samples[..., :1], 16, tiff_writer.BLACK_IS_ZERO),
    }


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_16_bit_samples_below_4096_are_of_10_or_12_bits(bits):
    samples = in_16_bits(bits)
    for name, data in wide_files(samples).items():
        image = decode_image(data, ImageLimits())
        shown = samples >> (bits - 8 if bits <= 12 else 8)
        found = np.asarray(image.pixels)
        expected = shown[..., :1] if "grey" in name else shown
        assert (found == expected).all(), name
        assert "no_content" not in image.facts.flags, name


def test_16_bit_samples_of_a_black_frame_have_no_content():
    noise = np.random.default_rng(0).integers(0, 60, (50, 60, 3))
    for samples in (noise, noise * 0, noise * 0 + 900, noise * 0 + 4000):
        for name, data in wide_files(samples).items():
            assert "no_content" in decode_image(data, ImageLimits()).facts.flags, name


def test_16_bit_pixels_for_a_converter_are_not_scaled():
    samples = in_16_bits(10)
    files = wide_files(samples)
    for name, stored in (
        ("png", samples >> 8),
        ("tiff", samples >> 8),
        ("grey tiff", samples[..., 0]),
    ):
        image = decode_image(files[name], ImageLimits(), convert=lambda pixels, *_: pixels)
        assert (np.asarray(image.pixels) == stored).all(), name


def test_perceptual_hash_is_that_of_imagehash():
    data = images.png()
    assert perceptual_hash(decode_image(data, ImageLimits()).pixels) == str(
        imagehash.phash(Image.open(io.BytesIO(data)))
    )
