"""Read JPEGs (ITU-T T.81): `open_header`, `load` the pixels of undamaged scans, `find_damage` in
other files, `jpeg_quality`.

libjpeg fills missing coded data with grey and skips surplus data, and Pillow does not report its
warnings. simplejpeg uses the same library, decodes to the same pixels, and raises the first
warning. Damage inside a scan shifts the blocks behind it, so that coded data is missing or left
over at its end. A scan in which neither happens by chance passes: libjpeg checks no codes before
the last few kB.
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

SCAN = 0  # not a marker: the coded data behind an SOS
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
# the others are hierarchical, or lossless with arithmetic coding
_READABLE = (SOF0, SOF1, SOF2, SOF3, SOF9, SOF10)
_PROGRESSIVE = (SOF2, SOF10)
_WITHOUT_BODY = (0x01, *range(0xD0, 0xD8))
_ALL = 2**64 - 1  # the coefficients of a block (A.3.6)
_DECIDING = _FRAMES | {SCAN, SOS, DHT, DAC, DQT, DRI}

# of fill bytes before it the last: with `+` a long run of them takes hours
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
# TurboJPEG's limits, not damage
_FOREIGN = ("Unsupported color conversion", "Could not determine", "data precision")
_CHECKED = {"RGB": ("RGB", 3), "CMYK": ("CMYK", 4), "YCCK": ("CMYK", 4)}  # Others become grey.
_CHANNELS = {"RGB": ("RGBX", 4), "L": ("GRAY", 1), "CMYK": ("CMYK", 4)}
_READ_AHEAD = bytes(16)  # libjpeg asks for up to eight bytes more than it needs
MOST_SEGMENTS = 10_000  # a JPEG of 32 MiB has a thousand; a hostile one could have ten million
MOST_RESTARTS = 10_000
# Of the headers of all parts between restart markers: libjpeg takes half a second for their tables.
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
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98,
    112, 100, 103, 99,
)  # fmt: skip


class JpegImage(JpegImageFile):
    """Pillow's reader, for the header. `segments`: those from the first frame on, to be read once."""

    segments: "Iterable[JpegSegment]" = ()

    def _read_dpi_from_exif(self) -> None:
        """Pillow parses all of EXIF at opening for the resolution, which is not used here: slow,
        and it warns on stderr.
        """


class JpegSegment(NamedTuple):
    """A marker and the body behind it, with the two bytes of its length; or SCAN, whose coded data
    is not copied. Offsets in the file.
    """

    marker: int
    body: bytes
    start: int
    end: int

    def encoded(self, data: bytes) -> bytes | memoryview:
        """As it stands in a file, this one or with another body."""
        return (
            memoryview(data)[self.start : self.end]
            if self.marker == SCAN
            else bytes((0xFF, self.marker)) + self.body
        )


class Frame(NamedTuple):
    """A frame header (B.2.2): its marker, bits per sample, size, and each component's id and
    sampling factors (four bits each).
    """

    marker: int
    bits: int
    height: int
    width: int
    components: list[tuple[int, int]]

    @classmethod
    def of(cls, segment: JpegSegment) -> "Frame":
        """What the body behind an SOF says, as far as it is there."""
        body = segment.body.ljust(8, b"\0")
        height, width = struct.unpack_from(">HH", body, 3)
        end = min(8 + 3 * body[7], len(body) - 2)  # an incomplete component is none
        return cls(
            segment.marker,
            body[2],
            height,
            width,
            list(zip(body[8:end:3], body[9 : end + 1 : 3], strict=False)),
        )

    def unit(self) -> tuple[int, int]:
        """Width and height in pixels of what is coded together (A.2)."""
        if len(self.components) < 2:
            return 8, 8
        return 8 * max(factors >> 4 for _, factors in self.components), 8 * max(
            factors & 15 for _, factors in self.components
        )


def open_header(data: bytes, flags: set[str], _: int = 0) -> JpegImage:
    """The header as Pillow reads it; where metadata breaks Pillow, without metadata and with a
    flag. Raises what Pillow raises.

    Raises InputError UNSUPPORTED_FORMAT for kinds of JPEG that have no decoder here.
    """
    following, frame = segments(data), None
    for segment in following:
        if segment.marker in _FRAMES:
            frame, following = Frame.of(segment), chain((segment,), following)
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
            f"{kind}, which Touchstone does not read: save as an ordinary JPEG or as PNG",
        )
    try:
        image = JpegImage(io.BytesIO(data))
    except (SyntaxError, ValueError):
        image = JpegImage(io.BytesIO(_without_metadata(data)))
        flags.add("irregular_jpeg")
    image.segments = following
    return image


