"""The table of a protocol: its rows (`lines_of`), and their values for one system (`measure_rows`).

A value is a metric of the scores of the images that belong to the row, so that every metric is
defined for one generator and for several.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ray_app.evaluation.protocols import PLAIN, Protocol, ProtocolFooter, ProtocolRow, RowFigure
from ray_app.evaluation.system_metrics import (
    NONE_SCORED,
    SystemOptions,
    SystemScores,
    group_of,
    report_scope,
)
from ray_app.evaluation.systems import combined_overlap, is_named
from ray_app.metrics.detection import NO_RANKING
from ray_app.metrics.intervals import proportion
from ray_app.metrics.registry import METRICS, measure
from ray_app.metrics.table import ALL, MetricsTable
from ray_app.metrics.values import MetricValue, undefined
from ray_app.reports.evaluation.result import AVERAGES, GeneratorInfo, SystemInfo, TableRowInfo

_WORDS: Mapping[RowFigure, str] = {
    "auc": "AUC",
    "average_precision": "AP",
    "oracle_accuracy": "accuracy at oracle threshold",
    "balanced_accuracy": "balanced accuracy",
    "f1_even": "F1 at even counts",
    "pixel_f1": "pixel F1",
    "pixel_iou": "pixel IoU",
    "pixel_auc": "pixel AUC",
    "pixel_accuracy": "pixel accuracy",
}
_NOT_RANKING = ("balanced_accuracy", "f1_even")
_PAIRED = ("average_precision", "oracle_accuracy")
"""Metrics that a protocol may compute against some sources of real images alone."""
_NOT_COMPUTED = undefined("was not computed")


class ProtocolLine(NamedTuple):
    """A row of the table before it has cells.

    Attributes:
        row: The row of the protocol.
        year: Only generators that were released in this year.
        only: Only the generator of this very name.
    """

    row: ProtocolRow
    year: str | None = None
    only: str | None = None

    def of(self, generators: Sequence[GeneratorInfo]) -> list[GeneratorInfo]:
        """Return the generators that belong to it."""
        found = [one for one in generators if self.row.holds(one)]
        if self.only is not None:
            return [one for one in found if one.name == self.only]
        return found if self.year is None else [one for one in found if _year(one) == self.year]


class MeasuredRows(NamedTuple):
    """The values of a protocol's rows and footers for one system, by their names."""

    rows: dict[str, MetricValue]
    footers: dict[str, MetricValue]


def lines_of(protocol: Protocol | None, generators: Sequence[GeneratorInfo]) -> list[ProtocolLine]:
    """Return the rows of a protocol; without one, a row for each source and each generator.

    A row that no generator of the data belongs to is among them. Rows for what is in the data
    follow in the order of release and name; generators that a row of the protocol holds already,
    except for one of a mean, are left out.
    """
    rules = protocol or PLAIN
    by_name = {(one.label, one.name): one for one in generators}
    rest = [
        one
        for one in by_name.values()
        if not any(row.holds(one) and not row.mean for row in rules.rows)
    ]
    rest.sort(key=lambda one: (one.released or "9", one.name))
    lines, taken = [ProtocolLine(row) for row in rules.rows], {row.name for row in rules.rows}
    for wanted in rules.automatic:
        if wanted == "years":
            years = {_year(one) for one in generators if one.label == "fake"} - {None}
            lines += [
                ProtocolLine(ProtocolRow(name=f"released {year}", generators=("*",)), year=year)
                for year in sorted(filter(None, years))
            ]
        elif wanted == "sources":
            lines += [
                _line_of(one, "rate", generators, taken) for one in rest if one.label == "real"
            ]
        else:
            words = {**_WORDS, "rate": "TPR" if len(rules.figures) > 1 else ""}
            fakes = [one for one in rest if one.label == "fake"]
            lines += [
                _line_of(one, figure, generators, taken, words[figure])
                for figure in rules.figures
                for one in fakes
            ]
    return lines


def describe_rows(
    lines: Sequence[ProtocolLine], systems: Sequence[SystemInfo]
) -> list[TableRowInfo]:
    """Return the heads of the rows. A row was seen in training if one of its generators was."""
    found = []
    for line in lines:
        mine = {system.name: line.of(system.generators) for system in systems}
        n = max((sum(one.n + one.unscored for one in some) for some in mine.values()), default=0)
        seen = {name: combined_overlap(one.seen for one in some) for name, some in mine.items()}
        found.append(TableRowInfo(line.row.name, line.row.label, n, seen))
    return found


