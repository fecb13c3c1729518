"""The protocol's table of an evaluation: our cells, published ones and how far they differ, few
columns and rows at a time.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ray_app.metrics.values import MetricValue
from ray_app.reports import format as wording
from ray_app.reports.evaluation.result import (
    TABLE,
    EvaluationResult,
    ReferenceInfo,
    TableRowInfo,
)
from ray_app.reports.format import number, signed
from ray_app.reports.text import GAP, table

MOST_COLUMNS = 9
MOST_ROWS = 24
_DAGGERS = "†‡§¶‖"
_LONGEST_NAME, _WIDTH = 28, 120


class Column(NamedTuple):
    """What stands in a column: figures of `system`, of `published`, or ours less those. `system` is
    "" where none of ours is meant.
    """

    system: str
    published: ReferenceInfo | None = None
    differs: bool = False


class TableHead(NamedTuple):
    """The head of a column: a system of ours, or where its figures were published."""

    name: str
    notes: str = ""
    is_ours: bool = True


class TableCell(NamedTuple):
    """One value as text, the ends of its interval, signs of notes, whether its images were in
    training, and of how many it is.
    """

    value: str
    ends: tuple[str, str] | None = None
    notes: str = ""
    seen: str = ""
    about: str = ""


class TableLine(NamedTuple):
    """A line of the table."""

    name: str
    label: str
    n: int
    cells: list[TableCell]


class TablePart(NamedTuple):
    """Some of the table's columns with some of its rows; `summary`: its content in a line, where it
    is not shown at once.
    """

    heads: list[TableHead]
    rows: list[TableLine]
    footers: list[TableLine]
    summary: str

    def lines(self) -> list[str]:
        """For the terminal, in as many pieces one under the other as the columns need."""
        rows = [*self.rows, *self.footers]
        names = [wording.shortened(row.name, _LONGEST_NAME) for row in rows]
        columns = [["n", *(f"{row.n:,}" if row.n else wording.NONE for row in rows)]]
        columns += [
            [
                f"{wording.shortened(head.name, _LONGEST_NAME)} {head.notes}".rstrip(),
                *(_in_line(row.cells[place]) for row in rows),
            ]
            for place, head in enumerate(self.heads)
        ]
        lines: list[str] = []
        while columns:
            room, fitting = _WIDTH - max(map(wording.columns, names), default=0), 0
            while (
                fitting < len(columns)
                and (room := room - len(GAP) - max(map(wording.columns, columns[fitting]))) >= 0
            ):
                fitting += 1
            piece, columns = columns[: max(1, fitting)], columns[max(1, fitting) :]
            heads, *cells = zip(["", *names], *piece, strict=True)
            lines += [*([""] if lines else []), *table(heads, cells, right=range(1, len(heads)))]
        return lines


class Notes(dict[str, str]):
    """Signs by the text of their note, in order of first use: daggers for what was published,
    letters for what is not defined.
    """

    def sign(self, text: str, *, published: bool = False) -> str:
        """The sign of a note; "" of no text."""
        if text and text not in self:
            daggers = sum(sign[0] in _DAGGERS for sign in self.values())
            letters = len(self) - daggers
            letter = chr(ord("a") + letters) if letters < 26 else f"a{letters}"
            self[text] = (
                _DAGGERS[daggers % len(_DAGGERS)] * (1 + daggers // len(_DAGGERS))
                if published
                else letter
            )
        return self[text] if text else ""


def protocol_table(result: EvaluationResult) -> tuple[list[TablePart], Notes]:
    """The table in parts, what is shown at once first, and the notes under it. Rows of reals,
    published ones and the hardest come first.
    """
    notes, parts = Notes(), []
    columns, meta = _columns(result), result.meta
    if not columns or not (meta.table or meta.footers):
        return [], notes
    cut = min(MOST_COLUMNS, len(columns))
    # a system stays with its published columns
    while 1 < cut < len(columns) and columns[cut].system and columns[cut].published:
        cut -= 1
    kept, others = _hardest_first(result)
    for some, more in (
        (columns[:cut], ""),
        (columns[cut:], f"{wording.counted(len(columns) - cut, 'more column')}"),
    ):
        if some:
            parts.append(_part(result, some, kept, notes, more or f"{len(kept)} rows"))
            parts += (
                [
                    _part(
                        result,
                        some,
                        others,
                        notes,
                        f"{len(others)} easier rows{', ' * bool(more)}{more}",
                    )
                ]
                if others
                else []
            )
    return parts, notes


def sources(result: EvaluationResult) -> list[str]:
    """Where published columns are from, whether somebody compared our weights on the real data with
    them, and what this run has.
    """
    systems = {system.name: system for system in result.meta.systems}
    columns = dict[str, list[str]]()
    for one in result.meta.reference:
        system = systems.get(one.system or "")
        has = f"; this run: {wording.counted(system.n, 'image')}" if system else ""
        said = f"{wording.visible(one.source)}; verified: {'yes' if one.verified else 'no'}{has}"
        columns.setdefault(said, []).append(wording.visible(one.column))
    return [f"{', '.join(names)} from {said}" for said, names in columns.items()]


def _columns(result: EvaluationResult) -> list[Column]:
    """Each system of ours with what was published of it, and the difference; at the end what was
    published of others.
    """
    names, reference = [system.name for system in result.meta.systems], result.meta.reference
    columns: list[Column] = []
    for name in names:
        columns.append(Column(name))
        for one in reference:
            if one.system == name:
                columns += [Column(name, one), Column(name, one, differs=True)]
    return columns + [Column("", one) for one in reference if one.system not in names]


def _hardest_first(result: EvaluationResult) -> tuple[list[TableRowInfo], list[TableRowInfo]]:
    rows, leading = list(result.meta.table), result.leading
    if len(rows) <= MOST_ROWS:
        return rows, []
    published = {name for one in result.meta.reference for name in one.rows}

    def ease(row: TableRowInfo) -> tuple[bool, float]:
        value = leading.figure(row.name, TABLE).value if leading else None
        return row.label != "real" and row.name not in published, 2.0 if value is None else value

    hardest = {row.name for row in sorted(rows, key=ease)[:MOST_ROWS]}
    return [row for row in rows if row.name in hardest], [
        row for row in rows if row.name not in hardest
    ]


def _part(
    result: EvaluationResult,
    columns: Sequence[Column],
    rows: Sequence[TableRowInfo],
    notes: Notes,
    summary: str,
) -> TablePart:
    lines = [
        TableLine(
            row.name,
            row.label,
            row.n,
            _cells(row.name, _row_of(result, row.name), columns, notes, row.seen),
        )
        for row in rows
    ]
    footers = []
    for name in result.meta.footers:
        figures = _row_of(result, name)
        n = max((figure.n for figure in figures.values()), default=0)
        footers.append(TableLine(name, "", n, _cells(name, figures, columns, notes)))
    return TablePart([_head(column, notes) for column in columns], lines, footers, summary)


def _row_of(result: EvaluationResult, name: str) -> dict[str, MetricValue]:
    """The values of one row or footer by system."""
    return {system.info.name: system.figure(name, TABLE) for system in result.systems}


def _head(column: Column, notes: Notes) -> TableHead:
    if column.published is None or column.differs:
        return TableHead("difference" if column.differs else column.system)
    return TableHead(
        column.published.column,
        notes.sign(column.published.mark or "", published=True),
        is_ours=False,
    )


def _cells(
    row: str,
    figures: Mapping[str, MetricValue],
    columns: Sequence[Column],
    notes: Notes,
    seen: Mapping[str, str] | None = None,
) -> list[TableCell]:
    """The cells of one row, whose `figures` are by system; those of ours say whether they were
    `seen`, where that is known of rows.
    """
    ours = {
        name: _ours(figures.get(name), notes) for name, published, _ in columns if published is None
    }
    cells = []
    for name, published, differs in columns:
        if published is None:
            cells.append(
                ours[name] if seen is None else ours[name]._replace(seen=seen.get(name, "unknown"))
            )
        else:
            cells.append(
                _difference(figures.get(name), published.rows.get(row))
                if differs
                else _published(row, published, notes)
            )
    return cells


def _difference(figure: MetricValue | None, published: float | None) -> TableCell:
    if figure is None or figure.value is None or published is None:
        return TableCell(wording.NONE)
    return TableCell(signed(figure.value - published, 3))


def _ours(figure: MetricValue | None, notes: Notes) -> TableCell:
    if figure is None or figure.value is None:
        return TableCell(wording.NONE, notes=notes.sign(figure.why if figure else ""))
    method = f", {figure.method}" if figure.method else ""
    ends = _format_ends(*figure.interval) if figure.interval else None
    return TableCell(
        number(figure.value, 1, decimals=3),
        ends,
        about=f"of {figure.n:,}{method}" if figure.n else "",
    )


def _published(row: str, reference: ReferenceInfo, notes: Notes) -> TableCell:
    value = reference.rows.get(row)
    return TableCell(
        number(value, 1, decimals=3),
        notes="" if value is None else notes.sign(reference.marks.get(row, ""), published=True),
    )


def _in_line(cell: TableCell) -> str:
    ends = f" [{cell.ends[0]}, {cell.ends[1]}]" if cell.ends else ""
    return f"{cell.value}{ends}{' ' + cell.notes if cell.notes else ''}"


def _format_ends(low: float, high: float) -> tuple[str, str]:
    """Format the ends of an interval, rounded outwards if rounding would reach 0 or 1."""
    low = min(low, 0.999) if low < 1 else low
    high = max(high, 0.001) if high > 0 else high
    return number(round(low, 3), 1, decimals=3), number(round(high, 3), 1, decimals=3)
