"""`touchstone detectors calibrate` (`calibrate_run`): a labelled run → an ensemble card whose error
rate is known, and the report of it.

What a calibration is worth, measured on images that nothing was fitted on: as chances, generator by
generator, by JPEG quality.

Chances are compared at the share of fakes among the very images that they are measured on, whatever
prevalence the card is for.

Whether the labelled images pass what the card will ask of archives (`self_check`): each part is
other sources and generators of the same labels, so that where one of them, taken as an archive,
fails, archives of others will.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ray_app import __version__
from ray_app.detectors.card import Platt
from ray_app.ensembles import (
    CalibrationSettings,
    EnsembleCard,
    EnsembleMember,
    Guarantee,
    LabelledPart,
    Population,
    Thresholds,
    calibrate,
    combine,
    logit,
    population_of,
    properties_of,
)
from ray_app.ensembles.population import PopulationTally, Properties, values_at
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate import data, files, thresholds
from ray_app.evaluation.calibrate.division import (
    CHOOSE,
    PARTS,
    Division,
    described,
    divided,
    generators_of,
    groups_of,
)
from ray_app.evaluation.calibrate.fit_card import (
    Assembled,
    CalibratedCard,
    fit_card,
    with_thresholds,
)
from ray_app.evaluation.calibrate.thresholds import ChosenThreshold
from ray_app.metrics import intervals
from ray_app.metrics.arrays import Bools, Floats
from ray_app.metrics.drift import find_shifts
from ray_app.metrics.registry import (
    METRICS,
    NO_FAKES,
    NO_REALS,
    ONE_CLASS,
    Resampled,
    ScoredImages,
    measure,
    measure_all,
)
from ray_app.metrics.values import MetricValue, undefined
from ray_app.reports import calibration as facts
from ray_app.reports.format import counted, stated

MOST_GENERATORS = 40
QUALITIES = (50, 70, 80, 90, 95)
"""Where bands of JPEG quality begin."""


def systems_before_and_after(
    fitted: CalibratedCard,
    choosing: data.CalibrationData,
    before: EnsembleCard,
    calibrations: Mapping[str, Platt | None],
) -> list[facts.CalibratedSystem]:
    """Log-loss and ECE of the ensemble and of every detector: as the run had them, and calibrated;
    on the same held-out images.

    An ensemble of one detector is one system, under the detector's name.
    """
    fake, own = choosing.fake, float(choosing.fake.mean())
    raw = {name: choosing.scores[name] for name in fitted.names}
    scores = fitted.scores(choosing) + _between(own, fitted.prevalence)
    before_it = combine(before, raw, calibrations)
    if len(fitted.names) == 1:
        [(name, calibration)] = fitted.calibrations.items()
        return [_system(name, str(calibration), before_it, scores, fake)]
    found = [_system("ensemble", str(fitted.card.calibration), before_it, scores, fake)]
    for name, calibration in fitted.calibrations.items():
        column = raw[name].astype(np.float64)
        earlier, after = calibrate(column, calibrations.get(name)), calibrate(column, calibration)
        found.append(
            _system(
                name,
                str(calibration),
                earlier,
                after + _between(own, fitted.detectors_prevalence),
                fake,
            )
        )
    return found


def generators_left_out(
    division: Division,
    members: Sequence[EnsembleMember],
    config: files.CalibrateConfig,
    full: Assembled,
) -> list[facts.LeftOutGenerator]:
    """Of each generator, the largest first, the rates and chances on its images by a card that
    never saw one of them.

    Where its images are all among those that thresholds are chosen on, that is the card itself;
    else all is fitted again without them. Where they were the only fakes of a part, the other
    images are divided anew.
    """
    labelled, parts = division.labelled, division.parts
    names = np.array([name or "" for name in generators_of(labelled)])
    found = []
    for name, n in Counter(names[names != ""].tolist()).most_common(MOST_GENERATORS):
        its: Bools = names == name
        inside = sorted({PARTS[part] for part in parts[its].tolist()})
        again = inside != [PARTS[CHOOSE]]
        try:
            if not again:
                figures = _of_generator(full, labelled.take(its))
            else:
                rest = division.without(its, config.seed)
                figures = _of_generator(
                    with_thresholds(fit_card(rest, members, config), rest, config),
                    labelled.take(its),
                )
        except ConfigError as error:
            figures = dict.fromkeys(
                ("found", "auc", "log_loss", "ece"), undefined(f"without it: {error.message}", n)
            )
        found.append(
            facts.LeftOutGenerator(generator=name, n=n, parts=inside, fitted_again=again, **figures)
        )
    return found


def by_quality(assembled: Assembled, choosing: data.CalibrationData) -> list[facts.QualityBand]:
    """Rates at the threshold and chances, by the quality of JPEG files; files of other formats are
    one band.
    """
    scores, fake = assembled.fitted.scores(choosing), choosing.fake
    chances = scores + _between(float(fake.mean()), assembled.fitted.prevalence)
    bands = np.where(
        np.isnan(choosing.quality), -1, np.searchsorted(QUALITIES, choosing.quality, "right")
    )
    names = [*(f"{low}–{high - 1}" for low, high in pairwise((1, *QUALITIES, 101))), "not a JPEG"]
    found = []
    for band in np.unique(bands).tolist():
        among = bands == band
        flagged = scores >= assembled.card.thresholds.fake_above
        rates = {}
        for key, kind, why in (
            ("false_positives", False, NO_REALS),
            ("found", True, NO_FAKES),
        ):
            of_class = among & (fake == kind)
            rates[key] = intervals.proportion(
                int(flagged[of_class].sum()), int(of_class.sum()), why
            )
        figures = rates | _chances(chances[among], fake[among])
        n_real, n_fake = int((among & ~fake).sum()), int((among & fake).sum())
        found.append(
            facts.QualityBand(quality=names[band], n_real=n_real, n_fake=n_fake, **figures)
        )
    return found


def of_cascade(
    assembled: Assembled, division: Division, config: files.CalibrateConfig
) -> facts.CalibratedCascade | None:
    """How many images go on, and the share of fakes that is found so, and at as good a promise if
    all detectors looked at every image; None of other rules.
    """
    fitted, cascade, band, choosing = (
        assembled.fitted,
        assembled.card.cascade,
        assembled.fitted.band,
        division.choosing,
    )
    looks = fitted.looks(choosing)
    if cascade is None or band is None or looks is None:
        return None
    fake, reasons, found_by_all = choosing.fake, np.array([look or "" for look in looks]), None
    shares = {
        reason: thresholds.share_at(reasons == reason, fake, fitted.prevalence)
        for reason in ("band", "audit")
    }
    if fake.any():
        widest = float(np.finfo(np.float64).max)
        every = fitted.card.model_copy(
            update={"cascade": cascade.model_copy(update={"band": (-widest, widest)})}
        )
        scores = replace(fitted, card=every).scores(choosing)
        reals = scores[division.reals[division.parts == CHOOSE]]
        found_by_all = float(
            (
                scores[fake]
                >= thresholds.choose_threshold(reals, config.fpr, config.confidence).fake_above
            ).mean()
        )
    return facts.CalibratedCascade(
        first=cascade.first,
        band=(band.low, band.high),
        share_allowed=config.share,
        share_bound=config.audit + (1 - config.audit) * band.upper_bound,
        prevalence=fitted.prevalence,
        measured=facts.LookShares(**shares, share=sum(shares.values())),
        found=assembled.card.thresholds.true_positive_rate,
        found_by_all_on_all=found_by_all,
    )


def _of_generator(assembled: Assembled, its: data.CalibrationData) -> dict[str, MetricValue]:
    """Figures of one generator's images against the reals that thresholds were chosen on."""
    scores, reals = assembled.fitted.scores(its), assembled.reals
    found = int((scores >= assembled.card.thresholds.fake_above).sum())
    images = ScoredImages.from_classes(scores, reals)
    both, fake = np.concatenate([scores, reals]), np.arange(len(scores) + len(reals)) < len(scores)
    return {
        "found": intervals.proportion(found, len(scores), NO_FAKES),
        "auc": measure(METRICS["auc"], images, Resampled.in_blocks(images)),
        **_chances(both + _between(float(fake.mean()), assembled.fitted.prevalence), fake),
    }


