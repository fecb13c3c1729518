"""The protocol's table as the page shows it: our cells and published ones side by side, in few columns and rows at a time.

Knows which cell stands where and which notes it needs; knows no HTML.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ray_app.reports import wording
from ray_app.reports.evaluation_facts import EvaluationFacts, ReferenceFacts, TableRow
from ray_app.reports.figure_facts import FigureFacts
from ray_app.reports.figure_words import three_digit_ends, three_digits

MOST_COLUMNS = 9
MOST_ROWS = 24
SEEN_SIGNS = {"in-training": ("●", "in training"), "unseen": ("○", "not in training"), "unknown": ("?", "not known whether in training")}
_DAGGERS = "†‡§¶‖"


class Cell(NamedTuple):
    """One value as text, the ends of its interval, signs of notes, whether its images were in training, and of how many it is."""

    value: str
    ends: tuple[str, str] | None = None
    notes: str = ""
    seen: str = ""
    about: str = ""


class Column(NamedTuple):
    """A head: a system of ours, or where its figures were published."""

    name: str
    source: str = ""
    notes: str = ""
    is_ours: bool = True


class Row(NamedTuple):
    """A line of the table."""

    name: str
    label: str
    n: int
    cells: list[Cell]


class Grid(NamedTuple):
    """Some of the table's columns with some of its rows; `summary` says what is in it where it is not shown at once."""

    columns: list[Column]
    rows: list[Row]
    footers: list[Row]
    summary: str


class Notes:
    """Signs of notes in order of first use: daggers for what was published, letters for what is not defined."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def dagger(self, text: str) -> str:
        """The sign of a note on a published figure."""
        used = sum(sign[0] in _DAGGERS for sign in self.texts.values())
        return self.texts.setdefault(text, _DAGGERS[used % len(_DAGGERS)] * (1 + used // len(_DAGGERS))) if text else ""

    def letter(self, text: str) -> str:
        """The sign of a reason why there is no figure."""
        used = sum(sign[0] not in _DAGGERS for sign in self.texts.values())
        return self.texts.setdefault(text, chr(ord("a") + used) if used < 26 else f"a{used}") if text else ""

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Signs with their texts."""
        return [(sign, text) for text, sign in self.texts.items()]


class Grids(NamedTuple):
    """The table: what is shown at once first, then the rest, and the notes under it."""

    shown: Grid | None
    more: list[Grid]
    notes: list[tuple[str, str]]


def grids(told: EvaluationFacts) -> Grids:
    """The table in pieces of at most MOST_COLUMNS columns and MOST_ROWS rows; the hardest rows of the leading system come first."""
    notes = Notes()
    kept, others = _rows_at_once(told)
    pieces = []
    for index, systems in enumerate(_columns_at_once(told)):
        names = f"{len(systems)} more systems" if index else ""
        pieces += [_grid(told, systems, kept, notes, names or f"{len(kept)} rows")]
        pieces += [_grid(told, systems, others, notes, f"{len(others)} easier rows" + (f", {names}" if names else ""))] if others else []
    return Grids(pieces[0] if pieces else None, pieces[1:], notes.rows)


def _rows_at_once(told: EvaluationFacts) -> tuple[list[TableRow], list[TableRow]]:
    rows = list(told.table.rows)
    if len(rows) <= MOST_ROWS:
        return rows, []
    leading = told.leading.name if told.leading else ""
    cells = told.table.cells.get(leading, {})

    def ease(row: TableRow) -> tuple[bool, float]:
        number = cells[row.name].number if row.name in cells else None
        return row.label != "real", 2.0 if number is None else number

    hardest = {row.name for row in sorted(rows, key=ease)[:MOST_ROWS]}
    return [row for row in rows if row.name in hardest], [row for row in rows if row.name not in hardest]


def _columns_at_once(told: EvaluationFacts) -> list[list[str]]:
    """Systems in groups that fit with their published columns; those that no system of ours belongs to stand with the first group."""
    names = list(told.table.columns) or [system.name for system in told.systems if system.name in told.table.cells]
    if not told.table.rows and not told.table.footers:
        return []
    groups: list[list[str]] = [[]]
    room = MOST_COLUMNS - len(_alone(told))
    for name in names:
        width = 1 + sum(one.system == name for one in told.reference)
        if width > room and groups[-1]:
            groups.append([])
            room = MOST_COLUMNS
        groups[-1].append(name)
        room -= width
    return groups


def _alone(told: EvaluationFacts) -> list[ReferenceFacts]:
    """Published columns of systems that are not among ours."""
    ours = {*told.table.columns, *(system.name for system in told.systems)}
    return [one for one in told.reference if one.system not in ours]


def _grid(told: EvaluationFacts, systems: Sequence[str], rows: Sequence[TableRow], notes: Notes, summary: str) -> Grid:
    alone = _alone(told) if list(told.table.columns)[:1] == list(systems)[:1] else []
    columns: list[tuple[str | None, ReferenceFacts | None]] = []
    for name in systems:
        columns += [(name, None), *((None, one) for one in told.reference if one.system == name)]
    columns += [(None, one) for one in alone]
    lines = [Row(row.name, row.label, row.n, [_cell(told, row, *column, notes) for column in columns]) for row in rows]
    plain = [TableRow(name=footer.name) for footer in told.table.footers]
    ours = {footer.name: footer.cells for footer in told.table.footers}
    footers = [
        Row(
            row.name,
            "",
            0,
            [_figure(ours[row.name].get(name), notes) if name else _published(row.name, one, notes) for name, one in columns],
        )
        for row in plain
    ]
    return Grid([_head(name, one, notes) for name, one in columns], lines, footers, summary)


def _head(name: str | None, reference: ReferenceFacts | None, notes: Notes) -> Column:
    if reference is None:
        return Column(name or "")
    return Column(reference.column, reference.source, notes.dagger(reference.mark), is_ours=False)


def _cell(told: EvaluationFacts, row: TableRow, name: str | None, reference: ReferenceFacts | None, notes: Notes) -> Cell:
    if name is None:
        return _published(row.name, reference, notes)
    return _figure(told.table.cells.get(name, {}).get(row.name), notes)._replace(seen=row.seen.get(name, "unknown"))


def _figure(figure: FigureFacts | None, notes: Notes) -> Cell:
    if figure is None:
        return Cell(wording.NONE)
    if figure.number is None:
        return Cell(wording.NONE, notes=notes.letter(figure.why))
    ends = three_digit_ends(figure.ends) if figure.ends else None
    method = f", {figure.method}" if figure.method else ""
    return Cell(three_digits(figure.number), ends, about=f"of {figure.n:,}{method}" if figure.n else "")


def _published(row: str, reference: ReferenceFacts | None, notes: Notes) -> Cell:
    value = reference.rows.get(row) if reference else None
    return Cell(three_digits(value), notes=notes.dagger(reference.marks.get(row, "")) if reference and value is not None else "")
