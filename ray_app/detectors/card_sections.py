"""Define sections of a detector card that do not affect its raw scores.

The sections are the expected scores of single images (`GoldenScore`, `FormulaScore`), the known
limits (`Fragility`), the training images (`TrainingData`), and the process of a callable, a user's
Python code that works as a detector (`CallableSettings`). The module loads without torch.
"""

import glob
from collections.abc import Iterable, Mapping, Sequence
from operator import not_
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Discriminator, Field, Tag, model_validator

from ray_app.config import Frozen
from ray_app.detectors.preprocessing import Pixels


class GoldenScore(Frozen):
    """The probability of fake that the authors of a detector published for one image.

    `touchstone detectors verify` compares the detector's own result with it.
    """

    name: str = Field(description="name of the image")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the image file, in hex")
    probability: float = Field(ge=0, le=1, description="published probability of fake")
    tolerance: float = Field(gt=0, description="maximum difference from the probability")
    source: str = Field(description="where the probability is published")


class FormulaScore(Frozen):
    """Expected log-odds of fake of a detector in fp32 for a generated test image.

    `generate_formula_image` generates the image in the given size, so that no file is needed.
    `touchstone detectors verify` compares the detector's own result with the expected log-odds.
    """

    image: Literal["formula"] = Field(description="kind of the image")
    width: int = Field(default=640, ge=1, le=4096, description="width in pixels")
    height: int = Field(default=480, ge=1, le=4096, description="height in pixels")
    logit: float = Field(description="expected log-odds")
    tolerance: float = Field(gt=0, description="maximum difference from the log-odds")
    source: str = Field(description="how the log-odds were computed")


def _golden_kind(data: Any) -> str:
    return (
        "(formula)"
        if isinstance(data, FormulaScore) or (isinstance(data, Mapping) and "image" in data)
        else "(file)"
    )


Golden = Annotated[
    Annotated[GoldenScore, Tag("(file)")] | Annotated[FormulaScore, Tag("(formula)")],
    Discriminator(_golden_kind),
]
"""Expected score of an image that the authors published, or of a generated image."""


def generate_formula_image(width: int, height: int) -> Pixels:
    """Generate a test image with integer arithmetic, so every machine generates the same pixels.

    Returns (height, width, 3) uint8 RGB. At column x and row y, the channels are 7x + 13y + ⌊xy /
    31⌋, 3x + 5y, and ⌊x² / 17⌋ + 11y, each modulo 256.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    planes = (x * 7 + y * 13 + (x * y) // 31, x * 3 + y * 5, x * x // 17 + y * 11)
    return np.stack([plane % 256 for plane in planes], axis=-1).astype(np.uint8)


FactName = Literal["jpeg_quality", "texture", "graphics"]
FACTS: Mapping[FactName, tuple[str, str]] = {
    "jpeg_quality": ("quality", "JPEG quality"),
    "texture": ("texture", "texture"),
    "graphics": ("graphics", "share of graphics"),
}
"""Image properties that a card may limit.

Each has the name of its field in `ImageFileFacts`, which is also its column, and a name for people.
"""
MEASURED: tuple[FactName, ...] = ("texture", "graphics")
"""Properties that are computed from pixels, and only if a card limits them.

