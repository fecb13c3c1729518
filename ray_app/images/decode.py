"""`decode_image`: encoded bytes → RGB pixels and facts, the one decode path of every caller, in two
steps for callers that reserve memory (`peek_image`). `decoder_name`: by which library.

Formats come from the sniffed bytes, and each has exactly one Pillow class (`FORMATS`), called
directly: no other plugin ever sees the bytes, a multi-picture JPEG (MPO) is read as the JPEG that
it starts with, and Pillow's process-wide bomb limit stays as it is.
"""

import contextlib
import functools
import hashlib
import io
import logging
import re
import struct
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
from PIL.TiffImagePlugin import TiffImageFile

from ray_app.errors import InputError, Status
from ray_app.images import boxes, colour, formats, further_formats, jpeg, png
from ray_app.images import tiff as tiff_pixels
from ray_app.images.facts import MOST, DecodedImage, ImageFileFacts, ImageRefused
from ray_app.images.limits import Demand, ImageLimits, demand_of, webp_demand

# What Pillow and its plugins raise on hostile files: the tuple of Pillow's own fuzz test, and what
# our fuzzing added to it.
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
BITS_PER_SAMPLE = 258  # TIFF tag
MOST_WORDS = 200  # of a foreign message in `detail`


# Takes the file, flags to add to, and max_text_bytes.
Opener = Callable[[bytes, set[str], int], ImageFile]
# Takes a decoded image, flags to add to, and the bits per sample.
Converter = Callable[[Image.Image, set[str], int], Image.Image]

# A blank page, a black frame or an empty cut-out is one colour, perhaps with noise and a little
# shade. What detectors say of it hangs on the noise alone: touchstone-tiny gives a flat grey +4.2
# (fake), and -9.1 (real) once it has noise of 4 levels. The limits are levels of 0 to 255, in any
# channel. Of 3,557 real photographs the most even ones have a range of 113 in the sample, a
# deviation of 12.8, and a range of 73 in the reduced copy; one colour with Gaussian noise of 5
# levels lies below all three limits, and so does a shade from edge to edge of 16. A shade of 24, a
# page with a word on it, and noise of 8 count as content.
# pixels a side, on a grid; all those 3,557 end at the first, whose reads from memory are what it
# costs
GLANCE, SAMPLE = 12, 32
MOST_SAMPLED = 48  # a range beyond which nothing more is looked at
MOST_DEVIATION = 6.0
# the sides of the reduced copy; and at least so many pixels a side make one of it
REDUCED, BOX = 64, 8
MOST_REDUCED = 20  # noise averages out; a shade, or a word on a page, does not


