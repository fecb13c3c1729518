"""What decoding takes at its peak, as it was reckoned from the header, against what the kernel
counted.
"""

import ctypes
import multiprocessing
import os
import pickle
import struct
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_app.errors import InputError, Status
from ray_app.images import (
    BatchLimits,
    DecodeCost,
    ImageLimits,
    ImageRefused,
    decode_image,
    peek_image,
)
from ray_app.images.limits import worst_bytes
from tests.images import layouts, tiff_writer
from tests.images.outcomes import refusal
from tests.make import images

FLAT = images.encoded(images.photo(1200, 900), "JPEG", quality=1)


@pytest.mark.parametrize(
    ("limit", "data", "observed"),
    [
        ({"max_bytes": 1000}, images.jpeg(), len(images.jpeg())),
        ({"max_pixels": 6143}, images.jpeg(), 6144),
        ({"max_side": 95}, images.jpeg(), 96),
        ({"max_aspect": 1.4}, images.jpeg(), 1.5),
        ({"max_ratio": 50}, FLAT, 1200 * 900 * 3 / len(FLAT)),
    ],
)
def test_image_over_a_limit_names_the_limit_and_both_numbers(limit, data, observed):
    error = refusal(data, ImageLimits(**limit))
    ((named, number),) = limit.items()
    assert error.status == Status.IMAGE_TOO_LARGE
    assert named in error.detail
    assert (error.limit, error.observed) == (number, pytest.approx(observed))
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.limit, copy.observed, copy.detail) == (number, error.observed, error.detail)
    assert copy.facts == error.facts


def test_image_exactly_at_the_limits_is_decoded():
    most = {"max_pixels": 6144, "max_side": 96, "max_aspect": 1.5}
    limits = ImageLimits(max_bytes=len(images.jpeg()), **most)
    assert decode_image(images.jpeg(), limits).pixels.size == (96, 64)


SIDE = 2000  # 4 megapixels: much beside what an interpreter has in hand
SLACK = 8 * 2**20
# Each way of reckoning once.
MODES = {
    "jpeg": ("RGB", "JPEG", {}),
    "jpeg_420_progressive": ("RGB", "JPEG", {"progressive": True}),
    "jpeg_cmyk_progressive": ("CMYK", "JPEG", {"progressive": True}),
    "png_grey_alpha": ("LA", "PNG", {"compress_level": 1}),
    "png_one_bit": ("1", "PNG", {}),
    "png_palette_transparent": ("P", "PNG", {"compress_level": 1, "transparency": 3}),
    "png_16": ("I;16", "PNG", {"compress_level": 1}),
    "png_16_transparent_colour": ("RGB;16", "PNG", {}),
    "tiff_one_strip": ("RGB", "TIFF", {"compression": "tiff_lzw", "tiffinfo": {278: SIDE}}),
    "tiff_g4": ("1", "TIFF", {"compression": "group4"}),
    "webp": ("RGB", "WEBP", {"method": 0}),
    "gif": ("P", "GIF", {}),
    "bmp": ("RGB", "BMP", {}),
    "avif": ("RGB", "AVIF", {"speed": 10}),
    "heic": ("RGB", "HEIF", {"enc_params": {"preset": "ultrafast"}}),
    "jpeg2000": ("RGB", "JPEG2000", {"quality_mode": "rates", "quality_layers": [30]}),
    "pgm_16": ("I;16", "PPM", {}),
}


@pytest.fixture(scope="module")
def picture():
    """Smooth enough to be encoded in a moment, and not flat."""
    return images.photo(300, 300).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def encoded(picture: Image.Image, mode: str, format_name: str, options) -> bytes:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    elif mode == "RGB;16":
        shown = np.asarray(picture).astype(np.int64) * 257
        key = images.chunk(b"tRNS", shown[0, 0].astype(">u2").tobytes())
        return layouts.png(shown, 16, 2, extra=(key,))
    elif mode == "P":
        image = picture.quantize(64, method=Image.Quantize.FASTOCTREE)
    elif mode in ("RGBA", "LA"):
        image = picture.copy()
        image.putalpha(Image.linear_gradient("L").resize(picture.size))
        image = image.convert(mode)
    else:
        image = picture.convert(mode)
    if (mode, format_name) == ("I;16", "PPM"):
        return b"P5 %d %d 65535\n" % image.size + np.asarray(image).astype(">u2").tobytes()
    return images.encoded(image, format_name, **options)


