"""Formats that Pillow alone does not read, or not well: HEIC, large WebP, PNM of more than 8 bits,
previews of camera RAW files.

Each is a Pillow image whose header is read when it is opened and whose pixels when it is loaded, or
says what to install for it. `check_webp` and `check_items` find coded data that is missing. What no
such check sees: zeros in place of uncompressed samples (BMP, TIFF); other bytes in place of lossy
WebP, AVIF and HEIC, and of what TIFF packs without a checksum; a JPEG of arithmetic coding that
ends early, whose decoder has to read zeros past the end.
"""

import contextlib
import io
import struct
from importlib.metadata import version
from typing import IO, Any

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ray_app.errors import InputError, Status
from ray_app.images.boxes import coded_items

BIT_DEPTH = "bit_depth"  # in an image's `info`: bits per sample in the file, as pi-heif calls it
MOST_CHUNKS = 1000  # of a WebP before its picture; it has three
ZERO_TAIL = 32  # bytes: AV1 and HEVC end in a bit that is set, and a few bytes of padding at most
UNREAD_TAIL = 16  # bytes: libwebp asks for up to seven more than it needs
MOST_PLAIN_BYTES = 16 * 2**20  # of a PNM written as text, which is read value by value

_FULL = 65_535
_BAND_VALUES = 2**22  # of wide samples, that are narrowed at once


def open_heic(stream: IO[bytes]) -> ImageFile:
    """HEIC by libheif and libde265: the primary image, grids put together, turned as it says; 10
    and 12 bits to 8.
    """
    from pi_heif import HeifImageFile

    image: ImageFile = HeifImageFile(stream)
    return image


def open_webp(stream: IO[bytes]) -> ImageFile:
    """WebP by Pillow, within our limits alone: Pillow 13 refuses one of over 179 megapixels when it
    is opened.
    """
    return WebPImageFile(_WithoutSize(stream.read()))


