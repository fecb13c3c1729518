"""Sections of a detector's card that say more than how it scores: what single images must score
(`GoldenScore`, `FormulaScore`, `formula_image`), its known limits (`Fragility`), its training
images (`TrainingData`, `SeenNames`) and, of a detector of another package, its process
(`CallableSettings`). Without torch.
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
    """P(fake) that the authors published for one image, known by the sha256 of its file."""

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    probability: float = Field(ge=0, le=1)
    tolerance: float = Field(gt=0)
    source: str


class FormulaScore(Frozen):
    """The log-odds that the card's weights give, in fp32, for an image that needs no file:
    `formula_image` of this size.
    """

    image: Literal["formula"]
    width: int = Field(default=640, ge=1, le=4096)
    height: int = Field(default=480, ge=1, le=4096)
    logit: float
    tolerance: float = Field(gt=0)
    source: str


def _golden_kind(described: Any) -> str:
    return (
        "(formula)"
        if isinstance(described, FormulaScore)
        or (isinstance(described, Mapping) and "image" in described)
        else "(file)"
    )


Golden = Annotated[
    Annotated[GoldenScore, Tag("(file)")] | Annotated[FormulaScore, Tag("(formula)")],
    Discriminator(_golden_kind),
]
"""What a score must be, on an image that the authors published or on one made by formula."""


def formula_image(width: int, height: int) -> Pixels:
    """(height, width, 3) uint8 RGB by integers alone, so that every machine makes the same: 7x +
    13y + ⌊xy / 31⌋, 3x + 5y and ⌊x² / 17⌋ + 11y, each modulo 256, at column x and row y.
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
"""Facts of an image that a card may bound: the field that has it in `ImageFileFacts` and the column
of a row, and its name in words.
"""
MEASURED: tuple[FactName, ...] = ("texture", "graphics")
"""Those among them that are measured on pixels (see `ray_app.images.facts.texture_of`), and only
where a card asks.
"""
Facts = Mapping[FactName, Sequence[float | None]]


class FactBound(Frozen):
    """Where a verdict means nothing: below one value of a fact, above another. `what`: what such
    images are, in words.
    """

    below: float | None = None
    above: float | None = None
    what: str | None = None

    @model_validator(mode="after")
    def _some_bound(self) -> "FactBound":
        if self.below is None and self.above is None:
            raise ValueError("give below or above")
        if self.below is not None and self.above is not None and self.below > self.above:
            raise ValueError(
                f"below ({self.below:g}) must not exceed above ({self.above:g}): no image would be judged"
            )
        return self

    @property
    def facts(self) -> dict[str, float]:
        """The bounds that there are."""
        return {
            name: bound
            for name, bound in (("below", self.below), ("above", self.above))
            if bound is not None
        }

    def doubt(self, name: FactName, value: float) -> str:
        """Why an image of this value lies outside, in words."""
        is_low = self.below is not None and value < self.below
        bound = self.below if is_low else self.above
        where = f"{'below' if is_low else 'above'} the valid range ({bound:g})"
        return f"{FACTS[name][1]} {value:.3g}, {where}" + (f": {self.what}" if self.what else "")


class FragilityFigure(Frozen):
    """What one perturbation leaves of a detector; written by `touchstone evaluate SOURCE --perturb
    … --fragility FILE`.

    `perturbation`: its name, and `steps`: what it does, with strengths; null for images as they
    are. `fpr`, `tpr`: at `threshold`, in log-odds.
    """

    perturbation: str | None = None
    steps: str | None = None
    auc: float | None = Field(default=None, ge=0, le=1)
    fpr: float | None = Field(default=None, ge=0, le=1)
    tpr: float | None = Field(default=None, ge=0, le=1)
    threshold: float | None = None
    n_real: int | None = Field(default=None, ge=0)
    n_fake: int | None = Field(default=None, ge=0)
    source: str
    note: str | None = None


