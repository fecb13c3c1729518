"""File facts: `ImageFileFacts`, `DecodedImage` (pixels with their facts), `ImageRefused` (a refusal
with them), `perceptual_hash`, and what is measured on pixels where a card asks (`with_texture`).

The hash is one that similar pictures share: 64 signs of the low frequencies of a picture,
ImageHash's `phash`.
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
    "animated": "an animation; its first frame is scored",
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
    "sixteen_bit": "more than 8 bits per sample; the high 8 are scored",
    "trailing_bytes": "bytes follow the end of the image",
}


# The largest numbers that a row holds. What a file, or a process that decoded one, states beyond
# them is not believed.
MOST = {
    "width": 2**31 - 1,
    "height": 2**31 - 1,
    "frames": 2**31 - 1,
    "orientation": 8,
    "quality": 100,
}
_Word = Annotated[str, Field(max_length=100, pattern="^[ -~]*$")]


@dataclass(frozen=True)
class ImageFileFacts:
    """What a row says of the file, known as far as it was read: what was not reached is None, or
    was no such number.

    `mode` is the file's own (Pillow's name). `orientation` is the EXIF value that would turn the
    pixels upright: 1 where there is none, and for TIFF and HEIC, whose decoders turn them. `flags`
    are sorted; `decoder` names library and version. `quality`: of a JPEG, 1 … 100 (see
    `jpeg_quality`). `texture` and `graphics`: see `texture_of`; None where not measured.
    """

    sha256: str
    format: str | None = None
    width: Annotated[int, Field(ge=0, le=MOST["width"])] | None = None
    height: Annotated[int, Field(ge=0, le=MOST["height"])] | None = None
    mode: _Word | None = None
    frames: Annotated[int, Field(ge=0, le=MOST["frames"])] | None = None
    orientation: Annotated[int, Field(ge=0, le=MOST["orientation"])] | None = None
    icc: bool | None = None
    flags: tuple[str, ...] = ()
    decoder: _Word | None = None
    quality: Annotated[int, Field(ge=0, le=MOST["quality"])] | None = None
    texture: Annotated[float, Field(ge=0, le=255)] | None = None
    graphics: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True)
class DecodedImage:
    """One image: `pixels` loaded, mode RGB, EXIF orientation not applied, none of the file's
    metadata attached.
    """

    pixels: Image.Image
    facts: ImageFileFacts


class ImageRefused(InputError):  # noqa: N818 - the name of a decision, not of a fault
    """This image has no pixels for us; `facts` hold what was learned before that."""

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
        """The same refusal, with the facts that were known by then."""
        return cls(
            reason.status, reason.detail, facts, limit=reason.limit, observed=reason.observed
        )


def inspect_bytes(data: bytes) -> ImageFileFacts:
    """SHA-256 and sniffed format of any bytes; cheap, never raises."""
    return ImageFileFacts(hashlib.sha256(data).hexdigest(), sniff_format(data))


def perceptual_hash(pixels: Image.Image) -> str:
    """The 64-bit DCT hash of a decoded image as 16 hex digits; two pictures are alike when few of
    the 64 bits differ.
    """
    import imagehash  # an extra, and half a second of scipy

    return str(imagehash.phash(pixels))


def require_perceptual_hash() -> None:
    """Raises ConfigError where the library that computes it is missing."""
    if find_spec("imagehash") is None:
        raise ConfigError(
            "phash needs the package ImageHash", hint="pip install 'touchstone-forensics[phash]'"
        )


SIDE = 256
FLAT, SOFT, SHARP = 1, 23, 48  # steps: at most, at most, at least


def with_texture(image: DecodedImage) -> DecodedImage:
    """The image, with facts that have `texture` and `graphics`; takes about a third of a
    millisecond, whatever its size.
    """
    texture, graphics = texture_of(image.pixels)
    return replace(image, facts=replace(image.facts, texture=texture, graphics=graphics))


def texture_of(pixels: Image.Image) -> tuple[float, float]:
    """(`texture`, `graphics`) of an RGB picture, rounded to 4 digits; both 0 for one that is a
    pixel wide.

    Both look at how far neighbouring pixels of a row lie apart (the largest difference of a
    channel, 0 … 255) in a view of at most 256 × 256 pixels, each of which is one of the picture's
    own: shrinking by averages would take the noise out of photographs, and make them flat too.

    `texture`: the mean of those steps. A wall or a sky has 1 to 2, an ordinary photograph 13.

    `graphics`: how much of a poster, screenshot, chart or drawing an image is: min(flat, 15 sharp,
    1 − 2 soft), and no less than 0. Flat: the share of steps of at most 1, sharp: of at least 48,
    soft: of 2 to 23. Drawn pictures have areas of one colour and hard edges between them, and
    little else; a photograph has noise and shades. The factors and steps were chosen on 533
    photographs of 20 sources and 48 screenshots and diagrams, each as found and again at 512 px and
    JPEG 75: above 0.55 lie 4 and 4 of the photographs (playing cards and white cut-outs) and 36 and
    30 of the others. Of 222 photographs of 11 further sources none lies above it, of 44 further
    screenshots and diagrams 24 and 19. Posters that are painted or photographed are not found by
    it: 1 of 60 from a gallery of generated ones.
    """
    width, height = pixels.size
    sample = np.asarray(
        pixels.resize((min(width, SIDE), min(height, SIDE)), Image.Resampling.NEAREST)
    )
    left, right = sample[:, :-1], sample[:, 1:]
    apart = np.maximum(left, right) - np.minimum(left, right)
    # `max(axis=2)` takes thirty times as long
    steps = np.maximum(np.maximum(apart[..., 0], apart[..., 1]), apart[..., 2])
    if not steps.size:
        return 0.0, 0.0
    shares = np.bincount(steps.ravel(), minlength=256) / steps.size
    flat, soft, sharp = (
        shares[: FLAT + 1].sum(),
        shares[FLAT + 1 : SOFT + 1].sum(),
        shares[SHARP:].sum(),
    )
    return round(float(shares @ np.arange(256)), 4), round(
        max(0.0, float(min(flat, 15 * sharp, 1 - 2 * soft))), 4
    )
