"""Which image format bytes are in, by the bytes alone, and what they are if they are none. Names and MIME types are never asked.

What a container says of itself, read from its bytes: size, end, frames. No decoding, bounded work.

How strongly a JPEG was compressed, from its quantization tables. Knows numbers; reads no file.
"""

import re
import struct
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise

from ray_app.images.jpeg_xl import CODESTREAM, CONTAINER
from ray_app.images.tiff import Tiff, TiffError, is_camera_raw

HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})
MOST_BRANDS = 32  # real files list fewer than ten; a hostile ftyp box could list millions

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_STARTS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "JPEG2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "JXL": (CODESTREAM, CONTAINER),
    "RAW": (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"\0MRM", b"FOVb"),  # of Olympus, Panasonic, Fujifilm, Minolta, Sigma
}
_PNM_START = re.compile(rb"P[1-6]\s[\s\d#]")

_ELSE: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document: extract its images first"),
    (b"%!PS", "a PostScript document"),
    (b"PK\x03\x04", "a ZIP file: score it as an archive source, or it is an office document"),
    (b"\x1f\x8b", "a gzip file: score it as an archive source"),
    (b"\xfd7zXZ\0", "an xz file: score it as an archive source if it is a tar"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: score it as an archive source if it is a tar"),
    (b"BZh", "a bzip2 file: score it as an archive source if it is a tar"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"8BPS", "a Photoshop document: export it as PNG or TIFF"),
    (b"\0\0\x01\0", "an icon file (ICO)"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"RIFF", "a RIFF file that is not WebP (audio or video)"),
    (b"PAR1", "a Parquet file: score it as an archive source"),
)


def sniff_format(data: bytes) -> str | None:
    """JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIC, JPEG2000, JXL, PNM or RAW (of a camera); None where it is none of these.

    Says nothing of whether the rest is sound.
    """
    for format_name, starts in _STARTS.items():
        if data.startswith(starts):
            return format_name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _sniff_brands(data)
    if data.startswith(_TIFF_STARTS):
        return "RAW" if _is_raw_tiff(data) else "TIFF"
    # Two letters alone would make text an image: a bitmap also has a header of a known length.
    if data.startswith(b"BM") and data[14:18] in (
        b"\x0c\0\0\0",
        b"\x28\0\0\0",
        b"\x34\0\0\0",
        b"\x38\0\0\0",
        b"\x40\0\0\0",
        b"\x6c\0\0\0",
        b"\x7c\0\0\0",
    ):
        return "BMP"
    return "PNM" if _PNM_START.match(data[:32]) else None


def describe_unsupported(data: bytes) -> str:
    """Words for the `detail` of bytes that `sniff_format` does not know: what they are and what to do."""
    for start, words in _ELSE:
        if data.startswith(start):
            return words
    if data[4:8] == b"ftyp":
        return "a video or audio file (MP4 family)"
    if data[257:262] == b"ustar":
        return "a tar archive: score it as an archive source"
    return _describe_text(data[:1024]) or f"no known image format (first bytes {data[:8].hex(' ')})"


def _is_raw_tiff(data: bytes) -> bool:
    """Whether its first picture is a preview of what the sensor saw: CR2, which says so, DNG, NEF and kin."""
    if data[8:10] == b"CR":
        return True
    try:
        return is_camera_raw(Tiff(data))
    except TiffError:
        return False


def _sniff_brands(data: bytes) -> str | None:
    if data[8:12] == b"crx ":
        return "RAW"
    size = min(int.from_bytes(data[:4], "big"), 16 + 4 * MOST_BRANDS)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, size, 4))]
    if brands[0] not in HEIC_BRANDS - {b"mif1", b"msf1"} and not AVIF_BRANDS.isdisjoint(brands):
        return "AVIF"
    return None if HEIC_BRANDS.isdisjoint(brands) else "HEIC"


def _describe_text(start: bytes) -> str | None:
    if any(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in start):
        return None
    words = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in words:
        return "an SVG drawing, which has no pixels: export it as PNG"
    if words.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, perhaps an error page saved in an image's place"
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # a character cut by the 1024-byte window is still text
            return None
    return "text, not an image"


MOST_GIF_BLOCKS = 200_000  # 32 MiB of full blocks are 132 000; a GIF of one-byte blocks could hold 16 million
MOST_BOXES = 1000
EARLY_SIZES = ("PNG", "GIF", "WEBP")  # formats whose size stands at a fixed place
SURE_ENDS = ("JPEG", "PNG", "WEBP")  # formats whose end tells that something follows it
_END_MARKS = {"JPEG": (b"\xff\xd9", 2), "PNG": (b"IEND", 8)}


