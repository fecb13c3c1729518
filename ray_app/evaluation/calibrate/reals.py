"""Choose thresholds by real images alone (`calibrate_on_reals`), for people who have no fakes.

A threshold that bounds the false-positive rate needs real images only. How many fakes it finds, and
calibrations, need fakes: the detectors and the ensemble keep theirs.
"""

import csv
import io
from pathlib import Path

import numpy as np

from ray_app import __version__
from ray_app.ensembles import EnsembleCard, Guarantee, Thresholds
from ray_app.evaluation.calibrate import data, files
from ray_app.evaluation.calibrate.config import CalibrateConfig
from ray_app.evaluation.calibrate.division import find_copies, group_images
from ray_app.evaluation.calibrate.fit_card import RATES, CalibratedCard, LabelledScores
from ray_app.evaluation.calibrate.run import describe_calibration, read_settings
from ray_app.evaluation.calibrate.thresholds import ChosenThreshold
from ray_app.reports.calibration import Calibration
from ray_app.reports.format import percent
from ray_app.runs.scored_run import load_run
from ray_app.scoring import ScoreConfig
from ray_app.scoring.run import score_archive
from ray_app.storage import Store
from ray_app.storage.urls import canonicalize

ENOUGH_REALS, ENOUGH_SOURCES = 1000, 10
"""With fewer images or sources, the command states what the bound is worth."""
_HEAD = """# Written by `touchstone detectors calibrate --reals` from {run}. {labels} names the images.
# Do not edit the numbers: the bound holds for exactly these.
"""


def calibrate_on_reals(config: CalibrateConfig) -> Calibration:
    """Score a folder of real images, choose thresholds on it, and write an ensemble card.

    The card is that of `config.ensemble` or of `config.detectors` with other thresholds. Each
    subfolder of the folder is a source: a camera, an agency, or a site. Images of one source count
    as fewer independent ones. Copies of an image count once. The run is kept next to the card, and
    is resumed if the command is repeated.

    Args:
        config: The settings, with `reals`.

    Returns:
        The card, and facts for a report.

    Raises:
        ConfigError: The folder has no image that can be scored, or its images are of another run.
    """
    assert config.reals is not None
    path = files.make_card_path(config.out)
    run, labels = str(path.with_suffix(".reals")), path.with_suffix(".reals.csv")
    score_archive(
        ScoreConfig(
            source=(config.reals,),
            out=run,
            ensemble=config.ensemble or "default",
            detectors=config.detectors,
        )
    )
    _write_labels(labels, run, config.reals)
    reading = data.read_labelled(run, str(labels))
    labelled = reading.labelled
    before = reading.before.model_copy(
        update={
            "members": tuple(
                files.name_from_card(path, member).model_copy(
                    update={"calibration": reading.calibrations[name]}
                )
                for name, member in zip(reading.names, reading.before.members, strict=True)
            )
        }
    )
    scores = CalibratedCard(before, reading.names, prevalence=0.5).scores(labelled)
    groups, is_new = group_images(labelled), ~find_copies(labelled)
    reals = LabelledScores(
        scores[is_new], np.empty(0), scores[is_new], groups[is_new], config.confidence
    )
    card = _set_thresholds(path.stem, before, reals, reading, config)
    comment = _HEAD.format(run=run, labels=labels.name)
    files.write_ensemble_card(path, card, comment)
    following = ["touchstone", "score", "ARCHIVE", "--ensemble", str(path), "--out", "RUN"]
    return describe_calibration(card, path, reading, [following])


def _set_thresholds(
    name: str,
    before: EnsembleCard,
    reals: LabelledScores,
    reading: data.LabelledRun,
    config: CalibrateConfig,
) -> EnsembleCard:
    """Return a card with the lowest thresholds that keep the false-positive rates."""
    lowest = before.thresholds.real_below
    points = {point.rate: point for point in reals.measure({*RATES, config.fpr}, lowest)}
    chosen = points[config.fpr]
    _, evaluated = reals.evaluate(chosen.threshold, reals.size(config.fpr))
    thresholds = Thresholds(
        real_below=min(lowest, chosen.threshold),
        fake_above=chosen.threshold,
        target_fpr=config.fpr,
        false_positive_rate=chosen.false_positive_rate,
        upper_bound=chosen.upper_bound,
        abstain_real=chosen.abstain_real,
        n_real=evaluated.n_real,
        measured_on=f"real images of {config.reals}",
    )
    facts = {
        "name": name,
        "title": f"{before.title}, with a threshold from real images",
        "thresholds": thresholds,
        "guarantee": Guarantee(
            target_fpr=config.fpr,
            confidence=config.confidence,
            n_real=evaluated.n_real,
            false_positives=evaluated.false_positives,
            upper_bound=chosen.upper_bound,
            groups=evaluated.groups,
            effective=evaluated.effective,
            these_sources=False,
        ),
        "operating_points": tuple(points.values()),
        "settings": read_settings(reading),
        "population": None,
        "notes": _describe_worth(evaluated, chosen.upper_bound, config.confidence),
    }
    return EnsembleCard.model_validate(before.model_dump() | facts)


def _describe_worth(evaluated: ChosenThreshold, bound: float, confidence: float) -> str:
    """Return sentences on what the bound is worth."""
    sentences = [
        f"Thresholds chosen by touchstone detectors calibrate --reals {__version__}.",
        "No fakes were given, so it is not known how many fakes the thresholds find. The verdict real only means that nothing was found.",
    ]
    if evaluated.n_real < ENOUGH_REALS or evaluated.groups < ENOUGH_SOURCES:
        sentences += [
            f"{evaluated.n_real:,} real images of {evaluated.groups:,} sources or looks are worth {evaluated.effective:,.0f} independent images.",
            f"At most {percent(bound, 3)} of further images like these reach the threshold ({percent(confidence, 3)} confidence).",
            f"Nothing is known about other sources. Give at least {ENOUGH_REALS:,} images of {ENOUGH_SOURCES} sources, each in its own folder.",
        ]
    return " ".join(sentences)


def name_source(uri: str, folder: str) -> str:
    """Return the name of the subfolder of a folder that an image is in, or "" for no subfolder."""
    root = f"{canonicalize(folder).rstrip('/')}/"
    subfolder, slash, _ = uri.removeprefix(root).partition("/")
    return subfolder if slash else ""


def _write_labels(path: Path, run: str, folder: str) -> None:
    """Write the labels of a run of real images, with the subfolder of each as its source."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image_id", "label", "source"])
    for rows in load_run(run).tables(["image_id", "uri"]):
        for image_id, uri in zip(
            rows["image_id"].to_pylist(), rows["uri"].to_pylist(), strict=True
        ):
            table.writerow([image_id, "real", name_source(uri, folder)])
    Store.open(str(path.parent)).write(path.name, text.getvalue().encode())
