"""Report an evaluation as an HTML page (`render_evaluation`), or as lines (`evaluation_lines`).

The page has no scripts and loads nothing. All texts of an evaluation are untrusted and therefore
escaped.
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from markupsafe import Markup

from ray_app.metrics import shortcut
from ray_app.metrics.values import NOT_MEASURED, MetricValue
from ray_app.reports import charts
from ray_app.reports import format as wording
from ray_app.reports.evaluation.protocol_table import MAX_ROWS, list_sources, protocol_table
from ray_app.reports.evaluation.result import (
    AVERAGES,
    DECIDED,
    PROMPTS,
    EvaluationResult,
    GeneratorInfo,
    GroupInfo,
    Points,
    SystemResult,
)
from ray_app.reports.evaluation.sentences import (
    answers,
    find_difference,
    format_rounded_interval,
    headline,
    short,
    warnings,
)
from ray_app.reports.format import (
    format_metric,
    format_metric_with_interval,
    interval,
    name_metric,
    number,
    percent,
)
from ray_app.reports.html import render, settings
from ray_app.reports.text import table

_FLAGS, _FINDS = "real images flagged", "fakes found"
# Exponents of the lowest and the highest start of a logarithmic axis.
_MIN_DECADE, _MAX_DECADE = -6, -3
_MIN_SERIES = 3
_AMOUNT = re.compile(r"(?P<family>.*?)[\s:_=-]*(?:q|sigma|σ|s)?[\s:_=-]*(?P<amount>\d+(?:\.\d+)?)")
# Perturbations that are harsher at lower amounts.
_FALLING = re.compile(r"jpe?g|webp|avif|quality|resi[sz]|scale|crop", re.IGNORECASE)

SEEN_SIGNS = {
    "in-training": ("●", "in training"),
    "unseen": ("○", "not in training"),
    "unknown": ("?", "not known whether in training"),
}
HEADERS = ("fakes found", "real images flagged", "ROC AUC")
_MAX_ROWS = 8
_WIDTH = 120
_KEYS = ("accuracy", "top_3", "macro_f1", "open_set_auroc", "abstained_known", "abstained_unknown")
_PROMPTS = ("clip_image", "clip_image_chance")
_COLUMNS = ("tpr", "auc", "accuracy", "top_3", "family_accuracy", "abstained", "clip_image")
_TITLES = {"accuracy": "named correctly"}


class OpeningBars(NamedTuple):
    """The bar chart at the top of the page of an evaluation.

    Attributes:
        title: Title of the chart.
        axis: Name of the axis, which ends at 1.
        start: Start of the axis.
        bars: Name, formatted value, metric, and style class of each bar.
    """

    title: str
    axis: str
    start: float
    bars: list[tuple[str, str, MetricValue, str]]


class GroupTable(NamedTuple):
    """A table of metrics by group of generators, such as those in the training data and others.

    Attributes:
        system: Title of the detector or ensemble whose detection metrics, such as the AUC, are in
            the table.
        keys: Keys of the metrics, one for each column.
        heads: Headers of the columns.
        lines: Each group with its metrics, one for each column.
    """

    system: str
    keys: list[str]
    heads: list[str]
    lines: list[tuple[GroupInfo, list[MetricValue]]]


def render_evaluation(result: EvaluationResult) -> str:
    """Render the result of an evaluation as one self-contained HTML page.

    Images are base64 of JPEGs that were encoded again without metadata. Images in other formats are
    not shown.
    """
    meta, leading = result.meta, result.leading
    systems = (
        [leading, *(system for system in result.systems if system != leading)] if leading else []
    )
    parts, notes = protocol_table(result)
    ranked = opening_systems(result)
    return render(
        "evaluation.html",
        result=result,
        meta=meta,
        leading=leading,
        systems=systems,
        headline=headline(result),
        opening=[
            (short(system.info.called), opening_cells(system)) for system in ranked[:_MAX_ROWS]
        ],
        opening_heads=HEADERS,
        opening_bars=opening_bars(result, ranked[:_MAX_ROWS]),
        left_out=_list_screen_only_parts(result),
        answers=answers(result),
        warnings=warnings(result),
        table=parts,
        notes=notes,
        sources=list_sources(result),
        seen_signs=SEEN_SIGNS,
        paired=[(test, find_difference(result, test)) for test in meta.paired],
        curves=_draw_groups(
            [system for system in result.systems if len(system.curves.roc) > 1], _draw_curves
        ),
        risks=_draw_groups(
            [system for system in result.systems if len(system.curves.risk_coverage) > 1],
            _draw_risks,
        ),
        robustness=_draw_groups(
            [system for system in result.systems if system.info.views], _draw_robustness
        ),
        confidence=[
            (system, system_charts(system, str(index))) for index, system in enumerate(systems)
        ],
        view_start=_compute_view_start,
        called={system.name: system.called for system in meta.systems},
        pairs=meta.identification[0].confusions if meta.identification else [],
        grouped=group_table(result),
        policy=settings(meta.localization.policy) if meta.localization else [],
        identity=settings(meta.run.identity),
        glossary=_make_glossary(result),
        decided=DECIDED,
        averages=AVERAGES,
        shortcut_finding=shortcut.finding(result.shortcut_auc),
        prompts=PROMPTS,
    )


def evaluation_lines(result: EvaluationResult) -> list[str]:
    """Return the result of an evaluation as lines for the terminal.

    The lines have the headline, key metrics, warnings, a table by generator, and metrics on
    predicted generators and prompts. If the evaluation reproduces a published table, that table
    replaces the table by generator. It then has measured and published values.
    """
    lines, systems = [headline(result)], opening_systems(result)
    if systems:
        rows = [
            [
                wording.truncate(short(system.info.called), 44),
                *(
                    f"{value} ({bounds})" if bounds else value
                    for value, bounds in opening_cells(system)
                ),
            ]
            for system in systems[:_MAX_ROWS]
        ]
        lines += ["", *table(["", *HEADERS], rows, _WIDTH, right=range(1, 4))]
        lines += (
            [f"and {wording.pluralize(len(systems) - _MAX_ROWS, 'more system')}"]
            if len(systems) > _MAX_ROWS
            else []
        )
        lines += _metrics_lines(systems[0])
    warnings_ = warnings(result)
    lines += [""] if warnings_ else []
    lines += [
        f"{'warning' if warning.is_grave else 'note'}: {wording.escape_invisible(warning.heading)} {wording.escape_invisible(warning.text)}"
        for warning in warnings_
    ]
    parts, notes = protocol_table(result)
    if parts:
        protocol = result.meta.protocol
        title = (
            short(protocol.title or protocol.name)
            if protocol
            else "Fractions judged correctly by source and generator"
        )
        lines += [
            "",
            f"{title}, with 95 % intervals for further images of the same generators and sources",
            *parts[0].lines(),
        ]
        lines += [f"{sign} {wording.escape_invisible(text)}" for text, sign in notes.items()]
        lines += [f"published: {line}" for line in list_sources(result)]
        lines += (
            [f"on the page only: {', '.join(part.summary for part in parts[1:])}"]
            if parts[1:]
            else []
        )
    name_lines = _names_lines(result)
    return [*lines, "", *name_lines] if name_lines else lines


def _metrics_lines(system: SystemResult) -> list[str]:
    """Return a table of all metrics of a system."""
    rows = [
        [
            wording.name_metric(name),
            wording.format_metric(name, metric.value),
            wording.format_metric_interval(name, metric) or wording.NONE,
            wording.count(metric.n),
        ]
        for name, metric in system.figures().items()
    ]
    headers = [wording.truncate(short(system.info.called), 44), "", "95 % interval", "images"]
    return ["", *table(headers, rows, _WIDTH, right=range(1, 4))] if rows else []


def _names_lines(result: EvaluationResult) -> list[str]:
    """Return lines on named generators, predicted prompts, and groups of generators."""
    by_title = {info.title: info for info in result.meta.identification}
    lines = []
    if result.meta.identification:
        lines += [
            _metrics_line("Generators named", result, result.meta.identification[0].scope, _KEYS)
        ]
    if result.meta.prompts:
        lines += [_metrics_line("Prompts predicted", result, PROMPTS, _PROMPTS)]
    if "Families named" in by_title:
        lines += [_metrics_line("Families named", result, by_title["Families named"].scope, _KEYS)]
    if groups := group_table(result):
        rows = [
            [
                wording.truncate(row.name, 40),
                row.distribution,
                f"{row.n:,}",
                *(
                    wording.format_metric(key, cell.value)
                    for key, cell in zip(groups.keys, cells, strict=True)
                ),
            ]
            for row, cells in groups.lines
        ]
        headers = ["fakes", "distribution", "n", *groups.heads]
        lines += ["", *table(headers, rows, _WIDTH, right=range(2, len(headers)))]
    return lines


def opening_systems(result: EvaluationResult) -> list[SystemResult]:
    """Return the systems (detectors and ensembles) in the order of the key metrics.

    The leading system, which is the ensemble or else the best detector, is first. The others follow
    in descending order of AUC.
    """
    leading = result.leading
    return sorted(
        result.systems,
        key=lambda system: (system != leading, -(system.figure("auc").value or 0.0)),
    )


def opening_cells(system: SystemResult) -> list[tuple[str, str]]:
    """Return the cells of a system in the table of key metrics, without the cell for its name.

    The columns are the fraction of fakes that the system flags, the fraction of real images that it
    flags, and its ROC AUC (`HEADERS`).

    Args:
        system: The detector or ensemble.

    Returns:
        For each column, the rounded value as text and its 95 % interval, or "" without an interval.
    """
    fractions = [
        (percent(metric.value, 0), format_rounded_interval(metric))
        for metric in (system.figure("tpr"), system.flagged)
    ]
    auc = system.figure("auc")
    return [
        *fractions,
        (
            number(auc.value, 1, decimals=3),
            interval(auc.interval, partial(number, digits=1, decimals=3)) if auc.interval else "",
        ),
    ]


def opening_bars(result: EvaluationResult, systems: Sequence[SystemResult]) -> OpeningBars | None:
    """Return the bar chart at the top of the page of an evaluation.

    If several systems have an AUC, the bars show their AUCs. Otherwise the bars show the fraction
    of each generator's images that the leading system (the ensemble, or else the best detector)
    judges correctly. If it has such a fraction for fewer than two generators, a bar shows its AUC.
    The result is None without any value.
    """
    ranked = [
        (system, system.figure("auc"))
        for system in systems
        if system.figure("auc").value is not None
    ]
    leading = result.leading
    generators = [
        generator
        for label in ("fake", "real")
        for generator in (leading.hardest(label) if leading else ())
        if leading and leading.rate(generator).value is not None
    ]
    if leading and len(ranked) < 2 and len(generators) > 1:
        return _make_generator_bars(leading, generators)
    if not ranked:
        return None
    start = charts.axis_start([metric.least or 0.0 for _, metric in ranked])
    bars = [
        (
            _shorten_label(system.info.called),
            number(metric.value, 1, decimals=3),
            metric,
            "strong" if system == leading else "plain",
        )
        for system, metric in ranked
    ]
    return OpeningBars("How well each system ranks fakes above real images", "ROC AUC", start, bars)


def _make_generator_bars(system: SystemResult, generators: Sequence[GeneratorInfo]) -> OpeningBars:
    """Return bars of the hardest generators, then of the hardest sources of real images.

    There are at least two of either kind, if it has two.
    """
    fakes, reals = (
        [generator for generator in generators if (generator.label == "fake") is is_fake]
        for is_fake in (True, False)
    )
    selected = fakes[: max(_MAX_ROWS - len(reals), _MAX_ROWS - 2)]
    selected += reals[: _MAX_ROWS - len(selected)]
    bars = []
    for generator in selected:
        kind = generator.label if generator.label in ("fake", "real") else "plain"
        name = f"{_shorten_label(generator.name.removeprefix('real:'))}, {'fake' if generator.label == 'fake' else 'real'}"
        rate = system.rate(generator)
        bars.append((name, f"{percent(rate.value, 0)} of {generator.n:,}", rate, kind))
    hardest = f"; the {len(selected)} hardest" if len(selected) < len(generators) else ""
    return OpeningBars(
        f"Images judged correctly, by generator or source{hardest}",
        "fraction judged correctly",
        0.0,
        bars,
    )


def group_table(result: EvaluationResult) -> GroupTable | None:
    """Return a table of metrics on generators that were in the training data, and on others.

    The table has a row for each group of generators, and a column for each metric that any group
    has. Detection metrics are those of the ensemble, or else of the best detector. The result is
    None if the evaluation has no groups.
    """
    leading, groups = result.leading, result.meta.groups
    if not groups:
        return None
    metrics = [
        {
            **(leading.figures(group.scope) if leading else {}),
            **result.metrics.select(scope=group.scope),
        }
        for group in groups
    ]
    keys = [
        key
        for key in _COLUMNS
        if any(values[key].value is not None for values in metrics if key in values)
    ]
    lines = [
        (group, [values.get(key, NOT_MEASURED) for key in keys])
        for group, values in zip(groups, metrics, strict=True)
    ]
    headers = [_TITLES.get(key) or wording.name_metric(key) for key in keys]
    return GroupTable(leading.info.called if leading else "", keys, headers, lines)


def _shorten_label(name: str) -> str:
    """Return a name for a bar of a chart."""
    return wording.truncate(name, 32) or wording.NONE


def _compute_view_start(system: SystemResult) -> float:
    """Return the start of the axis of a system's AUCs under perturbation."""
    views = ["", *(view.name for view in system.info.views)]
    lows = [system.figure("auc", view=view).least for view in views]
    return charts.axis_start([low for low in lows if low is not None])


