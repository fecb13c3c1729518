"""Decode image files to RGB pixels and facts of the file, in the same way for all callers.

`decode_image` decodes a file in one step. Callers that reserve memory first use `peek_image`, which
reads only the header, and then `PeekedImage.decode`.
`get_decoder_name` returns the library that decodes a format.

The format is sniffed from the bytes, and each format has exactly one Pillow class (`FORMATS`),
which is called directly. So no other plugin of Pillow reads the bytes. A JPEG with several images
(MPO) is read as the JPEG with which it starts. Pillow's process-wide bomb limit is not changed.
"""

import contextlib
import functools
import hashlib
import io
import logging
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import PIL
from PIL import Image, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ray_app.errors import InputError, Status
from ray_app.images import boxes, colour, formats, further_formats, jpeg, png
from ray_app.images import tiff as tiff_pixels
from ray_app.images.facts import MAX_VALUES, DecodedImage, ImageFileFacts, ImageRefused
from ray_app.images.limits import DecodeCost, ImageLimits, estimate_demand, estimate_webp_demand

# The exceptions that Pillow and its plugins raise for hostile files: those of Pillow's own fuzz
# test, and those that Touchstone's fuzzing found.
_PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
    Warning,
)
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)
_UNREAD_BMP = re.compile(r"Unsupported BMP (bitfields|compression|pixel depth \((0|2|64)\))")
BITS_PER_SAMPLE = 258  # A TIFF tag.
MAX_BLANK_FRAMES = 8  # At the start of an animation. Most have one.
MAX_DETAIL_CHARS = 200  # The maximum length of a library's message in `detail`.


# Takes the file, flags to add to, and max_text_bytes.
Opener = Callable[[bytes, set[str], int], ImageFile]
# Takes a decoded image, flags to add to, and the bits per sample.
Converter = Callable[[Image.Image, set[str], int], Image.Image]

# A blank page, a black frame, or an empty cut-out has one colour, perhaps with noise and a slight
# gradient. The score of a detector then depends on the noise alone: touchstone-tiny scores a flat
# grey +4.2 (fake), and the same grey with noise of 4 levels -9.1 (real). The limits are levels of 0
# to 255, in any channel. Among 3,557 real photographs, the most even ones have a range of 113 in
# the sample, a deviation of 12.8, and a range of 73 in the reduced copy. One colour with Gaussian
# noise of 5 levels is below all three limits, and so is a gradient of 16 levels from edge to edge.
# A gradient of 24, a page with one word, and noise of 8 levels count as content.

# Pixels per side of two samples on a grid. All of the 3,557 photographs pass at the first sample,
# whose cost is its reads from memory.
GLANCE_SIDE, SAMPLE_SIDE = 12, 32
MAX_SAMPLE_RANGE = 48  # A larger range shows content, without further tests.
MAX_DEVIATION = 6.0
# Pixels per side of the reduced copy, and the minimum side of the box that is averaged to one
# pixel.
REDUCED_SIDE, BOX_SIDE = 64, 8
MAX_REDUCED_RANGE = 20  # Noise averages out; a gradient, or a word on a page, does not.


def _open_avif(data: bytes, flags: set[str], _: int) -> ImageFile:
    """Open an AVIF, without its EXIF if that is malformed.

    libavif refuses the whole image for a malformed EXIF item. It skips the item if its type is
    another.
    """
    try:
        return AvifImageFile(io.BytesIO(data))
    except (ValueError, SyntaxError):
        masked = re.sub(rb"(infe.{8,10}?)Exif", rb"\1skip", data, count=1, flags=re.DOTALL)
        if masked == data:
            raise
        image = AvifImageFile(io.BytesIO(masked))
        flags.add("broken_exif")
        return image


# Pillow's names of 16-bit samples, of which it keeps the high bytes, and of the other byte order.
_OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
_LOW_BYTES = {
    f"{colours};16{order}": f"{colours};16{other}"
    for colours in ("RGB", "RGBX", "RGBA")
    for order, other in _OTHER_ORDER.items()
}


def _adapt_opener(opener: Callable[[io.BytesIO], ImageFile]) -> Opener:
    return lambda data, *_: opener(io.BytesIO(data))


