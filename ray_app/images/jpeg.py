"""Read JPEGs (ITU-T T.81), and refuse those whose pixel data is damaged.

`open_header` opens a file, and `load` decodes its pixels. `find_damage` checks a JPEG within
another file, such as a TIFF. `jpeg_quality` estimates the quality setting.

A scan is the coded data of the image, or of a part of it. libjpeg fills missing data of a scan
with grey, and skips surplus data. It then warns, but Pillow does not report the warnings.
simplejpeg uses the same library, decodes to the same pixels, and raises the first warning as an
exception.

Damage inside a scan shifts the blocks behind it. So, at the end of the scan, coded data is missing
or left over. If by chance neither is the case, the damage is not found, because libjpeg checks no
codes before the last few kB.
"""

import contextlib
import io
import re
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import PIL
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from ray_app.errors import InputError, Status

SCAN = 0  # Not a marker; it stands for the coded data behind an SOS.
SOF0, SOF1, SOF2, SOF3, DHT, JPG, SOF9, SOF10, DAC, SOF15 = (
    0xC0,
    0xC1,
    0xC2,
    0xC3,
    0xC4,
    0xC8,
    0xC9,
    0xCA,
    0xCC,
    0xCF,
)
SOI, EOI, SOS, DQT, DRI, APP0, APP14, JPEG_LS = 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xEE, 0xF7
_FRAMES = frozenset((*range(SOF0, SOF15 + 1), JPEG_LS)) - {DHT, JPG, DAC}
# The other kinds are hierarchical, or lossless with arithmetic coding.
_READABLE = (SOF0, SOF1, SOF2, SOF3, SOF9, SOF10)
_PROGRESSIVE = (SOF2, SOF10)
_STANDALONE = (0x01, *range(0xD0, 0xD8))
_ALL_COEFFICIENTS = 2**64 - 1  # A bit for each coefficient of a block (A.3.6).
_PIXEL_MARKERS = _FRAMES | {SCAN, SOS, DHT, DAC, DQT, DRI}

# Matches only the last of several fill bytes. With `+`, a long run of fill bytes would take hours.
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_STRAY = re.compile(r"(\d+) extraneous bytes before marker 0x(\w\w)")
_OUTSIDE_SCANS = (
    "extraneous bytes",
    "Invalid SOS parameters",
    "Unknown Adobe color",
    "unknown JFIF revision",
    "bad ICC marker",
)
# libjpeg decodes any sampling factors, TurboJPEG only those that it has a name for.
_SAMPLING = "subsampling"
# Warnings about limits of TurboJPEG, not about damage.
_TURBOJPEG_LIMITS = ("Unsupported color conversion", "Could not determine", "data precision")
_CHECKED = {"RGB": ("RGB", 3), "CMYK": ("CMYK", 4), "YCCK": ("CMYK", 4)}  # Others become grey.
_CHANNELS = {"RGB": ("RGBX", 4), "L": ("GRAY", 1), "CMYK": ("CMYK", 4)}
_READ_AHEAD = bytes(16)  # libjpeg requests up to eight bytes more than it needs.
MAX_SEGMENTS = 10_000  # A JPEG of 32 MiB has a thousand; a hostile one could have ten million.
MAX_RESTARTS = 10_000
# The limit for the headers of all parts between restart markers. libjpeg needs half a second for
# the tables of that many bytes.
MAX_RESTART_BYTES = 64 * 2**20
# Webcams leave one to four bytes before a restart marker, and cameras up to eight before the end
# marker, as libjpeg counts them. None of 7,700 photographs has any. An MCU, the least by which
# damage can shift a scan, takes 10 to 60 bytes.
MAX_STRAY_BYTES = 8
DECODER = f"simplejpeg {simplejpeg.__version__}"
# Pillow 12 crashes the process when it exports an image whose memory belongs to NumPy.
_EXPORTS_FOREIGN_MEMORY = int(PIL.__version__.partition(".")[0]) >= 13

# The example table of luminance (ITU-T T.81, Annex K.1), which most encoders scale by a quality.
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113,
    92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip


