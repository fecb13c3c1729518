"""TIFF → pixels: `open_header` refuses layouts (`TiffLayout`) that Pillow would read wrong, and
helps it with others; `check` finds missing data.

Source: TIFF 6.0; the tests compare every layout with libvips.
"""

import contextlib
import io
from typing import NamedTuple

from PIL import Image, ImagePalette
from PIL.TiffImagePlugin import COMPRESSION_INFO, TiffImageFile

from ray_app.errors import InputError, Status
from ray_app.images import jpeg
from ray_app.images.formats import MOST_STRIPS, Tiff, TiffError

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
MOST_TABLE_BYTES = 65_536
# A JPEG may be larger than its strip or tile: by padding to whole MCUs, or in the last strip.
MIN_PIECE_PIXELS = 2**20
MOST_VALUES = 65_536  # of a tag that has one for each sample, or for each colour of a palette
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
# 1 is unsigned, 4 is undefined and meant so
_FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
# of further ones Pillow makes wrong colours
_MOST_PLANES = {0: 1, 1: 1, PALETTE: 1, RGB: 4, CMYK: 4, YCBCR: 3, LAB: 0}
_UNREAD = {33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34661: "JBIG", 34712: "JPEG 2000", 34887: "LERC", 34892: "lossy DNG",
           50001: "WebP", 50002: "JPEG XL"}  # fmt: skip
_WHAT_TO_DO = "save it as PNG, or as a TIFF of 8-bit RGB"


class TiffImage(TiffImageFile):
    """Pillow's reader, helped where its own unpacking of uncompressed samples fails and where it
    takes no notice of a tag.
    """

    def _setup(self) -> None:
        tags = self.tag_v2
        # as old libtiffs wrote them
        is_tiled_as_strips = TILE_WIDTH in tags and TILE_OFFSETS not in tags
        if tags.get(COMPRESSION, RAW) == RAW and (
            tags.get(PLANAR) == 2 or tags.get(PHOTOMETRIC) == YCBCR or is_tiled_as_strips
        ):
            # To Pillow, what is compressed is libtiff's, which reads this tag in the file itself.
            tags[COMPRESSION] = LZW
        super()._setup()
        # of writers that took 8 bits for 16
        if self.mode in ("P", "PA") and max(tags[COLOUR_MAP]) < 256:
            self.palette = ImagePalette.raw("RGB;L", bytes(tags[COLOUR_MAP]))
        if self.mode.startswith("I;16") and tags.get(PHOTOMETRIC, WHITE_IS_ZERO) == WHITE_IS_ZERO:
            self.info["white_is_zero"] = True


