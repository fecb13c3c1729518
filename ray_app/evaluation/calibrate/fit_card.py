"""Fit an ensemble card on labelled images (`fit_card`), and add thresholds (`add_thresholds`).

The labelled images are in three parts. The detectors' calibrations, and the rule that combines the
detectors, are fitted on the part `fit`. The ensemble's calibration is fitted on `calibrate`. The
part `choose` is used only for the thresholds, so that their guarantee holds.

There are two exceptions. In a cascade, both `fit` and `calibrate` determine which images need the
second stage. A single detector has only one calibration, fitted on both parts together. A second
calibration would replace the first by one from fewer images and generators.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ray_app.detectors.card import Platt
from ray_app.ensembles import (
    CascadeStage,
    EnsembleCard,
    EnsembleMember,
    OperatingPoint,
    Thresholds,
    combine,
    decision,
    list_second_stage_reasons,
    logit,
    select_audited,
)
from ray_app.ensembles.card import MIN_GATED_MEMBERS, Cascade, Rule
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate import data, thresholds
from ray_app.evaluation.calibrate.config import CalibrateConfig
from ray_app.evaluation.calibrate.division import CHOOSE, FIT, Division, refuse_dependent
from ray_app.evaluation.calibrate.thresholds import ChosenThreshold
from ray_app.metrics.arrays import Bools, Floats
from ray_app.metrics.clusters import EffectiveSize, effective_size

RATES = (0.001, 0.002, 0.01, 0.02, 0.05, 0.1)
"""False-positive rates of the operating points of a card, with the target rate."""


@dataclass(frozen=True)
class CalibratedCard:
    """A fitted ensemble card without thresholds.

    An ensemble card names detectors, and defines how their scores become a probability.

    Attributes:
        card: The card.
        names: Names of the detectors as in the run, in the order of the card's members.
        prevalence: Fraction of fakes in an archive. The card's probabilities are correct for
            archives with this fraction.
    """

    card: EnsembleCard
    names: tuple[str, ...]
    prevalence: float

    @property
    def calibrations(self) -> dict[str, Platt | None]:
        """Calibration of each detector by its name in the run."""
        return {
            name: member.calibration
            for name, member in zip(self.names, self.card.members, strict=True)
        }

    def scores(self, labelled: data.CalibrationData) -> Floats:
        """Return the ensemble's score (n,) for each image, as in a run with this card."""
        audited = select_audited(self.card, labelled.sha256)
        return combine(
            self.card,
            {name: labelled.scores[name] for name in self.names},
            self.calibrations,
            audited=audited,
        )

    def second_stage_reasons(self, labelled: data.CalibrationData) -> list[str | None] | None:
        """Return for each image why all detectors of a cascade score it, not only the first ones.

        Args:
            labelled: The images.

        Returns:
            An item for each image: `band` if the score of the first detectors is uncertain, `audit`
            if the image was drawn at random, or None if only the first detectors score the image.
            None instead of a list if the card is not a cascade.
        """
        audited = select_audited(self.card, labelled.sha256)
        return list_second_stage_reasons(
            self.card,
            {name: labelled.scores[name] for name in self.names},
            self.calibrations,
            audited,
        )


@dataclass(frozen=True)
class Assembled:
    """A fitted ensemble card with thresholds.

    Held-out images are those on which thresholds are chosen and nothing is fitted.

    Attributes:
        fitted: The card without thresholds.
        card: The card with thresholds and operating points. An operating point is the threshold for
            one false-positive rate.
        chosen: The threshold `fake_above`, with its false positives among held-out real images.
        overall: The threshold `fake_above`, with its false positives among all labelled real
            images. `upper_bound` of its false-positive rate accounts for images that are not
            independent.
    """

    fitted: CalibratedCard
    card: EnsembleCard
    chosen: ChosenThreshold
    overall: ChosenThreshold

    @property
    def upper_bound(self) -> float:
        """The higher one of the two upper bounds of the false-positive rate.

        One is from held-out real images (`chosen`), the other from all (`overall`).
        """
        return max(self.chosen.upper_bound, self.overall.upper_bound)


