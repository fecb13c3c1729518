"""Many evaluations (`metrics.json`) → one HTML page of systems side by side (`render_leaderboard`), the same in lines
(`leaderboard_lines`), and as plain JSON (`leaderboard_document`).

Systems stand in one list (`boards_of`) only where they were measured on the same data by the same rules: figures of different data do not
rank. A system's rank is 1 more than the number of systems that are significantly better on images that neither of the two was trained on,
so that systems which no test tells apart share one. It is the lower end of a confidence set of ranks, whose upper end counts those that
are significantly worse (Mogstad, Romano, Shaikh and Wilhelm 2024, Review of Economic Studies 91).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from ray_app.metrics import significance
from ray_app.metrics.arrays import NOT_MEASURED, FigureFacts
from ray_app.reports import charts, text
from ray_app.reports import format as wording
from ray_app.reports.evaluation.model import EvaluationDocument, PairedFacts
from ray_app.reports.evaluation.system_model import GeneratorFacts, SystemFacts, ViewFacts
from ray_app.reports.html import render, script_hash

Evaluations = Sequence[tuple[str, Mapping[str, Any]]]
_LONGEST_NAME = 60
_MOST_ROWS = 200  # of one table of details
_SCRIPT = "leaderboard.js"
COLUMNS = ("auc", "tpr_at_fpr_1", "tpr_at_fpr_5", "ece")
ALPHA = 0.05
WEIGHTS, TRAINED, NO_AUC = (
    "Not ranked: demonstrations, and weights that are not the published ones",
    "Not ranked: trained on all of it",
    "Not ranked: no AUC with an interval",
)


class Weakness(NamedTuple):
    """Where a system is worst: at what, the figure there, and among how many."""

    name: str
    key: str
    figure: FigureFacts
    among: int


NO_WEAKNESS = Weakness("", "auc", NOT_MEASURED, 0)


@dataclass(frozen=True)
class LeaderboardEntry:
    """One system of one evaluation. `evaluation`: its place among the documents of its list; `group`: why it is not ranked.

    `rank`, `last`: the places that no test rules out; 0 where it is not ranked. `trained_on`: of `generators` of fakes, those it saw.
    """

    system: SystemFacts
    evaluation: int
    worst_generator: Weakness
    worst_view: Weakness
    worst_chain: Weakness
    trained_on: int
    not_known: int
    generators: int
    rank: int = 0
    last: int = 0

    @property
    def group(self) -> str:
        """Why it is not ranked; empty where it is."""
        if not self.system.standing.weights.ranks:
            return WEIGHTS
        if self.system.unseen is not None and self.system.unseen.why:
            return TRAINED
        return "" if self.figure("auc").ends else NO_AUC

    def figure(self, key: str) -> FigureFacts:
        """A figure of images that it was not trained on, or, where the document has none of those, of all."""
        unseen = self.system.unseen
        if unseen is None:
            return self.system.figure(key)
        return unseen.figures.get(key, FigureFacts(why=unseen.why or "not measured"))

    @property
    def figures(self) -> list[tuple[str, FigureFacts]]:
        """Those of COLUMNS; no calibration error where nothing claims to be a chance."""
        found = {key: self.figure(key) for key in COLUMNS}
        if not self.system.calibrated:
            found["ece"] = FigureFacts(why="not calibrated")
        return list(found.items())

    @property
    def abstains(self) -> FigureFacts:
        """The share of images on which its verdict is neither; without a value for a system that gives no verdicts of its own."""
        covered = (self.system.decided or {}).get("coverage")
        return covered.complement if covered and covered.number is not None else FigureFacts(why="gives no verdicts of its own here")

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
    def left_out(self) -> str:
        """How many images its figures leave out for its training; empty where none."""
        counts = self.system.unseen.left_out_counts if self.system.unseen is not None else {}
        if not any(counts.values()):
            return ""
        return f"{counts['real']:,} real and {counts['fake']:,} fake images that it was trained on are left out"


@dataclass(frozen=True)
class Leaderboard:
    """One list. `ranked`: by rank, then AUC; `others`: by why they are not ranked. `warnings`: of the data; `intervals`: what they are of.

    `documents`: the evaluations that it is of, with where each lies.
    """

    title: str
    rules: str
    n_real: int
    n_fake: int
    generators: int
    ranked: tuple[LeaderboardEntry, ...]
    others: tuple[tuple[str, tuple[LeaderboardEntry, ...]], ...]
    warnings: tuple[str, ...]
    documents: tuple[tuple[str, EvaluationDocument], ...]
    intervals: str = ""

    @property
    def entries(self) -> list[LeaderboardEntry]:
        """All of them, in the order of the page."""
        return [*self.ranked, *(one for _, some in self.others for one in some)]

    @cached_property
    def bar_start(self) -> float:
        """Where the scale of its AUCs begins."""
        found = [one.figure("auc") for one in self.entries]
        return charts.axis_start([one.least for one in found if one.least is not None])


def boards_of(evaluations: Evaluations) -> list[Leaderboard]:
    """The lists of some evaluations, each with where it lies; those of the most images first.

    Raises pydantic's ValidationError for a document of another shape.
    """
    groups: dict[str, list[tuple[str, EvaluationDocument]]] = {}
    for url, document in evaluations:
        facts = EvaluationDocument.model_validate(document)
        groups.setdefault(_same(facts), []).append((url, facts))
    boards = [_board(group) for group in groups.values()]
    return sorted(boards, key=lambda one: -(one.n_real + one.n_fake))


def ranked(entries: Sequence[LeaderboardEntry], tests: Sequence[Sequence[PairedFacts]]) -> list[LeaderboardEntry]:
    """Entries with their ranks, in their order. `tests`: by evaluation, of pairs of its systems on images unseen by both.

    Of systems of one evaluation one is better where their test is significant at ALPHA after Holm's correction over all of these tests.
    Two of different evaluations have no test on the same images: one is better where its interval lies above the other's.
    """
    pairs = {(place, one.a, one.b): one for place, some in enumerate(tests) for one in some}
    names = {(one.evaluation, one.system.name): at for at, one in enumerate(entries)}
    among = {(names[place, a], names[place, b]): test for (place, a, b), test in pairs.items()
             if (place, a) in names and (place, b) in names}  # fmt: skip
    corrected = dict(zip(among, significance.holm([one.p for one in among.values()]), strict=True))
    better: set[tuple[int, int]] = set()
    for (a, b), p in corrected.items():
        difference = among[a, b].difference.number
        if p is not None and p < ALPHA and difference:
            better.add((b, a) if difference > 0 else (a, b))
    for a, one in enumerate(entries):
        for b, other in enumerate(entries):
            first, second = one.figure("auc").ends, other.figure("auc").ends
            if one.evaluation != other.evaluation and first and second and first[0] > second[1]:
                better.add((a, b))
    above = [sum(second == at for _, second in better) for at in range(len(entries))]
    below = [sum(first == at for first, _ in better) for at in range(len(entries))]
    return [replace(one, rank=1 + above[at], last=len(entries) - below[at]) for at, one in enumerate(entries)]


def _same(facts: EvaluationDocument) -> str:
    """What evaluations share that may stand in one list: the data, by its digest or else by its labels and counts; the rules; and what
    intervals are of.
    """
    first = facts.systems[0].generators if facts.systems else ()
    counted = sorted((one.label, one.name, one.kind, one.n + one.unscored) for one in first)
    data = [facts.data.digest] if facts.data.digest else [facts.labels.name, facts.data.n, counted]
    intervals = [facts.intervals.fakes, facts.intervals.reals] if facts.intervals.words else None
    return json.dumps([data, facts.protocol.name if facts.protocol else None, intervals])


def _board(group: Sequence[tuple[str, EvaluationDocument]]) -> Leaderboard:
    first = group[0][1]
    entries = [_entry(place, system) for place, (_, facts) in enumerate(group) for system in facts.systems]
    tests = [facts.paired_unseen or facts.paired for _, facts in group]
    placed = ranked([one for one in entries if not one.group], tests)
    kept = {reason: sorted((one for one in entries if one.group == reason), key=_merit) for reason in (NO_AUC, TRAINED, WEIGHTS)}
    fakes = {one.name for _, facts in group for system in facts.systems for one in system.generators if one.label == "fake"}
    return Leaderboard(
        title=first.protocol.title if first.protocol and first.protocol.title else first.title or first.labels.name or "no name",
        rules=f"rules of {first.protocol.name}" if first.protocol else "no protocol",
        n_real=first.data.n_real,
        n_fake=first.data.n_fake,
        generators=len(fakes),
        ranked=tuple(sorted(placed, key=lambda one: (one.rank, *_merit(one)))),
        others=tuple((reason, tuple(some)) for reason, some in kept.items() if some),
        warnings=tuple(dict.fromkeys(_warnings(group, entries))),
        documents=tuple(group),
        intervals=first.intervals.words,
    )


def _merit(entry: LeaderboardEntry) -> tuple[float, float, str]:
    """Sorts the greatest AUC first, those without one by balanced accuracy."""
    auc, balanced = (entry.figure(key).number for key in ("auc", "balanced_accuracy"))
    return 1.0 if auc is None else -auc, 1.0 if balanced is None else -balanced, entry.system.called


def _warnings(group: Iterable[tuple[str, EvaluationDocument]], entries: Sequence[LeaderboardEntry]) -> Iterable[str]:
    for _, facts in group:
        shortcut = facts.data.shortcut
        if shortcut.confounded:
            auc = wording.written("auc", shortcut.auc.number)
            yield f"Facts of the files alone tell fake from real here (AUC {auc}), so figures may be of files and not of images."
    lists = {tuple(sorted(view.name for view in one.system.views)) for one in entries}
    if len(lists) > 1:
        yield "Not all systems met the same perturbations, so their worst ones do not compare."
    unseen = [one.system.unseen for one in entries if one.system.unseen is not None]
    if any(one.left_out for one in unseen):
        yield "Systems that were trained on some of these images are measured on the others: compare their columns with this in mind."
    if unseen and not any(one.names_sources for one in unseen):
        yield "Labels name no sources, so nobody knows whether real images here were in anyone's training."


def _entry(place: int, system: SystemFacts) -> LeaderboardEntry:
    fakes: dict[str, set[str]] = {}  # what is known of each of the fakes' generators, whole and edited images together
    for one in system.generators:
        if one.label == "fake":
            fakes.setdefault(one.name, set()).add(one.seen)
    kinds = {kind: [one for one in system.views if one.kind == kind] for kind in ("degradation", "chain")}
    return LeaderboardEntry(
        system=system,
        evaluation=place,
        worst_generator=_worst_generator(system, fakes),
        worst_view=_worst_view(system, kinds["degradation"]),
        worst_chain=_worst_view(system, kinds["chain"]),
        trained_on=sum("in-training" in words for words in fakes.values()),
        not_known=sum("in-training" not in words and "unknown" in words for words in fakes.values()),
        generators=len(fakes),
    )


def _worst_generator(system: SystemFacts, fakes: Mapping[str, set[str]]) -> Weakness:
    """Of the generators that it was not trained on."""
    among = sum("in-training" not in words for words in fakes.values())
    worst = system.worst if system.unseen is None else system.unseen.worst
    if worst and worst.generator:
        return Weakness(worst.generator, "tpr", worst.rate, among)
    hardest: list[GeneratorFacts] = [
        one for one in system.hardest() if one.rate.number is not None and "in-training" not in fakes[one.name]
    ]
    return Weakness(hardest[0].name, "tpr", hardest[0].rate, among) if hardest else NO_WEAKNESS


def _worst_view(system: SystemFacts, views: Sequence[ViewFacts]) -> Weakness:
    """The perturbation that leaves the least AUC, or for binary replies the least balanced accuracy."""
    key = "auc" if system.output == "continuous" else "balanced_accuracy"
    known: list[tuple[float, str, ViewFacts]] = []
    for view in views:
        number = view.figures.get(key, NOT_MEASURED).number
        known += [] if number is None else [(number, view.name, view)]
    if not known:
        return NO_WEAKNESS._replace(key=key, among=len(views))
    _, name, view = min(known, key=lambda one: one[:2])
    return Weakness(name, key, view.figures[key], len(views))


class CellTable(NamedTuple):
    """AUCs with a column for each system, in the order of the list. `rows`: name, remark, and by system the figure and its mark (None
    where the system has none). `legend`: what marks mean.
    """

    title: str
    what: str
    rows: list[tuple[str, str, list[tuple[FigureFacts, str] | None]]]
    legend: str = ""


class PublishedRow(NamedTuple):
    """A published figure beside ours. `mark`: why they do not compare."""

    column: str
    row: str
    published: float
    ours: FigureFacts
    system: str
    source: str
    mark: str


def render_leaderboard(boards: Sequence[Leaderboard]) -> str:
    """One self-contained page that loads nothing and runs its own script alone, which sorts. Every text in the documents is taken for
    hostile.
    """
    details = [(board, cell_tables(board), published_rows(board)) for board in boards]
    count = sum(len(board.documents) for board in boards)
    return render("leaderboard.html", boards=details, columns=COLUMNS, headline=_headline(boards), count=count,
                  alpha=ALPHA, longest_name=_LONGEST_NAME, script_hash=script_hash(_SCRIPT))  # fmt: skip


def cell_tables(board: Leaderboard) -> list[CellTable]:
    """Its tables of details: generators, degradations with chains, attacks; those that there are."""
    entries = board.entries
    names = sorted({one.name for entry in entries for one in entry.system.generators if one.label == "fake"})
    legend = "† the system was trained on this generator: its card says so. ? nobody knows: its card does not tell."
    tables = [CellTable("By generator", "AUC of each generator’s fakes against all real images.",
                        [(name, "", [_generator_cell(entry, name) for entry in entries]) for name in names], legend)]  # fmt: skip
    degraded = "AUC of all images after each degradation, those that a system was trained on included."
    attacked = "AUC of all images after changes that are made to mislead a detector. They are no part of any rank."
    for title, kinds, what in (("By degradation", ("degradation", "chain"), degraded), ("Attacks", ("attack",), attacked)):
        kind_of = {view.name: view.kind for entry in entries for view in entry.system.views if view.kind in kinds}
        figures = [{view.name: view.figures.get("auc", NOT_MEASURED) for view in entry.system.views} for entry in entries]
        views = [
            (name, "several, one after another" if kind == "chain" else "", [(one[name], "") if name in one else None for one in figures])
            for name, kind in kind_of.items()
        ]
        tables.append(CellTable(title, what, views))
    return [table._replace(rows=table.rows[:_MOST_ROWS]) for table in tables if table.rows]


def published_rows(board: Leaderboard) -> list[PublishedRow]:
    """What the protocol's papers print of systems that are in the list, beside what was measured here; then what they print of others."""
    found = []
    for _, document in board.documents:
        footers = {one.name: one.cells for one in document.table.footers}
        for column in document.reference:
            for name, value in column.rows.items():
                ours = NOT_MEASURED
                if column.system:
                    cells = footers.get(name) or {}
                    ours = cells.get(column.system) or document.table.cells.get(column.system, {}).get(name, NOT_MEASURED)
                marks = (column.mark, column.marks.get(name))
                mark = "; ".join(one for one in marks if one)
                found.append(PublishedRow(column.column, name, value, ours, column.system or "", column.source, mark))
    return sorted(dict.fromkeys(found), key=lambda one: not one.system)[:_MOST_ROWS]


