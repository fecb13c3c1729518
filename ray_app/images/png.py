"""Read PNGs (ISO 15948), so that broken metadata never prevents the decode of the pixels.

`open_header` passes only the chunks that decide pixels to Pillow. So a text of many megabytes, a
wrong checksum, or a broken profile cannot prevent the decode. `load` refuses files that are not
complete. The readers of metadata also use `iter_chunks`, `read_text`, and `inflate`.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from ray_app.errors import InputError, Status
from ray_app.images.colour import MATTE

SIGNATURE_BYTES = 8
TEXT_KINDS = (b"tEXt", b"zTXt", b"iTXt")
METADATA_KINDS = (b"iCCP", b"eXIf", *TEXT_KINDS)
MAX_CHUNKS = 10_000  # Chunks of metadata that are read.

_CHUNK_HEAD = struct.Struct(">I4s")
_MAX_FRAMES = 2**31  # PNG, third edition, 11.3.6.1.
_CHUNK_BYTES = 1 << 20
_MAX_RATIO = 1032  # The maximum ratio of Deflate.
_BAND_PIXELS = 1 << 20
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS")
_FILL_COLOUR = (145, 61, 107, 90)
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # By colour type.
# The passes of Adam7: first x and y, and steps.
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


class PngImage(PngImageFile):
    """Pillow's PNG image, which gets only the chunks that decide pixels.

    The memory for the pixels is filled with a colour before the decode, so that rows that are never
    decoded differ from black rows.
    """

    head = b""
    pixels_at = 0

    @classmethod
    def open_chunks(cls, head: bytes, data: bytes, pixels_at: int) -> "PngImage":
        """Open an image from the chunks of its header, and set the position of the pixel data.

        Args:
            head: The chunks, which end with the length and the type of the first IDAT chunk.
            data: The file.
            pixels_at: The offset of the content of the first IDAT chunk in `data`.
        """
        image = cls(io.BytesIO(head))
        image.head, image.pixels_at = head, pixels_at
        assert image.png is not None
        image.fp = image.png.fp = io.BytesIO(data)  # The bytes are shared, not copied.
        image.tile = [tile._replace(offset=pixels_at) for tile in image.tile]
        return image

    def load_prepare(self) -> None:
        """Fill the memory with a rare colour before rows are decoded.

        So `load` can recognise rows that were never decoded.
        """
        if self._im is None:
            self.im = Image.new(self.mode, self.size, _get_fill_colour(self.mode)).im
        super().load_prepare()

    def load_end(self) -> None:
        """Do nothing after the decode. Pillow would read the chunks after the pixels here.

        These chunks change no pixel of the first frame.
        """


class PngText(NamedTuple):
    """The content of a tEXt, zTXt, or iTXt chunk of a PNG.

    Attributes:
        keyword: The keyword, which names the text.
        body: The encoded text.
        is_packed: Whether `body` is compressed by Deflate.
    """

    keyword: bytes
    body: bytes
    is_packed: bool

    def unpack(self, max_bytes: int) -> tuple[bytes, int]:
        """Return the encoded text, uncompressed, and the number of bytes that were unpacked.

        A text longer than `max_bytes` is cut. If the compressed data is broken, the text is empty.
        """
        if self.is_packed:
            return inflate(self.body, max_bytes)
        text = self.body[:max_bytes]
        return text, len(text)


def open_header(data: bytes, flags: set[str], max_text_bytes: int) -> PngImageFile:
    """Open a PNG and read its header, without passing chunks of metadata to Pillow.

    The colour profile and EXIF are added to the image's `info`, and frames are counted.

    Args:
        data: The file.
        flags: A set to which `irregular_png` is added for a broken chunk of metadata. If texts or the
            number of chunks are over the limit, `metadata_unread` is added.
        max_text_bytes: The maximum unpacked size of texts and profile together.

    Raises:
        OSError, SyntaxError, ValueError: Pillow's errors about chunks that decide pixels.
    """
    metadata = _PngMetadata(data, max_text_bytes)
    head, pixels_at = [data[:SIGNATURE_BYTES]], 0
    for kind, start, end in iter_chunks(data):
        if kind == b"IDAT":
            if not pixels_at:
                pixels_at = start
                head.append(data[start - 8 : start])
        elif kind not in _PIXEL_CHUNKS:
            metadata.add(kind, start, end, is_early=not pixels_at)
        elif not pixels_at:
            head.append(data[start - 8 : end + 4])
    if not pixels_at:
        raise SyntaxError(_describe_missing_pixels(data))
    image = PngImage.open_chunks(b"".join(head), data, pixels_at)
    image.info |= metadata.info
    image.n_frames = metadata.frames
    flags |= metadata.flags
    key = image.info.get("transparency")
    # The key is in the scale of the file, and the pixels are in the scale of 8 bits.
    if isinstance(key, int) and image.mode in ("1", "L"):
        image.info["transparency"] = key * (255 // (2 ** data[24] - 1))
    return image


def _describe_missing_pixels(data: bytes) -> str:
    """Return why pixels are missing: a damaged length of one chunk hides the chunks after it."""
    position = SIGNATURE_BYTES
    for _, start, end in iter_chunks(data):
        if zlib.crc32(memoryview(data)[start - 4 : end]) != int.from_bytes(
            data[end : end + 4], "big"
        ):
            break
        position = end + 4
    return (
        f"the chunk at byte {position} is damaged"
        if b"IDAT" in data[position:]
        else "no pixel data"
    )


class _PngMetadata:
    """Collects facts of the chunks that decide no pixel, within limits."""

    def __init__(self, data: bytes, max_bytes: int) -> None:
        self._data, self._max_bytes = data, max_bytes
        self._chunks, self._total_bytes = 0, 0
        self._frame_counts: list[
            int
        ] = []  # The number of frames in each acTL chunk before the pixels.
        self._is_first_frame = False
        self.info: dict[str | tuple[int, int], bytes] = {}
        self.flags: set[str] = set()

    def add(self, kind: bytes, start: int, end: int, *, is_early: bool) -> None:
        """Add the facts of one chunk; `is_early` is True before the pixels."""
        if kind in (b"fdAT", b"IEND"):
            return
        self._chunks += 1
        if self._chunks > MAX_CHUNKS:
            self.flags.add("metadata_unread")
            return
        if zlib.crc32(memoryview(self._data)[start - 4 : end]) != int.from_bytes(
            self._data[end : end + 4], "big"
        ):
            self.flags.add("irregular_png")
        if kind in METADATA_KINDS:
            self._add_metadata(kind, start, end)
        elif is_early and kind == b"acTL" and end - start >= 8:
            self._frame_counts.append(int.from_bytes(self._data[start : start + 4], "big"))
        elif is_early and kind == b"fcTL":
            self._is_first_frame = True

    def _add_metadata(self, kind: bytes, start: int, end: int) -> None:
        size_bytes, remaining_bytes = end - start, self._max_bytes - self._total_bytes
        if remaining_bytes < 0:
            return  # Ten thousand chunks of the limit each would take hours to unpack.
        if kind == b"iCCP":
            if "icc_profile" in self.info:
                return
            self.info["icc_profile"], size_bytes = _unpack_profile(
                self._data[start:end], self._max_bytes
            )
            if not self.info["icc_profile"]:
                self.flags.add("irregular_png")
        elif kind == b"eXIf":
            self.info["exif"] = b"Exif\0\0" + self._data[start:end]
        elif kind in (b"zTXt", b"iTXt"):
            text = read_text(kind, self._data[start:end])
            if text.is_packed and size_bytes <= remaining_bytes:
                _, size_bytes = text.unpack(remaining_bytes + 1)
        self._total_bytes += size_bytes
        if self._total_bytes > self._max_bytes:
            self.flags.add("metadata_unread")

    @property
    def frames(self) -> int:
        """The number of frames, 1 without a valid animation.

        The first image counts, too, if it is not a frame of the animation.
        """
        if len(self._frame_counts) != 1 or not 0 < self._frame_counts[0] <= _MAX_FRAMES:
            return 1
        return self._frame_counts[0] + (not self._is_first_frame)


def iter_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start of the content, end of the content) of each chunk of a PNG up to IEND.

    If the file is cut short, the stated end of the last chunk is beyond the end of the file.
    """
    position, last = SIGNATURE_BYTES, len(data) - _CHUNK_HEAD.size
    while position <= last:
        size, kind = _CHUNK_HEAD.unpack_from(data, position)
        start = position + 8
        end = start + size
        if not kind.isalnum():
            return
        yield kind, start, end
        if kind == b"IEND":
            return
        position = end + 4


