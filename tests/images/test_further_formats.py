"""HEIC as telephones write it, JPEG 2000, PNM and camera RAW: their pixels, and what is refused
before any is decoded.
"""

import io
import struct
import sys

import imagecodecs
import numpy as np
import pillow_heif
import pytest

from ray_app.errors import Status
from ray_app.images import decode_image
from tests.images import heif
from tests.images.outcomes import LIMITS, pixels, refusal
from tests.make import images


def difference(data: bytes, image) -> float:
    return np.abs(pixels(data).astype(int) - np.asarray(image)).mean()


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_heic_grid_of_a_telephone_is_joined_and_turned(turns):
    photo = images.photo(320, 200)
    data = heif.tiled(photo, 128, turns=turns, depth=images.photo(80, 50).convert("L"))
    facts = decode_image(data, LIMITS).facts
    assert (facts.format, facts.frames, facts.orientation, facts.flags) == ("HEIC", 1, 1, ())
    assert (facts.width, facts.height) == ((320, 200) if turns % 2 == 0 else (200, 320))
    assert facts.decoder.startswith("pi-heif ")
    assert difference(data, photo.rotate(90 * turns, expand=True)) < 10


def test_heic_of_ten_bits_is_scaled_to_eight():
    wide, out = np.asarray(images.photo()).astype(np.uint16) * 257, io.BytesIO()
    image = pillow_heif.from_bytes(mode="RGB;16", size=(96, 64), data=wide.tobytes())
    image.save(out, quality=90)
    assert decode_image(out.getvalue(), LIMITS).facts.flags == ("sixteen_bit",)
    assert difference(out.getvalue(), images.photo()) < 10


def test_heic_size_is_refused_before_a_tile_is_decoded():
    data = heif.tiled(images.photo(320, 200), 128)
    lie = refusal(data.replace(struct.pack(">II", 320, 200), struct.pack(">II", 30_000, 30_000)))
    assert (lie.status, lie.limit) == (Status.IMAGE_TOO_LARGE, LIMITS.max_pixels)
    other = data.replace(struct.pack(">HH", 320, 200), struct.pack(">HH", 30_000, 30_000))
    assert refusal(other).status == Status.CORRUPT_IMAGE


