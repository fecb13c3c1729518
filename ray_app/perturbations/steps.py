"""The steps that perturbations are made of, as YAML says them: `{op: jpeg, quality: 75}`. Knows PIL images and seeded generators.

Every step takes RGB of any size and gives RGB; what it cannot do to an image (a codec's longest side) it leaves undone.
"""

import math
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from ray_app.config import Frozen
from ray_app.perturbations import compression
from ray_app.perturbations.blurring import blurred, gaussian_taps, opencv_taps, scipy_blurred
from ray_app.perturbations.sizing import Filter, capped_size, centre_crop, fitted_size, random_square, resized, scaled_size
from ray_app.perturbations.tones import noisy, sharpened, with_gamma

Rng = np.random.Generator
Quality = Annotated[int, Field(ge=1, le=100)]
Side = Annotated[int, Field(ge=1, le=65535)]
Scale = Annotated[float, Field(gt=0, le=16)]


class Step(Frozen):
    """Base of all steps. `keeps_place`: what was at a place of the image, as a share of its sides, is there still."""

    keeps_place: ClassVar[bool] = True

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """The image after the step; the given one is left as it is."""
        raise NotImplementedError


class Jpeg(Step):
    """Through JPEG with halved chroma (4:2:0), Pillow's encoder. Two numbers: the quality is drawn, both ends included."""

    op: Literal["jpeg"]
    quality: Quality | tuple[Quality, Quality]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if isinstance(self.quality, tuple) and self.quality[0] > self.quality[1]:
            raise ValueError(f"{self.quality[0]} to {self.quality[1]} is no range")
        return self

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        quality = self.quality if isinstance(self.quality, int) else int(rng.integers(*self.quality, endpoint=True))
        return compression.jpeg(image, quality)


class Webp(Step):
    """Through lossy WebP."""

    op: Literal["webp"]
    quality: Quality

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return compression.webp(image, self.quality)


class Avif(Step):
    """Through AVIF."""

    op: Literal["avif"]
    quality: Quality

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not compression.has_avif():
            raise ValueError("this Pillow was built without AVIF")
        return self

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return compression.avif(image, self.quality)


class Resize(Step):
    """To another size, the aspect kept unless a `square` is asked for: by exactly one of the following.

    `scale` of both sides (two numbers: it is drawn between them); `short_side` in pixels, up or down; `long_edge` and `screen` (width,
    height; turned as the image is) only shrink; `square` squashes to a side.
    """

    op: Literal["resize"]
    scale: Scale | tuple[Scale, Scale] | None = None
    short_side: Side | None = None
    long_edge: Side | None = None
    screen: tuple[Side, Side] | None = None
    square: Side | None = None
    filter: Filter = "bicubic"

    @model_validator(mode="after")
    def _one(self) -> Self:
        ways = ("scale", "short_side", "long_edge", "screen", "square")
        if sum(getattr(self, way) is not None for way in ways) != 1:
            raise ValueError(f"resize takes exactly one of {', '.join(ways)}")
        if isinstance(self.scale, tuple) and self.scale[0] > self.scale[1]:
            raise ValueError(f"{self.scale[0]} to {self.scale[1]} is no range")
        return self

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return resized(image, self._target(image.size, rng), self.filter)

    def _target(self, size: tuple[int, int], rng: Rng) -> tuple[int, int]:
        if self.long_edge is not None:
            return capped_size(size, self.long_edge)
        if self.screen is not None:
            return fitted_size(size, self.screen)
        if self.square is not None:
            return self.square, self.square
        if isinstance(self.scale, tuple):
            return scaled_size(size, float(rng.uniform(*self.scale)))
        return scaled_size(size, self.scale if self.scale is not None else (self.short_side or 1) / min(size))


class Blur(Step):
    """Gaussian blur. `sigma` alone: scipy's on uint8 channels, as published robustness suites do it. `kernel` (odd) alone: OpenCV's, which
    derives sigma. Both: that kernel in float, rounded once.
    """

    op: Literal["blur"]
    sigma: float | None = Field(default=None, gt=0, le=64)
    kernel: int | None = Field(default=None, ge=1, le=255)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.sigma is None and self.kernel is None:
            raise ValueError("blur takes a sigma, a kernel, or both")
        if self.kernel is not None and self.kernel % 2 == 0:
            raise ValueError(f"a kernel of {self.kernel} has no middle")
        return self

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        if self.kernel is None:
            return scipy_blurred(image, self.sigma or 0.0)
        return blurred(image, opencv_taps(self.kernel) if self.sigma is None else gaussian_taps(self.kernel, self.sigma))


class Noise(Step):
    """Gaussian noise on the 0–255 scale, by its `sigma` or its `variance`."""

    op: Literal["noise"]
    sigma: float | None = Field(default=None, gt=0, le=255)
    variance: float | None = Field(default=None, gt=0, le=65025)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.sigma is None) == (self.variance is None):
            raise ValueError("noise takes a sigma or a variance")
        return self

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return noisy(image, self.sigma if self.sigma is not None else math.sqrt(self.variance or 0.0), rng)


class Crop(Step):
    """The middle, with `share` of both sides."""

    keeps_place: ClassVar[bool] = False
    op: Literal["crop"]
    share: float = Field(gt=0, le=1)

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return centre_crop(image, self.share)


class RandomSquare(Step):
    """A drawn square: its side from `share` of the short side to all of it, within `low` and `high`; the whole short side below `low`."""

    keeps_place: ClassVar[bool] = False
    op: Literal["random-square"]
    low: Side = 1
    high: Side = 65535
    share: float = Field(gt=0, le=1)

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return random_square(image, self.low, self.high, self.share, rng)


class Gamma(Step):
    """Every value of 0–1 to the power of `gamma`."""

    op: Literal["gamma"]
    gamma: float = Field(gt=0, le=8)

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return with_gamma(image, self.gamma)


class Sharpen(Step):
    """An unsharp mask of `percent` at `radius` pixels."""

    op: Literal["sharpen"]
    percent: int = Field(ge=1, le=500)
    radius: float = Field(default=1.0, gt=0, le=16)

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return sharpened(image, self.percent, self.radius)


AnyStep = Annotated[
    Jpeg | Webp | Avif | Resize | Blur | Noise | Crop | RandomSquare | Gamma | Sharpen,
    Field(discriminator="op"),
]