def _metrics_line(caption: str, result: EvaluationResult, scope: str, keys: Sequence[str]) -> str:
    metrics = result.metrics.select(scope=scope)
    parts = [
        f"{_TITLES.get(key) or wording.name_metric(key)} {format_metric_with_interval(key, metrics[key])}"
        for key in keys
        if key in metrics and metrics[key].value is not None
    ]
    return f"{caption}: {', '.join(parts) or 'no metric is defined'}."


def _list_screen_only_parts(result: EvaluationResult) -> list[str]:
    """Return the parts that the page shows on a screen but does not print, to keep a print short."""
    meta, leading = result.meta, result.leading
    parts = {
        "more generators and systems of tables and curves": len(meta.systems) > 1
        or len(meta.table) > MAX_ROWS,
        "metrics with abstentions": bool(leading and leading.figures(DECIDED)),
        "risk over coverage": any(system.curves.risk_coverage for system in result.systems),
        "metrics under perturbation": any(system.views for system in meta.systems),
        "metrics within one format and size": bool(leading and leading.info.strata),
        "masks": meta.localization is not None,
        "generators named and prompts predicted": bool(
            meta.identification or meta.prompts or meta.groups
        ),
        "formats and sizes of the data": bool(meta.data.n),
        "all metrics with their intervals": bool(meta.systems),
        "how labels and rows were joined, and the settings of the run": bool(
            meta.labels.rows or meta.run.identity
        ),
        "the glossary": True,
    }
    return [title for title, is_present in parts.items() if is_present]