@dataclass(frozen=True)
class LabelledScores:
    """The ensemble's scores of labelled images, on which thresholds are chosen.

    Held-out images are those on which nothing was fitted. Copies of a real image are left out.

    Attributes:
        reals: Scores of held-out real images.
        fakes: Scores of held-out fakes.
        all_reals: Scores of all labelled real images.
        all_groups: Group of each score in `all_reals`. Images of one group are not independent.
        confidence: Confidence of the upper bounds of false-positive rates, such as 0.95.
    """

    reals: Floats
    fakes: Floats
    all_reals: Floats
    all_groups: data.Indices
    confidence: float

    def size(self, rate: float) -> EffectiveSize:
        """Return how many independent images the labelled reals are worth.

        The number is for a threshold with the false-positive rate `rate`. Images of one group may
        have similar scores. They are then worth fewer independent images.
        """
        return effective_size(self.all_reals, self.all_groups, rate)

    def choose(self, rate: float) -> tuple[ChosenThreshold, ChosenThreshold]:
        """Return the lowest threshold that keeps two bounds of false positives within `rate`.

        Both are upper bounds of the false-positive rate. The first one is computed from held-out
        reals, on which nothing was fitted. The second one is computed from all labelled reals. It
        accounts for how similar reals of one group are, and no division into parts can favour it.
        Some of these reals were used to fit the ensemble card, but the card depends little on any
        single image.

        Returns:
            The threshold twice: with its false positives among held-out reals, and among all
            labelled reals.

        Raises:
            ConfigError: The reals are too few for the rate.
        """
        size = self.size(rate)
        bounds = (
            thresholds.choose_threshold(self.reals, rate, self.confidence),
            thresholds.choose_threshold(self.all_reals, rate, self.confidence, size=size),
        )
        return self.evaluate(max(bound.fake_above for bound in bounds), size)

    def evaluate(
        self, fake_above: float, size: EffectiveSize
    ) -> tuple[ChosenThreshold, ChosenThreshold]:
        """Return the false positives of a threshold among held-out and among all labelled reals.

        Args:
            fake_above: The threshold.
            size: The number of independent images that all labelled real images are worth.

        Returns:
            The threshold twice: with its false positives among held-out real images, and among all
            labelled real images.
        """
        return (
            thresholds.evaluate_threshold(fake_above, self.reals, self.confidence),
            thresholds.evaluate_threshold(fake_above, self.all_reals, self.confidence, size=size),
        )

    def measure(self, rates: Iterable[float], real_below: float) -> list[OperatingPoint]:
        """Return the threshold and the measured rates for each of several false-positive rates.

        If the real images are too few to guarantee a rate, its threshold keeps the rate on the
        held-out real images, without a guarantee for further images. The threshold of a rate is
        never below that of a higher rate.

        Args:
            rates: The false-positive rates.
            real_below: The lower threshold of the card, at or below which the verdict is real.

        Returns:
            An operating point for each rate, by ascending rate.
        """
        points: list[OperatingPoint] = []
        for rate in sorted(rates, reverse=True):
            try:
                bounds = self.choose(rate)
            except ConfigError:
                lowest = max((point.threshold for point in points), default=-np.inf)
                measured = thresholds.lowest_threshold(self.reals, rate)
                bounds = self.evaluate(max(measured, lowest), self.size(rate))
            fake_above = bounds[0].fake_above
            points.append(
                OperatingPoint(
                    rate=rate,
                    threshold=fake_above,
                    false_positive_rate=bounds[0].false_positives / bounds[0].n_real,
                    upper_bound=max(bound.upper_bound for bound in bounds),
                    recall=self.recall(fake_above),
                    abstain_real=fraction_between(self.reals, real_below, fake_above),
                    abstain_fake=fraction_between(self.fakes, real_below, fake_above),
                )
            )
        return points[::-1]

    def recall(self, fake_above: float) -> float | None:
        """Return the fraction of held-out fakes that reach a threshold; None without fakes."""
        return float((self.fakes >= fake_above).mean()) if len(self.fakes) else None


def fraction_between(scores: Floats, real_below: float, fake_above: float) -> float | None:
    """Return the fraction of scores for which the verdict is `abstain`.

    These scores are above `real_below` and below `fake_above`.

    Args:
        scores: The scores (n,).
        real_below: The lower threshold.
        fake_above: The upper threshold.

    Returns:
        The fraction; None without scores.
    """
    between = (scores > real_below) & (scores < fake_above)
    return float(between.mean()) if len(scores) else None