def coefficient_bytes(image: JpegImageFile, data: bytes) -> int:
    """What libjpeg holds of an opened JPEG whose coefficients come in several scans: all of them,
    two bytes a sample. 0 for one scan.
    """
    header = 6 + 2 * len(image.layer)
    at = image.fp.tell() - header if image.fp else 0
    # the first scan, where Pillow stops
    is_whole = data[at - 2 : at] == b"\xff\xda" and data[at : at + 2] == header.to_bytes(2, "big")
    if is_whole and "progressive" not in image.info:
        return 0
    samples = most = 0
    for _, across, down, _ in image.layer:
        samples, most = samples + across * down, max(most, across * down)
    return 2 * image.width * image.height * samples // most


def load(image: JpegImage, data: bytes, flags: set[str]) -> Image.Image:
    """Decode the pixels of an opened JPEG, in its mode and with its `info`.

    Args:
        image: The opened header.
        data: The file.
        flags: Receives `irregular_jpeg` if metadata is broken or a few stray bytes follow coded
            data.

    Raises:
        InputError: TRUNCATED_IMAGE if coded data is missing, CORRUPT_IMAGE if it is damaged.
    """
    if _lacks_scans(image.segments):
        raise InputError(
            Status.TRUNCATED_IMAGE, f"the file ends after {len(data)} bytes, before the last scans"
        )
    try:
        pixels = _by_simplejpeg(image, data)
    except ValueError as error:
        pixels = _load_irregular(image, data, flags, str(error))
    pixels.info = image.info
    return pixels


def _load_irregular(image: JpegImage, data: bytes, flags: set[str], warning: str) -> Image.Image:
    """Decode a JPEG about which libjpeg warns. Raises as `load` does."""
    if any(words in warning for words in _OUTSIDE_SCANS):
        flags.add("irregular_jpeg")
        data = _without_metadata(data)  # The first warning may hide another one about the scans.
        try:
            return _by_simplejpeg(image, data)
        except ValueError as error:
            warning = str(error)
    if _SAMPLING in warning:
        return _by_pillow(data)
    if damage := _judge(data, warning):
        raise damage
    return _by_simplejpeg(image, data, strict=False)


def find_damage(data: bytes, max_pixels: int) -> InputError | None:
    """Decode a JPEG of another file, such as a strip of a TIFF, to find damage in its scans.

    Args:
        data: The JPEG.
        max_pixels: The size that it should have, so that a hostile one takes no more memory.

    Returns:
        The error that `load` would raise. None if no damage is found, or if only the other file's decoder can decode it.
    """
    warning = _find_warning(data, max_pixels)
    if any(words in warning for words in _OUTSIDE_SCANS):
        data = _without_metadata(data)
        warning = _find_warning(data, max_pixels)
    if _SAMPLING in warning:
        return _find_unheard_damage(data)
    return (
        _judge(data, warning)
        if warning and not any(words in warning for words in _FOREIGN)
        else None
    )


def _judge(data: bytes, warning: str) -> InputError | None:
    """Turn libjpeg's warning into an error; None if it concerns a few stray bytes or padding."""
    stray = _STRAY.search(warning)
    if stray and int(stray[2], 16) == EOI:
        if _is_padded(data, warning):
            return None
        warning = f"{warning}, more than {MAX_STRAY_BYTES}"
    elif stray and _restarts_hold(data):
        return None
    if "remature end" in warning:
        return InputError(Status.TRUNCATED_IMAGE, _how_far(data))
    if "Unsupported color conversion" in warning:
        return InputError(
            Status.UNSUPPORTED_FORMAT,
            "a lossless JPEG in colours that would have to be converted: save as PNG",
        )
    return InputError(Status.CORRUPT_IMAGE, warning.removeprefix("Corrupt JPEG data: "))


def _by_simplejpeg(image: JpegImageFile, data: bytes, *, strict: bool = True) -> Image.Image:
    """Raises ValueError in libjpeg's words: its first warning, or its error."""
    colours, channels = _CHANNELS[image.mode]
    # of the size that was checked, whatever the bytes say next
    room = np.empty((image.height, image.width, channels), np.uint8)
    pixels = simplejpeg.decode_jpeg(data, colours, buffer=room, strict=strict)
    if pixels.shape != room.shape:
        raise ValueError("frame headers of different sizes")
    if image.mode == "RGB":
        padded = Image.frombuffer("RGBX", image.size, room, "raw", "RGBX", 0, 1)
        # Pillow's RGB has four bytes per pixel too, so that the image needs no copy.
        return (
            Image.fromarrow(padded, "RGB", image.size)
            if _EXPORTS_FOREIGN_MEMORY
            else padded.convert("RGB")
        )
    if image.mode == "CMYK":  # inverted, as Adobe and all others write them
        np.subtract(255, room, out=room)
    return Image.frombuffer(image.mode, image.size, room, "raw", image.mode, 0, 1)


