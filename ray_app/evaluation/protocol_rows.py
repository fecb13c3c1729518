"""Compute the table of results of an evaluation (`list_lines`, `measure_rows`).

The table has a value per row for each detector or ensemble, such as the AUC on the images of one
generator. `list_lines` lists the rows, and `measure_rows` computes their values. A protocol, the
rules for reproducing a paper's table, may define the rows. Footers are values below the rows, such
as means over rows. If a row has several generators, the value is computed from all their images
together, unless the row is a mean.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ray_app.evaluation.protocols import PLAIN, Protocol, ProtocolFooter, ProtocolRow, RowFigure
from ray_app.evaluation.system_metrics import (
    NONE_SCORED,
    SystemOptions,
    SystemScores,
    get_group,
    report_scope,
)
from ray_app.evaluation.systems import combined_overlap, is_named
from ray_app.metrics.detection import NO_RANKING
from ray_app.metrics.intervals import proportion
from ray_app.metrics.registry import METRICS, measure
from ray_app.metrics.table import ALL, MetricsTable
from ray_app.metrics.values import MetricValue, undefined
from ray_app.reports.evaluation.result import AVERAGES, GeneratorInfo, SystemInfo, TableRowInfo

_METRIC_LABELS: Mapping[RowFigure, str] = {
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
_WITHOUT_RANKING = ("balanced_accuracy", "f1_even")
_PAIRED = ("average_precision", "oracle_accuracy")
"""Metrics that a protocol may compute against only some sources of real images."""
_NOT_COMPUTED = undefined("was not computed")


class ProtocolLine(NamedTuple):
    """The definition of one row of the table of results: which generators it covers.

    A row is one of the protocol, or is added for a release year, a generator, or a source of the
    data.

    Attributes:
        row: The name of the row, its metric, and globs that select generators.
        year: Select only generators that were released in this year; None for all.
        only: Select only the generator with exactly this name; None for all.
    """

    row: ProtocolRow
    year: str | None = None
    only: str | None = None

    def select(self, generators: Sequence[GeneratorInfo]) -> list[GeneratorInfo]:
        """Return the generators of the data that the row covers."""
        matches = [generator for generator in generators if self.row.matches(generator)]
        if self.only is not None:
            return [generator for generator in matches if generator.name == self.only]
        return (
            matches
            if self.year is None
            else [generator for generator in matches if _release_year(generator) == self.year]
        )


class MeasuredRows(NamedTuple):
    """The values in the table of results for one detector or ensemble.

    Attributes:
        rows: Values by name of row, such as the AUC on the images of one generator.
        footers: Values by name of footer. A footer is a metric over all rows or images.
    """

    rows: dict[str, MetricValue]
    footers: dict[str, MetricValue]


def list_lines(
    protocol: Protocol | None, generators: Sequence[GeneratorInfo]
) -> list[ProtocolLine]:
    """Return the definitions of the rows of the table of results, in the order of the table.

    Rows that the protocol names come first, including rows without a generator in the data. The
    rows that the protocol adds automatically follow. They are for sources, generators, or years, in
    the order of release and name. A source or generator gets no automatic row if a row that the
    protocol names already covers its images. Rows that are a mean over generators do not count for
    this. Without a protocol, there is a row for each source and each generator.

    Args:
        protocol: The rules for reproducing a published table, or None.
        generators: The generators and sources of the data.

    Returns:
        The definitions.
    """
    rules = protocol or PLAIN
    by_name = {(generator.label, generator.name): generator for generator in generators}
    remaining = [
        generator
        for generator in by_name.values()
        if not any(row.matches(generator) and not row.mean for row in rules.rows)
    ]
    remaining.sort(key=lambda generator: (generator.released or "9", generator.name))
    lines, row_names = [ProtocolLine(row) for row in rules.rows], {row.name for row in rules.rows}
    for kind in rules.automatic:
        if kind == "years":
            years = {
                _release_year(generator) for generator in generators if generator.label == "fake"
            } - {None}
            lines += [
                ProtocolLine(ProtocolRow(name=f"released {year}", generators=("*",)), year=year)
                for year in sorted(filter(None, years))
            ]
        elif kind == "sources":
            lines += [
                _make_line(generator, "rate", generators, row_names)
                for generator in remaining
                if generator.label == "real"
            ]
        else:
            labels = {**_METRIC_LABELS, "rate": "TPR" if len(rules.figures) > 1 else ""}
            fakes = [generator for generator in remaining if generator.label == "fake"]
            lines += [
                _make_line(generator, metric, generators, row_names, labels[metric])
                for metric in rules.figures
                for generator in fakes
            ]
    return lines


def describe_rows(
    lines: Sequence[ProtocolLine], systems: Sequence[SystemInfo]
) -> list[TableRowInfo]:
    """Return the facts on each row of the table of results, for the report.

    The facts are the name of the row, the class of its images (`real` or `fake`), and their number.
    They also show for each detector or ensemble whether it was trained on one of the row's
    generators (`in-training`, `unseen`, or `unknown`).

    Args:
        lines: The rows of the table.
        systems: The facts of the detectors and the ensemble.

    Returns:
        The facts of each row, in the order of `lines`.
    """
    infos = []
    for line in lines:
        members = {system.name: line.select(system.generators) for system in systems}
        n = max(
            (
                sum(generator.n + generator.unscored for generator in generators)
                for generators in members.values()
            ),
            default=0,
        )
        overlaps = {
            name: combined_overlap(generator.seen for generator in generators)
            for name, generators in members.items()
        }
        infos.append(TableRowInfo(line.row.name, line.row.label, n, overlaps))
    return infos


def measure_rows(
    protocol: Protocol | None,
    lines: Sequence[ProtocolLine],
    scores: SystemScores,
    info: SystemInfo,
    metrics: MetricsTable,
    options: SystemOptions,
) -> MeasuredRows:
    """Measure the values of all rows and footers of the table for one detector or ensemble.

    A footer is a value below the rows, such as a mean over rows. All intervals apply to further
    images of the labelled generators and sources, not to further generators and sources.

    Args:
        protocol: The rules for reproducing a published table; None for the plain table.
        lines: The rows of the table, from `list_lines`.
        scores: The scores of the detector or ensemble.
        info: The facts of the detector or ensemble.
        metrics: The metrics of the detector or ensemble on all images, and of its masks.
        options: Inputs that the measurements of all detectors and ensembles share.

    Returns:
        The values by name.
    """
    rules = protocol or PLAIN
    table = _RowMeasurer(rules, scores, info, metrics, options)
    rows = {line.row.name: table.measure_row(line) for line in lines}
    footers = {footer.name: table.measure_footer(footer, lines, rows) for footer in rules.footers}
    return MeasuredRows(rows, footers)


class _RowMeasurer:
    """Measure the rows and footers of one system."""

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

    def measure_row(self, line: ProtocolLine) -> MetricValue:
        row, generators = line.row, line.select(self._info.generators)
        generators = [generator for generator in generators if generator.n] or generators
        if row.why is not None:
            return undefined(row.why)
        if not generators:
            return undefined("no image of the data belongs here")
        if row.mean:
            generator_row = row.model_copy(update={"mean": False})
            names = list(dict.fromkeys(generator.name for generator in generators))
            values = [self.measure_row(ProtocolLine(generator_row, only=name)) for name in names]
            return _mean(
                values,
                [1] * len(values),
                sum(generator.n for generator in generators),
                "generators",
            )
        if row.figure.startswith("pixel_"):
            return self._measure_masks(row.figure, generators)
        if row.figure == "rate":
            return proportion(*self._scores.count_correct(map(get_group, generators)), NONE_SCORED)
        return self._measure_against_others(row.figure, generators)

    def _measure_against_others(
        self, metric: RowFigure, generators: Sequence[GeneratorInfo]
    ) -> MetricValue:
        """Return a metric of the pooled generators against images of the other class."""
        sources = self._find_paired_sources(generators) if metric in _PAIRED else ()
        images = self._scores.select_against(
            [get_group(generator) for generator in generators], sources
        )
        if self._scores.binary and metric not in _WITHOUT_RANKING:
            return undefined(NO_RANKING, len(images))
        is_even = bool(sources) and metric == "average_precision"
        name = "average_precision_even" if is_even else metric
        sample = self._options.intervals.resample_images(images) if metric == "auc" else None
        return measure(METRICS[name], images, sample)

    def _find_paired_sources(self, generators: Sequence[GeneratorInfo]) -> tuple[str, ...]:
        """Return the sources that the protocol compares these generators with."""
        return tuple(
            source
            for source, globs in self._rules.paired.items()
            if any(is_named(generator.name, glob) for generator in generators for glob in globs)
        )

    def _measure_masks(self, metric: str, generators: Sequence[GeneratorInfo]) -> MetricValue:
        """Return the mean over the masks of some generators, at the protocol's size."""
        rules = self._rules.localization
        size = f"masks at {rules.resolution if rules else 'original'} size"
        names = dict.fromkeys(generator.name for generator in generators)
        selected = [
            self._metrics.select(self._info.name, scope=f"{size}: {name}") for name in names
        ]
        values = [metrics.get(metric, _NOT_COMPUTED) for metrics in selected if metrics]
        if not values:
            return undefined("this detector returns no masks, or they were not measured")
        if len(values) == 1:
            return values[0]
        return _mean(
            values,
            [value.n for value in values],
            sum(value.n for value in values),
            "generators",
        )

    def measure_footer(
        self, footer: ProtocolFooter, lines: Sequence[ProtocolLine], rows: Mapping[str, MetricValue]
    ) -> MetricValue:
        method, _, row_metric = footer.figure.partition(":")
        if row_metric:
            default_names = [
                line.row.name
                for line in lines
                if line.row.label == "fake"
                and line.year is None
                and line.row.why is None
                and not line.row.mean
                and line.row.figure == row_metric
            ]
            names = footer.rows or default_names
            images = {
                line.row.name: sum(generator.n for generator in line.select(self._info.generators))
                for line in lines
            }
            weights = [images[name] if method == "weighted" else 1 for name in names]
            return _mean(
                [rows[name] for name in names], weights, sum(images[name] for name in names)
            )
        if method.startswith("report."):
            return self._read_report(method.split(".")[1:])
        if method in CONVENTIONS:
            return CONVENTIONS[method](self._scores, self._info.generators)
        values = {
            scope: self._metrics.find(method, self._info.name, scope=scope)
            for scope in (ALL, AVERAGES)
        }
        value = values[ALL] if values[ALL].n or values[ALL].value is not None else values[AVERAGES]
        return value if self._options.intervals.facts.is_for_images else value.without_interval()

    def _read_report(self, path: Sequence[str]) -> MetricValue:
        """Return a metric of the classification report; recalls have their interval."""
        if path == ["accuracy"]:
            return self._metrics.find("accuracy", self._info.name)
        group, key = path
        metric = self._metrics.find(key, self._info.name, scope=report_scope(group))
        if metric.value is None:
            return undefined("the report has no such metric")
        if key == "recall" and metric.n:
            return proportion(round(metric.value * metric.n), metric.n, "")
        return metric


