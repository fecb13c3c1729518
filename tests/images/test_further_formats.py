"""HEIC as telephones write it, JPEG XL, JPEG 2000, PNM and camera RAW: their pixels, and what is refused before any is decoded."""

import io
import struct
import sys

import imagecodecs
import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.errors import Status
from ray_app.images import BatchLimits, decode_image
from ray_app.images.boxes import CONTAINER, read_jxl_header
from tests.images import factory, heif
from tests.images.outcomes import LIMITS, pixels, refusal


def difference(data: bytes, image) -> float:
    return np.abs(pixels(data).astype(int) - np.asarray(image)).mean()


class TestHeic:
    """Files as an iPhone writes them: a grid of tiles, turned by a property, with a depth map."""

    @pytest.mark.parametrize("turns", [0, 1, 3])
    def test_a_grid_is_put_together_and_turned(self, turns):
        photo = factory.photo(320, 200)
        data = heif.tiled(photo, 128, turns=turns, depth=factory.photo(80, 50).convert("L"))
        facts = decode_image(data, LIMITS).facts
        assert (facts.format, facts.frames, facts.orientation, facts.flags) == ("HEIC", 1, 1, ())
        assert (facts.width, facts.height) == ((320, 200) if turns % 2 == 0 else (200, 320))
        assert facts.decoder.startswith("pi-heif ")
        assert difference(data, photo.rotate(90 * turns, expand=True)) < 10

    def test_ten_bits_are_brought_to_eight(self):
        wide = np.asarray(factory.photo()).astype(np.uint16) * 257
        out = io.BytesIO()
        pillow_heif.from_bytes(mode="RGB;16", size=(96, 64), data=wide.tobytes()).save(out, quality=90)
        assert decode_image(out.getvalue(), LIMITS).facts.flags == ("sixteen_bit",)
        assert difference(out.getvalue(), factory.photo()) < 10

    def test_sizes_are_refused_before_a_tile_is_decoded(self):
        data = heif.tiled(factory.photo(320, 200), 128)
        lie = data.replace(struct.pack(">II", 320, 200), struct.pack(">II", 30_000, 30_000))
        assert (refusal(lie).status, refusal(lie).limit) == (Status.IMAGE_TOO_LARGE, LIMITS.max_pixels)
        assert refusal(data.replace(struct.pack(">HH", 320, 200), struct.pack(">HH", 30_000, 30_000))).status == Status.CORRUPT_IMAGE


class TestJpegXl:
    @settings(max_examples=20, deadline=None)
    @given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([np.uint8, np.uint16]), st.booleans(), st.sampled_from([1, 3, 4]))
    def test_the_header_tells_size_and_bits_without_decoding(self, width, height, kind, boxed, channels):
        samples = np.zeros((height, width, channels) if channels > 1 else (height, width), kind)
        data = bytes(imagecodecs.jpegxl_encode(samples, lossless=True, effort=1, usecontainer=boxed))
        header = read_jxl_header(data)
        assert (header.size, header.bits, header.is_animated) == ((width, height), np.dtype(kind).itemsize * 8, False)

    def test_sixteen_bits_keep_their_high_eight(self):
        ramp = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(1, -1).repeat(16, 0)
        image = decode_image(bytes(imagecodecs.jpegxl_encode(ramp, lossless=True)), LIMITS)
        assert image.facts.flags == ("grayscale", "sixteen_bit")
        np.testing.assert_array_equal(np.asarray(image.pixels)[..., 0], ramp >> 8)

    def test_of_an_animation_the_first_frame_is_decoded_alone(self):
        frames = np.stack([np.asarray(factory.photo(seed=seed)) for seed in range(4)])
        image = decode_image(bytes(imagecodecs.jpegxl_encode(frames, lossless=True)), LIMITS)
        assert image.facts.flags == ("animated",)
        np.testing.assert_array_equal(np.asarray(image.pixels), frames[0])

    def test_a_gigapixel_in_a_few_bytes_is_refused_by_its_header(self):
        bits = "0" + "11" + f"{30_000 - 1:030b}"[::-1] + "000" + "11" + f"{40_000 - 1:030b}"[::-1] + "1"
        header = b"\xff\x0a" + int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little")
        assert read_jxl_header(header).size == (40_000, 30_000)
        for data in (header, CONTAINER + struct.pack(">I4s", 8 + len(header), b"jxlc") + header):
            error = refusal(data, BatchLimits())
            assert (error.status, error.facts.format, error.facts.width) == (Status.IMAGE_TOO_LARGE, "JXL", 40_000)

    @pytest.mark.parametrize("data", [CONTAINER, CONTAINER + bytes(40), CONTAINER + struct.pack(">I4s", 8, b"free") * 2000, b"\xff\x0a"])
    def test_a_container_without_a_picture_is_no_picture(self, data):
        assert refusal(data).status in (Status.TRUNCATED_IMAGE, Status.CORRUPT_IMAGE)


