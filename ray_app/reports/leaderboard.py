"""Many evaluations (`metrics.json`) → one HTML page of systems side by side (`render_leaderboard`), and the same in lines
(`leaderboard_lines`).

Systems stand in one list only where they were measured on the same data by the same rules: figures of different data do not rank.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from ray_app.reports import bars, text
from ray_app.reports import format as wording
from ray_app.reports.evaluation.model import EvaluationDocument
from ray_app.reports.evaluation.system_model import NOT_MEASURED, FigureFacts, GeneratorFacts, SystemFacts, ViewFacts
from ray_app.reports.html import render

COLUMNS = ("auc", "balanced_accuracy", "tpr_at_fpr_1", "ece")
_MANY = 0.01  # share of images without a score from which on a warning is given
_LONGEST_NAME = 60


class Weakness(NamedTuple):
    """Where a system is worst: at what, the figure there, and among how many."""

    name: str
    key: str
    figure: FigureFacts
    among: int


@dataclass(frozen=True)
class LeaderboardEntry:
    """One system of one evaluation. `url`: where the evaluation lies. `trained_on`: how many of the fakes' generators it saw."""

    system: SystemFacts
    url: str
    worst_generator: Weakness
    worst_view: Weakness
    trained_on: int
    not_known: int
    generators: int

    @property
    def figures(self) -> list[tuple[str, FigureFacts]]:
        """Those of COLUMNS; no calibration error where nothing claims to be a chance."""
        uncalibrated = FigureFacts(why="not calibrated")
        found = {key: self.system.figure(key) for key in COLUMNS}
        return list((found if self.system.calibrated else found | {"ece": uncalibrated}).items())

    def bar(self, start: float) -> Markup:
        """The AUC with its interval, on a scale from `start` to 1."""
        auc = self.system.figure("auc")
        return bars.interval_meter(auc.number or 0.0, auc.ends, start)

    @property
    def seen(self) -> str:
        """What is known of its training, in words."""
        if not self.generators:
            return ""
        if self.trained_on:
            return f"trained on {self.trained_on} of {wording.counted(self.generators, 'generator')}"
        if self.not_known:
            of = "any of them" if self.not_known == self.generators else f"{self.not_known} of {self.generators}"
            return f"not known whether trained on {of}"
        return "trained on none of them"

    @property
    def unscored(self) -> str:
        """How many images it gave no score, where that is more than a few."""
        missing = self.system.unscored
        return f"{missing:,} unscored" if missing > _MANY * (self.system.n + missing) else ""


@dataclass(frozen=True)
class Leaderboard:
    """One list. `ranked`: by the lower end of the AUC; `others`: without an AUC, by that of balanced accuracy. `warnings`: of the data;
    `intervals`: what they are of.
    """

    title: str
    rules: str
    n_real: int
    n_fake: int
    generators: int
    ranked: tuple[LeaderboardEntry, ...]
    others: tuple[LeaderboardEntry, ...]
    warnings: tuple[str, ...]
    intervals: str = ""

    @property
    def bar_start(self) -> float:
        """Where the scale of its AUCs begins."""
        found = [one.system.figure("auc") for one in (*self.ranked, *self.others)]
        return bars.axis_start(one.ends[0] if one.ends else one.number for one in found if one.number is not None)


def boards_of(evaluations: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Leaderboard]:
    """The lists of some evaluations, each with where it lies; those of the most images first.

    Raises pydantic's ValidationError for a document of another shape.
    """
    groups: dict[str, list[tuple[str, EvaluationDocument]]] = {}
    for url, document in evaluations:
        facts = EvaluationDocument.model_validate(document)
        groups.setdefault(_same(facts), []).append((url, facts))
    boards = [_board(group) for group in groups.values()]
    return sorted(boards, key=lambda one: -(one.n_real + one.n_fake))


