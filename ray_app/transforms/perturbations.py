"""Perturbations: `load_perturbations` by name (a shipped list, a YAML file, or steps such as `jpeg:75`), `Perturbation.apply`, and the
steps in YAML.

Every step, `{op: jpeg, quality: 75}`, takes RGB of any size and gives RGB; what it cannot do to an image (a codec's longest side) it leaves
undone.
"""

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field, field_validator, model_validator

from ray_app.config import Frozen, load_yaml, named_configs, validate
from ray_app.errors import ConfigError
from ray_app.transforms import edits, ops, photography

Rng = np.random.Generator
Quality = Annotated[int, Field(ge=1, le=100)]
Side = Annotated[int, Field(ge=1, le=65535)]
Scale = Annotated[float, Field(gt=0, le=16)]

WRITTEN = {"jpeg": "quality", "webp": "quality", "avif": "quality", "blur": "sigma", "noise": "sigma", "resize": "scale", "crop": "share"}


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
        return ops.jpeg(image, quality)


class Webp(Step):
    """Through lossy WebP."""

    op: Literal["webp"]
    quality: Quality

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return ops.webp(image, self.quality)


class Avif(Step):
    """Through AVIF."""

    op: Literal["avif"]
    quality: Quality

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not ops.has_avif():
            raise ValueError("this Pillow was built without AVIF")
        return self

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return ops.avif(image, self.quality)


class ResizeStep(Step):
    """To another size, the aspect kept unless a `square` is requested: by exactly one of the following.

    `scale` of both sides (two numbers: it is drawn between them); `short_side` in pixels, up or down; `long_edge` and `screen` (width,
    height; turned as the image is) only shrink; `square` squashes to a side.
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

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
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
        return ops.scaled_size(size, self.scale if self.scale is not None else (self.short_side or 1) / min(size))


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
            return ops.scipy_blurred(image, self.sigma or 0.0)
        return ops.blurred(image, ops.opencv_taps(self.kernel) if self.sigma is None else ops.gaussian_taps(self.kernel, self.sigma))


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
        return ops.noisy(image, self.sigma if self.sigma is not None else math.sqrt(self.variance or 0.0), rng)


class Crop(Step):
    """The middle, with `share` of both sides."""

    keeps_place: ClassVar[bool] = False
    op: Literal["crop"]
    share: float = Field(gt=0, le=1)

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return ops.centre_crop(image, self.share)


class RandomSquare(Step):
    """A drawn square: its side from `share` of the short side to all of it, within `low` and `high`; the whole short side below `low`."""

    keeps_place: ClassVar[bool] = False
    op: Literal["random-square"]
    low: Side = 1
    high: Side = 65535
    share: float = Field(gt=0, le=1)

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return ops.random_square(image, self.low, self.high, self.share, rng)


class Gamma(Step):
    """Every value of 0–1 to the power of `gamma`."""

    op: Literal["gamma"]
    gamma: float = Field(gt=0, le=8)

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return ops.with_gamma(image, self.gamma)


class Sharpen(Step):
    """An unsharp mask of `percent` at `radius` pixels."""

    op: Literal["sharpen"]
    percent: int = Field(ge=1, le=500)
    radius: float = Field(default=1.0, gt=0, le=16)

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return ops.sharpened(image, self.percent, self.radius)


class Alter(Step):
    """One drawn region of `share` of the area filled with texture from elsewhere in the picture; see `transforms.edits`."""

    op: Literal["alter"]
    share: float = Field(gt=0, lt=1)

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return edits.altered(image, self.share, rng)


class Denoise(Step):
    """Lee's local Wiener filter for noise of `sigma` on the 0–255 scale, over a `window` in pixels."""

    op: Literal["denoise"]
    sigma: float = Field(gt=0, le=255)
    window: int = Field(default=5, ge=3, le=31)

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return photography.denoised(image, self.sigma, self.window)


class MergeExposures(Step):
    """The picture merged with itself `stops` darker and brighter, each where it is well exposed."""

    op: Literal["merge-exposures"]
    stops: float = Field(gt=0, le=4)

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return photography.merged_exposures(image, self.stops)


class ShowOnScreen(Step):
    """A screenshot of `screen` (width, height; turned as the image is) with the image between grey bars."""

    keeps_place: ClassVar[bool] = False
    op: Literal["show"]
    screen: tuple[Annotated[int, Field(ge=8, le=8192)], Annotated[int, Field(ge=8, le=8192)]]

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return photography.on_a_screen(image, self.screen, rng)


class Tilt(Step):
    """Seen slightly from aside: corners drawn within `most` of the sides."""

    keeps_place: ClassVar[bool] = False
    op: Literal["tilt"]
    most: float = Field(gt=0, le=0.2)

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return photography.tilted(image, self.most, rng)


