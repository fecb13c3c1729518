"""Labelled images in three parts → an ensemble card (`fit_card`): calibrations, rule, thresholds.

On `fit` are fitted the detectors' calibrations and the rule (of a cascade also its band, there and
on `calibrate`), on `calibrate` the ensemble's calibration, on `choose` the thresholds and nothing
else: so that what is promised of them holds. A detector alone has one calibration, fitted on `fit`
and `calibrate` together: a second one would undo the first, and have seen fewer images and
generators.
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
    drawn_by_audit,
    logit,
    second_looks,
)
from ray_app.ensembles.card import FEWEST_GATED, Cascade, Rule
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
    """A card without thresholds.

    Attributes:
        card: The card.
        names: Names of its detectors in the run.
        prevalence: Fraction of fakes at which its probabilities are right.
    """

    card: EnsembleCard
    names: tuple[str, ...]
    prevalence: float

    @property
    def calibrations(self) -> dict[str, Platt | None]:
        """Of the detectors, by name."""
        return {
            name: member.calibration
            for name, member in zip(self.names, self.card.members, strict=True)
        }

    def scores(self, labelled: data.CalibrationData) -> Floats:
        """The ensemble's score (n,) of images, as a run with the card gives it."""
        audited = drawn_by_audit(self.card, labelled.sha256)
        return combine(
            self.card,
            {name: labelled.scores[name] for name in self.names},
            self.calibrations,
            audited=audited,
        )

    def looks(self, labelled: data.CalibrationData) -> list[str | None] | None:
        """Of a cascade, why all detectors score each image: `band`, `audit`, or None."""
        audited = drawn_by_audit(self.card, labelled.sha256)
        return second_looks(
            self.card,
            {name: labelled.scores[name] for name in self.names},
            self.calibrations,
            audited,
        )


@dataclass(frozen=True)
class Assembled:
    """A fitted card with thresholds, and what reals show of the threshold.

    Attributes:
        fitted: The card without thresholds.
        card: The card with thresholds and operating points.
        chosen: The threshold as held-out reals show it.
        overall: The threshold as all labelled reals show it, by groups.
    """

    fitted: CalibratedCard
    card: EnsembleCard
    chosen: ChosenThreshold
    overall: ChosenThreshold

    @property
    def upper_bound(self) -> float:
        """The higher one of both bounds."""
        return max(self.chosen.upper_bound, self.overall.upper_bound)


@dataclass(frozen=True)
class LabelledScores:
    """Scores that thresholds are chosen on. Copies of one real count once.

    Attributes:
        reals: Held-out reals.
        fakes: Held-out fakes.
        all_reals: All labelled reals.
        all_groups: The group of each of all labelled reals.
        confidence: The confidence of upper bounds.
    """

    reals: Floats
    fakes: Floats
    all_reals: Floats
    all_groups: data.Places
    confidence: float

    def size(self, rate: float) -> EffectiveSize:
        """Return how many independent reals all labelled ones are worth for a false-positive rate."""
        return effective_size(self.all_reals, self.all_groups, rate)

    def choose(self, rate: float) -> tuple[ChosenThreshold, ChosenThreshold]:
        """Return the lowest threshold whose false-positive rate two bounds keep at most at `rate`,
        as held-out reals show it, and as all labelled ones do.

        The first bound knows what a fit has not seen. The second knows how alike reals of one group
        are, and no division can favour it; it has seen what was fitted, of which little depends on
        any one image.

        Raises:
            ConfigError: The reals are too few for the rate.
        """
        size = self.size(rate)
        bounds = (
            thresholds.choose_threshold(self.reals, rate, self.confidence),
            thresholds.choose_threshold(self.all_reals, rate, self.confidence, size=size),
        )
        return self.show(max(bound.fake_above for bound in bounds), size)

    def show(
        self, fake_above: float, size: EffectiveSize
    ) -> tuple[ChosenThreshold, ChosenThreshold]:
        """Return what held-out reals, and all labelled ones, show of a threshold."""
        return (
            thresholds.seen_at(fake_above, self.reals, self.confidence),
            thresholds.seen_at(fake_above, self.all_reals, self.confidence, size=size),
        )

    def measure(self, rates: Iterable[float], real_below: float) -> list[OperatingPoint]:
        """Return the operating points of false-positive rates, in order.

        If the reals are too few to guarantee a rate, its threshold is the lowest one that keeps it
        on held-out reals and is not below the threshold of a higher rate.

        Args:
            rates: The false-positive rates.
            real_below: The lower threshold of the card.
        """
        points: list[OperatingPoint] = []
        for rate in sorted(rates, reverse=True):
            try:
                seen = self.choose(rate)
            except ConfigError:
                lowest = max((point.threshold for point in points), default=-np.inf)
                measured = thresholds.measured_threshold(self.reals, rate)
                seen = self.show(max(measured, lowest), self.size(rate))
            fake_above = seen[0].fake_above
            points.append(
                OperatingPoint(
                    rate=rate,
                    threshold=fake_above,
                    false_positive_rate=seen[0].false_positives / seen[0].n_real,
                    upper_bound=max(one.upper_bound for one in seen),
                    recall=self.recall(fake_above),
                    abstain_real=share_between(self.reals, real_below, fake_above),
                    abstain_fake=share_between(self.fakes, real_below, fake_above),
                )
            )
        return points[::-1]

    def recall(self, fake_above: float) -> float | None:
        """Return the fraction of held-out fakes that reach a threshold; None without fakes."""
        return float((self.fakes >= fake_above).mean()) if len(self.fakes) else None


