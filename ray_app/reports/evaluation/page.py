"""An evaluation's document → one HTML page that loads nothing and runs nothing (`render_evaluation`), and a few lines
(`evaluation_lines`).

Every text in the document is taken for hostile. The protocol's table has our cells and published ones side by side, in few columns and
rows at a time (`grids`).
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from ray_app.reports import bars
from ray_app.reports import format as wording
from ray_app.reports.evaluation.charts import Chart, curve_groups, reliability_chart, risk_groups, robustness_groups, score_chart
from ray_app.reports.evaluation.model import EvaluationDocument, PairedFacts, ReferenceFacts, TableRow
from ray_app.reports.evaluation.overview import headline, opening, opening_lines
from ray_app.reports.evaluation.system_model import FigureFacts, GeneratorFacts, SystemFacts
from ray_app.reports.evaluation.text import answers, captioned, groups_table, identified_parts, name_lines, pairs_of, warnings
from ray_app.reports.format import three_digit_ends, three_digits
from ray_app.reports.html import jpeg_uri, render, settings
from ray_app.reports.text import GAP, table

MOST_COLUMNS = 9
MOST_ROWS = 24
SEEN_SIGNS = {"in-training": ("●", "in training"), "unseen": ("○", "not in training"), "unknown": ("?", "not known whether in training")}
_DAGGERS = "†‡§¶‖"
_MOST_MISTAKES = 24
_MOST_OVERLAYS = 24
_MOST_GENERATORS = 20
_MOST_STRATA = 12
_BANDS = ("< 0.1 MP", "0.1–0.5 MP", "0.5–1 MP", "1–4 MP", "> 4 MP")
_WIDTH = 120
_LONGEST_NAME = 28


class GridCell(NamedTuple):
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


class GridRow(NamedTuple):
    """A line of the table."""

    name: str
    label: str
    n: int
    cells: list[GridCell]


class Grid(NamedTuple):
    """Some of the table's columns with some of its rows; `summary`: its content in a line where it is not shown at once."""

    columns: list[Column]
    rows: list[GridRow]
    footers: list[GridRow]
    summary: str


class Footnotes:
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


class Confidence(NamedTuple):
    """The distribution of a system's scores, and whether its probabilities hold."""

    system: SystemFacts
    charts: list[Chart]


class EvaluationGeneratorTable(NamedTuple):
    """Generators of one label, the hardest first, those that are shown at once and the rest."""

    caption: str
    rate: str
    key: str
    shown: list[GeneratorFacts]
    more: list[GeneratorFacts]


class Shares(NamedTuple):
    """One format or size band: how many images of each class, and which share of the class."""

    name: str
    real: int
    fake: int
    real_share: float
    fake_share: float


def render_evaluation(document: EvaluationDocument | Mapping[str, Any]) -> str:
    """Write an evaluation's document (`metrics.json`) as one self-contained HTML page; any of its sections may be absent or null.

    Pictures are base64 of JPEGs, already re-encoded and free of metadata; what is no JPEG is not shown.
    Raises pydantic's ValidationError for a value of another type.
    """
    facts = EvaluationDocument.model_validate(document)
    return render(
        "evaluation.html",
        document=facts,
        leading=facts.leading,
        others=facts.others,
        headline=headline(facts),
        opening=opening(facts),
        left_out=_left_out(facts),
        answers=answers(facts),
        warnings=warnings(facts),
        table=grids(facts),
        seen_signs=SEEN_SIGNS,
        said=wording,
        curves=curve_groups(facts.systems),
        risks=risk_groups(facts.systems),
        robustness=robustness_groups(facts.systems),
        confidence=[_confidence(one, place) for place, one in enumerate([facts.leading, *facts.others]) if one],
        generator_tables=_generator_tables,
        bar=_bar,
        view_start=_view_start,
        kinds_of=_kinds,
        strata=_strata,
        paired=_paired(facts),
        mistakes=captioned(facts.mistakes, lambda one: _picture(one.thumbnail), most=_MOST_MISTAKES),
        overlays=[(overlay, _picture(overlay.picture)) for overlay in facts.overlays[:_MOST_OVERLAYS]],
        classes=_classes(facts),
        named=identified_parts(facts.identification),
        pairs=pairs_of(facts.identification),
        grouped=groups_table(facts),
        policy=settings(facts.localization.policy) if facts.localization else [],
        identity=settings(facts.run.identity),
        glossary=_glossary(facts),
    )


