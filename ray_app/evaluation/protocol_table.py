"""The table of a protocol (`table_of`): rows, footers, and published columns beside ours (`reference_of`)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ray_app.evaluation.protocols import CONVENTIONS, Protocol, ProtocolFooter, ProtocolRow, RowFigure, balanced, f1_even, told_right
from ray_app.evaluation.systems import seen_by_any
from ray_app.metrics.arrays import MetricEstimate, undefined
from ray_app.metrics.intervals import proportion
from ray_app.reports.evaluation.model import LocalizationFacts, MaskRow, ReferenceFacts, TableFacts, TableRow
from ray_app.reports.evaluation.model import TableFooter as FooterFacts
from ray_app.reports.evaluation.system_model import FigureFacts, GeneratorFacts, SystemFacts, facts_of

PLAIN = Protocol(
    name="plain",
    title="Plain",
    source="ours",
    what="Every source of real images and every generator, at the detector's own threshold.",
    automatic=("sources", "generators"),
    averages="Over generators once as they are (unweighted) and once by their images (n-weighted).",
    footers=(
        ProtocolFooter(name="average TPR (unweighted)", figure="tpr_mean"),
        ProtocolFooter(name="average TPR (n-weighted)", figure="tpr_weighted"),
        ProtocolFooter(name="F1", figure="f1"),
        ProtocolFooter(name="accuracy", figure="accuracy"),
        ProtocolFooter(name="balanced accuracy", figure="balanced_accuracy"),
        ProtocolFooter(name="ROC AUC", figure="auc"),
        ProtocolFooter(name="average precision", figure="average_precision"),
    ),
)
"""What holds where no protocol is named."""

_WORDS = {
    "auc": "AUC", "average_precision": "AP", "oracle_accuracy": "accuracy at oracle threshold",
    "balanced_accuracy": "balanced accuracy", "f1_even": "F1 at even counts", "pixel_f1": "pixel F1", "pixel_iou": "pixel IoU",
    "pixel_auc": "pixel AUC", "pixel_accuracy": "pixel accuracy",
}  # fmt: skip


_NOT_OF_SEVERAL = "not to be had of several generators together from the figures of each"


class _Line(NamedTuple):
    """A row of the table before it has cells. `year`: only generators that were released then; `only`: only that of this very name."""

    row: ProtocolRow
    year: str | None = None
    only: str | None = None

    def of(self, system: SystemFacts) -> list[GeneratorFacts]:
        found = [one for one in system.generators if self.row.holds(one)]
        if self.only is not None:
            return [one for one in found if one.name == self.only]
        return found if self.year is None else [one for one in found if _year(one) == self.year]


def table_of(protocol: Protocol | None, systems: Sequence[SystemFacts], localization: LocalizationFacts | None = None) -> TableFacts:
    """The document's section `table`: rows × systems and footers.

    `systems` and `localization` are the sections of those names; the latter only for rows of masks. A row that no generator of the data
    belongs to stands there with undefined cells. `seen` of a row is by its worst: seen if one of its generators was.
    """
    rules = protocol or PLAIN
    lines = [_Line(row) for row in rules.rows] + _automatic(rules, systems)
    masks = _masks_of(rules, localization)
    cells = {system.name: {line.row.name: _cell(line, system, masks) for line in lines} for system in systems}
    return TableFacts(
        rows=tuple(_head(line, systems) for line in lines),
        columns=tuple(system.name for system in systems),
        cells={name: facts_of(column) for name, column in cells.items()},
        footers=tuple(
            FooterFacts(name=one.name, cells={system.name: FigureFacts.of(_footer(one, system, lines, cells)) for system in systems})
            for one in rules.footers
        ),
    )


def reference_of(protocol: Protocol | None) -> list[ReferenceFacts]:
    """The document's section `reference`: published columns with what is wrong about them."""
    columns = protocol.reference if protocol else ()
    return [ReferenceFacts(**one.model_dump(exclude={"detector"}), system=one.detector) for one in columns]


def _automatic(rules: Protocol, systems: Sequence[SystemFacts]) -> list[_Line]:
    """Rows for what is in the data, in order of release and name; generators that a row of the protocol holds already are left out."""
    known = {(one.label, one.name): one for system in systems for one in system.generators}
    rest = [one for one in known.values() if not any(row.holds(one) for row in rules.rows)]
    rest.sort(key=lambda one: (one.released or "9", one.name))
    taken = {row.name for row in rules.rows}
    lines: list[_Line] = []
    for wanted in rules.automatic:
        if wanted == "years":
            years = sorted({year for one in known.values() if one.label == "fake" and (year := _year(one))})
            lines += [_Line(ProtocolRow(name=f"released {year}", generators=("*",)), year=year) for year in years]
        elif wanted == "sources":
            lines += [_exactly(one, "rate", known, taken) for one in rest if one.label == "real"]
        else:
            words = {**_WORDS, "rate": "TPR" if len(rules.figures) > 1 else ""}
            fakes = [one for one in rest if one.label == "fake"]
            lines += [_exactly(one, figure, known, taken, words[figure]) for figure in rules.figures for one in fakes]
    return lines


