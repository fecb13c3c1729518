"""MaskCLIP's policy, for image and mask together: scale, flips, light, JPEG, quarter turns, blur. specs/localization.md §1.7.

The reference is albumentations 1.3 on OpenCV. The same here: no antialias when shrinking, the nearest mask pixel rounded down, a JPEG that
takes RGB for BGR, and OpenCV's fixed kernels for a Gaussian of 3, 5 and 7 pixels. Within one grey level: torchvision's bilinear filter.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_app.config import Frozen
from ray_app.transforms import ops

# One draw of a width from 3 to 7, even ones rounded up.
_KERNELS: tuple[npt.NDArray[np.float64], ...] = tuple(
    np.array(taps) / sum(taps) for taps in ((1, 2, 1), (1, 4, 6, 4, 1), (1, 4, 6, 4, 1), (2, 7, 14, 18, 14, 7, 2), (2, 7, 14, 18, 14, 7, 2))
)


class MaskClipPolicy(Frozen):
    """The reference's policy, which has no arguments; the result goes through the card's squash to 512."""

    def __call__(self, sample: ops.ImageSample, rng: np.random.Generator, /) -> ops.ImageSample:
        """Changed as drawn from `rng`."""
        sample = _scaled(sample, rng.uniform(0.8, 1.2))
        if rng.random() < 0.5:
            sample = ops.mirrored(sample)
        if rng.random() < 0.5:
            sample = ops.flipped_vertically(sample)
        image = _lit(sample.image, brightness=rng.uniform(-0.1, 0.1), contrast=rng.uniform(-0.1, 0.1))
        if rng.random() < 0.2:
            image = ops.jpeg(image, int(rng.integers(70, 100, endpoint=True)), swapped=True)
        sample = sample._replace(image=image)
        if rng.random() < 0.5:
            sample = ops.quarter_turned(sample, int(rng.integers(4)))
        if rng.random() < 0.2:
            sample = sample._replace(image=ops.blurred(sample.image, _KERNELS[int(rng.integers(len(_KERNELS)))]))
        return sample


def _scaled(sample: ops.ImageSample, factor: float) -> ops.ImageSample:
    # 3 seconds to import, so not before it is used.
    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    width, height = sample.image.size
    size = [max(int(height * factor), 1), max(int(width * factor), 1)]

    def scaled(image: Image.Image, mode: InterpolationMode) -> Image.Image:
        planes = torch.from_numpy(np.array(image).reshape(height, width, -1)).permute(2, 0, 1)
        pixels = resize(planes, size, mode, antialias=False).permute(1, 2, 0).numpy()
        return Image.fromarray(pixels if image.mode == "RGB" else pixels[..., 0])

    return ops.transformed(
        sample, lambda image: scaled(image, InterpolationMode.BILINEAR), lambda mask: scaled(mask, InterpolationMode.NEAREST)
    )


def _lit(image: Image.Image, *, brightness: float, contrast: float) -> Image.Image:
    """Grey level × (1 + contrast) + brightness × 255, clipped and truncated."""
    levels = np.arange(256, dtype=np.float32) * np.float32(1 + contrast) + np.float32(brightness * 255)
    return image.point(levels.clip(0, 255).astype(np.uint8).tolist() * 3)
