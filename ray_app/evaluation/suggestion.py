"""`touchstone ensembles suggest` (`suggest_ensemble`): which detectors of a labelled run to combine, their ensemble card, and the report.

Greedy forward selection (`suggest`) under the mean of calibrated log-odds, each detector's by Platt scaling. Folds are of whole groups. A
step is taken where the best candidate's mean gain over the folds exceeds NEGLIGIBLE and its own standard error (the one-standard-error rule
of Breiman et al. 1984); a detector that ranks images as one that is chosen already does is a copy and is passed over.

The choice itself is cross-validated: in each fold's turn everything is chosen and fitted on the other folds and measured on it (nested
cross-validation: Varma and Simon 2006), so that the figures of a step are not those of the images it was chosen on.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from ray_app.config import Frozen, Section
from ray_app.detectors import DetectorCard
from ray_app.ensembles import EnsembleCard, EnsembleMember, load_ensemble_card
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate import files, thresholds
from ray_app.evaluation.calibrate.data import CalibrationData, LabelledRun, read_labelled
from ray_app.evaluation.calibrate.division import groups_of
from ray_app.evaluation.standing import measured_ms, working_session
from ray_app.evaluation.systems import readable_card
from ray_app.evaluation.unseen import overlap_of
from ray_app.metrics import calibration, operating_points
from ray_app.metrics.arrays import Bools, Floats, ScoreHistogram
from ray_app.metrics.intervals import auc_of
from ray_app.reports import format as wording
from ray_app.reports import text
from ray_app.runs import RunDirectory
from ray_app.storage import Store

Aim = Literal["auc", "tpr_at_fpr_1", "tpr_at_fpr_5"]
ONE_IN: Mapping[str, int] = {"tpr_at_fpr_1": 100, "tpr_at_fpr_5": 20}
NEGLIGIBLE = 0.002
ALIKE = 0.99  # rank correlation within both classes from which on two detectors say the same
FOLDS = 5
FEWEST_FOLDS = 3  # of which two are left in the turn of one
_FEWEST = 3  # names of sources or generators under which folds of whole ones cannot be
_LONGEST_NAME = 60
_HEAD = """# Written by `touchstone ensembles suggest` from {run}.
# {figure} is the mean over held-out folds of the choice made anew on the others; no threshold is chosen: `touchstone detectors calibrate`.
"""
Codes = NDArray[np.int64]


class SuggestConfig(Frozen):
    """`size`: detectors at most. `by`: what is to grow. `per_cost`: the card is of what gives the most per cost. `out`: the card's file."""

    run: str
    labels: str | None = None
    key: Literal["image_id", "sha256", "uri"] | None = None
    split: str | None = None
    detectors: tuple[str, ...] = ()
    size: int = Field(default=5, ge=1)
    by: Aim = "auc"
    per_cost: bool = False
    out: str | None = None
    seed: int = Field(default=0, ge=0)


class SuggestedStep(Section):
    """The ensemble of the detectors up to this one. `figure`: the mean over held-out folds, from `lowest` to `highest`; `gain`: what the
    detector added there, the mean of `gains` by fold; `chosen_in`: in how many folds' own choices it is by then; `cost`: of all so far.
    """

    detector: str = ""
    figure: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0
    gain: float = 0.0
    gains: tuple[float, ...] = ()
    chosen_in: int = 0
    cost: float = 0.0