class Fragility(Frozen):
    """Under what a detector breaks: `measured` figures, and `abstains`, bounds on facts of an image
    beyond which the verdict is abstain.

    Scores stay. A fact that is not known of an image, such as the JPEG quality of a PNG, lies
    inside.
    """

    measured: tuple[FragilityFigure, ...] = ()
    abstains: Mapping[FactName, FactBound] = {}

    @property
    def facts(self) -> dict[str, Any]:
        """The bounds as plain JSON, part of a run's identity; empty where there are none."""
        return {name: bound.facts for name, bound in self.abstains.items()}

    def bounded_as(self, facts: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        """What it says, as JSON, with the bounds that a run notes (`facts`) in place of its own;
        words stay.
        """
        words = {str(name): bound.what for name, bound in self.abstains.items()}
        bounds = {name: {"what": words.get(name), **bound} for name, bound in facts.items()}
        return {**self.model_dump(mode="json"), "abstains": bounds}

    def doubts(self, facts: Facts) -> dict[int, str]:
        """Of images (`facts`: one value each, None = not known), by their place: why it lies
        outside; those inside are left out.
        """
        found: dict[int, str] = {}
        for name, bound in self.abstains.items():
            # None becomes NaN, which lies inside of everything
            values = np.array(facts.get(name, ()), np.float64)
            low, high = (
                -np.inf if bound.below is None else bound.below,
                np.inf if bound.above is None else bound.above,
            )
            for row in np.flatnonzero((values < low) | (values > high)).tolist():
                found.setdefault(row, bound.doubt(name, float(values[row])))
        return found


# what labels say where nobody knows the maker of a fake, or the source of a real image
_UNKNOWN = ("", "real", "unknown")


class TrainingData(Frozen):
    """What the weights were trained on, and under which licence that is published.

    `generators`: globs over the names that labels give to the generators of its fakes (case,
    spaces, dots, dashes and underscores make no difference). `sources`: such globs over the
    `source` that labels give images, of all that weights were fitted or chosen on. `complete`: no
    other generator was seen, and where sources are named no other source; without it, what is not
    named is unknown.
    """

    name: str
    images: str | None = None
    licence: str
    source: str | None = None
    generators: tuple[str, ...] = ()
    sources: tuple[str, ...] = Field(default=(), exclude_if=not_)
    complete: bool = False


class SeenNames(NamedTuple):
    """The fields of `TrainingData` that say which generators and sources weights have seen."""

    generators: tuple[str, ...]
    sources: tuple[str, ...]
    complete: bool

    @classmethod
    def of(cls, makers: Iterable[str], sources: Iterable[str]) -> Self:
        """From the generators of all fakes and the sources of all real images, as labels name them
        (`real:camera` or `camera`).
        """
        generators, all_made = _globs(makers)
        known, all_from = _globs(source.removeprefix("real:") for source in sources)
        return cls(generators, known, bool(generators) and all_made and (all_from or not known))

    def after(self, before: TrainingData) -> Self:
        """With all that the weights had seen of which these are a fine-tune. Sources that only one
        of the two names are not all.
        """
        complete = before.complete and self.complete and bool(before.sources) == bool(self.sources)
        generators, sources = (
            tuple(dict.fromkeys((*old, *new)))
            for old, new in ((before.generators, self.generators), (before.sources, self.sources))
        )
        return type(self)(generators, sources, complete)


def _globs(names: Iterable[str]) -> tuple[tuple[str, ...], bool]:
    """A glob for each different name, and whether none is unknown."""
    found = dict.fromkeys(names)
    return tuple(
        glob.escape(name) for name in found if name not in _UNKNOWN
    ), found.keys().isdisjoint(_UNKNOWN)


# what one core is reckoned with (`scoring.layout`): so seconds that were measured become
# multiply-adds
GMAC_PER_S = 100.0
ASSUMED_BYTES = 3 * 2**30  # of a child that nobody measured: Python, torch and a network


class CallableSettings(Frozen):
    """Where and how the process is started; nothing here decides a score.

    `python`: the interpreter that has the package; `folder`: where the process runs, and where a
    package with a cache beside its caller has it. `limit_s`: seconds that one batch may take before
    the process is ended, `start_limit_s` that loading may, downloads included. `peak_bytes` and
    `seconds`: the memory of a process and the time of a megapixel, as measured when the card was
    written.
    """

    python: str = Field(min_length=1)
    folder: str = Field(min_length=1)
    limit_s: float = Field(default=60.0, gt=0)
    start_limit_s: float = Field(default=900.0, gt=0)
    peak_bytes: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)

    @property
    def memory_bytes(self) -> int:
        """What one process is reckoned with."""
        return self.peak_bytes or ASSUMED_BYTES

    @property
    def gmac(self) -> float:
        """Billions of multiply-adds per megapixel that would take a core as long; a second where
        nobody measured.
        """
        return GMAC_PER_S * (self.seconds or 1.0)
