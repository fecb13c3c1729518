"""The steps of perturbations as YAML: `{op: jpeg, quality: 75}` is called with RGB of any size and
gives RGB.

What a step cannot do to an image (a codec's longest side) it leaves undone.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from inspect import signature
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from ray_app.config import Frozen
from ray_app.errors import ConfigError
from ray_app.transforms import degradations, ops, photography

Rng = np.random.Generator
Quality = Annotated[int, Field(ge=1, le=100)]
Side = Annotated[int, Field(ge=1, le=65535)]
Scale = Annotated[float, Field(gt=0, le=16)]


class Step(Frozen):
    """Base of all steps. `keeps_place`: what was at a place of the image, as a share of its sides,
    is there still.
    """

    keeps_place: ClassVar[bool] = True
    function: ClassVar[Callable[..., Image.Image]]

    def __call__(self, image: Image.Image, rng: Rng) -> Image.Image:
        """The image after the step; the given one is left as it is."""
        return self._apply(image, rng)

    def _apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """Calls the step's `function` with its fields by name, and with `rng` if it draws. Steps
        that do more override this.
        """
        function = type(self).function
        given = {name: getattr(self, name) for name in type(self).model_fields if name != "op"}
        return function(
            image, **given, **({"rng": rng} if "rng" in signature(function).parameters else {})
        )

    def check(self) -> None:
        """Raise ConfigError if the step cannot run on this machine."""


class Jpeg(Step):
    """Through JPEG with halved chroma (4:2:0), Pillow's encoder. Two numbers: the quality is drawn,
    both ends included.
    """

    op: Literal["jpeg"]
    quality: Quality | tuple[Quality, Quality]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if isinstance(self.quality, tuple) and self.quality[0] > self.quality[1]:
            raise ValueError(f"{self.quality[0]} to {self.quality[1]} is no range")
        return self

    def _apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        quality = (
            self.quality
            if isinstance(self.quality, int)
            else int(rng.integers(*self.quality, endpoint=True))
        )
        return ops.jpeg(image, quality)


class Webp(Step):
    """Through lossy WebP."""

    function = ops.webp
    op: Literal["webp"]
    quality: Quality


class Avif(Step):
    """Through AVIF."""

    function = ops.avif
    op: Literal["avif"]
    quality: Quality

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not ops.has_avif():
            raise ValueError("this Pillow was built without AVIF")
        return self


class ResizeStep(Step):
    """To another size, the aspect kept unless a `square` is requested: by exactly one of the
    following.

    `scale` of both sides (two numbers: it is drawn between them); `short_side` in pixels, up or
    down; `long_edge` and `screen` (width, height; turned as the image is) only shrink; `square`
    squashes to a side.
    """

    op: Literal["resize"]
    scale: Scale | tuple[Scale, Scale] | None = None
    short_side: Side | None = None
    long_edge: Side | None = None
    screen: tuple[Side, Side] | None = None
    square: Side | None = None
    filter: ops.Filter = "bicubic"

    @model_validator(mode="after")
    def _one(self) -> Self:
        ways = ("scale", "short_side", "long_edge", "screen", "square")
        if sum(getattr(self, way) is not None for way in ways) != 1:
            raise ValueError(f"resize takes exactly one of {', '.join(ways)}")
        if isinstance(self.scale, tuple) and self.scale[0] > self.scale[1]:
            raise ValueError(f"{self.scale[0]} to {self.scale[1]} is no range")
        return self

    def _apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        return ops.resized(image, self._target(image.size, rng), self.filter)

    def _target(self, size: tuple[int, int], rng: Rng) -> tuple[int, int]:
        if self.long_edge is not None:
            return ops.capped_size(size, self.long_edge)
        if self.screen is not None:
            return ops.fitted_size(size, self.screen)
        if self.square is not None:
            return self.square, self.square
        if isinstance(self.scale, tuple):
            return ops.scaled_size(size, float(rng.uniform(*self.scale)))
        return ops.scaled_size(
            size, self.scale if self.scale is not None else (self.short_side or 1) / min(size)
        )


class Blur(Step):
    """Gaussian blur. `sigma` alone: scipy's on uint8 channels, as published robustness suites do
    it. `kernel` (odd) alone: OpenCV's, which derives sigma. Both: that kernel in float, rounded
    once.
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

    def _apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        if self.kernel is None:
            return ops.scipy_blurred(image, self.sigma or 0.0)
        return ops.blurred(
            image,
            ops.opencv_taps(self.kernel)
            if self.sigma is None
            else ops.gaussian_taps(self.kernel, self.sigma),
        )


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

    def _apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        return ops.noisy(
            image, self.sigma if self.sigma is not None else math.sqrt(self.variance or 0.0), rng
        )


class Crop(Step):
    """The middle, with `share` of both sides."""

    keeps_place: ClassVar[bool] = False
    function = ops.centre_crop
    op: Literal["crop"]
    share: float = Field(gt=0, le=1)


class RandomSquare(Step):
    """A drawn square: its side from `share` of the short side to all of it, within `low` and
    `high`; the whole short side below `low`.
    """

    keeps_place: ClassVar[bool] = False
    function = ops.random_square
    op: Literal["random-square"]
    low: Side = 1
    high: Side = 65535
    share: float = Field(gt=0, le=1)


