"""The result of an evaluation as one HTML page that loads nothing and runs nothing
(`render_evaluation`), and as a few lines (`evaluation_lines`). Every text in it is taken for
hostile.
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
from ray_app.reports.evaluation.protocol_table import MOST_ROWS, protocol_table, sources
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
    difference_of,
    headline,
    interval_in_words,
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
_LOWEST_DECADE, _LEAST_DECADES = -6, -3
_FEWEST_IN_SERIES = 3
_AMOUNT = re.compile(r"(?P<family>.*?)[\s:_=-]*(?:q|sigma|σ|s)?[\s:_=-]*(?P<amount>\d+(?:\.\d+)?)")
# less of it is harsher
_FALLING = re.compile(r"jpe?g|webp|avif|quality|resi[sz]|scale|crop", re.IGNORECASE)

SEEN_SIGNS = {
    "in-training": ("●", "in training"),
    "unseen": ("○", "not in training"),
    "unknown": ("?", "not known whether in training"),
}
HEADS = ("fakes found", "real images flagged", "ROC AUC")
_MOST_ROWS = 8
_WIDTH = 120
_KEYS = ("accuracy", "top_3", "macro_f1", "open_set_auroc", "abstained_known", "abstained_unknown")
_PROMPTS = ("clip_image", "clip_image_chance")
_COLUMNS = ("tpr", "auc", "accuracy", "top_3", "family_accuracy", "abstained", "clip_image")
_CALLED = {"accuracy": "named correctly"}


class OpeningBars(NamedTuple):
    """The chart of the first screen, from `start` to 1. `bars`: name, value in words, figure and
    style class of each.
    """

    title: str
    axis: str
    start: float
    bars: list[tuple[str, str, MetricValue, str]]


class GroupTable(NamedTuple):
    """Groups of generators by figures, one cell for each of `keys`; those of detection are of
    `system`.
    """

    system: str
    keys: list[str]
    heads: list[str]
    lines: list[tuple[GroupInfo, list[MetricValue]]]


def render_evaluation(result: EvaluationResult) -> str:
    """Write the result of an evaluation as one self-contained HTML page.

    Pictures are base64 of JPEGs, already re-encoded and free of metadata; what is no JPEG is not
    shown.
    """
    meta, leading = result.meta, result.leading
    systems = [leading, *(one for one in result.systems if one != leading)] if leading else []
    parts, notes = protocol_table(result)
    opened = opening_systems(result)
    return render(
        "evaluation.html",
        result=result,
        meta=meta,
        leading=leading,
        systems=systems,
        headline=headline(result),
        opening=[(short(one.info.called), opening_cells(one)) for one in opened[:_MOST_ROWS]],
        opening_heads=HEADS,
        opening_bars=opening_bars(result, opened[:_MOST_ROWS]),
        left_out=_left_out(result),
        answers=answers(result),
        warnings=warnings(result),
        table=parts,
        notes=notes,
        sources=sources(result),
        seen_signs=SEEN_SIGNS,
        paired=[(test, difference_of(result, test)) for test in meta.paired],
        curves=_groups([one for one in result.systems if len(one.curves.roc) > 1], _curves),
        risks=_groups([one for one in result.systems if len(one.curves.risk_coverage) > 1], _risks),
        robustness=_groups([one for one in result.systems if one.info.views], _robustness),
        confidence=[(one, system_charts(one, str(place))) for place, one in enumerate(systems)],
        view_start=_view_start,
        called={system.name: system.called for system in meta.systems},
        pairs=meta.identification[0].confusions if meta.identification else [],
        grouped=group_table(result),
        policy=settings(meta.localization.policy) if meta.localization else [],
        identity=settings(meta.run.identity),
        glossary=_glossary(result),
        decided=DECIDED,
        averages=AVERAGES,
        shortcut_finding=shortcut.finding(result.shortcut_auc),
        prompts=PROMPTS,
    )


def evaluation_lines(result: EvaluationResult) -> list[str]:
    """An evaluation in words for the terminal: one sentence, key figures, what to beware of, then
    the protocol's table and names.
    """
    lines, systems = [headline(result)], opening_systems(result)
    if systems:
        rows = [
            [
                wording.shortened(short(one.info.called), 44),
                *(f"{value} ({ends})" if ends else value for value, ends in opening_cells(one)),
            ]
            for one in systems[:_MOST_ROWS]
        ]
        lines += ["", *table(["", *HEADS], rows, _WIDTH, right=range(1, 4))]
        lines += (
            [f"and {wording.counted(len(systems) - _MOST_ROWS, 'more system')}"]
            if len(systems) > _MOST_ROWS
            else []
        )
        lines += _metrics_lines(systems[0])
    beware = warnings(result)
    lines += [""] if beware else []
    lines += [
        f"{'warning' if one.is_grave else 'note'}: {wording.visible(one.heading)} {wording.visible(one.text)}"
        for one in beware
    ]
    parts, notes = protocol_table(result)
    if parts:
        protocol = result.meta.protocol
        head = (
            short(protocol.title or protocol.name)
            if protocol
            else "Fractions judged correctly by source and generator"
        )
        lines += [
            "",
            f"{head}, with 95 % intervals for further images of the same generators and sources",
            *parts[0].lines(),
        ]
        lines += [f"{sign} {wording.visible(text)}" for text, sign in notes.items()]
        lines += [f"published: {line}" for line in sources(result)]
        lines += (
            [f"on the page only: {', '.join(part.summary for part in parts[1:])}"]
            if parts[1:]
            else []
        )
    named = _names_lines(result)
    return [*lines, "", *named] if named else lines


def _metrics_lines(system: SystemResult) -> list[str]:
    """All metrics of a system."""
    rows = [
        [
            wording.name_metric(name),
            wording.format_metric(name, metric.value),
            wording.format_metric_interval(name, metric) or wording.NONE,
            wording.count(metric.n),
        ]
        for name, metric in system.figures().items()
    ]
    heads = [wording.shortened(short(system.info.called), 44), "", "95 % interval", "images"]
    return ["", *table(heads, rows, _WIDTH, right=range(1, 4))] if rows else []


def _names_lines(result: EvaluationResult) -> list[str]:
    """Generators named, prompts predicted, and groups of generators."""
    by_title = {info.title: info for info in result.meta.identification}
    lines = []
    if result.meta.identification:
        lines += [
            _figures_line("Generators named", result, result.meta.identification[0].scope, _KEYS)
        ]
    if result.meta.prompts:
        lines += [_figures_line("Prompts predicted", result, PROMPTS, _PROMPTS)]
    if "Families named" in by_title:
        lines += [_figures_line("Families named", result, by_title["Families named"].scope, _KEYS)]
    if groups := group_table(result):
        rows = [
            [
                wording.shortened(row.name, 40),
                row.distribution,
                f"{row.n:,}",
                *(
                    wording.format_metric(key, cell.value)
                    for key, cell in zip(groups.keys, cells, strict=True)
                ),
            ]
            for row, cells in groups.lines
        ]
        heads = ["fakes", "distribution", "n", *groups.heads]
        lines += ["", *table(heads, rows, _WIDTH, right=range(2, len(heads)))]
    return lines


def opening_systems(result: EvaluationResult) -> list[SystemResult]:
    """The leading system first, the others by their AUC."""
    leading = result.leading
    return sorted(
        result.systems, key=lambda one: (one != leading, -(one.figure("auc").value or 0.0))
    )


def opening_cells(system: SystemResult) -> list[tuple[str, str]]:
    """For each of HEADS a rounded value, and its 95 % interval or ""."""
    shares = [
        (percent(one.value, 0), interval_in_words(one))
        for one in (system.figure("tpr"), system.flagged)
    ]
    auc = system.figure("auc")
    return [
        *shares,
        (
            number(auc.value, 1, decimals=3),
            interval(auc.interval, partial(number, digits=1, decimals=3)) if auc.interval else "",
        ),
    ]


def opening_bars(result: EvaluationResult, systems: Sequence[SystemResult]) -> OpeningBars | None:
    """AUCs where there are several to compare; else what one system makes of each generator; else
    its one AUC.
    """
    ranked = [(one, one.figure("auc")) for one in systems if one.figure("auc").value is not None]
    leading = result.leading
    makers = [
        one
        for label in ("fake", "real")
        for one in (leading.hardest(label) if leading else ())
        if leading and leading.rate(one).value is not None
    ]
    if leading and len(ranked) < 2 and len(makers) > 1:
        return _bars_by_generator(leading, makers)
    if not ranked:
        return None
    start = charts.axis_start([figure.least or 0.0 for _, figure in ranked])
    bars = [
        (
            _brief(one.info.called),
            number(figure.value, 1, decimals=3),
            figure,
            "strong" if one == leading else "plain",
        )
        for one, figure in ranked
    ]
    return OpeningBars("How well each system ranks fakes above real images", "ROC AUC", start, bars)


def _bars_by_generator(system: SystemResult, makers: Sequence[GeneratorInfo]) -> OpeningBars:
    """The hardest generators and sources of real images, with at least two of either where there
    are two; fakes first.
    """
    fakes, reals = (
        [one for one in makers if (one.label == "fake") is is_fake] for is_fake in (True, False)
    )
    kept = fakes[: max(_MOST_ROWS - len(reals), _MOST_ROWS - 2)]
    kept += reals[: _MOST_ROWS - len(kept)]
    bars = []
    for one in kept:
        kind = one.label if one.label in ("fake", "real") else "plain"
        name = (
            f"{_brief(one.name.removeprefix('real:'))}, {'fake' if one.label == 'fake' else 'real'}"
        )
        rate = system.rate(one)
        bars.append((name, f"{percent(rate.value, 0)} of {one.n:,}", rate, kind))
    hardest = f"; the {len(kept)} hardest" if len(kept) < len(makers) else ""
    return OpeningBars(
        f"Images judged correctly, by who made them{hardest}", "share judged correctly", 0.0, bars
    )


def group_table(result: EvaluationResult) -> GroupTable | None:
    """The groups by all figures that any of them has; None without groups."""
    leading, groups = result.leading, result.meta.groups
    if not groups:
        return None
    figures = [
        {
            **(leading.figures(group.scope) if leading else {}),
            **result.metrics.select(scope=group.scope),
        }
        for group in groups
    ]
    keys = [
        key for key in _COLUMNS if any(one[key].value is not None for one in figures if key in one)
    ]
    lines = [
        (group, [one.get(key, NOT_MEASURED) for key in keys])
        for group, one in zip(groups, figures, strict=True)
    ]
    heads = [_CALLED.get(key) or wording.name_metric(key) for key in keys]
    return GroupTable(leading.info.called if leading else "", keys, heads, lines)


def _brief(name: str) -> str:
    """A name in the chart."""
    return wording.shortened(name, 32) or wording.NONE


def _view_start(system: SystemResult) -> float:
    """Where the scale of a system's AUCs under perturbation begins."""
    views = ["", *(view.name for view in system.info.views)]
    found = [system.figure("auc", view=view).least for view in views]
    return charts.axis_start([least for least in found if least is not None])