class JpegImage(JpegImageFile):
    """A JPEG whose header was read by Pillow. `jpeg.load` decodes its pixels.

    Attributes:
        segments: An iterator over the segments (`JpegSegment`) from the first frame header to the
            end of the file. It can be used once.
    """

    segments: "Iterable[JpegSegment]" = ()

    def _read_dpi_from_exif(self) -> None:
        """Do nothing.

        To find the resolution, which is not needed here, Pillow would parse all of EXIF at opening.
        That is slow, and prints warnings on stderr.
        """


class JpegSegment(NamedTuple):
    """A segment of a JPEG: a marker with the body behind it, or the coded data of a scan.

    Attributes:
        marker: The marker, or SCAN for coded data.
        body: The body with the two bytes of its length; empty for SCAN.
        start: The offset of the body in the file.
        end: The end of the body in the file.
    """

    marker: int
    body: bytes
    start: int
    end: int

    def encode(self, data: bytes) -> bytes | memoryview:
        """Return the segment as bytes, to write a changed copy of the file.

        Args:
            data: The file. If the segment is coded data (SCAN), its bytes are copied from the file.
                Otherwise they are the marker and `body`, which the caller may have replaced.
        """
        return (
            memoryview(data)[self.start : self.end]
            if self.marker == SCAN
            else bytes((0xFF, self.marker)) + self.body
        )


class Frame(NamedTuple):
    """The frame header of a JPEG (ITU-T T.81, B.2.2).

    Attributes:
        marker: The marker, whose number shows the coding process, such as progressive.
        bits: The bits per sample.
        height: The height in pixels.
        width: The width in pixels.
        components: The id and the sampling factors (four bits each) of each component.
    """

    marker: int
    bits: int
    height: int
    width: int
    components: list[tuple[int, int]]

    @classmethod
    def from_segment(cls, segment: JpegSegment) -> "Frame":
        """Parse the body of a start-of-frame segment (SOF), which may be cut short."""
        body = segment.body.ljust(8, b"\0")
        height, width = struct.unpack_from(">HH", body, 3)
        end = min(8 + 3 * body[7], len(body) - 2)  # An incomplete component is ignored.
        return cls(
            segment.marker,
            body[2],
            height,
            width,
            list(zip(body[8:end:3], body[9 : end + 1 : 3], strict=False)),
        )

    def mcu_size(self) -> tuple[int, int]:
        """Return the width and height in pixels of a minimum coded unit (ITU-T T.81, A.2)."""
        if len(self.components) < 2:
            return 8, 8
        return 8 * max(factors >> 4 for _, factors in self.components), 8 * max(
            factors & 15 for _, factors in self.components
        )


def open_header(data: bytes, flags: set[str], _: int = 0) -> JpegImage:
    """Open a JPEG, and read its header.

    If metadata makes Pillow fail, the file is opened without metadata and gets a flag. Other errors
    of Pillow are raised unchanged.

    Args:
        data: The file.
        flags: A set to which `irregular_jpeg` is added if metadata makes Pillow fail.

    Raises:
        InputError: unsupported_format for a kind of JPEG that Touchstone has no decoder for.
    """
    remaining, frame = iter_segments(data), None
    for segment in remaining:
        if segment.marker in _FRAMES:
            frame, remaining = Frame.from_segment(segment), chain((segment,), remaining)
            break
    if (
        frame is not None
        and 2 <= frame.bits <= 16
        and (frame.marker not in _READABLE or frame.bits != 8)
    ):
        kind = (
            "JPEG-LS"
            if frame.marker == JPEG_LS
            else f"a JPEG of kind SOF{frame.marker - SOF0} with {frame.bits} bits per sample"
        )
        raise InputError(
            Status.UNSUPPORTED_FORMAT,
            f"{kind}, which Touchstone does not read: save it as an ordinary JPEG or as PNG",
        )
    try:
        image = JpegImage(io.BytesIO(data))
    except (SyntaxError, ValueError):
        image = JpegImage(io.BytesIO(_strip_metadata(data)))
        flags.add("irregular_jpeg")
    image.segments = remaining
    return image


