"""File signatures and headers: `sniff_format`, `describe_unsupported`, `header_size`,
`declared_end`, frame counts, and `Tiff`, a reader of TIFF tags.

By the bytes alone, never by names or MIME types; nothing is decoded, and work is bounded. The
reader of tags (TIFF 6.0, BigTIFF, EXIF) is our own because Pillow's prints warnings, follows every
pointer and refuses whole images for one bad tag.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

HEIC_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)
AVIF_BRANDS = frozenset({b"avif", b"avis"})
MOST_BRANDS = 32  # real files list fewer than ten; a hostile ftyp box could list millions

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_STARTS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "JPEG2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    # of Olympus, Panasonic, Fujifilm, Minolta, Sigma
    "RAW": (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"\0MRM", b"FOVb"),
}
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes
_PNM_START = re.compile(rb"P[1-6]\s[\s\d#]")

_ELSE: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document: extract its images first"),
    (b"%!PS", "a PostScript document"),
    (b"PK\x03\x04", "a ZIP file, or an office document: name it .zip to score the images in it"),
    (b"\x1f\x8b", "a gzip file: unpack it, or if it is a tar, name it .tar.gz"),
    (b"\xfd7zXZ\0", "an xz file: unpack it, or if it is a tar, name it .tar.xz"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: unpack it, or if it is a tar, name it .tar.zst"),
    (b"BZh", "a bzip2 file: unpack it, or if it is a tar, name it .tar.bz2"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"\x89PNG", "a PNG with a damaged signature, as by FTP in ASCII mode: fetch it again"),
    (b"\xff\x0a", "a JPEG XL image: convert it to PNG with djxl"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image: convert it to PNG with djxl"),
    (b"8BPS", "a Photoshop document: export it as PNG or TIFF"),
    (b"\0\0\x01\0", "an icon file (ICO)"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"RIFF", "a RIFF file that is not WebP (audio or video)"),
    (b"PAR1", "a Parquet file: name it .parquet to score the images in it"),
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, not the file itself: run `git lfs pull` in its repository",
    ),
)

# 32 MiB of full blocks are 132 000; a GIF of one-byte blocks could hold 16 million
MOST_GIF_BLOCKS = 200_000
MOST_BOXES = 1000
EARLY_SIZES = ("PNG", "GIF", "WEBP")  # formats whose size stands at a fixed place
SURE_ENDS = ("JPEG", "PNG", "WEBP")  # formats whose declared end shows trailing bytes
# Their bytes are nearly random. PNG has a signature against FTP.
CODED = ("JPEG", "WEBP", "GIF", "AVIF", "HEIC", "JPEG2000")
MAX_SEARCHED_BYTES = 2**20
_LONE_LF = re.compile(rb"\n(?<!\r\n)")
# A window of random bytes has 8 LF. By chance, one in a billion has four CR LF and no other LF.
# Windows of text and of periodic coded data compress to at most 80 % of their size; each of 200
# converted photographs has a window that compresses to at least 95 %.
_WINDOW_BYTES = 2048
MIN_CONVERTED = 4
MIN_COMPRESSED_RATIO = 0.9
_END_MARKS = {"JPEG": (b"\xff\xd9", 2), "PNG": (b"IEND", 8)}

ORIENTATION, SUBFILE_TYPE, DNG_VERSION = 274, 254, 50706
_DATA_OFFSETS, _DATA_LENGTHS = (273, 324), (279, 325)  # strips, tiles
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
# bytes per value, by kind
_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
MOST_PAGES = 1000  # a hostile chain of directories could hold millions
MOST_STRIPS = 1_000_000
MOST_TAGS = 4096  # of one directory: no writer has 300, and a BigTIFF could claim millions


def sniff_format(data: bytes) -> str | None:
    """JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIC, JPEG2000, PNM or RAW (of a camera); None where
    it is none of these.

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
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return "PNM" if _PNM_START.match(data[:32]) else None


def describe_unsupported(data: bytes) -> str:
    """Return text for the `detail` of bytes that `sniff_format` does not know: what they are and
    what to do.
    """
    return (
        describe_signature(data)
        or _describe_text(data[:1024])
        or f"not a known image format (first bytes {data[:8].hex(' ')})"
    )


def describe_signature(data: bytes) -> str | None:
    """Return what a file is that is not an image, and what to do, by its first 262 bytes; None if
    they have no known signature.
    """
    for start, description in _ELSE:
        if data.startswith(start):
            return description
    if data[4:8] == b"ftyp":
        return "a video or audio file (MP4 family)"
    if data[4:8] == b"jumb":
        return "a C2PA manifest (sidecar): it is read with the image of the same name next to it"
    if (
        data.removeprefix(b"\xef\xbb\xbf")
        .lstrip()[:14]
        .lower()
        .startswith((b"<!doctype html", b"<html"))
    ):
        return "an HTML page, perhaps an error page saved in place of the file"
    return (
        "a tar archive: name it .tar to score the images in it"
        if data[257:262] == b"ustar"
        else None
    )