def _make_glossary(result: EvaluationResult) -> list[tuple[str, str]]:
    """Return the name and the meaning of each metric of this result."""
    keys = {row.figure for row in result.metrics.rows}
    return [
        (meaning.words[0].upper() + meaning.words[1:], meaning.sentence)
        for key, meaning in wording.MEANINGS.items()
        if key in keys
    ]


class Chart(NamedTuple):
    """A chart of the page of an evaluation.

    Attributes:
        caption: Caption of the chart.
        drawing: The chart as an SVG element.
    """

    caption: str
    drawing: Markup


class ChartGroup(NamedTuple):
    """Charts of the same systems (detectors and ensembles), which share a legend.

    Attributes:
        names: Names of the systems in the order of their lines.
        charts: The drawings.
    """

    names: list[str]
    charts: list[Chart]


class Series(NamedTuple):
    """Perturbations of one kind that differ only in their strength, such as JPEG qualities.

    Attributes:
        family: Common part of their names, such as "jpeg".
        views: Names of the perturbations, the mildest first.
        amounts: Their strengths as text, such as "75".
    """

    family: str
    views: list[str]
    amounts: list[str]


def system_charts(system: SystemResult, ident: str) -> list[Chart]:
    """Draw a histogram of a system's scores by class, and the reliability of its probabilities.

    The second chart shows the stated probability against the fraction of fakes. A chart without
    data is left out.

    Args:
        system: The detector or ensemble.
        ident: Suffix of the ids of the charts, which is unique on the page.
    """
    drawings, name = [], short(system.info.called)
    scores = system.curves.histogram
    if not scores.is_empty:
        histogram = charts.class_histogram(
            scores.edges,
            scores.fake,
            scores.real,
            system.info.threshold,
            ident=f"scores-{ident}",
            title=f"Scores of {name}",
        )
        drawings.append(
            Chart("Scores of fakes and of real images, as fractions of each", histogram)
        )
    bins = [
        (bin_, bin_.probability, bin_.fake_share) for bin_ in system.curves.reliability if bin_.n
    ]
    spots = [
        charts.Spot(
            (stated, fraction),
            f"stated {number(stated, 2)}, fake {wording.percent(fraction)} of {bin_.n:,}",
            bin_.interval,
        )
        for bin_, stated, fraction in bins
        if stated is not None and fraction is not None
    ]
    if spots:
        trace = charts.Trace(0, [spot.at for spot in spots], spots)
        axes = (
            charts.number_axis("stated probability", 0, 1),
            charts.share_axis("fraction that is fake"),
        )
        description = "; ".join(spot.words for spot in spots)
        texts: Any = {
            "ident": f"reliability-{ident}",
            "title": f"Reliability of {name}",
            "description": description,
        }
        lowest, highest = min(bin_.n for bin_, *_ in bins), max(bin_.n for bin_, *_ in bins)
        sizes = (
            f"{wording.pluralize(highest, 'image')} each"
            if lowest == highest
            else f"{lowest:,} to {highest:,} images"
        )
        caption = f"Stated probability against fraction of fakes, {wording.pluralize(len(bins), 'bin')} of {sizes}"
        drawings.append(
            Chart(caption, charts.plane([trace], *axes, **texts, guide=[(0, 0), (1, 1)]))
        )
    return drawings