class TestJpeg2000:
    def test_a_lying_size_is_refused_before_it_is_decoded(self):
        data = factory.encoded(factory.photo(), "JPEG2000", no_jp2=True)
        at = data.index(b"\xff\x51") + 6
        assert refusal(factory.patched(data, at, struct.pack(">II", 30_000, 30_000))).status == Status.IMAGE_TOO_LARGE


class TestPnm:
    @pytest.mark.parametrize("most", [255, 1023, 65_535, 100])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_every_range_is_brought_to_eight_bits(self, most, channels):
        if most > 255:
            data = factory.wide_pnm(most, channels)
        else:
            ramp = np.repeat(np.linspace(0, most, 256).astype(np.uint8), channels).tobytes()
            data = b"P%d 256 16 %d\n" % (5 if channels == 1 else 6, most) + ramp * 16
        found = pixels(data).astype(int)
        assert np.abs(found - np.arange(256)[None, :, None]).max() <= max(1, 255 // most + 1)
        assert decode_image(data, LIMITS).facts.mode == ("L" if channels == 1 else "RGB")

    def test_text_is_read_too(self):
        np.testing.assert_array_equal(
            np.asarray(decode_image(factory.ODD["pgm_plain"][1](), LIMITS).pixels)[..., 0], [[0, 128, 255], [255, 128, 0]]
        )
        np.testing.assert_array_equal(np.asarray(decode_image(factory.ODD["pgm_plain_16"][1](), LIMITS).pixels)[..., 0], [[0, 128, 255]])

    def test_large_ones_are_narrowed_in_bands(self):
        samples = np.random.default_rng(0).integers(0, 65_536, (2200, 2000), dtype=np.uint16)
        data = b"P5 2000 2200 65535\n" + samples.astype(">u2").tobytes()
        np.testing.assert_array_equal(pixels(data)[..., 0], samples >> 8)

    def test_a_lying_size_is_refused_or_truncated(self):
        assert refusal(b"P6 30000 30000 65535\n" + bytes(60)).status == Status.IMAGE_TOO_LARGE
        assert refusal(b"P6 300 300 65535\n" + bytes(60)).status == Status.TRUNCATED_IMAGE


class TestCameraRaw:
    def test_the_cameras_own_preview_is_scored_and_flagged_and_keeps_to_the_limits(self):
        preview = factory.encoded(factory.photo(300, 200), "JPEG", quality=93)
        image, alone = decode_image(factory.dng(preview), LIMITS), decode_image(preview, LIMITS)
        assert image.facts.flags == ("preview",)
        assert (image.facts.format, image.facts.width, image.facts.quality) == ("RAW", 300, 93)
        assert image.facts.decoder.startswith("rawpy ")
        np.testing.assert_array_equal(np.asarray(image.pixels), np.asarray(alone.pixels))
        error = refusal(factory.dng(factory.lying_jpeg(20_000, 20_000)))
        assert (error.status, error.facts.format) == (Status.IMAGE_TOO_LARGE, "RAW")

    def test_without_a_jpeg_in_it_there_is_nothing_to_score(self):
        error = refusal(factory.camera_raw())
        assert error.status == Status.UNSUPPORTED_FORMAT
        assert "camera raw" in error.detail


EXTRAS = [("imagecodecs", "jxl", factory.jxl), ("rawpy", "raw", lambda: factory.dng(factory.jpeg()))]


@pytest.mark.parametrize(("module", "extra", "make"), EXTRAS)
def test_without_its_extra_a_format_names_the_pip_line(module, extra, make, monkeypatch):
    data = make()
    monkeypatch.setitem(sys.modules, module, None)
    error = refusal(data)
    assert error.status == Status.UNSUPPORTED_FORMAT
    assert f"pip install 'touchstone-forensics[{extra}]'" in error.detail
    assert error.facts.format == {"jxl": "JXL", "raw": "RAW"}[extra]
