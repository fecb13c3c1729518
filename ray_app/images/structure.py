"""What a container says of itself, read from its bytes: size, end, frames. No decoding, bounded work."""

import struct

from ray_app.images.tiff import Tiff, TiffError

MOST_GIF_BLOCKS = 200_000  # 32 MiB of full blocks are 132 000; a GIF of one-byte blocks could hold 16 million
MOST_BOXES = 1000


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
    if format_name == "JPEG":
        return _after(data, b"\xff\xd9", 2)
    if format_name == "PNG":
        return _after(data, b"IEND", 8)
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


def has_trailing_bytes(data: bytes, format_name: str) -> bool:
    """Whether a file that decoded goes on after its end (JPEG, PNG, WebP; the others have no reliable end)."""
    if format_name not in ("JPEG", "PNG", "WEBP"):
        return False
    end = declared_end(data, format_name)
    return end is not None and end < len(data)


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


def _after(data: bytes, marker: bytes, length: int) -> int | None:
    at = data.rfind(marker)
    return None if at < 0 else at + length


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
        return _after(data, b"\xff\xd9", 2)
    return _boxes_end(data) if b"jp2c" in data else len(data) + 8  # the box with the picture has yet to come


def _tiff_end(data: bytes) -> int | None:
    try:
        return Tiff(data).data_end()
    except TiffError:  # most writers put the directory last: it is the first thing that a cut takes away
        return None
