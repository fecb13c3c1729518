"""What is known of one file: its facts, the pixels with their facts, a refusal with its facts. Knows no format and no limit."""

import hashlib
from dataclasses import dataclass, field

from PIL import Image

from ray_app.errors import InputError, Status
from ray_app.images.sniff import sniff_format

FLAG_MEANING = {
    "alpha": "has transparency, composited on white",
    "animated": "an animation; its first frame is scored",
    "broken_exif": "EXIF cannot be read; taken as upright",
    "broken_icc": "the colour profile cannot be read or used; ignored",
    "cmyk": "printing colours, converted to RGB",
    "grayscale": "grey only; the three channels are equal",
    "multipage": "several pages or pictures; the first is scored",
    "oriented": "EXIF asks to turn it; it is scored as stored",
    "preview": "the preview that a camera put into its raw file is scored",
    "sixteen_bit": "more than 8 bits per sample; the high 8 are scored",
    "trailing_bytes": "bytes follow the end of the image",
}


@dataclass(frozen=True)
class ImageFacts:
    """What a row says of the file, known as far as it was read: what was not reached is None.

    `mode` is the file's own (Pillow's name). `orientation` is the EXIF value that would turn the pixels upright: 1 where there is none,
    and for TIFF and HEIC, whose decoders turn them. `flags` are sorted; `decoder` names library and version.
    `quality`: of a JPEG, 1 … 100 (see `jpeg_quality`).
    """

    sha256: str
    format: str | None = None
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    frames: int | None = None
    orientation: int | None = None
    icc: bool | None = None
    flags: tuple[str, ...] = ()
    decoder: str | None = None
    quality: int | None = None


@dataclass(frozen=True)
class DecodedImage:
    """One image: `pixels` loaded, mode RGB, EXIF orientation not applied, none of the file's metadata attached."""

    pixels: Image.Image
    facts: ImageFacts


class ImageRefused(InputError):  # noqa: N818 - the name of a decision, not of a fault
    """This image has no pixels for us; `facts` hold what was learned before that."""

    def __init__(
        self, status: Status, detail: str, facts: ImageFacts, *, limit: float | None = None, observed: float | None = None
    ) -> None:
        super().__init__(status, detail, limit=limit, observed=observed)
        self.facts = facts

    @classmethod
    def because(cls, reason: InputError, facts: ImageFacts) -> "ImageRefused":
        """The same refusal, with the facts that were known by then."""
        return cls(reason.status, reason.detail, facts, limit=reason.limit, observed=reason.observed)


@dataclass(slots=True)
class Findings:
    """Facts while they are being found; `facts()` freezes what is known so far."""

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

    @classmethod
    def of(cls, data: bytes) -> "Findings":
        """The two facts that any bytes have."""
        return cls(sha256=hashlib.sha256(data).hexdigest(), format=sniff_format(data))

    def facts(self) -> ImageFacts:
        """The facts as they stand."""
        return ImageFacts(
            self.sha256,
            self.format,
            self.width,
            self.height,
            self.mode,
            self.frames,
            self.orientation,
            self.icc,
            tuple(sorted(self.flags)),
            self.decoder,
            self.quality,
        )


def inspect_bytes(data: bytes) -> ImageFacts:
    """SHA-256 and sniffed format of any bytes; cheap, never raises."""
    return Findings.of(data).facts()
