"""The ensemble card: which detectors, how their scores combine, where verdicts begin. No torch, no Ray."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ray_app.config import Frozen, find_config, load_yaml, named_configs

Rule = Literal["mean-logit", "weighted"]


class Member(Frozen):
    """One detector in an ensemble: a shipped name or a path to a card, and its weight under `weighted`."""

    detector: str
    weight: float = 1.0


class Thresholds(Frozen):
    """Ensemble scores (log-odds of fake) at which verdicts begin; in between lies the abstain band.

    The rates say what was measured when the thresholds were chosen; null means that nobody measured.
    """

    real_below: float = 0.0
    fake_above: float = 0.0
    false_positive_rate: float | None = Field(default=None, ge=0, le=1)
    true_positive_rate: float | None = Field(default=None, ge=0, le=1)
    n_real: int | None = Field(default=None, ge=1)
    n_fake: int | None = Field(default=None, ge=1)
    measured_on: str | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Thresholds":
        if self.real_below > self.fake_above:
            raise ValueError(f"real_below ({self.real_below}) must not exceed fake_above ({self.fake_above})")
        return self


class EnsembleCard(Frozen):
    """Everything that turns detector scores into a verdict."""

    name: str
    title: str
    members: tuple[Member, ...] = Field(min_length=1)
    rule: Rule = "mean-logit"
    bias: float = Field(default=0.0, description="added after the rule; the intercept of `weighted`")
    thresholds: Thresholds = Thresholds()
    notes: str = ""

    @model_validator(mode="after")
    def _distinct(self) -> "EnsembleCard":
        names = [member.detector for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError(f"a detector is named twice: {', '.join(names)}")
        return self


def load_ensemble_card(name_or_path: str | Path) -> EnsembleCard:
    """Read a shipped ensemble by name, or any by path. Raises ConfigError."""
    path = find_config("ensembles", name_or_path)
    card = load_yaml(path, EnsembleCard)
    shipped = named_configs("ensembles").values()
    if path in shipped:
        return card
    members = tuple(member.model_copy(update={"detector": _beside(path, member.detector)}) for member in card.members)
    return card.model_copy(update={"members": members})


def ensemble_of(detectors: list[str]) -> EnsembleCard:
    """The ensemble that `--detector A --detector B` means: the mean of their scores, split at zero."""
    return EnsembleCard(
        name="+".join(Path(name).stem for name in detectors),
        title="Detectors named on the command line",
        members=tuple(Member(detector=name) for name in detectors),
    )


def _beside(card: Path, detector: str) -> str:
    """A detector path in a user's card is relative to that card."""
    candidate = card.parent / detector
    return str(candidate) if candidate.is_file() else detector