def _load(image: ImageFile, data: bytes, flags: set[str]) -> Image.Image:
    """Decode every pixel, which shows that the whole file is present.

    verify() also accepts files that are cut in half.
    """
    del data, flags
    image.load()
    # The decoders of WebP and AVIF hold a second copy of the image.
    image._decoder = None  # type: ignore[attr-defined]
    return image


def _tiff_bits(image: ImageFile, data: bytes) -> int:
    """Return the bits per sample of a TIFF; Pillow returns 12-bit samples as 16-bit samples."""
    del data
    with contextlib.suppress(TypeError, ValueError):
        return int(max(image.tag_v2.get(BITS_PER_SAMPLE, (8,))))  # type: ignore[attr-defined]
    return int(image.info.get(further_formats.BIT_DEPTH, 8))


class ImageFormat(NamedTuple):
    """The functions with which files of one format are read.

    Attributes:
        open: A function that reads the header. It may add flags (`FLAG_MEANING`), notes on the file
            such as `broken_exif`.
        load: A function that decodes every pixel, or raises an exception.
        libraries: The libraries with which Pillow decodes the format, as (name, name in Pillow).
            An example is ("libwebp", "webp").
        check: A function that refuses a decoded image if its coded data was incomplete; None if
            `load` raises an exception for incomplete data.
        frames: A function that counts the frames; None if Pillow counts them.
        bits: A function that returns the bits per sample; None if Pillow reports them.
        multi_frame_flag: The flag for a file with more than one image: `animated` or `multipage`.
    """

    open: Opener
    load: Callable[[Any, bytes, set[str]], Image.Image] = _load
    libraries: tuple[tuple[str, str], ...] = ()
    check: Callable[[Image.Image, bytes], None] | None = None
    frames: Callable[[bytes], int] | None = None
    bits: Callable[[ImageFile, bytes], int] | None = None
    multi_frame_flag: str = "multipage"


FORMATS = {
    "JPEG": ImageFormat(
        jpeg.open_header, jpeg.load, (("libjpeg-turbo", "libjpeg_turbo"), ("libjpeg", "jpg"))
    ),
    "PNG": ImageFormat(
        png.open_header,
        png.load,
        libraries=(("zlib-ng", "zlib_ng"), ("zlib", "zlib")),
        bits=lambda _, data: data[24],
        multi_frame_flag="animated",
    ),
    "TIFF": ImageFormat(
        lambda data, *_: tiff_pixels.open_header(data),
        libraries=(("libtiff", "libtiff"),),
        check=tiff_pixels.check,
        frames=formats.count_tiff_pages,
        bits=_tiff_bits,
    ),
    "AVIF": ImageFormat(
        _open_avif,
        libraries=(("libavif", "avif"),),
        check=further_formats.check_items,
        multi_frame_flag="animated",
    ),
    "WEBP": ImageFormat(
        _adapt_opener(further_formats.open_webp),
        libraries=(("libwebp", "webp"),),
        check=further_formats.check_webp,
        multi_frame_flag="animated",
    ),
    "GIF": ImageFormat(
        _adapt_opener(GifImageFile), frames=formats.count_gif_frames, multi_frame_flag="animated"
    ),
    "BMP": ImageFormat(_adapt_opener(BmpImageFile)),
    "HEIC": ImageFormat(
        _adapt_opener(further_formats.open_heic), check=further_formats.check_items
    ),
    "JPEG2000": ImageFormat(_adapt_opener(Jpeg2KImageFile), libraries=(("openjpeg", "jpg_2000"),)),
    "PNM": ImageFormat(_adapt_opener(further_formats.PnmFile)),
}


@dataclass(slots=True)
class _FactsBuilder:
    """Collects the facts of a file."""

    sha256: str
    format: str | None
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    frames: int | None = None
    orientation: int | None = None
    icc: bool | None = None
    flags: set[str] = field(default_factory=set)
    decoder: str | None = None
    quality: int | None = None

    def set_size(self, width: int, height: int) -> None:
        """Set the size that the file states, or None for an impossible size.

        Raises InputError (corrupt_image) for a size that a row cannot hold.
        """
        self.width = self.height = None
        if not (0 <= width <= MAX_VALUES["width"] and 0 <= height <= MAX_VALUES["height"]):
            raise InputError(Status.CORRUPT_IMAGE, f"the header declares {width} × {height} pixels")
        self.width, self.height = width, height

    def facts(self) -> ImageFileFacts:
        """Return the facts so far."""
        return ImageFileFacts(
            self.sha256, self.format, self.width, self.height, self.mode, self.frames,
            self.orientation, self.icc, tuple(sorted(self.flags)), self.decoder, self.quality,
        )  # fmt: skip


