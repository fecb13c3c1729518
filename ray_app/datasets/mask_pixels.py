"""Decode masks (`decode_mask`), which mark the altered pixels of an image.

`measure_coverage` returns whether a mask marks nothing, a part, or everything. `CoverageTally`
counts the masks that mark nothing or everything, because they are probably read wrongly.
"""

import math
from collections import Counter
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from ray_app.errors import InputError, Status
from ray_app.images import ImageLimits, colour, decode_image

Coverage = Literal["part", "empty", "full"]
Altered = npt.NDArray[np.bool_]

_WHITE = 255
_FAINT = 63  # Up to this of 255, a level is noise of a lossy format or a soft edge.
_EVEN = 16  # Levels by which pixels of one colour differ.
# Minimum fraction of painted pixels that have the same colour, or are black or white. The other
# pixels are edges.
_CLEAR = 0.98
_MEANINGS: dict[Coverage, str] = {"empty": "nothing", "full": "everything"}
_MAX_EXAMPLES = 3


def decode_mask(data: bytes, limits: ImageLimits) -> Image.Image:
    """Decode a mask file to an image of mode L, 255 where the masked image was altered, else 0.

    `to_mask` describes which kinds of masks are understood.

    Args:
        data: The encoded file.
        limits: Limits on the size of files and images. The limit on compression does not apply.

    Raises:
        InputError: The mask cannot be decoded, or does not show what was altered.
    """
    # A mask of a few shapes compresses like a decompression bomb. max_pixels limits its memory.
    return decode_image(
        data, limits.model_copy(update={"max_ratio": math.inf}), convert=to_mask
    ).pixels


def to_mask(image: Image.Image, flags: set[str], sample_bits: int) -> Image.Image:
    """Convert a decoded mask to mode L, 255 where the masked image was altered, else 0.

    Data sets store masks in different ways. The mask itself decides which pixels are altered:

    - Grey mask: pixels above half of white. White is 1 if no pixel exceeds 1, else 255 if no pixel
      exceeds 255, else the maximum of the format. So masks of 0 and 1 are read like masks of 0
      and 255.
    - Mask with colours on black: all pixels that are not black.
    - Mask with a palette whose two colours look alike: pixels whose index is not 0.
    - Mask painted on transparent in one colour: the painted pixels. If it is painted in black and
      white, the white pixels.

    Black always means not altered. A mask that marks altered pixels in black is read wrongly.

    Args:
        image: The image as decoded.
        flags: A set to which `colour.to_rgb` adds flags on the file.
        sample_bits: Bits per sample in the file.

    Returns:
        The mask.

    Raises:
        InputError: The painted part of a transparent mask is black, has many colours, or is white
            around a hole.
    """
    altered = _altered(image, flags, sample_bits)
    return Image.fromarray(altered.astype(np.uint8) * np.uint8(_WHITE))


def measure_coverage(mask: Image.Image) -> Coverage:
    """Return how much of the image a mask marks as altered.

    Args:
        mask: The mask in mode L, 0 where the image was not altered.

    Returns:
        "empty" if the mask marks nothing, "full" if it marks every pixel, or else "part".
    """
    lowest, highest = cast(tuple[int, int], mask.getextrema())
    return "empty" if not highest else "full" if lowest else "part"


class CoverageTally:
    """Counts the masks that mark nothing or everything of a fake image, to warn about them.

    Most of these masks mark altered pixels in a way that Touchstone does not understand.
    """

    def __init__(self) -> None:
        self._counts: Counter[Coverage] = Counter()
        self._examples: dict[Coverage, list[str]] = {coverage: [] for coverage in _MEANINGS}

    def add(self, uri: str, coverage: Coverage) -> None:
        """Count a mask, unless it marks a part of the image.

        Args:
            uri: URI of the fake image, for examples in the warning.
            coverage: The result of `measure_coverage`.
        """
        if coverage != "part":
            self._counts[coverage] += 1
            if len(self._examples[coverage]) < _MAX_EXAMPLES:
                self._examples[coverage].append(uri)

    def warning(self) -> str | None:
        """Return a warning with the number of masks that mark nothing or everything, and examples.

        The result is None if there are no such masks.
        """
        parts = []
        for coverage, meaning in _MEANINGS.items():
            if count := self._counts[coverage]:
                subject = (
                    "the mask of 1 fake marks"
                    if count == 1
                    else f"the masks of {count:,} fakes mark"
                )
                parts.append(
                    f"{subject} {meaning} as altered, for example {', '.join(self._examples[coverage])}"
                )
        if not parts:
            return None
        sentence = "; ".join(parts)
        return f"{sentence[0].upper()}{sentence[1:]}. Altered pixels must be white, 1, coloured, or painted on transparent."


