"""The ensemble card: which detectors, how their scores combine, where verdicts begin
(`EnsembleCard`).

`load_ensemble_card` reads one, `ensemble_of` makes one of detectors, `decision_facts` is what a
run's identity keeps of it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from ray_app.config import Frozen, find_config, is_named, load_yaml, named_configs, read_mapping
from ray_app.detectors.card import Platt, split_variant
from ray_app.ensembles.population import Population
from ray_app.errors import ConfigError

SymmetricRule = Literal["mean-logit", "mean-probability", "soft-or", "max", "median", "log-sum-exp"]
Rule = SymmetricRule | Literal["weighted", "stacked", "gated-mean", "cascade"]


FEWEST_GATED = 3  # members of whom one can be far from the others


class EnsembleMember(Frozen):
    """One detector in an ensemble: a shipped name, or a card's path or URL, `:VARIANT` behind it;
    its weight under `weighted`.

    `calibration` holds instead of the detector card's own.
    """

    detector: str
    weight: float = 1.0
    calibration: Platt | None = None


class Thresholds(Frozen):
    """Ensemble scores (log-odds of fake) at which verdicts begin; in between lies the abstain band.

    The rates say what was measured when the thresholds were chosen; null means not measured.
    """

    real_below: float = 0.0
    fake_above: float = 0.0
    target_fpr: float | None = Field(
        default=None, gt=0, lt=1, description="false-positive rate that the thresholds are for"
    )
    false_positive_rate: float | None = Field(default=None, ge=0, le=1)
    upper_bound: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="of the false-positive rate, with the confidence of the guarantee, or 95 %",
    )
    true_positive_rate: float | None = Field(default=None, ge=0, le=1)
    n_real: int | None = Field(default=None, ge=1)
    n_fake: int | None = Field(default=None, ge=1)
    abstain_real: float | None = Field(
        default=None, ge=0, le=1, description="fraction of held-out reals between the thresholds"
    )
    abstain_fake: float | None = Field(
        default=None, ge=0, le=1, description="fraction of held-out fakes between the thresholds"
    )
    measured_on: str | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Thresholds":
        if self.real_below > self.fake_above:
            raise ValueError(
                f"real_below ({self.real_below}) must not exceed fake_above ({self.fake_above})"
            )
        return self


class Stacking(Frozen):
    """A logistic regression on calibrated member scores, fitted by `fit_stacking`; one number per
    member, in their order.

    Log-odds = Σ coefficient × (score − mean) / scale + intercept.
    """

    mean: tuple[float, ...]
    scale: tuple[PositiveFloat, ...]
    coefficients: tuple[float, ...]
    intercept: float


class OutlierGate(Frozen):
    """When `gated-mean` leaves a member out of the mean for an image: its log-odds lie too far from
    the median of all members'.

    By the modified z-score of Iglewicz and Hoaglin (1993): 0.6745 × distance from the median >
    `deviations` × the median of all distances, where that is at least `floor`, so that no member is
    left out where they nearly agree. At least half always stay.
    """

    deviations: float = Field(default=3.5, ge=1, description="Iglewicz and Hoaglin's own is 3.5")
    floor: float = Field(default=0.5, gt=0, description="in log-odds")


class CascadeStage(Frozen):
    """How one stage of a cascade makes a score of its members' calibrated ones: `rule`, then
    `calibration`.
    """

    rule: SymmetricRule | Literal["stacked"] = "mean-logit"
    stacking: Stacking | None = None
    calibration: Platt | None = None


class Cascade(Frozen):
    """Cheap members look at every image, and all of them at those that the cheap ones leave
    uncertain.

    `first`: how many of the ensemble's members, from the front, look at every image; `early` makes
    their score, `late` that of all. An image goes on where its early score lies in `band` (both
    ends included), or where it belongs to the `audit_share` of images that is drawn by their bytes,
    whatever they score: so what the second stage would have said of the rest stays measurable.
    """

    first: int = Field(ge=1)
    band: tuple[float, float]
    audit_share: float = Field(default=0.01, ge=0, le=1)
    expected_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="of images that go on, as was measured; for planning alone",
    )
    early: CascadeStage = CascadeStage()
    late: CascadeStage = CascadeStage()

    @model_validator(mode="after")
    def _ordered(self) -> "Cascade":
        if self.band[0] > self.band[1]:
            raise ValueError(f"band: {self.band[0]} exceeds {self.band[1]}")
        return self


class Guarantee(Frozen):
    """What is known of the false-positive rate above `fake_above`.

    With `confidence`, the rate among reals of the calibration's population is under `target_fpr`:
    of `n_real` of them, which nothing else was fitted on, `false_positives` reached the threshold.
    All labelled reals are of `groups` groups (sources, looks), worth `effective` independent ones;
    null in cards of 0.10 and before, which took all for independent. `upper_bound`: the higher one
    of both sets' exact binomial upper bounds (Clopper and Pearson 1934, one-sided).
    `these_sources`: it is promised for archives of the labels' own sources in their shares.
    """

    target_fpr: float = Field(gt=0, lt=1)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    n_real: int = Field(ge=1)
    false_positives: int = Field(ge=0)
    upper_bound: float = Field(ge=0, le=1)
    groups: int | None = Field(default=None, ge=1)
    effective: float | None = Field(default=None, gt=0)
    these_sources: bool = False

    @model_validator(mode="before")
    @classmethod
    def _drop_references(cls, keys: Any) -> Any:
        """Drop keys that cards of 0.25 and before have, of a file that nothing reads any more."""
        if not isinstance(keys, Mapping):
            return keys
        return {
            key: value
            for key, value in keys.items()
            if key not in ("references", "references_sha256")
        }


class OperatingPoint(Frozen):
    """A threshold for one false-positive rate, and the rates measured on held-out images."""

    rate: float = Field(gt=0, lt=1, description="false-positive rate that the threshold is for")
    threshold: float = Field(description="in log-odds; an image is fake at it and above")
    false_positive_rate: float = Field(ge=0, le=1, description="of held-out reals")
    upper_bound: float = Field(
        ge=0,
        le=1,
        description="exact upper bound of the false-positive rate, with the confidence of the guarantee",
    )
    recall: float | None = Field(
        default=None, ge=0, le=1, description="of held-out fakes; null without fakes"
    )
    abstain_real: float | None = Field(
        default=None, ge=0, le=1, description="fraction of held-out reals between the thresholds"
    )
    abstain_fake: float | None = Field(
        default=None, ge=0, le=1, description="fraction of held-out fakes between the thresholds"
    )

    @property
    def is_guaranteed(self) -> bool:
        """Whether the false-positive rate is at most `rate` with confidence; otherwise it is only
        measured.
        """
        return self.upper_bound <= self.rate


class CalibrationSettings(Frozen):
    """Under what the calibrated scores were made: another precision or resize mode gives other
    scores, another decoder other pixels.
    """

    precision: Mapping[str, Literal["bf16", "fp32"]]
    resize: Literal["exact", "fast"] = "exact"
    decoders: tuple[str, ...] = ()


class EnsembleProfile(Frozen):
    """What is predicted of an image beside its verdict: by which head which generator made it, and
    by what model from which words.

    `identifier` and `describer` are cards, by name or path. The identifier names every image that
    has an embedding. `describe`: the describer, which is dear, says something of what is `flagged`
    (its verdict is `fake`), or of `all`.
    """

    identifier: str | None = None
    describer: str | None = None
    describe: Literal["flagged", "all"] = "flagged"

    @model_validator(mode="after")
    def _something(self) -> "EnsembleProfile":
        if self.identifier is None and self.describer is None:
            raise ValueError("name an identifier, a describer, or both")
        return self


class EnsembleCard(Frozen):
    """Everything that turns detector scores into a verdict.

    In this order: the members' calibrations, `rule`, `bias`, `calibration`, `thresholds`.
    `guarantee`, `operating_points`, `settings` and `population` are what `touchstone detectors
    calibrate` knows: what the thresholds promise, and of which scores and which images.
    """

    name: str
    title: str
    members: tuple[EnsembleMember, ...] = Field(min_length=1)
    rule: Rule = "mean-logit"
    bias: float = Field(
        default=0.0, description="added after the rule; the intercept of `weighted`"
    )
    stacking: Stacking | None = Field(default=None, description="the numbers of `stacked`")
    gate: OutlierGate | None = Field(
        default=None, description="the numbers of `gated-mean`; null = the usual ones"
    )
    calibration: Platt | None = Field(
        default=None,
        description="of the ensemble's score, after rule and bias; null = not calibrated",
    )
    thresholds: Thresholds = Thresholds()
    cascade: Cascade | None = Field(default=None, description="the stages of `cascade`")
    guarantee: Guarantee | None = None
    operating_points: tuple[OperatingPoint, ...] = Field(
        default=(),
        description="further thresholds; `thresholds` decides",
        exclude_if=lambda points: not points,
    )
    settings: CalibrationSettings | None = None
    population: Population | None = None
    profile: EnsembleProfile | None = None
    notes: str = ""

    @model_validator(mode="after")
    def _cascade_has_its_stages(self) -> "EnsembleCard":
        if (self.rule == "cascade") != (self.cascade is not None):
            raise ValueError(
                f"`cascade` belongs to rule cascade, and that rule needs it (rule: {self.rule})"
            )
        if self.cascade is None:
            return self
        if self.cascade.first >= len(self.members):
            raise ValueError(
                f"cascade.first is {self.cascade.first} of {len(self.members)} detectors: none is left for the second look"
            )
        for name, stage, count in (
            ("early", self.cascade.early, self.cascade.first),
            ("late", self.cascade.late, len(self.members)),
        ):
            _check_stacking(f"cascade.{name}", stage.rule, stage.stacking, count)
        return self

    @model_validator(mode="after")
    def _distinct(self) -> "EnsembleCard":
        names = [member.detector for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError(f"a detector is named twice: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _rule_has_its_numbers(self) -> "EnsembleCard":
        _check_stacking("", self.rule, self.stacking, len(self.members))
        if self.gate is not None and self.rule != "gated-mean":
            raise ValueError(f"`gate` belongs to rule gated-mean (rule: {self.rule})")
        if self.rule == "gated-mean" and len(self.members) < FEWEST_GATED:
            raise ValueError(
                f"gated-mean needs {FEWEST_GATED} detectors: of two, neither is far from the other's median"
            )
        if self.rule != "weighted" and any(member.weight != 1 for member in self.members):
            raise ValueError(f"weights other than 1 need rule weighted (rule: {self.rule})")
        return self

    @property
    def leaves_one_score_alone(self) -> bool:
        """Whether the ensemble has one member and its calibrated score is the ensemble's, so that
        its calibration is too.
        """
        return (
            len(self.members) == 1
            and self.members[0].weight == 1
            and self.bias == 0
            and self.stacking is None
        )

    @property
    def first(self) -> int:
        """How many members, from the front, look at every image."""
        return self.cascade.first if self.cascade else len(self.members)


def load_ensemble_card(name_or_path: str | Path) -> EnsembleCard:
    """Read a shipped ensemble by name, or any by path. Raises ConfigError."""
    path = find_config("ensembles", name_or_path)
    card = load_yaml(path, EnsembleCard)
    shipped = named_configs("ensembles").values()
    if path in shipped:
        return card
    members = tuple(
        member.model_copy(update={"detector": _beside(path, member.detector)})
        for member in card.members
    )
    profile = card.profile and card.profile.model_copy(
        update={
            kind: _beside(path, name)
            for kind in ("identifier", "describer")
            if (name := getattr(card.profile, kind)) is not None
        }
    )
    return card.model_copy(update={"members": members, "profile": profile})


def find_ensemble(name_or_path: str) -> EnsembleCard | None:
    """Return the ensemble with this name or path. None for a detector.

    A name is never that of a file in the current folder.
    """
    if is_named("ensembles", name_or_path):
        return load_ensemble_card(name_or_path)
    path = Path(name_or_path)
    if is_named("detectors", split_variant(name_or_path)[0]) or not path.is_file():
        return None
    return load_ensemble_card(path) if "members" in read_mapping(path) else None


def ensemble_of(detectors: list[str]) -> EnsembleCard:
    """The ensemble that `--detector A --detector B` means: the mean of their scores, split at zero."""
    titles = [_title(name) for name in detectors]
    return EnsembleCard(
        name="+".join(_short(name) for name in detectors),
        title=titles[0] if len(titles) == 1 else f"The mean of {', '.join(titles)}",
        members=tuple(EnsembleMember(detector=name) for name in detectors),
    )


def choose_operating_point(card: EnsembleCard, rate: float) -> EnsembleCard:
    """Return the card with the thresholds for a false-positive rate.

    The guarantee becomes that of the operating point. If its upper bound exceeds the rate, reports
    call the rate measured.

    Args:
        card: A card that `touchstone detectors calibrate` wrote.
        rate: The false-positive rate, one of `list_rates`.

    Raises:
        ConfigError: The card has no thresholds for this rate.
    """
    check_rate(rate)
    if card.thresholds.target_fpr is not None and math.isclose(card.thresholds.target_fpr, rate):
        return card
    if card.cascade is not None:
        raise ConfigError(
            f"{card.name}: the threshold of a cascade belongs to its band",
            hint=f"calibrate the cascade with --fpr {rate:g}",
        )
    points = card.operating_points
    point = next((point for point in points if math.isclose(point.rate, rate)), None)
    if point is None:
        rates = ", ".join(f"{rate:g}" for rate in list_rates(card))
        raise ConfigError(
            f"{card.name} has no operating point for a false-positive rate of {rate:g}",
            hint=f"choose one of {rates}"
            if rates
            else "make a card with operating points: touchstone detectors calibrate RUN --labels FILE --out CARD.yaml",
        )
    thresholds = card.thresholds.model_copy(
        update={
            "real_below": min(card.thresholds.real_below, point.threshold),
            "fake_above": point.threshold,
            "target_fpr": point.rate,
            "false_positive_rate": point.false_positive_rate,
            "upper_bound": point.upper_bound,
            "true_positive_rate": point.recall,
            "abstain_real": point.abstain_real,
            "abstain_fake": point.abstain_fake,
        }
    )
    guarantee = card.guarantee and card.guarantee.model_copy(
        update={
            "target_fpr": point.rate,
            "false_positives": round(point.false_positive_rate * card.guarantee.n_real),
            "upper_bound": point.upper_bound,
        }
    )
    return card.model_copy(update={"thresholds": thresholds, "guarantee": guarantee})


def check_rate(rate: float) -> None:
    """Raise ConfigError unless a false-positive rate is a fraction, such as 0.05 for 5 %."""
    if not 0 < rate < 1:
        percent = rate if 1 <= rate < 100 else 5
        raise ConfigError(
            f"fpr must be a fraction between 0 and 1, got {rate:g}",
            hint=f"write {percent / 100:g} for {percent:g} %",
        )


def list_rates(card: EnsembleCard) -> list[float]:
    """Return the false-positive rates that `choose_operating_point` accepts, in order."""
    # The threshold of a cascade belongs to its band.
    rates = [] if card.cascade else [point.rate for point in card.operating_points]
    target = card.thresholds.target_fpr
    if target is not None and not any(math.isclose(target, rate) for rate in rates):
        rates.append(target)
    return sorted(rates)


def decision_facts(card: EnsembleCard) -> dict[str, Any]:
    """All that decides what becomes of detector scores, as plain JSON: part of a run's identity.

    What a card leaves out is left out here, so that a run keeps its identity when cards learn a new
    key.
    """
    facts: dict[str, Any] = {
        "rule": card.rule,
        "bias": card.bias,
        "weights": [member.weight for member in card.members],
        "thresholds": card.thresholds.model_dump(mode="json", include={"real_below", "fake_above"}),
    }
    if card.thresholds.target_fpr is not None:
        facts["fpr"] = card.thresholds.target_fpr
    if card.rule == "gated-mean":
        facts["gate"] = (card.gate or OutlierGate()).model_dump(mode="json")
    facts |= card.model_dump(
        mode="json", include={"stacking", "calibration", "cascade", "settings"}, exclude_none=True
    )
    if "cascade" in facts:
        facts["cascade"].pop("expected_share", None)  # it plans, and decides nothing
    if any(member.calibration for member in card.members):
        facts["calibrations"] = [
            member.calibration and member.calibration.model_dump(mode="json")
            for member in card.members
        ]
    if card.population is not None:
        facts["population"] = card.population.sha256
    return facts


def _check_stacking(where: str, rule: str, stacking: Stacking | None, members: int) -> None:
    prefix = f"{where}: " if where else ""
    if (rule == "stacked") != (stacking is not None):
        raise ValueError(
            f"{prefix}`stacking` belongs to rule stacked, and that rule needs it (rule: {rule})"
        )
    for key in ("mean", "scale", "coefficients") if stacking else ():
        if len(getattr(stacking, key)) != members:
            raise ValueError(
                f"{prefix}stacking.{key} has {len(getattr(stacking, key))} numbers for {members} members"
            )


def _beside(card: Path, detector: str) -> str:
    """A detector path in a user's card is relative to that card."""
    path, variant = _split(card.parent / detector)
    return f"{path}{variant}" if path.is_file() else detector


def _short(detector: str) -> str:
    """A detector's name, or that of its card's file."""
    path, variant = _split(Path(detector))
    return (path.stem if path.suffix in (".yaml", ".yml") else path.name) + variant


def _title(detector: str) -> str:
    """The same for people: of a card.yaml, as trainings and fits write it, its folder's name."""
    path, variant = _split(Path(detector))
    return path.resolve().parent.name + variant if path.name == "card.yaml" else _short(detector)


def _split(path: Path) -> tuple[Path, str]:
    """A card's path without `:VARIANT`, and that (or nothing)."""
    base, variant = split_variant(path)
    return Path(base), "" if variant is None else f":{variant}"