def find_series(views: Sequence[str]) -> list[Series]:
    """Group three or more perturbations whose names differ only in a number, such as a quality.

    The mildest perturbation is first. Low qualities and small scales are strong perturbations.
    """
    families: dict[str, list[tuple[float, str, str]]] = {}
    for view in views:
        if match := _AMOUNT.fullmatch(view):
            families.setdefault(match["family"], []).append(
                (float(match["amount"]), match["amount"], view)
            )
    series = []
    for family, family_views in families.items():
        ordered = sorted(family_views, reverse=bool(_FALLING.search(family)))
        if len({amount for amount, *_ in ordered}) >= _MIN_SERIES:
            series.append(
                Series(family, [view for *_, view in ordered], [amount for _, amount, _ in ordered])
            )
    return series


def _draw_groups(
    systems: Sequence[SystemResult], draw: Callable[[Sequence[SystemResult], str], list[Chart]]
) -> list[ChartGroup]:
    """Draw charts for as many systems at a time as there are line styles."""
    chunks = (
        systems[start : start + charts.STYLES] for start in range(0, len(systems), charts.STYLES)
    )
    groups = [
        ChartGroup([short(system.info.called) for system in chunk], draw(chunk, str(index)))
        for index, chunk in enumerate(chunks)
    ]
    return [group for group in groups if group.charts]