`ray_app.images.facts.measure_texture` computes them.
"""
Facts = Mapping[FactName, Sequence[float | None]]


class FactBound(Frozen):
    """Range of an image property, such as JPEG quality, within which a verdict is meaningful.

    At least one of the limits is set. For an image outside them, the verdict is abstain: neither
    real nor fake.
    """

    below: float | None = Field(
        default=None, description="values less than this limit get no verdict"
    )
    above: float | None = Field(
        default=None, description="values greater than this limit get no verdict"
    )
    what: str | None = Field(
        default=None, description="description of the images outside the range"
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> "FactBound":
        if self.below is None and self.above is None:
            raise ValueError("set below, above, or both")
        if self.below is not None and self.above is not None and self.below > self.above:
            raise ValueError(
                f"below ({self.below:g}) must not exceed above ({self.above:g}), because no image would get a verdict"
            )
        return self

    @property
    def facts(self) -> dict[str, float]:
        """The limits that are set, such as {"below": 30.0}."""
        return {
            name: bound
            for name, bound in (("below", self.below), ("above", self.above))
            if bound is not None
        }

    def describe_mismatch(self, name: FactName, value: float) -> str:
        """Return a phrase that states why an image is outside the limits.

        An example is "JPEG quality 20, below the valid range (30)".
        """
        is_low = self.below is not None and value < self.below
        bound = self.below if is_low else self.above
        position = f"{'below' if is_low else 'above'} the valid range ({bound:g})"
        return f"{FACTS[name][1]} {value:.3g}, {position}" + (f": {self.what}" if self.what else "")


class FragilityMetric(Frozen):
    """Metrics of a detector on images after one perturbation, such as JPEG compression.

    `touchstone evaluate SOURCE --perturb … --fragility FILE` writes them.
    """

    perturbation: str | None = Field(
        default=None, description="name of the perturbation. null for unchanged images"
    )
    steps: str | None = Field(
        default=None,
        description="steps of the perturbation with their strengths. null for unchanged images",
    )
    auc: float | None = Field(default=None, ge=0, le=1, description="area under the ROC curve")
    fpr: float | None = Field(
        default=None, ge=0, le=1, description="false-positive rate at `threshold`"
    )
    tpr: float | None = Field(
        default=None, ge=0, le=1, description="true-positive rate at `threshold`"
    )
    threshold: float | None = Field(default=None, description="threshold in log-odds")
    n_real: int | None = Field(default=None, ge=0, description="number of real images")
    n_fake: int | None = Field(default=None, ge=0, description="number of fake images")
    source: str = Field(description="where the metrics come from")
    note: str | None = Field(default=None, description="notes for readers")


class Fragility(Frozen):
    """Perturbations that break a detector, and limits beyond which its verdict is abstain.

    A limit is a range of an image property, such as the JPEG quality. Limits do not change scores.
    A property that is unknown for an image, such as the JPEG quality of a PNG, counts as within the
    limits.
    """

    measured: tuple[FragilityMetric, ...] = Field(
        default=(), description="metrics on perturbed images"
    )
    abstains: Mapping[FactName, FactBound] = Field(
        default={}, description="ranges of image properties outside which the verdict is abstain"
    )

    @property
    def facts(self) -> dict[str, Any]:
        """The limits as plain JSON, such as {"jpeg_quality": {"below": 30.0}}.

        An empty result means no limits. The limits are part of a run's identity: the values that
        must stay equal when a scoring run is resumed.
        """
        return {name: bound.facts for name, bound in self.abstains.items()}

    def with_recorded_limits(self, facts: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        """Return the section `fragility` with the limits that a scoring run recorded, as JSON.

        A run that is resumed keeps its limits, even if the card has changed. The texts that
        describe limits are not recorded, so they are taken from the present card.
        """
        descriptions = {str(name): bound.what for name, bound in self.abstains.items()}
        bounds = {name: {"what": descriptions.get(name), **bound} for name, bound in facts.items()}
        return {**self.model_dump(mode="json"), "abstains": bounds}

    def describe_mismatches(self, facts: Facts) -> dict[int, str]:
        """Return a phrase for each image outside the limits, by its index, that states the reason.

        `facts` has one value per image by property. None means unknown, which counts as within the
        limits.
        """
        reasons: dict[int, str] = {}
        for name, bound in self.abstains.items():
            # None becomes NaN, which is within all limits.
            values = np.array(facts.get(name, ()), np.float64)
            low, high = (
                -np.inf if bound.below is None else bound.below,
                np.inf if bound.above is None else bound.above,
            )
            for row in np.flatnonzero((values < low) | (values > high)).tolist():
                reasons.setdefault(row, bound.describe_mismatch(name, float(values[row])))
        return reasons


# Labels of fakes with an unknown generator, and of real images with an unknown source.
_UNKNOWN = ("", "real", "unknown")


class TrainingData(Frozen):
    """The images that the weights were trained on, and the licence of these images."""

    name: str = Field(description="name of the data set")
    images: str | None = Field(default=None, description="number and kind of the images")
    licence: str = Field(description="licence of the images")
    source: str | None = Field(default=None, description="where the images are published")
    generators: tuple[str, ...] = Field(
        default=(),
        description="globs over the generator names that labels give to the fakes. Case, spaces, dots, "
        "dashes, and underscores are ignored",
    )
    sources: tuple[str, ...] = Field(
        default=(),
        exclude_if=not_,
        description="globs over the `source` that labels give to images, for all images that weights were "
        "fitted or chosen on",
    )
    complete: bool = Field(
        default=False,
        description="whether there are no other generators and, if sources are named, no other sources. If "
        "false, other names are unknown",
    )


class SeenNames(NamedTuple):
    """Glob patterns of the generators and image sources that a detector's weights were trained on.

    A generator is a model that made fakes. A source is the origin of real images, such as a camera.
    The names go into the section `training_data` of a card. `complete` means that all are covered.
    If `sources` is empty, only `generators` counts.
    """

    generators: tuple[str, ...]
    sources: tuple[str, ...]
    complete: bool

    @classmethod
    def from_labels(cls, makers: Iterable[str], sources: Iterable[str]) -> Self:
        """Collect generators and sources from the labels of all fakes and of all real images.

        A source may have the prefix `real:`. A label "", "real", or "unknown" means that the name
        is not known. `complete` is False if no generator or not every generator is known, or if
        only some of the sources are known.
        """
        generators, all_generators_known = _globs(makers)
        source_globs, all_sources_known = _globs(source.removeprefix("real:") for source in sources)
        return cls(
            generators,
            source_globs,
            bool(generators) and all_generators_known and (all_sources_known or not source_globs),
        )

    def merge(self, base: TrainingData) -> Self:
        """Add the names of the original weights to those of the fine-tuning, which are in `self`.

        `complete` is False if either of them is incomplete. It is also False if only one lists
        sources, because those of the other are then not known.
        """
        complete = base.complete and self.complete and bool(base.sources) == bool(self.sources)
        generators, sources = (
            tuple(dict.fromkeys((*old, *new)))
            for old, new in ((base.generators, self.generators), (base.sources, self.sources))
        )
        return type(self)(generators, sources, complete)


def _globs(names: Iterable[str]) -> tuple[tuple[str, ...], bool]:
    """Return a glob for each distinct name, and whether all names are known."""
    distinct = dict.fromkeys(names)
    return tuple(
        glob.escape(name) for name in distinct if name not in _UNKNOWN
    ), distinct.keys().isdisjoint(_UNKNOWN)


# Assumed speed of one core (`scoring.layout`), which converts measured seconds to multiply-adds.
GMAC_PER_S = 100.0
# Assumed memory of a child process that was not measured: Python, torch, and a network.
ASSUMED_BYTES = 3 * 2**30


class CallableSettings(Frozen):
    """Settings of the process that runs a Python callable as a detector.

    A callable is Python code of a user. No setting affects scores.
    """

    python: str = Field(
        min_length=1, description="path of the Python interpreter that has the package installed"
    )
    folder: str = Field(
        min_length=1,
        description="working directory of the process. Packages that cache files next to their caller write "
        "to it",
    )
    limit_s: float = Field(
        default=60.0,
        gt=0,
        description="maximum seconds per batch. After that the process is ended",
    )
    start_limit_s: float = Field(
        default=900.0,
        gt=0,
        description="maximum seconds to load the callable, including downloads",
    )
    takes_device: bool = Field(
        default=False,
        exclude_if=not_,
        description="whether the callable has a parameter `device`, which gets the device of the command",
    )
    peak_bytes: int | None = Field(
        default=None, ge=1, description="measured peak memory of a process, in bytes"
    )
    seconds: float | None = Field(default=None, gt=0, description="measured seconds per megapixel")

    @property
    def memory_bytes(self) -> int:
        """Measured peak memory of one process in bytes, or 3 GiB if it was not measured."""
        return self.peak_bytes or ASSUMED_BYTES

    @property
    def gmac(self) -> float:
        """Estimated cost per megapixel in billions of multiply-adds, to compare it with networks.

        The cost is the measured time × `GMAC_PER_S`, the assumed speed of one core. If the time was
        not measured, it is assumed to be one second per megapixel.
        """
        return GMAC_PER_S * (self.seconds or 1.0)