def share_between(scores: Floats, real_below: float, fake_above: float) -> float | None:
    """Return the fraction of scores between two thresholds; None without scores."""
    between = (scores > real_below) & (scores < fake_above)
    return float(between.mean()) if len(scores) else None


def fit_card(
    division: Division, members: Sequence[EnsembleMember], config: CalibrateConfig
) -> CalibratedCard:
    """A card fitted on the parts `fit` and `calibrate`. Raises ConfigError where something cannot
    be fitted.
    """
    names, rule = division.labelled.detectors, rule_of(config, len(members))
    if len(members) == 1 and rule not in ("stacked", "weighted"):
        return _fit_alone(division, members[0], rule, config)
    fitting, calibrating = division.fitting, division.calibrating
    calibrations = {
        name: thresholds.fit(fitting.scores[name], fitting.fake, what=name) for name in names
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
        facts["cascade"] = _cascade(division, calibrations, config)
    elif rule == "stacked":
        facts["stacking"] = decision.fit_stacking(
            calibrated(fitting, calibrations), fitting.fake, config.seed
        )
    elif rule == "weighted":
        facts |= _weights(fitting, members, calibrations, config.seed)
    plain = CalibratedCard(EnsembleCard(**facts), names, float(calibrating.fake.mean()))
    last = thresholds.fit(plain.scores(calibrating), calibrating.fake, what="the ensemble")
    return _at_prevalence(plain, last, prevalence_of(division, config))


def prevalence_of(division: Division, config: CalibrateConfig) -> float:
    """The share of fakes at which a card's chances are right: the requested one, else that among
    all labelled images.
    """
    return config.prevalence or float(division.labelled.fake.mean())


def rule_of(config: CalibrateConfig, detectors: int) -> Rule:
    """The requested rule; without one `stacked`, of an only detector `mean-logit`. Raises
    ConfigError for one that cannot be.
    """
    rule: Rule = config.rule or ("stacked" if detectors > 1 else "mean-logit")
    if rule == "cascade" and detectors < 2:
        raise ConfigError(
            "--rule cascade: the run has one detector", hint="a cascade needs two or more"
        )
    if rule == "gated-mean" and detectors < FEWEST_GATED:
        raise ConfigError(
            f"--rule gated-mean: the run has {detectors} detectors",
            hint=f"it needs {FEWEST_GATED} or more: see mean-logit",
        )
    if config.first is not None and config.first >= detectors:
        raise ConfigError(
            f"--first {config.first}: the run has {detectors} detectors, and somebody has to look again"
        )
    return rule


def with_thresholds(
    fitted: CalibratedCard, division: Division, config: CalibrateConfig
) -> Assembled:
    """Return the card with a threshold that keeps the target rate, and with operating points.

    Raises:
        ConfigError: The reals are too few, or of too few groups, for the target rate.
    """
    scores, is_real = fitted.scores(division.labelled), division.reals
    held_out: Bools = division.parts == CHOOSE
    found = LabelledScores(
        scores[is_real & held_out],
        scores[division.labelled.fake & held_out],
        scores[is_real],
        division.groups[is_real],
        config.confidence,
    )
    needed = thresholds.reals_needed(config.fpr, config.confidence)
    refuse_dependent(division, found.size(config.fpr), needed, config)
    chosen, overall = found.choose(config.fpr)
    fake_above, n_fake = chosen.fake_above, len(found.fakes)
    real_below = (
        thresholds.real_below(found.fakes, config.miss, fake_above=fake_above)
        if n_fake
        else fake_above
    )
    decisive = Thresholds(
        real_below=real_below,
        fake_above=fake_above,
        target_fpr=config.fpr,
        false_positive_rate=chosen.false_positives / chosen.n_real,
        upper_bound=max(chosen.upper_bound, overall.upper_bound),
        true_positive_rate=found.recall(fake_above),
        n_real=chosen.n_real,
        n_fake=n_fake or None,
        abstain_real=share_between(found.reals, real_below, fake_above),
        abstain_fake=share_between(found.fakes, real_below, fake_above),
    )
    points = tuple(found.measure({*RATES, config.fpr}, real_below))
    facts = {"thresholds": decisive, "operating_points": points}
    return Assembled(fitted, fitted.card.model_copy(update=facts), chosen, overall)


def calibrated(labelled: data.CalibrationData, calibrations: Mapping[str, Platt]) -> Floats:
    """Calibrated log-odds (n, detectors)."""
    return np.stack(
        [calibrations[name](column.astype(np.float64)) for name, column in labelled.scores.items()],
        axis=1,
    )


def shifted_calibration(calibration: Platt, by: float) -> Platt:
    """The calibration whose log-odds are higher by so much: what another share of fakes among the
    images makes of it.
    """
    return Platt(slope=calibration.slope, intercept=calibration.intercept + by)


def _fit_alone(
    division: Division, member: EnsembleMember, rule: Rule, config: CalibrateConfig
) -> CalibratedCard:
    """A card of one detector, whose calibrated score is the ensemble's."""
    seen, [name] = division.labelled.take(division.parts != CHOOSE), division.labelled.detectors
    member = member.model_copy(
        update={"calibration": thresholds.fit(seen.scores[name], seen.fake, what=name)}
    )
    prevalence = float(seen.fake.mean())
    plain = CalibratedCard(
        EnsembleCard(name="calibrated", title="calibrated", members=(member,), rule=rule),
        (name,),
        prevalence,
    )
    return _at_prevalence(plain, Platt(slope=1, intercept=0), prevalence_of(division, config))


def _at_prevalence(plain: CalibratedCard, calibration: Platt, prevalence: float) -> CalibratedCard:
    """The card with the ensemble's calibration, as it is at that share of fakes; the part it was
    fitted on has another one.
    """
    there = shifted_calibration(calibration, logit(prevalence) - logit(plain.prevalence))
    return replace(
        plain, card=plain.card.model_copy(update={"calibration": there}), prevalence=prevalence
    )


def _weights(
    fitting: data.CalibrationData,
    members: Sequence[EnsembleMember],
    calibrations: Mapping[str, Platt],
    seed: int,
) -> dict[str, Any]:
    """The logistic regression of `stacked` as weights and a bias."""
    stacking = decision.fit_stacking(calibrated(fitting, calibrations), fitting.fake, seed)
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


def _cascade(
    division: Division, calibrations: Mapping[str, Platt], config: CalibrateConfig
) -> Cascade:
    """Both stages, each a stacking and its calibration fitted on `fit`, and the band, which the
    thresholds' images do not influence.
    """
    parts, fake = division.parts, division.labelled.fake
    fitting: Bools = parts == FIT
    table = calibrated(division.labelled, calibrations)
    first = config.first or 1
    stages = _stage(table[:, :first], fitting, fake, config), _stage(table, fitting, fake, config)
    prevalence = prevalence_of(division, config)
    seen: Bools = parts != CHOOSE
    share = (config.share - config.audit) / (1 - config.audit)
    band = thresholds.choose_band(
        stages[0][1][seen],
        fake[seen],
        share=share,
        prevalence=prevalence,
        target=config.fpr,
        confidence=config.confidence,
    )
    return Cascade(
        first=first,
        band=(band.low, band.high),
        audit_share=config.audit,
        expected_share=round(band.share + config.audit * (1 - band.share), 4),
        early=stages[0][0],
        late=stages[1][0],
    )


def _stage(
    table: Floats, fitting: Bools, fake: Bools, config: CalibrateConfig
) -> tuple[CascadeStage, Floats]:
    """A stage fitted on some of the images, and its scores of all of them (n,), from calibrated
    log-odds (n, its detectors).
    """
    stacking = decision.fit_stacking(table[fitting], fake[fitting], config.seed)
    raw = decision.stacked(table, stacking)
    calibration = thresholds.fit(raw[fitting], fake[fitting], what="a stage of the cascade")
    return CascadeStage(rule="stacked", stacking=stacking, calibration=calibration), calibration(
        raw
    )