class PeekedImage:
    """An image that is not decoded yet. Its header was read, and it is within the `ImageLimits`."""

    def __init__(
        self,
        data: bytes,
        limits: ImageLimits,
        builder: _FactsBuilder,
        format_name: str,
        header: "_Header | DecodeCost",
    ) -> None:
        self._data, self._limits, self._builder = data, limits, builder
        self._format_name = format_name
        # A WebP is not open yet: its decoder allocates memory for all pixels when it opens a file.
        self._header = None if isinstance(header, DecodeCost) else header
        self.demand = header if isinstance(header, DecodeCost) else header.demand

    @property
    def facts(self) -> ImageFileFacts:
        """The facts that are known from the header, such as format, width, and height."""
        return self._builder.facts()

    def decode(self, *, convert: Converter | None = None) -> DecodedImage:
        """Decode every pixel of the image. Call this only once.

        A file that ends early is refused. Missing pixels are never filled in. For files that are
        not photographs, `convert` replaces `colour.to_rgb`. Whatever the bytes are, the only
        exception is ImageRefused, with the facts known so far.
        """
        data, flags = self._data, self._builder.flags
        try:
            pixels = self._decode(convert)
            if convert is None and not has_content(pixels):
                is_searched = "animated" in flags and not self.demand.is_large
                frame = _find_frame(data, self._format_name, pixels.size) if is_searched else None
                if frame is None:
                    flags.add("no_content")
                else:
                    pixels = frame
        except InputError as error:
            raise ImageRefused.because(error, self.facts) from error.__cause__
        return DecodedImage(pixels, self.facts)

    def close(self) -> None:
        """Release the encoded file and the opened image, whether the image is decoded or not."""
        self._header, self._data = None, b""

    def _decode(self, convert: Converter | None) -> Image.Image:
        data, limits, builder, format_name = (
            self._data,
            self._limits,
            self._builder,
            self._format_name,
        )
        header = self._header or _open(data, limits, builder, format_name)
        self.close()  # A caller that keeps this object does not keep the stored pixels.
        image_format, image = FORMATS[format_name], header.image
        with _translate_errors(data, format_name, image):
            loaded = image_format.load(image, data, builder.flags)
            if image_format.check is not None:
                image_format.check(loaded, data)
            if convert is None and header.sample_bits == 16 and loaded.mode in ("RGB", "RGBA"):
                _use_narrow_range(loaded, data, image_format, limits.max_text_bytes)
            is_plain = (
                convert is None and loaded.mode == "RGB" and "transparency" not in loaded.info
            )
            pixels = (
                loaded
                if is_plain
                else (convert or colour.to_rgb)(loaded, builder.flags, header.sample_bits)
            )
        builder.mode = image.mode
        # libheif may decode to another size than it stated.
        if pixels.size != (builder.width, builder.height):
            builder.set_size(*pixels.size)
            limits.check_size(*pixels.size, len(data), format_name)
        if isinstance(loaded, JpegImageFile):  # Pillow decodes rare sampling factors.
            builder.decoder = _pillow_decoder_name(format_name)
        end = (
            formats.find_declared_end(data, format_name)
            if format_name in formats.RELIABLE_ENDS
            else None
        )
        if end is not None and end < len(data):
            builder.flags.add("trailing_bytes")
        pixels.info = {}
        return pixels


