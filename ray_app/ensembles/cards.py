"""The ensemble card: which detectors, how their scores combine, where verdicts begin. No torch, no Ray."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from ray_app.config import Frozen, find_config, load_yaml, named_configs
from ray_app.detectors.cards import Calibration, split_variant

Rule = Literal["mean-logit", "mean-probability", "soft-or", "max", "median", "log-sum-exp", "weighted", "stacked"]


class Member(Frozen):
    """One detector in an ensemble: a shipped name, or a card's path or URL, `:VARIANT` behind it; its weight under `weighted`."""

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


class Stacking(Frozen):
    """A logistic regression on calibrated member scores, fitted by `fit_stacking`; one number per member, in their order.

    Log-odds = Σ coefficient × (score − mean) / scale + intercept.
    """

    mean: tuple[float, ...]
    scale: tuple[PositiveFloat, ...]
    coefficients: tuple[float, ...]
    intercept: float


class EnsembleCard(Frozen):
    """Everything that turns detector scores into a verdict.

    In this order: the detectors' own calibrations, `rule`, `bias`, `calibration`, `thresholds`.
    """

    name: str
    title: str
    members: tuple[Member, ...] = Field(min_length=1)
    rule: Rule = "mean-logit"
    bias: float = Field(default=0.0, description="added after the rule; the intercept of `weighted`")
    stacking: Stacking | None = Field(default=None, description="the numbers of `stacked`")
    calibration: Calibration | None = Field(default=None, description="of the ensemble's score, after rule and bias; null = not calibrated")
    thresholds: Thresholds = Thresholds()
    notes: str = ""

    @model_validator(mode="after")
    def _distinct(self) -> "EnsembleCard":
        names = [member.detector for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError(f"a detector is named twice: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _rule_has_its_numbers(self) -> "EnsembleCard":
        if (self.rule == "stacked") != (self.stacking is not None):
            raise ValueError(f"`stacking` belongs to rule stacked, and that rule needs it (rule: {self.rule})")
        for key in ("mean", "scale", "coefficients") if self.stacking else ():
            if len(getattr(self.stacking, key)) != len(self.members):
                raise ValueError(f"stacking.{key} has {len(getattr(self.stacking, key))} numbers for {len(self.members)} members")
        if self.rule != "weighted" and any(member.weight != 1 for member in self.members):
            raise ValueError(f"weights other than 1 need rule weighted (rule: {self.rule})")
        return self

    @property
    def leaves_one_score_alone(self) -> bool:
        """Whether the ensemble has one member and its calibrated score is the ensemble's, so that its calibration is too."""
        return len(self.members) == 1 and self.members[0].weight == 1 and self.bias == 0 and self.stacking is None


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
        name="+".join(_short(name) for name in detectors),
        title="Detectors named on the command line",
        members=tuple(Member(detector=name) for name in detectors),
    )


def decision_facts(card: EnsembleCard) -> dict[str, Any]:
    """All that decides what becomes of detector scores, as plain JSON: part of a run's identity.

    What a card leaves out is left out here, so that a run keeps its identity when cards learn a new key.
    """
    facts: dict[str, Any] = {
        "rule": card.rule,
        "bias": card.bias,
        "weights": [member.weight for member in card.members],
        "thresholds": card.thresholds.model_dump(mode="json", include={"real_below", "fake_above"}),
    }
    return facts | card.model_dump(mode="json", include={"stacking", "calibration"}, exclude_none=True)


def _beside(card: Path, detector: str) -> str:
    """A detector path in a user's card is relative to that card."""
    path, variant = _split(card.parent / detector)
    return f"{path}{variant}" if path.is_file() else detector


def _short(detector: str) -> str:
    """A detector's name, or that of its card's file."""
    path, variant = _split(Path(detector))
    return (path.stem if path.suffix in (".yaml", ".yml") else path.name) + variant


def _split(path: Path) -> tuple[Path, str]:
    """A card's path without `:VARIANT`, and that (or nothing)."""
    base, variant = split_variant(path)
    return Path(base), "" if variant is None else f":{variant}"
