"""Recognise the formats of files by their signatures, and read sizes and tags from headers.

`sniff_format` returns the format of a file, and `describe_unsupported` describes unsupported files
to the user. `read_header_size` returns the width and height of a PNG, GIF, or WebP.
`find_declared_end` returns the position at which a file should end. `Tiff` reads TIFF tags.

Formats are recognised by the bytes alone, never by names or MIME types. Nothing is decoded, and the
work is limited. The reader of tags (TIFF 6.0, BigTIFF, EXIF) exists because Pillow's reader prints
warnings, follows every pointer, and refuses whole images for one bad tag.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

HEIC_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)
AVIF_BRANDS = frozenset({b"avif", b"avis"})
MAX_BRANDS = 32  # Real files list fewer than ten; a hostile ftyp box could list millions.

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_STARTS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "JPEG2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    # Olympus, Panasonic, Fujifilm, Minolta, and Sigma.
    "RAW": (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"\0MRM", b"FOVb"),
}
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # Bytes.
_PNM_START = re.compile(rb"P[1-6]\s[\s\d#]")

_OTHER_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document: extract its images first"),
    (b"%!PS", "a PostScript document"),
    (
        b"PK\x03\x04",
        "a ZIP file, or an office document: touchstone score reads the images in files named .zip",
    ),
    (
        b"\x1f\x8b",
        "a gzip file: unpack it; touchstone score reads the images in tars named .tar.gz",
    ),
    (
        b"\xfd7zXZ\0",
        "an xz file: unpack it; touchstone score reads the images in tars named .tar.xz",
    ),
    (
        b"\x28\xb5\x2f\xfd",
        "a zstd file: unpack it; touchstone score reads the images in tars named .tar.zst",
    ),
    (b"BZh", "a bzip2 file: unpack it; touchstone score reads the images in tars named .tar.bz2"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"\x89PNG", "a PNG with a damaged signature, as by FTP in ASCII mode: fetch it again"),
    (b"\xff\x0a", "a JPEG XL image: convert it to PNG with djxl"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image: convert it to PNG with djxl"),
    (b"8BPS", "a Photoshop document: export it as PNG or TIFF"),
    (b"\0\0\x01\0", "an icon file (ICO)"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"RIFF", "a RIFF file that is not WebP (audio or video)"),
    (b"PAR1", "a Parquet file: touchstone score reads the images in files named .parquet"),
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, not the file itself: run `git lfs pull` in its repository",
    ),
)

# 32 MiB have 132 000 full blocks; a GIF of one-byte blocks could hold 16 million.
MAX_GIF_BLOCKS = 200_000
MAX_BOXES = 1000
EARLY_SIZES = ("PNG", "GIF", "WEBP")  # Formats whose size is at a fixed position.
RELIABLE_ENDS = ("JPEG", "PNG", "WEBP")  # Formats whose declared end shows trailing bytes.
# Formats whose bytes are nearly random. PNG is not listed, because its signature detects FTP.
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

SUBFILE_TYPE, PHOTOMETRIC, ORIENTATION, SUB_DIRECTORIES, DNG_VERSION = 254, 262, 274, 330, 50706
_SENSOR_VALUES = {32803, 34892}  # Photometric: colour filter array, linear raw (DNG 1.7).
_DATA_OFFSETS, _DATA_LENGTHS = (273, 324), (279, 325)  # Strips and tiles.
_INTEGER_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
# Bytes per value, by type.
_TYPE_BYTES = {
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
MAX_PAGES = 1000  # A hostile chain of directories could hold millions.
MAX_REDUCED = 8  # Reduced copies before the image. Writers put one.
MAX_STRIPS = 1_000_000
MAX_TAGS = 4096  # In one directory. No writer has 300, and a BigTIFF could claim millions.


def sniff_format(data: bytes) -> str | None:
    """Return the format that the first bytes of a file show; None if it is not a known format.

    The formats are JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIC, JPEG2000, PNM, and RAW (of a
    camera). The remaining bytes are not checked and may be damaged.
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
    # Two letters alone could be the start of a text. A bitmap also has a header of a known length.
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return "PNM" if _PNM_START.match(data[:32]) else None


def describe_unsupported(data: bytes) -> str:
    """Describe a file that `sniff_format` does not recognise, and what the user can do.

    The description becomes the `detail` of the file's result row.
    """
    return (
        describe_signature(data)
        or _describe_text(data[:1024])
        or f"not a known image format (first bytes {data[:8].hex(' ')})"
    )


def describe_signature(data: bytes) -> str | None:
    """Describe a file that is not a supported image, such as a PDF, and what the user can do.

    The first 262 bytes decide. The result is None if they have no known signature.
    """
    for start, description in _OTHER_SIGNATURES:
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
        "a tar archive: touchstone score reads the images in files named .tar"
        if data[257:262] == b"ustar"
        else None
    )