def fit_card(
    division: Division, members: Sequence[EnsembleMember], config: CalibrateConfig
) -> CalibratedCard:
    """Fit an ensemble card on labelled images; `add_thresholds` adds its thresholds.

    The calibrations of the detectors and the rule that combines them are fitted on the part `fit`
    of the images. The calibration of the ensemble's score is fitted on the part `calibrate`.

    Args:
        division: The labelled images in three parts.
        members: The detectors.
        config: The settings.

    Returns:
        The card without thresholds.

    Raises:
        ConfigError: A calibration or the rule cannot be fitted.
    """
    names, rule = division.labelled.detectors, choose_rule(config, len(members))
    if len(members) == 1 and rule not in ("stacked", "weighted"):
        return _fit_alone(division, members[0], rule, config)
    fitting, calibrating = division.fitting, division.calibrating
    calibrations = {
        name: thresholds.fit(fitting.scores[name], fitting.fake, name=name) for name in names
    }
    members = tuple(
        member.model_copy(update={"calibration": calibrations[name]})
        for name, member in zip(names, members, strict=True)
    )
    facts: dict[str, Any] = {
        "name": "calibrated",
        "title": "calibrated",
        "members": members,
        "rule": rule,
    }
    if rule == "cascade":
        facts["cascade"] = _fit_cascade(division, calibrations, config)
    elif rule == "stacked":
        facts["stacking"] = decision.fit_stacking(
            calibrate_scores(fitting, calibrations), fitting.fake, config.seed
        )
    elif rule == "weighted":
        facts |= _fit_weights(fitting, members, calibrations, config.seed)
    plain = CalibratedCard(EnsembleCard(**facts), names, float(calibrating.fake.mean()))
    last = thresholds.fit(plain.scores(calibrating), calibrating.fake, name="the ensemble")
    return _set_prevalence(plain, last, choose_prevalence(division, config))


def choose_prevalence(division: Division, config: CalibrateConfig) -> float:
    """Return the fraction of fakes for which the probabilities of the card are to be correct.

    It is the value of `config.prevalence` if this is set, else the fraction among all labelled
    images.
    """
    return config.prevalence or float(division.labelled.fake.mean())


def choose_rule(config: CalibrateConfig, detectors: int) -> Rule:
    """Return the rule by which an ensemble combines its detectors: `config.rule`, or the default.

    The default is `stacked` (logistic regression), or `mean-logit` for a single detector.

    Args:
        config: The settings.
        detectors: Number of detectors.

    Returns:
        The rule.

    Raises:
        ConfigError: There are too few detectors for the rule, or for `config.first`, the number of
            detectors that score every image in a cascade.
    """
    rule: Rule = config.rule or ("stacked" if detectors > 1 else "mean-logit")
    if rule == "cascade" and detectors < 2:
        raise ConfigError(
            "--rule cascade needs at least 2 detectors, the run has 1",
            hint="choose another --rule, or score with more detectors",
        )
    if rule == "gated-mean" and detectors < MIN_GATED_MEMBERS:
        raise ConfigError(
            f"--rule gated-mean needs at least {MIN_GATED_MEMBERS} detectors, the run has {detectors}",
            hint="use --rule mean-logit",
        )
    if config.first is not None and config.first >= detectors:
        raise ConfigError(
            f"--first must be less than {detectors}, the number of detectors of the run, got {config.first}"
        )
    return rule


def add_thresholds(
    fitted: CalibratedCard, division: Division, config: CalibrateConfig
) -> Assembled:
    """Choose the thresholds of a fitted ensemble card, and add them to the card.

    The threshold `fake_above` keeps the false-positive rate within `config.fpr`. The card also gets
    operating points, which are the thresholds for this and several other false-positive rates.

    Args:
        fitted: The card without thresholds.
        division: The labelled images in three parts.
        config: The settings.

    Returns:
        The card with thresholds, and the false positives at `fake_above`.

    Raises:
        ConfigError: The real images are too few, or of too few groups, for the target rate.
    """
    scores, is_real = fitted.scores(division.labelled), division.reals
    held_out: Bools = division.parts == CHOOSE
    labelled_scores = LabelledScores(
        scores[is_real & held_out],
        scores[division.labelled.fake & held_out],
        scores[is_real],
        division.groups[is_real],
        config.confidence,
    )
    needed = thresholds.reals_needed(config.fpr, config.confidence)
    refuse_dependent(division, labelled_scores.size(config.fpr), needed, config)
    held_out_threshold, overall_threshold = labelled_scores.choose(config.fpr)
    fake_above, n_fake = held_out_threshold.fake_above, len(labelled_scores.fakes)
    real_below = (
        thresholds.choose_real_below(labelled_scores.fakes, config.miss, fake_above=fake_above)
        if n_fake
        else fake_above
    )
    decisive = Thresholds(
        real_below=real_below,
        fake_above=fake_above,
        target_fpr=config.fpr,
        false_positive_rate=held_out_threshold.false_positives / held_out_threshold.n_real,
        upper_bound=max(held_out_threshold.upper_bound, overall_threshold.upper_bound),
        true_positive_rate=labelled_scores.recall(fake_above),
        n_real=held_out_threshold.n_real,
        n_fake=n_fake or None,
        abstain_real=fraction_between(labelled_scores.reals, real_below, fake_above),
        abstain_fake=fraction_between(labelled_scores.fakes, real_below, fake_above),
    )
    points = tuple(labelled_scores.measure({*RATES, config.fpr}, real_below))
    facts = {"thresholds": decisive, "operating_points": points}
    return Assembled(
        fitted, fitted.card.model_copy(update=facts), held_out_threshold, overall_threshold
    )


