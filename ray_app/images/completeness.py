"""Whether all of a picture's coded data was there, asked after a decoder that fills what is missing without a word.

What no check sees: zeros in place of uncompressed samples (BMP, TIFF); other bytes in place of lossy WebP, AVIF and HEIC, and of what
TIFF packs without a checksum; a JPEG of arithmetic coding that ends early, whose decoder has to read zeros past the end.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image
from PIL.WebPImagePlugin import WebPImageFile

from ray_app.errors import InputError, Status
from ray_app.images.provenance.boxes import coded_items

ZERO_TAIL = 32  # bytes: AV1 and HEVC end in a bit that is set, and a few bytes of padding at most
UNREAD_TAIL = 16  # bytes: libwebp asks for up to seven more than it needs
MOST_INFLATED = 1 << 20  # bytes at a time
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's colour type
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7: first x and y, steps


def check(image: Image.Image, data: bytes, format_name: str) -> None:
    """Nothing for a decoded image whose data was all there. Raises InputError, TRUNCATED_IMAGE or CORRUPT_IMAGE."""
    if format_name == "PNG":
        _check_png(image, data)
    elif format_name == "WEBP":
        _check_webp(data)
    elif format_name in ("AVIF", "HEIC"):
        _check_items(data)


def _check_png(image: Image.Image, data: bytes) -> None:
    """Pillow compares no checksum of pixel data, and takes a stream that ends before the last row for a whole picture."""
    parts, at = [], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            parts.append(memoryview(data)[at + 8 : end])
            if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
                raise InputError(Status.CORRUPT_IMAGE, f"the checksum of pixel data at byte {at} does not match")
        elif parts:
            break
        at = end + 4
    # What was not decoded is zero: the last row, or the row before it where the last pass of an interlaced picture is missing.
    bottom = np.asarray(image.crop((0, max(image.height - 2, 0), image.width, image.height)))
    if not bottom.reshape(len(bottom), -1).any(axis=1).all():
        _check_rows(parts, _scanline_bytes(data))


def _check_rows(parts: list[memoryview], needed: int) -> None:
    inflater, there = zlib.decompressobj(), 0
    for part in parts:
        rest: bytes | memoryview = part
        while rest and there < needed:
            there += len(inflater.decompress(rest, MOST_INFLATED))
            rest = inflater.unconsumed_tail
    if there < needed:
        raise InputError(Status.TRUNCATED_IMAGE, f"{there} of {needed} bytes of scanlines present")


def _scanline_bytes(data: bytes) -> int:
    """Of a PNG's picture before compression, with the filter byte of each line (ISO 15948, §7 and §8)."""
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    total = 0
    for left, top, across, down in _PASSES if data[28] else ((0, 0, 1, 1),):
        columns, rows = max(-(-(width - left) // across), 0), max(-(-(height - top) // down), 0)
        total += rows * (1 + -(-columns * depth * _SAMPLES[colour] // 8)) if columns else 0
    return total


def _check_webp(data: bytes) -> None:
    """Zeros decode as flat colour: where coded data ends in zeros and decodes without the last of them, they stand for what is missing."""
    at = 12
    while (kind := data[at : at + 4]) not in (b"VP8 ", b"VP8L") and kind:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 24 if kind == b"ANMF" else 8 + size + (size & 1)
    coded = data[at + 8 : at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")]
    if not coded.endswith(bytes(2 * UNREAD_TAIL)):
        return
    shorter = coded[:-UNREAD_TAIL] + b"\0" * (len(coded) % 2)
    chunk = kind + struct.pack("<I", len(coded) - UNREAD_TAIL) + shorter
    try:
        WebPImageFile(io.BytesIO(b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk)).load()
    except (OSError, EOFError, SyntaxError, ValueError):
        return  # it needs them all
    raise InputError(Status.TRUNCATED_IMAGE, f"coded data is missing: filled with zeros up to byte {at + 8 + len(coded)}")


def _check_items(data: bytes) -> None:
    for start, size in coded_items(data):
        coded = data[start : start + size]
        if coded.endswith(bytes(ZERO_TAIL)):
            there = start + len(coded.rstrip(b"\0"))
            raise InputError(Status.TRUNCATED_IMAGE, f"coded data is missing: filled with zeros from byte {there} to {start + size}")
