"""Every layout decodes to what libvips, a second decoder, makes of it, or is refused as
unsupported.
"""

import numpy as np
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
    shown = (shown if shown.ndim == 3 else shown[..., None]).astype(int) >> (
        8 if shown.dtype == np.uint16 else 0
    )
    if image.interpretation == "cmyk":
        inks = Image.fromarray(np.ascontiguousarray(shown[..., :4]).astype(np.uint8), "CMYK")
        return np.asarray(to_rgb(inks, set(), 8)).astype(int)
    colours, alpha = (
        (shown[..., :-1], shown[..., -1:]) if shown.shape[2] in (2, 4) else (shown, 255)
    )
    return np.broadcast_to(
        np.round((colours * alpha + 255 * (255 - alpha)) / 255).astype(int), (*shown.shape[:2], 3)
    )


def compare(cell: layouts.Cell) -> str | None:
    """What is wrong with a cell, in words."""
    data = cell.make()
    try:
        pixels = np.asarray(decode_image(data, LIMITS).pixels).astype(int)
    except ImageRefused as refusal:
        is_documented = not cell.is_read and refusal.status == Status.UNSUPPORTED_FORMAT
        return (
            None if is_documented else f"{cell.name}: refused as {refusal.status}: {refusal.detail}"
        )
    if not cell.is_read:
        return f"{cell.name}: read, and documented as refused"
    references = {
        "its maker": cell.truth and cell.truth(),
        "libvips": second_opinion(data) if cell.asks_libvips else None,
    }
    known = {name: shown for name, shown in references.items() if shown is not None}
    if not known:
        return f"{cell.name}: nobody says what it shows"
    for name, shown in known.items():
        if shown.shape != pixels.shape or np.abs(shown - pixels).max() > cell.tolerance:
            by = (
                f"{np.abs(shown - pixels).max()} levels"
                if shown.shape == pixels.shape
                else f"size, {shown.shape}"
            )
            return f"{cell.name}: differs from {name} by {by}"
    return None


def test_every_layout_decodes_as_libvips_does_or_is_refused():
    cells = list(layouts.cells())
    wrong = [words for cell in cells if (words := compare(cell))]
    assert not wrong, f"{len(wrong)} of {len(cells)}:\n" + "\n".join(wrong[:50])