def _draw_curves(systems: Sequence[SystemResult], ident: str) -> list[Chart]:
    """Draw ROC, ROC on a logarithmic axis, DET, and precision–recall."""
    roc = [
        charts.Trace(style, _select_pairs(system.curves.roc), _make_threshold_spot(system))
        for style, system in enumerate(systems)
    ]
    description = "; ".join(
        f"{short(system.info.called)}: AUC {format_metric_with_interval('auc', system.figure('auc'))}"
        for system in systems
    )
    finds = charts.share_axis(_FINDS)
    linear = charts.plane(
        roc,
        charts.share_axis(_FLAGS),
        finds,
        ident=f"roc-{ident}",
        title="ROC",
        description=description,
        guide=[(0, 0), (1, 1)],
    )
    # The axis starts at one flagged real image in a thousand, or fewer. It is shaded up to the rate
    # of a single image.
    n_real = max([1, *(system.info.n_real for system in systems)])
    low = 10.0 ** max(_MIN_DECADE, min(_MAX_DECADE, math.floor(-math.log10(n_real))))
    title = "ROC at low false-positive rates"
    logarithmic = charts.plane(
        roc, charts.decade_axis(f"{_FLAGS}, logarithmic", low), finds, ident=f"decades-{ident}", title=title, description=description,
        guide=[(low, low), (1, 1)], shade=(low, 1 / n_real),
    )  # fmt: skip
    missed = [
        charts.Trace(
            trace.style,
            [(x, 1 - y) for x, y in trace.points],
            [spot._replace(at=(spot.at[0], 1 - spot.at[1])) for spot in trace.spots],
        )
        for trace in roc
    ]
    axes = charts.probit_axis(f"{_FLAGS}, probit"), charts.probit_axis("fakes missed, probit")
    equal = [(axes[0].low, axes[0].low), (axes[0].high, axes[0].high)]
    det = charts.plane(
        missed, *axes, ident=f"det-{ident}", title="DET", description=description, guide=equal
    )
    drawings = [Chart("ROC", linear), Chart(title, logarithmic), Chart("DET", det)]
    traces = [
        charts.Trace(style, points)
        for style, system in enumerate(systems)
        if len(points := _select_pairs(system.curves.precision_recall)) > 1
    ]
    if traces:
        axes = (
            charts.share_axis("fakes found (recall)"),
            charts.share_axis("flags that are right (precision)"),
        )
        title = "Precision over recall"
        drawings.append(
            Chart(
                title,
                charts.plane(
                    traces, *axes, ident=f"precision-{ident}", title=title, description=description
                ),
            )
        )
    return drawings


