"""What a detector's card knows of its own limits (`Fragility`): figures under perturbations, and facts of images on which it abstains."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from ray_app.config import Frozen

FactName = Literal["jpeg_quality", "texture", "graphics"]
FACTS: Mapping[FactName, tuple[str, str]] = {
    "jpeg_quality": ("quality", "JPEG quality"),
    "texture": ("texture", "texture"),
    "graphics": ("graphics", "share of graphics"),
}
"""Facts of an image that a card may bound: the field that has it in `ImageFileFacts` and the column of a row, and its name in words."""
MEASURED: tuple[FactName, ...] = ("texture", "graphics")
"""Those among them that are measured on pixels (see `ray_app.images.texture`), and only where a card asks."""
Facts = Mapping[FactName, Sequence[float | None]]


class FactBound(Frozen):
    """Where a verdict means nothing: below one value of a fact, above another. `what`: what such images are, in words."""

    below: float | None = None
    above: float | None = None
    what: str | None = None

    @model_validator(mode="after")
    def _some_bound(self) -> "FactBound":
        if self.below is None and self.above is None:
            raise ValueError("give below or above")
        if self.below is not None and self.above is not None and self.below > self.above:
            raise ValueError(f"below ({self.below:g}) must not exceed above ({self.above:g}): no image would be judged")
        return self

    @property
    def facts(self) -> dict[str, float]:
        """The bounds that there are."""
        return {name: bound for name, bound in (("below", self.below), ("above", self.above)) if bound is not None}

    def doubt(self, name: FactName, value: float) -> str:
        """Why an image of this value lies outside, in words."""
        is_low = self.below is not None and value < self.below
        bound = self.below if is_low else self.above
        where = f"{'below' if is_low else 'above'} the valid range ({bound:g})"
        return f"{FACTS[name][1]} {value:.3g}, {where}" + (f": {self.what}" if self.what else "")


class FragilityFigure(Frozen):
    """What one perturbation leaves of a detector; written by `touchstone evaluate SOURCE --perturb … --fragility FILE`.

    `perturbation`: its name, and `steps`: what it does, with strengths; null for images as they are. `fpr`, `tpr`: at `threshold`, in
    log-odds.
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
    """Under what a detector breaks: `measured` figures, and `abstains`, bounds on facts of an image beyond which the verdict is abstain.

    Scores stay. A fact that is not known of an image, such as the JPEG quality of a PNG, lies inside.
    """

    measured: tuple[FragilityFigure, ...] = ()
    abstains: Mapping[FactName, FactBound] = {}

    @property
    def facts(self) -> dict[str, Any]:
        """The bounds as plain JSON, part of a run's identity; empty where there are none."""
        return {name: bound.facts for name, bound in self.abstains.items()}

    def bounded_as(self, facts: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        """What it says, as JSON, with the bounds that a run notes (`facts`) in place of its own; words stay."""
        words = {str(name): bound.what for name, bound in self.abstains.items()}
        bounds = {name: {"what": words.get(name), **bound} for name, bound in facts.items()}
        return {**self.model_dump(mode="json"), "abstains": bounds}

    def doubts(self, facts: Facts) -> dict[int, str]:
        """Of images (`facts`: one value each, None = not known), by their place: why it lies outside; those inside are left out."""
        found: dict[int, str] = {}
        for name, bound in self.abstains.items():
            values = np.array(facts.get(name, ()), np.float64)  # None becomes NaN, which lies inside of everything
            low, high = -np.inf if bound.below is None else bound.below, np.inf if bound.above is None else bound.above
            for row in np.flatnonzero((values < low) | (values > high)).tolist():
                found.setdefault(row, bound.doubt(name, float(values[row])))
        return found
