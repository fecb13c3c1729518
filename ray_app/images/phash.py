"""A hash that similar pictures share: 64 signs of the low frequencies of a picture, after ImageHash's `phash`. Knows pixels alone."""

from importlib.util import find_spec

from PIL import Image

from ray_app.errors import ConfigError


def perceptual_hash(pixels: Image.Image) -> str:
    """The 64-bit DCT hash of a decoded image as 16 hex digits; two pictures are alike when few of the 64 bits differ."""
    import imagehash  # an extra, and half a second of scipy

    return str(imagehash.phash(pixels))


def require_perceptual_hash() -> None:
    """Raises ConfigError where the library that computes it is missing."""
    if find_spec("imagehash") is None:
        raise ConfigError("perceptual_hash: ImageHash is not installed", hint="pip install 'touchstone[phash]'")