def _figures_line(caption: str, result: EvaluationResult, scope: str, keys: Sequence[str]) -> str:
    figures = result.metrics.select(scope=scope)
    parts = [
        f"{_CALLED.get(key) or wording.name_metric(key)} {format_metric_with_interval(key, figures[key])}"
        for key in keys
        if key in figures and figures[key].value is not None
    ]
    return f"{caption}: {', '.join(parts) or 'no figure is defined'}."


def _left_out(result: EvaluationResult) -> list[str]:
    """What the page has on a screen and not on paper, so that a print stays short."""
    meta, leading = result.meta, result.leading
    rest = {
        "what the tables and curves have of more generators and systems": len(meta.systems) > 1
        or len(meta.table) > MOST_ROWS,
        "figures with abstentions": bool(leading and leading.figures(DECIDED)),
        "risk over coverage": any(one.curves.risk_coverage for one in result.systems),
        "figures under perturbation": any(one.views for one in meta.systems),
        "figures within one format and size": bool(leading and leading.info.strata),
        "masks": meta.localization is not None,
        "generators named and prompts predicted": bool(
            meta.identification or meta.prompts or meta.groups
        ),
        "formats and sizes of the data": bool(meta.data.n),
        "all figures with their intervals": bool(meta.systems),
        "how labels and rows were joined, and the settings of the run": bool(
            meta.labels.rows or meta.run.identity
        ),
        "the glossary": True,
    }
    return [words for words, is_there in rest.items() if is_there]