def calibrate_scores(labelled: data.CalibrationData, calibrations: Mapping[str, Platt]) -> Floats:
    """Return the calibrated log-odds of all images by all detectors, (n, detectors)."""
    return np.stack(
        [calibrations[name](column.astype(np.float64)) for name, column in labelled.scores.items()],
        axis=1,
    )


def shift_calibration(calibration: Platt, offset: float) -> Platt:
    """Return a calibration whose log-odds are higher by `offset`.

    An offset adapts a calibration to another fraction of fakes.
    """
    return Platt(slope=calibration.slope, intercept=calibration.intercept + offset)


def _fit_alone(
    division: Division, member: EnsembleMember, rule: Rule, config: CalibrateConfig
) -> CalibratedCard:
    """Return a card of one detector, whose calibrated score is the ensemble's."""
    fitting, [name] = division.labelled.take(division.parts != CHOOSE), division.labelled.detectors
    member = member.model_copy(
        update={"calibration": thresholds.fit(fitting.scores[name], fitting.fake, name=name)}
    )
    prevalence = float(fitting.fake.mean())
    plain = CalibratedCard(
        EnsembleCard(name="calibrated", title="calibrated", members=(member,), rule=rule),
        (name,),
        prevalence,
    )
    return _set_prevalence(plain, Platt(slope=1, intercept=0), choose_prevalence(division, config))


def _set_prevalence(plain: CalibratedCard, calibration: Platt, prevalence: float) -> CalibratedCard:
    """Return the card with the ensemble's calibration, shifted to a fraction of fakes.

    The part that it was fitted on has another fraction.
    """
    shifted = shift_calibration(calibration, logit(prevalence) - logit(plain.prevalence))
    return replace(
        plain, card=plain.card.model_copy(update={"calibration": shifted}), prevalence=prevalence
    )


def _fit_weights(
    fitting: data.CalibrationData,
    members: Sequence[EnsembleMember],
    calibrations: Mapping[str, Platt],
    seed: int,
) -> dict[str, Any]:
    """Return the logistic regression of `stacked` as weights and a bias."""
    stacking = decision.fit_stacking(calibrate_scores(fitting, calibrations), fitting.fake, seed)
    weights = [
        slope / scale for slope, scale in zip(stacking.coefficients, stacking.scale, strict=True)
    ]
    bias = stacking.intercept - sum(
        weight * mean for weight, mean in zip(weights, stacking.mean, strict=True)
    )
    weighted = tuple(
        member.model_copy(update={"weight": weight})
        for member, weight in zip(members, weights, strict=True)
    )
    return {"members": weighted, "bias": bias}


def _fit_cascade(
    division: Division, calibrations: Mapping[str, Platt], config: CalibrateConfig
) -> Cascade:
    """Return a cascade with both stages and the band.

    Each stage is a stacking with its calibration, fitted on `fit`. The images that thresholds are
    chosen on do not influence the band.
    """
    parts, fake = division.parts, division.labelled.fake
    fitting: Bools = parts == FIT
    table = calibrate_scores(division.labelled, calibrations)
    first = config.first or 1
    stages = (
        _fit_stage(table[:, :first], fitting, fake, config),
        _fit_stage(table, fitting, fake, config),
    )
    prevalence = choose_prevalence(division, config)
    is_seen: Bools = parts != CHOOSE
    fraction = (config.share - config.audit) / (1 - config.audit)
    band = thresholds.choose_band(
        stages[0][1][is_seen],
        fake[is_seen],
        fraction=fraction,
        prevalence=prevalence,
        target=config.fpr,
        confidence=config.confidence,
    )
    return Cascade(
        first=first,
        band=(band.low, band.high),
        audit_share=config.audit,
        expected_share=round(band.fraction + config.audit * (1 - band.fraction), 4),
        early=stages[0][0],
        late=stages[1][0],
    )


def _fit_stage(
    table: Floats, fitting: Bools, fake: Bools, config: CalibrateConfig
) -> tuple[CascadeStage, Floats]:
    """Fit a stage of a cascade.

    Args:
        table: Calibrated log-odds (n, detectors of the stage).
        fitting: Which images (n,) to fit on.
        fake: Labels (n,).
        config: The settings.

    Returns:
        The stage, and its scores (n,) of all images.
    """
    stacking = decision.fit_stacking(table[fitting], fake[fitting], config.seed)
    raw = decision.stacked(table, stacking)
    calibration = thresholds.fit(raw[fitting], fake[fitting], name="a stage of the cascade")
    return CascadeStage(rule="stacked", stacking=stacking, calibration=calibration), calibration(
        raw
    )