class SuggestionReport(Section):
    """`best`: the most of figure `by`; `cheapest`: the most of it per cost, in `unit`. `copies`: (detector, whom it is a copy of)."""

    run: str = ""
    labels: str = ""
    by: str = "auc"
    unit: str = ""
    images: int = 0
    n_real: int = 0
    n_fake: int = 0
    candidates: tuple[str, ...] = ()
    folds: int = 0
    folds_are: str = ""
    best: tuple[SuggestedStep, ...] = ()
    cheapest: tuple[SuggestedStep, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()
    card: str = ""


@dataclass(frozen=True)
class DetectorCosts:
    """What each detector costs an image (d,), in `unit`. Those of one `backbone` (None: their own) cost together what the dearest of them
    does.
    """

    each: tuple[float, ...]
    backbones: tuple[Hashable | None, ...]
    unit: str = ""

    def of(self, chosen: Sequence[int]) -> float:
        """What some of them cost together."""
        by_backbone: dict[Hashable, float] = {}
        for at in chosen:
            key = self.backbones[at] if self.backbones[at] is not None else ("own", at)
            by_backbone[key] = max(by_backbone.get(key, 0.0), self.each[at])
        return sum(by_backbone.values())


@dataclass(frozen=True)
class LabelledScores:
    """Images (n,) in whole groups: `scores` (n, d), finite log-odds of d detectors, `fake` (n,), and `folds` (n,) 0 … k − 1."""

    scores: Floats
    fake: Bools
    folds: Codes

    def of_fold(self, fold: int) -> tuple["LabelledScores", Floats, Bools]:
        """The images of the other folds; and the scores and labels of its own."""
        seen = self.folds != fold
        others = LabelledScores(self.scores[seen], self.fake[seen], np.unique(self.folds[seen], return_inverse=True)[1])
        return others, self.scores[~seen], self.fake[~seen]


def suggest_ensemble(config: SuggestConfig) -> SuggestionReport:
    """What to combine, by figures on held-out sources and generators; writes the card where the config names one.

    Raises ConfigError as `read_labelled` does, and where there are too few images or groups for three folds.
    """
    path = files.card_path(config.out) if config.out else None
    read = read_labelled(config.run, config.labels, key=config.key, split=config.split, detectors=config.detectors)
    labelled = read.labelled
    folds, folds_are = _folds(labelled, config.seed)
    images = LabelledScores(labelled.raw, labelled.fake, folds)
    cards = [readable_card(member.detector) for member in read.members]
    costs = _costs(read, cards)
    try:
        best, copies = suggest(read.names, images, costs, size=config.size, by=config.by)
        cheapest, copies_of_cheapest = suggest(read.names, images, costs, size=config.size, by=config.by, per_cost=True)
    except ValueError as error:
        raise ConfigError(f"{read.labels}: {error}", hint="more labelled images or sources; --by auc needs the fewest") from error
    report = SuggestionReport(
        run=read.url, labels=read.labels, by=config.by, unit=costs.unit, images=len(labelled),
        n_real=int((~labelled.fake).sum()), n_fake=int(labelled.fake.sum()), candidates=read.names, folds=int(folds.max()) + 1,
        folds_are=folds_are, best=tuple(best), cheapest=tuple(cheapest),
        copies=tuple((copies_of_cheapest if config.per_cost else copies).items()),
        remarks=(*read.remarks, *_remarks(labelled, read.names, cards, costs.unit)), card=str(path or ""),
    )  # fmt: skip
    if path is not None:
        _write(path, read, images, report, cheapest if config.per_cost else best)
    return report


def suggestion_lines(report: SuggestionReport, width: int) -> list[str]:
    """The report in at most `width` columns but for words that are longer."""
    counts = f"{report.images:,} images ({report.n_real:,} real, {report.n_fake:,} fake)"
    lines = text.paragraph(f"{counts}, {wording.counted(len(report.candidates), 'detector')}. {report.folds_are}", width)
    lines += ["", f"The most {wording.named(report.by)}:", *_table(report, report.best, width)]
    if [one.detector for one in report.cheapest] == [one.detector for one in report.best]:
        lines += ["", "The most per cost: the same, in this order."]
    else:
        lines += ["", "The most per cost:", *_table(report, report.cheapest, width)]
    lines += [f"left out: {name} ranks images as {other} does" for name, other in report.copies]
    for remark in report.remarks:
        lines += text.paragraph(f"! {wording.visible(remark)}", width)
    return lines


def suggest(
    names: Sequence[str], images: LabelledScores, costs: DetectorCosts, *, size: int = 5, by: Aim = "auc", per_cost: bool = False
) -> tuple[list[SuggestedStep], dict[str, str]]:
    """Up to `size` of the detectors with these names (d,), in their order; and by name whom another one is a copy of.

    `per_cost`: each step takes the most gain per unit of cost. Raises ValueError for fewer than three folds, for a fold without one of the
    classes, and for one with fewer real images than `by` needs.
    """
    count = int(images.folds.max(initial=-1)) + 1
    if count < FEWEST_FOLDS:
        raise ValueError(f"three folds are the least that it takes, not {count}")
    paths, figures = [], []
    for fold in range(count):
        others, held_scores, held_fake = images.of_fold(fold)
        n_real, n_fake = int((~held_fake).sum()), int(held_fake.sum())
        if n_real < ONE_IN.get(by, 1) or not n_fake:
            raise ValueError(f"a fold has {n_real} real images and {n_fake} fakes: too few for {by}")
        own = _path(others, _copies(others), costs, size, by, per_cost=per_cost)
        held = calibrated(others.scores[:, own], others.fake, held_scores[:, own])
        reached = [_figure(held[:, : at + 1].mean(axis=1), held_fake, by) for at in range(len(own))]
        paths.append(own)
        figures.append([reached[min(at, len(own) - 1)] for at in range(size)])
    alike, table = _copies(images), np.array(figures)
    path = _path(images, alike, costs, size, by, per_cost=per_cost)
    steps = []
    for at, detector in enumerate(path):
        gains = table[:, at] - (table[:, at - 1] if at else _chance(by))
        steps.append(
            SuggestedStep(
                detector=names[detector],
                figure=float(table[:, at].mean()),
                lowest=float(table[:, at].min()),
                highest=float(table[:, at].max()),
                gain=float(gains.mean()),
                gains=tuple(gains.tolist()),
                chosen_in=sum(detector in own[: at + 1] for own in paths),
                cost=costs.of(path[: at + 1]),
            )
        )
    left = [at for at in range(len(names)) if at not in path and alike[at, path].any()]
    return steps, {names[at]: names[next(other for other in path if alike[at, other])] for at in left}


def folds_of(groups: Codes, fake: Bools, count: int = FOLDS, seed: int = 0) -> Codes:
    """(n,) the fold of each image: whole groups (n,), each class divided evenly; no more folds than groups of the class that has fewer."""
    from sklearn.model_selection import StratifiedGroupKFold

    count = min(count, *(len(np.unique(groups[fake == kind])) for kind in (False, True)))
    folds = np.zeros(len(groups), np.int64)
    if count > 1:
        dealt = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(groups, fake, groups)
        for number, (_, places) in enumerate(dealt):
            folds[places] = number
    return folds


def calibrated(scores: Floats, fake: Bools, others: Floats) -> Floats:
    """Log-odds (m, d) of `others` (m, d) by Platt scaling on scores (n, d); those of a detector whose scores do not rise are all even."""
    columns = np.zeros(others.shape)
    for at in range(scores.shape[1]):
        try:
            columns[:, at] = calibration.fit_platt(scores[:, at], fake)(others[:, at])
        except ValueError:
            continue
    return columns


def _path(images: LabelledScores, alike: Bools, costs: DetectorCosts, size: int, by: Aim, *, per_cost: bool) -> list[int]:
    """The places of the detectors in the order in which they are chosen."""
    scores, fake = images.scores, images.fake
    table = calibrated(scores, fake, scores)  # two numbers a detector, which rank nothing anew: what is chosen is judged on other images
    parts = [images.folds == fold for fold in np.unique(images.folds)]
    chosen: list[int] = []
    reached = np.full(len(parts), _chance(by))
    while len(chosen) < min(size, scores.shape[1]):
        found = {}
        for at in range(scores.shape[1]):
            if at not in chosen and not alike[at, chosen].any():
                mean = table[:, [*chosen, at]].mean(axis=1)
                found[at] = np.array([_figure(mean[part], fake[part], by) for part in parts])
        sound = [at for at, figures in found.items() if not chosen or _is_gain(figures - reached)]
        if not sound:
            break
        more = {at: max(costs.of([*chosen, at]) - costs.of(chosen), costs.each[at] / 100, 1e-12) if per_cost else 1.0 for at in sound}
        best = max(sound, key={at: float((found[at] - reached).mean()) / more[at] for at in sound}.__getitem__)
        chosen.append(best)
        reached = found[best]
    return chosen


def _is_gain(gains: Floats) -> bool:
    error = float(gains.std(ddof=1)) / np.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return bool(gains.mean() > max(NEGLIGIBLE, error))


def _figure(scores: Floats, fake: Bools, by: Aim) -> float:
    fakes, reals = ScoreHistogram.of(scores[fake]), ScoreHistogram.of(scores[~fake])
    if by == "auc":
        return auc_of(fakes, reals).value
    return operating_points.found_at_fpr(fakes, reals, ONE_IN[by]) / fakes.n


def _chance(by: Aim) -> float:
    """What scores that know nothing reach."""
    return 0.5 if by == "auc" else 1 / ONE_IN[by]


def _copies(images: LabelledScores) -> Bools:
    """(d, d) whether two detectors rank the images of both classes nearly alike."""
    from scipy.stats import rankdata

    with np.errstate(invalid="ignore"):  # scores that are all equal correlate with none
        classes = [np.corrcoef(rankdata(images.scores[images.fake == kind], axis=0), rowvar=False) for kind in (False, True)]
    alike: Bools = np.atleast_2d((classes[0] >= ALIKE) & (classes[1] >= ALIKE))
    np.fill_diagonal(alike, val=False)
    return alike


def _folds(labelled: CalibrationData, seed: int) -> tuple[Codes, str]:
    """The folds, and what they are, in a sentence. A class without groups is divided image by image, which the sentence names."""
    sources = {one for one, fake in zip(labelled.source, labelled.fake.tolist(), strict=True) if not fake}
    generators = {one for one, fake in zip(labelled.generator, labelled.fake.tolist(), strict=True) if fake}
    whole = {"sources": len(sources) >= _FEWEST and None not in sources, "generators": len(generators) >= _FEWEST}
    groups = groups_of(labelled, share_generators=not whole["generators"], share_sources=not whole["sources"])
    folds = folds_of(groups, labelled.fake, seed=seed)
    parts = []
    for kind, names, word in (("sources", sources, "real images"), ("generators", generators, "fakes")):
        held = f"whole {kind} ({len(names - {None}):,})" if whole[kind] else f"single images, since labels name too few {kind}"
        parts.append(f"folds of {word} are of {held}")
    rest = "" if all(whole.values()) else " Images of one name on both sides flatter every figure."
    return folds, f"{int(folds.max()) + 1} folds: {'; '.join(parts)}.{rest}"


def _costs(read: LabelledRun, cards: Sequence[DetectorCard | None]) -> DetectorCosts:
    """Milliseconds where the run measured each detector by itself, else the cards' gmac, else each counts one."""
    run = RunDirectory.open(read.url)
    measured = measured_ms(run.describe(), working_session(run))
    backbones = tuple(card.backbone.name if card is not None and card.backbone is not None else None for card in cards)
    if all(name in measured for name in read.names):
        return DetectorCosts(tuple(measured[name] for name in read.names), backbones, "ms an image")
    known = tuple(card.size.gmac for card in cards if card is not None and card.size is not None and card.size.gmac is not None)
    if len(known) == len(cards):
        return DetectorCosts(known, backbones, "gmac an image")
    return DetectorCosts((1.0,) * len(cards), (None,) * len(cards), "detectors")


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
            what = f"{name} was trained on the sources or generators of {wording.counted(seen, 'image')} here, which flatters it"
            found.append(f"{what}; --split leaves them out where labels have one.")
    if unit == "detectors":
        found.append("Neither the run nor every card says what a detector costs, so each counts as much as any other.")
    if unit == "gmac an image":
        found.append("The run did not measure its detectors one by one; costs are the cards’ multiply-adds, of a shared backbone once.")
    return found


def _write(path: Path, read: LabelledRun, images: LabelledScores, report: SuggestionReport, steps: Sequence[SuggestedStep]) -> None:
    """The card: members with their calibrations on all images, the mean of their log-odds, and its calibration on held-out ones."""
    names, fake = [step.detector for step in steps], images.fake
    chosen, mean = [read.names.index(name) for name in names], np.zeros(len(fake))
    for fold in range(report.folds):
        others, held, _ = images.of_fold(fold)
        mean[images.folds == fold] = calibrated(others.scores[:, chosen], others.fake, held[:, chosen]).mean(axis=1)
    fitted = [thresholds.fit(read.labelled.scores[name], fake, what=name) for name in names]
    members = [EnsembleMember(detector=read.members[at].detector, calibration=one) for at, one in zip(chosen, fitted, strict=True)]
    figure = f"{report.by} {steps[-1].figure:.4f}"
    card = EnsembleCard(
        name=path.stem,
        title=f"{wording.counted(len(members), 'detector')} chosen from {len(read.names)}",
        members=tuple(files.named_from(path, member) for member in members),
        rule="mean-logit",
        calibration=thresholds.fit(mean, fake, what="the ensemble"),
        notes=f"{figure} over {report.folds} held-out folds ({steps[-1].lowest:.4f} to {steps[-1].highest:.4f}), on "
        f"{report.images:,} labelled images. {report.folds_are}",
    )
    Store.open(str(path.parent)).write(path.name, (_HEAD.format(run=read.url, figure=figure) + files.card_text(card)).encode())
    load_ensemble_card(path)


def _table(report: SuggestionReport, steps: Sequence[SuggestedStep], width: int) -> list[str]:
    heads = ["", "with", wording.named(report.by), "over folds", "gain", "chosen in", report.unit]
    rows = [
        [str(place), wording.shortened(one.detector, _LONGEST_NAME), wording.written(report.by, one.figure),
         f"{wording.written(report.by, one.lowest)} to {wording.written(report.by, one.highest)}", f"{one.gain:+.4f}".replace("-", "−"),
         f"{one.chosen_in} of {report.folds}", f"{one.cost:,.3g}"]
        for place, one in enumerate(steps, 1)
    ]  # fmt: skip
    return text.table(heads, rows, width, right={0, 6}, wrap={1})