def _glossary(result: EvaluationResult) -> list[tuple[str, str]]:
    """What each metric of this result means."""
    there = {row.figure for row in result.metrics.rows}
    return [
        (meaning.words[0].upper() + meaning.words[1:], meaning.sentence)
        for key, meaning in wording.MEANINGS.items()
        if key in there
    ]


class Chart(NamedTuple):
    """One drawing with its caption."""

    caption: str
    drawing: Markup


class ChartGroup(NamedTuple):
    """Drawings of the same few systems; `names`: of their lines, in order, for the legend that they
    share.
    """

    names: list[str]
    charts: list[Chart]


class Series(NamedTuple):
    """Views that differ by one amount, the mildest first."""

    family: str
    views: list[str]
    amounts: list[str]


def system_charts(system: SystemResult, ident: str) -> list[Chart]:
    """Scores of both classes, and the share that is fake over the probability that was stated, in
    bins of equal count; what there is.
    """
    found, name = [], short(system.info.called)
    scores = system.curves.histogram
    if not scores.is_empty:
        drawn = charts.class_histogram(
            scores.edges,
            scores.fake,
            scores.real,
            system.info.threshold,
            ident=f"scores-{ident}",
            title=f"Scores of {name}",
        )
        found.append(Chart("Scores of fakes and of real images, as shares of each", drawn))
    bins = [(one, one.probability, one.fake_share) for one in system.curves.reliability if one.n]
    spots = [
        charts.Spot(
            (stated, share),
            f"stated {number(stated, 2)}, fake {wording.percent(share)} of {one.n:,}",
            one.interval,
        )
        for one, stated, share in bins
        if stated is not None and share is not None
    ]
    if spots:
        trace = charts.Trace(0, [spot.at for spot in spots], spots)
        axes = (
            charts.number_axis("probability stated", 0, 1),
            charts.share_axis("share that is fake"),
        )
        words = "; ".join(spot.words for spot in spots)
        texts: Any = {
            "ident": f"reliability-{ident}",
            "title": f"Reliability of {name}",
            "description": words,
        }
        least, most = min(one.n for one, *_ in bins), max(one.n for one, *_ in bins)
        each = (
            f"{wording.counted(most, 'image')} each"
            if least == most
            else f"{least:,} to {most:,} images"
        )
        caption = f"Stated probability against what is true, {wording.counted(len(bins), 'bin')} of {each}"
        found.append(Chart(caption, charts.plane([trace], *axes, **texts, guide=[(0, 0), (1, 1)])))
    return found


