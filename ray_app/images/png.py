"""PNG → pixels: `open_header`, and `check`, which refuses what Pillow takes for a whole picture although rows are missing."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from ray_app.errors import InputError, Status

MOST_INFLATED = 1 << 20  # bytes at a time
_UNWRITTEN = (145, 61, 107, 90)
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7: first x and y, steps


class PngImage(PngImageFile):
    """Pillow's reader, into memory where rows that are never decoded differ from black ones."""

    def load_prepare(self) -> None:
        """Before the first row is decoded."""
        if self._im is None:
            self.im = Image.new(self.mode, self.size, _unwritten(self.mode)).im
        super().load_prepare()


def open_header(data: bytes, flags: set[str]) -> PngImageFile:
    """The header as Pillow reads it, without a profile that it cannot read, and with a flag for that. Raises what Pillow raises.

    Raises InputError UNSUPPORTED_FORMAT for a transparent colour of 16-bit samples, of which Pillow keeps eight.
    """
    try:
        image = PngImage(io.BytesIO(data))
    except (SyntaxError, ValueError) as error:
        if "iCCP" not in str(error):
            raise
        at = data.index(b"iCCP") - 4
        image = PngImage(io.BytesIO(data[:at] + data[at + 12 + int.from_bytes(data[at : at + 4], "big") :]))
        flags.add("broken_icc")
    _remove_homonyms(image, data)
    key = image.info.get("transparency")
    if isinstance(key, int) and image.mode in ("1", "L"):  # in the file's own scale, and the pixels are in that of 8 bits
        image.info["transparency"] = key * (255 // (2 ** data[24] - 1))
    if isinstance(key, tuple) and data[24] == 16:
        reason = "a PNG of 16-bit RGB with a transparent colour, which Touchstone does not read: save it with an alpha channel"
        raise InputError(Status.UNSUPPORTED_FORMAT, reason)
    return image


def _remove_homonyms(image: PngImageFile, data: bytes) -> None:
    """A PNG's texts stand among Pillow's own facts, under whatever keyword the file gives them: `exif`, `interlace`."""
    for name in ("exif", "icc_profile", "interlace", "transparency"):
        if isinstance(image.info.get(name), str):
            del image.info[name]
            if name == "interlace" and data[28]:
                image.info[name] = 1


def _unwritten(mode: str) -> int | tuple[int, ...]:
    """A colour that no row of a picture has throughout, or hardly any; black in modes of few colours."""
    return _UNWRITTEN[: len(mode)] if mode in ("LA", "RGB", "RGBA") else _UNWRITTEN[0] if mode in ("L", "P", "I;16") else 0


def check(image: Image.Image, data: bytes) -> None:
    """Pillow compares no checksum of pixel data, and takes a stream that ends before the last row for a whole picture.

    Nothing for a decoded image whose data was all there. Raises InputError, TRUNCATED_IMAGE or CORRUPT_IMAGE.
    """
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
    # The last row, and the row before it, which is one of the last pass if an interlaced picture has an odd number of rows.
    bottom = np.asarray(image.crop((0, max(image.height - 2, 0), image.width, image.height)))
    if (bottom == np.asarray(_unwritten(image.mode))).reshape(len(bottom), -1).all(axis=1).any():
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
