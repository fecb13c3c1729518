"""File facts: `ImageFileFacts`, `DecodedImage` (pixels with their facts), `ImageRefused` (a refusal with them), and `perceptual_hash`.

The hash is one that similar pictures share: 64 signs of the low frequencies of a picture, ImageHash's `phash`.
"""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

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
    "irregular_jpeg": "broken metadata or stray bytes in the JPEG; all of its pixels are there",
    "multipage": "several pages or pictures; the first is scored",
    "no_content": "one colour, or nearly: nothing to judge",
    "oriented": "EXIF says that it should be turned; it is scored as stored",
    "preview": "the preview that a camera put into its raw file is scored",
    "sixteen_bit": "more than 8 bits per sample; the high 8 are scored",
    "trailing_bytes": "bytes follow the end of the image",
}


# The largest numbers that a row holds. What a file, or a process that decoded one, states beyond them is not believed.
MOST = {"width": 2**31 - 1, "height": 2**31 - 1, "frames": 2**31 - 1, "orientation": 8, "quality": 100}
_Word = Annotated[str, Field(max_length=100, pattern="^[ -~]*$")]


@dataclass(frozen=True)
class ImageFileFacts:
    """What a row says of the file, known as far as it was read: what was not reached is None, or was no such number.

    `mode` is the file's own (Pillow's name). `orientation` is the EXIF value that would turn the pixels upright: 1 where there is none,
    and for TIFF and HEIC, whose decoders turn them. `flags` are sorted; `decoder` names library and version.
    `quality`: of a JPEG, 1 … 100 (see `jpeg_quality`). `texture` and `graphics`: see `ray_app.images.texture`; None where not measured.
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
    """One image: `pixels` loaded, mode RGB, EXIF orientation not applied, none of the file's metadata attached."""

    pixels: Image.Image
    facts: ImageFileFacts


class ImageRefused(InputError):  # noqa: N818 - the name of a decision, not of a fault
    """This image has no pixels for us; `facts` hold what was learned before that."""

    def __init__(
        self, status: Status, detail: str, facts: ImageFileFacts, *, limit: float | None = None, observed: float | None = None
    ) -> None:
        super().__init__(status, detail, limit=limit, observed=observed)
        self.facts = facts

    @classmethod
    def because(cls, reason: InputError, facts: ImageFileFacts) -> "ImageRefused":
        """The same refusal, with the facts that were known by then."""
        return cls(reason.status, reason.detail, facts, limit=reason.limit, observed=reason.observed)


def inspect_bytes(data: bytes) -> ImageFileFacts:
    """SHA-256 and sniffed format of any bytes; cheap, never raises."""
    return ImageFileFacts(hashlib.sha256(data).hexdigest(), sniff_format(data))


def perceptual_hash(pixels: Image.Image) -> str:
    """The 64-bit DCT hash of a decoded image as 16 hex digits; two pictures are alike when few of the 64 bits differ."""
    import imagehash  # an extra, and half a second of scipy

    return str(imagehash.phash(pixels))


def require_perceptual_hash() -> None:
    """Raises ConfigError where the library that computes it is missing."""
    if find_spec("imagehash") is None:
        raise ConfigError("perceptual_hash needs the package ImageHash", hint="pip install 'touchstone-forensics[phash]'")