def _system(
    name: str, calibration: str, before: Floats, after: Floats, fake: Bools
) -> facts.CalibratedSystem:
    was, now = (facts.Chances(**_chances(scores, fake)) for scores in (before, after))
    return facts.CalibratedSystem(name=name, calibration=calibration, before=was, after=now)


def _chances(scores: Floats, fake: Bools) -> dict[str, MetricValue]:
    known = np.isfinite(scores)
    images = ScoredImages.from_scores(scores[known], fake[known])
    if not images.n_fake or not images.n_real:
        return dict.fromkeys(("log_loss", "ece"), undefined(ONE_CLASS, len(images)))
    return measure_all(("log_loss", "ece"), images)


def _between(here: float, there: float) -> float:
    """What the log-odds of one share of fakes have over those of another; of a single class nothing
    is known.
    """
    return logit(here) - logit(there) if 0 < here < 1 else 0.0


def calibrate_run(config: files.CalibrateConfig) -> facts.CalibrationReport:
    """Calibrate a labelled run, write CARD.yaml and CARD.report.json, and return the report.

    Raises ConfigError: no run or labels of something else, too few reals, a class or generators
    lacking, groups that cross the user's own parts, detectors that cannot be calibrated.
    """
    path = files.card_path(config.out)
    reading = data.read_labelled(
        config.run, config.labels, key=config.key, split=config.split, detectors=config.detectors
    )
    labelled = reading.labelled
    _refuse_few(labelled, config)
    groups = groups_of(
        labelled, share_generators=config.share_generators, share_sources=config.share_sources
    )
    parts, moved = divided(labelled, groups, seed=config.seed, regroup=config.regroup)
    division = Division.of(labelled, groups, parts)
    print("calibrate  fitting", file=sys.stderr, flush=True)
    members = tuple(files.named_from(path, member) for member in reading.members)
    assembled = with_thresholds(fit_card(division, members, config), division, config)
    chosen, overall = assembled.chosen, assembled.overall
    guarantee = Guarantee(
        target_fpr=config.fpr, confidence=config.confidence, n_real=chosen.n_real, false_positives=chosen.false_positives,
        upper_bound=max(chosen.upper_bound, overall.upper_bound), groups=overall.groups, effective=overall.effective,
        these_sources=config.share_sources,
    )  # fmt: skip
    properties, notes = _properties(reading, assembled), _notes(reading, overall, config, moved)
    population = _population(reading, assembled, division, properties)
    card = EnsembleCard.model_validate(assembled.card.model_dump() | {
        "name": path.stem,
        "title": f"{' + '.join(reading.names)}, calibrated",
        "thresholds": assembled.card.thresholds.model_copy(update={"measured_on": population.what}),
        "guarantee": guarantee,
        "settings": _settings(reading),
        "population": population,
        "notes": " ".join(notes),
    })  # fmt: skip
    print("calibrate  measuring", file=sys.stderr, flush=True)
    report = facts.CalibrationReport(
        schema=facts.CALIBRATION_SCHEMA,
        version=__version__,
        run=reading.url,
        labels=reading.labels,
        options=config.model_dump(mode="json", exclude={"run", "out", "labels"}),
        detectors=list(reading.names),
        rule=card.rule,
        images=facts.CalibrationImages(
            used=len(labelled), labelled=reading.joined, left_out=reading.left_out
        ),
        told=list(reading.remarks),
        # anew, so that what they leave open is written too
        parts=[LabelledPart(**part.model_dump()) for part in population.parts],
        generators=list(population.generators),
        prevalence=population.prevalence,
        thresholds=Thresholds(**card.thresholds.model_dump(exclude={"measured_on"})),
        guarantee=Guarantee(**guarantee.model_dump()),
        systems=systems_before_and_after(
            assembled.fitted, division.choosing, reading.before, reading.calibrations
        ),
        cascade=of_cascade(assembled, division, config),
        generators_left_out=generators_left_out(division, reading.members, config, assembled),
        generators_not_shown=max(0, len(population.generators) - MOST_GENERATORS),
        qualities=by_quality(assembled, division.choosing),
        self_check=self_check(card, division, properties),
        card=str(path),
        notes=notes,
    )
    report = report.model_copy(update={"findings": _findings(report)})
    files.write_files(path, card, report)
    return report.model_copy(update={"report": str(files.report_path(path))})


