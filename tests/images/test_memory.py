"""What decoding takes at its peak, as it was reckoned from the header, against what the kernel counted."""

import ctypes
import os
import struct
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from ray_app.errors import InputError, Status
from ray_app.images import BatchLimits, Demand, ImageLimits, decode_image
from ray_app.images.memory import LIMIT_PIXELS, worst_bytes
from tests.images import factory

SIDE = 2000  # 4 megapixels: much beside what an interpreter has in hand
SLACK = 8 * 2**20
MODES = {
    "jpeg": ("RGB", "JPEG", {}),
    "jpeg_444_progressive": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    "jpeg_420_progressive": ("RGB", "JPEG", {"progressive": True}),
    "jpeg_grey_progressive": ("L", "JPEG", {"progressive": True}),
    "jpeg_cmyk": ("CMYK", "JPEG", {}),
    "jpeg_cmyk_progressive": ("CMYK", "JPEG", {"progressive": True}),
    "png": ("RGB", "PNG", {"compress_level": 1}),
    "png_alpha": ("RGBA", "PNG", {"compress_level": 1}),
    "png_grey_alpha": ("LA", "PNG", {"compress_level": 1}),
    "png_one_bit": ("1", "PNG", {}),
    "png_palette": ("P", "PNG", {"compress_level": 1}),
    "png_palette_transparent": ("P", "PNG", {"compress_level": 1, "transparency": 3}),
    "png_16": ("I;16", "PNG", {"compress_level": 1}),
    "tiff": ("RGB", "TIFF", {}),
    "tiff_alpha": ("RGBA", "TIFF", {}),
    "tiff_lzw": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "tiff_one_strip": ("RGB", "TIFF", {"compression": "tiff_lzw", "tiffinfo": {278: SIDE}}),
    "tiff_cmyk": ("CMYK", "TIFF", {}),
    "tiff_g4": ("1", "TIFF", {"compression": "group4"}),
    "tiff_16": ("I;16", "TIFF", {}),
    "webp": ("RGB", "WEBP", {"method": 0}),
    "webp_alpha": ("RGBA", "WEBP", {"method": 0}),
    "webp_lossless": ("RGB", "WEBP", {"method": 0, "lossless": True, "quality": 0}),
    "webp_lossless_alpha": ("RGBA", "WEBP", {"method": 0, "lossless": True, "quality": 0}),
    "gif": ("P", "GIF", {}),
    "bmp": ("RGB", "BMP", {}),
    "avif": ("RGB", "AVIF", {"speed": 10}),
    "avif_444": ("RGB", "AVIF", {"speed": 10, "subsampling": "4:4:4"}),
    "avif_alpha": ("RGBA", "AVIF", {"speed": 10}),
    "heic": ("RGB", "HEIF", {}),
    "heic_alpha": ("RGBA", "HEIF", {}),
    "heic_444": ("RGB", "HEIF", {"chroma": 444}),
    "jpeg2000": ("RGB", "JPEG2000", {"quality_mode": "rates", "quality_layers": [30]}),
    "jxl": ("RGB", "JXL", {"distance": 1, "effort": 2}),
    "jxl_lossless": ("RGB", "JXL", {"lossless": True, "effort": 1}),
    "jxl_16": ("I;16", "JXL", {"lossless": True, "effort": 1}),
    "ppm": ("RGB", "PPM", {}),
    "pgm_16": ("I;16", "PPM", {}),
    "jpeg2000_alpha": ("RGBA", "JPEG2000", {"quality_mode": "rates", "quality_layers": [30]}),
}


# What takes long to encode.
SLOW = ("webp_lossless", "webp_lossless_alpha", "avif_444", "avif_alpha", "heic", "heic_alpha", "heic_444", "jpeg2000_alpha")


@pytest.fixture(scope="module")
def picture():
    """Smooth enough to be encoded in a moment, and not flat."""
    return factory.photo(300, 300).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def encoded(picture: Image.Image, mode: str, format_name: str, options) -> bytes:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    elif mode == "P":
        image = picture.quantize(64, method=Image.Quantize.FASTOCTREE)
    elif mode in ("RGBA", "LA"):
        image = picture.copy()
        image.putalpha(Image.linear_gradient("L").resize(picture.size))
        image = image.convert(mode)
    else:
        image = picture.convert(mode)
    if format_name == "JXL":
        return bytes(imagecodecs.jpegxl_encode(np.asarray(image), **options))
    if (mode, format_name) == ("I;16", "PPM"):
        return b"P5 %d %d 65535\n" % image.size + np.asarray(image).astype(">u2").tobytes()
    return factory.encoded(image, format_name, **options)


def peak_bytes(data: bytes, limits: ImageLimits) -> tuple[int, Demand]:
    """What this process's memory grows by at most while a forked copy of it decodes, and what was asked for."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        told: list[Demand] = []
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be used again without being counted
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            decode_image(data, limits, told.append)
            os.write(writing, struct.pack("qqq", status("VmHWM") - before, *told[0]))
        finally:
            os._exit(0)
    os.close(writing)
    grown, pixels, asked = struct.unpack("qqq", os.read(reading, 24))
    os.close(reading)
    os.waitpid(child, 0)
    return grown, Demand(pixels, asked)


def status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for its count")
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in MODES])
def test_no_image_takes_more_than_was_asked_for_it(kind, picture):
    grown, demand = peak_bytes(encoded(picture, *MODES[kind]), BatchLimits())
    assert demand.pixels == SIDE * SIDE
    assert grown <= demand.peak_bytes + SLACK
    assert demand.peak_bytes <= 2.5 * (grown + SLACK), "much more is asked for than is used: others would wait for nothing"
    assert demand.peak_bytes <= worst_bytes(BatchLimits()) * demand.pixels / BatchLimits().max_whole_pixels


def test_a_baseline_jpeg_in_several_scans_is_held_as_a_whole():
    """Each component in a scan of its own: libjpeg keeps all coefficients, though nothing is progressive."""
    told: list[Demand] = []
    data = factory.encoded(factory.photo(1600, 1600), "JPEG", subsampling=0)
    decode_image(data, ImageLimits(), told.append)
    decode_image(factory.scans_apart(1600, 1600), ImageLimits(), told.append)
    assert told[1].peak_bytes - told[0].peak_bytes == 1600 * 1600 * 6


def test_whoever_admits_may_refuse_and_is_asked_before_pixels_are_decoded():
    def refuse(demand: Demand) -> None:
        raise InputError(Status.IMAGE_TOO_LARGE, f"no room for {demand.pixels} pixels")

    for name, (_, make) in factory.SOUND.items():
        data = make()
        with pytest.raises(InputError, match="no room for 6144 pixels") as caught:
            decode_image(data, ImageLimits(), refuse)
        assert caught.value.facts.width == 96, name


def test_more_pixels_may_take_longer():
    assert Demand(LIMIT_PIXELS, 0).patience == 1 == Demand(100, 0).patience
    assert Demand(5 * LIMIT_PIXELS, 0).patience == 5