def estimate_coefficient_bytes(image: JpegImageFile, data: bytes) -> int:
    """Return the bytes of memory that libjpeg needs for the coefficients of a JPEG.

    A JPEG may code its image in several scans, for example a progressive JPEG. libjpeg then holds
    two bytes per sample of the whole image. For a single scan, the result is 0.

    Args:
        image: The opened JPEG.
        data: The file.
    """
    header = 6 + 2 * len(image.layer)
    position = image.fp.tell() - header if image.fp else 0
    # Pillow stops at the first scan.
    is_whole = data[position - 2 : position] == b"\xff\xda" and data[
        position : position + 2
    ] == header.to_bytes(2, "big")
    if is_whole and "progressive" not in image.info:
        return 0
    samples = max_samples = 0
    for _, across, down, _ in image.layer:
        samples, max_samples = samples + across * down, max(max_samples, across * down)
    return 2 * image.width * image.height * samples // max_samples


def load(image: JpegImage, data: bytes, flags: set[str]) -> Image.Image:
    """Decode the pixels of an opened JPEG, and keep the mode and `info` of the opened image.

    Args:
        image: The image that `open_header` returned.
        data: The file.
        flags: A set to which `irregular_jpeg` is added if metadata is broken, or if a few stray
            bytes follow coded data.

    Raises:
        InputError: truncated_image if coded data is missing, corrupt_image if it is damaged.
    """
    if _has_missing_scans(image.segments):
        raise InputError(
            Status.TRUNCATED_IMAGE, f"the file ends after {len(data)} bytes, before the last scans"
        )
    try:
        pixels = _decode_with_simplejpeg(image, data)
    except ValueError as error:
        pixels = _load_irregular(image, data, flags, str(error))
    pixels.info = image.info
    return pixels


def _load_irregular(image: JpegImage, data: bytes, flags: set[str], warning: str) -> Image.Image:
    """Decode a JPEG about which libjpeg warns. Raises as `load` does."""
    if any(phrase in warning for phrase in _OUTSIDE_SCANS):
        flags.add("irregular_jpeg")
        data = _strip_metadata(data)  # The first warning may hide another one about the scans.
        try:
            return _decode_with_simplejpeg(image, data)
        except ValueError as error:
            warning = str(error)
    if _SAMPLING in warning:
        return _decode_with_pillow(data)
    if damage := _warning_to_error(data, warning):
        raise damage
    return _decode_with_simplejpeg(image, data, strict=False)


def find_damage(data: bytes, max_pixels: int) -> InputError | None:
    """Decode a JPEG within another file, such as a strip of a TIFF, to find damage in its scans.

    Args:
        data: The JPEG.
        max_pixels: The number of pixels that the JPEG should have. It limits the memory that a
            hostile JPEG can take.

    Returns:
        The error that `load` would raise for this JPEG. None if no damage is found. None also if
        simplejpeg cannot decode the JPEG, although the decoder of the other file can.
    """
    warning = _find_warning(data, max_pixels)
    if any(phrase in warning for phrase in _OUTSIDE_SCANS):
        data = _strip_metadata(data)
        warning = _find_warning(data, max_pixels)
    if _SAMPLING in warning:
        return _find_unreported_damage(data)
    return (
        _warning_to_error(data, warning)
        if warning and not any(phrase in warning for phrase in _TURBOJPEG_LIMITS)
        else None
    )


def _warning_to_error(data: bytes, warning: str) -> InputError | None:
    """Turn libjpeg's warning into an error; None if it concerns a few stray bytes or padding."""
    stray = _STRAY.search(warning)
    if stray and int(stray[2], 16) == EOI:
        if _is_padded(data, warning):
            return None
        warning = f"{warning}, more than {MAX_STRAY_BYTES}"
    elif stray and _are_restarts_whole(data):
        return None
    if "remature end" in warning:
        return InputError(Status.TRUNCATED_IMAGE, _describe_progress(data))
    if "Unsupported color conversion" in warning:
        return InputError(
            Status.UNSUPPORTED_FORMAT,
            "a lossless JPEG whose colours would have to be converted, which is not supported: save it as PNG",
        )
    return InputError(Status.CORRUPT_IMAGE, warning.removeprefix("Corrupt JPEG data: "))