def measure_rows(
    protocol: Protocol | None,
    lines: Sequence[ProtocolLine],
    scores: SystemScores,
    info: SystemInfo,
    metrics: MetricsTable,
    options: SystemOptions,
) -> MeasuredRows:
    """Return the values of all rows and footers. All intervals are of further images.

    Args:
        protocol: The protocol; None for the plain table.
        lines: Its rows.
        scores: The scores of the system.
        info: The facts of the system.
        metrics: The metrics of the system as a whole, and of its masks.
        options: What intervals are of.
    """
    rules = protocol or PLAIN
    table = _Rows(rules, scores, info, metrics, options)
    rows = {line.row.name: table.value_of(line) for line in lines}
    footers = {one.name: table.footer_of(one, lines, rows) for one in rules.footers}
    return MeasuredRows(rows, footers)


class _Rows:
    """The values of one system."""

    def __init__(
        self,
        rules: Protocol,
        scores: SystemScores,
        info: SystemInfo,
        metrics: MetricsTable,
        options: SystemOptions,
    ) -> None:
        self._rules, self._scores, self._info = rules, scores, info
        self._metrics, self._options = metrics, options

    def value_of(self, line: ProtocolLine) -> MetricValue:
        row, mine = line.row, line.of(self._info.generators)
        mine = [one for one in mine if one.n] or mine
        if row.why is not None:
            return undefined(row.why)
        if not mine:
            return undefined("no image of the data belongs here")
        if row.mean:
            each = row.model_copy(update={"mean": False})
            names = list(dict.fromkeys(one.name for one in mine))
            found = [self.value_of(ProtocolLine(each, only=name)) for name in names]
            return _mean(found, [1] * len(found), sum(one.n for one in mine), "generators")
        if row.figure.startswith("pixel_"):
            return self._pixel_value(row.figure, mine)
        if row.figure == "rate":
            return proportion(*self._scores.correct(map(group_of, mine)), NONE_SCORED)
        return self._value_against_others(row.figure, mine)

    def _value_against_others(
        self, figure: RowFigure, generators: Sequence[GeneratorInfo]
    ) -> MetricValue:
        """A metric of some generators together against images of the other class."""
        sources = self._paired_sources(generators) if figure in _PAIRED else ()
        images = self._scores.against([group_of(one) for one in generators], sources)
        if self._scores.binary and figure not in _NOT_RANKING:
            return undefined(NO_RANKING, len(images))
        is_even = bool(sources) and figure == "average_precision"
        name = "average_precision_even" if is_even else figure
        sample = self._options.intervals.resample_images(images) if figure == "auc" else None
        return measure(METRICS[name], images, sample)

    def _paired_sources(self, generators: Sequence[GeneratorInfo]) -> tuple[str, ...]:
        """The sources that the protocol compares these generators with."""
        return tuple(
            source
            for source, globs in self._rules.paired.items()
            if any(is_named(one.name, glob) for one in generators for glob in globs)
        )

    def _pixel_value(self, figure: str, generators: Sequence[GeneratorInfo]) -> MetricValue:
        """The mean over the masks of some generators, at the size of the protocol."""
        rules = self._rules.localization
        size = f"masks at {rules.resolution if rules else 'original'} size"
        names = dict.fromkeys(one.name for one in generators)
        found = [self._metrics.select(self._info.name, scope=f"{size}: {name}") for name in names]
        values = [metrics.get(figure, _NOT_COMPUTED) for metrics in found if metrics]
        if not values:
            return undefined("this detector draws no masks, or they were not measured")
        if len(values) == 1:
            return values[0]
        return _mean(values, [one.n for one in values], sum(one.n for one in values), "generators")

    def footer_of(
        self, footer: ProtocolFooter, lines: Sequence[ProtocolLine], rows: Mapping[str, MetricValue]
    ) -> MetricValue:
        way, _, figure = footer.figure.partition(":")
        if figure:
            usual = [
                line.row.name
                for line in lines
                if line.row.label == "fake"
                and line.year is None
                and line.row.why is None
                and not line.row.mean
                and line.row.figure == figure
            ]
            names = footer.rows or usual
            images = {
                line.row.name: sum(one.n for one in line.of(self._info.generators))
                for line in lines
            }
            weights = [images[name] if way == "weighted" else 1 for name in names]
            return _mean(
                [rows[name] for name in names], weights, sum(images[name] for name in names)
            )
        if way.startswith("report."):
            return self._reported(way.split(".")[1:])
        if way in CONVENTIONS:
            return CONVENTIONS[way](self._scores, self._info.generators)
        found = {
            scope: self._metrics.find(way, self._info.name, scope=scope)
            for scope in (ALL, AVERAGES)
        }
        value = found[ALL] if found[ALL].n or found[ALL].value is not None else found[AVERAGES]
        return value if self._options.intervals.facts.of_images else value.without_interval()

    def _reported(self, path: Sequence[str]) -> MetricValue:
        """A number of the classification report; recalls with their interval."""
        if path == ["accuracy"]:
            return self._metrics.find("accuracy", self._info.name)
        group, key = path
        found = self._metrics.find(key, self._info.name, scope=report_scope(group))
        if found.value is None:
            return undefined("the report has no such number")
        if key == "recall" and found.n:
            return proportion(round(found.value * found.n), found.n, "")
        return found