def _make_threshold_spot(system: SystemResult) -> list[charts.Spot]:
    """Return the point of the threshold on the ROC curve; nothing if its rates are not known."""
    tpr, tnr = system.figure("tpr").value, system.figure("tnr").value
    if tpr is None or tnr is None:
        return []
    text = f"{short(system.info.called)} at its threshold: {wording.percent(tpr)} found, {wording.percent(1 - tnr)} flagged"
    return [charts.Spot((1 - tnr, tpr), text)]


def _draw_risks(systems: Sequence[SystemResult], ident: str) -> list[Chart]:
    """Draw risk over coverage."""
    traces = [
        charts.Trace(style, sorted(_select_pairs(system.curves.risk_coverage)))
        for style, system in enumerate(systems)
    ]
    top = max([y for trace in traces for _, y in trace.points] + [0.01])
    description = "; ".join(
        f"{short(system.info.called)}: area {format_metric('aurc', system.figure('aurc').value)}"
        for system in systems
    )
    axes = (
        charts.share_axis("images with a verdict"),
        charts.share_axis("wrong verdicts among them", 0.0, min(1.0, 1.05 * top)),
    )
    title = "Risk over coverage"
    return [
        Chart(
            title,
            charts.plane(
                traces,
                *axes,
                ident=f"risk-{ident}",
                title=title,
                description=description,
                flat=True,
            ),
        )
    ]


def _draw_robustness(systems: Sequence[SystemResult], ident: str) -> list[Chart]:
    """Draw two metrics over the amount of each series of perturbations.

    Images without perturbation are the first point, and a faint line.
    """
    names = list(dict.fromkeys(view.name for system in systems for view in system.info.views))
    drawings = [
        _draw_series(systems, series, key, f"view-{ident}-{index}-{key}")
        for index, series in enumerate(find_series(names))
        for key in ("auc", "balanced_accuracy")
    ]
    return [chart for chart in drawings if chart]


def _draw_series(
    systems: Sequence[SystemResult], series: Series, key: str, ident: str
) -> Chart | None:
    traces = []
    for style, system in enumerate(systems):
        metrics = [
            ("clean", system.figure(key)),
            *((name, system.figure(key, view=name)) for name in series.views),
        ]
        spots = [
            charts.Spot(
                (index, metric.value),
                f"{short(system.info.called)}, {short(name)}: {format_metric_with_interval(key, metric)}",
                metric.interval,
            )
            for index, (name, metric) in enumerate(metrics)
            if metric.value is not None
        ]
        if len(spots) > 1:
            traces.append(
                charts.Trace(
                    style,
                    [spot.at for spot in spots],
                    spots,
                    level=spots[0].at[1] if not spots[0].at[0] else None,
                )
            )
    if not traces:
        return None
    low = charts.axis_start(
        [min(spot.ends or spot.at[1:]) for trace in traces for spot in trace.spots]
    )
    y = (
        charts.number_axis(name_metric(key), low, 1.0)
        if key == "auc"
        else charts.share_axis(name_metric(key), low, 1.0)
    )
    description = "; ".join(spot.words for trace in traces for spot in trace.spots)
    x = charts.order_axis(short(series.family), ["clean", *series.amounts])
    title = f"{name_metric(key)[0].upper()}{name_metric(key)[1:]} under {short(series.family)}"
    return Chart(
        title,
        charts.plane(traces, x, y, ident=ident, title=title, description=description, flat=True),
    )


def _select_pairs(points: Points) -> list[charts.Point]:
    """Return the first two numbers of each point that has them."""
    return [
        (float(point[0]), float(point[1]))
        for point in points
        if len(point) > 1 and point[0] is not None and point[1] is not None
    ]