def _decode_with_simplejpeg(
    image: JpegImageFile, data: bytes, *, strict: bool = True
) -> Image.Image:
    """Decode a JPEG with simplejpeg.

    Raises:
        ValueError: libjpeg's first warning, or its error.
    """
    colours, channels = _CHANNELS[image.mode]
    # The buffer has the size that was checked, so that a later frame header cannot enlarge it.
    buffer = np.empty((image.height, image.width, channels), np.uint8)
    pixels = simplejpeg.decode_jpeg(data, colours, buffer=buffer, strict=strict)
    if pixels.shape != buffer.shape:
        raise ValueError("the JPEG has frame headers of different sizes")
    if image.mode == "RGB":
        padded = Image.frombuffer("RGBX", image.size, buffer, "raw", "RGBX", 0, 1)
        # Pillow's RGB has four bytes per pixel too, so that the image needs no copy.
        return (
            Image.fromarrow(padded, "RGB", image.size)
            if _EXPORTS_FOREIGN_MEMORY
            else padded.convert("RGB")
        )
    if image.mode == "CMYK":  # CMYK is stored inverted, as Adobe and all others write it.
        np.subtract(255, buffer, out=buffer)
    return Image.frombuffer(image.mode, image.size, buffer, "raw", image.mode, 0, 1)


def _decode_with_pillow(data: bytes) -> Image.Image:
    """Decode a JPEG whose sampling factors TurboJPEG has no name for. Raises as `load` does."""
    image = JpegImage(io.BytesIO(_strip_end(data, _READ_AHEAD)))
    try:
        image.load()
    except OSError as error:
        if "truncated" not in str(error):
            raise
        raise InputError(Status.TRUNCATED_IMAGE, _describe_progress(data)) from error
    if damage := _find_unreported_damage(data):
        raise damage
    return image


def _find_unreported_damage(data: bytes) -> InputError | None:
    """Check a JPEG that only Pillow decodes, which reports no warnings.

    Several scans cannot be checked.
    """
    if len(_find_scans(data)) == 1 and (_are_restarts_whole(data) is False or not _is_whole(data)):
        return InputError(Status.CORRUPT_IMAGE, "coded data is missing or left over in the scan")
    return None


def _is_whole(data: bytes) -> bool:
    """Return whether the single scan of a JPEG has all coded data.

    At most a few stray bytes or padding may follow the coded data.
    """
    warning = _find_warning(data)
    if _SAMPLING not in warning:
        return not warning or _is_padded(data, warning)
    surplus = MAX_STRAY_BYTES + len(_READ_AHEAD)
    shorter = _strip_end(_shorten_padding(data))[:-surplus]
    return _has_all_data(_strip_end(data, _READ_AHEAD)) and not _has_all_data(shorter)


def _has_all_data(data: bytes) -> bool:
    """Return whether Pillow finds all coded data; without an end marker, it fills no gaps."""
    try:
        JpegImage(io.BytesIO(data)).load()
    except (OSError, SyntaxError):
        return False
    return True


def _is_padded(data: bytes, warning: str) -> bool:
    """Return whether libjpeg warns only of padding before the end marker.

    Padding is a few stray bytes, or one byte that is repeated.
    """
    if not _has_few_stray_bytes(warning):
        warning = _find_warning(_shorten_padding(data))
    return not warning or _has_few_stray_bytes(warning)


def _has_few_stray_bytes(warning: str) -> bool:
    stray = _STRAY.search(warning)
    return stray is not None and int(stray[1]) <= MAX_STRAY_BYTES and int(stray[2], 16) == EOI


def _shorten_padding(data: bytes) -> bytes:
    """Shorten repetitions of the last scan's last byte to the number of allowed stray bytes."""
    *_, scan = _find_scans(data)
    coded = data[scan.start : scan.end]
    padding = len(coded) - len(coded.rstrip(coded[-1:]))
    return data[: scan.end - max(0, padding - MAX_STRAY_BYTES)] + data[scan.end :]