def _is_raw_tiff(data: bytes) -> bool:
    """Whether its first picture is a preview of what the sensor saw: CR2, which says so, DNG, NEF
    and kin.
    """
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
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # a character cut by the 1024-byte window is still text
            return None
    return "text, not an image"


def are_line_ends_converted(data: bytes) -> bool:
    """Return whether every LF of coded data follows a CR, as after FTP in ASCII mode. Text and
    periodic data may have such line ends.
    """
    # An intact image has one among its first few hundred bytes.
    if _LONE_LF.search(data, 0, MAX_SEARCHED_BYTES):
        return False
    end = min(len(data), MAX_SEARCHED_BYTES)
    return any(
        _is_window_converted(data[at : at + _WINDOW_BYTES])
        for at in range(0, end - _WINDOW_BYTES + 1, _WINDOW_BYTES // 2)
    )


def _is_window_converted(window: bytes) -> bool:
    """Return whether nearly random bytes have several CR LF."""
    return (
        window.count(b"\r\n") >= MIN_CONVERTED
        and len(zlib.compress(window, 1)) >= MIN_COMPRESSED_RATIO * _WINDOW_BYTES
    )


def header_size(data: bytes, format_name: str) -> tuple[int, int] | None:
    """Width and height where they stand at a fixed place; None elsewhere or if the file is too
    short.

    Asked before Pillow opens a file: libwebp allocates its canvas at opening, and a refusal can
    then name the size.
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
    """Offset at which the file says that it ends, possibly past the bytes present; None where it
    does not say.

    For JPEG and PNG it is the last end marker in the bytes, so that data appended with a marker of
    its own at its very end is not seen.
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
    """Whether the file lacks its end: for files that did not decode, to distinguish truncated from
    corrupt.
    """
    end = declared_end(data, format_name)
    return (
        end > len(data) if end is not None else format_name in ("JPEG", "PNG", "TIFF", "JPEG2000")
    )


def count_gif_frames(data: bytes) -> int:
    """Frames in the bytes present, at least 1, counted within MOST_GIF_BLOCKS blocks; no frame is
    decoded.
    """
    return max(1, sum(is_image for is_image, *_ in gif_blocks(data, MOST_GIF_BLOCKS)))


def gif_blocks(data: bytes, most: int) -> Iterator[tuple[bool, int, int, int | None]]:
    """The images and extensions of a GIF: whether it is an image, an extension's label, where its
    sub-blocks start, and their terminator.

    No terminator (None) for the last, where the file ends before it or there were `most`
    sub-blocks.
    """
    blocks = 0
    with suppress(IndexError):  # the file ends there
        at = 13 + _gif_table_bytes(data[10])
        while blocks < most and data[at] in b"!,":
            is_image = data[at : at + 1] == b","
            start = end = at + (11 + _gif_table_bytes(data[at + 9]) if is_image else 2)
            try:
                while blocks < most and data[end]:
                    end += data[end] + 1
                    blocks += 1
                is_whole = blocks < most
            except IndexError:
                is_whole = False
            yield is_image, data[at + 1], start, end if is_whole else None
            if not is_whole:
                return
            at = end + 1
            blocks += 1


def count_tiff_pages(data: bytes) -> int:
    """Pages of a TIFF, at least 1, at most `MOST_PAGES`."""
    try:
        return max(Tiff(data).count_pages(), 1)
    except TiffError:
        return 1


def _gif_table_bytes(flags: int) -> int:
    """How long a GIF's colour table is, by the flags of its screen or image."""
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
    # the box with the picture has yet to come
    return _boxes_end(data) if b"jp2c" in data else len(data) + 8


def _tiff_end(data: bytes) -> int | None:
    try:
        return Tiff(data).data_end()
    # most writers put the directory last: it is the first thing that a cut takes away
    except TiffError:
        return None


class TiffError(ValueError):
    """The tags cannot be read."""


class TiffEntry(NamedTuple):
    """One tag's value: its kind, how many, and the inline bytes (the value itself, or the offset
    where it stands).
    """

    kind: int
    number: int
    inline: bytes


class Tiff:
    """A TIFF header and its directories, classic or BigTIFF. Raises TiffError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
        magic = self._unpack("H", 2) if self._order else 0
        if magic not in (42, 43):
            raise TiffError("no TIFF header")
        self._is_big = magic == 43
        self._link = "Q" if self._is_big else "I"
        self._first = self._unpack(self._link, 8 if self._is_big else 4)
        self._entry = struct.Struct(self._order + ("HHQ8s" if self._is_big else "HHI4s"))

    def directory(self, offset: int | None = None) -> dict[int, TiffEntry]:
        """The tags of the first page, or of the directory that stands at `offset`."""
        start, end = self._span(self._first if offset is None else offset)
        found = self._entry.iter_unpack(self._data[start:end])
        return {tag: TiffEntry(kind, number, inline) for tag, kind, number, inline in found}

    def count_pages(self) -> int:
        """Directories in the chain, at most MOST_PAGES; a chain that loops or breaks ends there."""
        seen: set[int] = set()
        offset = self._first
        while offset and offset not in seen and len(seen) < MOST_PAGES:
            try:
                _, end = self._span(offset)
            except TiffError:
                break
            seen.add(offset)
            # Many writers leave out the link after the last directory.
            offset = (
                self._unpack(self._link, end)
                if end + struct.calcsize(self._link) <= len(self._data)
                else 0
            )
        return len(seen)

    def integers(self, entry: TiffEntry) -> tuple[int, ...]:
        """The values of an integer tag; empty for tags of another kind."""
        code = _INTEGERS.get(entry.kind)
        if code is None or entry.number > MOST_STRIPS:
            return ()
        form = struct.Struct(f"{self._order}{entry.number}{code}")
        if form.size <= len(entry.inline):
            return form.unpack_from(entry.inline)
        at = self._at(entry)
        if at + form.size > len(self._data):
            raise TiffError("a tag's values lie outside the file")
        return form.unpack_from(self._data, at)

    def octets(self, entry: TiffEntry, most: int) -> bytes:
        """The first `most` bytes of a tag's value, as far as they are there."""
        size = min(_SIZES.get(entry.kind, 0) * entry.number, most)
        if not self._is_elsewhere(entry):
            return entry.inline[:size]
        at = self._at(entry)
        return self._data[at : at + size]

    def data_end(self) -> int:
        """The furthest byte that the first page refers to: of its strips, its tiles and the values
        of its tags.
        """
        tags = self.directory()
        ends = [
            self._at(entry) + _SIZES.get(entry.kind, 0) * entry.number
            for entry in tags.values()
            if self._is_elsewhere(entry)
        ]
        for offsets, lengths in zip(_DATA_OFFSETS, _DATA_LENGTHS, strict=True):
            if offsets in tags and lengths in tags:
                pairs = zip(
                    self.integers(tags[offsets]), self.integers(tags[lengths]), strict=False
                )
                ends += [offset + length for offset, length in pairs]
        return max(ends, default=0)

    def _span(self, offset: int) -> tuple[int, int]:
        """Where a directory's entries start and end."""
        code = "Q" if self._is_big else "H"
        start = offset + struct.calcsize(code)
        tags = self._unpack(code, offset)
        end = start + tags * self._entry.size
        if tags > MOST_TAGS:
            raise TiffError("a directory of too many tags")
        if end > len(self._data):
            raise TiffError("a directory runs past the end")
        return start, end

    def _is_elsewhere(self, entry: TiffEntry) -> bool:
        return _SIZES.get(entry.kind, 0) * entry.number > len(entry.inline)

    def _at(self, entry: TiffEntry) -> int:
        return int.from_bytes(entry.inline, "little" if self._order == "<" else "big")

    def _unpack(self, code: str, at: int) -> int:
        try:
            value: int = struct.unpack_from(self._order + code, self._data, at)[0]
        except (struct.error, OverflowError):
            raise TiffError("a pointer leads past the end") from None
        return value


def exif_orientation(exif: bytes) -> int:
    """The orientation that an EXIF block states, 1 to 8; 1 where it states none or 0 (unknown).
    Raises TiffError.
    """
    # some writers put the prefix twice
    tiff = Tiff(exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0"))
    entry = tiff.directory().get(ORIENTATION)
    if entry is None:
        return 1
    values = tiff.integers(entry)
    if not values or not 0 <= values[0] <= 8:
        raise TiffError("an orientation outside 1 to 8")
    return values[0] or 1


def is_camera_raw(tiff: Tiff) -> bool:
    """Whether the first picture is a preview of sensor data (DNG, NEF and kin): scoring it would
    score the wrong image.
    """
    tags = tiff.directory()
    subfile = tiff.integers(tags[SUBFILE_TYPE]) if SUBFILE_TYPE in tags else ()
    return DNG_VERSION in tags or bool(subfile and subfile[0] & 1)