@pytest.fixture(scope="module")
def measured():
    """`peak_bytes` in a process of its own: other tests set this one's C library to keep what is
    freed, and fill its heap.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda *asked: pool.submit(peak_bytes, *asked).result()


def peak_bytes(data: bytes, limits: ImageLimits, warming: bytes = b"") -> tuple[int, DecodeCost]:
    """What this process's memory grows by at most while a forked copy of it decodes, and what was
    asked for.

    `warming` is decoded first, so that the pages of the libraries which do it are there and not
    counted.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            with suppress(InputError):
                decode_image(warming, limits)
            # what was freed before would be used again without being counted
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            with suppress(InputError):
                peeked = peek_image(data, limits)
                peeked.decode()
            os.write(writing, struct.pack("qqq", status("VmHWM") - before, *peeked.demand))
        finally:
            os._exit(0)
    os.close(writing)
    grown, pixels, asked = struct.unpack("qqq", os.read(reading, 24))
    os.close(reading)
    os.waitpid(child, 0)
    return grown, DecodeCost(pixels, asked)


def status(name: str) -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for its count")
@pytest.mark.parametrize("kind", MODES)
def test_image_takes_no_more_memory_than_its_demand(kind, picture, measured):
    warming = encoded(picture.resize((64, 64)), *MODES[kind])
    grown, demand = measured(encoded(picture, *MODES[kind]), BatchLimits(), warming)
    assert demand.pixels == SIDE * SIDE
    assert grown <= demand.peak_bytes + SLACK
    assert demand.peak_bytes <= 2.5 * (grown + SLACK), "more is asked for than is used"
    worst = worst_bytes(BatchLimits()) * demand.pixels / BatchLimits().max_whole_pixels
    assert demand.peak_bytes <= worst


def test_demand_that_no_machine_has_is_a_number():
    """A tile of 2³² − 1 pixels on each side; a child tells what it needs in 64 bits."""
    grey, lzw = tiff_writer.BLACK_IS_ZERO, tiff_writer.LZW
    data = tiff_writer.tiff(np.zeros((16, 16, 1), int), 8, grey, compression=lzw, tile=16)
    peeked = peek_image(_with_tags(data, {322: 2**32 - 1, 323: 2**32 - 1}), ImageLimits())
    assert peeked.demand.peak_bytes == 2**63 - 1
    with pytest.raises(ImageRefused) as caught:
        peeked.decode()
    assert caught.value.status in (Status.CORRUPT_IMAGE, Status.TRUNCATED_IMAGE)


def _with_tags(data: bytes, values: dict[int, int]) -> bytes:
    changed, start = bytearray(data), struct.unpack_from("<I", data, 4)[0]
    for at in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        if (tag := struct.unpack_from("<H", data, at)[0]) in values:
            struct.pack_into("<HHII", changed, at, tag, 4, 1, values[tag])
    return bytes(changed)


def test_peek_returns_size_and_demand_of_every_format():
    for name, (_, make) in images.SOUND.items():
        peeked = peek_image(make(), ImageLimits())
        assert (peeked.facts.width, peeked.demand.pixels) == (96, 6144), name
        assert peeked.demand.peak_bytes > 6144, name


def test_peek_decodes_no_pixels():
    """A file that is cut after its header has a demand, and is refused when it is decoded."""
    data = images.jpeg(quality=95)
    peeked = peek_image(data[: len(data) // 2], ImageLimits())
    assert peeked.demand.pixels == 6144
    with pytest.raises(ImageRefused) as caught:
        peeked.decode()
    assert caught.value.status is Status.TRUNCATED_IMAGE
    assert caught.value.facts.width == 96
