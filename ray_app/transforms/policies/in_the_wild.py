"""The policy `in-the-wild`: what happens to pictures between their making and an archive, drawn
alike for real and generated ones.

Resizes, crops, blur, noise, sharpening, tone, screenshots and one or two saves as JPEG or WebP:
kinds of NTIRE 2026's challenge on robust detection in the wild (arXiv 2604.11487) that need no
network. Both classes go through it, so that neither size nor format nor compression tells them
apart; shares and strengths are ours.
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
_MARGIN = 64  # pixels
_LARGE = 1500  # pixels of a short side, over which a picture is resized to a third of that or more


class InTheWild(Frozen):
    """Resized, degraded and saved pictures: parts of `crop` pixels at about their own scale or,
    with `crop` null, pictures as wholes.

    Parts: `resized` of the images by a factor within `scale`, then a square, mirrored out where the
    image is smaller; the result is final. Wholes: a part of the picture in `parts` of the images,
    brought to a short side within `short_side`, drawn on a log scale and enlarged by a fifth at
    most; the card's preprocessing comes after. A save is by JPEG or, one in four, by WebP.
    """

    crop: int | None = Field(
        default=None, ge=8, description="side of the square, in pixels; null = pictures as wholes"
    )
    resized: float = Field(default=0.5, ge=0, le=1)
    scale: tuple[float, float] = (0.45, 1.15)
    parts: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="share of the pictures of which half to all of each side is taken",
    )
    short_side: tuple[int, int] = (224, 1024)
    saved: float = Field(
        default=0.75, ge=0, le=1, description="share that is saved; the others come as they are"
    )
    saved_twice: float = Field(default=0.2, ge=0, le=1)
    quality: tuple[int, int] = Field(
        default=(55, 97), description="of JPEG and WebP, both ends included"
    )
    screens: float = Field(
        default=0.03, ge=0, le=1, description="share that is shown on a screen, between level bars"
    )

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale: {self.scale[0]:g} to {self.scale[1]:g} is no range of scales")
        if not 1 <= self.quality[0] <= self.quality[1] <= 100:
            raise ValueError(
                f"quality: {self.quality[0]} to {self.quality[1]} is no range of qualities"
            )
        return self

    def __call__(self, sample: ops.ImageSample, rng: Rng, /) -> ops.ImageSample:
        """Changed as drawn from `rng`."""
        sample = (
            self._whole(sample, rng) if self.crop is None else self._part(sample, self.crop, rng)
        )
        if rng.random() < self.screens:
            sample = _on_screen(sample, rng)
        image = sample.image
        for change, share in _CHANGES.items():
            if rng.random() < share:
                image = change(image, rng)
        for share in (self.saved, self.saved_twice):
            if rng.random() < share:
                quality = int(rng.integers(*self.quality, endpoint=True))
                image = (
                    ops.webp(image, quality, method=2)
                    if rng.random() < 0.25
                    else ops.jpeg(image, quality)
                )
        sample = sample._replace(image=image)
        if self.crop is not None:
            sample = ops.random_crop(sample, self.crop, rng)._replace(finished=True)
        return ops.mirrored(sample) if rng.random() < 0.5 else sample

    def _part(self, sample: ops.ImageSample, crop: int, rng: Rng) -> ops.ImageSample:
        """A square that is somewhat larger than the crop, so that the crop will lie anywhere on the
        codec's grid.
        """
        short = min(sample.image.size)
        if rng.random() < self.resized:
            wanted = (
                round(short * rng.uniform(*self.scale))
                if short <= _LARGE
                else int(rng.integers(_LARGE // 3, _LARGE))
            )
            sample = ops.with_short_side(sample, max(crop, wanted), _drawn_filter(rng), rng)
        return ops.random_crop(sample, max(crop, min(crop + _MARGIN, *sample.image.size)), rng)

    def _whole(self, sample: ops.ImageSample, rng: Rng) -> ops.ImageSample:
        low, high = self.short_side
        if rng.random() < self.parts:
            sides = [min(n, max(low, int(n * rng.uniform(0.5, 1)))) for n in sample.image.size]
            left, top = (
                int(rng.integers(n - side + 1))
                for n, side in zip(sample.image.size, sides, strict=True)
            )
            sample = ops.cropped(sample, (left, top, left + sides[0], top + sides[1]))
        high = min(high, round(1.2 * min(sample.image.size)))
        short = round(min(low, high) * (high / min(low, high)) ** rng.random())
        return ops.with_short_side(sample, short, _drawn_filter(rng), rng)


def _drawn_filter(rng: Rng) -> ops.Resampling:
    return _FILTERS[int(rng.integers(len(_FILTERS)))]


def _on_screen(sample: ops.ImageSample, rng: Rng) -> ops.ImageSample:
    """The image between level bars, as an application shows it; the frame has the image's size, the
    image gets the rest of it.
    """
    width, height = sample.image.size
    size = (
        max(1, round(width * rng.uniform(0.7, 0.95))),
        max(1, round(height * rng.uniform(0.7, 0.95))),
    )
    place = (width - size[0]) // 2, int(rng.uniform(0, height - size[1]))
    grey = int(rng.integers(40)) if rng.random() < 0.5 else int(rng.integers(216, 256))

    def framed(image: Image.Image, colour: int | tuple[int, ...]) -> Image.Image:
        screen = Image.new(image.mode, (width, height), colour)
        screen.paste(image, place)
        return screen

    shown = ops.resize_sample(sample, size, ops.Resampling.BILINEAR)
    return ops.transformed(
        shown, lambda image: framed(image, (grey,) * 3), lambda mask: framed(mask, 0)
    )


def _blurred(image: Image.Image, rng: Rng) -> Image.Image:
    return ops.blurred(image, ops.gaussian_taps(9, float(rng.uniform(0.3, 1.3))))


def _noisy(image: Image.Image, rng: Rng) -> Image.Image:
    return ops.noisy(image, float(rng.uniform(1, 6)), rng)


def _sharpened(image: Image.Image, rng: Rng) -> Image.Image:
    return ops.sharpened(image, int(rng.integers(30, 150)), float(rng.uniform(0.6, 2.0)))


def _toned(image: Image.Image, rng: Rng) -> Image.Image:
    return ops.with_gamma(image, math.exp(rng.uniform(-0.3, 0.3)))


# Each with the share of the images to which it is done, before they are saved.
_CHANGES: Mapping[Callable[[Image.Image, Rng], Image.Image], float] = {
    _blurred: 0.08,
    _noisy: 0.07,
    _sharpened: 0.06,
    _toned: 0.06,
}
