"""Small images of noise as PNG files, and labelled rows of them."""

import numpy as np
from PIL import Image

from tests.make.images import encoded


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    return encoded(image, "PNG")


def rows_in(folder, count: int = 12) -> list[dict]:
    """Write pairs of files, a real and a fake in turn; return their rows."""
    rows = []
    for number in range(count):
        path, is_fake = folder / f"{number:02}.png", number % 2
        path.write_bytes(png(picture(number)))
        rows.append(
            {
                "uri": path,
                "label": "fake" if is_fake else "real",
                "generator": "g" if is_fake else "real",
                "group": f"p{number // 2}",
            }
        )
    return rows