def read_text(kind: bytes, body: bytes) -> PngText:
    """Split the content of a text chunk into keyword and text (ISO 15948, 11.3.3)."""
    keyword, _, content = body.partition(b"\0")
    if kind == b"iTXt":  # After a flag, a method, a language, and a translated keyword.
        return PngText(
            keyword, content[2:].partition(b"\0")[2].partition(b"\0")[2], content[:1] == b"\1"
        )
    return (
        PngText(keyword, content[1:], True) if kind == b"zTXt" else PngText(keyword, content, False)
    )


def inflate(packed: bytes, max_bytes: int) -> tuple[bytes, int]:
    """Unpack up to `max_bytes` of a zlib stream.

    Args:
        packed: The zlib stream.
        max_bytes: The maximum number of unpacked bytes.

    Returns:
        The unpacked bytes, which are empty if the stream is broken, and the number of bytes that
        were unpacked, including those before the damage.
    """
    inflater, parts, size_bytes, remaining = zlib.decompressobj(), list[bytes](), 0, packed
    while size_bytes < max_bytes and not inflater.eof:
        part_bytes = min(_CHUNK_BYTES, max_bytes - size_bytes)
        try:
            part = inflater.decompress(remaining, part_bytes)
        except zlib.error:
            return b"", size_bytes + min(part_bytes, _MAX_RATIO * len(remaining))
        if not part and not inflater.unconsumed_tail:
            break
        parts.append(part)
        size_bytes += len(part)
        remaining = inflater.unconsumed_tail
    return b"".join(parts), size_bytes


