"""`halftoned`: a picture as a printer puts it on paper, by a formula."""

import math

import numpy as np
from PIL import Image

# Cyan, magenta and yellow each have their screen turned, as in offset printing, so that dots do not lie on dots.
_ANGLES = (15.0, 75.0, 0.0)


def halftoned(image: Image.Image, cell: float, gain: float) -> Image.Image:
    """RGB as dots of ink on cells of `cell` pixels: clustered dots under a cosine screen (Ulichney 1987), their rims soft.

    `gain`: by how much of the full scale dots spread on paper. What lies between two cells of a print, the scan does not know.
    """
    pixels = np.array(image)
    height, width = pixels.shape[:2]
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    for channel, angle in enumerate(_ANGLES):
        turn = math.radians(angle)
        u = (x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn))) * np.float32(math.tau / cell)
        v = (y * np.float32(math.cos(turn)) - x * np.float32(math.sin(turn))) * np.float32(math.tau / cell)
        screen = (np.cos(u) + np.cos(v)) / 4 + 0.5
        ink = 1 - pixels[..., channel] / np.float32(255)
        # Soft over a third of the screen's range, since a scanner sees every dot over several of its pixels.
        dots = np.clip((ink + np.float32(gain) * ink * (1 - ink) - screen) * 3 + ink, 0, 1)
        pixels[..., channel] = np.rint(255 * (1 - dots))
    return Image.fromarray(pixels)
