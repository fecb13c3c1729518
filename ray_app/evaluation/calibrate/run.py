"""Calibrate an ensemble on a labelled run, and bound its error rate (`calibrate_run`)."""

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ray_app import __version__
from ray_app.ensembles import (
    CalibrationSettings,
    EnsembleCard,
    Guarantee,
    Population,
    compute_properties,
    measure_population,
)
from ray_app.ensembles.population import Properties
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate import data, files, thresholds
from ray_app.evaluation.calibrate.config import CalibrateConfig
from ray_app.evaluation.calibrate.division import (
    Division,
    assign_parts,
    describe_parts,
    group_images,
    list_fake_generators,
)
from ray_app.evaluation.calibrate.fit_card import Assembled, add_thresholds, fit_card
from ray_app.evaluation.calibrate.thresholds import ChosenThreshold
from ray_app.reports.calibration import Calibration


def calibrate_run(config: CalibrateConfig) -> Calibration:
    """Calibrate an ensemble on a labelled run, and write an ensemble card and the held-out labels.

    The card has the fitted rule that combines the detectors, and thresholds with a bound on the
    false-positive rate. The held-out labels are those of the images on which the thresholds were
    chosen.

    Args:
        config: The settings.

    Returns:
        The card and facts on the calibration, for a report.

    Raises:
        ConfigError: The run does not exist, labels are of other images, there are too few reals, a
            class or generators are missing, a group is in several parts, or detectors cannot be
            calibrated.
    """
    assert config.run is not None
    path = files.make_card_path(config.out)
    reading = data.read_labelled(
        config.run, config.labels, key=config.key, split=config.split, detectors=config.detectors
    )
    labelled = reading.labelled
    _refuse_few(labelled, config)
    groups = group_images(
        labelled, share_generators=config.share_generators, share_sources=config.share_sources
    )
    division = Division.from_parts(
        labelled, groups, assign_parts(labelled, groups, seed=config.seed)
    )
    print("calibrate  fitting", file=sys.stderr, flush=True)
    members = tuple(files.name_from_card(path, member) for member in reading.members)
    assembled = add_thresholds(fit_card(division, members, config), division, config)
    card = _finish_card(path.stem, reading, assembled, division, config)
    files.write_files(path, card, reading.url, division.choosing)
    held_out = str(files.held_out_path(path))
    decided_url = f"{reading.url}-{path.stem}"
    commands = (
        [
            "touchstone",
            "runs",
            "decide",
            reading.url,
            "--ensemble",
            str(path),
            "--out",
            decided_url,
        ],
        [
            "touchstone",
            "evaluate",
            decided_url,
            "--labels",
            held_out,
            "--out",
            f"{path.stem}-figures",
        ],
    )
    return describe_calibration(card, path, reading, commands, miss=config.miss, held_out=held_out)


def describe_calibration(
    card: EnsembleCard,
    path: Path,
    reading: data.LabelledRun,
    commands: Iterable[Sequence[str]],
    *,
    miss: float | None = None,
    held_out: str | None = None,
) -> Calibration:
    """Return the result of a calibration for a report, with the commands that come next."""
    return Calibration(
        card=card,
        path=str(path),
        run=reading.url,
        labels=reading.labels,
        detectors=reading.names,
        used=len(reading.labelled),
        labelled=reading.joined,
        left_out=reading.left_out,
        remarks=reading.remarks,
        miss=miss,
        held_out=held_out,
        commands=tuple(map(shlex.join, commands)),
    )


def _finish_card(
    name: str,
    reading: data.LabelledRun,
    assembled: Assembled,
    division: Division,
    config: CalibrateConfig,
) -> EnsembleCard:
    """Return the card with its guarantee, settings, and population.

    Args:
        name: Name of the card.
        reading: The labelled run.
        assembled: The fitted card with thresholds.
        division: The images in parts.
        config: The settings.
    """
    held_out, overall = assembled.chosen, assembled.overall
    population = _build_population(
        reading, assembled, division, _build_properties(reading, assembled)
    )
    facts = {
        "name": name,
        "title": f"{' + '.join(reading.names)}, calibrated",
        "thresholds": assembled.card.thresholds.model_copy(
            update={"measured_on": f"the held-out part of {population.what}"}
        ),
        "guarantee": Guarantee(
            target_fpr=config.fpr,
            confidence=config.confidence,
            n_real=held_out.n_real,
            false_positives=held_out.false_positives,
            upper_bound=assembled.upper_bound,
            groups=overall.groups,
            effective=overall.effective,
            these_sources=config.share_sources,
        ),
        "settings": read_settings(reading),
        "population": population,
        "notes": " ".join(_build_notes(reading, overall, config)),
    }
    return EnsembleCard.model_validate(assembled.card.model_dump() | facts)


