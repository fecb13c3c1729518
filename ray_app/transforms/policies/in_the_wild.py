"""The policy `in-the-wild`: what happens to pictures between their making and an archive, drawn alike for real and generated ones.

Resizes, crops, blur, noise, sharpening, tone, screenshots and one or two saves as JPEG or WebP: kinds of NTIRE 2026's challenge on robust
detection in the wild (arXiv 2604.11487) that need no network. Both classes go through it, so that neither size nor format nor compression
tells them apart; shares and strengths are ours.
"""

import math
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from ray_app.config import Frozen
from ray_app.transforms import ops, policy

Rng = np.random.Generator

_FILTERS = (ops.Resampling.BILINEAR, ops.Resampling.BICUBIC, ops.Resampling.LANCZOS, ops.Resampling.BOX, ops.Resampling.HAMMING)
_MARGIN = 64  # pixels around the crop while it is saved, so that it lies anywhere on the codec's grid


class InTheWild(Frozen):
    """Half of the images at their own size, the others resized; a part degraded, saved, and cut to `crop` pixels; the result is final.

    A save is by JPEG or, one in four, by WebP. Images that are smaller than the crop are mirrored out to it.
    """

    crop: int = Field(ge=8, description="side of the square, in pixels; by default the network's input")
    resized: float = Field(default=0.5, ge=0, le=1, description="share of the images that are resized")
    scale: tuple[float, float] = Field(default=(0.45, 1.15), description="of a resize")
    longest_short_side: int = Field(default=1500, ge=8, description="pixels; an image over it is resized to a third of it or more instead")
    saved: float = Field(default=0.7, ge=0, le=1, description="share that is saved; the others come as they are")
    saved_twice: float = Field(default=0.15, ge=0, le=1)
    quality: tuple[int, int] = Field(default=(55, 97), description="of JPEG and WebP, both ends included")
    screens: float = Field(default=0.03, ge=0, le=1, description="share that is shown on a screen, between level bars")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale: {self.scale[0]:g} to {self.scale[1]:g} is no range of scales")
        if not 1 <= self.quality[0] <= self.quality[1] <= 100:
            raise ValueError(f"quality: {self.quality[0]} to {self.quality[1]} is no range of qualities")
        return self

    def __call__(self, sample: policy.ImageSample, rng: Rng, /) -> policy.ImageSample:
        """Changed as drawn from `rng`."""
        if rng.random() < self.resized:
            sample = ops.with_short_side(sample, self._short_side(min(sample.image.size), rng), _FILTERS[int(rng.integers(5))], rng)
        sample = ops.random_crop(sample, max(self.crop, min(self.crop + _MARGIN, *sample.image.size)), rng)
        if rng.random() < self.screens:
            sample = _on_screen(sample, rng)
        image = sample.image
        for change, share in _CHANGES.items():
            if rng.random() < share:
                image = change(image, rng)
        for share in (self.saved, self.saved_twice):
            if rng.random() < share:
                quality = int(rng.integers(*self.quality, endpoint=True))
                image = ops.webp(image, quality, method=2) if rng.random() < 0.25 else ops.jpeg(image, quality)
        sample = ops.random_crop(sample._replace(image=image), self.crop, rng)
        return (ops.mirrored(sample) if rng.random() < 0.5 else sample)._replace(finished=True)

    def _short_side(self, short: int, rng: Rng) -> int:
        if short > self.longest_short_side:
            return int(rng.integers(self.longest_short_side // 3, self.longest_short_side))
        return max(self.crop, round(short * rng.uniform(*self.scale)))


def _on_screen(sample: policy.ImageSample, rng: Rng) -> policy.ImageSample:
    """The image between level bars, as an application shows it; the frame has the image's size, the image gets the rest of it."""
    width, height = sample.image.size
    size = max(1, round(width * rng.uniform(0.7, 0.95))), max(1, round(height * rng.uniform(0.7, 0.95)))
    place = (width - size[0]) // 2, int(rng.uniform(0, height - size[1]))
    grey = int(rng.integers(40)) if rng.random() < 0.5 else int(rng.integers(216, 256))

    def framed(image: Image.Image, colour: int | tuple[int, ...]) -> Image.Image:
        screen = Image.new(image.mode, (width, height), colour)
        screen.paste(image, place)
        return screen

    shown = ops.resize_sample(sample, size, ops.Resampling.BILINEAR)
    return ops.transformed(shown, lambda image: framed(image, (grey,) * 3), lambda mask: framed(mask, 0))


def _blurred(image: Image.Image, rng: Rng) -> Image.Image:
    return ops.blurred(image, ops.gaussian_taps(9, float(rng.uniform(0.3, 1.3))))


def _noisy(image: Image.Image, rng: Rng) -> Image.Image:
    return ops.noisy(image, float(rng.uniform(1, 6)), rng)


def _sharpened(image: Image.Image, rng: Rng) -> Image.Image:
    return ops.sharpened(image, int(rng.integers(30, 150)), float(rng.uniform(0.6, 2.0)))


def _toned(image: Image.Image, rng: Rng) -> Image.Image:
    return ops.with_gamma(image, math.exp(rng.uniform(-0.3, 0.3)))


# Each with the share of the images to which it is done, before they are saved.
_CHANGES: Mapping[Callable[[Image.Image, Rng], Image.Image], float] = {_blurred: 0.08, _noisy: 0.07, _sharpened: 0.06, _toned: 0.06}