def _open_avif(data: bytes, flags: set[str], _: int) -> ImageFile:
    """libavif refuses the whole image for a malformed EXIF item; under another type the item is
    skipped.
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


def _of_stream(opener: Callable[[io.BytesIO], ImageFile]) -> Opener:
    return lambda data, *_: opener(io.BytesIO(data))


def _load(image: ImageFile, data: bytes, flags: set[str]) -> Image.Image:
    """Every pixel: verify() accepts files cut in half, only decoding proves that all of it is
    there.
    """
    del data, flags
    image.load()
    image._decoder = None  # type: ignore[attr-defined] # of WebP and AVIF: it holds the picture once more
    return image


def _tiff_bits(image: ImageFile, data: bytes) -> int:
    """Pillow gives 12-bit samples as if they were 16-bit ones."""
    del data
    with contextlib.suppress(TypeError, ValueError):
        return int(max(image.tag_v2.get(BITS_PER_SAMPLE, (8,))))  # type: ignore[attr-defined]
    return int(image.info.get(further_formats.BIT_DEPTH, 8))


class ImageFormat(NamedTuple):
    """How files of one format are read. `open` reads the header and notes flags; `load` gives every
    pixel, or raises.

    `libraries`: what Pillow decodes with, by name and Pillow's name of it. `check` refuses a
    decoded picture whose coded data was not all there, where Pillow says nothing of that. `frames`
    and `bits` (per sample): where Pillow does not know them.
    """

    open: Opener
    load: Callable[[Any, bytes, set[str]], Image.Image] = _load
    libraries: tuple[tuple[str, str], ...] = ()
    check: Callable[[Image.Image, bytes], None] | None = None
    frames: Callable[[bytes], int] | None = None
    bits: Callable[[ImageFile, bytes], int] | None = None
    many: str = "multipage"  # the flag of a file with more than one picture


FORMATS = {
    "JPEG": ImageFormat(
        jpeg.open_header, jpeg.load, (("libjpeg-turbo", "libjpeg_turbo"), ("libjpeg", "jpg"))
    ),
    "PNG": ImageFormat(
        png.open_header,
        png.load,
        libraries=(("zlib-ng", "zlib_ng"), ("zlib", "zlib")),
        bits=lambda _, data: data[24],
        many="animated",
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
        many="animated",
    ),
    "WEBP": ImageFormat(
        _of_stream(further_formats.open_webp),
        libraries=(("libwebp", "webp"),),
        check=further_formats.check_webp,
        many="animated",
    ),
    "GIF": ImageFormat(_of_stream(GifImageFile), frames=formats.count_gif_frames, many="animated"),
    "BMP": ImageFormat(_of_stream(BmpImageFile)),
    "HEIC": ImageFormat(_of_stream(further_formats.open_heic), check=further_formats.check_items),
    "JPEG2000": ImageFormat(_of_stream(Jpeg2KImageFile), libraries=(("openjpeg", "jpg_2000"),)),
    "PNM": ImageFormat(_of_stream(further_formats.PnmFile)),
}


@dataclass(slots=True)
class _Findings:
    """Facts while they are being found."""

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

    def take_size(self, width: int, height: int) -> None:
        """Note the size that the file states. Raises InputError: corrupt_image for one that no row
        holds, and then notes none.
        """
        self.width = self.height = None
        if not (0 <= width <= MOST["width"] and 0 <= height <= MOST["height"]):
            raise InputError(Status.CORRUPT_IMAGE, f"the header declares {width} × {height} pixels")
        self.width, self.height = width, height

    def facts(self) -> ImageFileFacts:
        """Return the facts so far."""
        return ImageFileFacts(
            self.sha256, self.format, self.width, self.height, self.mode, self.frames,
            self.orientation, self.icc, tuple(sorted(self.flags)), self.decoder, self.quality,
        )  # fmt: skip


class PeekedImage:
    """An image whose header was read and whose limits were checked, and that is not decoded yet.

    Attributes:
        demand: What decoding takes.
    """

    def __init__(
        self,
        data: bytes,
        limits: ImageLimits,
        findings: _Findings,
        format_name: str,
        header: "_Header | Demand",
    ) -> None:
        self._data, self._limits, self._findings = data, limits, findings
        self._format_name = format_name
        # A WebP is not open yet: its decoder allocates memory for all pixels when it opens a file.
        self._header = None if isinstance(header, Demand) else header
        self.demand = header if isinstance(header, Demand) else header.demand

    @property
    def facts(self) -> ImageFileFacts:
        """What the header shows."""
        return self._findings.facts()

    def decode(self, *, convert: Converter | None = None) -> DecodedImage:
        """Decode every pixel, once; a file that ends early is refused, never padded.

        Args:
            convert: Makes the pixels instead of `colour.to_rgb`, from an image in the mode in which
                it is stored, for files that do not hold photographs.

        Raises:
            ImageRefused: With the facts that are known by then. Nothing else, whatever the bytes.
        """
        try:
            pixels = self._decode(convert)
            if convert is None and not has_content(pixels):
                self._findings.flags.add("no_content")
        except InputError as error:
            raise ImageRefused.because(error, self.facts) from error.__cause__
        return DecodedImage(pixels, self.facts)

    def close(self) -> None:
        """Release what decoding needs."""
        self._header, self._data = None, b""

    def _decode(self, convert: Converter | None) -> Image.Image:
        data, limits, findings, format_name = (
            self._data,
            self._limits,
            self._findings,
            self._format_name,
        )
        header = self._header or _open(data, limits, findings, format_name)
        self.close()  # A caller that keeps this object does not keep the stored pixels.
        form, image = FORMATS[format_name], header.image
        with _translated(data, format_name, image):
            loaded = form.load(image, data, findings.flags)
            if form.check is not None:
                form.check(loaded, data)
            is_plain = (
                convert is None and loaded.mode == "RGB" and "transparency" not in loaded.info
            )
            pixels = (
                loaded
                if is_plain
                else (convert or colour.to_rgb)(loaded, findings.flags, header.sample_bits)
            )
        findings.mode = image.mode
        # libheif may find another size than it stated.
        if pixels.size != (findings.width, findings.height):
            findings.take_size(*pixels.size)
            limits.check_size(*pixels.size, len(data), format_name)
        if isinstance(loaded, JpegImageFile):  # of rare sampling factors
            findings.decoder = _pillow_name(format_name)
        end = formats.declared_end(data, format_name) if format_name in formats.SURE_ENDS else None
        if end is not None and end < len(data):
            findings.flags.add("trailing_bytes")
        pixels.info = {}
        return pixels


class _Header(NamedTuple):
    """An image file that is open, and what its pixels will take."""

    image: ImageFile
    sample_bits: int
    demand: Demand


def decode_image(
    data: bytes, limits: ImageLimits, *, convert: Converter | None = None
) -> DecodedImage:
    """Turn one encoded image into its RGB pixels (the first frame of several) and its facts, or
    refuse it.

    EXIF orientation is recorded and not applied; no profile is applied but CMYK's. All limits are
    checked before pixels are decoded (`peek_image`). `convert`: see `PeekedImage.decode`. Raises
    ImageRefused with the facts known by then, and nothing else, whatever the bytes.
    """
    return peek_image(data, limits).decode(convert=convert)


def peek_image(data: bytes, limits: ImageLimits) -> PeekedImage:
    """Read the header of an encoded image and check all limits.

    Memory that decoding takes can be reserved before `PeekedImage.decode` is called.

    Raises:
        ImageRefused: With the facts that are known by then. Nothing else, whatever the bytes.
    """
    _quieten_pillow()
    findings = _Findings(hashlib.sha256(data).hexdigest(), formats.sniff_format(data))
    try:
        return _peek(data, limits, findings)
    except InputError as error:
        raise ImageRefused.because(error, findings.facts()) from error.__cause__


def _peek(data: bytes, limits: ImageLimits, findings: _Findings) -> PeekedImage:
    format_name = findings.format
    limits.check_bytes(len(data))
    if format_name is None:
        unknown = Status.UNSUPPORTED_FORMAT if data else Status.EMPTY_FILE
        raise InputError(unknown, formats.describe_unsupported(data) if data else "0 bytes")
    findings.decoder = decoder_name(format_name)
    if format_name in formats.CODED and formats.are_line_ends_converted(data):
        raise InputError(
            Status.CORRUPT_IMAGE,
            "its line ends were converted, as by FTP in ASCII mode: fetch it again",
        )
    if format_name in formats.EARLY_SIZES:
        size = formats.header_size(data, format_name)
        if size is not None:
            findings.take_size(*size)
            limits.check_size(*size, len(data), format_name)
        if format_name == "WEBP":
            demand = webp_demand(*(size or (0, 0)))
            return PeekedImage(data, limits, findings, format_name, demand)
    if format_name == "RAW":
        data, format_name = further_formats.camera_preview(data), "JPEG"
        findings.flags.add("preview")
    header = _open(data, limits, findings, format_name)
    return PeekedImage(data, limits, findings, format_name, header)


def _open(data: bytes, limits: ImageLimits, findings: _Findings, format_name: str) -> _Header:
    """Open an image file and note what its header says. Raises InputError."""
    form = FORMATS[format_name]
    with _translated(data, format_name):
        image = form.open(data, findings.flags, limits.max_text_bytes)
    sample_bits = _read_header(image, data, form, findings, limits.max_text_bytes)
    limits.check_size(*image.size, len(data), format_name)
    with _translated(data, format_name, image):
        demand = demand_of(image, data, format_name)
    return _Header(image, sample_bits, demand)


def _read_header(
    image: ImageFile, data: bytes, form: ImageFormat, found: _Findings, max_text_bytes: int
) -> int:
    """Note what the header says; returns the bits per sample in the file, which Pillow hides for
    colour. Raises InputError.
    """
    found.take_size(*image.size)
    found.mode = image.mode
    frames = form.frames(data) if form.frames else int(getattr(image, "n_frames", 1))
    found.frames = frames if 0 <= frames <= MOST["frames"] else None
    if isinstance(image, JpegImageFile):
        found.quality = jpeg.jpeg_quality(image.quantization)
    if frames > 1:
        found.flags.add(form.many)
    _check_metadata(image, found.flags, max_text_bytes)
    profile = image.info.get("icc_profile", b"")
    found.icc = bool(profile)
    if (
        "icc_profile" in image.info
        and not colour.is_icc_profile(profile)
        and len(profile or b"") <= max_text_bytes
    ):
        found.flags.add("broken_icc")
    found.orientation = 1
    # A TIFF's own orientation tag is part of how its rows are stored: Pillow turns the pixels by it
    # as it decodes.
    if (exif := image.info.get("exif")) and not isinstance(image, TiffImageFile):
        try:
            found.orientation = formats.exif_orientation(exif)
        except formats.TiffError:
            found.flags.add("broken_exif")
    if found.orientation != 1:
        found.flags.add("oriented")
    sample_bits = (
        form.bits(image, data) if form.bits else int(image.info.get(further_formats.BIT_DEPTH, 8))
    )
    if 8 < sample_bits <= 16:
        found.flags.add("sixteen_bit")
    return sample_bits


def _check_metadata(image: ImageFile, flags: set[str], max_text_bytes: int) -> None:
    """Flag metadata over the limit. It costs the pixels only if they need it: printing colours are
    converted by their profile.

    Raises InputError METADATA_TOO_LARGE.
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
def _translated(data: bytes, format_name: str, image: ImageFile | None = None) -> Iterator[None]:
    try:
        yield
    except _TOO_LARGE as error:
        raise InputError(
            Status.IMAGE_TOO_LARGE, f"the decoder refused its size: {_words(error)}"
        ) from error
    except _PILLOW_ERRORS as error:
        if reason := _unread(error, data, format_name):
            raise InputError(Status.UNSUPPORTED_FORMAT, reason) from error
        if _is_cut(error) or formats.ends_early(data, format_name):
            raise InputError(Status.TRUNCATED_IMAGE, _how_far(data, format_name, image)) from error
        raise InputError(Status.CORRUPT_IMAGE, _words(error)) from error


