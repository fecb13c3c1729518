"""Which image format bytes are in, by the bytes alone, and what they are if they are none. Names and MIME types are never asked."""

import re

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