def _use_narrow_range(
    image: Image.Image, data: bytes, image_format: ImageFormat, max_text_bytes: int
) -> None:
    """Give an image of 10 or 12 bits in samples of 16 bits the high 8 of its own bits, in place.

    Pillow has decoded the high bytes of the samples, which are nearly black. The file is decoded
    once more for the low bytes.
    """
    extrema = cast(tuple[tuple[int, int], ...], image.getextrema())
    used_bits = colour.find_used_bits(max(high for _, high in extrema[:3]) << 8 | 255)
    low = image_format.open(data, set(), max_text_bytes) if used_bits < 16 else None
    if low is None:
        return
    args = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in low.tile]
    is_planar = getattr(low, "tag_v2", {}).get(tiff_pixels.PLANAR) == 2
    if is_planar or not all(raw_mode in _LOW_BYTES for raw_mode, *_ in args):
        return  # Pillow decodes no low bytes of planes, premultiplied alpha, or grey with alpha.
    low.tile = [
        tile._replace(args=(_LOW_BYTES[raw_mode], *others))
        for tile, (raw_mode, *others) in zip(low.tile, args, strict=True)
    ]
    low.load()
    colour.merge_low_bytes(image, low, used_bits)


def _find_frame(data: bytes, format_name: str, size: tuple[int, int]) -> Image.Image | None:
    """Return the first frame with content of an animation whose first frame has none, as RGB.

    The result is None if none of the next MAX_BLANK_FRAMES frames has content, or if the frames
    before it are damaged.
    """
    with contextlib.suppress(*_PILLOW_ERRORS, *_TOO_LARGE, InputError):
        # The reader of PNG leaves out the chunks of further frames.
        image = (
            PngImageFile(io.BytesIO(data))
            if format_name == "PNG"
            else FORMATS[format_name].open(data, set(), 0)
        )
        for number in range(1, MAX_BLANK_FRAMES + 1):
            image.seek(number)
            if image.size != size:  # A frame of a GIF may be larger, up to any size.
                break
            pixels = colour.to_rgb(image, set(), 8).copy()
            if has_content(pixels):
                pixels.info = {}
                return pixels
    return None


class _Header(NamedTuple):
    """An open image file, its bits per sample, and the cost of decoding it."""

    image: ImageFile
    sample_bits: int
    demand: DecodeCost


def decode_image(
    data: bytes, limits: ImageLimits, *, convert: Converter | None = None
) -> DecodedImage:
    """Decode one encoded image, or its first frame that is not empty, to RGB pixels and file facts.

    EXIF orientation is recorded and not applied, except for TIFF and HEIC, whose decoders apply it.
    No colour profile is applied, except for CMYK. All limits are checked before pixels are decoded.
    For files that are not photographs, `convert` replaces `colour.to_rgb`. Whatever the bytes are,
    the only exception is ImageRefused, with the facts known so far.
    """
    return peek_image(data, limits).decode(convert=convert)


def peek_image(data: bytes, limits: ImageLimits) -> PeekedImage:
    """Read the header of an encoded image and check all limits.

    Callers can reserve the memory for decoding before they call `PeekedImage.decode`. Whatever the
    bytes are, the only exception is ImageRefused, with the facts known so far.
    """
    _quieten_pillow()
    builder = _FactsBuilder(hashlib.sha256(data).hexdigest(), formats.sniff_format(data))
    try:
        return _peek(data, limits, builder)
    except InputError as error:
        raise ImageRefused.because(error, builder.facts()) from error.__cause__


def _peek(data: bytes, limits: ImageLimits, builder: _FactsBuilder) -> PeekedImage:
    format_name = builder.format
    limits.check_bytes(len(data))
    if format_name is None:
        unknown = Status.UNSUPPORTED_FORMAT if data else Status.EMPTY_FILE
        raise InputError(unknown, formats.describe_unsupported(data) if data else "0 bytes")
    builder.decoder = get_decoder_name(format_name)
    if format_name in formats.CODED and formats.are_line_ends_converted(data):
        raise InputError(
            Status.CORRUPT_IMAGE,
            "its line ends were converted, as by FTP in ASCII mode: fetch it again",
        )
    if format_name in formats.EARLY_SIZES:
        size = formats.read_header_size(data, format_name)
        if size is not None:
            builder.set_size(*size)
            limits.check_size(*size, len(data), format_name)
        if format_name == "WEBP":
            demand = estimate_webp_demand(*(size or (0, 0)))
            return PeekedImage(data, limits, builder, format_name, demand)
    if format_name == "RAW":
        data, format_name = further_formats.extract_camera_preview(data), "JPEG"
        builder.flags.add("preview")
    elif format_name == "TIFF":
        data = formats.skip_reduced_copy(data)
    header = _open(data, limits, builder, format_name)
    return PeekedImage(data, limits, builder, format_name, header)


