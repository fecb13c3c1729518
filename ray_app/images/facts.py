"""Define the facts of an image file, such as its format and size, and measure its pixels.

`ImageFileFacts` are the facts. `DecodedImage` has the pixels and the facts of a file.
`ImageRefused` is the error for a file that cannot be decoded, with its facts. `add_texture`
measures how textured and how graphic an image is, because some detectors are valid only for some
values.

`perceptual_hash` returns a hash that has mostly equal bits for similar images. It is ImageHash's
`phash`: the 64 signs of the low frequencies of an image.
"""

import hashlib
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from ray_app.errors import ConfigError, InputError, Status
from ray_app.images.formats import sniff_format

FLAG_MEANING = {
    "alpha": "has transparency, composited on white",
    "animated": "an animation; its first frame that is not empty is scored",
    "broken_exif": "EXIF cannot be read; taken to be upright",
    "broken_icc": "the colour profile cannot be read or used; ignored",
    "cmyk": "printing colours, converted to RGB",
    "grayscale": "grey only; the three channels are equal",
    "irregular_jpeg": "broken metadata or a few stray bytes in the JPEG; every pixel was decoded",
    "irregular_png": "a chunk without pixels is broken, such as a wrong checksum; every pixel was decoded",
    "metadata_unread": "texts, EXIF, XMP or a profile that the decoder reads are over max_text_bytes; the rest was not read",
    "multipage": "several pages or pictures; the first is scored",
    "no_content": "one colour, or nearly: nothing to judge",
    "oriented": "EXIF says that it should be turned; it is scored as stored",
    "preview": "the preview that a camera put into its raw file is scored",
    "sixteen_bit": "more than 8 bits per sample; the high 8 that are used are scored",
    "trailing_bytes": "bytes follow the end of the image",
}


# The largest numbers that a row can hold. A file, or a process that decoded a file, may state
# larger ones, which are not accepted.
MAX_VALUES = {
    "width": 2**31 - 1,
    "height": 2**31 - 1,
    "frames": 2**31 - 1,
    "orientation": 8,
    "quality": 100,
}
_ShortText = Annotated[str, Field(max_length=100, pattern="^[ -~]*$")]


@dataclass(frozen=True)
class ImageFileFacts:
    """The facts of an image file, such as its format and size. Its result row has them as columns.

    A fact is None if reading ended before it was known, or if its value in the file is not valid.

    Attributes:
        mode: The mode of the stored pixels, by Pillow's name.
        orientation: The EXIF orientation, with which the pixels would be turned upright. It is 1 if
            the file has none, and for TIFF and HEIC, whose decoders apply the orientation.
        flags: Notes on the file, such as `animated` or `cmyk`, sorted. `FLAG_MEANING` lists them.
        quality: The quality of a JPEG, 1 … 100 (`jpeg_quality`).
        texture: The mean difference of neighbouring pixels, 0 … 255 (`measure_texture`). None if
            not measured.
        graphics: How much the image looks like a poster, screenshot, or drawing, 0 … 1
            (`measure_texture`). None if not measured.
    """

    sha256: str
    format: str | None = None
    width: Annotated[int, Field(ge=0, le=MAX_VALUES["width"])] | None = None
    height: Annotated[int, Field(ge=0, le=MAX_VALUES["height"])] | None = None
    mode: _ShortText | None = None
    frames: Annotated[int, Field(ge=0, le=MAX_VALUES["frames"])] | None = None
    orientation: Annotated[int, Field(ge=0, le=MAX_VALUES["orientation"])] | None = None
    icc: bool | None = None
    flags: tuple[str, ...] = ()
    decoder: _ShortText | None = None
    quality: Annotated[int, Field(ge=0, le=MAX_VALUES["quality"])] | None = None
    texture: Annotated[float, Field(ge=0, le=255)] | None = None
    graphics: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True)
class DecodedImage:
    """The RGB pixels of one decoded image, with the facts of its file.

    EXIF orientation is not applied, and the file's metadata is not attached.
    """

    pixels: Image.Image
    facts: ImageFileFacts


class ImageRefused(InputError):  # noqa: N818 - it names a decision, not a failure
    """The error for an image file that cannot be decoded or exceeds a limit.

    The image gets a result row with a status and no score. `observed` exceeds `limit`. Both are
    None for other reasons.
    """

    def __init__(
        self,
        status: Status,
        detail: str,
        facts: ImageFileFacts,
        *,
        limit: float | None = None,
        observed: float | None = None,
    ) -> None:
        super().__init__(status, detail, limit=limit, observed=observed)
        self.facts = facts

    @classmethod
    def because(cls, reason: InputError, facts: ImageFileFacts) -> "ImageRefused":
        """Create an `ImageRefused` with the status and detail of another error about an image.

        `facts` are the facts of the file that are known so far.
        """
        return cls(
            reason.status, reason.detail, facts, limit=reason.limit, observed=reason.observed
        )


