"""Read formats that Pillow alone cannot read, or reads badly.

These formats are HEIC, large WebP, PNM of more than 8 bits, and previews of camera RAW files. The
functions that open a file return a Pillow image, whose header is read at opening and whose pixels
are read at loading. If a package is not installed, the error names the package.

`check_webp` and `check_items` find missing coded data. The following cannot be detected:

- Zeros in place of uncompressed samples (BMP, TIFF).
- Other bytes in place of lossy WebP, AVIF and HEIC, or of TIFF data without a checksum.
- A JPEG with arithmetic coding that ends early. Its decoder must read zeros past the end.
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
from ray_app.images.boxes import find_coded_items

# The key of an image's `info` for the bits per sample of its file. pi-heif uses this name.
BIT_DEPTH = "bit_depth"
MAX_CHUNKS = 1000  # Before the image of a WebP, which has three.
ZERO_TAIL = 32  # Bytes. AV1 and HEVC end in a bit that is set, and at most a few bytes of padding.
UNREAD_TAIL = 16  # Bytes. libwebp requests up to seven more than it needs.
MAX_PLAIN_BYTES = 16 * 2**20  # For a PNM with samples as text, which are read one by one.

_MAX_16_BIT = 65_535
_BAND_VALUES = 2**22  # Wide samples that are converted at once.


def open_heic(stream: IO[bytes]) -> ImageFile:
    """Open a HEIC with libheif and libde265.

    The result is the primary image. Its tiles are put together, and its rotation is applied.
    Samples of 10 and 12 bits become 8 bits.
    """
    from pi_heif import HeifImageFile

    image: ImageFile = HeifImageFile(stream)
    return image


def open_webp(stream: IO[bytes]) -> ImageFile:
    """Open a WebP with Pillow, but without Pillow's limit on the size.

    Pillow 13 refuses to open a WebP of over 179 megapixels.
    """
    return WebPImageFile(_WithoutSize(stream.read()))


class _WithoutSize(io.BytesIO):
    """Hides the size of a WebP from Pillow, which reads the first 30 bytes for it; 20 lack it."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(20 if size == 30 else size)


