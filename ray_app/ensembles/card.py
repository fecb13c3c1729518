"""Define the ensemble card: which detectors, how their scores combine, and the thresholds.

`load_ensemble_card` reads an `EnsembleCard` from YAML, and `build_ensemble` builds a card from
detector names. `get_decision_settings` returns the part of a card that is recorded with a scoring
run, so that a run can only be resumed with equal settings.
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

# With two members, both are equally far from their median.
MIN_GATED_MEMBERS = 3


class EnsembleMember(Frozen):
    """One detector in an ensemble, with its weight and an optional calibration."""

    detector: str = Field(
        description="a shipped detector, or the path or URL of a detector card. `:VARIANT` after it selects "
        "a variant"
    )
    weight: float = Field(
        default=1.0,
        description="weight of the member's log-odds. Only rule `weighted` allows a value other than 1",
    )
    calibration: Platt | None = Field(
        default=None,
        description="calibration that replaces the one on the detector card. null keeps that one",
    )


class Thresholds(Frozen):
    """The two ensemble scores that separate the verdicts real, abstain, and fake.

    A score is the log-odds of fake. The verdict is real at `real_below` and below, fake at
    `fake_above` and above, and abstain in between. The other fields are error rates that were
    measured when the thresholds were chosen. None means that a rate was not measured.
    """

    real_below: float = Field(
        default=0.0, description="highest score with the verdict real, in log-odds"
    )
    fake_above: float = Field(
        default=0.0, description="lowest score with the verdict fake, in log-odds"
    )
    target_fpr: float | None = Field(
        default=None, gt=0, lt=1, description="false-positive rate that the thresholds are for"
    )
    false_positive_rate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="fraction of held-out real images with the verdict fake",
    )
    upper_bound: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="upper bound of the false-positive rate, with the confidence of the guarantee, or 95 % "
        "without a guarantee",
    )
    true_positive_rate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="fraction of held-out fake images with the verdict fake",
    )
    n_real: int | None = Field(
        default=None, ge=1, description="number of real images that the rates were measured on"
    )
    n_fake: int | None = Field(
        default=None, ge=1, description="number of fake images that the rates were measured on"
    )
    abstain_real: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="fraction of held-out real images between the thresholds",
    )
    abstain_fake: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="fraction of held-out fake images between the thresholds",
    )
    measured_on: str | None = Field(
        default=None, description="name of the data that the rates were measured on"
    )

    @model_validator(mode="after")
    def _check_order(self) -> "Thresholds":
        if self.real_below > self.fake_above:
            raise ValueError(
                f"real_below ({self.real_below}) must not exceed fake_above ({self.fake_above})"
            )
        return self


class Stacking(Frozen):
    """Parameters of the rule `stacked`, which combines detector scores by a logistic regression.

    The combined log-odds are Σ coefficient × (score − mean) / scale + intercept, summed over the
    ensemble's detectors. Each list has one number per detector, in the order of the ensemble's
    members. `fit_stacking` fits the parameters to labelled images.
    """

    mean: tuple[float, ...] = Field(description="mean of each member's scores")
    scale: tuple[PositiveFloat, ...] = Field(
        description="standard deviation of each member's scores"
    )
    coefficients: tuple[float, ...] = Field(description="coefficient of each standardised score")
    intercept: float = Field(description="constant term, in log-odds")


class OutlierGate(Frozen):
    """Limits of the rule `gated-mean`, which averages the detectors' scores without outliers.

    For each image, a detector is left out if its score is far from the median of all detectors. The
    measure is the modified z-score (Iglewicz and Hoaglin 1993), which must not exceed `deviations`.
    It is 0.6745 × the distance of the score from the median, divided by the median of these
    distances.

    If the detectors nearly agree, none is left out, because the divisor is at least `floor`. At
    least half of the detectors always stay.
    """

    deviations: float = Field(
        default=3.5,
        ge=1,
        description="maximum modified z-score. Iglewicz and Hoaglin recommend 3.5",
    )
    floor: float = Field(
        default=0.5, gt=0, description="minimum of the median distance, in log-odds"
    )


class CascadeStage(Frozen):
    """How one of the two stages of a cascade combines the scores of its detectors into one score.

    A cascade runs costly detectors only on images that cheap detectors leave uncertain. `rule`
    combines the calibrated scores, then `calibration` is applied to the result.
    """

    rule: SymmetricRule | Literal["stacked"] = Field(
        default="mean-logit", description="combination rule of the stage"
    )
    stacking: Stacking | None = Field(default=None, description="parameters of rule `stacked`")
    calibration: Platt | None = Field(
        default=None,
        description="calibration of the combined score. null leaves the score unchanged",
    )


class Cascade(Frozen):
    """Settings of the rule `cascade`, which runs costly detectors only on uncertain images.

    The first detectors of the ensemble score every image. If the first-stage score of an image is
    in `band`, the image enters the second stage, in which all detectors score it.

    A random sample of all images, the audit, also enters the second stage. The audit does not
    depend on scores, so it shows how the second stage would have scored the images outside `band`.
    """

    first: int = Field(
        ge=1, description="number of members, from the front of the list, that score every image"
    )
    band: tuple[float, float] = Field(
        description="lower and upper end of the first-stage scores that need the second stage, in log-odds. "
        "Both ends belong to the band"
    )
    audit_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="fraction of all images that enter the second stage whatever their score is",
    )
    expected_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="measured fraction of images that enter the second stage. Used only for planning",
    )
    early: CascadeStage = Field(
        default=CascadeStage(),
        description="how the first members' scores become the first-stage score",
    )
    late: CascadeStage = Field(
        default=CascadeStage(),
        description="how the scores of all members become the second-stage score",
    )

    @model_validator(mode="after")
    def _check_order(self) -> "Cascade":
        if self.band[0] > self.band[1]:
            raise ValueError(
                f"the lower end of band must not exceed its upper end, got {self.band[0]} and {self.band[1]}"
            )
        return self


class Guarantee(Frozen):
    """Evidence that an ensemble gives few real images the verdict fake.

    The guarantee states: with probability `confidence`, at most the fraction `target_fpr` of real
    images gets the verdict fake, if the images are like those of the calibration. Reports state it
    only if `upper_bound`, the upper confidence bound of the false-positive rate, is at most
    `target_fpr`. Otherwise they state that the false-positive rate is measured, not guaranteed.

    The evidence is a set of `n_real` held-out real images on which nothing else was fitted.
    `false_positives` of these images reached the threshold `fake_above`.
    """

    target_fpr: float = Field(
        gt=0, lt=1, description="false-positive rate that the guarantee is for"
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="confidence of the guarantee")
    n_real: int = Field(
        ge=1,
        description="number of held-out real images, on which nothing but the threshold was chosen",
    )
    false_positives: int = Field(
        ge=0, description="number of these real images that reached the threshold"
    )
    upper_bound: float = Field(
        ge=0,
        le=1,
        description="upper bound of the false-positive rate. The higher of two exact one-sided binomial "
        "bounds (Clopper and Pearson 1934), of the held-out reals and of all labelled reals",
    )
    groups: int | None = Field(
        default=None,
        ge=1,
        description="number of groups of the labelled real images. A group has images of the same source "
        "or with a similar look. null in cards of 0.10 and before, which treated all images as "
        "independent",
    )
    effective: float | None = Field(
        default=None,
        gt=0,
        description="number of independent images that are as informative as the groups. null in cards of "
        "0.10 and before",
    )
    these_sources: bool = Field(
        default=False,
        description="whether the guarantee holds only for archives with the same sources as the labelled "
        "images, in the same proportions",
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_references(cls, keys: Any) -> Any:
        """Drop the keys of cards of 0.25 and before that name a file which is no longer used."""
        if not isinstance(keys, Mapping):
            return keys
        return {
            key: value
            for key, value in keys.items()
            if key not in ("references", "references_sha256")
        }


class OperatingPoint(Frozen):
    """A threshold for one false-positive rate, with the error rates measured on held-out images.

    A calibrated card has several of them. `choose_operating_point` selects one.
    """

    rate: float = Field(gt=0, lt=1, description="false-positive rate that the threshold is for")
    threshold: float = Field(description="lowest score with the verdict fake, in log-odds")
    false_positive_rate: float = Field(
        ge=0, le=1, description="fraction of held-out reals with the verdict fake"
    )
    upper_bound: float = Field(
        ge=0,
        le=1,
        description="exact upper bound of the false-positive rate, with the confidence of the guarantee",
    )
    recall: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="fraction of held-out fakes with the verdict fake. null without fakes",
    )
    abstain_real: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="fraction of held-out real images between the thresholds",
    )
    abstain_fake: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="fraction of held-out fake images between the thresholds",
    )

    @property
    def is_guaranteed(self) -> bool:
        """Whether the false-positive rate `rate` is guaranteed, and not only measured.

        This is the case if `upper_bound`, the upper confidence bound of the false-positive rate, is
        at most `rate`.
        """
        return self.upper_bound <= self.rate


class CalibrationSettings(Frozen):
    """Settings with which detectors computed the scores that an ensemble was calibrated on.

    A calibration is valid only for these settings: another precision or resize mode gives other
    scores, and another decoder gives other pixels.
    """

    precision: Mapping[str, Literal["bf16", "fp32"]] = Field(
        description="numeric precision of each detector, by name"
    )
    resize: Literal["auto", "exact", "fast"] = Field(
        default="exact",
        description="resize mode of the detectors; auto = fast for detectors in bf16",
    )
    decoders: tuple[str, ...] = Field(
        default=(), description="names and versions of the image decoders"
    )


class EnsembleProfile(Frozen):
    """Models that predict the generator and the prompt of an image, in addition to its verdict.

    The identifier predicts which generator made an image. The describer predicts the prompt. At
    least one of the two is set.
    """

    identifier: str | None = Field(
        default=None,
        description="identifier card, by name or path. The identifier predicts the generator of every image "
        "that has an embedding",
    )
    describer: str | None = Field(
        default=None,
        description="describer card, by name or path. The describer predicts the prompt of an image, which "
        "is slow",
    )
    describe: Literal["flagged", "all"] = Field(
        default="flagged",
        description="images that the describer processes: `flagged` (verdict fake) or `all`",
    )

    @model_validator(mode="after")
    def _check_any(self) -> "EnsembleProfile":
        if self.identifier is None and self.describer is None:
            raise ValueError("the section is empty: set `identifier`, `describer`, or both")
        return self


class EnsembleCard(Frozen):
    """Everything that turns detector scores into a verdict.

    The fields apply in this order: the members' calibrations, `rule` (which combines the members'
    scores), `bias`, `calibration`, `thresholds`. `touchstone detectors calibrate` writes
    `guarantee`, `operating_points`, `settings`, and `population`. These fields state which error
    rate the thresholds guarantee, and for which scores and images.
    """

    name: str = Field(description="name in commands and results")
    title: str = Field(description="name for people")
    members: tuple[EnsembleMember, ...] = Field(
        min_length=1, description="detectors of the ensemble"
    )
    rule: Rule = Field(
        default="mean-logit", description="rule that combines the members' calibrated log-odds"
    )
    bias: float = Field(
        default=0.0, description="log-odds added after the rule. The intercept of rule `weighted`"
    )
    stacking: Stacking | None = Field(default=None, description="parameters of rule `stacked`")
    gate: OutlierGate | None = Field(
        default=None, description="limits of rule `gated-mean`. null uses the defaults"
    )
    calibration: Platt | None = Field(
        default=None,
        description="calibration of the ensemble's score, after rule and bias. null means not calibrated",
    )
    thresholds: Thresholds = Field(
        default=Thresholds(), description="scores that separate the verdicts"
    )
    cascade: Cascade | None = Field(default=None, description="stages of rule `cascade`")
    guarantee: Guarantee | None = Field(
        default=None,
        description="upper limit of the false-positive rate, with its evidence. null if the ensemble was not "
        "calibrated",
    )
    operating_points: tuple[OperatingPoint, ...] = Field(
        default=(),
        description="further thresholds that `--fpr` can select. Without it, only `thresholds` decides",
        exclude_if=lambda points: not points,
    )
    settings: CalibrationSettings | None = Field(
        default=None, description="settings under which the calibrated scores were computed"
    )
    population: Population | None = Field(
        default=None, description="population of images that the calibration was measured on"
    )
    profile: EnsembleProfile | None = Field(
        default=None, description="predictions in addition to the verdict. null for none"
    )
    notes: str = Field(default="", description="notes for readers")

    @model_validator(mode="after")
    def _check_cascade(self) -> "EnsembleCard":
        if (self.rule == "cascade") != (self.cascade is not None):
            raise ValueError(
                f"`cascade` requires rule cascade, got rule {self.rule}"
                if self.cascade is not None
                else "rule cascade requires `cascade`"
            )
        if self.cascade is None:
            return self
        if self.cascade.first >= len(self.members):
            raise ValueError(
                f"cascade.first must be less than the number of detectors ({len(self.members)}), got {self.cascade.first}"
            )
        for name, stage, n_members in (
            ("early", self.cascade.early, self.cascade.first),
            ("late", self.cascade.late, len(self.members)),
        ):
            _check_stacking(f"cascade.{name}", stage.rule, stage.stacking, n_members)
        return self

    @model_validator(mode="after")
    def _check_distinct(self) -> "EnsembleCard":
        names = [member.detector for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError(f"detectors must be distinct, got {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _check_rule(self) -> "EnsembleCard":
        _check_stacking("", self.rule, self.stacking, len(self.members))
        if self.gate is not None and self.rule != "gated-mean":
            raise ValueError(f"`gate` requires rule gated-mean, got rule {self.rule}")
        if self.rule == "gated-mean" and len(self.members) < MIN_GATED_MEMBERS:
            raise ValueError(
                f"rule gated-mean requires at least {MIN_GATED_MEMBERS} detectors, got {len(self.members)}"
            )
        if self.rule != "weighted" and any(member.weight != 1 for member in self.members):
            raise ValueError(f"weights other than 1 require rule weighted, got rule {self.rule}")
        return self

    @property
    def is_passthrough(self) -> bool:
        """Whether the ensemble is one detector with weight 1, without bias and without stacking.

        Its score before calibration is then the score of the detector. Therefore a calibration of
        the detector also calibrates the ensemble.
        """
        return (
            len(self.members) == 1
            and self.members[0].weight == 1
            and self.bias == 0
            and self.stacking is None
        )

    @property
    def first(self) -> int:
        """Number of detectors that score every image: the first detectors in the list of members.

        In a cascade, the detectors after them score only the uncertain images. In all other
        ensembles, all detectors score every image.
        """
        return self.cascade.first if self.cascade else len(self.members)


def load_ensemble_card(name_or_path: str | Path) -> EnsembleCard:
    """Read an ensemble card by its shipped name or by its path.

    Args:
        name_or_path: The name of a shipped ensemble, or the path of a card. Paths of other cards in
            a card that is not shipped are relative to that card.

    Returns:
        The validated card.

    Raises:
        ConfigError: If there is no such card, or if the card is invalid.
    """
    path = find_config("ensembles", name_or_path)
    card = load_yaml(path, EnsembleCard)
    shipped = named_configs("ensembles").values()
    if path in shipped:
        return card
    members = tuple(
        member.model_copy(update={"detector": _resolve_detector(path, member.detector)})
        for member in card.members
    )
    profile = card.profile and card.profile.model_copy(
        update={
            kind: _resolve_detector(path, name)
            for kind in ("identifier", "describer")
            if (name := getattr(card.profile, kind)) is not None
        }
    )
    return card.model_copy(update={"members": members, "profile": profile})


def find_ensemble(name_or_path: str) -> EnsembleCard | None:
    """Load an ensemble card, or return None if the name or path is not one of an ensemble.

    Args:
        name_or_path: A name or path that may also be one of a detector. The name of a shipped
            ensemble or detector has priority over a file in the current folder.

    Returns:
        The card, or None.

    Raises:
        ConfigError: The card is invalid.
    """
    if is_named("ensembles", name_or_path):
        return load_ensemble_card(name_or_path)
    path = Path(name_or_path)
    if is_named("detectors", split_variant(name_or_path)[0]) or not path.is_file():
        return None
    return load_ensemble_card(path) if "members" in read_mapping(path) else None


def build_ensemble(detectors: list[str]) -> EnsembleCard:
    """Build an uncalibrated ensemble of detectors: the mean of their log-odds, split at zero.

    The options `--detector A --detector B` of commands use this ensemble.

    Args:
        detectors: Names, paths, or URLs of detectors.

    Returns:
        An ensemble card without calibration.
    """
    titles = [_title(name) for name in detectors]
    return EnsembleCard(
        name="+".join(_short_name(name) for name in detectors),
        title=titles[0] if len(titles) == 1 else f"The mean of {', '.join(titles)}",
        members=tuple(EnsembleMember(detector=name) for name in detectors),
    )


def choose_operating_point(card: EnsembleCard, rate: float) -> EnsembleCard:
    """Return a card with the thresholds for another false-positive rate.

    The card's guarantee becomes that of the operating point. The operating point has an upper
    confidence bound of its false-positive rate. If this bound exceeds `rate`, reports state that
    the false-positive rate is measured, not guaranteed.

    Args:
        card: A card that `touchstone detectors calibrate` wrote.
        rate: The false-positive rate, an element of `list_rates(card)`.

    Returns:
        The card itself if its thresholds are for this rate. Otherwise a copy with other thresholds
        and, if it has a guarantee, another guarantee.

    Raises:
        ConfigError: If the rate is not between 0 and 1, if the card has no thresholds for this
            rate, or if the card is a cascade whose thresholds are not for this rate. A cascade has
            thresholds for only one rate.
    """
    check_rate(rate)
    if card.thresholds.target_fpr is not None and math.isclose(card.thresholds.target_fpr, rate):
        return card
    if card.cascade is not None:
        raise ConfigError(
            f"{card.name}: a cascade cannot decide at another false-positive rate, because the band of its second stage fits one threshold",
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
    """Check that a false-positive rate is a fraction, such as 0.05 for 5 %.

    Args:
        rate: The false-positive rate.

    Raises:
        ConfigError: If the rate is not between 0 and 1.
    """
    if not 0 < rate < 1:
        percent = rate if 1 <= rate < 100 else 5
        raise ConfigError(
            f"fpr must be a fraction between 0 and 1, got {rate:g}",
            hint=f"write {percent / 100:g} for {percent:g} %",
        )


def list_rates(card: EnsembleCard) -> list[float]:
    """Return the false-positive rates that `choose_operating_point` accepts for a card, sorted.

    Args:
        card: An ensemble card.

    Returns:
        The rates in ascending order. For a cascade, only the rate of its thresholds. Empty if the
        card has no operating points and its thresholds state no rate.
    """
    # A cascade's band fits one threshold only.
    rates = [] if card.cascade else [point.rate for point in card.operating_points]
    target = card.thresholds.target_fpr
    if target is not None and not any(math.isclose(target, rate) for rate in rates):
        rates.append(target)
    return sorted(rates)


def get_decision_settings(card: EnsembleCard) -> dict[str, Any]:
    """Return the settings of an ensemble card that affect verdicts, as plain JSON.

    The settings are recorded with a scoring run, which can only be resumed with equal settings.
    Optional keys that the card leaves out are also left out of the settings. So a run can be
    resumed with a newer version of Touchstone that adds optional keys.

    Args:
        card: An ensemble card.

    Returns:
        A dictionary of JSON values.
    """
    settings: dict[str, Any] = {
        "rule": card.rule,
        "bias": card.bias,
        "weights": [member.weight for member in card.members],
        "thresholds": card.thresholds.model_dump(mode="json", include={"real_below", "fake_above"}),
    }
    if card.thresholds.target_fpr is not None:
        settings["fpr"] = card.thresholds.target_fpr
    if card.rule == "gated-mean":
        settings["gate"] = (card.gate or OutlierGate()).model_dump(mode="json")
    settings |= card.model_dump(
        mode="json", include={"stacking", "calibration", "cascade", "settings"}, exclude_none=True
    )
    if "cascade" in settings:
        settings["cascade"].pop("expected_share", None)  # Used only for planning.
    if any(member.calibration for member in card.members):
        settings["calibrations"] = [
            member.calibration and member.calibration.model_dump(mode="json")
            for member in card.members
        ]
    if card.population is not None:
        settings["population"] = card.population.sha256
    return settings


def _check_stacking(section: str, rule: str, stacking: Stacking | None, n_members: int) -> None:
    prefix = f"{section}: " if section else ""
    if (rule == "stacked") != (stacking is not None):
        raise ValueError(
            f"{prefix}`stacking` "
            + (
                "is missing, which rule stacked needs"
                if stacking is None
                else f"is set, which only rule stacked uses, but the rule is {rule}: remove `stacking`"
            )
        )
    for key in ("mean", "scale", "coefficients") if stacking else ():
        if len(getattr(stacking, key)) != n_members:
            raise ValueError(
                f"{prefix}stacking.{key} must have one number per member ({n_members}), got {len(getattr(stacking, key))}"
            )


def _resolve_detector(card: Path, detector: str) -> str:
    """Resolve a detector path in a user's card relative to that card."""
    path, variant = _split(card.parent / detector)
    return f"{path}{variant}" if path.is_file() else detector


def _short_name(detector: str) -> str:
    """Return a detector's name, or the file name of its card without the suffix."""
    path, variant = _split(Path(detector))
    return (path.stem if path.suffix in (".yaml", ".yml") else path.name) + variant


def _title(detector: str) -> str:
    """Return the name of a detector for people.

    Trainings and fits write a card.yaml, so such a card has the name of its folder.
    """
    path, variant = _split(Path(detector))
    return (
        path.resolve().parent.name + variant if path.name == "card.yaml" else _short_name(detector)
    )


def _split(path: Path) -> tuple[Path, str]:
    """Split `:VARIANT` from the path of a card. The variant is empty if there is none."""
    base, variant = split_variant(path)
    return Path(base), "" if variant is None else f":{variant}"