def _properties(reading: data.LabelledRun, assembled: Assembled) -> Properties:
    """What the labelled images are like, as a run's images are compared."""
    labelled, fitted = reading.labelled, assembled.fitted
    looks = fitted.looks(labelled)
    raw = {name: np.asarray(column, np.float64) for name, column in labelled.scores.items()}
    for name in fitted.names[fitted.card.first :]:
        raw[name] = np.where([look is None for look in looks or ()], np.nan, raw[name])
    return properties_of(score=fitted.scores(labelled), scores=raw, formats=labelled.format, width=labelled.width,
                         height=labelled.height, quality=labelled.quality)  # fmt: skip


def _population(
    reading: data.LabelledRun, assembled: Assembled, division: Division, properties: Properties
) -> Population:
    """The images that the card is valid for: all labelled ones, since a part has but some of the
    sources and generators.
    """
    labelled, fitted = reading.labelled, assembled.fitted
    n_fake = int(labelled.fake.sum())
    what = f"{len(labelled) - n_fake:,} real and {n_fake:,} fake images of {reading.url}, labelled by {reading.labels}"
    names = sorted({name for name in generators_of(labelled) if name is not None})
    return population_of(what, labelled.fake, properties, parts=described(labelled, division.groups, division.parts),
                         prevalence=fitted.prevalence, generators=names)  # fmt: skip