def _describe_progress(data: bytes) -> str:
    image = JpegImage(io.BytesIO(_strip_end(data)))
    if "progressive" in image.info:
        return f"coded data is missing from {len(data)} bytes"
    with contextlib.suppress(OSError):
        image.load()
    image.tile = []  # The rows that are decoded stay readable.
    box = image.getbbox()
    return f"about {box[3] if box else 0} of {image.height} rows decoded from {len(data)} bytes"


def iter_segments(data: bytes, max_segments: int = MAX_SEGMENTS) -> Iterator[JpegSegment]:
    """Yield the segments of a JPEG that libjpeg finds, up to the end marker or the end of the file.

    Bytes between two segments are skipped, as by libjpeg.
    """
    position = 2
    for _ in range(max_segments):
        match = _MARKER.search(data, position)
        if match is None or (marker := match[1][0]) == EOI:
            return
        position = match.end()
        if marker in _STANDALONE:
            continue
        start, position = position, position + int.from_bytes(data[position : position + 2], "big")
        yield JpegSegment(marker, data[start:position], start, position)
        if marker == SOS:
            match = _SCAN_END.search(data, position)
            start, position = position, match.start() if match else len(data)
            yield JpegSegment(SCAN, b"", start, position)


def _find_scans(data: bytes) -> list[JpegSegment]:
    return [segment for segment in iter_segments(data) if segment.marker == SCAN]


def _find_frame(data: bytes) -> Frame | None:
    return next(
        (
            Frame.from_segment(segment)
            for segment in iter_segments(data)
            if segment.marker in _FRAMES
        ),
        None,
    )


def _has_missing_scans(segments: Iterable[JpegSegment]) -> bool:
    """Return whether some bits of some component are in none of the scans.

    libjpeg silently leaves such bits at zero.
    """
    # For each component, a bit for each coefficient of a block that is not complete.
    missing: dict[int, int] = {}
    is_progressive = False
    for marker, body, *_ in segments:
        if marker in _FRAMES:
            missing = dict.fromkeys(
                dict(Frame.from_segment(JpegSegment(marker, body, 0, 0)).components),
                _ALL_COEFFICIENTS,
            )
            is_progressive = marker in _PROGRESSIVE
        elif marker == SOS and len(body) >= 6:
            first, last, low_bit = (
                (body[-3], body[-2], body[-1] & 15) if is_progressive else (0, 63, 0)
            )
            sent = (1 << max(first, last + 1)) - (1 << first)
            for component in missing.keys() & set(body[3:-3:2]):
                missing[component] = (
                    missing[component] | sent if low_bit else missing[component] & ~sent
                )
            if not is_progressive and not any(missing.values()):
                return False
    return any(missing.values())


def _strip_metadata(data: bytes) -> bytes:
    """Return a JPEG with only the segments that decide pixels or colour.

    Two application segments decide colour. The segments are changed as libjpeg interprets them.
    """
    frame = _find_frame(data)
    transforms = (0, 2) if frame is not None and len(frame.components) == 4 else (0, 1)
    parts: list[bytes | memoryview] = [bytes((0xFF, SOI))]
    for segment in iter_segments(data):
        body = segment.body
        if segment.marker == APP0 and body[2:7] == b"JFIF\0" and len(body) >= 16:
            body = body[:7] + b"\1" + body[8:]
        elif segment.marker == APP14 and body[2:7] == b"Adobe" and len(body) >= 14:
            body = (
                body[:13]
                + bytes((body[13] if body[13] in transforms else transforms[1],))
                + body[14:]
            )
        elif segment.marker == SOS and frame is not None and frame.marker in (SOF0, SOF1, SOF9):
            body = body[:-3] + bytes((0, 63, 0))
        elif segment.marker not in _PIXEL_MARKERS:
            continue
        parts.append(segment._replace(body=body).encode(data))
    return b"".join((*parts, bytes((0xFF, EOI))))


def _strip_end(data: bytes, replacement: bytes = b"") -> bytes:
    """Return a JPEG of one scan up to the end of its coded data; any other JPEG unchanged."""
    scans = _find_scans(data)
    return data[: scans[0].end] + replacement if len(scans) == 1 else data


