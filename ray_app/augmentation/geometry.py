"""What moves pixels, done to an image and its mask at once: resizing, cropping, turning. Knows samples; knows no policy's numbers.

The mask goes by the same geometry with the nearest pixel instead of a filter, so it stays 0 or 255.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from ray_app.augmentation.sample import Sample

Size = tuple[int, int]
Box = tuple[int, int, int, int]
Resampling = Image.Resampling
Change = Callable[[Image.Image], Image.Image]

# A longer strip is cut before it is enlarged to a short side of hundreds: one of 1 × 100,000 pixels would not fit into memory.
_LONGEST_PER_SHORT = 16


def moved(sample: Sample, change: Change, of_mask: Change | None = None) -> Sample:
    """`change` of the image, and of the mask `of_mask`, or the same."""
    mask = sample.mask and (of_mask or change)(sample.mask)
    return sample._replace(image=change(sample.image), mask=mask)


def resized(sample: Sample, size: Size, filter: Resampling) -> Sample:
    """Squashed to (width, height) by one of Pillow's filters."""
    return moved(sample, lambda image: image.resize(size, filter), lambda mask: mask.resize(size, Resampling.NEAREST))


def cropped(sample: Sample, box: Box) -> Sample:
    """The part within (left, upper, right, lower)."""
    return moved(sample, lambda image: image.crop(box))


def turned(sample: Sample, quarters: int) -> Sample:
    """Turned anticlockwise by `quarters` of a circle."""
    turns = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    turn = turns[quarters % 4]
    return sample if turn is None else moved(sample, lambda image: image.transpose(turn))


def mirrored(sample: Sample) -> Sample:
    """Left and right change places."""
    return moved(sample, lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def upended(sample: Sample) -> Sample:
    """Top and bottom change places."""
    return moved(sample, lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM))


def rotated(sample: Sample, degrees: float, filter: Resampling) -> Sample:
    """Rotated anticlockwise about the centre, in the same frame; what comes in from outside is black, and unaltered in the mask."""
    return moved(sample, lambda image: image.rotate(degrees, filter), lambda mask: mask.rotate(degrees, Resampling.NEAREST))


def random_crop(sample: Sample, side: int, rng: np.random.Generator) -> Sample:
    """`side` × `side` pixels from anywhere within; an image that is smaller is mirrored out to it first."""
    if min(sample.image.size) < side:
        sample = moved(sample, lambda image: _mirrored_out(image, side))
    width, height = sample.image.size
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    return cropped(sample, (left, top, left + side, top + side))


def with_short_side(sample: Sample, short: int, filter: Resampling, rng: np.random.Generator) -> Sample:
    """The shorter side brought to `short`, the longer one in proportion and truncated, as torchvision's Resize does.

    Of a strip more than 16 times as long as it is wide, a part 16 times as long is drawn first.
    """
    width, height = sample.image.size
    longest = _LONGEST_PER_SHORT * min(width, height)
    if max(width, height) > longest:
        start = int(rng.integers(max(width, height) - longest + 1))
        sample = cropped(sample, (start, 0, start + longest, height) if width > height else (0, start, width, start + longest))
        width, height = sample.image.size
    size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    return sample if size == (width, height) else resized(sample, size, filter)


def random_part(sample: Sample, share: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator) -> Sample:
    """The part that torchvision's RandomResizedCrop would take: `drawn_box`, or the largest centred one of an allowed shape."""
    width, height = sample.image.size
    box = drawn_box((width, height), share, ratio, rng)
    if box is None:
        across, down = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
        left, top = (width - across) // 2, (height - down) // 2
        box = left, top, left + across, top + down
    return cropped(sample, box)


def drawn_box(size: Size, share: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator) -> Box | None:
    """A box of `share` of the area, its width ÷ height within `ratio` and drawn on a log scale; None where ten draws do not fit."""
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*share)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        across, down = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < across <= width and 0 < down <= height:
            left, top = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
            return left, top, left + across, top + down
    return None


def _mirrored_out(image: Image.Image, side: int) -> Image.Image:
    pixels = np.asarray(image)
    missing = [max(side - n, 0) for n in pixels.shape[:2]]
    pad = [(n // 2, n - n // 2) for n in missing] + [(0, 0)] * (pixels.ndim - 2)
    return Image.fromarray(np.pad(pixels, pad, mode="symmetric"))