def evaluation_lines(document: EvaluationDocument | Mapping[str, Any]) -> list[str]:
    """An evaluation in words for the terminal: one sentence, key figures, what to beware of, then the protocol's table and names."""
    facts = EvaluationDocument.model_validate(document)
    lines = opening_lines(facts)
    beware = [
        f"{'warning' if one.is_grave else 'note'}: {wording.visible(one.heading)} {wording.visible(one.text)}" for one in warnings(facts)
    ]
    lines += ["", *beware] if beware else []
    found = grids(facts)
    if found.shown:
        lines += ["", "By source and generator, with 95 % intervals for further images of the same ones", *_grid_lines(found.shown)]
        lines += [f"{sign} {wording.visible(text)}" for sign, text in found.notes]
        lines += [f"on the page only: {', '.join(grid.summary for grid in found.more)}"] if found.more else []
    return lines + name_lines(facts)


def grids(facts: EvaluationDocument) -> Grids:
    """The table in pieces of at most MOST_COLUMNS columns and MOST_ROWS rows; the hardest rows of the leading system come first."""
    notes = Footnotes()
    kept, others = _rows_at_once(facts)
    pieces = []
    for index, systems in enumerate(_columns_at_once(facts)):
        names = f"{len(systems)} more systems" if index else ""
        pieces += [_grid(facts, systems, kept, notes, names or f"{len(kept)} rows")]
        pieces += [_grid(facts, systems, others, notes, f"{len(others)} easier rows" + (f", {names}" if names else ""))] if others else []
    return Grids(pieces[0] if pieces else None, pieces[1:], notes.rows)


def _rows_at_once(facts: EvaluationDocument) -> tuple[list[TableRow], list[TableRow]]:
    rows = list(facts.table.rows)
    if len(rows) <= MOST_ROWS:
        return rows, []
    leading = facts.leading.name if facts.leading else ""
    cells = facts.table.cells.get(leading, {})

    def ease(row: TableRow) -> tuple[bool, float]:
        number = cells[row.name].number if row.name in cells else None
        return row.label != "real", 2.0 if number is None else number

    hardest = {row.name for row in sorted(rows, key=ease)[:MOST_ROWS]}
    return [row for row in rows if row.name in hardest], [row for row in rows if row.name not in hardest]


def _columns_at_once(facts: EvaluationDocument) -> list[list[str]]:
    """Systems in groups that fit with their published columns; those that no system of ours belongs to stand with the first group."""
    names = list(facts.table.columns) or [system.name for system in facts.systems if system.name in facts.table.cells]
    if not facts.table.rows and not facts.table.footers:
        return []
    groups: list[list[str]] = [[]]
    room = MOST_COLUMNS - len(_alone(facts))
    for name in names:
        width = 1 + sum(one.system == name for one in facts.reference)
        if width > room and groups[-1]:
            groups.append([])
            room = MOST_COLUMNS
        groups[-1].append(name)
        room -= width
    return groups


def _grid(facts: EvaluationDocument, systems: Sequence[str], rows: Sequence[TableRow], notes: Footnotes, summary: str) -> Grid:
    alone = _alone(facts) if list(facts.table.columns)[:1] == list(systems)[:1] else []
    columns: list[tuple[str | None, ReferenceFacts | None]] = []
    for name in systems:
        columns += [(name, None), *((None, one) for one in facts.reference if one.system == name)]
    columns += [(None, one) for one in alone]
    lines = [GridRow(row.name, row.label, row.n, [_cell(facts, row, *column, notes) for column in columns]) for row in rows]
    plain = [TableRow(name=footer.name) for footer in facts.table.footers]
    ours = {footer.name: footer.cells for footer in facts.table.footers}
    footers = [
        GridRow(
            row.name,
            "",
            0,
            [_figure(ours[row.name].get(name), notes) if name else _published(row.name, one, notes) for name, one in columns],
        )
        for row in plain
    ]
    return Grid([_head(name, one, notes) for name, one in columns], lines, footers, summary)