def self_check(
    card: EnsembleCard, division: Division, properties: Properties
) -> list[facts.SelfCheck]:
    """Of all labelled images and of each part: the false positives of the card, and in which
    properties it would be called unlike.
    """
    flagged: Bools = np.asarray(properties["score"], np.float64) >= card.thresholds.fake_above
    every = np.ones(len(division.labelled), np.bool_)
    found = []
    for name, some in [
        ("all labelled images", every),
        *((f"part {name}", division.parts == number) for number, name in enumerate(PARTS)),
    ]:
        tally = PopulationTally(card.population.features if card.population else ())
        tally.add({key: values_at(column, some) for key, column in properties.items()})
        shifts = find_shifts(tally.bins())
        unlike = [feature for feature, shift in shifts.items() if shift.is_noticed]
        reals = some & division.reals
        rate = intervals.proportion(int(flagged[reals].sum()), int(reals.sum()), NO_REALS)
        promised = card.guarantee.target_fpr if card.guarantee else 1.0
        is_broken = rate.interval is not None and rate.interval[0] > promised
        odd = (
            [f"{stated(rate.value or 0.0)} of its reals are called fake, more than promised"]
            if is_broken
            else []
        )
        odd += [f"it would be called unlike in {', '.join(unlike)}"] if unlike else []
        why = "Sources or generators differ, and an archive's may too."
        finding = (
            f"Self-check, {name} taken as an archive: {', and '.join(odd)}. {why}" if odd else None
        )
        found.append(
            facts.SelfCheck(name=name, false_positives=rate, unlike=unlike, finding=finding)
        )
    return found


def _settings(reading: data.LabelledRun) -> CalibrationSettings | None:
    """Under what the run made its scores; None where it is not recorded."""
    precision = reading.identity.get("precision")
    if precision is None:
        return None
    kept = {name: precision[name] for name in reading.names if name in precision}
    return CalibrationSettings(
        precision=kept,
        resize=reading.identity.get("resize", "exact"),
        decoders=tuple(sorted(reading.decoders)),
    )


def _notes(
    reading: data.LabelledRun, overall: ChosenThreshold, config: files.CalibrateConfig, moved: int
) -> list[str]:
    """Notes for users of the card, in sentences."""
    found = [f"Fitted by touchstone detectors calibrate {__version__} (seed {config.seed})."]
    if overall.groups < overall.n_real:
        found.append(
            f"The {overall.n_real:,} labelled reals are of {overall.groups:,} sources or looks, and worth {overall.effective:,.0f} "
            "independent ones, if sources differ as draws from a normal distribution do."
        )
    elif not config.share_sources and all(source is None for source in reading.labelled.source):
        found.append(
            "Real images are treated as independent of each other, because the labels name no sources."
        )
    if config.share_sources:
        found.append(
            "The parts share sources, so the promise is for archives of these sources in these shares."
        )
    if config.share_generators:
        found.append(
            "The parts share generators, so nothing is known of generators that were not seen."
        )
    if moved:
        found.append(
            f"Moved to another part than the labels give, because images like them were there: {counted(moved, 'image')}."
        )
    if all(phash is None for phash in reading.labelled.phash):
        found.append(
            "Near-duplicates are not known, since the labels have no perceptual hashes (column phash; touchstone data index --hash phash)."
        )
    return found


def _findings(report: facts.CalibrationReport) -> list[str]:
    """Findings on held-out images against the card, in sentences."""
    found, ensemble, cascade = [], report.systems[0], report.cascade
    changes = (
        ("log-loss", ensemble.before.log_loss.value, ensemble.after.log_loss.value),
        ("calibration error", ensemble.before.ece.value, ensemble.after.ece.value),
    )
    for name, before, after in changes:
        if before is not None and after is not None and after > before:
            finding = f"The {name} of held-out images is higher than before ({after:.3f}, not {before:.3f})"
            found.append(f"{finding}: the parts are not alike, or too small.")
    if report.thresholds.true_positive_rate == 0:
        found.append(
            "No fake reaches the threshold: these detectors cannot tell fakes at so low a false-positive rate."
        )
    if cascade is not None and cascade.measured.share > cascade.share_allowed:
        found.append("More of the held-out images go on to all detectors than the limit allows.")
    return found + [check.finding for check in report.self_check if check.finding]


def _refuse_few(labelled: data.CalibrationData, config: files.CalibrateConfig) -> None:
    """Raises ConfigError at once where even all reals together are too few."""
    n_real, few = (
        int((~labelled.fake).sum()),
        thresholds.reals_needed(config.fpr, config.confidence),
    )
    if n_real < few:
        raise ConfigError(
            f"there are {n_real:,} labelled reals; a {100 * config.fpr:g} % target at {100 * config.confidence:g} % needs {few:,} "
            "on which nothing else is fitted, and those are half of all",
            hint="label more real images, or take a larger --fpr",
        )
