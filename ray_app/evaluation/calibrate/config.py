"""The settings of a calibration (`CalibrateConfig`)."""

from typing import Literal

from pydantic import Field, model_validator

from ray_app.config import Frozen
from ray_app.ensembles.card import Rule


class CalibrateConfig(Frozen):
    """`fpr`, `confidence`: what the threshold promises. `rule`: None = `stacked`, of an only
    detector `mean-logit`.

    `first`, `share`, `audit`: of a cascade, how many detectors score every image, which share of
    images may go on to all of them, and which is drawn to go on whatever it scores.
    `share_sources`: the promise is for archives of the labels' own sources in their shares. `miss`:
    the share of fakes that may lie at or below `real_below`. `prevalence`: the share of fakes at
    which the probabilities are chances; None = as among the labels.
    """

    run: str
    out: str
    labels: str | None = None
    key: Literal["image_id", "sha256", "uri"] | None = None
    split: str | None = None
    detectors: tuple[str, ...] = ()
    fpr: float = Field(default=0.01, gt=0, lt=0.5)
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    rule: Rule | None = None
    first: int | None = Field(default=None, ge=1)
    share: float = Field(default=0.2, gt=0, lt=1)
    audit: float = Field(default=0.01, ge=0, lt=1)
    miss: float = Field(default=0.05, ge=0, lt=1)
    prevalence: float | None = Field(default=None, gt=0, lt=1)
    share_generators: bool = False
    share_sources: bool = False
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _of_a_cascade(self) -> "CalibrateConfig":
        given = [
            name
            for name in ("first", "share", "audit")
            if name in self.model_fields_set and getattr(self, name) is not None
        ]
        if given and self.rule != "cascade":
            raise ValueError(
                f"--{given[0]} belongs to --rule cascade (rule: {self.rule or 'not given'})"
            )
        if self.rule == "cascade" and self.audit >= self.share:
            raise ValueError(
                f"--audit {self.audit:g} leaves nothing of --share {self.share:g} to the band"
            )
        return self