def _alone(facts: EvaluationDocument) -> list[ReferenceFacts]:
    """Published columns of systems that are not among ours."""
    ours = {*facts.table.columns, *(system.name for system in facts.systems)}
    return [one for one in facts.reference if one.system not in ours]


def _head(name: str | None, reference: ReferenceFacts | None, notes: Footnotes) -> Column:
    if reference is None:
        return Column(name or "")
    return Column(reference.column, reference.source, notes.dagger(reference.mark or ""), is_ours=False)


def _cell(facts: EvaluationDocument, row: TableRow, name: str | None, reference: ReferenceFacts | None, notes: Footnotes) -> GridCell:
    if name is None:
        return _published(row.name, reference, notes)
    return _figure(facts.table.cells.get(name, {}).get(row.name), notes)._replace(seen=row.seen.get(name, "unknown"))


def _figure(figure: FigureFacts | None, notes: Footnotes) -> GridCell:
    if figure is None:
        return GridCell(wording.NONE)
    if figure.number is None:
        return GridCell(wording.NONE, notes=notes.letter(figure.why))
    ends = three_digit_ends(figure.ends) if figure.ends else None
    method = f", {figure.method}" if figure.method else ""
    return GridCell(three_digits(figure.number), ends, about=f"of {figure.n:,}{method}" if figure.n else "")


def _published(row: str, reference: ReferenceFacts | None, notes: Footnotes) -> GridCell:
    value = reference.rows.get(row) if reference else None
    return GridCell(three_digits(value), notes=notes.dagger(reference.marks.get(row, "")) if reference and value is not None else "")


def _grid_lines(grid: Grid) -> list[str]:
    """The table, in as many pieces one under the other as its columns need."""
    names = [wording.shortened(row.name, _LONGEST_NAME) for row in (*grid.rows, *grid.footers)]
    columns = []
    for place, one in enumerate(grid.columns):
        head = wording.shortened(one.name, _LONGEST_NAME) + (f" {one.notes}" if one.notes else "")
        columns.append([head, *(_cell_text(row.cells[place]) for row in (*grid.rows, *grid.footers))])
    lines: list[str] = []
    while columns:
        room, fitting = _WIDTH - max(map(wording.columns, names), default=0), 0
        while fitting < len(columns) and (room := room - len(GAP) - max(map(wording.columns, columns[fitting]))) >= 0:
            fitting += 1
        piece, columns = columns[: max(1, fitting)], columns[max(1, fitting) :]
        heads, *rows = zip(["", *names], *piece, strict=True)
        lines += ["", *table(heads, rows, _WIDTH, right=range(1, len(heads)))] if lines else table(heads, rows, right=range(1, len(heads)))
    return lines


def _cell_text(cell: GridCell) -> str:
    ends = f" [{cell.ends[0]}, {cell.ends[1]}]" if cell.ends else ""
    return f"{cell.value}{ends}{' ' + cell.notes if cell.notes else ''}"


def _confidence(system: SystemFacts, index: int) -> Confidence:
    found = (score_chart(system, f"scores-{index}"), reliability_chart(system, f"reliability-{index}"))
    return Confidence(system, [chart for chart in found if chart])


def _generator_tables(system: SystemFacts) -> list[EvaluationGeneratorTable]:
    tables = []
    for label, caption, key in (("fake", "Generators", "tpr"), ("real", "Sources of real images", "tnr")):
        found = system.hardest(label)
        if found:
            tables.append(EvaluationGeneratorTable(caption, wording.named(key), key, found[:_MOST_GENERATORS], found[_MOST_GENERATORS:]))
    return tables


def _bar(figure: FigureFacts, kind: str = "plain", start: float = 0.0, level: float | None = None) -> Markup:
    """A figure as a bar with its interval, on a scale from `start` to 1; nothing where there is no figure."""
    return Markup("") if figure.number is None else bars.interval_meter(figure.number, figure.ends, start, kind, level)


