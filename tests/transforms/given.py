"""Images whose mask can be read off their pixels, and dictionaries of what a codec makes of an
image.
"""

from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from ray_app.transforms.ops import ImageSample
from ray_app.transforms.policies.papers import RealStatistics
from tests.make.images import photo

MARKER, GROUND = (20, 230, 20), (90, 60, 90)
STATISTICS = RealStatistics(
    areas_px=np.array([30 * 40, 64 * 48, 90 * 60]), sharpness=np.array([78.0, 645.0, 3756.0])
)


def marked(width: int = 160, height: int = 120) -> ImageSample:
    """A fake whose altered part is green and of no symmetry, on a ground that is nowhere green."""
    mask = np.zeros((height, width), bool)
    mask[height // 5 : height * 4 // 5, width // 3 : width // 2] = True
    mask[height // 5 : height // 2, width // 3 : width * 4 // 5] = True
    pixels = np.where(mask[..., None], MARKER, GROUND).astype(np.uint8)
    return ImageSample(
        Image.fromarray(pixels), Image.fromarray(mask.astype(np.uint8) * 255), label=1
    )


def seen_and_told(sample: ImageSample) -> tuple[np.ndarray, np.ndarray]:
    """Where the image is green, and where the mask says it was altered: both (H, W) bool."""
    pixels = np.asarray(sample.image).astype(int)
    mask = np.asarray(sample.mask)
    assert set(np.unique(mask)) <= {0, 255}
    green = pixels[..., 1] - np.maximum(pixels[..., 0], pixels[..., 2])
    # Half of the way up, however pale the policy made it; a picture with no green left has none.
    return green > max(20, 0.4 * green.max()), mask > 0


def textured(width: int = 48, height: int = 32, *, label: int = 1, seed: int = 0) -> ImageSample:
    return ImageSample(photo(width, height, seed=seed), None, label)


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng([7, *seed])


def by_pixels(
    codec: Callable[[Image.Image, int], Image.Image], image: Image.Image, qualities: Iterable[int]
) -> dict[bytes, int]:
    """The quality that makes these pixels of the image; of several, the highest."""
    return {codec(image, quality).tobytes(): quality for quality in qualities}


def share_near(count: int, total: int, expected: float) -> bool:
    """Within four standard deviations of the binomial."""
    return abs(count / total - expected) < 4 * (expected * (1 - expected) / total) ** 0.5