class _WithoutSize(io.BytesIO):
    """Pillow asks for a WebP's first 30 bytes to know its size; in 20 there is none."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(20 if size == 30 else size)


class PnmFile(PpmImageFile):
    """PBM, PGM and PPM. Pillow reads samples of other than 8 bits one by one in Python; here rows
    of them become 8-bit ones at once.
    """

    def _open(self) -> None:
        super()._open()
        codec, _, self._start, args = self.tile[0]
        self._most = int(args[1]) if isinstance(args, tuple) else _FULL if args == "I;16B" else 255
        self._is_plain = codec == "ppm_plain"
        if (
            self._is_plain
            and self.fp is not None
            and (size := self.fp.seek(0, io.SEEK_END)) > MOST_PLAIN_BYTES
        ):
            raise InputError(
                Status.UNSUPPORTED_FORMAT,
                f"a PNM picture of {size} bytes written as text: save it in binary form",
            )
        if self._most > 255:
            self.info[BIT_DEPTH] = 16

    def load(self) -> Any:
        """Decode, if it is not done. Raises OSError where samples are missing."""
        if self.tile and self._most != 255 and not self._is_plain:
            self.tile = []
            self._become(self._narrowed())
        access = super().load()
        if self.mode == "I" and self._most > 255:  # written as text, now 0 … 65,535
            self._most = 255  # which an array is made of by loading once more
            self._become((np.asarray(self) >> 8).astype(np.uint8))
        return access

    def _become(self, samples: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
        image = Image.fromarray(samples)
        self._mode, self.im = image.mode, image.im

    def _narrowed(self) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """(height, width) or (height, width, 3): of 16 bits the high 8, as everywhere; of other
        ranges the nearest of 256 levels.
        """
        assert self.fp is not None
        self.fp.seek(self._start)
        wide = np.dtype(">u2" if self._most > 255 else "u1")
        channels = 3 if self.mode == "RGB" else 1
        narrow = np.empty(self.width * self.height * channels, np.uint8)
        for start in range(0, len(narrow), _BAND_VALUES):
            count = min(_BAND_VALUES, len(narrow) - start)
            data = self.fp.read(count * wide.itemsize)
            if len(data) < count * wide.itemsize:
                raise OSError("truncated: samples are missing")
            some = np.frombuffer(data, wide)
            narrow[start : start + count] = (
                some >> 8 if self._most == _FULL else _nearest(some, self._most)
            )
        return narrow.reshape(
            (self.height, self.width, 3) if channels == 3 else (self.height, self.width)
        )


def _nearest(samples: "np.ndarray[Any, Any]", most: int) -> "np.ndarray[Any, Any]":
    levels: np.ndarray[Any, Any] = (np.minimum(samples, most).astype(np.uint32) * 510 + most) // (
        2 * most
    )
    return levels


def camera_preview(data: bytes) -> bytes:
    """The largest JPEG that the camera itself put into its RAW file. Raises InputError where there
    is none, or rawpy is missing.
    """
    try:
        import rawpy
    except ImportError:
        reason = "a camera raw file: develop it to JPEG or TIFF, or score the camera's preview in it: pip install 'touchstone-forensics[raw]'"
        raise InputError(Status.UNSUPPORTED_FORMAT, reason) from None
    try:
        with rawpy.imread(io.BytesIO(data)) as raw:
            preview = raw.extract_thumb()
    except rawpy.LibRawIOError as error:
        raise InputError(
            Status.TRUNCATED_IMAGE, f"the camera raw file ends early: {error}"
        ) from error
    except rawpy.LibRawError as error:
        raise InputError(
            Status.UNSUPPORTED_FORMAT,
            f"a camera raw file without a preview that can be read: {error}",
        ) from error
    if preview.format != rawpy.ThumbFormat.JPEG:
        raise InputError(
            Status.UNSUPPORTED_FORMAT,
            "a camera raw file whose preview is no JPEG: develop it to JPEG or TIFF first",
        )
    return bytes(preview.data)


def check_webp(image: Image.Image, data: bytes) -> None:
    """Refuse a WebP whose coded data was not all there, whose decoder fills what is missing without
    a word. Raises InputError.

    Zeros decode as flat colour: where coded data ends in zeros and decodes without the last of
    them, they stand for what is missing.
    """
    del image
    at, kind, size = 12, b"", 0
    for _ in range(MOST_CHUNKS):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            break
        # the first frame of an animation lies within its chunk
        at += 24 if kind == b"ANMF" else 8 + size + (size & 1)
    coded = data[at + 8 : at + 8 + size]
    if not coded.endswith(bytes(2 * UNREAD_TAIL)):
        return
    shorter = coded[:-UNREAD_TAIL] + b"\0" * (len(coded) % 2)
    chunk = kind + struct.pack("<I", len(coded) - UNREAD_TAIL) + shorter
    try:
        open_webp(io.BytesIO(b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk)).load()
    except (OSError, EOFError, SyntaxError, ValueError):
        return  # it needs them all
    raise InputError(
        Status.TRUNCATED_IMAGE,
        f"coded data is missing: filled with zeros up to byte {at + 8 + len(coded)}",
    )


def check_items(image: Image.Image, data: bytes) -> None:
    """Refuse an AVIF or HEIC whose coded data was not all there, whose decoder fills what is
    missing without a word. Raises InputError.
    """
    del image
    for start, size in coded_items(data):
        coded = data[start : start + size]
        if coded.endswith(bytes(ZERO_TAIL)):
            there = start + len(coded.rstrip(b"\0"))
            raise InputError(
                Status.TRUNCATED_IMAGE,
                f"coded data is missing: filled with zeros from byte {there} to {start + size}",
            )


def library_of(format_name: str) -> str | None:
    """The library, with versions, of a format that Pillow does not read; None for those that Pillow
    reads, or where it is not installed.
    """
    with contextlib.suppress(ImportError):
        if format_name == "HEIC":
            import pi_heif

            return f"pi-heif {pi_heif.__version__}/libheif {pi_heif.libheif_version()}"
        if format_name == "RAW":
            from rawpy import libraw_version

            return f"rawpy {version('rawpy')}/LibRaw {'.'.join(map(str, libraw_version))}"
    return None