def _open(data: bytes, limits: ImageLimits, builder: _FactsBuilder, format_name: str) -> _Header:
    """Open an image file and set the facts of its header."""
    image_format = FORMATS[format_name]
    with _translate_errors(data, format_name):
        image = image_format.open(data, builder.flags, limits.max_text_bytes)
    sample_bits = _read_header(image, data, image_format, builder, limits.max_text_bytes)
    limits.check_size(*image.size, len(data), format_name)
    with _translate_errors(data, format_name, image):
        demand = estimate_demand(image, data, format_name, sample_bits)
    return _Header(image, sample_bits, demand)


def _read_header(
    image: ImageFile,
    data: bytes,
    image_format: ImageFormat,
    builder: _FactsBuilder,
    max_text_bytes: int,
) -> int:
    """Set the facts of the header, and return the bits per sample in the file.

    Pillow does not report these bits for colour. Raises InputError if the size is impossible, or
    the metadata is over the limit and the pixels need it.
    """
    builder.set_size(*image.size)
    builder.mode = image.mode
    frames = (
        image_format.frames(data) if image_format.frames else int(getattr(image, "n_frames", 1))
    )
    builder.frames = frames if 0 <= frames <= MAX_VALUES["frames"] else None
    if isinstance(image, JpegImageFile):
        builder.quality = jpeg.jpeg_quality(image.quantization)
    if frames > 1:
        builder.flags.add(image_format.multi_frame_flag)
    _check_metadata(image, builder.flags, max_text_bytes)
    profile = image.info.get("icc_profile", b"")
    builder.icc = bool(profile)
    if (
        "icc_profile" in image.info
        and not colour.is_icc_profile(profile)
        and len(profile or b"") <= max_text_bytes
    ):
        builder.flags.add("broken_icc")
    builder.orientation = 1
    # Pillow applies a TIFF's own orientation tag when it decodes, because the tag is part of how
    # the rows are stored.
    if (exif := image.info.get("exif")) and not isinstance(image, TiffImageFile):
        try:
            builder.orientation = formats.read_exif_orientation(exif)
        except formats.TiffError:
            builder.flags.add("broken_exif")
    if builder.orientation != 1:
        builder.flags.add("oriented")
    sample_bits = (
        image_format.bits(image, data)
        if image_format.bits
        else int(image.info.get(further_formats.BIT_DEPTH, 8))
    )
    if 8 < sample_bits <= 16:
        builder.flags.add("sixteen_bit")
    return sample_bits


def _check_metadata(image: ImageFile, flags: set[str], max_text_bytes: int) -> None:
    """Flag metadata over the limit, or refuse it if the pixels need it.

    Only the pixels of printing colours need metadata: they are converted by their profile. The
    error is an InputError, metadata_too_large.
    """
    profile = image.info.get("icc_profile") or b""
    size = len(profile)
    if image.mode == "CMYK" and size > max_text_bytes and profile[36:40] == b"acsp":
        reason = f"a colour profile of {size} bytes, which these printing colours need, is over max_text_bytes ({max_text_bytes})"
        raise InputError(Status.METADATA_TOO_LARGE, reason, limit=max_text_bytes, observed=size)
    total = 0
    for value in image.info.values():
        if isinstance(value, str | bytes):
            total += len(value)
    if total > max_text_bytes:
        flags.add("metadata_unread")


@contextlib.contextmanager
def _translate_errors(
    data: bytes, format_name: str, image: ImageFile | None = None
) -> Iterator[None]:
    try:
        yield
    except _TOO_LARGE as error:
        raise InputError(
            Status.IMAGE_TOO_LARGE, f"the decoder refused its size: {_describe_error(error)}"
        ) from error
    except _PILLOW_ERRORS as error:
        if reason := _explain_unread(error, data, format_name):
            raise InputError(Status.UNSUPPORTED_FORMAT, reason) from error
        if _is_truncation(error) or formats.ends_early(data, format_name):
            raise InputError(
                Status.TRUNCATED_IMAGE, _describe_progress(data, format_name, image)
            ) from error
        raise InputError(Status.CORRUPT_IMAGE, _describe_error(error)) from error