def _unread(error: BaseException, data: bytes, format_name: str) -> str | None:
    """What a valid file is that its decoder does not know, and what to do; None where it says
    nothing of that.
    """
    words = _words(error)
    if format_name == "BMP" and _UNREAD_BMP.match(words):
        return f"{words}: save it as PNG"
    if format_name in ("AVIF", "HEIC") and (kinds := boxes.foreign_kinds(data)):
        return f"a HEIF file with pictures of kind {', '.join(kinds)}, which Touchstone does not read: save it as JPEG or PNG"
    return None


def _is_cut(error: BaseException) -> bool:
    words = str(error).lower()
    if any(cut in words for cut in ("truncated", "unexpected end", "not enough image data")):
        return True
    return isinstance(error.__cause__ or error, struct.error | EOFError | IndexError)


def _how_far(data: bytes, format_name: str, image: ImageFile | None) -> str:
    if image is not None and format_name == "PNG" and "interlace" not in image.info:
        with contextlib.suppress(OSError):
            image.tile = []  # what was decoded before the end stays readable
            box = image.getbbox()
            return f"about {box[3] if box else 0} of {image.height} rows decoded from {len(data)} bytes"
    end = formats.declared_end(data, format_name)
    if end is not None and end > len(data):
        return f"{len(data)} of {end} bytes present"
    return f"the file ends after {len(data)} bytes, before the image does"