def _altered(image: Image.Image, flags: set[str], sample_bits: int) -> Altered:
    """Return (H, W), True where the image was altered."""
    if image.mode.startswith("I;16"):
        return _altered_by_samples(
            np.asarray(image), sample_bits, white_is_zero="white_is_zero" in image.info
        )
    if image.has_transparency_data:
        return _altered_by_paint(
            (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        )
    altered = _altered_by_colour(colour.to_rgb(image, flags, sample_bits))
    if image.mode == "P" and altered.all() == altered.any():
        index = np.asarray(image)
        # A palette of a single colour shows nothing, but its indices do.
        if np.unique(index).tolist() in ([0, 1], [0, _WHITE]):
            return np.asarray(index > 0)
    return altered


def _altered_by_samples(
    samples: npt.NDArray[Any], sample_bits: int, *, white_is_zero: bool
) -> Altered:
    """Read one channel of more than 8 bits."""
    white = next(
        (white for white in (1, _WHITE, 2**sample_bits - 1) if samples.max() <= white), 2**16 - 1
    )
    return np.asarray(samples < white / 2 if white_is_zero else samples > white / 2)


def _altered_by_colour(image: Image.Image) -> Altered:
    """Read an RGB image."""
    red, green, blue = image.split()
    high = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    low = ImageChops.darker(ImageChops.darker(red, green), blue)
    darkest, brightest = cast(tuple[int, int], high.getextrema())
    _, most_saturated = cast(tuple[int, int], ImageChops.subtract(high, low).getextrema())
    if most_saturated > _FAINT and darkest <= _FAINT:
        return np.asarray(np.asarray(high) > _FAINT)
    total = np.asarray(red, np.uint16) + np.asarray(green) + np.asarray(blue)
    return np.asarray(2 * total > 3 * (1 if brightest <= 1 else _WHITE))


def _altered_by_paint(image: Image.Image) -> Altered:
    """Read an RGBA image. Raise InputError if its painted part does not show what was altered."""
    alpha = np.asarray(image.getchannel("A"), np.uint16)
    painted: Altered = np.asarray(2 * alpha > alpha.max())
    if painted.all() or not painted.any():
        return _altered_by_colour(image.convert("RGB")) if painted.any() else painted
    colours = np.asarray(image)[painted][:, :3]
    lowest, highest = colours.min(axis=1), colours.max(axis=1)
    paint = np.median(colours, axis=0)
    if (np.abs(colours - paint).max(axis=1) <= _EVEN).mean() >= _CLEAR:
        if paint.max() <= _FAINT:
            raise InputError(
                Status.UNSUPPORTED_FORMAT,
                "it is black on transparent: save altered pixels as white on black",
            )
        # Programs that fill holes store such masks, in which the hole is altered.
        if paint.min() >= _WHITE - _FAINT and all(
            side.all() for side in (painted[0], painted[-1], painted[:, 0], painted[:, -1])
        ):
            raise InputError(
                Status.UNSUPPORTED_FORMAT,
                "it is white around a transparent hole: save altered pixels as white on black",
            )
        return painted
    is_black, is_white = highest <= _FAINT, lowest >= _WHITE - _FAINT
    if (is_black | is_white).mean() < _CLEAR:
        raise InputError(
            Status.UNSUPPORTED_FORMAT,
            "its visible part has many colours: save altered pixels as white on black",
        )
    return painted & _altered_by_colour(image.convert("RGB"))
