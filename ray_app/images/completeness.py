"""Whether all coded data of a WebP, AVIF or HEIC was there, asked after a decoder that fills what is missing without a word.

What no check sees: zeros in place of uncompressed samples (BMP, TIFF); other bytes in place of lossy WebP, AVIF and HEIC, and of what
TIFF packs without a checksum; a JPEG of arithmetic coding that ends early, whose decoder has to read zeros past the end.
"""

import io
import struct

from ray_app.errors import InputError, Status
from ray_app.images.further_formats import open_webp
from ray_app.images.provenance.boxes import coded_items

MOST_CHUNKS = 1000  # before the picture; a WebP has three
ZERO_TAIL = 32  # bytes: AV1 and HEVC end in a bit that is set, and a few bytes of padding at most
UNREAD_TAIL = 16  # bytes: libwebp asks for up to seven more than it needs


def check(data: bytes, format_name: str) -> None:
    """Nothing for the bytes of a decoded image that were all there. Raises InputError, TRUNCATED_IMAGE."""
    if format_name == "WEBP":
        _check_webp(data)
    elif format_name in ("AVIF", "HEIC"):
        _check_items(data)


def _check_webp(data: bytes) -> None:
    """Zeros decode as flat colour: where coded data ends in zeros and decodes without the last of them, they stand for what is missing."""
    at, kind, size = 12, b"", 0
    for _ in range(MOST_CHUNKS):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            break
        at += 24 if kind == b"ANMF" else 8 + size + (size & 1)  # the first frame of an animation lies within its chunk
    coded = data[at + 8 : at + 8 + size]
    if not coded.endswith(bytes(2 * UNREAD_TAIL)):
        return
    shorter = coded[:-UNREAD_TAIL] + b"\0" * (len(coded) % 2)
    chunk = kind + struct.pack("<I", len(coded) - UNREAD_TAIL) + shorter
    try:
        open_webp(io.BytesIO(b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk)).load()
    except (OSError, EOFError, SyntaxError, ValueError):
        return  # it needs them all
    raise InputError(Status.TRUNCATED_IMAGE, f"coded data is missing: filled with zeros up to byte {at + 8 + len(coded)}")


def _check_items(data: bytes) -> None:
    for start, size in coded_items(data):
        coded = data[start : start + size]
        if coded.endswith(bytes(ZERO_TAIL)):
            there = start + len(coded.rstrip(b"\0"))
            raise InputError(Status.TRUNCATED_IMAGE, f"coded data is missing: filled with zeros from byte {there} to {start + size}")
