"""Small pictures of files for pages (`SmallPictures`): decoded in child processes, made anew as
JPEG, bounded in pixels and in bytes.

No metadata of a file survives, and a file that kills its decoder costs its own picture alone.
"""

import io
from typing import NamedTuple

from PIL import Image

from ray_app.detectors import Preprocessing
from ray_app.detectors.preprocessing import Resize
from ray_app.images import ImageLimits
from ray_app.inference.batch import Pixels
from ray_app.inference.decoder_child import DecodeRequest
from ray_app.inference.decoder_pool import IsolatedDecoders

SIDE_PX = 160  # of thumbnails
_QUALITIES = (82, 70, 55, 40)
_PROCESSES = 2


class PictureSize(NamedTuple):
    """The most that a small picture may have: pixels along its longer side, and bytes of JPEG."""

    side_px: int
    most_bytes: int


class SmallPictures:
    """Makes small pictures, from any thread. Its processes start with the first picture. `close()`
    it.

    `wall_limit_s`: what one image may take to decode.
    """

    def __init__(
        self, limits: ImageLimits, size: PictureSize, *, wall_limit_s: float = 5.0
    ) -> None:
        self._size = size
        self._wanted = DecodeRequest(preprocessings=(square(size.side_px),))
        self._children = IsolatedDecoders(
            limits, processes=_PROCESSES, wall_limit_s=wall_limit_s, memory_limit_bytes=None
        )

    def of(self, data: bytes) -> tuple[bytes, str]:
        """JPEG bytes of an encoded image, and the SHA-256 of the file. Raises InputError where it
        does not decode.
        """
        image = self._children.prepare(data, self._wanted)
        (pixels,) = image.pixels
        assert pixels is not None
        return small_jpeg(
            pixels, image.facts.width or 1, image.facts.height or 1, self._size
        ), image.facts.sha256

    def close(self) -> None:
        """End the processes."""
        self._children.close()


def square(side_px: int) -> Preprocessing:
    """What a decoder is asked for, so that what comes back has a known size: the whole picture in a
    square.
    """
    return Preprocessing(resize=Resize(mode="squash", size=side_px))


def small_jpeg(pixels: Pixels, width: int, height: int, size: PictureSize) -> bytes:
    """JPEG bytes of a picture that a decoder gave as a square, (side, side, 3), in its own shape:
    that of `width` × `height`.
    """
    picture = Image.fromarray(pixels)
    longer = min(size.side_px, max(width, height))
    while True:
        scale = longer / max(width, height)
        shrunk = picture.resize((max(1, round(width * scale)), max(1, round(height * scale))))
        for quality in _QUALITIES:
            stream = io.BytesIO()
            shrunk.save(stream, "JPEG", quality=quality)
            if stream.tell() <= size.most_bytes or longer == 1:
                return stream.getvalue()
        longer = max(1, longer * 3 // 4)


def thumbnail(picture: Image.Image, side: int = SIDE_PX) -> bytes:
    """JPEG bytes of a decoded picture, which is made smaller in place: no side above `side` pixels."""
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