def _by_pillow(data: bytes) -> Image.Image:
    """Decode a JPEG whose sampling factors TurboJPEG has no name for. Raises as `load` does."""
    image = JpegImage(io.BytesIO(_without_end(data, _READ_AHEAD)))
    try:
        image.load()
    except OSError as error:
        if "truncated" not in str(error):
            raise
        raise InputError(Status.TRUNCATED_IMAGE, _how_far(data)) from error
    if damage := _find_unheard_damage(data):
        raise damage
    return image


def _find_unheard_damage(data: bytes) -> InputError | None:
    """Check a JPEG that Pillow decodes, which reports no warning. Several scans cannot be checked."""
    if len(_scans(data)) == 1 and (_restarts_hold(data) is False or not _is_whole(data)):
        return InputError(Status.CORRUPT_IMAGE, "coded data is missing or left over in the scan")
    return None


def _is_whole(data: bytes) -> bool:
    """Whether the single scan of a JPEG has all coded data, and at most a few stray bytes or
    padding behind it.
    """
    warning = _find_warning(data)
    if _SAMPLING not in warning:
        return not warning or _is_padded(data, warning)
    surplus = MAX_STRAY_BYTES + len(_READ_AHEAD)
    shorter = _without_end(_without_padding(data))[:-surplus]
    return _is_enough(_without_end(data, _READ_AHEAD)) and not _is_enough(shorter)


def _is_enough(data: bytes) -> bool:
    """Whether Pillow finds all coded data in a JPEG without its end marker, which it does not fill."""
    try:
        JpegImage(io.BytesIO(data)).load()
    except (OSError, SyntaxError):
        return False
    return True


def _is_padded(data: bytes, warning: str) -> bool:
    """Whether libjpeg warns only of a few stray bytes before the end marker, or of a byte that is
    repeated.
    """
    if not _are_few(warning):
        warning = _find_warning(_without_padding(data))
    return not warning or _are_few(warning)


def _are_few(warning: str) -> bool:
    stray = _STRAY.search(warning)
    return stray is not None and int(stray[1]) <= MAX_STRAY_BYTES and int(stray[2], 16) == EOI


def _without_padding(data: bytes) -> bytes:
    """Shorten repetitions of the last scan's last byte to as many as may be stray bytes."""
    *_, scan = _scans(data)
    coded = data[scan.start : scan.end]
    padding = len(coded) - len(coded.rstrip(coded[-1:]))
    return data[: scan.end - max(0, padding - MAX_STRAY_BYTES)] + data[scan.end :]


def _how_far(data: bytes) -> str:
    image = JpegImage(io.BytesIO(_without_end(data)))
    if "progressive" in image.info:
        return f"coded data is missing from {len(data)} bytes"
    with contextlib.suppress(OSError):
        image.load()
    image.tile = []  # what was decoded before the end stays readable
    box = image.getbbox()
    return f"about {box[3] if box else 0} of {image.height} rows decoded from {len(data)} bytes"


def segments(data: bytes, most: int = MOST_SEGMENTS) -> Iterator[JpegSegment]:
    """What libjpeg takes the bytes for, up to the end marker or the end; bytes between two segments
    are skipped, as it does.
    """
    at = 2
    for _ in range(most):
        found = _MARKER.search(data, at)
        if found is None or (marker := found[1][0]) == EOI:
            return
        at = found.end()
        if marker in _WITHOUT_BODY:
            continue
        start, at = at, at + int.from_bytes(data[at : at + 2], "big")
        yield JpegSegment(marker, data[start:at], start, at)
        if marker == SOS:
            found = _SCAN_END.search(data, at)
            start, at = at, found.start() if found else len(data)
            yield JpegSegment(SCAN, b"", start, at)


def _scans(data: bytes) -> list[JpegSegment]:
    return [segment for segment in segments(data) if segment.marker == SCAN]


def _frame(data: bytes) -> Frame | None:
    return next(
        (Frame.of(segment) for segment in segments(data) if segment.marker in _FRAMES), None
    )


def _lacks_scans(segments: Iterable[JpegSegment]) -> bool:
    """Whether some bits of some component are in none of the scans: libjpeg leaves them at zero
    without a word.
    """
    # of each component, a bit for each coefficient of a block that is not complete
    lacking: dict[int, int] = {}
    is_progressive = False
    for marker, body, *_ in segments:
        if marker in _FRAMES:
            lacking = dict.fromkeys(
                dict(Frame.of(JpegSegment(marker, body, 0, 0)).components), _ALL
            )
            is_progressive = marker in _PROGRESSIVE
        elif marker == SOS and len(body) >= 6:
            first, last, low_bit = (
                (body[-3], body[-2], body[-1] & 15) if is_progressive else (0, 63, 0)
            )
            sent = (1 << max(first, last + 1)) - (1 << first)
            for number in lacking.keys() & set(body[3:-3:2]):
                lacking[number] = lacking[number] | sent if low_bit else lacking[number] & ~sent
            if not is_progressive and not any(lacking.values()):
                return False
    return any(lacking.values())