def header_size(data: bytes, format_name: str) -> tuple[int, int] | None:
    """Width and height where they stand at a fixed place; None elsewhere or if the file is too short.

    Asked before Pillow opens a file: libwebp allocates its canvas at opening, and a refusal can then name the size.
    """
    try:
        if format_name == "PNG":
            return struct.unpack_from(">II", data, 16)
        if format_name == "GIF":
            return struct.unpack_from("<HH", data, 6)
        if format_name == "WEBP":
            return _webp_size(data)
    except struct.error:
        pass
    return None


def declared_end(data: bytes, format_name: str) -> int | None:
    """Offset at which the file says that it ends, possibly past the bytes present; None where it does not say.

    For JPEG and PNG it is the last end marker in the bytes, so that data appended with a marker of its own at its very end is not seen.
    """
    if format_name in _END_MARKS:
        mark, length = _END_MARKS[format_name]
        at = data.rfind(mark)
        return None if at < 0 else at + length
    if format_name == "WEBP":
        size = int.from_bytes(data[4:8], "little")
        return 8 + size + (size & 1)
    if format_name == "BMP":
        return int.from_bytes(data[2:6], "little") or None
    if format_name == "JPEG2000":
        return _jpeg2000_end(data)
    if format_name in ("AVIF", "HEIC"):
        return _boxes_end(data)
    if format_name == "TIFF":
        return _tiff_end(data)
    return None


def ends_early(data: bytes, format_name: str) -> bool:
    """Whether the file lacks its end: asked only of files that did not decode, to tell truncated from corrupt."""
    end = declared_end(data, format_name)
    return end > len(data) if end is not None else format_name in ("JPEG", "PNG", "TIFF", "JPEG2000")


def count_gif_frames(data: bytes) -> int:
    """Frames in the bytes present, at least 1, counted within MOST_GIF_BLOCKS blocks; no frame is decoded."""
    frames = blocks = 0
    try:
        at = 13 + _gif_table_bytes(data[10])
        while blocks < MOST_GIF_BLOCKS:
            if data[at] == 0x2C:  # an image
                frames += 1
                at += 11 + _gif_table_bytes(data[at + 9])
            elif data[at] == 0x21:  # an extension
                at += 2
            else:
                break
            while blocks < MOST_GIF_BLOCKS and (length := data[at]):
                at += length + 1
                blocks += 1
            at += 1
            blocks += 1
    except IndexError:
        pass
    return max(frames, 1)


def count_tiff_pages(data: bytes) -> int:
    """Pages of a TIFF, at least 1, at most `tiff.MOST_PAGES`."""
    try:
        return max(Tiff(data).count_pages(), 1)
    except TiffError:
        return 1


def _gif_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return None


def _boxes_end(data: bytes) -> int | None:
    at = 0
    for _ in range(MOST_BOXES):
        if at >= len(data):
            break
        if at + 8 > len(data):
            return at + 8
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0 means "to the end of the file"; 1 to 7 are impossible
            return None
        at += size
    return at


def _jpeg2000_end(data: bytes) -> int | None:
    if data.startswith(b"\xff\x4f"):
        return declared_end(data, "JPEG")  # it ends with the same marker
    return _boxes_end(data) if b"jp2c" in data else len(data) + 8  # the box with the picture has yet to come


def _tiff_end(data: bytes) -> int | None:
    try:
        return Tiff(data).data_end()
    except TiffError:  # most writers put the directory last: it is the first thing that a cut takes away
        return None


# The example table of luminance (ITU-T T.81, Annex K.1), which most encoders scale by a quality.
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98,
    112, 100, 103, 99,
)  # fmt: skip


def jpeg_quality(tables: Mapping[int, Sequence[int]]) -> int | None:
    """The quality 1 … 100 at which libjpeg would write the table of luminance nearest to a file's; None where it has none.

    Nearest by the sum of its 64 steps, which falls as quality rises. Encoders with tables of their own (Photoshop, phones) get the
    quality that removes about as much. `tables`: by number, as Pillow gives them; luminance is number 0.
    """
    luminance = tables.get(0)
    if luminance is None or len(luminance) != len(_LUMINANCE):
        return None
    return _QUALITIES[bisect_left(_MIDDLES, -sum(luminance))]


def _scaled_sum(quality: int) -> int:
    """The sum of the table that libjpeg makes for a quality (jcparam.c): percentages of the example, steps between 1 and 255."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return sum(min(255, max(1, (step * percent + 50) // 100)) for step in _LUMINANCE)


# The lowest quality of each sum; and where the next one is nearer, of numbers that rise.
_LOWEST = {_scaled_sum(quality): quality for quality in range(100, 0, -1)}
_QUALITIES = tuple(sorted(_LOWEST.values()))
_MIDDLES = tuple(-(_scaled_sum(low) + _scaled_sum(high)) / 2 for low, high in pairwise(_QUALITIES))
