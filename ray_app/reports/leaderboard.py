"""Many evaluations (`metrics.json`) → one HTML page of systems side by side (`render_leaderboard`), the same in lines
(`leaderboard_lines`), and as plain JSON (`leaderboard_document`).

Systems stand in one list only where they were measured on the same data by the same rules: figures of different data do not rank.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ray_app.metrics.arrays import NOT_MEASURED, FigureFacts
from ray_app.reports import format as wording
from ray_app.reports import text
from ray_app.reports.evaluation.model import EvaluationDocument
from ray_app.reports.html import render, script_hash
from ray_app.reports.leaderboard_model import ALPHA, COLUMNS, Leaderboard, LeaderboardEntry, boards_of

Evaluations = Sequence[tuple[str, Mapping[str, Any]]]
_LONGEST_NAME = 60
_MOST_ROWS = 200  # of one table of details
_SCRIPT = "leaderboard.js"


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


def render_leaderboard(evaluations: Evaluations) -> str:
    """One self-contained page that loads nothing and runs its own script alone, which sorts. Every text in the documents is taken for
    hostile.
    """
    boards = boards_of(evaluations)
    details = [(board, cell_tables(board), published_rows(board)) for board in boards]
    return render("leaderboard.html", boards=details, columns=COLUMNS, headline=_headline(boards), count=len(evaluations),
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


def leaderboard_lines(evaluations: Evaluations, width: int) -> list[str]:
    """The same for the terminal, in at most `width` columns but for words that are longer."""
    lines: list[str] = []
    for board in boards_of(evaluations):
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


def leaderboard_document(evaluations: Evaluations) -> list[dict[str, Any]]:
    """The lists as plain JSON: of every system its rank, figures with intervals, training, weights, cost and commands."""
    return [
        {
            "title": board.title,
            "rules": board.rules,
            "n_real": board.n_real,
            "n_fake": board.n_fake,
            "intervals": board.intervals,
            "warnings": list(board.warnings),
            "systems": [_entry(entry, *board.documents[entry.evaluation]) for entry in board.entries],
        }
        for board in boards_of(evaluations)
    ]


def _entry(entry: LeaderboardEntry, url: str, document: EvaluationDocument) -> dict[str, Any]:
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
