"""Labelled images in three parts → an ensemble card (`fit_card`): calibrations, rule, thresholds.

On `fit` are fitted the detectors' calibrations and the rule (of a cascade also its band, there and
on `calibrate`), on `calibrate` the ensemble's calibration, on `choose` the thresholds and nothing
else: so that what is promised of them holds. A detector alone has one calibration, fitted on `fit`
and `calibrate` together: a second one would undo the first, and have seen fewer images and
generators.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ray_app.detectors.card import Platt
from ray_app.ensembles import (
    CascadeStage,
    EnsembleCard,
    EnsembleMember,
    Thresholds,
    combine,
    decision,
    drawn_by_audit,
    logit,
    second_looks,
)
from ray_app.ensembles.card import FEWEST_GATED, Cascade, Rule
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate import data, files, thresholds
from ray_app.evaluation.calibrate.division import CHOOSE, FIT, Division, refuse_dependent
from ray_app.metrics.arrays import Bools, Floats, ScoreHistogram
from ray_app.metrics.clusters import effective_size


@dataclass(frozen=True)
class CalibratedCard:
    """A card without thresholds. `names`: of its detectors in the run; `prevalence`: the share of
    fakes at which its chances are right, and `detectors_prevalence` that at which the detectors'
    own are.
    """

    card: EnsembleCard
    names: tuple[str, ...]
    prevalence: float
    detectors_prevalence: float
    band: thresholds.Band | None = None

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
    """A fitted card with thresholds, and what held-out reals (`chosen`) and all labelled ones
    (`overall`, by groups) show of them.

    `reals`: the scores of all, each picture once, ascending.
    """

    fitted: CalibratedCard
    card: EnsembleCard
    chosen: thresholds.ChosenThreshold
    overall: thresholds.ChosenThreshold
    reals: Floats


def fit_card(
    division: Division, members: Sequence[EnsembleMember], config: files.CalibrateConfig
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
    band = None
    if rule == "cascade":
        facts["cascade"], band = _cascade(division, calibrations, config)
    elif rule == "stacked":
        facts["stacking"] = decision.fit_stacking(
            calibrated(fitting, calibrations), fitting.fake, config.seed
        )
    elif rule == "weighted":
        facts |= _weights(fitting, members, calibrations, config.seed)
    prevalences = float(calibrating.fake.mean()), float(fitting.fake.mean())
    plain = CalibratedCard(EnsembleCard(**facts), names, *prevalences, band)
    last = thresholds.fit(plain.scores(calibrating), calibrating.fake, what="the ensemble")
    return _at_prevalence(plain, last, prevalence_of(division, config))


def prevalence_of(division: Division, config: files.CalibrateConfig) -> float:
    """The share of fakes at which a card's chances are right: the requested one, else that among
    all labelled images.
    """
    return config.prevalence or float(division.labelled.fake.mean())


def rule_of(config: files.CalibrateConfig, detectors: int) -> Rule:
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
    fitted: CalibratedCard, division: Division, config: files.CalibrateConfig
) -> Assembled:
    """The card with a threshold that two bounds keep: that of held-out reals, and that of all
    labelled ones by whole groups.

    The first knows what a fit has not seen. The second knows how alike reals of one group are, and
    no division can favour it; it has seen what was fitted, of which little depends on any one
    image. Copies of one real count once. Raises ConfigError where the reals are too few, or of too
    few groups, for what is promised.
    """
    scores = fitted.scores(division.labelled)
    held_out: Bools = division.parts == CHOOSE
    reals, fakes = (
        ScoreHistogram.of(scores[division.reals & held_out]),
        scores[division.labelled.fake & held_out],
    )
    every = np.sort(scores[division.reals])
    all_reals, size = (
        ScoreHistogram.of(every),
        effective_size(scores[division.reals], division.groups[division.reals], config.fpr),
    )
    refuse_dependent(division, size, thresholds.reals_needed(config.fpr, config.confidence), config)
    bounds = (
        thresholds.choose_threshold(reals, config.fpr, config.confidence),
        thresholds.choose_threshold(all_reals, config.fpr, config.confidence, size=size),
    )
    fake_above = max(bound.fake_above for bound in bounds)
    chosen = thresholds.seen_at(fake_above, reals, config.confidence)
    overall = thresholds.seen_at(fake_above, all_reals, config.confidence, size=size)
    found = float((fakes >= fake_above).mean()) if len(fakes) else None
    drawn = Thresholds(
        real_below=thresholds.real_below(fakes, config.miss, fake_above=fake_above)
        if len(fakes)
        else fake_above,
        fake_above=fake_above,
        false_positive_rate=chosen.false_positives / chosen.n_real,
        true_positive_rate=found,
        n_real=chosen.n_real,
        n_fake=len(fakes) or None,
    )
    return Assembled(
        fitted, fitted.card.model_copy(update={"thresholds": drawn}), chosen, overall, every
    )


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
    division: Division, member: EnsembleMember, rule: Rule, config: files.CalibrateConfig
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
    division: Division, calibrations: Mapping[str, Platt], config: files.CalibrateConfig
) -> tuple[Cascade, thresholds.Band]:
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
    early, late = (scores[seen] for _, scores in stages)
    share = (config.share - config.audit) / (1 - config.audit)
    band = thresholds.choose_band(
        early,
        late,
        fake[seen],
        share=share,
        prevalence=prevalence,
        target=config.fpr,
        confidence=config.confidence,
    )
    edges, goes_on = (band.low, band.high), round(band.share + config.audit * (1 - band.share), 4)
    early_stage, late_stage = stages[0][0], stages[1][0]
    return Cascade(
        first=first,
        band=edges,
        audit_share=config.audit,
        expected_share=goes_on,
        early=early_stage,
        late=late_stage,
    ), band


def _stage(
    table: Floats, fitting: Bools, fake: Bools, config: files.CalibrateConfig
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
