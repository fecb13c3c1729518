"""The policy `in-the-wild`: what happens to pictures between their making and an archive, drawn alike for real and generated ones.

Crops, resizes, blur, noise, tone, screenshots and one or two saves as JPEG or WebP: the kinds of NTIRE 2026's challenge on robust detection
in the wild (arXiv 2604.11487) that need no network. Both classes go through it, so that neither size nor format nor compression tells them
apart; the strengths are ours.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image
from pydantic import Field

from ray_app.config import Frozen
from ray_app.transforms import ops, policy

Rng = np.random.Generator

_FILTERS = (ops.Resampling.BILINEAR, ops.Resampling.BICUBIC, ops.Resampling.LANCZOS, ops.Resampling.BOX, ops.Resampling.HAMMING)
_SHARE = {"blur": 0.12, "noise": 0.1, "sharpen": 0.08, "tone": 0.1}  # of the saves before which each is done


class InTheWild(Frozen):
    """A crop in `crops` of the images, then one save or, in `twice` of them, two, then a mirror; the card's preprocessing comes after.

    A save is a resize to a short side between `short_side`, drawn on a log scale and at most 1.2 × what there is, perhaps blur, noise,
    sharpening or another tone, and in `coded` of the saves a codec of a quality within `quality`. `screens`: shown on a screen first.
    """

    crops: float = Field(default=0.6, ge=0, le=1)
    least_side: float = Field(default=0.5, gt=0, le=1, description="of a crop, as a share of the image's side")
    short_side: tuple[int, int] = Field(default=(224, 1024), description="pixels, both ends included")
    quality: tuple[int, int] = Field(default=(50, 95), description="of JPEG and WebP, both ends included")
    coded: float = Field(default=0.85, ge=0, le=1)
    twice: float = Field(default=0.3, ge=0, le=1)
    screens: float = Field(default=0.04, ge=0, le=1)

    def __call__(self, sample: policy.ImageSample, rng: Rng, /) -> policy.ImageSample:
        """Changed as drawn from `rng`."""
        if rng.random() < self.crops:
            sample = self._cropped(sample, rng)
        if rng.random() < self.screens:
            sample = _on_screen(sample, rng)
        for _ in range(2 if rng.random() < self.twice else 1):
            sample = self._saved(sample, rng)
        return ops.mirrored(sample) if rng.random() < 0.5 else sample

    def _cropped(self, sample: policy.ImageSample, rng: Rng) -> policy.ImageSample:
        least = self.short_side[0]
        sides = [min(n, max(least, int(n * rng.uniform(self.least_side, 1)))) for n in sample.image.size]
        left, top = (int(rng.integers(n - side + 1)) for n, side in zip(sample.image.size, sides, strict=True))
        return ops.cropped(sample, (left, top, left + sides[0], top + sides[1]))

    def _saved(self, sample: policy.ImageSample, rng: Rng) -> policy.ImageSample:
        low, high = self.short_side
        high = min(high, round(1.2 * min(sample.image.size)))
        low = min(low, high)
        short = round(low * math.exp(rng.random() * math.log(high / low)))
        sample = ops.with_short_side(sample, short, _FILTERS[int(rng.integers(len(_FILTERS)))], rng)
        image = sample.image
        for name, change in _CHANGES.items():
            if rng.random() < _SHARE[name]:
                image = change(image, rng)
        if rng.random() < self.coded:
            quality = int(rng.integers(*self.quality, endpoint=True))
            image = ops.webp(image, quality, method=2) if rng.random() < 0.25 else ops.jpeg(image, quality)
        return sample._replace(image=image)


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
    return ops.blurred(image, ops.gaussian_taps(9, float(rng.uniform(0.4, 1.6))))


def _toned(image: Image.Image, rng: Rng) -> Image.Image:
    return ops.with_gamma(image, math.exp(rng.uniform(-0.35, 0.35)))


_CHANGES: dict[str, Callable[[Image.Image, Rng], Image.Image]] = {
    "blur": _blurred,
    "noise": lambda image, rng: ops.noisy(image, float(rng.uniform(2, 10)), rng),
    "sharpen": lambda image, rng: ops.sharpened(image, int(rng.integers(50, 150)), float(rng.uniform(0.6, 2.0))),
    "tone": _toned,
}