def f1_by_source(scores: SystemScores, generators: Sequence[GeneratorInfo]) -> MetricValue:
    """Return the cross-benchmark F1 of OpenFake v2: the mean F1 of sources, weighted by images.

    This metric is not meaningful. A source with only real images has an F1 of 0 however well it is
    classified, and a source with only fakes has an F1 of 2 · TPR / (1 + TPR).
    """
    total = value = 0.0
    for generator in generators:
        hits, n = scores.count_correct([get_group(generator)])
        total += n
        if n and generator.label == "fake":
            tpr = hits / n
            value += n * 2 * tpr / (1 + tpr)
    return MetricValue(value / total, n=int(total)) if total else undefined(NONE_SCORED)


def accuracy_missing_wrong(
    scores: SystemScores, generators: Sequence[GeneratorInfo]
) -> MetricValue:
    """Return the accuracy as in DFLIP-3K v1, in which images without a score count as wrong.

    Args:
        scores: The scores of a detector or ensemble.
        generators: All generators and sources, with the number of images without a score.

    Returns:
        The accuracy with its interval.
    """
    hits, n = scores.count_correct(map(get_group, generators))
    return proportion(
        hits, n + sum(generator.unscored for generator in generators), "there are no images"
    )


def false_positive_rate(scores: SystemScores, generators: Sequence[GeneratorInfo]) -> MetricValue:
    """Return the fraction of real images whose score counts as fake."""
    hits, n = scores.count_correct(
        get_group(generator) for generator in generators if generator.label == "real"
    )
    return proportion(n - hits, n, NONE_SCORED)


