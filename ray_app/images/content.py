"""Whether a picture shows anything at all. Knows pixels alone.

A blank page, a black frame or an empty cut-out is one colour, perhaps with noise and a little shade. What detectors say of it hangs on the
noise alone: touchstone-tiny gives a flat grey +4.2 (fake), and -9.1 (real) once it has noise of 4 levels.

The limits are levels of 0 to 255, in any channel. Of 3,557 real photographs the most even ones have a range of 113 in the sample, a
deviation of 12.8, and a range of 73 in the reduced copy; one colour with Gaussian noise of 5 levels lies below all three limits, and so
does a shade from edge to edge of 16. A shade of 24, a page with a word on it, and noise of 8 count as content.
"""

from typing import cast

import numpy as np
from PIL import Image

GLANCE, SAMPLE = 12, 32  # pixels a side, on a grid; all those 3,557 end at the first, whose reads from memory are what it costs
MOST_SAMPLED = 48  # a range beyond which nothing more is looked at
MOST_DEVIATION = 6.0
REDUCED, BOX = 64, 8  # the sides of the reduced copy; and at least so many pixels a side make one of it
MOST_REDUCED = 20  # noise averages out; a shade, or a word on a page, does not


def has_content(pixels: Image.Image) -> bool:
    """False where an RGB picture is one colour, or nearly."""
    if _range(_sampled(pixels, GLANCE)) > MOST_SAMPLED:
        return True
    sample = _sampled(pixels, SAMPLE)
    if _range(sample) > MOST_SAMPLED or np.asarray(sample).std(axis=(0, 1)).max() > MOST_DEVIATION:
        return True
    boxes = [max(1, min(side // BOX, REDUCED)) for side in pixels.size]
    return _range(pixels.resize(boxes, Image.Resampling.BOX)) > MOST_REDUCED


def _sampled(pixels: Image.Image, side: int) -> Image.Image:
    return pixels.resize((min(pixels.width, side), min(pixels.height, side)), Image.Resampling.NEAREST)


def _range(pixels: Image.Image) -> int:
    """The largest range of a channel."""
    return max(high - low for low, high in cast(tuple[tuple[int, int], ...], pixels.getextrema()))