def leaderboard_lines(boards: Sequence[Leaderboard], width: int) -> list[str]:
    """The same for the terminal, in at most `width` columns but for words that are longer."""
    lines: list[str] = []
    for board in boards:
        counts = f"{board.n_real:,} real, {board.n_fake:,} fake of {wording.counted(board.generators, 'generator')}"
        lines += ["", *text.paragraph(wording.visible(f"{board.title}: {counts}, {board.rules}"), width)]
        lines += text.paragraph(board.intervals, width) if board.intervals else []
        heads = ["", "system", "AUC", "at 1 % FPR", "at 5 % FPR", "worst generator", "ms"]
        rows = [[str(entry.rank), *_cells(entry)] for entry in board.ranked]
        rows += [[wording.NONE, *_cells(entry)] for _, entries in board.others for entry in entries]
        lines += text.table(heads, rows, width, right={0}, wrap={1, 5})
        for reason, entries in board.others:
            names = ", ".join(wording.shortened(one.system.called, _LONGEST_NAME) for one in entries)
            lines += text.paragraph(wording.visible(f"{reason}: {names}"), width)
        for warning in board.warnings:
            lines += text.paragraph(f"! {wording.visible(warning)}", width)
    return lines[1:]


def leaderboard_document(boards: Sequence[Leaderboard]) -> list[dict[str, Any]]:
    """The lists as plain JSON: of every system its rank, figures with intervals, training, weights, cost and commands."""
    return [
        {
            "title": board.title,
            "rules": board.rules,
            "n_real": board.n_real,
            "n_fake": board.n_fake,
            "intervals": board.intervals,
            "warnings": list(board.warnings),
            "systems": [_row_of(entry, *board.documents[entry.evaluation]) for entry in board.entries],
        }
        for board in boards
    ]