def f1_by_source(scores: SystemScores, generators: Sequence[GeneratorInfo]) -> MetricValue:
    """Return OpenFake v2's cross-benchmark F1: the F1 of every source by itself, weighted by its
    images.

    It means nothing: a source of real images alone has an F1 of 0 however well it is classified,
    and one of fakes 2 · TPR / (1 + TPR).
    """
    total = value = 0.0
    for one in generators:
        hits, n = scores.correct([group_of(one)])
        total += n
        if n and one.label == "fake":
            tpr = hits / n
            value += n * 2 * tpr / (1 + tpr)
    return MetricValue(value / total, n=int(total)) if total else undefined(NONE_SCORED)


def accuracy_missing_wrong(
    scores: SystemScores, generators: Sequence[GeneratorInfo]
) -> MetricValue:
    """Return DFLIP-3K v1's accuracy: correct ones among all images of the list, those without a
    score included.
    """
    hits, n = scores.correct(map(group_of, generators))
    return proportion(hits, n + sum(one.unscored for one in generators), "there are no images")


def false_positive_rate(scores: SystemScores, generators: Sequence[GeneratorInfo]) -> MetricValue:
    """Return the fraction of real images that are called fake."""
    hits, n = scores.correct(group_of(one) for one in generators if one.label == "real")
    return proportion(n - hits, n, NONE_SCORED)


CONVENTIONS: Mapping[str, Callable[[SystemScores, Sequence[GeneratorInfo]], MetricValue]] = {
    "f1_by_source": f1_by_source,
    "accuracy_missing_wrong": accuracy_missing_wrong,
    "false_positive_rate": false_positive_rate,
}
"""What a footer may name beside metrics, averages, and means of rows."""


def _line_of(
    generator: GeneratorInfo,
    figure: RowFigure,
    generators: Sequence[GeneratorInfo],
    taken: set[str],
    words: str = "",
) -> ProtocolLine:
    """The row of one generator of the data, whose name is like no other row's."""
    name, label = generator.name, generator.label
    is_mixed = any(one.name == name and one.label != label for one in generators)
    row = f"{name}{f' ({label})' if is_mixed else ''}{f', {words}' if words else ''}"
    while row in taken:
        row += " (in the data)"
    taken.add(row)
    return ProtocolLine(
        ProtocolRow(
            name=row, generators=("*",), label="fake" if label == "fake" else "real", figure=figure
        ),
        only=name,
    )


def _mean(
    found: Sequence[MetricValue], weights: Sequence[int], n: int, of: str = "rows"
) -> MetricValue:
    """The mean over rows, or generators; undefined if one of them is."""
    if not found:
        return undefined("no row has that figure")
    if missing := [one.why for one in found if one.value is None]:
        return undefined(f"{len(missing)} of {len(found)} {of} have no figure: {missing[0]}", n)
    total = sum(weight * (one.value or 0.0) for one, weight in zip(found, weights, strict=True))
    return MetricValue(total / sum(weights), n=n)


def _year(generator: GeneratorInfo) -> str | None:
    return (generator.released or "")[:4] or None
