"""`halftoned`: a picture as a printer puts it on paper, by a formula."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

_SOFT = 5.0  # how many times a dot's rim would fit between paper and solid ink: a scanner sees every dot over several of its pixels

# Cyan, magenta and yellow each have their screen turned, as in offset printing, so that dots do not lie on dots.
_ANGLES = (15.0, 75.0, 0.0)


def halftoned(image: Image.Image, cell: float, gain: float) -> Image.Image:
    """RGB as dots of ink on cells of `cell` pixels: clustered dots under a cosine screen (Ulichney 1987), their rims soft.

    `gain`: by how much of the full scale dots spread on paper. What lies between two cells of a print, the scan does not know.
    """
    pixels = np.array(image)
    height, width = pixels.shape[:2]
    heights, shares = _screen()
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    for channel, angle in enumerate(_ANGLES):
        turn = math.radians(angle)
        u = (x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn))) * np.float32(math.tau / cell)
        v = (y * np.float32(math.cos(turn)) - x * np.float32(math.sin(turn))) * np.float32(math.tau / cell)
        screen = np.interp(np.cos(u) + np.cos(v), heights, shares).astype(np.float32)
        ink = 1 - pixels[..., channel] / np.float32(255)
        spread = ink + np.float32(gain) * ink * (1 - ink)
        pixels[..., channel] = np.rint(255 * (1 - np.clip((spread - screen) * _SOFT + 0.5, 0, 1)))
    return Image.fromarray(pixels)


def _screen() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Heights of a cosine screen, and which share of a cell lies below each: so much ink covers so much paper."""
    wave = np.cos(np.linspace(0, math.pi, 64))
    heights = np.sort(np.add.outer(wave, wave), axis=None)
    return heights, np.linspace(0, 1, heights.size)