@pytest.mark.parametrize("most", [255, 1023, 65_535, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_pnm_of_any_range_is_scaled_to_eight_bits(most, channels):
    if most > 255:
        data = images.wide_pnm(most, channels)
    else:
        ramp = np.repeat(np.linspace(0, most, 256).astype(np.uint8), channels).tobytes()
        data = b"P%d 256 16 %d\n" % (5 if channels == 1 else 6, most) + ramp * 16
    found = pixels(data).astype(int)
    assert np.abs(found - np.arange(256)[None, :, None]).max() <= max(1, 255 // most + 1)
    assert decode_image(data, LIMITS).facts.mode == ("L" if channels == 1 else "RGB")


def test_pnm_in_text_is_read():
    rows = {"pgm_plain": [[0, 128, 255], [255, 128, 0]], "pgm_plain_16": [[0, 128, 255]]}
    assert {name: pixels(images.ODD[name][1]())[..., 0].tolist() for name in rows} == rows


def test_pnm_of_many_rows_is_narrowed_in_bands():
    samples = np.random.default_rng(0).integers(0, 65_536, (2200, 2000), dtype=np.uint16)
    data = b"P5 2000 2200 65535\n" + samples.astype(">u2").tobytes()
    np.testing.assert_array_equal(pixels(data)[..., 0], samples >> 8)


def test_pnm_size_that_lies_is_refused():
    assert refusal(b"P6 30000 30000 65535\n" + bytes(60)).status == Status.IMAGE_TOO_LARGE
    assert refusal(b"P6 300 300 65535\n" + bytes(60)).status == Status.TRUNCATED_IMAGE


def test_raw_image_is_its_preview_within_the_limits():
    preview = images.encoded(images.photo(300, 200), "JPEG", quality=93)
    image = decode_image(images.dng(preview), LIMITS)
    assert image.facts.flags == ("preview",)
    assert (image.facts.format, image.facts.width, image.facts.quality) == ("RAW", 300, 93)
    assert image.facts.decoder.startswith("rawpy ")
    np.testing.assert_array_equal(np.asarray(image.pixels), pixels(preview))
    error = refusal(images.dng(images.lying_jpeg(20_000, 20_000)))
    assert (error.status, error.facts.format) == (Status.IMAGE_TOO_LARGE, "RAW")


def test_raw_image_without_a_preview_is_unsupported():
    error = refusal(images.camera_raw())
    assert error.status == Status.UNSUPPORTED_FORMAT
    assert "camera raw" in error.detail


def test_raw_image_without_rawpy_names_the_pip_line(monkeypatch):
    data = images.dng(images.jpeg())
    monkeypatch.setitem(sys.modules, "rawpy", None)
    error = refusal(data)
    assert error.status == Status.UNSUPPORTED_FORMAT
    assert "pip install 'touchstone-forensics[raw]'" in error.detail
    assert error.facts.format == "RAW"


def thumbnail_first(count: int = 1, **options) -> bytes:
    """A TIFF as scanners write it: reduced copies of an image before the image."""
    photo = images.photo(160, 120)
    photo.encoderinfo = {"tiffinfo": {254: 0}}
    copies = [photo.resize((40, 30)) for _ in range(count)]
    for copy in copies[1:]:
        copy.encoderinfo = {"tiffinfo": {254: 1}}
    first, *rest = [*copies, photo]
    return images.encoded(
        first, "TIFF", save_all=True, append_images=rest, tiffinfo={254: 1}, **options
    )


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "jpeg"}, {"compression": "tiff_lzw"}, {"big_tiff": True}],
)
def test_tiff_with_a_reduced_copy_first_is_its_image(count, options):
    plain = images.encoded(images.photo(160, 120), "TIFF", **options)
    data = thumbnail_first(count, **options)
    np.testing.assert_array_equal(pixels(data), pixels(plain))
    facts = decode_image(data, LIMITS).facts
    assert (facts.format, facts.width, facts.frames, facts.flags) == ("TIFF", 160, 1, ())


def test_tiff_with_a_reduced_copy_first_is_truncated_if_cut():
    data = thumbnail_first()
    at = data.index(images.photo(160, 120).tobytes())
    for size in (at - 200, at + 9000, len(data) - 40):
        assert refusal(data[:size]).status == Status.TRUNCATED_IMAGE, size


SENSOR_PAGE = {254: 0, 256: 64, 257: 64, 262: 32803}


@pytest.mark.parametrize(
    ("tags", "next_tags"),
    [
        ({254: 1, 50706: 1}, {254: 0}),
        ({254: 1, 330: 8}, {254: 0}),
        ({254: 1}, SENSOR_PAGE),
        ({254: 1}, SENSOR_PAGE | {262: 34892}),
        ({254: 1}, {254: 1}),
    ],
    ids=["dng", "sub-directory", "sensor-page", "linear-raw", "previews-only"],
)
def test_raw_image_with_a_second_page_is_never_its_preview(tags, next_tags):
    first, second = (
        images.grey_tiff(32, 32, images.photo(32, 32).convert("L").tobytes(), page)
        for page in (tags, next_tags)
    )
    # The second directory is behind the first file, and refers to the samples of the first.
    directory = second[8 + 32 * 32 :]
    data = first[:-4] + struct.pack("<I", len(first)) + directory
    error = refusal(data)
    assert (error.status, error.facts.format) == (Status.UNSUPPORTED_FORMAT, "RAW")
    assert "camera raw" in error.detail


@pytest.mark.parametrize("boxed", [False, True])
def test_jpeg_xl_is_unsupported_and_named(boxed):
    data = imagecodecs.jpegxl_encode(np.asarray(images.photo()), usecontainer=boxed)
    error = refusal(bytes(data))
    assert (error.status, error.facts.format) == (Status.UNSUPPORTED_FORMAT, None)
    assert error.detail == "a JPEG XL image: convert it to PNG with djxl"