def _are_restarts_whole(data: bytes) -> bool | None:
    """Return whether a JPEG of one scan is whole between any two of its restart markers.

    The result is None if it cannot be checked. Each part is decoded as an image of one row of MCUs
    (A.2).
    """
    *header, scan = iter_segments(data)
    frame, parts = (
        _find_frame(data),
        _RESTART.split(memoryview(data)[scan.start : scan.end], MAX_RESTARTS),
    )
    interval = max(
        (int.from_bytes(segment.body[2:4], "big") for segment in header if segment.marker == DRI),
        default=0,
    )
    if (
        frame is None
        or not interval
        or scan.marker != SCAN
        or any(segment.marker == SCAN for segment in header)
    ):
        return None
    across, down = frame.mcu_size()
    units = -(-frame.width // across) * -(-frame.height // down)
    if not all(marker[0] & 7 == index % 8 for index, marker in enumerate(parts[1::2])):
        return False
    header = [segment for segment in header if segment.marker in _PIXEL_MARKERS]
    head_bytes = sum(len(segment.body) for segment in header)
    if (
        len(parts) > 2 * MAX_RESTARTS
        or len(parts[::2]) * head_bytes > MAX_RESTART_BYTES
        or across * interval > 0xFFFF
    ):
        return None
    if len(parts[::2]) != -(-units // interval):
        return False
    for index, part in enumerate(parts[::2]):
        size = struct.pack(">HH", down, across * min(interval, units - index * interval))
        bodies = (
            segment.body[:3] + size + segment.body[7:]
            if segment.marker in _FRAMES
            else segment.body
            for segment in header
        )
        start = b"".join(
            segment._replace(body=body).encode(data)
            for segment, body in zip(header, bodies, strict=True)
        )
        if not _is_whole(b"\xff\xd8" + start + part + b"\xff\xd9"):
            return False
    return True


def _find_warning(data: bytes, max_pixels: int = 65_535**2) -> str:
    """Return libjpeg's first warning or error about a JPEG; empty if there is none.

    The colours of the decoded image do not matter here.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > max_pixels:
            return f"Corrupt JPEG data: {width} × {height} pixels, more than {max_pixels}"
        target, channels = _CHECKED.get(colours, ("GRAY", 1))
        # The smallest scale takes the least time. The buffer still has room for all pixels, because
        # libjpeg does not scale lossless JPEGs.
        buffer = np.empty((height, width, channels), np.uint8)
        simplejpeg.decode_jpeg(data, target, min_height=1, min_width=1, buffer=buffer)
    except ValueError as error:
        return str(error)
    return ""


def jpeg_quality(tables: Mapping[int, Sequence[int]]) -> int | None:
    """Estimate the quality setting, 1 to 100, of a JPEG from its quantization tables.

    The result is the quality at which libjpeg's table of luminance is nearest to the file's table.
    The distance is the difference of the sums of their 64 steps, which fall as quality rises. For
    encoders with other tables (Photoshop, phones), it is the quality at which libjpeg loses about
    as much detail. The result is None if the file has no table of luminance.

    Args:
        tables: The tables by number, as Pillow returns them; number 0 is luminance.
    """
    luminance = tables.get(0)
    if luminance is None or len(luminance) != len(_LUMINANCE):
        return None
    return _QUALITIES[bisect_left(_MIDDLES, -sum(luminance))]


def _sum_scaled_table(quality: int) -> int:
    """Return the sum of the table that libjpeg writes for a quality (jcparam.c).

    The table is a percentage of the example table, with steps between 1 and 255.
    """
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return sum(min(255, max(1, (step * percent + 50) // 100)) for step in _LUMINANCE)


# The lowest quality of each sum, and the midpoints between neighbouring sums, negated so that they
# ascend.
_LOWEST = {_sum_scaled_table(quality): quality for quality in range(100, 0, -1)}
_QUALITIES = tuple(sorted(_LOWEST.values()))
_MIDDLES = tuple(
    -(_sum_scaled_table(low) + _sum_scaled_table(high)) / 2 for low, high in pairwise(_QUALITIES)
)
