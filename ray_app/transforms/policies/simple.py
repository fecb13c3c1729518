"""Policies of a few steps: `none`; `flips`, which leaves every pixel's value alone, for detectors that live on traces of single pixels
(touchstone-tiny); CNNDetection's (Wang et al. 2020), which UniversalFakeDetect took over: blur, JPEG, crop.

Sources: specs/detectors.md §10, §9b.
"""

from typing import Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from ray_app.config import Frozen
from ray_app.transforms import ops


class Unchanged(Frozen):
    """The policy `none`: every image as it was decoded."""

    def __call__(self, sample: ops.ImageSample, rng: np.random.Generator, /) -> ops.ImageSample:
        """The same sample; draws nothing."""
        return sample


class Flips(Frozen):
    """Random crop, then one of the eight ways in which a square can lie. No resampling and no codec.

    With `crop` the result is final; without, it keeps its size and goes through the card's preprocessing.
    """

    crop: int | None = Field(default=None, ge=1, description="side of the square, in pixels; smaller images are mirrored out to it")
    turns: bool = Field(default=True, description="none to three quarter turns")
    mirror: bool = Field(default=True, description="left and right change places in half of the images")

    def __call__(self, sample: ops.ImageSample, rng: np.random.Generator, /) -> ops.ImageSample:
        """Changed as drawn from `rng`."""
        if self.crop is not None:
            sample = ops.random_crop(sample, self.crop, rng)._replace(finished=True)
        if self.turns:
            sample = ops.quarter_turned(sample, int(rng.integers(4)))
        if self.mirror and rng.random() < 0.5:
            sample = ops.mirrored(sample)
        return sample


class CnnDetection(Frozen):
    """Short side to 256, blur, JPEG, random crop of 224, mirror; the result is final. Another `crop` scales the 256 with it.

    The authors draw JPEG's encoder from OpenCV and Pillow, which give the same pixels (ray_app.transforms.ops): not drawn here.
    """

    crop: int = Field(ge=8, description="side of the random crop; by default the network's input")
    short_side: int | None = Field(default=None, ge=8, description="before the crop; by default crop × 256 / 224")
    probability: float = Field(default=0.5, ge=0, le=1, description="of the blur, and independently of JPEG: 0.5 or 0.1 in the paper")
    sigma: tuple[float, float] = Field(default=(0.0, 3.0), description="of the Gaussian blur, in pixels of the resized image")
    quality: tuple[int, int] = Field(default=(30, 100), description="of JPEG, both ends included")

    @model_validator(mode="after")
    def _room_for_the_crop(self) -> Self:
        if self.short_side is not None and self.short_side < self.crop:
            raise ValueError(f"short_side {self.short_side} has no room for a crop of {self.crop}")
        return self

    def __call__(self, sample: ops.ImageSample, rng: np.random.Generator, /) -> ops.ImageSample:
        """Changed as drawn from `rng`."""
        sample = ops.with_short_side(sample, self.short_side or self.crop * 256 // 224, ops.Resampling.BILINEAR, rng)
        image = sample.image
        if rng.random() < self.probability:
            image = _blurred(image, rng.uniform(*self.sigma))
        if rng.random() < self.probability:
            image = ops.jpeg(image, int(rng.integers(*self.quality, endpoint=True)))
        sample = ops.random_crop(sample._replace(image=image), self.crop, rng)
        return (ops.mirrored(sample) if rng.random() < 0.5 else sample)._replace(finished=True)


def _blurred(image: Image.Image, sigma: float) -> Image.Image:
    """The authors' own: scipy's filter with uint8 between and after the axes, which truncates and so darkens by about one grey level."""
    from scipy.ndimage import gaussian_filter

    return Image.fromarray(gaussian_filter(np.asarray(image), sigma=(sigma, sigma, 0)))