def inspect_bytes(data: bytes) -> ImageFileFacts:
    """Return the facts of a file that need no decoding: its SHA-256 and its sniffed format.

    This works for all bytes, and never raises an exception.
    """
    return ImageFileFacts(hashlib.sha256(data).hexdigest(), sniff_format(data))


def perceptual_hash(pixels: Image.Image) -> str:
    """Return the perceptual hash of a decoded image: 64 bits of a DCT as 16 hexadecimal digits.

    Two images are similar if few of the 64 bits differ.
    """
    import imagehash  # Imported here: it is an extra, and imports scipy for half a second.

    return str(imagehash.phash(pixels))


def require_perceptual_hash() -> None:
    """Raise ConfigError unless the library that computes the perceptual hash is installed."""
    if find_spec("imagehash") is None:
        raise ConfigError(
            "the perceptual hash (phash) requires the package ImageHash",
            hint="run pip install 'touchstone-forensics[phash]'",
        )


SIDE = 256
FLAT_MAX_STEP, SOFT_MAX_STEP, SHARP_MIN_STEP = 1, 23, 48  # Limits of flat, soft, and sharp steps.


def add_texture(image: DecodedImage) -> DecodedImage:
    """Return the image with measured values of `texture` and `graphics` in its facts.

    `measure_texture` defines the values. The card of a detector may state for which values its
    scores are valid. The measurement takes about a third of a millisecond for images of all sizes.
    """
    texture, graphics = measure_texture(image.pixels)
    return replace(image, facts=replace(image.facts, texture=texture, graphics=graphics))


def measure_texture(pixels: Image.Image) -> tuple[float, float]:
    """Measure how textured an RGB image is, and how much it looks like a drawing or screenshot.

    Both values are computed from steps. A step is the difference between two neighbouring pixels of
    a row, the largest of any channel, from 0 to 255. The image is first reduced to at most 256 ×
    256 of its pixels. It is not averaged, because that would remove the noise by which photographs
    differ from drawings.

    `texture` is the mean step. A wall or a sky has 1 to 2, an ordinary photograph 13.

    `graphics` is high for a poster, screenshot, chart, or drawing. Such images have areas of one
    colour, hard edges between them, and little else. A photograph has noise and gradients. The
    value is min(flat, 15 × sharp, 1 − 2 × soft), and at least 0. `flat` is the fraction of steps of
    at most 1, `sharp` the fraction of at least 48, and `soft` the fraction from 2 to 23.

    The factors were chosen on 533 photographs of 20 sources and on 48 screenshots and diagrams.
    Each image was measured twice: unchanged, and at 512 px as a JPEG of quality 75. `graphics` was
    above 0.55 for 4 photographs in each measurement (playing cards and white cut-outs). It was
    above 0.55 for 36 unchanged and 30 compressed screenshots and diagrams. In a test on other
    images, it was above 0.55 for none of 222 photographs of 11 sources. It was above 0.55 for 24
    unchanged and 19 compressed images of 44 screenshots and diagrams. Posters that are painted or
    photographed are not recognised. In a gallery of generated posters, 1 of 60 was. Both values are
    rounded to 4 digits, and 0 if the image is one pixel wide.
    """
    width, height = pixels.size
    sample = np.asarray(
        pixels.resize((min(width, SIDE), min(height, SIDE)), Image.Resampling.NEAREST)
    )
    left, right = sample[:, :-1], sample[:, 1:]
    differences = np.maximum(left, right) - np.minimum(left, right)
    # `max(axis=2)` takes thirty times as long.
    steps = np.maximum(np.maximum(differences[..., 0], differences[..., 1]), differences[..., 2])
    if not steps.size:
        return 0.0, 0.0
    fractions = np.bincount(steps.ravel(), minlength=256) / steps.size
    flat, soft, sharp = (
        fractions[: FLAT_MAX_STEP + 1].sum(),
        fractions[FLAT_MAX_STEP + 1 : SOFT_MAX_STEP + 1].sum(),
        fractions[SHARP_MIN_STEP:].sum(),
    )
    return round(float(fractions @ np.arange(256)), 4), round(
        max(0.0, float(min(flat, 15 * sharp, 1 - 2 * soft))), 4
    )