def series_of(views: Sequence[str]) -> list[Series]:
    """Views whose names differ by a number only, three or more of a kind, the mildest first: low
    qualities and small scales are harsh.
    """
    families: dict[str, list[tuple[float, str, str]]] = {}
    for view in views:
        if found := _AMOUNT.fullmatch(view):
            families.setdefault(found["family"], []).append(
                (float(found["amount"]), found["amount"], view)
            )
    kept = []
    for family, named_views in families.items():
        ordered = sorted(named_views, reverse=bool(_FALLING.search(family)))
        if len({amount for amount, *_ in ordered}) >= _FEWEST_IN_SERIES:
            kept.append(
                Series(family, [view for *_, view in ordered], [amount for _, amount, _ in ordered])
            )
    return kept


def _groups(
    systems: Sequence[SystemResult], draw: Callable[[Sequence[SystemResult], str], list[Chart]]
) -> list[ChartGroup]:
    """Charts of as many systems at a time as there are styles of lines."""
    some = (
        systems[start : start + charts.STYLES] for start in range(0, len(systems), charts.STYLES)
    )
    drawn = [
        ChartGroup([short(one.info.called) for one in group], draw(group, str(place)))
        for place, group in enumerate(some)
    ]
    return [group for group in drawn if group.charts]


def _curves(systems: Sequence[SystemResult], ident: str) -> list[Chart]:
    """ROC, ROC on a logarithmic axis, DET and precision–recall."""
    roc = [
        charts.Trace(style, _pairs(system.curves.roc), _operating(system))
        for style, system in enumerate(systems)
    ]
    described = "; ".join(
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
        description=described,
        guide=[(0, 0), (1, 1)],
    )
    # From where one real image in a thousand is flagged, or fewer; shaded where that would be less
    # than one image.
    n_real = max([1, *(system.info.n_real for system in systems)])
    low = 10.0 ** max(_LOWEST_DECADE, min(_LEAST_DECADES, math.floor(-math.log10(n_real))))
    title = "ROC where few real images are flagged"
    few = charts.plane(
        roc, charts.decade_axis(f"{_FLAGS}, logarithmic", low), finds, ident=f"decades-{ident}", title=title, description=described,
        guide=[(low, low), (1, 1)], shade=(low, 1 / n_real),
    )  # fmt: skip
    missed = [
        charts.Trace(
            one.style,
            [(x, 1 - y) for x, y in one.points],
            [spot._replace(at=(spot.at[0], 1 - spot.at[1])) for spot in one.spots],
        )
        for one in roc
    ]
    axes = charts.probit_axis(f"{_FLAGS}, probit"), charts.probit_axis("fakes missed, probit")
    equal = [(axes[0].low, axes[0].low), (axes[0].high, axes[0].high)]
    errors = charts.plane(
        missed, *axes, ident=f"det-{ident}", title="DET", description=described, guide=equal
    )
    found = [Chart("ROC", linear), Chart(title, few), Chart("DET", errors)]
    traces = [
        charts.Trace(style, points)
        for style, one in enumerate(systems)
        if len(points := _pairs(one.curves.precision_recall)) > 1
    ]
    if traces:
        axes = (
            charts.share_axis("fakes found (recall)"),
            charts.share_axis("flags that are right (precision)"),
        )
        title = "Precision over recall"
        found.append(
            Chart(
                title,
                charts.plane(
                    traces, *axes, ident=f"precision-{ident}", title=title, description=described
                ),
            )
        )
    return found