def _build_properties(reading: data.LabelledRun, assembled: Assembled) -> Properties:
    """Return the properties of the labelled images that runs are compared by."""
    labelled, fitted = reading.labelled, assembled.fitted
    reasons = fitted.second_stage_reasons(labelled)
    raw = {name: np.asarray(column, np.float64) for name, column in labelled.scores.items()}
    for name in fitted.names[fitted.card.first :]:
        raw[name] = np.where([reason is None for reason in reasons or ()], np.nan, raw[name])
    return compute_properties(score=fitted.scores(labelled), scores=raw, formats=labelled.format, width=labelled.width,
                         height=labelled.height, quality=labelled.quality)  # fmt: skip


def _build_population(
    reading: data.LabelledRun, assembled: Assembled, division: Division, properties: Properties
) -> Population:
    """Return the images that the card is valid for.

    They are all labelled images, because a part has only some of the sources and generators.
    """
    labelled, fitted = reading.labelled, assembled.fitted
    n_fake = int(labelled.fake.sum())
    description = f"{len(labelled) - n_fake:,} real and {n_fake:,} fake images of {reading.url}, labelled by {reading.labels}"
    names = sorted({name for name in list_fake_generators(labelled) if name is not None})
    return measure_population(description, labelled.fake, properties, parts=describe_parts(labelled, division.groups, division.parts),
                         prevalence=fitted.prevalence, generators=names)  # fmt: skip


def read_settings(reading: data.LabelledRun) -> CalibrationSettings | None:
    """Return the settings under which the run made its scores; None if not recorded."""
    precision = reading.identity.get("precision")
    if precision is None:
        return None
    selected = {name: precision[name] for name in reading.names if name in precision}
    return CalibrationSettings(
        precision=selected,
        resize=reading.identity.get("resize", "exact"),
        decoders=tuple(sorted(reading.decoders)),
    )


def _build_notes(
    reading: data.LabelledRun, overall: ChosenThreshold, config: CalibrateConfig
) -> list[str]:
    """Return notes for users of the card, as sentences."""
    notes = [f"Fitted by touchstone detectors calibrate {__version__} (seed {config.seed})."]
    if overall.groups < overall.n_real:
        notes.append(
            f"The {overall.n_real:,} labelled reals are of {overall.groups:,} sources or groups of similar images, and worth "
            f"{overall.effective:,.0f} independent ones, if sources differ as draws from a normal distribution do."
        )
    elif not config.share_sources and all(source is None for source in reading.labelled.source):
        notes.append(
            "Real images are treated as independent of each other, because the labels name no sources."
        )
    if config.share_sources:
        notes.append(
            "The parts share sources, so the guarantee is for archives of these sources in these proportions."
        )
    if config.share_generators:
        notes.append("The parts share generators, so nothing is known about unseen generators.")
    if all(phash is None for phash in reading.labelled.phash):
        notes.append(
            "Near-duplicates are not known, since the labels have no perceptual hashes (column phash; touchstone data index --hash phash)."
        )
    return notes


def _refuse_few(labelled: data.CalibrationData, config: CalibrateConfig) -> None:
    """Check that there are enough reals before anything is fitted.

    Raises:
        ConfigError: Even all reals together are too few.
    """
    n_real, needed = (
        int((~labelled.fake).sum()),
        thresholds.reals_needed(config.fpr, config.confidence),
    )
    if n_real < needed:
        raise ConfigError(
            f"there are {n_real:,} images labelled real; an FPR of {100 * config.fpr:g} % at {100 * config.confidence:g} % confidence needs "
            f"{needed:,} for the choice of thresholds alone, which gets half of the real images",
            hint=thresholds.hint_for_few_reals(n_real // 2, config.confidence),
        )