def render_leaderboard(evaluations: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """One self-contained page that loads nothing and runs nothing. Every text in the documents is taken for hostile."""
    boards = boards_of(evaluations)
    return render("leaderboard.html", boards=boards, said=wording, columns=COLUMNS, headline=_headline(boards), count=len(evaluations))


def leaderboard_lines(evaluations: Sequence[tuple[str, Mapping[str, Any]]], width: int) -> list[str]:
    """The same for the terminal, in at most `width` columns but for words that are longer."""
    lines: list[str] = []
    for board in boards_of(evaluations):
        counts = f"{board.n_real:,} real, {board.n_fake:,} fake of {wording.counted(board.generators, 'generator')}"
        lines += ["", *text.paragraph(wording.visible(f"{board.title}: {counts}, {board.rules}"), width)]
        lines += text.paragraph(board.intervals, width) if board.intervals else []
        heads = ["", "system", "AUC", "balanced", "at 1 % FPR", "worst generator"]
        rows = [[str(place), *_cells(entry)] for place, entry in enumerate(board.ranked, 1)]
        rows += [[wording.NONE, *_cells(entry)] for entry in board.others]
        lines += text.table(heads, rows, width, right={0}, wrap={1, 5})
        for warning in board.warnings:
            lines += text.paragraph(f"! {wording.visible(warning)}", width)
    return lines[1:]


def _cells(entry: LeaderboardEntry) -> list[str]:
    worst = entry.worst_generator
    system = wording.shortened(entry.system.called, _LONGEST_NAME) + (" *" if entry.trained_on else "")
    shown = [wording.in_words(key, entry.system.figure(key)) for key in COLUMNS[:3]]
    named = f"{wording.shortened(worst.name, _LONGEST_NAME)} {wording.written(worst.key, worst.figure.number)}"
    return [system, *shown, named if worst.name else wording.NONE]


def _same(facts: EvaluationDocument) -> str:
    """What evaluations share that may stand in one list: the data, by its digest or else by its labels and counts; the rules; and what
    intervals are of.
    """
    first = facts.systems[0].generators if facts.systems else ()
    counted = sorted((one.label, one.name, one.kind, one.n + one.unscored) for one in first)
    data = [facts.data.digest] if facts.data.digest else [facts.labels.name, facts.data.n, counted]
    spoken = [facts.intervals.fakes, facts.intervals.reals] if facts.intervals.words else None
    return json.dumps([data, facts.protocol.name if facts.protocol else None, spoken])


def _board(group: Sequence[tuple[str, EvaluationDocument]]) -> Leaderboard:
    first = group[0][1]
    entries = [_entry(url, facts, system) for url, facts in group for system in _systems(facts)]
    ranked = sorted((one for one in entries if one.system.figure("auc").ends), key=lambda one: _merit(one, "auc"))
    others = sorted((one for one in entries if not one.system.figure("auc").ends), key=lambda one: _merit(one, "balanced_accuracy"))
    fakes = {one.name for _, facts in group for system in facts.systems for one in system.generators if one.label == "fake"}
    return Leaderboard(
        title=first.protocol.title if first.protocol and first.protocol.title else first.title or first.labels.name or "no name",
        rules=f"rules of {first.protocol.name}" if first.protocol else "no protocol",
        n_real=first.data.n_real,
        n_fake=first.data.n_fake,
        generators=len(fakes),
        ranked=tuple(ranked),
        others=tuple(others),
        warnings=tuple(dict.fromkeys(_warnings(group, entries))),
        intervals=first.intervals.words,
    )


def _systems(facts: EvaluationDocument) -> list[SystemFacts]:
    """All but a detector that is all that the ensemble consists of, which documents of 0.10 and before list beside it."""
    alone = len(facts.run.detectors) == 1 and any(one.kind == "ensemble" for one in facts.systems)
    return [one for one in facts.systems if not alone or one.kind == "ensemble"]


def _merit(entry: LeaderboardEntry, key: str) -> tuple[float, float, str]:
    """Sorts the greatest lower end first, then the greatest value."""
    figure = entry.system.figure(key)
    low = figure.ends[0] if figure.ends else -1.0
    return -low, -(figure.number if figure.number is not None else -1.0), entry.system.called


def _warnings(group: Iterable[tuple[str, EvaluationDocument]], entries: Sequence[LeaderboardEntry]) -> Iterable[str]:
    for _, facts in group:
        shortcut = facts.data.shortcut
        if shortcut.confounded:
            auc = wording.written("auc", shortcut.auc.number)
            yield f"Facts of the files alone tell fake from real here (AUC {auc}), so figures may be of files and not of images."
    lists = {tuple(sorted(view.name for view in one.system.views)) for one in entries}
    if len(lists) > 1:
        yield "Not all systems met the same perturbations, so their worst ones do not compare."


def _entry(url: str, facts: EvaluationDocument, system: SystemFacts) -> LeaderboardEntry:
    fakes = _by_name(system)
    return LeaderboardEntry(
        system=system,
        url=url or facts.run.url,
        worst_generator=_worst_generator(system, len(fakes)),
        worst_view=_worst_view(system),
        trained_on=sum("in-training" in words for words in fakes.values()),
        not_known=sum("in-training" not in words and "unknown" in words for words in fakes.values()),
        generators=len(fakes),
    )


def _by_name(system: SystemFacts) -> dict[str, set[str]]:
    """What is known of each of the fakes' generators, whole and edited images together."""
    found: dict[str, set[str]] = {}
    for one in system.generators:
        if one.label == "fake":
            found.setdefault(one.name, set()).add(one.seen)
    return found


def _worst_generator(system: SystemFacts, among: int) -> Weakness:
    if system.worst and system.worst.generator:
        return Weakness(system.worst.generator, "tpr", system.worst.rate, among)
    hardest: list[GeneratorFacts] = [one for one in system.hardest() if one.rate.number is not None]
    return Weakness(hardest[0].name, "tpr", hardest[0].rate, among) if hardest else Weakness("", "tpr", NOT_MEASURED, among)


def _worst_view(system: SystemFacts) -> Weakness:
    """The perturbation that leaves the least AUC, or for binary replies the least balanced accuracy."""
    key = "auc" if system.output == "continuous" else "balanced_accuracy"
    known: list[tuple[float, str, ViewFacts]] = []
    for view in system.views:
        number = view.figures.get(key, NOT_MEASURED).number
        known += [] if number is None else [(number, view.name, view)]
    if not known:
        return Weakness("", key, NOT_MEASURED, len(system.views))
    _, name, view = min(known, key=lambda one: one[:2])
    return Weakness(name, key, view.figures[key], len(system.views))


def _headline(boards: Sequence[Leaderboard]) -> str:
    entries = sum(len(one.ranked) + len(one.others) for one in boards)
    if not entries:
        return "Nothing was evaluated."
    return f"{wording.counted(entries, 'system')} on {wording.counted(len(boards), 'set')} of data."
