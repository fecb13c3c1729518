"""`touchstone calibrate` (`calibrate_run`): a labelled run → an ensemble card whose error rate is known, and the report of it."""

import sys
from pathlib import Path

import numpy as np

from ray_app import __version__
from ray_app.ensembles import EnsembleCard, Guarantee, LabelledPart, Population, Settings, Thresholds, population_of, properties_of
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.data import CalibrationData, LabelledRun, read_labelled
from ray_app.evaluation.calibrate.division import CHOOSE, Division, described, divided, generators_of, groups_of
from ray_app.evaluation.calibrate.files import (
    CalibrateConfig,
    card_path,
    named_from,
    reference_bytes,
    references_name,
    report_path,
    write_files,
)
from ray_app.evaluation.calibrate.fit_card import Assembled, fit_card, with_thresholds
from ray_app.evaluation.calibrate.report import MOST_GENERATORS, by_quality, generators_left_out, of_cascade, systems_before_and_after
from ray_app.evaluation.calibrate.thresholds import needed
from ray_app.reports.calibration_model import CALIBRATION_SCHEMA, CalibrationImages, CalibrationReport


def calibrate_run(config: CalibrateConfig) -> CalibrationReport:
    """Calibrate a labelled run, write CARD.yaml, CARD.reals.parquet and CARD.report.json; returns the report.

    Raises ConfigError: no run or labels of something else, too few reals, a class or generators lacking, groups that cross the user's
    own parts, detectors that cannot be calibrated.
    """
    path = card_path(config.out)
    reading = read_labelled(config.run, config.labels, key=config.key, split=config.split, detectors=config.detectors)
    labelled = reading.labelled
    _refuse_few(labelled, config)
    groups = groups_of(labelled, share_generators=config.share_generators)
    parts, moved = divided(labelled, groups, seed=config.seed, regroup=config.regroup)
    division = Division.of(labelled, groups, parts)
    _print_progress("fitting")
    members = tuple(named_from(path, member) for member in reading.members)
    assembled = with_thresholds(fit_card(division, members, config), division, config)
    references, sha256 = reference_bytes(assembled.reals)
    chosen = assembled.chosen
    guarantee = Guarantee(
        target_fpr=config.fpr, confidence=config.confidence, n_real=chosen.n_real, false_positives=chosen.false_positives,
        upper_bound=chosen.upper_bound, references=references_name(path), references_sha256=sha256,
    )  # fmt: skip
    notes = _notes(reading, division, config, moved)
    card = _card(path, reading, assembled, guarantee, _population(reading, assembled, division), notes)
    _print_progress("measuring")
    report = _report(reading, assembled, card, division, config).model_copy(update={"card": str(path), "notes": notes})
    report = report.model_copy(update={"findings": _findings(report)})
    write_files(path, card, references, report)
    return report.model_copy(update={"report": str(report_path(path))})


def _card(
    path: Path, reading: LabelledRun, assembled: Assembled, guarantee: Guarantee, population: Population, notes: list[str]
) -> EnsembleCard:
    """The whole card: what was fitted, what it promises, and of which images."""
    known = {
        "name": path.stem,
        "title": f"{' + '.join(reading.names)}, calibrated",
        "thresholds": assembled.card.thresholds.model_copy(update={"measured_on": population.what}),
        "guarantee": guarantee,
        "settings": _settings(reading),
        "population": population,
        "notes": " ".join(notes),
    }
    return EnsembleCard.model_validate(assembled.card.model_dump() | known)