CONVENTIONS: Mapping[str, Callable[[SystemScores, Sequence[GeneratorInfo]], MetricValue]] = {
    "f1_by_source": f1_by_source,
    "accuracy_missing_wrong": accuracy_missing_wrong,
    "false_positive_rate": false_positive_rate,
}
"""Metrics of a footer in addition to metrics of the system, averages, and means of rows."""


def _make_line(
    generator: GeneratorInfo,
    metric: RowFigure,
    generators: Sequence[GeneratorInfo],
    row_names: set[str],
    metric_label: str = "",
) -> ProtocolLine:
    """Return the row of one generator of the data, under a name that no other row has."""
    name, label = generator.name, generator.label
    is_mixed = any(other.name == name and other.label != label for other in generators)
    row = f"{name}{f' ({label})' if is_mixed else ''}{f', {metric_label}' if metric_label else ''}"
    while row in row_names:
        row += " (in the data)"
    row_names.add(row)
    return ProtocolLine(
        ProtocolRow(
            name=row, generators=("*",), label="fake" if label == "fake" else "real", figure=metric
        ),
        only=name,
    )


def _mean(
    values: Sequence[MetricValue], weights: Sequence[int], n: int, items: str = "rows"
) -> MetricValue:
    """Return the weighted mean over rows or generators; undefined if one of them is."""
    if not values:
        return undefined("no row has that metric")
    if missing := [value.why for value in values if value.value is None]:
        return undefined(f"{len(missing)} of {len(values)} {items} have no value: {missing[0]}", n)
    total = sum(
        weight * (value.value or 0.0) for value, weight in zip(values, weights, strict=True)
    )
    return MetricValue(total / sum(weights), n=n)


def _release_year(generator: GeneratorInfo) -> str | None:
    return (generator.released or "")[:4] or None