def _view_start(system: SystemFacts) -> float:
    """Where the scale of a system's AUCs under perturbation begins."""
    found = [view.figures["auc"] for view in system.views if "auc" in view.figures] + [system.figure("auc")]
    return bars.axis_start(one.ends[0] if one.ends else one.number for one in found if one.number is not None)


def _kinds(system: SystemFacts) -> list[tuple[str, Mapping[str, FigureFacts]]]:
    """Whole fakes and local edits, where there are local edits."""
    known = [(kind, found) for kind, found in system.kinds.items() if any(figure.number is not None for figure in found.values())]
    return known if any(kind == "local" for kind, _ in known) else []


def _strata(system: SystemFacts) -> Any:
    """The fullest combinations of format and size."""
    return sorted(system.strata, key=lambda one: -(one.n_real + one.n_fake))[:_MOST_STRATA]


def _paired(facts: EvaluationDocument) -> list[tuple[PairedFacts, str, str]]:
    """Each test with what its two systems are called."""
    called = {system.name: system.called for system in facts.systems}
    return [(one, called.get(one.a, one.a), called.get(one.b, one.b)) for one in facts.paired]


def _picture(encoded: str | None) -> str | None:
    """Base64 of a JPEG as a data URI; None for anything else."""
    try:
        return jpeg_uri(base64.b64decode(encoded or "", validate=True))
    except (binascii.Error, ValueError):
        return None


def _classes(facts: EvaluationDocument) -> list[tuple[str, str, list[Shares]]]:
    """Formats and sizes of both classes side by side, the most frequent first; bands of size keep their order."""
    found = []
    for head, caption, counts in (("Format", "Formats by class", facts.data.formats), ("Size", "Sizes by class", facts.data.sizes)):
        real, fake = counts.get("real", {}), counts.get("fake", {})
        totals = max(sum(real.values()), 1), max(sum(fake.values()), 1)
        names = list(dict.fromkeys([*real, *fake]))
        names.sort(key=lambda name: (_BANDS.index(name) if name in _BANDS else len(_BANDS), -(real.get(name, 0) + fake.get(name, 0))))
        rows = [
            Shares(name, real.get(name, 0), fake.get(name, 0), real.get(name, 0) / totals[0], fake.get(name, 0) / totals[1])
            for name in names[:_MOST_GENERATORS]
        ]
        found += [(head, caption, rows)] if rows else []
    return found


def _left_out(facts: EvaluationDocument) -> list[str]:
    """What the page has on a screen and not on paper, so that a print stays short."""
    rest = {
        "what the tables and curves have of more generators and systems": len(facts.systems) > 1 or len(facts.table.rows) > MOST_ROWS,
        "figures with abstentions": bool(facts.leading and facts.leading.decided),
        "risk over coverage": any(one.risk_coverage.points for one in facts.systems),
        "figures under perturbation": any(one.views for one in facts.systems),
        "figures within one format and size": bool(facts.leading and facts.leading.strata),
        "masks": facts.localization is not None,
        "generators named and prompts predicted": bool(facts.identification or facts.prompts or facts.groups),
        "formats and sizes of the data": bool(facts.data.n),
        "all figures with their intervals": bool(facts.systems),
        "how labels and rows were joined, and the settings of the run": bool(facts.labels.rows or facts.run.identity),
        "the glossary": True,
    }
    return [words for words, is_there in rest.items() if is_there]


def _glossary(facts: EvaluationDocument) -> list[tuple[str, str]]:
    """What each figure of this document means."""
    there = {key for system in facts.systems for found in (system.figures, system.decided or {}, system.averages) for key in found}
    there |= {"aurc"} if any(system.risk_coverage.points for system in facts.systems) else set()
    for section in (facts.identification, facts.prompts):
        there |= set(section.figures) if section else set()
    there |= {key for _, part in identified_parts(facts.identification) for key in part.figures}
    there |= {key for row in (facts.groups.groups if facts.groups else ()) for key in row.identification or ()}
    for masks in facts.localization.systems if facts.localization else ():
        there |= set(masks.figures)
    return [(meaning.words[0].upper() + meaning.words[1:], meaning.sentence) for key, meaning in wording.MEANINGS.items() if key in there]
