"""Calibrate a labelled run (`calibrate_run`): an ensemble card whose false-positive rate is bounded."""

import shlex
import sys

import numpy as np

from ray_app import __version__
from ray_app.ensembles import (
    CalibrationSettings,
    EnsembleCard,
    Guarantee,
    Population,
    population_of,
    properties_of,
)
from ray_app.ensembles.population import Properties
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate import data, files, thresholds
from ray_app.evaluation.calibrate.config import CalibrateConfig
from ray_app.evaluation.calibrate.division import (
    Division,
    described,
    divided,
    generators_of,
    groups_of,
)
from ray_app.evaluation.calibrate.fit_card import Assembled, fit_card, with_thresholds
from ray_app.evaluation.calibrate.thresholds import ChosenThreshold
from ray_app.reports.calibration import Calibration


def calibrate_run(config: CalibrateConfig) -> Calibration:
    """Calibrate a labelled run, and write the card and the labels of the held-out part.

    Raises:
        ConfigError: There is no run, labels are of other images, reals are too few, a class or
            generators are missing, a group is in several parts, or detectors cannot be calibrated.
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
    division = Division.of(labelled, groups, divided(labelled, groups, seed=config.seed))
    print("calibrate  fitting", file=sys.stderr, flush=True)
    members = tuple(files.named_from(path, member) for member in reading.members)
    assembled = with_thresholds(fit_card(division, members, config), division, config)
    card = _finish_card(path.stem, reading, assembled, division, config)
    files.write_files(path, card, reading.url, division.choosing)
    held_out = str(files.held_out_path(path))
    decided = f"{reading.url}-{path.stem}"
    commands = (
        ["touchstone", "runs", "decide", reading.url, "--ensemble", str(path), "--out", decided],
        ["touchstone", "evaluate", decided, "--labels", held_out, "--out", f"{path.stem}-figures"],
    )
    return Calibration(
        card=card,
        path=str(path),
        run=reading.url,
        labels=reading.labels,
        detectors=reading.names,
        used=len(labelled),
        labelled=reading.joined,
        left_out=reading.left_out,
        remarks=reading.remarks,
        miss=config.miss,
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
    """Return the card with its guarantee, and with the settings and images that it is valid for."""
    chosen, overall = assembled.chosen, assembled.overall
    population = _population(reading, assembled, division, _properties(reading, assembled))
    facts = {
        "name": name,
        "title": f"{' + '.join(reading.names)}, calibrated",
        "thresholds": assembled.card.thresholds.model_copy(
            update={"measured_on": f"the held-out part of {population.what}"}
        ),
        "guarantee": Guarantee(
            target_fpr=config.fpr,
            confidence=config.confidence,
            n_real=chosen.n_real,
            false_positives=chosen.false_positives,
            upper_bound=assembled.upper_bound,
            groups=overall.groups,
            effective=overall.effective,
            these_sources=config.share_sources,
        ),
        "settings": _settings(reading),
        "population": population,
        "notes": " ".join(_notes(reading, overall, config)),
    }
    return EnsembleCard.model_validate(assembled.card.model_dump() | facts)


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
    reading: data.LabelledRun, overall: ChosenThreshold, config: CalibrateConfig
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
    if all(phash is None for phash in reading.labelled.phash):
        found.append(
            "Near-duplicates are not known, since the labels have no perceptual hashes (column phash; touchstone data index --hash phash)."
        )
    return found


def _refuse_few(labelled: data.CalibrationData, config: CalibrateConfig) -> None:
    """Raises ConfigError at once where even all reals together are too few."""
    n_real, few = (
        int((~labelled.fake).sum()),
        thresholds.reals_needed(config.fpr, config.confidence),
    )
    if n_real < few:
        raise ConfigError(
            f"there are {n_real:,} labelled reals; a {100 * config.fpr:g} % target at {100 * config.confidence:g} % needs {few:,} "
            "on which nothing else is fitted, and those are half of all",
            hint=thresholds.hint_for_few_reals(n_real // 2, config.confidence),
        )
