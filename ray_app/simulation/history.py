"""Compression histories: resize, crop, format and quality, drawn once for a pair and applied to both of its pictures.

Knows pixels and encoders. Knows nothing about which picture is real.
"""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Rng = np.random.Generator

SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX)


@dataclass(frozen=True)
class Encoding:
    """One trip through a file: `format` as Pillow names it; quality and subsampling where the format has them."""

    format: str
    quality: int = 0
    subsampling: str = "4:2:0"

    def encode(self, pixels: Pixels) -> bytes:
        """Bytes of the file, with no metadata."""
        stream = io.BytesIO()
        image = Image.fromarray(pixels)
        if self.format == "JPEG":
            image.save(stream, "JPEG", quality=self.quality, subsampling=self.subsampling)
        elif self.format == "WEBP":
            image.save(stream, "WEBP", quality=self.quality, method=1)
        else:
            image.save(stream, self.format, compress_level=1)
        return stream.getvalue()

    def reopen(self, pixels: Pixels) -> Pixels:
        """Encode and decode."""
        return np.asarray(Image.open(io.BytesIO(self.encode(pixels))).convert("RGB"))


@dataclass(frozen=True)
class History:
    """All that happens to a picture after it was made: scale, crop (in scaled pixels), earlier file, last file."""

    scale: float
    resample: Image.Resampling
    box: tuple[int, int, int, int]
    earlier: Encoding | None
    last: Encoding

    def apply(self, pixels: Pixels) -> bytes:
        """The bytes of the file as it is found at last."""
        image = Image.fromarray(pixels)
        if self.scale != 1.0:
            size = (round(image.width * self.scale), round(image.height * self.scale))
            image = image.resize(size, self.resample)
        cropped = np.asarray(image.crop(self.box))
        if self.earlier is not None:
            cropped = self.earlier.reopen(cropped)
        return self.last.encode(cropped)


def draw_history(rng: Rng, height: int, width: int, *, target: tuple[int, int], resize_share: float = 0.25) -> History:
    """A history for pictures of (height, width) that ends in a picture of `target` (height, width).

    JPEG quality 60 to 98 once or twice, PNG, WebP. The crop falls anywhere, so that neither the 8×8 grid of JPEG nor
    the grid of a decoder has a known place.
    """
    smallest = max(target[0] / height, target[1] / width)
    scale = float(rng.uniform(max(smallest, 0.6), 1.25)) if rng.random() < resize_share and smallest < 1 else 1.0
    top = int(rng.integers(round(height * scale) - target[0] + 1))
    left = int(rng.integers(round(width * scale) - target[1] + 1))
    earlier = _draw_jpeg(rng) if rng.random() < 0.25 else None
    last = draw_encoding(rng)
    resample = FILTERS[int(rng.integers(len(FILTERS)))]
    return History(scale, resample, (left, top, left + target[1], top + target[0]), earlier, last)


def draw_encoding(rng: Rng) -> Encoding:
    """JPEG in two of three cases, else PNG or WebP."""
    kind = rng.random()
    if kind < 0.2:
        return Encoding("PNG")
    return Encoding("WEBP", int(rng.integers(70, 99))) if kind < 0.32 else _draw_jpeg(rng)


def _draw_jpeg(rng: Rng) -> Encoding:
    return Encoding("JPEG", int(rng.integers(60, 99)), SUBSAMPLINGS[int(rng.choice(3, p=[0.25, 0.25, 0.5]))])
