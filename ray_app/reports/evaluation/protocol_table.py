"""Make the main table of an evaluation: measured values, published values, and differences.

A protocol has the rows and rules of a published table, so that the evaluation can reproduce it.
Without a protocol, the rows are the generators and sources. `protocol_table` returns the table in
parts, each with few enough columns and rows to be shown.
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

MAX_COLUMNS = 9
MAX_ROWS = 24
_DAGGERS = "†‡§¶‖"
_MAX_NAME_WIDTH, _WIDTH = 28, 120


class Column(NamedTuple):
    """A column of the main table of an evaluation.

    It has measured metrics, published metrics, or the differences between both.

    Attributes:
        system: Name of the measured detector or ensemble; "" for a published one that was not
            measured.
        published: The published column. None for a column of measured metrics.
        differs: Whether the cells are measured metrics minus published ones.
    """

    system: str
    published: ReferenceInfo | None = None
    differs: bool = False


class TableHead(NamedTuple):
    """The header of a column in the main table of an evaluation.

    Attributes:
        name: Name of the measured detector or ensemble, name of the published column, or
            "difference".
        notes: Sign of the footnote on the header, such as "†"; "" without a footnote.
        is_ours: Whether the column has measured metrics or differences, not published values.
    """

    name: str
    notes: str = ""
    is_ours: bool = True


class TableCell(NamedTuple):
    """A cell in the main table of an evaluation.

    Attributes:
        value: The formatted value; a dash if there is none.
        ends: The formatted bounds of its interval. None without an interval.
        notes: Sign of the footnote on the cell, such as "†"; "" without a footnote.
        seen: Whether the measured detector or ensemble was trained on images of the row's
            generators: `in-training`, `unseen`, or `unknown`. "" for other cells, such as published
            values.
        about: Number of images, and method of the interval, such as "of 1,000, jackknife". "" if
            the number is not known.
    """

    value: str
    ends: tuple[str, str] | None = None
    notes: str = ""
    seen: str = ""
    about: str = ""


class TableLine(NamedTuple):
    """A row in the main table of an evaluation.

    Attributes:
        name: Name of the row, such as a generator.
        label: Class of its images, `real` or `fake`; "" for a row below the table.
        n: Number of its images.
        cells: One cell for each column.
    """

    name: str
    label: str
    n: int
    cells: list[TableCell]


class TablePart(NamedTuple):
    """A part of the main table of an evaluation, with few enough columns and rows to be shown.

    Attributes:
        heads: Headers of its columns.
        rows: Its rows.
        footers: Rows below the table.
        summary: Description of the part, such as "24 rows". The page folds all parts but the first,
            and shows their descriptions instead.
    """

    heads: list[TableHead]
    rows: list[TableLine]
    footers: list[TableLine]
    summary: str

    def lines(self) -> list[str]:
        """Return this part of the table as lines for the terminal.

        Columns that do not fit next to each other are printed as further tables below.
        """
        rows = [*self.rows, *self.footers]
        names = [wording.truncate(row.name, _MAX_NAME_WIDTH) for row in rows]
        columns = [["n", *(f"{row.n:,}" if row.n else wording.NONE for row in rows)]]
        columns += [
            [
                f"{wording.truncate(head.name, _MAX_NAME_WIDTH)} {head.notes}".rstrip(),
                *(_format_cell(row.cells[index]) for row in rows),
            ]
            for index, head in enumerate(self.heads)
        ]
        lines: list[str] = []
        while columns:
            free_width, n_fitting = _WIDTH - max(map(wording.columns, names), default=0), 0
            while (
                n_fitting < len(columns)
                and (
                    free_width := free_width
                    - len(GAP)
                    - max(map(wording.columns, columns[n_fitting]))
                )
                >= 0
            ):
                n_fitting += 1
            block, columns = columns[: max(1, n_fitting)], columns[max(1, n_fitting) :]
            headers, *cells = zip(["", *names], *block, strict=True)
            lines += [
                *([""] if lines else []),
                *table(headers, cells, right=range(1, len(headers))),
            ]
        return lines


class Notes(dict[str, str]):
    """The footnotes of a table: a dictionary from their text to their sign, in order of first use.

    Footnotes on published values have daggers, such as "†". Footnotes on undefined values have
    letters, such as "a".
    """

    def sign(self, text: str, *, published: bool = False) -> str:
        """Return the sign of the footnote with this text, and add the footnote if it is new.

        Args:
            text: The footnote. The sign of "" is "".
            published: Whether it is on a published value, so that a new sign is a dagger. Other
                signs are letters.

        Returns:
            The sign, such as "†" or "a".
        """
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
    """Return the main table of an evaluation in parts, and its footnotes.

    A protocol has the rows and rules of a published table. Without a protocol, the rows are the
    generators and sources. The first part has the most important rows: those of real images, those
    with published values, and those with the lowest values. The page shows the other parts only if
    the reader unfolds them.

    Args:
        result: The result of the evaluation.

    Returns:
        The parts, and the signs of the footnotes by their text. The parts are empty without a
        table.
    """
    notes, parts = Notes(), []
    columns, meta = _make_columns(result), result.meta
    if not columns or not (meta.table or meta.footers):
        return [], notes
    cut = min(MAX_COLUMNS, len(columns))
    # Keep a system and its published columns in one part.
    while 1 < cut < len(columns) and columns[cut].system and columns[cut].published:
        cut -= 1
    first_rows, others = _select_rows(result)
    for part_columns, more in (
        (columns[:cut], ""),
        (columns[cut:], f"{wording.pluralize(len(columns) - cut, 'more column')}"),
    ):
        if part_columns:
            parts.append(
                _make_part(
                    result, part_columns, first_rows, notes, more or f"{len(first_rows)} rows"
                )
            )
            parts += (
                [
                    _make_part(
                        result,
                        part_columns,
                        others,
                        notes,
                        f"{len(others)} easier rows{', ' * bool(more)}{more}",
                    )
                ]
                if others
                else []
            )
    return parts, notes


def list_sources(result: EvaluationResult) -> list[str]:
    """Return sentences on the publications from which the columns of published values come.

    A sentence names the columns and the publication. It also states whether the values are
    verified: the detector's weights were run on the data set of the publication, and the results
    compared. If this evaluation measured the detector, the sentence has the number of images that
    the detector scored.
    """
    systems = {system.name: system for system in result.meta.systems}
    columns = dict[str, list[str]]()
    for reference in result.meta.reference:
        system = systems.get(reference.system or "")
        images = f"; this run: {wording.pluralize(system.n, 'image')}" if system else ""
        text = f"{wording.escape_invisible(reference.source)}; verified: {'yes' if reference.verified else 'no'}{images}"
        columns.setdefault(text, []).append(wording.escape_invisible(reference.column))
    return [f"{', '.join(names)} from {text}" for text, names in columns.items()]


def _make_columns(result: EvaluationResult) -> list[Column]:
    """Return the columns: each measured system with published values and differences, then others."""
    names, references = [system.name for system in result.meta.systems], result.meta.reference
    columns: list[Column] = []
    for name in names:
        columns.append(Column(name))
        for reference in references:
            if reference.system == name:
                columns += [Column(name, reference), Column(name, reference, differs=True)]
    return columns + [
        Column("", reference) for reference in references if reference.system not in names
    ]


def _select_rows(result: EvaluationResult) -> tuple[list[TableRowInfo], list[TableRowInfo]]:
    """Return the rows to show first, and the others: easier rows without published values."""
    rows, leading = list(result.meta.table), result.leading
    if len(rows) <= MAX_ROWS:
        return rows, []
    published = {name for reference in result.meta.reference for name in reference.rows}

    def ease(row: TableRowInfo) -> tuple[bool, float]:
        value = leading.figure(row.name, TABLE).value if leading else None
        return row.label != "real" and row.name not in published, 2.0 if value is None else value

    hardest = {row.name for row in sorted(rows, key=ease)[:MAX_ROWS]}
    return [row for row in rows if row.name in hardest], [
        row for row in rows if row.name not in hardest
    ]


def _make_part(
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
            _make_cells(row.name, _select_metrics(result, row.name), columns, notes, row.seen),
        )
        for row in rows
    ]
    footers = []
    for name in result.meta.footers:
        metrics = _select_metrics(result, name)
        n = max((metric.n for metric in metrics.values()), default=0)
        footers.append(TableLine(name, "", n, _make_cells(name, metrics, columns, notes)))
    return TablePart([_make_head(column, notes) for column in columns], lines, footers, summary)


def _select_metrics(result: EvaluationResult, name: str) -> dict[str, MetricValue]:
    """Return the metrics of a row or a footer by system."""
    return {system.info.name: system.figure(name, TABLE) for system in result.systems}


def _make_head(column: Column, notes: Notes) -> TableHead:
    if column.published is None or column.differs:
        return TableHead("difference" if column.differs else column.system)
    return TableHead(
        column.published.column,
        notes.sign(column.published.mark or "", published=True),
        is_ours=False,
    )


def _make_cells(
    row: str,
    metrics: Mapping[str, MetricValue],
    columns: Sequence[Column],
    notes: Notes,
    seen: Mapping[str, str] | None = None,
) -> list[TableCell]:
    """Make the cells of a row.

    Args:
        row: Name of the row.
        metrics: Metrics of the row by system.
        columns: The columns.
        notes: Signs of notes, to which new notes are added.
        seen: Whether the images were in training, by system. None for rows without this fact.
    """
    measured = {
        name: _make_measured_cell(metrics.get(name), notes)
        for name, published, _ in columns
        if published is None
    }
    cells = []
    for name, published, differs in columns:
        if published is None:
            cells.append(
                measured[name]
                if seen is None
                else measured[name]._replace(seen=seen.get(name, "unknown"))
            )
        else:
            cells.append(
                _make_difference_cell(metrics.get(name), published.rows.get(row))
                if differs
                else _make_published_cell(row, published, notes)
            )
    return cells


def _make_difference_cell(metric: MetricValue | None, published: float | None) -> TableCell:
    if metric is None or metric.value is None or published is None:
        return TableCell(wording.NONE)
    return TableCell(signed(metric.value - published, 3))


def _make_measured_cell(metric: MetricValue | None, notes: Notes) -> TableCell:
    if metric is None or metric.value is None:
        return TableCell(wording.NONE, notes=notes.sign(metric.why if metric else ""))
    method = f", {metric.method}" if metric.method else ""
    bounds = _format_bounds(*metric.interval) if metric.interval else None
    return TableCell(
        number(metric.value, 1, decimals=3),
        bounds,
        about=f"of {metric.n:,}{method}" if metric.n else "",
    )


def _make_published_cell(row: str, reference: ReferenceInfo, notes: Notes) -> TableCell:
    value = reference.rows.get(row)
    return TableCell(
        number(value, 1, decimals=3),
        notes="" if value is None else notes.sign(reference.marks.get(row, ""), published=True),
    )


def _format_cell(cell: TableCell) -> str:
    bounds = f" [{cell.ends[0]}, {cell.ends[1]}]" if cell.ends else ""
    return f"{cell.value}{bounds}{' ' + cell.notes if cell.notes else ''}"


def _format_bounds(low: float, high: float) -> tuple[str, str]:
    """Format the bounds of an interval; a lower bound never rounds up to 1, an upper never to 0."""
    low = min(low, 0.999) if low < 1 else low
    high = max(high, 0.001) if high > 0 else high
    return number(round(low, 3), 1, decimals=3), number(round(high, 3), 1, decimals=3)
