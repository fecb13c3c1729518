"""Every layout decodes to what libvips, a second decoder, makes of it, or is refused as
unsupported.
"""

import numpy as np
import pytest
import pyvips
from PIL import Image

from ray_app.errors import Status
from ray_app.images import ImageLimits, ImageRefused, decode_image
from ray_app.images.colour import to_rgb
from tests.images import layouts

LIMITS = ImageLimits()


def second_opinion(data: bytes) -> np.ndarray | None:
    """What libvips shows, with our decisions applied: high 8 bits, CMYK by our conversion, alpha on
    white. None where it reads nothing.
    """
    try:
        image = pyvips.Image.new_from_buffer(data, "", fail_on="error")
        shown = image.numpy()
    except pyvips.Error:
        return None
    shown = (shown if shown.ndim == 3 else shown[..., None]) >> (8 * (shown.dtype == np.uint16))
    if image.interpretation == "cmyk":
        inks = Image.fromarray(np.ascontiguousarray(shown[..., :4]).astype(np.uint8), "CMYK")
        return np.asarray(to_rgb(inks, set(), 8)).astype(int)
    has_alpha = shown.shape[2] in (2, 4)
    colours, alpha = (shown[..., :-1], shown[..., -1:]) if has_alpha else (shown, np.array(255))
    mixed = np.round((colours.astype(int) * alpha + 255 * (255 - alpha.astype(int))) / 255)
    return np.broadcast_to(mixed.astype(int), (*shown.shape[:2], 3))


def compare(cell: layouts.Cell) -> str | None:
    """What is wrong with a cell, in words."""
    data = cell.make()
    try:
        pixels = np.asarray(decode_image(data, LIMITS).pixels).astype(int)
    except ImageRefused as refusal:
        if not cell.is_read and refusal.status == Status.UNSUPPORTED_FORMAT:
            return None
        return f"{cell.name}: refused as {refusal.status}: {refusal.detail}"
    if not cell.is_read:
        return f"{cell.name}: read, and documented as refused"
    known = {"its maker": cell.truth()} if cell.truth else {}
    if cell.asks_libvips and (shown := second_opinion(data)) is not None:
        known["libvips"] = shown
    if not known:
        return f"{cell.name}: nobody says what it shows"
    for name, shown in known.items():
        if shown.shape != pixels.shape:
            return f"{cell.name}: differs from {name} by size, {shown.shape}"
        if (levels := np.abs(shown - pixels).max()) > cell.tolerance:
            return f"{cell.name}: differs from {name} by {levels} levels"
    return None


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_layouts_decode_as_in_libvips_or_are_refused(step):
    cells = list(layouts.cells(step))
    wrong = [words for cell in cells if (words := compare(cell))]
    assert not wrong, f"{len(wrong)} of {len(cells)}:\n" + "\n".join(wrong[:50])