class Gamma(Step):
    """Every value of 0–1 to the power of `gamma`."""

    function = ops.with_gamma
    op: Literal["gamma"]
    gamma: float = Field(gt=0, le=8)


class Sharpen(Step):
    """An unsharp mask of `percent` at `radius` pixels."""

    function = ops.sharpened
    op: Literal["sharpen"]
    percent: int = Field(ge=1, le=500)
    radius: float = Field(default=1.0, gt=0, le=16)


class Denoise(Step):
    """Lee's local Wiener filter for noise of `sigma` on the 0–255 scale, over a `window` in pixels."""

    function = photography.denoised
    op: Literal["denoise"]
    sigma: float = Field(gt=0, le=255)
    window: int = Field(default=5, ge=3, le=31)


class MergeExposures(Step):
    """The picture merged with itself `stops` darker and brighter, each where it is well exposed."""

    function = photography.merged_exposures
    op: Literal["merge-exposures"]
    stops: float = Field(gt=0, le=4)


class ShowOnScreen(Step):
    """A screenshot of `screen` (width, height; turned as the image is) with the image between grey
    bars.
    """

    keeps_place: ClassVar[bool] = False
    function = photography.on_a_screen
    op: Literal["show"]
    screen: tuple[Annotated[int, Field(ge=8, le=8192)], Annotated[int, Field(ge=8, le=8192)]]


class Tilt(Step):
    """Seen slightly from aside: corners drawn within `most` of the sides."""

    keeps_place: ClassVar[bool] = False
    function = photography.tilted
    op: Literal["tilt"]
    most: float = Field(gt=0, le=0.2)


class Levels(Step):
    """The range 0–255 becomes `black` to `white`."""

    function = photography.with_levels
    op: Literal["levels"]
    black: int = Field(default=0, ge=0, le=254)
    white: int = Field(default=255, ge=1, le=255)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.black >= self.white:
            raise ValueError(f"{self.black} to {self.white} is no range")
        return self


class _OfStrength(Step):
    """Base of the steps that a table has by name, with a `strength` in the table's own unit."""

    table: ClassVar[dict[str, degradations.Degradation]]
    op: str
    strength: float

    @model_validator(mode="after")
    def _within(self) -> Self:
        known = self.table[self.op]
        if not known.low <= self.strength <= known.high:
            raise ValueError(
                f"{self.op}: {self.strength} is not within {known.low} and {known.high} ({known.what})"
            )
        return self

    def _apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        return self.table[self.op].apply(image, self.strength, rng)


class Degrade(_OfStrength):
    """One of `degradations.DEGRADATIONS`."""

    table = degradations.DEGRADATIONS
    op: Literal[
        "lens-blur", "motion-blur", "glass-blur", "pixel-jitter", "color-shift", "saturation", "color-jitter", "color-cast",
        "channel-shift", "quantization", "jpeg2000", "impulse-noise", "multiplicative-noise", "speckle-noise", "shot-noise", "iso-noise",
        "brightness", "darkness", "contrast", "tone-curve", "clahe", "pixelation", "moire", "watermark",
    ]  # fmt: skip


class RandomCrop(_OfStrength):
    """One of `degradations.CROPS`."""

    keeps_place: ClassVar[bool] = False
    table = degradations.CROPS
    op: Literal["random-crop", "random-aspect-crop"]


class Halftone(Step):
    """As printed: dots of ink on cells of `cell` pixels that spread by `gain`."""

    function = photography.halftoned
    op: Literal["halftone"]
    cell: float = Field(ge=2, le=16)
    gain: float = Field(default=0.15, ge=0, le=1)


class Call(Step):
    """A function of yours: it takes the RGB image, `arguments` by name, and NumPy's generator if it
    has a parameter `rng`.

    It returns an image. If it raises ValueError, the view has no score of that image.
    """

    keeps_place: ClassVar[bool] = False
    op: Literal["call"]
    path: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="MODULE:FUNCTION, as Python imports it",
    )
    arguments: Mapping[str, Any] = {}

    def check(self) -> None:
        """See `Step`."""
        _import_function(self.path)

    def _apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        function = _import_function(self.path)
        result = function(
            image,
            **self.arguments,
            **({"rng": rng} if "rng" in signature(function).parameters else {}),
        )
        if not isinstance(result, Image.Image):
            raise TypeError(f"{self.path} returned {type(result).__name__}, not a PIL image")
        return result.convert("RGB")


@cache
def _import_function(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    try:
        function: Callable[..., Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"op call: {path} cannot be imported: {error}",
            hint="install the module on every machine, or set PYTHONPATH to the absolute path of its folder",
        ) from error
    return function


OneStep = Annotated[
    Jpeg
    | Webp
    | Avif
    | ResizeStep
    | Blur
    | Noise
    | Crop
    | RandomSquare
    | Gamma
    | Sharpen
    | Denoise
    | MergeExposures
    | ShowOnScreen
    | Tilt
    | Levels
    | Degrade
    | RandomCrop
    | Halftone,
    Field(discriminator="op"),
]
