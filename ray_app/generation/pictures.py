"""Pictures and masks around a pipeline: real ones brought to its size, masks read or drawn, results shrunk to a wanted size.

Knows Pillow and numbers; knows no pipeline and no file's place.
"""

from collections.abc import Callable

from PIL import Image, ImageDraw, ImageOps

from ray_app.generation.cards import Size
from ray_app.generation.config import Drawn
from ray_app.generation.seeds import randomness

_BLOBS = (3, 7)
_TRIES = 40


def covered(image: Image.Image, size: Size, *, mask: bool = False) -> Image.Image:
    """Scaled to cover `size` (Lanczos; masks nearest) and cropped to it at the centre."""
    return ImageOps.fit(image, size, Image.Resampling.NEAREST if mask else Image.Resampling.LANCZOS)


def binary(mask: Image.Image) -> Image.Image:
    """Mode L of 0 and 255: 255 where the grey level is above 127, as OpenSDI's masks are read."""
    return mask.convert("L").point(lambda level: 255 if level > 127 else 0)


def drawn_mask(size: Size, seed: int, share: Drawn) -> Image.Image:
    """A blob of ellipses around one place, 255 inside, that covers between `share.least` and `share.most` of the picture, or nearly."""
    rng = randomness(seed, "mask")
    wanted = rng.uniform(share.least, share.most)
    mask = Image.new("L", size, 0)
    for _ in range(_TRIES):
        mask = _blob(size, wanted, rng.random)
        if share.least <= share_of(mask) <= share.most:
            break
    return mask


def share_of(mask: Image.Image) -> float:
    """The share of a mask that is not 0."""
    return 1 - mask.histogram()[0] / (mask.width * mask.height)


def _blob(size: Size, wanted: float, uniform: Callable[[], float]) -> Image.Image:
    mask = Image.new("L", size, 0)
    pen = ImageDraw.Draw(mask)
    count = _BLOBS[0] + int(uniform() * (_BLOBS[1] - _BLOBS[0] + 1))
    radius = (wanted * size[0] * size[1] / 3.14159 / 2) ** 0.5
    centre_x, centre_y = (side * (0.25 + 0.5 * uniform()) for side in size)
    for _ in range(count):
        x, y = centre_x + (uniform() - 0.5) * radius, centre_y + (uniform() - 0.5) * radius
        wide, high = radius * (0.6 + 0.8 * uniform()), radius * (0.6 + 0.8 * uniform())
        pen.ellipse((x - wide, y - high, x + wide, y + high), fill=255)
    return mask


def pasted(real: Image.Image, made: Image.Image, mask: Image.Image) -> Image.Image:
    """The made picture inside the mask, the real one's own pixels outside."""
    return Image.composite(made.convert("RGB"), real.convert("RGB"), mask)


def resized_like(image: Image.Image, real: Size | None) -> Image.Image:
    """Shrunk and cropped at the centre to a real file's size; never enlarged, which would leave a trace of its own: a larger real
    file lends its shape alone.
    """
    if real is None:
        return image
    scale = min(1.0, image.width / real[0], image.height / real[1])
    return ImageOps.fit(image, (max(1, round(real[0] * scale)), max(1, round(real[1] * scale))), Image.Resampling.LANCZOS)