def _without_metadata(data: bytes) -> bytes:
    """The segments that decide pixels, and those two of applications that decide colour, as libjpeg
    takes them.
    """
    frame = _frame(data)
    transforms = (0, 2) if frame is not None and len(frame.components) == 4 else (0, 1)
    parts: list[bytes | memoryview] = [bytes((0xFF, SOI))]
    for segment in segments(data):
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
        elif segment.marker not in _DECIDING:
            continue
        parts.append(segment._replace(body=body).encoded(data))
    return b"".join((*parts, bytes((0xFF, EOI))))


def _without_end(data: bytes, instead: bytes = b"") -> bytes:
    """A JPEG of one scan up to where its coded data ends; any other as it is."""
    scans = _scans(data)
    return data[: scans[0].end] + instead if len(scans) == 1 else data


def _restarts_hold(data: bytes) -> bool | None:
    """Whether a JPEG of one scan is whole between any two of its restart markers; None if it cannot
    be checked.

    Each part is decoded as an image of one row of MCUs (A.2).
    """
    *header, scan = segments(data)
    frame, parts = (
        _frame(data),
        _RESTART.split(memoryview(data)[scan.start : scan.end], MOST_RESTARTS),
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
    across, down = frame.unit()
    units = -(-frame.width // across) * -(-frame.height // down)
    if not all(marker[0] & 7 == number % 8 for number, marker in enumerate(parts[1::2])):
        return False
    header = [segment for segment in header if segment.marker in _DECIDING]
    head_bytes = sum(len(segment.body) for segment in header)
    if (
        len(parts) > 2 * MOST_RESTARTS
        or len(parts[::2]) * head_bytes > MAX_RESTART_BYTES
        or across * interval > 0xFFFF
    ):
        return None
    if len(parts[::2]) != -(-units // interval):
        return False
    for number, part in enumerate(parts[::2]):
        size = struct.pack(">HH", down, across * min(interval, units - number * interval))
        bodies = (
            each.body[:3] + size + each.body[7:] if each.marker in _FRAMES else each.body
            for each in header
        )
        start = b"".join(
            each._replace(body=body).encoded(data)
            for each, body in zip(header, bodies, strict=True)
        )
        if not _is_whole(b"\xff\xd8" + start + part + b"\xff\xd9"):
            return False
    return True


def _find_warning(data: bytes, max_pixels: int = 65_535**2) -> str:
    """Return libjpeg's first warning or error about a JPEG whose colours do not matter; empty if
    there is none.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > max_pixels:
            return f"Corrupt JPEG data: {width} × {height} pixels, more than {max_pixels}"
        target, channels = _CHECKED.get(colours, ("GRAY", 1))
        # The smallest scale takes the least time, but libjpeg does not scale lossless JPEGs: the
        # buffer holds all pixels.
        room = np.empty((height, width, channels), np.uint8)
        simplejpeg.decode_jpeg(data, target, min_height=1, min_width=1, buffer=room)
    except ValueError as error:
        return str(error)
    return ""


def jpeg_quality(tables: Mapping[int, Sequence[int]]) -> int | None:
    """The quality 1 … 100 at which libjpeg would write the table of luminance nearest to a file's;
    None where it has none.

    Nearest by the sum of its 64 steps, which falls as quality rises. Encoders with tables of their
    own (Photoshop, phones) get the quality that removes about as much. `tables`: by number, as
    Pillow gives them; luminance is number 0.
    """
    luminance = tables.get(0)
    if luminance is None or len(luminance) != len(_LUMINANCE):
        return None
    return _QUALITIES[bisect_left(_MIDDLES, -sum(luminance))]


def _scaled_sum(quality: int) -> int:
    """The sum of the table that libjpeg makes for a quality (jcparam.c): percentages of the
    example, steps between 1 and 255.
    """
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return sum(min(255, max(1, (step * percent + 50) // 100)) for step in _LUMINANCE)


# The lowest quality of each sum; and where the next one is nearer, of numbers that rise.
_LOWEST = {_scaled_sum(quality): quality for quality in range(100, 0, -1)}
_QUALITIES = tuple(sorted(_LOWEST.values()))
_MIDDLES = tuple(-(_scaled_sum(low) + _scaled_sum(high)) / 2 for low, high in pairwise(_QUALITIES))
