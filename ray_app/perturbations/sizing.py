"""Other sizes and other frames: resizes and crops. Knows PIL images; draws only what it is handed a generator for.

A result has at least one pixel a side. One that would pass `MOST_PIXELS` is not made: the image comes back as it is.
"""

from typing import Literal

import numpy as np
from PIL import Image

Filter = Literal["nearest", "bilinear", "bicubic", "lanczos", "lanczos-or-bicubic"]
Size = tuple[int, int]

MOST_PIXELS = 2**26  # 192 MiB of RGB
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def resized(image: Image.Image, size: Size, method: Filter) -> Image.Image:
    """Pillow's resize to (width, height). `lanczos-or-bicubic`: Lanczos where the width shrinks, else bicubic."""
    if size == image.size or size[0] * size[1] > MOST_PIXELS:
        return image
    if method == "lanczos-or-bicubic":
        method = "lanczos" if size[0] < image.width else "bicubic"
    return image.resize(size, _FILTERS[method])


def scaled_size(size: Size, scale: float) -> Size:
    """(width, height) times `scale`, rounded half to even."""
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def capped_size(size: Size, long_edge: int) -> Size:
    """The size with its longer side at most `long_edge`, the aspect kept."""
    return scaled_size(size, min(long_edge / max(size), 1.0))


def fitted_size(size: Size, screen: Size) -> Size:
    """The size within a screen that is turned as the image is, the aspect kept; what fits stays."""
    share = min(max(screen) / max(size), min(screen) / min(size), 1.0)
    return scaled_size(size, share)


def centre_crop(image: Image.Image, share: float) -> Image.Image:
    """The middle of the image with `share` of both sides."""
    width, height = scaled_size(image.size, share)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def random_square(image: Image.Image, low: int, high: int, share: float, rng: np.random.Generator) -> Image.Image:
    """A square anywhere, its side drawn from `share` of the short side to all of it, within `low` and `high` pixels.

    Where the short side is below `low`, the side is the short side.
    """
    most = min(*image.size, high)
    least = min(max(int(most * share), low), most)
    side = int(rng.integers(least, most, endpoint=True))
    left, top = (int(rng.integers(0, n - side, endpoint=True)) for n in image.size)
    return image.crop((left, top, left + side, top + side))