class TiffLayout(NamedTuple):
    """How the samples of the first page lie in the file, with the tags' defaults."""

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
    piece: tuple[int, int]
    offsets: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, tiff: Tiff) -> "TiffLayout":
        """Raises TiffError."""
        entries = tiff.directory()

        def every(tag: int, most: int = MOST_VALUES) -> tuple[int, ...]:
            """Only the tags that are needed: four thousand tags may each say that a million values
            stand at one place.
            """
            return (
                tiff.integers(entries[tag])
                if tag in entries and entries[tag].number <= most
                else ()
            )

        def one(tag: int, otherwise: int) -> int:
            return (every(tag) or (otherwise,))[0]

        width, length = one(WIDTH, 0), one(LENGTH, 0)
        return cls(
            width,
            length,
            every(BITS) or (1,),
            one(COMPRESSION, RAW),
            one(PHOTOMETRIC, WHITE_IS_ZERO),
            one(SAMPLES, 1),
            one(PLANAR, 1) == 2,
            every(SAMPLE_FORMAT),
            every(EXTRA_SAMPLES),
            one(INK_SET, 1),
            every(SUBSAMPLING) or (2, 2),
            (
                one(TILE_WIDTH, width),
                one(TILE_LENGTH, min(one(STRIP_ROWS, length) or length, length)),
            ),
            every(TILE_OFFSETS, MOST_STRIPS) or every(STRIP_OFFSETS, MOST_STRIPS),
            every(TILE_COUNTS, MOST_STRIPS) or every(STRIP_COUNTS, MOST_STRIPS),
        )

    def describe(self) -> str:
        """In words, for people."""
        kind = _FORMATS.get(max(self.formats, default=1), "")
        colours = _PHOTOMETRIC.get(self.photometric, f"photometric {self.photometric}")
        order = ", in planes" if self.is_planar else ""
        return f"a TIFF of {self.samples} × {max(self.bits)} bits{' ' + kind if kind else ''}, {colours}{order}"

    def unread(self) -> str | None:
        """Why these samples are not read, or would be read wrong; None where nothing speaks against
        it.
        """
        # Pillow leaves out unspecified extra samples
        planes = self.samples - (0 if any(self.extra) else len(self.extra))
        if self.compression in _UNREAD or self.compression not in COMPRESSION_INFO:
            return f"a TIFF compressed as {_UNREAD.get(self.compression, f'number {self.compression}')}: save it with LZW or Deflate"
        if not 1 <= min(self.bits) <= max(self.bits) <= 64:
            return None  # nonsense, for Pillow to refuse
        if not _FORMATS.keys().isdisjoint(self.formats) or max(self.bits) > 16:
            return f"{self.describe()}, which has no agreed black and white: {_WHAT_TO_DO}"
        if self.photometric not in _MOST_PLANES or (self.photometric == CMYK and self.ink_set != 1):
            return f"{self.describe()}: {_WHAT_TO_DO}"
        is_subsampled = self.photometric == YCBCR and self.subsampling != (1, 1)
        if self.is_planar and (is_subsampled or planes > _MOST_PLANES[self.photometric]):
            return f"{self.describe()}: {_WHAT_TO_DO}, interleaved"
        return None

    @property
    def pieces(self) -> int:
        """How many strips or tiles the picture has."""
        across, down = (
            -(-side // max(step, 1))
            for side, step in zip((self.width, self.length), self.piece, strict=True)
        )
        return across * down * (self.samples if self.is_planar else 1)

    def missing(self) -> str | None:
        """What the tags leave out of the picture, in words; None where they name all of it, or a
        size that no picture has.
        """
        if max(self.width, self.length) >= 2**31:
            return None
        needed = self.pieces
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
    """Refuse a decoded TIFF with a damaged JPEG as a strip or tile, about which libtiff reports
    nothing. Raises InputError.
    """
    if image.info.get("compression") != "jpeg":
        return
    tiff = Tiff(data)
    layout, tables = TiffLayout.of(tiff), tiff.directory().get(JPEG_TABLES)
    start = tiff.octets(tables, MOST_TABLE_BYTES)[:-2] if tables else b"\xff\xd8"
    max_pixels = 2 * layout.piece[0] * layout.piece[1] + MIN_PIECE_PIXELS
    for offset, count in zip(layout.offsets[: layout.pieces], layout.counts, strict=False):
        if damage := jpeg.find_damage(
            start + data[offset + 2 : offset + count] + b"\xff\xd9", max_pixels
        ):
            raise InputError(
                damage.status, f"{damage.detail}, in the strip or tile at byte {offset}"
            )


def open_header(data: bytes) -> TiffImageFile:
    """The first page as Pillow opens it. Raises what Pillow raises, and InputError for layouts that
    are not read or not whole.
    """
    if data.startswith(b"MM\0+"):
        raise InputError(
            Status.UNSUPPORTED_FORMAT,
            "a big-endian BigTIFF, which Touchstone does not read: save it as an ordinary TIFF",
        )
    layout = None
    with contextlib.suppress(TiffError):
        layout = TiffLayout.of(Tiff(data))
        if unread := layout.unread():
            raise InputError(Status.UNSUPPORTED_FORMAT, unread)
        if missing := layout.missing():
            raise InputError(Status.TRUNCATED_IMAGE, missing)
    try:
        return TiffImage(io.BytesIO(data))
    except SyntaxError as error:
        if layout is None or "unknown pixel mode" not in str(error) or max(layout.bits) > 16:
            raise
        raise InputError(
            Status.UNSUPPORTED_FORMAT, f"{layout.describe()}: {_WHAT_TO_DO}"
        ) from error
