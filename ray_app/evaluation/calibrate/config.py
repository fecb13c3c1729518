"""Define the settings of a calibration (`CalibrateConfig`)."""

from typing import Literal

from pydantic import Field, model_validator

from ray_app.config import Frozen
from ray_app.ensembles.card import Rule

MAX_FPR = 0.5
"""The requested false-positive rate must be below this value."""
_WITH_REALS = frozenset(("reals", "ensemble", "detectors", "fpr", "confidence", "out"))


class CalibrateConfig(Frozen):
    """Settings of `touchstone detectors calibrate`.

    The command fits an ensemble on a labelled run, with a threshold that bounds false positives. With
    `reals` instead of `run`, it scores real images, and only chooses thresholds.
    """

    run: str | None = Field(
        default=None, description="the run with the scores of the labelled images"
    )
    reals: str | None = Field(
        default=None,
        description="instead of a labelled run: a folder of real images, with a subfolder for each source. They are scored, and choose only "
        "the thresholds",
    )
    ensemble: str | None = Field(
        default=None,
        description="with --reals: the ensemble that gets the thresholds, if no --detector is given; null = default",
    )
    out: str = Field(
        description="path of the card; the labels of the held-out part are written next to it"
    )
    labels: str | None = Field(
        default=None,
        description="CSV, JSONL, Parquet, or an index with labels; null = the run's own columns",
    )
    key: Literal["image_id", "sha256", "uri"] | None = Field(
        default=None,
        description="the column that joins labels to rows; null = the first of image_id, sha256, and uri that the labels have",
    )
    split: str | None = Field(default=None, description="use only labels of this split")
    detectors: tuple[str, ...] = Field(
        default=(),
        description="use only these detectors of the run, in this order; empty = all. With --reals: score with these detectors",
    )
    fpr: float = Field(
        default=0.01, gt=0, lt=MAX_FPR, description="fraction of reals that may be called fake"
    )
    confidence: float = Field(
        default=0.95,
        ge=0.5,
        lt=1,
        description="confidence of the bound on the fraction of reals that are called fake",
    )
    rule: Rule | None = Field(
        default=None,
        description="how detectors combine; null = stacked, and mean-logit for one detector",
    )
    first: int | None = Field(
        default=None,
        ge=1,
        description="cascade: how many detectors score every image; null = 1",
    )
    share: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="cascade: maximum fraction of images that all detectors score",
    )
    audit: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="cascade: fraction of images that all detectors score because they are drawn at random; part of --share",
    )
    miss: float = Field(
        default=0.05, ge=0, lt=1, description="fraction of fakes that may be called real"
    )
    prevalence: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="fraction of fakes for which the probabilities hold; null = as among the labels",
    )
    share_generators: bool = Field(
        default=False,
        description="let the three parts of the labelled images share generators; required if there are fewer than three generators",
    )
    share_sources: bool = Field(
        default=False,
        description="let the three parts of the labelled images share sources; the bound then holds only for archives of these sources",
    )
    seed: int = Field(
        default=0, ge=0, description="seed by which the labelled images are divided into parts"
    )

    @model_validator(mode="after")
    def _check_images(self) -> "CalibrateConfig":
        if (self.run is None) == (self.reals is None):
            raise ValueError("give either a RUN with labels or --reals FOLDER")
        if self.reals is None:
            if self.ensemble is not None:
                raise ValueError("--ensemble requires --reals; a run has its own ensemble")
            return self
        if other := sorted(self.model_fields_set - _WITH_REALS):
            raise ValueError(
                f"--{other[0].replace('_', '-')} requires labelled fakes, so it does not go with --reals"
            )
        if self.ensemble is not None and self.detectors:
            raise ValueError("give either --ensemble or --detector")
        return self

    @model_validator(mode="after")
    def _check_cascade_options(self) -> "CalibrateConfig":
        cascade_options = [
            name
            for name in ("first", "share", "audit")
            if name in self.model_fields_set and getattr(self, name) is not None
        ]
        if cascade_options and self.rule != "cascade":
            raise ValueError(
                f"--{cascade_options[0]} requires --rule cascade, got {self.rule or 'no rule'}"
            )
        if self.rule == "cascade" and self.audit >= self.share:
            raise ValueError(
                f"--audit must be less than --share {self.share:g}, got {self.audit:g}"
            )
        return self