def _exactly(generator: GeneratorFacts, figure: RowFigure, known: Mapping[tuple[str, str], Any], taken: set[str], words: str = "") -> _Line:
    """The row of one generator of the data, whose name is like no other row's."""
    name, label = generator.name, generator.label
    mixed = ("real" if label == "fake" else "fake", name) in known
    row = f"{name}{f' ({label})' if mixed else ''}{f', {words}' if words else ''}"
    while row in taken:
        row += " (in the data)"
    taken.add(row)
    return _Line(ProtocolRow(name=row, generators=("*",), label="fake" if label == "fake" else "real", figure=figure), only=name)


def _head(line: _Line, systems: Sequence[SystemFacts]) -> TableRow:
    mine = {system.name: line.of(system) for system in systems}
    counts = [sum(one.n + one.unscored for one in found) for found in mine.values()]
    known = {name: seen_by_any(one.seen for one in found) for name, found in mine.items()}
    return TableRow(name=line.row.name, label=line.row.label, n=max(counts, default=0), seen=known)


def _cell(line: _Line, system: SystemFacts, masks: Mapping[str, Sequence[MaskRow]]) -> MetricEstimate:
    mine, figure = line.of(system), line.row.figure
    mine = [one for one in mine if one.n] or mine
    if line.row.why is not None:
        return undefined(line.row.why)
    if not mine:
        return undefined("no image of the data belongs here")
    if figure == "rate":
        return told_right(mine)
    if figure in ("balanced_accuracy", "f1_even"):
        others = [one for one in system.generators if one.label != line.row.label]
        fakes, reals = (mine, others) if line.row.label == "fake" else (others, mine)
        return (balanced if figure == "balanced_accuracy" else f1_even)(fakes, reals)
    if figure.startswith("pixel_"):
        names = {one.name for one in mine}
        drawn = [_figure(one.figures.get(figure)) for one in masks.get(system.name, []) if one.name in names]
        return _pooled(drawn, [one.n for one in drawn]) if drawn else undefined("this detector draws no masks, or they were not measured")
    found = [_figure(one.figures.get(figure)) for one in mine]
    # The others are not linear in the fakes.
    return _pooled(found, [one.n for one in mine]) if len(found) == 1 or figure == "auc" else undefined(_NOT_OF_SEVERAL)


def _pooled(found: Sequence[MetricEstimate], images: Sequence[int]) -> MetricEstimate:
    """Of several generators together, each by its images: exact for means of images, and for AUCs against the same real ones."""
    if len(found) == 1:
        return found[0]
    if missing := [one.why for one in found if one.value is None]:
        return undefined(missing[0] or "")
    n = sum(images)
    return MetricEstimate(sum(count * (one.value or 0.0) for one, count in zip(found, images, strict=True)) / n, n=n)


def _masks_of(rules: Protocol, localization: LocalizationFacts | None) -> Mapping[str, Sequence[MaskRow]]:
    """By system, the document's rows of its masks on each generator, at the size of the protocol's."""
    size = rules.localization.resolution if rules.localization else "original"
    return {one.name: one.generators for one in (localization.systems if localization else ()) if one.resolution == size}


def _footer(
    footer: ProtocolFooter, system: SystemFacts, lines: Sequence[_Line], cells: Mapping[str, Mapping[str, MetricEstimate]]
) -> MetricEstimate:
    way, _, figure = footer.figure.partition(":")
    if figure:
        usual = [line.row for line in lines if line.row.label == "fake" and line.year is None and line.row.why is None]
        rows = footer.rows or [row.name for row in usual if row.figure == figure]
        images = {line.row.name: sum(one.n for one in line.of(system)) for line in lines}
        chosen = [cells[system.name][row] for row in rows]
        return _mean(chosen, [images[row] if way == "weighted" else 1 for row in rows], sum(images[row] for row in rows))
    if way.startswith("report."):
        return _reported(way.split(".")[1:], system.report)
    if way in CONVENTIONS:
        return CONVENTIONS[way](system.generators)
    return _figure({**system.figures, **system.averages}.get(way))


def _mean(found: Sequence[MetricEstimate], weights: Sequence[int], n: int) -> MetricEstimate:
    """Over rows; not defined where one of them is not."""
    if not found:
        return undefined("no row has that figure")
    if missing := [one.why for one in found if one.value is None]:
        return undefined(f"{len(missing)} of {len(found)} rows have no figure: {missing[0]}", n)
    return MetricEstimate(sum(weight * (one.value or 0.0) for one, weight in zip(found, weights, strict=True)) / sum(weights), n=n)


def _reported(path: Sequence[str], report: Mapping[str, Any]) -> MetricEstimate:
    """A number of the classification report; shares of known counts with their interval."""
    group, key = (path[0], path[1]) if len(path) == 2 else ("", path[0])
    section = report.get(group, report) if group else report
    value = section.get(key) if isinstance(section, Mapping) else None
    if value is None:
        return undefined("the report has no such number")
    n = round(section["support"] if group else report["weighted avg"]["support"])
    return proportion(round(value * n), n, "") if key in ("recall", "accuracy") and n else MetricEstimate(float(value), n=n)


def _figure(found: FigureFacts | None) -> MetricEstimate:
    """A figure of the document; undefined where it is not there."""
    return (found or FigureFacts()).figure


def _year(generator: GeneratorFacts) -> str | None:
    return (generator.released or "")[:4] or None
