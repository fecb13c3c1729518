"""Define the augmentation policy `in-the-wild`, which imitates what happens to images online.

Between its publication and an archive, an image may go through resizes, crops, blur, noise,
sharpening, tone, screenshots, and one or two saves as JPEG or WebP. The steps are those of NTIRE
2026's challenge on robust detection in the wild (arXiv 2604.11487) that need no network. Real and
generated images go through equal steps, so neither size, format, nor compression separates the
classes. The fractions and strengths are Touchstone's own.
"""

import math
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from ray_app.config import Frozen
from ray_app.transforms import ops

Rng = np.random.Generator

_FILTERS = (
    ops.Resampling.BILINEAR,
    ops.Resampling.BICUBIC,
    ops.Resampling.LANCZOS,
    ops.Resampling.BOX,
    ops.Resampling.HAMMING,
)
_MARGIN = 64  # Pixels.
# Short side in pixels. Larger images are resized to a third of this or more.
_LARGE = 1500


class InTheWild(Frozen):
    """The augmentation policy `in-the-wild`: resize, degrade, and compress training images.

    If `crop` is set, the result is a square of `crop` × `crop` pixels, and needs no further
    preprocessing. First, a fraction `resized` of the images is resized. The factor is random
    within `scale`, but large images get a random size. Images smaller than the square are extended
    by mirroring.

    If `crop` is None, the result may have any size. The resize and crop of the detector's card
    follow. First, a fraction `parts` of the images is cropped. Then the shorter side of every image
    is resized to a random length within `short_side`. No image is enlarged by more than 20 %.
    """

    crop: int | None = Field(
        default=None, ge=8, description="side of the square in pixels; null = whole images"
    )
    resized: float = Field(
        default=0.5, ge=0, le=1, description="with crop: fraction of images that are resized"
    )
    scale: tuple[float, float] = Field(
        default=(0.45, 1.15), description="with crop: range of the factor of a resize"
    )
    parts: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="without crop: fraction of images that are cropped to half to all of each side",
    )
    short_side: tuple[int, int] = Field(
        default=(224, 1024),
        description="without crop: range of the shorter side in pixels, drawn on a log scale; images are enlarged by a fifth at most",
    )
    saved: float = Field(
        default=0.75,
        ge=0,
        le=1,
        description="fraction of images that are compressed by JPEG or, for one in four, WebP",
    )
    saved_twice: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="fraction of images with a further compression, independently of `saved`",
    )
    quality: tuple[int, int] = Field(
        default=(55, 97), description="range of the quality of JPEG and WebP, both ends included"
    )
    screens: float = Field(
        default=0.03,
        ge=0,
        le=1,
        description="fraction of images that are shown on a screen, between uniform bars",
    )

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(
                f"scale must be an ascending range above 0, got {self.scale[0]:g} to {self.scale[1]:g}"
            )
        if not 1 <= self.quality[0] <= self.quality[1] <= 100:
            raise ValueError(
                f"quality must be an ascending range within 1 to 100, got {self.quality[0]} to {self.quality[1]}"
            )
        return self

    def __call__(self, sample: ops.ImageSample, rng: Rng, /) -> ops.ImageSample:
        """Return the sample after random changes."""
        sample = (
            self._prepare_image(sample, rng)
            if self.crop is None
            else self._prepare_part(sample, self.crop, rng)
        )
        if rng.random() < self.screens:
            sample = _show_on_screen(sample, rng)
        image = sample.image
        for change, probability in _CHANGES.items():
            if rng.random() < probability:
                image = change(image, rng)
        for probability in (self.saved, self.saved_twice):
            if rng.random() < probability:
                quality = int(rng.integers(*self.quality, endpoint=True))
                image = (
                    ops.webp(image, quality, method=2)
                    if rng.random() < 0.25
                    else ops.jpeg(image, quality)
                )
        sample = sample._replace(image=image)
        if self.crop is not None:
            sample = ops.random_crop(sample, self.crop, rng)._replace(finished=True)
        return ops.mirror(sample) if rng.random() < 0.5 else sample

    def _prepare_part(self, sample: ops.ImageSample, crop: int, rng: Rng) -> ops.ImageSample:
        """Crop a square that is somewhat larger than the crop.

        The final crop is then at a random position on the codec's grid.
        """
        short = min(sample.image.size)
        if rng.random() < self.resized:
            target = (
                round(short * rng.uniform(*self.scale))
                if short <= _LARGE
                else int(rng.integers(_LARGE // 3, _LARGE))
            )
            sample = ops.resize_short_side(sample, max(crop, target), _draw_filter(rng), rng)
        return ops.random_crop(sample, max(crop, min(crop + _MARGIN, *sample.image.size)), rng)

    def _prepare_image(self, sample: ops.ImageSample, rng: Rng) -> ops.ImageSample:
        low, high = self.short_side
        if rng.random() < self.parts:
            sides = [min(n, max(low, int(n * rng.uniform(0.5, 1)))) for n in sample.image.size]
            left, top = (
                int(rng.integers(n - side + 1))
                for n, side in zip(sample.image.size, sides, strict=True)
            )
            sample = ops.crop_sample(sample, (left, top, left + sides[0], top + sides[1]))
        high = min(high, round(1.2 * min(sample.image.size)))
        short = round(min(low, high) * (high / min(low, high)) ** rng.random())
        return ops.resize_short_side(sample, short, _draw_filter(rng), rng)


def _draw_filter(rng: Rng) -> ops.Resampling:
    return _FILTERS[int(rng.integers(len(_FILTERS)))]


def _show_on_screen(sample: ops.ImageSample, rng: Rng) -> ops.ImageSample:
    """Show the image between uniform bars, as an application does.

    The frame has the size of the image, which is shrunk to fit.
    """
    width, height = sample.image.size
    size = (
        max(1, round(width * rng.uniform(0.7, 0.95))),
        max(1, round(height * rng.uniform(0.7, 0.95))),
    )
    position = (width - size[0]) // 2, int(rng.uniform(0, height - size[1]))
    grey = int(rng.integers(40)) if rng.random() < 0.5 else int(rng.integers(216, 256))

    def framed(image: Image.Image, colour: int | tuple[int, ...]) -> Image.Image:
        screen = Image.new(image.mode, (width, height), colour)
        screen.paste(image, position)
        return screen

    resized = ops.resize_sample(sample, size, ops.Resampling.BILINEAR)
    return ops.transform_sample(
        resized, lambda image: framed(image, (grey,) * 3), lambda mask: framed(mask, 0)
    )


def _blur(image: Image.Image, rng: Rng) -> Image.Image:
    return ops.blur(image, ops.gaussian_taps(9, float(rng.uniform(0.3, 1.3))))


def _add_noise(image: Image.Image, rng: Rng) -> Image.Image:
    return ops.add_noise(image, float(rng.uniform(1, 6)), rng)


def _sharpen(image: Image.Image, rng: Rng) -> Image.Image:
    return ops.sharpen(image, int(rng.integers(30, 150)), float(rng.uniform(0.6, 2.0)))


def _apply_gamma(image: Image.Image, rng: Rng) -> Image.Image:
    return ops.apply_gamma(image, math.exp(rng.uniform(-0.3, 0.3)))


# Changes before compression, with their probabilities.
_CHANGES: Mapping[Callable[[Image.Image, Rng], Image.Image], float] = {
    _blur: 0.08,
    _add_noise: 0.07,
    _sharpen: 0.06,
    _apply_gamma: 0.06,
}