def _report(
    reading: LabelledRun, assembled: Assembled, card: EnsembleCard, division: Division, config: CalibrateConfig
) -> CalibrationReport:
    labelled, choosing = reading.labelled, division.choosing
    names = sorted({name for name in generators_of(labelled) if name is not None})
    assert card.guarantee is not None
    assert card.population is not None
    return CalibrationReport(
        schema=CALIBRATION_SCHEMA,
        version=__version__,
        run=reading.url,
        labels=reading.labels,
        options=config.model_dump(mode="json", exclude={"run", "out", "labels"}),
        detectors=list(reading.names),
        rule=card.rule,
        images=CalibrationImages(used=len(labelled), labelled=reading.tally.joined, left_out=reading.tally.left_out),
        told=list(reading.told),
        parts=[LabelledPart(**part.model_dump()) for part in card.population.parts],  # anew, so that what they leave open is written too
        generators=names,
        prevalence=card.population.prevalence,
        thresholds=Thresholds(**card.thresholds.model_dump(exclude={"measured_on"})),
        guarantee=Guarantee(**card.guarantee.model_dump()),
        systems=systems_before_and_after(assembled.fitted, choosing, reading.before, reading.calibrations),
        cascade=of_cascade(assembled, division, config),
        generators_left_out=generators_left_out(division, reading.members, config, assembled),
        generators_not_shown=max(0, len(names) - MOST_GENERATORS),
        qualities=by_quality(assembled, choosing),
    )


def _population(reading: LabelledRun, assembled: Assembled, division: Division) -> Population:
    """The images that the card speaks for; spread as those that nothing was fitted on."""
    labelled, fitted = reading.labelled, assembled.fitted
    looks = fitted.looks(labelled)
    raw = {name: np.asarray(column, np.float64) for name, column in labelled.scores.items()}
    for name in fitted.names[fitted.card.first :]:
        raw[name] = np.where([look is None for look in looks or ()], np.nan, raw[name])
    properties = properties_of(score=fitted.scores(labelled), scores=raw, formats=labelled.format, width=labelled.width,
                               height=labelled.height, quality=labelled.quality)  # fmt: skip
    n_fake = int(labelled.fake.sum())
    what = f"{len(labelled) - n_fake:,} real and {n_fake:,} fake images of {reading.url}, labelled by {reading.labels}"
    names = sorted({name for name in generators_of(labelled) if name is not None})
    return population_of(what, labelled.fake, properties, parts=described(labelled, division.groups, division.parts),
                         prevalence=fitted.prevalence, generators=names, counted=division.parts == CHOOSE)  # fmt: skip


def _settings(reading: LabelledRun) -> Settings | None:
    """Under what the run made its scores; None where it is not recorded."""
    precision = reading.identity.get("precision")
    if precision is None:
        return None
    kept = {name: precision[name] for name in reading.names if name in precision}
    return Settings(precision=kept, resize=reading.identity.get("resize", "exact"), decoders=tuple(sorted(reading.tally.decoders)))


def _notes(reading: LabelledRun, division: Division, config: CalibrateConfig, moved: int) -> list[str]:
    """Notes for users of the card, in sentences."""
    reals = division.choosing.take(division.choosing_reals)
    independent = len(np.unique(groups_of(reals, share_generators=True)))
    found = [f"Fitted by touchstone calibrate {__version__} ({config.method}, seed {config.seed})."]
    if independent < len(reals):
        found.append(
            f"The bound takes reals for independent; the {len(reals):,} that the threshold was chosen on "
            f"are of {independent:,} sources or looks."
        )
    if config.share_generators:
        found.append("The parts share generators, so nothing is known of generators that were not seen.")
    if moved:
        found.append(f"{moved:,} images were moved to another part than the labels give, since their like were there.")
    if all(phash is None for phash in reading.labelled.phash):
        found.append("Near-duplicates are not known, since the run has no perceptual hashes (score --set perceptual_hash=true).")
    return found


def _findings(report: CalibrationReport) -> list[str]:
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
        found.append("No fake reaches the threshold: these detectors cannot tell fakes at so low a false-positive rate.")
    if cascade is not None and cascade.measured.share > cascade.share_allowed:
        found.append("More of the held-out images go on to all detectors than were to.")
    return found


def _refuse_few(labelled: CalibrationData, config: CalibrateConfig) -> None:
    """Raises ConfigError at once where even all reals together are too few."""
    n_real, few = int((~labelled.fake).sum()), needed(config.fpr, config.confidence)
    if n_real < few:
        raise ConfigError(
            f"there are {n_real:,} labelled reals; a {100 * config.fpr:g} % target at {100 * config.confidence:g} % needs {few:,} "
            "on which nothing else is fitted, and those are half of all",
            hint="label more real images, or take a larger --fpr",
        )


def _print_progress(message: str) -> None:
    print(f"calibrate  {message}", file=sys.stderr, flush=True)
