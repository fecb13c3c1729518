"""Pictures marked as invisible-watermark marks them (see `ray_app.images.provenance.watermark`),
made in code.
"""

import numpy as np
from PIL import Image

from ray_app.images.provenance.watermark import MESSAGES
from tests.make.images import photo

SD1, SD2, INVOKE, SDXL, FLUX = MESSAGES


def waves(width: int = 512, height: int = 512) -> Image.Image:
    """A picture with shades, colours and a little noise."""
    y, x = np.mgrid[:height, :width]
    bands = [np.sin(x / (40 + 9 * c)) * 60 + np.cos(y / (50 - 9 * c)) * 50 + 128 for c in range(3)]
    shades = np.stack(bands, axis=-1)
    noise = np.random.default_rng(7).normal(0, 2, shades.shape)
    return Image.fromarray((shades + noise).clip(0, 255).astype(np.uint8))


def marked(
    picture: Image.Image, bits: np.ndarray, *, floats: bool = False, swapped: bool = False
) -> Image.Image:
    """The picture with a message, the largest level of each block put to ¼ or ¾ of its step."""
    pixels = np.asarray(picture, np.float64)[..., :: -1 if swapped else 1].copy()
    rows, columns = (side // 8 * 8 for side in pixels.shape[:2])
    u = 0.492 * (pixels[:rows, :columns] @ [-0.299, -0.587, 0.886]) + (0.5 if floats else 128)
    levels = 2 * u.reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3))
    blocks = levels.reshape(rows // 8, 4, columns // 8, 4).swapaxes(1, 2).reshape(-1, 16)
    at = np.abs(blocks[:, 1:]).argmax(axis=1) + 1
    old = np.take_along_axis(blocks, at[:, None], 1)
    steps = np.abs(old) // 36 + 0.25 + 0.5 * np.resize(bits, len(blocks))[:, None]
    change = np.zeros_like(blocks)
    np.put_along_axis(change, at[:, None], (steps * 36 * np.where(old < 0, -1, 1) - old) / 2, 1)
    change = change.reshape(rows // 8, columns // 8, 4, 4).swapaxes(1, 2)
    change = change.reshape(rows // 2, columns // 2).repeat(2, 0).repeat(2, 1)
    pixels[:rows, :columns] += change[..., None] * [0, -0.395, 2.032]
    levels = pixels.round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(levels[..., :: -1 if swapped else 1])


def marked_photo() -> Image.Image:
    """A small one, for tests of what reads files."""
    return marked(photo(320, 256), SDXL.bits, floats=True)