def _row_of(entry: LeaderboardEntry, url: str, document: EvaluationDocument) -> dict[str, Any]:
    system = entry.system
    weak = {"worst_generator": entry.worst_generator, "worst_degradation": entry.worst_view, "worst_chain": entry.worst_chain}
    return {
        "name": system.name,
        "title": system.called,
        "rank": entry.rank or None,
        "rank_last": entry.last or None,
        "not_ranked": entry.group or None,
        "figures": {key: figure.model_dump(mode="json") for key, figure in entry.figures},
        **{name: {"name": one.name, one.key: one.figure.model_dump(mode="json")} if one.name else None for name, one in weak.items()},
        "abstains": entry.abstains.model_dump(mode="json"),
        "trained_on": {"generators": entry.trained_on, "of": entry.generators, "not_known": entry.not_known},
        "left_out": [one.written() for one in system.unseen.left_out] if system.unseen is not None else None,
        "standing": system.standing.model_dump(mode="json"),
        "cost": system.cost.model_dump(mode="json"),
        "evaluation": url or document.run.url,
        "commands": {"scored by": document.run.command, "evaluated by": document.command},
    }


def _cells(entry: LeaderboardEntry) -> list[str]:
    worst = entry.worst_generator
    system = wording.shortened(entry.system.called, _LONGEST_NAME) + (" *" if entry.trained_on or entry.left_out else "")
    shown = [wording.in_words(key, entry.figure(key)) for key in COLUMNS[:3]]
    named = f"{wording.shortened(worst.name, _LONGEST_NAME)} {wording.written(worst.key, worst.figure.number)}"
    spent = entry.system.cost.ms_per_image
    return [system, *shown, named if worst.name else wording.NONE, wording.NONE if spent is None else f"{spent:,.3g}"]


def _generator_cell(entry: LeaderboardEntry, name: str) -> tuple[FigureFacts, str] | None:
    mine = [one for one in entry.system.generators if one.label == "fake" and one.name == name]
    if not mine:
        return None
    words = {one.seen for one in mine}
    mark = "†" if "in-training" in words else "?" if "unknown" in words else ""
    return max(mine, key=lambda one: one.n).auc, mark


def _headline(boards: Sequence[Leaderboard]) -> str:
    entries = sum(len(one.entries) for one in boards)
    if not entries:
        return "Nothing was evaluated."
    return f"{wording.counted(entries, 'system')} on {wording.counted(len(boards), 'set')} of data."
