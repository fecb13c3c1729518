"""Read TIFFs: refuse layouts that Pillow would decode wrongly, and find missing data.

`open_header` opens a file (`TiffImage`) and checks its layout (`TiffLayout`). `check` finds damage
after the decode. Source: TIFF 6.0; the tests compare every layout with libvips.
"""

import contextlib
import io
from typing import NamedTuple

from PIL import Image, ImagePalette
from PIL.TiffImagePlugin import COMPRESSION_INFO, TiffImageFile

from ray_app.errors import InputError, Status
from ray_app.images import jpeg
from ray_app.images.formats import MAX_STRIPS, Tiff, TiffError

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES = 256, 257, 258, 259, 262, 277
STRIP_OFFSETS, STRIP_ROWS, STRIP_COUNTS = 273, 278, 279
PLANAR, COLOUR_MAP, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS = (
    284,
    320,
    322,
    323,
    324,
    325,
)
INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, SUBSAMPLING = 332, 338, 339, 347, 530
RAW, LZW = 1, 5
MAX_TABLE_BYTES = 65_536
# A JPEG may be larger than its strip or tile, by padding to whole MCUs, or in the last strip.
MARGIN_PIXELS = 2**20
MAX_VALUES = 65_536  # For a tag with a value for each sample, or for each colour of a palette.
WHITE_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 2, 3, 5, 6, 8

_PHOTOMETRIC = {
    0: "grey from white to black",
    1: "grey",
    RGB: "RGB",
    PALETTE: "palette",
    CMYK: "inks",
    YCBCR: "YCbCr",
    LAB: "Lab",
}
# 1 is unsigned; 4 is undefined, and means unsigned in practice.
_SAMPLE_FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
# Pillow decodes further planes to wrong colours.
_MAX_PLANES = {0: 1, 1: 1, PALETTE: 1, RGB: 4, CMYK: 4, YCBCR: 3, LAB: 0}
_UNREAD = {33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34661: "JBIG", 34712: "JPEG 2000", 34887: "LERC", 34892: "lossy DNG",
           50001: "WebP", 50002: "JPEG XL"}  # fmt: skip
_ADVICE = "save it as PNG, or as a TIFF of 8-bit RGB"


class TiffImage(TiffImageFile):
    """Pillow's TIFF image, changed to decode some files that Pillow decodes wrongly.

    Pillow alone unpacks some uncompressed samples wrongly, and ignores some tags.
    """

    def _setup(self) -> None:
        tags = self.tag_v2
        # Old versions of libtiff wrote such files.
        is_tiled_as_strips = TILE_WIDTH in tags and TILE_OFFSETS not in tags
        if tags.get(COMPRESSION, RAW) == RAW and (
            tags.get(PLANAR) == 2 or tags.get(PHOTOMETRIC) == YCBCR or is_tiled_as_strips
        ):
            # Pillow passes compressed data to libtiff, which reads this tag in the file itself.
            tags[COMPRESSION] = LZW
        super()._setup()
        # Some writers wrote 8 bits in place of 16.
        if self.mode in ("P", "PA") and max(tags[COLOUR_MAP]) < 256:
            self.palette = ImagePalette.raw("RGB;L", bytes(tags[COLOUR_MAP]))
        if self.mode.startswith("I;16") and tags.get(PHOTOMETRIC, WHITE_IS_ZERO) == WHITE_IS_ZERO:
            self.info["white_is_zero"] = True


