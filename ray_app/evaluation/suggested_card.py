"""`touchstone ensembles suggest` (`suggest_ensemble`): a labelled run → which of its detectors to combine, and their ensemble card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from ray_app.config import Frozen
from ray_app.detectors import DetectorCard, load_card
from ray_app.ensembles import EnsembleCard, load_ensemble_card
from ray_app.ensembles.card import EnsembleMember
from ray_app.errors import ConfigError, TouchstoneError
from ray_app.evaluation import suggestion
from ray_app.evaluation.calibrate import files, thresholds
from ray_app.evaluation.calibrate.data import CalibrationData, LabelledRun, read_labelled
from ray_app.evaluation.calibrate.division import groups_of
from ray_app.evaluation.standing import measured_ms, working_session
from ray_app.evaluation.unseen import overlap_of
from ray_app.metrics.arrays import Floats
from ray_app.reports.format import counted
from ray_app.reports.suggestion import StepFacts, SuggestionReport
from ray_app.runs import RunDirectory

_FEWEST = 3  # names of sources or generators under which folds of whole ones cannot be
UNITS = {"ms": "ms an image", "gmac": "gmac an image", "none": "detectors"}
_HEAD = """# Written by `touchstone ensembles suggest` from {run}.
# {figure} is the mean over held-out folds of the choice made anew on the others; no threshold is chosen: `touchstone detectors calibrate`.
"""


class SuggestConfig(Frozen):
    """`size`: detectors at most. `by`: what is to grow. `per_cost`: the card is of what gives the most per cost. `out`: the card's file."""

    run: str
    labels: str | None = None
    key: Literal["image_id", "sha256", "uri"] | None = None
    split: str | None = None
    detectors: tuple[str, ...] = ()
    size: int = Field(default=5, ge=1)
    by: suggestion.Aim = "auc"
    per_cost: bool = False
    out: str | None = None
    seed: int = Field(default=0, ge=0)


def suggest_ensemble(config: SuggestConfig) -> SuggestionReport:
    """What to combine, by figures on held-out sources and generators; writes the card where the config names one.

    Raises ConfigError as `read_labelled` does, and where there are too few images or groups for three folds.
    """
    path = files.card_path(config.out) if config.out else None
    read = read_labelled(config.run, config.labels, key=config.key, split=config.split, detectors=config.detectors)
    labelled, names = read.labelled, read.names
    folds, folds_are = _folds(labelled, config.seed)
    cards = [_card(member.detector) for member in read.members]
    costs, unit = _costs(read, cards)
    try:
        found = {per_cost: suggestion.suggest(labelled.raw, labelled.fake, folds, costs, size=config.size, by=config.by, per_cost=per_cost)
                 for per_cost in (False, True)}  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"{read.labels}: {error}", hint="more labelled images or sources; --by auc needs the fewest") from error
    taken = found[config.per_cost]
    report = SuggestionReport(
        run=read.url, labels=read.labels, by=config.by, unit=UNITS[unit], images=len(labelled),
        n_real=int((~labelled.fake).sum()), n_fake=int(labelled.fake.sum()), candidates=names, folds=taken.folds, folds_are=folds_are,
        best=_steps(found[False], names), cheapest=_steps(found[True], names),
        copies=tuple((names[one], names[other]) for one, other in taken.copies.items()),
        remarks=(*read.told, *_remarks(labelled, names, cards, unit)), card=str(path or ""),
    )  # fmt: skip
    if path is not None:
        _write(path, read, taken, report, folds)
    return report


def _folds(labelled: CalibrationData, seed: int) -> tuple[suggestion.Codes, str]:
    """The folds, and what they are, in a sentence. A class without groups is divided image by image, and it is said."""
    sources = {one for one, fake in zip(labelled.source, labelled.fake.tolist(), strict=True) if not fake}
    generators = {one for one, fake in zip(labelled.generator, labelled.fake.tolist(), strict=True) if fake}
    whole = {"sources": len(sources) >= _FEWEST and None not in sources, "generators": len(generators) >= _FEWEST}
    groups = groups_of(labelled, share_generators=not whole["generators"], share_sources=not whole["sources"])
    folds = suggestion.folds_of(groups, labelled.fake, seed=seed)
    count = int(folds.max()) + 1
    said = []
    for kind, names, word in (("sources", sources, "real images"), ("generators", generators, "fakes")):
        held = f"whole {kind} ({len(names - {None}):,})" if whole[kind] else f"single images, since labels name too few {kind}"
        said.append(f"folds of {word} are of {held}")
    rest = "" if all(whole.values()) else " Images of one name on both sides flatter every figure."
    return folds, f"{count} folds: {'; '.join(said)}.{rest}"


