"""Noise, gamma and sharpening: what changes grey levels where they are. Knows PIL images; draws only from the generator it is handed."""

import numpy as np
from PIL import Image, ImageFilter

_BAND = 256  # rows: the noise of a large image is never in memory as a whole


def noisy(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    """Gaussian noise of standard deviation `sigma` on the 0–255 scale, for every value of its own; rounded and clipped once."""
    pixels = np.array(image)
    for start in range(0, len(pixels), _BAND):
        band = pixels[start : start + _BAND]
        noise = rng.standard_normal(band.shape, np.float32)
        band[:] = np.clip(np.rint(band + noise * np.float32(sigma)), 0, 255)
    return Image.fromarray(pixels)


def with_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """Every value v of 0–1 becomes v ** `gamma`: above 1 is darker."""
    curve = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(int).tolist()
    return image.point(curve * len(image.getbands()))


def sharpened(image: Image.Image, percent: int, radius: float) -> Image.Image:
    """Pillow's unsharp mask, without a threshold."""
    return image.filter(ImageFilter.UnsharpMask(radius=radius, percent=percent, threshold=0))