class Levels(Step):
    """The range 0–255 becomes `black` to `white`."""

    op: Literal["levels"]
    black: int = Field(default=0, ge=0, le=254)
    white: int = Field(default=255, ge=1, le=255)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.black >= self.white:
            raise ValueError(f"{self.black} to {self.white} is no range")
        return self

    def apply(self, image: Image.Image, rng: Rng) -> Image.Image:
        """See the class."""
        return photography.with_levels(image, self.black, self.white)


AnyStep = Annotated[
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
    | Alter
    | Denoise
    | MergeExposures
    | ShowOnScreen
    | Tilt
    | Levels,
    Field(discriminator="op"),
]


class Perturbation(Frozen):
    """Steps that are applied one after another. `name` is how rows, masks and reports call the view; it is never that of the clean one."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.,:+-]*$", max_length=64)
    steps: tuple[AnyStep, ...] = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _of_a_view(cls, name: str) -> str:
        if name == "clean":
            raise ValueError("clean is what the unperturbed view is called")
        return name

    def apply(self, image: Image.Image, seed: int) -> Image.Image:
        """RGB of any size → RGB. The same pixels, seed and library versions give the same pixels, in any process and order.

        Raises what Pillow does where a codec cannot: OSError, ValueError, RuntimeError (AVIF), DecompressionBombError; and MemoryError.
        """
        rng = np.random.default_rng(seed)
        for step in self.steps:
            image = step.apply(image, rng)
        return image

    @property
    def keeps_place(self) -> bool:
        """Whether a mask of the perturbed image fits the image: not where it was cropped."""
        return all(step.keeps_place for step in self.steps)

    def facts(self) -> list[dict[str, Any]]:
        """The steps as plain JSON, without what is as always: what a run's identity says of it."""
        return [step.model_dump(mode="json", exclude_defaults=True) for step in self.steps]


def seed_of(sha256: str, name: str) -> int:
    """The seed of one file (hex SHA-256 of its bytes) in one perturbation: the first 8 bytes of SHA-256 over both, whoever asks."""
    return int.from_bytes(hashlib.sha256(f"{sha256}{name}".encode()).digest()[:8], "big")


class PerturbationList(Frozen):
    """A YAML file of perturbations: where the list comes from (`source`), and what of it is not as there (`note`)."""

    name: str
    source: str
    note: str = ""
    perturbations: tuple[Perturbation, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _named_apart(self) -> Self:
        names = [perturbation.name for perturbation in self.perturbations]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two perturbations are called {', '.join(sorted(doubled))}")
        return self


def load_perturbations(names: Iterable[str]) -> tuple[Perturbation, ...]:
    """All perturbations that the names stand for, in order, each once.

    A name is that of a shipped list (`standard`, `sidbench`, …), the path of a YAML file, or steps in a row: `jpeg:75`, `blur:2+jpeg:50`
    (see `WRITTEN`). Raises ConfigError for what is none of these, and where two of one name differ.
    """
    found: dict[str, Perturbation] = {}
    for name in names:
        for perturbation in _meant(name):
            if found.setdefault(perturbation.name, perturbation) != perturbation:
                raise ConfigError(
                    f"--perturb {name}: {perturbation.name} is also another perturbation's name in this run",
                    hint="score the two lists in two runs, or rename one of them in a YAML file of your own",
                )
    return tuple(found.values())


def _meant(name: str) -> tuple[Perturbation, ...]:
    shipped = named_configs("perturb")
    if name in shipped:
        return load_yaml(shipped[name], PerturbationList).perturbations
    if name.partition(":")[0] in WRITTEN:
        return (_written(name),)
    if Path(name).is_file():
        return load_yaml(Path(name), PerturbationList).perturbations
    examples = "jpeg:75, blur:2+jpeg:50"
    raise ConfigError(f"--perturb {name}: no such perturbation", hint=f"lists: {', '.join(shipped)}; or a YAML file; or steps: {examples}")


def _written(text: str) -> Perturbation:
    steps = []
    for part in text.split("+"):
        op, _, value = part.partition(":")
        if op not in WRITTEN or not value:
            known = ", ".join(f"{op}:{what.upper()}" for op, what in WRITTEN.items())
            raise ConfigError(f"--perturb {text}: {part} is no step", hint=f"steps are {known}, joined by +")
        try:
            steps.append({"op": op, WRITTEN[op]: float(value) if "." in value else int(value)})
        except ValueError:
            raise ConfigError(f"--perturb {text}: {value} is not a value", hint="a number, for example jpeg:75 or crop:0.5") from None
    return validate({"name": text, "steps": steps}, Perturbation, where=f"--perturb {text}")