def _operating(system: SystemResult) -> list[charts.Spot]:
    """Where the threshold lies on the ROC curve."""
    found, cleared = system.figure("tpr").value, system.figure("tnr").value
    if found is None or cleared is None:
        return []
    words = f"{short(system.info.called)} at its threshold: {wording.percent(found)} found, {wording.percent(1 - cleared)} flagged"
    return [charts.Spot((1 - cleared, found), words)]


def _risks(systems: Sequence[SystemResult], ident: str) -> list[Chart]:
    """Risk over coverage."""
    traces = [
        charts.Trace(style, sorted(_pairs(system.curves.risk_coverage)))
        for style, system in enumerate(systems)
    ]
    top = max([y for trace in traces for _, y in trace.points] + [0.01])
    described = "; ".join(
        f"{short(one.info.called)}: area {format_metric('aurc', one.figure('aurc').value)}"
        for one in systems
    )
    axes = (
        charts.share_axis("images that get a verdict"),
        charts.share_axis("judged wrongly of those", 0.0, min(1.0, 1.05 * top)),
    )
    title = "Risk over coverage"
    return [
        Chart(
            title,
            charts.plane(
                traces, *axes, ident=f"risk-{ident}", title=title, description=described, flat=True
            ),
        )
    ]


def _robustness(systems: Sequence[SystemResult], ident: str) -> list[Chart]:
    """Of every series of views a figure over the amount, clean pictures first and as a faint line."""
    names = list(dict.fromkeys(view.name for system in systems for view in system.info.views))
    drawn = [
        _over_amounts(systems, series, key, f"view-{ident}-{number}-{key}")
        for number, series in enumerate(series_of(names))
        for key in ("auc", "balanced_accuracy")
    ]
    return [chart for chart in drawn if chart]


def _over_amounts(
    systems: Sequence[SystemResult], series: Series, key: str, ident: str
) -> Chart | None:
    traces = []
    for style, system in enumerate(systems):
        placed = [
            ("clean", system.figure(key)),
            *((name, system.figure(key, view=name)) for name in series.views),
        ]
        spots = [
            charts.Spot(
                (place, found.value),
                f"{short(system.info.called)}, {short(name)}: {format_metric_with_interval(key, found)}",
                found.interval,
            )
            for place, (name, found) in enumerate(placed)
            if found.value is not None
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
    described = "; ".join(spot.words for trace in traces for spot in trace.spots)
    x = charts.order_axis(short(series.family), ["clean", *series.amounts])
    title = f"{name_metric(key)[0].upper()}{name_metric(key)[1:]} under {short(series.family)}"
    return Chart(
        title,
        charts.plane(traces, x, y, ident=ident, title=title, description=described, flat=True),
    )


def _pairs(points: Points) -> list[charts.Point]:
    """The first two numbers of each point; points without are left out."""
    return [
        (float(point[0]), float(point[1]))
        for point in points
        if len(point) > 1 and point[0] is not None and point[1] is not None
    ]