class PnmFile(PpmImageFile):
    """A Pillow image for PBM, PGM, and PPM files with samples of any number of bits.

    Pillow reads samples that do not have 8 bits one by one in Python. This class converts many rows
    at once to 8 bits.
    """

    def _open(self) -> None:
        super()._open()
        codec, _, self._start, args = self.tile[0]
        self._max_value = (
            int(args[1]) if isinstance(args, tuple) else _MAX_16_BIT if args == "I;16B" else 255
        )
        self._is_plain = codec == "ppm_plain"
        if (
            self._is_plain
            and self.fp is not None
            and (size := self.fp.seek(0, io.SEEK_END)) > MAX_PLAIN_BYTES
        ):
            raise InputError(
                Status.UNSUPPORTED_FORMAT,
                f"a PNM image of {size} bytes in the text format, over the limit of {MAX_PLAIN_BYTES}: save it in the binary format",
            )
        if self._max_value > 255:
            self.info[BIT_DEPTH] = 16

    def load(self) -> Any:
        """Decode the pixels of the image, if they are not decoded yet.

        Raises:
            OSError: Samples are missing.
        """
        if self.tile and self._max_value != 255 and not self._is_plain:
            self.tile = []
            self._set_samples(self._read_narrowed())
        access = super().load()
        if self.mode == "I" and self._max_value > 255:  # Samples written as text, now 0 … 65,535.
            self._max_value = 255  # Set first, because np.asarray calls `load` again.
            self._set_samples((np.asarray(self) >> 8).astype(np.uint8))
        return access

    def _set_samples(self, samples: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
        image = Image.fromarray(samples)
        self._mode, self.im = image.mode, image.im

    def _read_narrowed(self) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """Return 8-bit samples, of shape (height, width) or (height, width, 3).

        Samples of 16 bits keep the high 8 bits, as in all formats. Samples of other ranges become
        the nearest of 256 levels.
        """
        assert self.fp is not None
        self.fp.seek(self._start)
        wide = np.dtype(">u2" if self._max_value > 255 else "u1")
        channels = 3 if self.mode == "RGB" else 1
        narrow = np.empty(self.width * self.height * channels, np.uint8)
        for start in range(0, len(narrow), _BAND_VALUES):
            count = min(_BAND_VALUES, len(narrow) - start)
            data = self.fp.read(count * wide.itemsize)
            if len(data) < count * wide.itemsize:
                raise OSError("truncated: samples are missing")
            values = np.frombuffer(data, wide)
            narrow[start : start + count] = (
                values >> 8
                if self._max_value == _MAX_16_BIT
                else _scale_to_bytes(values, self._max_value)
            )
        return narrow.reshape(
            (self.height, self.width, 3) if channels == 3 else (self.height, self.width)
        )


def _scale_to_bytes(samples: "np.ndarray[Any, Any]", max_value: int) -> "np.ndarray[Any, Any]":
    levels: np.ndarray[Any, Any] = (
        np.minimum(samples, max_value).astype(np.uint32) * 510 + max_value
    ) // (2 * max_value)
    return levels


def extract_camera_preview(data: bytes) -> bytes:
    """Return the largest JPEG preview that the camera put into its RAW file.

    Args:
        data: The RAW file.

    Raises:
        InputError: The file has no preview, or rawpy is not installed.
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
            "a camera raw file whose preview is not a JPEG: convert it to JPEG or TIFF first",
        )
    return bytes(preview.data)


def check_webp(image: Image.Image, data: bytes) -> None:
    """Refuse a WebP whose coded data is incomplete, because its decoder does not report this.

    Missing data may be replaced with zeros, which decode to a flat colour. If coded data ends in
    zeros and can also be decoded without the last zeros, it counts as incomplete.

    Args:
        image: The decoded image, which is not used.
        data: The file.

    Raises:
        InputError: Coded data is missing. The status is `truncated_image`.
    """
    del image
    position, kind, size = 12, b"", 0
    for _ in range(MAX_CHUNKS):
        kind, size = (
            data[position : position + 4],
            int.from_bytes(data[position + 4 : position + 8], "little"),
        )
        if kind in (b"VP8 ", b"VP8L"):
            break
        # The first frame of an animation is within the chunk of the frame.
        position += 24 if kind == b"ANMF" else 8 + size + (size & 1)
    coded = data[position + 8 : position + 8 + size]
    if not coded.endswith(bytes(2 * UNREAD_TAIL)):
        return
    shorter = coded[:-UNREAD_TAIL] + b"\0" * (len(coded) % 2)
    chunk = kind + struct.pack("<I", len(coded) - UNREAD_TAIL) + shorter
    try:
        open_webp(io.BytesIO(b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk)).load()
    except (OSError, EOFError, SyntaxError, ValueError):
        return  # The decoder needs all of the data.
    raise InputError(
        Status.TRUNCATED_IMAGE,
        f"coded data is missing: it is replaced with zeros up to byte {position + 8 + len(coded)}",
    )


def check_items(image: Image.Image, data: bytes) -> None:
    """Refuse an AVIF or HEIC with incomplete coded data, which its decoder does not report.

    The data of a coded image counts as incomplete if it ends in many zeros (`ZERO_TAIL`).

    Args:
        image: The decoded image, which is not used.
        data: The file.

    Raises:
        InputError: Coded data is missing. The status is `truncated_image`.
    """
    del image
    for start, size in find_coded_items(data):
        coded = data[start : start + size]
        if coded.endswith(bytes(ZERO_TAIL)):
            present_end = start + len(coded.rstrip(b"\0"))
            raise InputError(
                Status.TRUNCATED_IMAGE,
                f"coded data is missing: it is replaced with zeros from byte {present_end} to {start + size}",
            )


def find_library(format_name: str) -> str | None:
    """Return the name and version of the library that reads a format that Pillow cannot read.

    The result is None if Pillow reads the format, or if the library is not installed.
    """
    with contextlib.suppress(ImportError):
        if format_name == "HEIC":
            import pi_heif

            return f"pi-heif {pi_heif.__version__}/libheif {pi_heif.libheif_version()}"
        if format_name == "RAW":
            from rawpy import libraw_version

            return f"rawpy {version('rawpy')}/LibRaw {'.'.join(map(str, libraw_version))}"
    return None