class TiffLayout(NamedTuple):
    """The layout of the samples of a TIFF's first page. Missing tags have their default values.

    Numbers such as the compression are the codes of TIFF 6.0.

    Attributes:
        width: The width in pixels.
        length: The height in pixels.
        bits: The bits of each sample of a pixel.
        compression: The code of the compression, such as 5 for LZW.
        photometric: The code of the colour space, such as 2 for RGB.
        samples: The number of samples per pixel.
        is_planar: Whether each sample has a plane of its own, such as all red values.
        formats: The code of the format of each sample, such as 3 for floats.
        extra: The codes of the meanings of extra samples, such as alpha.
        ink_set: The code of the set of inks, 1 for CMYK.
        subsampling: The horizontal and vertical subsampling of the colour of YCbCr.
        tile: The width and height of a tile or strip in pixels.
        offsets: The offsets of the tiles or strips in the file.
        counts: The number of bytes of each tile or strip.
    """

    width: int
    length: int
    bits: tuple[int, ...]
    compression: int
    photometric: int
    samples: int
    is_planar: bool
    formats: tuple[int, ...]
    extra: tuple[int, ...]
    ink_set: int
    subsampling: tuple[int, ...]
    tile: tuple[int, int]
    offsets: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def from_tiff(cls, tiff: Tiff) -> "TiffLayout":
        """Read the layout of a TIFF's first page from its tags.

        Args:
            tiff: The tags of the file.

        Raises:
            TiffError: The tags cannot be read.
        """
        entries = tiff.directory()

        def read_values(tag: int, max_values: int = MAX_VALUES) -> tuple[int, ...]:
            """Return the values of a tag, if it has at most `max_values`.

            Only tags that are needed are read: four thousand tags may each claim a million values
            at the same offset.
            """
            return (
                tiff.read_integers(entries[tag])
                if tag in entries and entries[tag].value_count <= max_values
                else ()
            )

        def read_value(tag: int, default: int) -> int:
            return (read_values(tag) or (default,))[0]

        width, length = read_value(WIDTH, 0), read_value(LENGTH, 0)
        return cls(
            width,
            length,
            read_values(BITS) or (1,),
            read_value(COMPRESSION, RAW),
            read_value(PHOTOMETRIC, WHITE_IS_ZERO),
            read_value(SAMPLES, 1),
            read_value(PLANAR, 1) == 2,
            read_values(SAMPLE_FORMAT),
            read_values(EXTRA_SAMPLES),
            read_value(INK_SET, 1),
            read_values(SUBSAMPLING) or (2, 2),
            (
                read_value(TILE_WIDTH, width),
                read_value(TILE_LENGTH, min(read_value(STRIP_ROWS, length) or length, length)),
            ),
            read_values(TILE_OFFSETS, MAX_STRIPS) or read_values(STRIP_OFFSETS, MAX_STRIPS),
            read_values(TILE_COUNTS, MAX_STRIPS) or read_values(STRIP_COUNTS, MAX_STRIPS),
        )

    def describe(self) -> str:
        """Return a short description of the layout for error messages."""
        kind = _SAMPLE_FORMATS.get(max(self.formats, default=1), "")
        colours = _PHOTOMETRIC.get(self.photometric, f"photometric {self.photometric}")
        order = ", in planes" if self.is_planar else ""
        return f"a TIFF of {self.samples} × {max(self.bits)} bits{' ' + kind if kind else ''}, {colours}{order}"

    def find_unsupported(self) -> str | None:
        """Return the reason why Pillow cannot decode samples of this layout correctly, or None.

        The reason is text for the user. The result is also None for numbers of bits per sample that
        Pillow itself refuses.
        """
        # Pillow leaves out unspecified extra samples.
        planes = self.samples - (0 if any(self.extra) else len(self.extra))
        if self.compression in _UNREAD or self.compression not in COMPRESSION_INFO:
            return f"a TIFF compressed as {_UNREAD.get(self.compression, f'number {self.compression}')}: save it with LZW or Deflate"
        if not 1 <= min(self.bits) <= max(self.bits) <= 64:
            return None  # Pillow refuses such values.
        if not _SAMPLE_FORMATS.keys().isdisjoint(self.formats) or max(self.bits) > 16:
            return f"{self.describe()}, which has no agreed black and white: {_ADVICE}"
        if self.photometric not in _MAX_PLANES or (self.photometric == CMYK and self.ink_set != 1):
            return f"{self.describe()}: {_ADVICE}"
        is_subsampled = self.photometric == YCBCR and self.subsampling != (1, 1)
        if self.is_planar and (is_subsampled or planes > _MAX_PLANES[self.photometric]):
            return f"{self.describe()}: {_ADVICE}, interleaved"
        return None

    @property
    def tile_count(self) -> int:
        """The number of strips or tiles that the image must have."""
        across, down = (
            -(-side // max(step, 1))
            for side, step in zip((self.width, self.length), self.tile, strict=True)
        )
        return across * down * (self.samples if self.is_planar else 1)

    def find_missing(self) -> str | None:
        """Describe the strips, tiles, or bytes of the image that are missing according to the tags.

        The result is None if nothing is missing, or if the tags state a size that no image has.
        """
        if max(self.width, self.length) >= 2**31:
            return None
        needed = self.tile_count
        if self.offsets and len(self.offsets) < needed:
            return f"{len(self.offsets)} of {needed} strips or tiles present"
        counts = self.counts[:needed]
        if needed > 1 and any(counts) and not all(counts):
            return f"{counts.count(0)} of {needed} strips or tiles are empty"
        if needed > 1 and self.compression == RAW and any(counts) and self.photometric != YCBCR:
            row = -(-self.width * sum(self.bits) // 8)
            if sum(counts) < row * self.length:
                return f"{sum(counts)} of {row * self.length} bytes of samples present"
        return None


def check(image: Image.Image, data: bytes) -> None:
    """Refuse a TIFF if a strip or tile is a damaged JPEG. libtiff does not report such damage.

    Args:
        image: The decoded image.
        data: The file.

    Raises:
        InputError: The JPEG is truncated or damaged.
    """
    if image.info.get("compression") != "jpeg":
        return
    tiff = Tiff(data)
    layout, tables = TiffLayout.from_tiff(tiff), tiff.directory().get(JPEG_TABLES)
    start = tiff.read_bytes(tables, MAX_TABLE_BYTES)[:-2] if tables else b"\xff\xd8"
    max_pixels = 2 * layout.tile[0] * layout.tile[1] + MARGIN_PIXELS
    for offset, count in zip(layout.offsets[: layout.tile_count], layout.counts, strict=False):
        if damage := jpeg.find_damage(
            start + data[offset + 2 : offset + count] + b"\xff\xd9", max_pixels
        ):
            raise InputError(
                damage.status, f"{damage.detail}, in the strip or tile at byte {offset}"
            )


def open_header(data: bytes) -> TiffImageFile:
    """Open the first page of a TIFF. Errors of Pillow are raised unchanged.

    Args:
        data: The file.

    Raises:
        InputError: The layout is not supported, or data is missing.
    """
    if data.startswith(b"MM\0+"):
        raise InputError(
            Status.UNSUPPORTED_FORMAT,
            "a big-endian BigTIFF, which Touchstone does not read: save it as an ordinary TIFF",
        )
    layout = None
    with contextlib.suppress(TiffError):
        layout = TiffLayout.from_tiff(Tiff(data))
        if unsupported := layout.find_unsupported():
            raise InputError(Status.UNSUPPORTED_FORMAT, unsupported)
        if missing := layout.find_missing():
            raise InputError(Status.TRUNCATED_IMAGE, missing)
    try:
        return TiffImage(io.BytesIO(data))
    except SyntaxError as error:
        if layout is None or "unknown pixel mode" not in str(error) or max(layout.bits) > 16:
            raise
        raise InputError(Status.UNSUPPORTED_FORMAT, f"{layout.describe()}: {_ADVICE}") from error
