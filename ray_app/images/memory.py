"""What decoding an image takes at its peak, reckoned from its header. Decodes nothing.

Pillow keeps four bytes for a pixel of several channels, one for a pixel of one. Beside the picture stand what its decoder holds and what
becomes of it on the way to RGB. The figures were measured (tests/images/test_memory.py measures them again) and are upper bounds.
"""

from collections.abc import Callable
from typing import NamedTuple

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ray_app.images.further_formats import BIT_DEPTH
from ray_app.images.jpeg import coefficient_bytes
from ray_app.images.limits import ImageLimits

SMALL_BYTES = 384 * 2**20  # any process has room for this beside its libraries; what takes more waits for its turn on a node
LIMIT_PIXELS = 50_000_000  # a decode limit in seconds is meant for so many pixels; larger images have as much longer

_MOST = 2**63 - 1  # what a header claims may be anything
_FIXED = 8 * 2**20  # whatever a decoder allocates for the smallest image
_ROWS_PER_STRIP, _TILE_WIDTH, _TILE_HEIGHT, _SAMPLES, _BITS = 278, 322, 323, 277, 258  # TIFF tags

_NARROW = ("1", "L", "P")
# Bytes per pixel that are held beside the picture until it is RGB, by its mode.
_CONVERTING = {"RGB": 0, "1": 4, "L": 4, "P": 4, "CMYK": 4, "YCbCr": 4, "RGBX": 4, "HSV": 4, "I": 7, "F": 4}
_WITH_ALPHA, _DEEP_GREY = 8, 7
# Bytes per pixel that a decoder holds beside the picture, of formats in which nothing else tells.
_DECODING = {"WEBP": 18, "AVIF": 12, "HEIC": 12, "JPEG2000": 20, "JXL": 12, "PNM": 6}
_DEEP_JXL = 18  # whatever its channels are, which its header does not say
_WORST_OF_LARGEST, _WORST = 22, 24  # to prepare an image in every way takes no more


class Demand(NamedTuple):
    """What decoding one image asks for: `peak_bytes` of memory beside the encoded file."""

    pixels: int
    peak_bytes: int

    @property
    def is_large(self) -> bool:
        """Whether it takes more memory than any process has room for, or more time than a limit is meant for."""
        return self.peak_bytes > SMALL_BYTES or self.pixels > LIMIT_PIXELS

    @property
    def patience(self) -> float:
        """How many times a decode limit in seconds it may take."""
        return max(1.0, self.pixels / LIMIT_PIXELS)


Admit = Callable[[Demand], None]  # waits until that is there, or raises InputError


def admit_all(_: Demand) -> None:
    """For who decodes one image at a time beside nobody."""


def worst_bytes(limits: ImageLimits) -> int:
    """What no image within these limits goes beyond."""
    whole = min(limits.max_whole_pixels or limits.max_pixels, limits.max_pixels)
    return _FIXED + max(limits.max_pixels * _WORST_OF_LARGEST, whole * _WORST)


def demand_of(image: ImageFile, data: bytes, format_name: str) -> Demand:
    """Of an image that was opened and not decoded."""
    pixels, mode = image.width * image.height, image.mode
    is_deep_grey = mode.startswith("I;16")
    stored = 1 if mode in _NARROW else 2 if is_deep_grey else 4
    converting = _WITH_ALPHA if "transparency" in image.info else _CONVERTING.get(mode, _WITH_ALPHA)
    beside = pixels * (_DEEP_GREY if is_deep_grey else converting)
    if isinstance(image, JpegImageFile):
        beside = max(beside, coefficient_bytes(image, data))
    elif isinstance(image, TiffImageFile):
        beside = max(beside, _tiff(image))
    else:
        is_deep_jxl = format_name == "JXL" and image.info[BIT_DEPTH] > 8
        beside = max(beside, pixels * (_DEEP_JXL if is_deep_jxl else _DECODING.get(format_name, 0)))
    return Demand(pixels, min(_FIXED + pixels * stored + beside, _MOST))


def webp_demand(width: int, height: int) -> Demand:
    """Of a WebP, whose decoder allocates its canvas when it is opened."""
    return Demand(width * height, _FIXED + width * height * (4 + _DECODING["WEBP"]))


def _tiff(image: TiffImageFile) -> int:
    """libtiff unpacks a strip or a tile at a time; many writers put a whole image into one strip."""
    if all(codec == "raw" for codec, *_ in image.tile):
        return 0
    tags = image.tag_v2
    width, height = tags.get(_TILE_WIDTH, image.width), tags.get(_TILE_HEIGHT, min(tags.get(_ROWS_PER_STRIP, image.height), image.height))
    bits = max(tags.get(_BITS, (8,))) * tags.get(_SAMPLES, 1)
    return int(width * height * max(bits / 8, 4))