def _is_raw_tiff(data: bytes) -> bool:
    """Return whether the first image is a preview of sensor data: CR2, DNG, NEF, and similar."""
    if data[8:10] == b"CR":
        return True
    try:
        tiff = Tiff(data)
        return DNG_VERSION in tiff.directory() or (
            tiff.is_reduced_first() and tiff.find_image_page() is None
        )
    except TiffError:
        return False


def _sniff_brands(data: bytes) -> str | None:
    if data[8:12] == b"crx ":
        return "RAW"
    size = min(int.from_bytes(data[:4], "big"), 16 + 4 * MAX_BRANDS)
    brands = [data[8:12], *(data[offset : offset + 4] for offset in range(16, size, 4))]
    if brands[0] not in HEIC_BRANDS - {b"mif1", b"msf1"} and not AVIF_BRANDS.isdisjoint(brands):
        return "AVIF"
    return None if HEIC_BRANDS.isdisjoint(brands) else "HEIC"


def _describe_text(start: bytes) -> str | None:
    if any(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in start):
        return None
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in text:
        return "an SVG drawing, which has no pixels: export it as PNG"
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # The 1024-byte window may cut a character.
            return None
    return "text, not an image"


def are_line_ends_converted(data: bytes) -> bool:
    """Return whether FTP in ASCII mode has damaged coded image data by converting its line ends.

    After such a transfer, every LF follows a CR. Text and periodic data may have such line ends
    without a conversion. Therefore part of the data must also look random and have several CR LF.
    """
    # An intact image has a lone LF among its first few hundred bytes.
    if _LONE_LF.search(data, 0, MAX_SEARCHED_BYTES):
        return False
    end = min(len(data), MAX_SEARCHED_BYTES)
    return any(
        _is_window_converted(data[start : start + _WINDOW_BYTES])
        for start in range(0, end - _WINDOW_BYTES + 1, _WINDOW_BYTES // 2)
    )


def _is_window_converted(window: bytes) -> bool:
    """Return whether nearly random bytes have several CR LF."""
    return (
        window.count(b"\r\n") >= MIN_CONVERTED
        and len(zlib.compress(window, 1)) >= MIN_COMPRESSED_RATIO * _WINDOW_BYTES
    )


def read_header_size(data: bytes, format_name: str) -> tuple[int, int] | None:
    """Return the width and height that the header of a PNG, GIF, or WebP states.

    The result is None for other formats, which have no fixed position of the size, and for a file
    that is too short. Call this to refuse an image that is too large before Pillow opens it. The
    WebP decoder allocates memory for all pixels when it opens a file.
    """
    try:
        if format_name == "PNG":
            return struct.unpack_from(">II", data, 16)
        if format_name == "GIF":
            return struct.unpack_from("<HH", data, 6)
        if format_name == "WEBP":
            return _read_webp_size(data)
    except struct.error:
        pass
    return None


def find_declared_end(data: bytes, format_name: str) -> int | None:
    """Return the offset at which a file ends according to its own structure.

    The result is None if the structure does not state an end. The offset may be beyond the bytes
    present. For JPEG and PNG it is the position of the last end marker in the bytes. So appended
    data is not noticed if it also ends with an end marker.
    """
    if format_name in _END_MARKS:
        mark, length = _END_MARKS[format_name]
        start = data.rfind(mark)
        return None if start < 0 else start + length
    if format_name == "WEBP":
        size = int.from_bytes(data[4:8], "little")
        return 8 + size + (size & 1)
    if format_name == "BMP":
        return int.from_bytes(data[2:6], "little") or None
    if format_name == "JPEG2000":
        return _find_jpeg2000_end(data)
    if format_name in ("AVIF", "HEIC"):
        return _find_boxes_end(data)
    if format_name == "TIFF":
        return _find_tiff_end(data)
    return None


def ends_early(data: bytes, format_name: str) -> bool:
    """Return whether the end of a file is missing.

    Call this for a file that could not be decoded, to distinguish truncated from corrupt files.
    """
    end = find_declared_end(data, format_name)
    return (
        end > len(data) if end is not None else format_name in ("JPEG", "PNG", "TIFF", "JPEG2000")
    )


def count_gif_frames(data: bytes) -> int:
    """Count the frames of a GIF in the bytes present, at least 1.

    At most MAX_GIF_BLOCKS blocks are read, and no frame is decoded.
    """
    return max(1, sum(is_image for is_image, *_ in iter_gif_blocks(data, MAX_GIF_BLOCKS)))


def iter_gif_blocks(data: bytes, max_blocks: int) -> Iterator[tuple[bool, int, int, int | None]]:
    """Yield the images and extensions of a GIF.

    Each has whether it is an image, its label (the type of an extension), the start of its
    sub-blocks, and the position of their terminator. The position is None for the last item, if the
    file ends before the terminator or if `max_blocks` sub-blocks were read.
    """
    blocks = 0
    with suppress(IndexError):  # Raised at the end of the file.
        position = 13 + _gif_table_bytes(data[10])
        while blocks < max_blocks and data[position] in b"!,":
            is_image = data[position : position + 1] == b","
            start = end = position + (11 + _gif_table_bytes(data[position + 9]) if is_image else 2)
            try:
                while blocks < max_blocks and data[end]:
                    end += data[end] + 1
                    blocks += 1
                is_whole = blocks < max_blocks
            except IndexError:
                is_whole = False
            yield is_image, data[position + 1], start, end if is_whole else None
            if not is_whole:
                return
            position = end + 1
            blocks += 1


def count_tiff_pages(data: bytes) -> int:
    """Count the pages of a TIFF. The result is at least 1 and at most `MAX_PAGES`."""
    try:
        return max(Tiff(data).count_pages(), 1)
    except TiffError:
        return 1


def skip_reduced_copy(data: bytes) -> bytes:
    """Return a TIFF that starts with its image if it has a reduced copy of the image before it.

    Scanners write such files. Any other TIFF is returned unchanged.
    """
    with suppress(TiffError):
        tiff = Tiff(data)
        if tiff.is_reduced_first() and (offset := tiff.find_image_page()) is not None:
            return tiff.start_with(offset)
    return data


def _gif_table_bytes(flags: int) -> int:
    """Return the length of a GIF's colour table, by the flags of its screen or image."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _read_webp_size(data: bytes) -> tuple[int, int] | None:
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


def _find_boxes_end(data: bytes) -> int | None:
    position = 0
    for _ in range(MAX_BOXES):
        if position >= len(data):
            break
        if position + 8 > len(data):
            return position + 8
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:  # 0 means "to the end of the file"; 1 to 7 are impossible.
            return None
        position += size
    return position


def _find_jpeg2000_end(data: bytes) -> int | None:
    if data.startswith(b"\xff\x4f"):
        return find_declared_end(data, "JPEG")  # It ends with the same marker.
    # Without its image box, the file must continue.
    return _find_boxes_end(data) if b"jp2c" in data else len(data) + 8


def _find_tiff_end(data: bytes) -> int | None:
    try:
        return Tiff(data).find_data_end()
    # Most writers put the directory last, so that a cut file lacks it.
    except TiffError:
        return None


class TiffError(ValueError):
    """The error for a TIFF whose tags cannot be read."""


class TiffEntry(NamedTuple):
    """The value of one TIFF tag.

    Attributes:
        inline: The last field of the tag, of 4 bytes (8 in BigTIFF). It has the values if they fit
            into it, and otherwise their offset in the file.
    """

    kind: int
    value_count: int
    inline: bytes


class Tiff:
    """Reads the header and directories of a TIFF or BigTIFF, or of an EXIF block.

    All methods may raise TiffError.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
        magic = self._unpack("H", 2) if self._order else 0
        if magic not in (42, 43):
            raise TiffError("not a TIFF header")
        self._is_big = magic == 43
        self._link = "Q" if self._is_big else "I"
        self._first = self._unpack(self._link, 8 if self._is_big else 4)
        self._entry = struct.Struct(self._order + ("HHQ8s" if self._is_big else "HHI4s"))

    def directory(self, offset: int | None = None) -> dict[int, TiffEntry]:
        """Return the tags of the first page, or of the directory at `offset`, by number."""
        start, end = self._span(self._first if offset is None else offset)
        entries = self._entry.iter_unpack(self._data[start:end])
        return {tag: TiffEntry(kind, count, inline) for tag, kind, count, inline in entries}

    def count_pages(self) -> int:
        """Count the pages, which are a chain of directories. The result is at most MAX_PAGES.

        The count ends where the chain is damaged or returns to an earlier directory.
        """
        visited: set[int] = set()
        offset = self._first
        while offset and offset not in visited and len(visited) < MAX_PAGES:
            try:
                next_offset = self._find_next(offset)
            except TiffError:
                break
            visited.add(offset)
            offset = next_offset
        return len(visited)

    def is_reduced_first(self) -> bool:
        """Return whether the first page is a reduced copy of another image in the file."""
        return self._is_reduced(self.directory())

    def find_image_page(self) -> int | None:
        """Return the offset of the first page that is not a reduced copy.

        It may be past the end of a truncated file. The result is None if there is no such page, as
        in a camera's raw file, which has sensor values on a page or in a sub-directory.
        """
        if SUB_DIRECTORIES in self.directory():
            return None
        offset = self._first
        for _ in range(MAX_REDUCED + 1):
            try:
                tags = self.directory(offset)
            except TiffError:
                return offset
            if not self._is_reduced(tags):
                colours = self.read_integers(tags[PHOTOMETRIC]) if PHOTOMETRIC in tags else ()
                return offset if colours and _SENSOR_VALUES.isdisjoint(colours) else None
            offset = self._find_next(offset)
            if not offset:
                break
        return None

    def start_with(self, offset: int) -> bytes:
        """Return the file with the page at `offset` as its first page."""
        start = 8 if self._is_big else 4
        link = struct.pack(self._order + self._link, offset)
        return b"".join((self._data[:start], link, self._data[start + len(link) :]))

    def _is_reduced(self, tags: Mapping[int, TiffEntry]) -> bool:
        kind = self.read_integers(tags[SUBFILE_TYPE]) if SUBFILE_TYPE in tags else ()
        return bool(kind and kind[0] & 1)

    def _find_next(self, offset: int) -> int:
        """Return the offset of the directory after the one at `offset`, 0 if there is none."""
        _, end = self._span(offset)
        # Many writers leave out the link after the last directory.
        has_link = end + struct.calcsize(self._link) <= len(self._data)
        return self._unpack(self._link, end) if has_link else 0

    def read_integers(self, entry: TiffEntry) -> tuple[int, ...]:
        """Return the values of an integer tag. The result is empty for a tag of another type."""
        code = _INTEGER_CODES.get(entry.kind)
        if code is None or entry.value_count > MAX_STRIPS:
            return ()
        layout = struct.Struct(f"{self._order}{entry.value_count}{code}")
        if layout.size <= len(entry.inline):
            return layout.unpack_from(entry.inline)
        offset = self._value_offset(entry)
        if offset + layout.size > len(self._data):
            raise TiffError("the values of a tag are outside the file")
        return layout.unpack_from(self._data, offset)

    def read_bytes(self, entry: TiffEntry, max_bytes: int) -> bytes:
        """Return up to `max_bytes` bytes of a tag's value, as far as they are in the file."""
        size = min(_TYPE_BYTES.get(entry.kind, 0) * entry.value_count, max_bytes)
        if not self._is_external(entry):
            return entry.inline[:size]
        offset = self._value_offset(entry)
        return self._data[offset : offset + size]

    def find_data_end(self) -> int:
        """Return the offset at which the data of the first page ends.

        The data are the page's strips, its tiles, and the values of its tags.
        """
        tags = self.directory()
        stops = [
            self._value_offset(entry) + _TYPE_BYTES.get(entry.kind, 0) * entry.value_count
            for entry in tags.values()
            if self._is_external(entry)
        ]
        for offsets, lengths in zip(_DATA_OFFSETS, _DATA_LENGTHS, strict=True):
            if offsets in tags and lengths in tags:
                pairs = zip(
                    self.read_integers(tags[offsets]),
                    self.read_integers(tags[lengths]),
                    strict=False,
                )
                stops += [offset + length for offset, length in pairs]
        return max(stops, default=0)

    def _span(self, offset: int) -> tuple[int, int]:
        """Return the start and the end of a directory's entries."""
        code = "Q" if self._is_big else "H"
        start = offset + struct.calcsize(code)
        tags = self._unpack(code, offset)
        end = start + tags * self._entry.size
        if tags > MAX_TAGS:
            raise TiffError(f"a directory has {tags} tags, more than {MAX_TAGS}")
        if end > len(self._data):
            raise TiffError("a directory extends past the end of the file")
        return start, end

    def _is_external(self, entry: TiffEntry) -> bool:
        return _TYPE_BYTES.get(entry.kind, 0) * entry.value_count > len(entry.inline)

    def _value_offset(self, entry: TiffEntry) -> int:
        return int.from_bytes(entry.inline, "little" if self._order == "<" else "big")

    def _unpack(self, code: str, offset: int) -> int:
        try:
            value: int = struct.unpack_from(self._order + code, self._data, offset)[0]
        except (struct.error, OverflowError):
            raise TiffError("a pointer points past the end of the file") from None
        return value


def read_exif_orientation(exif: bytes) -> int:
    """Return the orientation that an EXIF block states, from 1 to 8.

    The result is 1 if the block states no orientation, or states 0 (unknown). The block may have
    its prefix. Raises TiffError if the block cannot be read, or the orientation is not a number
    from 0 to 8.
    """
    # Some writers write the prefix twice.
    tiff = Tiff(exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0"))
    entry = tiff.directory().get(ORIENTATION)
    if entry is None:
        return 1
    values = tiff.read_integers(entry)
    if not values or not 0 <= values[0] <= 8:
        raise TiffError("an orientation outside 1 to 8")
    return values[0] or 1
