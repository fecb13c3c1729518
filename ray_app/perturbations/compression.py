"""One trip through a lossy codec: pixels → bytes in memory → pixels. Knows Pillow's encoders; knows no policy and draws nothing.

Pillow's JPEG stands for OpenCV's too: for qualities 30 to 100 they give the same pixels, bit for bit (Pillow 13.0, OpenCV 5.0).
An image longer than a format can hold (a strip of over 65,500 pixels for JPEG) comes back as it is.
"""

import io
from typing import Any

from PIL import Image, features

_LONGEST = {"JPEG": 65500, "WEBP": 16383, "AVIF": 65535}


def jpeg(image: Image.Image, quality: int, *, swapped: bool = False) -> Image.Image:
    """RGB through JPEG, chroma halved both ways (4:2:0). `swapped`: red and blue change places for the codec.

    That is what becomes of RGB pixels handed to OpenCV, which takes them for BGR: red, not blue, is then the colour that loses most.
    """
    if not swapped:
        return _through(image, "JPEG", quality=quality)
    red, green, blue = image.split()
    blue, green, red = _through(Image.merge("RGB", (blue, green, red)), "JPEG", quality=quality).split()
    return Image.merge("RGB", (red, green, blue))


def webp(image: Image.Image, quality: int, *, method: int = 4) -> Image.Image:
    """RGB through lossy WebP; `method` is its effort, 0 (fastest) to 6."""
    return _through(image, "WEBP", quality=quality, method=method)


def lossless_webp(image: Image.Image) -> Image.Image:
    """RGB through lossless WebP: the same pixels, as WebP's decoder gives them."""
    return _through(image, "WEBP", lossless=True, method=0)


def avif(image: Image.Image, quality: int) -> Image.Image:
    """RGB through AVIF at its second highest speed, in one thread: how many cores there are must not show in the pixels."""
    return _through(image, "AVIF", quality=quality, speed=9, max_threads=1)


def has_avif() -> bool:
    """Whether this Pillow was built with AVIF."""
    return bool(features.check("avif"))


def _through(image: Image.Image, codec: str, **options: Any) -> Image.Image:
    if max(image.size) > _LONGEST[codec]:
        return image
    encoded = io.BytesIO()
    # Pillow keeps what `save` is told on the image itself: of one image in two threads, one would be saved as the other asks.
    image.copy().save(encoded, codec, **options)
    with Image.open(encoded) as decoded:
        return decoded.convert("RGB")