def _card(name: str) -> DetectorCard | None:
    try:
        return load_card(name)
    except TouchstoneError:
        return None


def _costs(read: LabelledRun, cards: Sequence[DetectorCard | None]) -> tuple[suggestion.DetectorCosts, str]:
    """Milliseconds where the run measured each detector by itself, else the cards' gmac, else each counts one."""
    run = RunDirectory.open(read.url)
    measured = measured_ms(run.describe(), working_session(run))
    backbones = tuple(card.backbone.name if card is not None and card.backbone is not None else None for card in cards)
    if all(name in measured for name in read.names):
        return suggestion.DetectorCosts(tuple(measured[name] for name in read.names), backbones), "ms"
    sizes = [card.size.gmac if card is not None and card.size is not None else None for card in cards]
    known = tuple(size for size in sizes if size is not None)
    if len(known) == len(sizes):
        return suggestion.DetectorCosts(known, backbones), "gmac"
    return suggestion.DetectorCosts((1.0,) * len(sizes), (None,) * len(sizes)), "none"


def _steps(found: suggestion.Suggestion, names: Sequence[str]) -> tuple[StepFacts, ...]:
    facts = ("figure", "lowest", "highest", "gain", "gains", "chosen_in", "cost")
    return tuple(StepFacts(detector=names[one.detector], **{name: getattr(one, name) for name in facts}) for one in found.steps)


def _remarks(labelled: CalibrationData, names: Sequence[str], cards: Sequence[DetectorCard | None], unit: str) -> list[str]:
    """What flatters a detector here, and what no cost is known of."""
    rows = pa.table({
        "generator": pa.array([one or "unknown" for one in labelled.generator], pa.string()),
        "source": pa.array(list(labelled.source), pa.string()),
        "kind": pa.array(np.where(labelled.fake, "whole", "real").tolist(), pa.string()),
    })  # fmt: skip
    found = []
    for name, card in zip(names, cards, strict=True):
        if card is not None and (seen := int(overlap_of([card], rows).seen.sum())):
            what = f"{name} was trained on the sources or generators of {counted(seen, 'image')} here, which flatters it"
            found.append(f"{what}; --split leaves them out where labels have one.")
    if unit == "none":
        found.append("Neither the run nor every card says what a detector costs, so each counts as much as any other.")
    if unit == "gmac":
        found.append("The run did not measure its detectors one by one; costs are the cards’ multiply-adds, of a shared backbone once.")
    return found


def _write(path: Path, read: LabelledRun, taken: suggestion.Suggestion, report: SuggestionReport, folds: suggestion.Codes) -> None:
    """The card: members with their calibrations on all images, the mean of their log-odds, and its calibration on held-out ones."""
    labelled, chosen = read.labelled, taken.chosen
    names = [read.names[at] for at in chosen]
    members = tuple(
        files.named_from(path, EnsembleMember(
            detector=read.members[at].detector, calibration=thresholds.fit(labelled.scores[name], labelled.fake, what=name)))
        for at, name in zip(chosen, names, strict=True)
    )  # fmt: skip
    mean = _held_out(labelled.raw[:, chosen], labelled, folds)
    figure = (report.cheapest if taken.chosen == [read.names.index(one.detector) for one in report.cheapest] else report.best)[-1]
    card = EnsembleCard(
        name=path.stem,
        title=f"{counted(len(members), 'detector')} chosen from {len(read.names)}",
        members=members,
        rule="mean-logit",
        calibration=thresholds.fit(mean, labelled.fake, what="the ensemble"),
        notes=f"{report.by} {figure.figure:.4f} over {report.folds} held-out folds ({figure.lowest:.4f} to {figure.highest:.4f}), on "
        f"{report.images:,} labelled images. {report.folds_are}",
    )
    try:
        path.write_text(_HEAD.format(run=read.url, figure=f"{report.by} {figure.figure:.4f}") + files.card_text(card), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="name a file in a folder that can be written") from None
    load_ensemble_card(path)


def _held_out(raw: Floats, labelled: CalibrationData, folds: suggestion.Codes) -> Floats:
    """The mean of log-odds (n,), each image's detectors calibrated on the other folds."""
    mean = np.zeros(len(raw))
    for fold in np.unique(folds):
        there: Any = folds == fold
        mean[there] = suggestion.calibrated(raw[~there], labelled.fake[~there], raw[there]).mean(axis=1)
    return mean