def _words(error: BaseException) -> str:
    kind = (
        ""
        if isinstance(error, OSError | ValueError | SyntaxError) and str(error)
        else f"{type(error).__name__}: "
    )
    return f"{kind}{error}"[:MOST_WORDS]


@functools.cache
def decoder_name(format_name: str) -> str:
    """Library and version that make the pixels: other versions may give other pixels."""
    if library := further_formats.library_of(format_name):
        return library
    return jpeg.DECODER if format_name == "JPEG" else _pillow_name(format_name)


def _pillow_name(format_name: str) -> str:
    for name, feature in FORMATS[format_name].libraries if format_name in FORMATS else ():
        if version := features.version(feature):
            return f"pillow {PIL.__version__}/{name} {version}"
    return f"pillow {PIL.__version__}"


@functools.cache
def _quieten_pillow() -> None:
    """Once per process: keep Pillow's remarks out of stderr. What matters of them is a status or a
    flag here.

    libtiff writes to file descriptor 2 from C on some damaged TIFFs; that cannot be caught without
    redirecting it for the whole process.
    """
    warnings.filterwarnings("ignore", module=r"(PIL|pi_heif)\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())


def has_content(pixels: Image.Image) -> bool:
    """False where an RGB picture is one colour, or nearly."""
    width, height = pixels.size
    nearest = Image.Resampling.NEAREST
    glance = pixels.resize((min(width, GLANCE), min(height, GLANCE)), nearest)
    # Most pictures get no further; NumPy would take five times as long, a tenth of what a tiny
    # picture takes in all.
    red, green, blue = cast(tuple[tuple[int, int], ...], glance.getextrema())
    if max(red[1] - red[0], green[1] - green[0], blue[1] - blue[0]) > MOST_SAMPLED:
        return True
    sample = np.asarray(pixels.resize((min(width, SAMPLE), min(height, SAMPLE)), nearest))
    if (
        np.ptp(sample, axis=(0, 1)).max() > MOST_SAMPLED
        or sample.std(axis=(0, 1)).max() > MOST_DEVIATION
    ):
        return True
    boxes = [max(1, min(side // BOX, REDUCED)) for side in pixels.size]
    reduced = np.asarray(pixels.resize(boxes, Image.Resampling.BOX))
    return bool(np.ptp(reduced, axis=(0, 1)).max() > MOST_REDUCED)
