"""The images that a calibration speaks for: how their properties are spread, over reals and over fakes. Knows counts; reads no run."""

import hashlib
import json
from typing import Literal

from pydantic import Field, NonNegativeInt, model_validator

from ray_app.config import Frozen


class Part(Frozen):
    """One of the disjoint parts of the labelled images. `sha256`: of the sorted hashes of its files, one per line."""

    name: Literal["fit", "calibrate", "choose"]
    n_real: NonNegativeInt
    n_fake: NonNegativeInt
    groups: NonNegativeInt
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Feature(Frozen):
    """How one property is spread: how many reals and fakes each bin has.

    Of numbers, `edges` e₁ < … < eₖ₋₁ part k bins; an edge belongs to the bin below it. Of words, each has its bin, and all others the last.
    """

    name: str
    edges: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    real: tuple[NonNegativeInt, ...]
    fake: tuple[NonNegativeInt, ...]

    @model_validator(mode="after")
    def _fits(self) -> "Feature":
        bins = len(self.words or self.edges) + 1
        if len(self.real) != bins or len(self.fake) != bins:
            raise ValueError(f"{self.name}: {len(self.real)} and {len(self.fake)} counts for {bins} bins")
        if bool(self.words) and bool(self.edges):
            raise ValueError(f"{self.name}: either edges or words")
        return self


class Population(Frozen):
    """What a calibration was measured on. `prevalence`: the share of fakes at which its probabilities are chances.

    `features`: `score` (the ensemble's), `score:DETECTOR` (raw), `format`, `megapixels`, `short_side_px`, `jpeg_quality`.
    """

    what: str
    prevalence: float = Field(gt=0, lt=1)
    parts: tuple[Part, ...]
    generators: tuple[str, ...] = ()
    features: tuple[Feature, ...] = ()

    @property
    def sha256(self) -> str:
        """Of all that stands here."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
