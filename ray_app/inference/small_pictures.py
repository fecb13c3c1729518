"""Make small JPEG copies of image files for display on web pages (`ThumbnailMaker`).

Child processes decode the files. The copy is a new JPEG with limits on pixels and bytes, and
without the metadata of the file. A file that crashes its decoder has no small copy, and affects no
other file.
"""

import io
from typing import NamedTuple

from PIL import ExifTags, Image, ImageOps

from ray_app.detectors import Preprocessing
from ray_app.detectors.preprocessing import Resize
from ray_app.images import ImageFileFacts, ImageLimits
from ray_app.inference.batch import Pixels
from ray_app.inference.decoder_child import DecodeRequest
from ray_app.inference.decoder_pool import IsolatedDecoders

SIDE_PX = 160  # The side of a thumbnail.
_QUALITIES = (82, 70, 55, 40)
_PROCESSES = 2


class ThumbnailLimits(NamedTuple):
    """The limits of a small image.

    Attributes:
        side_px: Maximum length of the longer side in pixels.
        max_bytes: Maximum size of the JPEG in bytes.
    """

    side_px: int
    max_bytes: int


class ThumbnailMaker:
    """Make small JPEG copies of image files. Several threads may share this object.

    The child processes start with the first image. Call `close` at the end.

    Args:
        limits: Limits on the files that are decoded.
        size: Limits on the small images.
        wall_limit_s: Seconds that decoding one file may take.
    """

    def __init__(
        self, limits: ImageLimits, size: ThumbnailLimits, *, wall_limit_s: float = 5.0
    ) -> None:
        self._size = size
        self._request = DecodeRequest(preprocessings=(square(size.side_px),))
        self._children = IsolatedDecoders(
            limits, processes=_PROCESSES, wall_limit_s=wall_limit_s, memory_limit_bytes=None
        )

    def make(self, data: bytes) -> tuple[bytes, str]:
        """Return a small image as JPEG bytes, and the SHA-256 of the file.

        Raises:
            InputError: The file does not decode.
        """
        image = self._children.prepare(data, self._request)
        (pixels,) = image.pixels
        assert pixels is not None
        return encode_small_jpeg(pixels, image.facts, self._size), image.facts.sha256

    def close(self) -> None:
        """End the child processes."""
        self._children.close()


def square(side_px: int) -> Preprocessing:
    """Return the preprocessing that squashes a whole image into a square of `side_px` pixels.

    The shape is the same for all images, so that the number of bytes that a child process returns
    is known.
    """
    return Preprocessing(resize=Resize(mode="squash", size=side_px))


def encode_small_jpeg(pixels: Pixels, facts: ImageFileFacts, size: ThumbnailLimits) -> bytes:
    """Restore the shape of an image that was squashed into a square, and return a small JPEG.

    The JPEG is upright, and has the aspect ratio of the file.

    Args:
        pixels: The squashed image, (side, side, 3) uint8, as the file stores it.
        facts: The properties of the file, which state its size in pixels and its orientation.
        size: Limits of the small image.
    """
    image, width, height = Image.fromarray(pixels), facts.width or 1, facts.height or 1
    longer = min(size.side_px, max(width, height))
    while True:
        scale = longer / max(width, height)
        shrunk = image.resize((max(1, round(width * scale)), max(1, round(height * scale))))
        shrunk.getexif()[ExifTags.Base.Orientation] = facts.orientation or 1
        upright = ImageOps.exif_transpose(shrunk)
        for quality in _QUALITIES:
            stream = io.BytesIO()
            upright.save(stream, "JPEG", quality=quality)
            if stream.tell() <= size.max_bytes or longer == 1:
                return stream.getvalue()
        longer = max(1, longer * 3 // 4)


def thumbnail(image: Image.Image, side: int = SIDE_PX) -> bytes:
    """Shrink an image in place to at most `side` pixels per side, and return it as JPEG bytes."""
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