def _explain_unread(error: BaseException, data: bytes, format_name: str) -> str | None:
    """Return what a valid file is that its decoder cannot read, and what to do.

    The result is None if the error does not show such a file.
    """
    message = _describe_error(error)
    if format_name == "BMP" and _UNREAD_BMP.match(message):
        return f"{message}: save it as PNG"
    if format_name in ("AVIF", "HEIC") and (kinds := boxes.find_foreign_kinds(data)):
        return f"a HEIF file with images of kind {', '.join(kinds)}, which Touchstone does not read: save it as JPEG or PNG"
    return None


def _is_truncation(error: BaseException) -> bool:
    message = str(error).lower()
    if any(
        phrase in message for phrase in ("truncated", "unexpected end", "not enough image data")
    ):
        return True
    return isinstance(error.__cause__ or error, struct.error | EOFError | IndexError)


def _describe_progress(data: bytes, format_name: str, image: ImageFile | None) -> str:
    if image is not None and format_name == "PNG" and "interlace" not in image.info:
        with contextlib.suppress(OSError):
            image.tile = []  # The rows that are decoded stay readable.
            box = image.getbbox()
            return f"about {box[3] if box else 0} of {image.height} rows decoded from {len(data)} bytes"
    end = formats.find_declared_end(data, format_name)
    if end is not None and end > len(data):
        return f"{len(data)} of {end} bytes present"
    return f"the file ends after {len(data)} bytes, before the image does"


def _describe_error(error: BaseException) -> str:
    kind = (
        ""
        if isinstance(error, OSError | ValueError | SyntaxError) and str(error)
        else f"{type(error).__name__}: "
    )
    return f"{kind}{error}"[:MAX_DETAIL_CHARS]


@functools.cache
def get_decoder_name(format_name: str) -> str:
    """Return the name and version of the library that decodes a format.

    Another version may decode the same file to other pixels.
    """
    if library := further_formats.find_library(format_name):
        return library
    return jpeg.DECODER if format_name == "JPEG" else _pillow_decoder_name(format_name)


def _pillow_decoder_name(format_name: str) -> str:
    for name, feature in FORMATS[format_name].libraries if format_name in FORMATS else ():
        if version := features.version(feature):
            return f"pillow {PIL.__version__}/{name} {version}"
    return f"pillow {PIL.__version__}"


@functools.cache
def _quieten_pillow() -> None:
    """Keep Pillow's warnings out of stderr; once per process.

    Relevant warnings are a status or a flag here. libtiff writes to file descriptor 2 from C on
    some damaged TIFFs, which can only be caught by redirecting it for the whole process.
    """
    warnings.filterwarnings("ignore", module=r"(PIL|pi_heif)\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())


def has_content(pixels: Image.Image) -> bool:
    """Return whether an RGB image has content. It has none if all pixels have nearly one colour.

    An image without content, such as a blank page, gets the flag `no_content` and the verdict
    abstain. A detector's score would depend on its noise alone.
    """
    width, height = pixels.size
    nearest = Image.Resampling.NEAREST
    glance = pixels.resize((min(width, GLANCE_SIDE), min(height, GLANCE_SIDE)), nearest)
    # Most images pass here. NumPy would take five times as long, a tenth of the total time for a
    # tiny image.
    red, green, blue = cast(tuple[tuple[int, int], ...], glance.getextrema())
    if max(red[1] - red[0], green[1] - green[0], blue[1] - blue[0]) > MAX_SAMPLE_RANGE:
        return True
    sample = np.asarray(pixels.resize((min(width, SAMPLE_SIDE), min(height, SAMPLE_SIDE)), nearest))
    if (
        np.ptp(sample, axis=(0, 1)).max() > MAX_SAMPLE_RANGE
        or sample.std(axis=(0, 1)).max() > MAX_DEVIATION
    ):
        return True
    reduced_size = [max(1, min(side // BOX_SIDE, REDUCED_SIDE)) for side in pixels.size]
    reduced = np.asarray(pixels.resize(reduced_size, Image.Resampling.BOX))
    return bool(np.ptp(reduced, axis=(0, 1)).max() > MAX_REDUCED_RANGE)
