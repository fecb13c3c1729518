"""Charts of an evaluation with their captions: curves, risk over coverage, reliability, scores and robustness of its systems."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from ray_app.metrics.arrays import FigureFacts
from ray_app.reports import charts
from ray_app.reports import format as wording
from ray_app.reports.evaluation.sentences import short
from ray_app.reports.evaluation.system_model import Points, SystemFacts
from ray_app.reports.format import in_words, named, written

_FLAGS, _FINDS = "real images flagged", "fakes found"
_LOWEST_DECADE, _LEAST_DECADES = -6, -3
_FEWEST_IN_SERIES = 3
_AMOUNT = re.compile(r"(?P<family>.*?)[\s:_=-]*(?:q|sigma|σ|s)?[\s:_=-]*(?P<amount>\d+(?:\.\d+)?)")
_FALLING = re.compile(r"jpe?g|webp|avif|quality|resi[sz]|scale|crop", re.IGNORECASE)  # less of it is harsher


class Chart(NamedTuple):
    """One drawing with its caption."""

    caption: str
    drawing: Markup


class ChartGroup(NamedTuple):
    """Drawings of the same few systems; `names`: of their lines, in order, for the legend that they share."""

    names: list[str]
    charts: list[Chart]


class Series(NamedTuple):
    """Views that differ by one amount, the mildest first."""

    family: str
    views: list[str]
    amounts: list[str]


def curve_groups(systems: Sequence[SystemFacts]) -> list[ChartGroup]:
    """ROC, ROC on a logarithmic axis, DET and precision–recall; systems that have no curve are left out."""
    return _groups([one for one in systems if len(one.roc) > 1], _curves)


def risk_groups(systems: Sequence[SystemFacts]) -> list[ChartGroup]:
    """Risk over coverage."""
    return _groups([one for one in systems if len(one.risk_coverage.points) > 1], _risks)


def robustness_groups(systems: Sequence[SystemFacts]) -> list[ChartGroup]:
    """Of every series of views a figure over the amount, clean pictures first and as a faint line."""
    return _groups([one for one in systems if one.views], _robustness)


def system_charts(system: SystemFacts, ident: str) -> list[Chart]:
    """Scores of both classes, and the share that is fake over the probability that was stated, in bins of equal count; what there is."""
    found, name = [], short(system.called)
    scores = system.histogram
    if scores.drawable:
        drawn = charts.class_histogram(
            scores.edges, scores.fake, scores.real, system.threshold, ident=f"scores-{ident}", title=f"Scores of {name}"
        )
        found.append(Chart("Scores of fakes and of real images, as shares of each", drawn))
    bins = [(one, one.probability, one.fake_share) for one in system.reliability if one.n]
    spots = [
        charts.Spot((stated, share), f"stated {stated:.2f}, fake {wording.percent(share)} of {one.n:,}", one.ends)
        for one, stated, share in bins
        if stated is not None and share is not None
    ]
    if spots:
        trace = charts.Trace(0, [spot.at for spot in spots], spots)
        axes = charts.number_axis("probability stated", 0, 1), charts.share_axis("share that is fake")
        words = "; ".join(spot.words for spot in spots)
        texts: Any = {"ident": f"reliability-{ident}", "title": f"Reliability of {name}", "description": words}
        least, most = min(one.n for one, *_ in bins), max(one.n for one, *_ in bins)
        each = f"{wording.counted(most, 'image')} each" if least == most else f"{least:,} to {most:,} images"
        caption = f"Stated probability against what is true, {wording.counted(len(bins), 'bin')} of {each}"
        found.append(Chart(caption, charts.plane([trace], *axes, **texts, guide=[(0, 0), (1, 1)])))
    return found


def series_of(views: Sequence[str]) -> list[Series]:
    """Views whose names differ by a number only, three or more of a kind, the mildest first: low qualities and small scales are harsh."""
    families: dict[str, list[tuple[float, str, str]]] = {}
    for view in views:
        if found := _AMOUNT.fullmatch(view):
            families.setdefault(found["family"], []).append((float(found["amount"]), found["amount"], view))
    kept = []
    for family, named_views in families.items():
        ordered = sorted(named_views, reverse=bool(_FALLING.search(family)))
        if len({amount for amount, *_ in ordered}) >= _FEWEST_IN_SERIES:
            kept.append(Series(family, [view for *_, view in ordered], [amount for _, amount, _ in ordered]))
    return kept


def _groups(systems: Sequence[SystemFacts], draw: Callable[[Sequence[SystemFacts], str], list[Chart]]) -> list[ChartGroup]:
    """Charts of as many systems at a time as there are styles of lines."""
    some = (systems[start : start + charts.STYLES] for start in range(0, len(systems), charts.STYLES))
    drawn = [ChartGroup([short(one.called) for one in group], draw(group, str(place))) for place, group in enumerate(some)]
    return [group for group in drawn if group.charts]


def _curves(systems: Sequence[SystemFacts], ident: str) -> list[Chart]:
    roc = [charts.Trace(style, _pairs(system.roc), _operating(system)) for style, system in enumerate(systems)]
    described = "; ".join(f"{short(system.called)}: AUC {in_words('auc', system.figure('auc'))}" for system in systems)
    finds = charts.share_axis(_FINDS)
    linear = charts.plane(
        roc, charts.share_axis(_FLAGS), finds, ident=f"roc-{ident}", title="ROC", description=described, guide=[(0, 0), (1, 1)]
    )
    # From where one real image in a thousand is flagged, or fewer; shaded where that would be less than one image.
    n_real = max([1, *(system.n_real for system in systems)])
    low = 10.0 ** max(_LOWEST_DECADE, min(_LEAST_DECADES, math.floor(-math.log10(n_real))))
    title = "ROC where few real images are flagged"
    few = charts.plane(
        roc, charts.decade_axis(f"{_FLAGS}, logarithmic", low), finds, ident=f"decades-{ident}", title=title, description=described,
        guide=[(low, low), (1, 1)], shade=(low, 1 / n_real),
    )  # fmt: skip
    missed = [
        charts.Trace(one.style, [(x, 1 - y) for x, y in one.points], [spot._replace(at=(spot.at[0], 1 - spot.at[1])) for spot in one.spots])
        for one in roc
    ]
    axes = charts.probit_axis(f"{_FLAGS}, probit"), charts.probit_axis("fakes missed, probit")
    equal = [(axes[0].low, axes[0].low), (axes[0].high, axes[0].high)]
    errors = charts.plane(missed, *axes, ident=f"det-{ident}", title="DET", description=described, guide=equal)
    found = [Chart("ROC", linear), Chart(title, few), Chart("DET", errors)]
    traces = [charts.Trace(style, points) for style, one in enumerate(systems) if len(points := _pairs(one.precision_recall)) > 1]
    if traces:
        axes = charts.share_axis("fakes found (recall)"), charts.share_axis("flags that are right (precision)")
        title = "Precision over recall"
        found.append(Chart(title, charts.plane(traces, *axes, ident=f"precision-{ident}", title=title, description=described)))
    return found


def _operating(system: SystemFacts) -> list[charts.Spot]:
    """Where the threshold lies on the ROC curve."""
    found, cleared = system.figure("tpr").number, system.figure("tnr").number
    if found is None or cleared is None:
        return []
    words = f"{short(system.called)} at its threshold: {wording.percent(found)} found, {wording.percent(1 - cleared)} flagged"
    return [charts.Spot((1 - cleared, found), words)]


def _risks(systems: Sequence[SystemFacts], ident: str) -> list[Chart]:
    traces = [charts.Trace(style, sorted(_pairs(system.risk_coverage.points))) for style, system in enumerate(systems)]
    top = max([y for trace in traces for _, y in trace.points] + [0.01])
    described = "; ".join(f"{short(one.called)}: area {written('aurc', one.risk_coverage.aurc.number)}" for one in systems)
    axes = charts.share_axis("images that get a verdict"), charts.share_axis("judged wrongly of those", 0.0, min(1.0, 1.05 * top))
    title = "Risk over coverage"
    return [Chart(title, charts.plane(traces, *axes, ident=f"risk-{ident}", title=title, description=described, flat=True))]


def _robustness(systems: Sequence[SystemFacts], ident: str) -> list[Chart]:
    names = list(dict.fromkeys(view.name for system in systems for view in system.views))
    drawn = [
        _over_amounts(systems, series, key, f"view-{ident}-{number}-{key}")
        for number, series in enumerate(series_of(names))
        for key in ("auc", "balanced_accuracy")
    ]
    return [chart for chart in drawn if chart]


def _over_amounts(systems: Sequence[SystemFacts], series: Series, key: str, ident: str) -> Chart | None:
    traces = []
    for style, system in enumerate(systems):
        views = {view.name: view.figures for view in system.views}
        placed = [("clean", system.figure(key)), *((name, views.get(name, {}).get(key, FigureFacts())) for name in series.views)]
        spots = [
            charts.Spot((place, found.number), f"{short(system.called)}, {short(name)}: {in_words(key, found)}", found.ends)
            for place, (name, found) in enumerate(placed)
            if found.number is not None
        ]
        if len(spots) > 1:
            traces.append(charts.Trace(style, [spot.at for spot in spots], spots, level=spots[0].at[1] if not spots[0].at[0] else None))
    if not traces:
        return None
    low = charts.axis_start([min(spot.ends or spot.at[1:]) for trace in traces for spot in trace.spots])
    y = charts.number_axis(named(key), low, 1.0) if key == "auc" else charts.share_axis(named(key), low, 1.0)
    described = "; ".join(spot.words for trace in traces for spot in trace.spots)
    x = charts.order_axis(short(series.family), ["clean", *series.amounts])
    title = f"{named(key)[0].upper()}{named(key)[1:]} under {short(series.family)}"
    return Chart(title, charts.plane(traces, x, y, ident=ident, title=title, description=described, flat=True))


def _pairs(points: Points) -> list[charts.Point]:
    """The first two numbers of each point; points without are left out."""
    return [(float(point[0]), float(point[1])) for point in points if len(point) > 1 and point[0] is not None and point[1] is not None]