def _unpack_profile(body: bytes, max_bytes: int) -> tuple[bytes, int]:
    """Return the profile in an iCCP chunk, and its size as `inflate` does.

    The profile is cut one byte over the limit.
    """
    _, _, content = body.partition(b"\0")
    return inflate(content[1:], max_bytes + 1) if content[:1] == b"\0" else (b"", 0)


def _get_fill_colour(mode: str) -> int | tuple[int, ...]:
    """Return a colour that hardly any row consists of; black in modes of few colours."""
    return (
        _FILL_COLOUR[: len(mode)]
        if mode in ("LA", "RGB", "RGBA")
        else _FILL_COLOUR[0]
        if mode in ("L", "P", "I;16")
        else 0
    )


def load(image: PngImageFile, data: bytes, flags: set[str]) -> Image.Image:
    """Decode the pixels of an opened PNG. Errors of Pillow are raised unchanged.

    Args:
        image: The image that `open_header` returned.
        data: The file.
        flags: A set to which `alpha` is added if the file declares a colour of 16 bits per sample as
            transparent.

    Raises:
        InputError: truncated_image or corrupt_image, if data is missing or changed.
    """
    image.load()
    _check_pixel_data(image, data)
    if (
        isinstance(image, PngImage)
        and data[24] == 16
        and isinstance(image.info.get("transparency"), tuple)
    ):
        _paint_transparent_colour(image, data)
        flags.add("alpha")
    return image


def _paint_transparent_colour(image: PngImage, data: bytes) -> None:
    """Paint the matte over pixels of the transparent colour.

    The colour has 16 bits, of which Pillow keeps the high 8.
    """
    low = PngImage.open_chunks(image.head, data, image.pixels_at)
    # The other byte order gives the low 8 bits.
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
    low.load()
    key = np.array(image.info.pop("transparency"))
    rows = max(_BAND_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):
        band = (0, top, image.width, min(top + rows, image.height))
        is_key = (np.asarray(image.crop(band)) == key >> 8) & (
            np.asarray(low.crop(band)) == key & 255
        )
        if (hidden := is_key.all(axis=2)).any():
            image.paste(MATTE, band, Image.fromarray(hidden))


def _check_pixel_data(image: Image.Image, data: bytes) -> None:
    """Check that all pixel data was present, and that its checksums match.

    Pillow does not check the checksums of pixel data, and accepts a stream that ends before the
    last row.

    Raises:
        InputError: truncated_image or corrupt_image.
    """
    parts = []
    for kind, start, end in iter_chunks(data):
        if kind == b"IDAT":
            parts.append(memoryview(data)[start:end])
            if end + 4 > len(data):
                raise InputError(
                    Status.TRUNCATED_IMAGE,
                    f"the file ends after {len(data)} bytes, within its pixel data",
                )
            if zlib.crc32(memoryview(data)[start - 4 : end]) != int.from_bytes(
                data[end : end + 4], "big"
            ):
                raise InputError(
                    Status.CORRUPT_IMAGE,
                    f"the checksum of pixel data at byte {start - 8} does not match",
                )
        elif parts:
            break
    # Check the last row, and the row before it, which is in the last pass if an interlaced image
    # has an odd number of rows.
    bottom = np.asarray(image.crop((0, max(image.height - 2, 0), image.width, image.height)))
    if (
        (bottom == np.asarray(_get_fill_colour(image.mode)))
        .reshape(len(bottom), -1)
        .all(axis=1)
        .any()
    ):
        _check_rows(parts, _scanline_bytes(data))


def _check_rows(parts: list[memoryview], needed: int) -> None:
    inflater, present = zlib.decompressobj(), 0
    for part in parts:
        remaining: bytes | memoryview = part
        while remaining and present < needed and not inflater.eof:
            present += len(inflater.decompress(remaining, _CHUNK_BYTES))
            remaining = inflater.unconsumed_tail
    if present < needed:
        raise InputError(
            Status.TRUNCATED_IMAGE, f"{present} of {needed} bytes of scanlines present"
        )


def _scanline_bytes(data: bytes) -> int:
    """Return the bytes of an image before compression, with the filter byte of each line.

    Source: ISO 15948, §7 and §8.
    """
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    total = 0
    for left, top, across, down in _PASSES if data[28] else ((0, 0, 1, 1),):
        columns, rows = max(-(-(width - left) // across), 0), max(-(-(height - top) // down), 0)
        total += rows * (1 + -(-columns * depth * _SAMPLES[colour] // 8)) if columns else 0
    return total
