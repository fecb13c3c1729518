"""Charts of an evaluation with their captions: curves, risk over coverage, reliability, scores and robustness of its systems."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from ray_app.reports import bars, svg
from ray_app.reports import format as wording
from ray_app.reports.evaluation.system_model import FigureFacts, Points, ReliabilityBin, SystemFacts
from ray_app.reports.evaluation.text import short
from ray_app.reports.format import in_words, named, written

_FLAGS, _FINDS = "real images flagged", "fakes found"
_LOWEST_DECADE, _LEAST_DECADES = -6, -3
_FEWEST_IN_SERIES = 3
_AMOUNT = re.compile(r"(?P<family>.*?)[\s:_=-]*(?:q|sigma|σ|s)?[\s:_=-]*(?P<amount>\d+(?:\.\d+)?)")
_FALLING = re.compile(r"jpe?g|webp|avif|quality|resi[sz]|scale|crop", re.IGNORECASE)  # less of it is harsher
_NONE: Mapping[str, FigureFacts] = {}


class Chart(NamedTuple):
    """One drawing with its caption."""

    caption: str
    drawing: Markup


class ChartGroup(NamedTuple):
    """Drawings of the same few systems, with the legend that they share: a sample of each line and its name."""

    names: list[str]
    legend: list[tuple[Markup, str]]
    charts: list[Chart]


class Series(NamedTuple):
    """Views that differ by one amount, the mildest first."""

    family: str
    views: list[str]
    amounts: list[str]


def curve_groups(systems: Sequence[SystemFacts]) -> list[ChartGroup]:
    """ROC, ROC on a logarithmic axis, DET and precision–recall, of six systems at a time; those that have no curve are left out."""
    return [_curves(group, str(index)) for index, group in enumerate(_grouped([one for one in systems if len(one.roc) > 1]))]


def risk_groups(systems: Sequence[SystemFacts]) -> list[ChartGroup]:
    """Risk over coverage, of six systems at a time."""
    return [
        _risks(group, str(index)) for index, group in enumerate(_grouped([one for one in systems if len(one.risk_coverage.points) > 1]))
    ]


def reliability_chart(system: SystemFacts, ident: str) -> Chart | None:
    """The share that is fake over the probability that was stated, in bins of equal count."""
    bins = [one for one in system.reliability if one.n and one.fake_share is not None and one.probability is not None]
    if not bins:
        return None
    spots = []
    for one in bins:
        stated, share = one.probability or 0.0, one.fake_share or 0.0
        ends = (one.interval[0], one.interval[1]) if len(one.interval) == 2 else None
        spots.append(svg.Spot((stated, share), f"stated {stated:.2f}, fake {wording.percent(share)} of {one.n:,}", ends))
    trace = svg.Trace(0, [spot.at for spot in spots], spots)
    described = "; ".join(spot.words for spot in spots)
    drawn = svg.plane(
        [trace],
        svg.number_axis("probability stated", 0, 1),
        svg.share_axis("share that is fake"),
        ident=ident,
        title=f"Reliability of {_called(system)}",
        description=described,
        guide=[(0, 0), (1, 1)],
    )
    return Chart(f"Stated probability against what is true, {_bins_in_words(bins)}", drawn)


def score_chart(system: SystemFacts, ident: str) -> Chart | None:
    """Scores of both classes."""
    found = system.histogram
    if not found.drawable:
        return None
    drawn = svg.score_classes(found.edges, found.fake, found.real, system.threshold, ident=ident, title=f"Scores of {_called(system)}")
    return Chart("Scores of fakes and of real images, as shares of each", drawn)


def robustness_groups(systems: Sequence[SystemFacts]) -> list[ChartGroup]:
    """Of every series of views a figure over the amount, clean pictures first and as a faint line; six systems at a time."""
    viewed = [system for system in systems if system.views]
    groups = []
    for index, group in enumerate(_grouped(viewed)):
        names = list(dict.fromkeys(view.name for system in group for view in system.views))
        charts = [
            chart
            for number, one in enumerate(series_of(names))
            for key in ("auc", "balanced_accuracy")
            if (chart := _over_amounts(group, one, key, f"view-{index}-{number}-{key}"))
        ]
        if charts:
            groups.append(ChartGroup([one.name for one in group], _legend(group), charts))
    return groups


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


def _bins_in_words(bins: Sequence[ReliabilityBin]) -> str:
    least, most = min(one.n for one in bins), max(one.n for one in bins)
    each = wording.counted(most, "image") if least == most else f"{least:,} to {most:,} images"
    return f"{wording.counted(len(bins), 'bin')} of {each}" + (" each" if len(bins) > 1 and least == most else "")


def _grouped(systems: Sequence[SystemFacts]) -> Iterator[Sequence[SystemFacts]]:
    return (systems[start : start + svg.STYLES] for start in range(0, len(systems), svg.STYLES))


def _curves(systems: Sequence[SystemFacts], ident: str) -> ChartGroup:
    roc = [svg.Trace(style, _pairs(system.roc), _operating(system)) for style, system in enumerate(systems)]
    described = "; ".join(f"{_called(system)}: AUC {in_words('auc', system.figure('auc'))}" for system in systems)
    axes = svg.share_axis(_FLAGS), svg.share_axis(_FINDS)
    linear = svg.plane(roc, *axes, ident=f"roc-{ident}", title="ROC", description=described, guide=[(0, 0), (1, 1)])
    drawn = [Chart("ROC", linear), _decades(systems, roc, ident, described), _detection(roc, ident, described)]
    return ChartGroup([one.name for one in systems], _legend(systems), drawn + _precision_recall(systems, ident, described))


def _decades(systems: Sequence[SystemFacts], roc: Sequence[svg.Trace], ident: str, described: str) -> Chart:
    """ROC from where one real image in a thousand is flagged, or fewer; shaded where that would be less than one image."""
    n_real = max([1, *(system.n_real for system in systems)])
    low = 10.0 ** max(_LOWEST_DECADE, min(_LEAST_DECADES, math.floor(-math.log10(n_real))))
    axes = svg.decade_axis(f"{_FLAGS}, logarithmic", low), svg.share_axis(_FINDS)
    title, guide = "ROC where few real images are flagged", [(low ** (step / 24), low ** (step / 24)) for step in range(24, -1, -1)]
    drawn = svg.plane(roc, *axes, ident=f"decades-{ident}", title=title, description=described, guide=guide, shade=(low, 1 / n_real))
    return Chart(title, drawn)


def _detection(roc: Sequence[svg.Trace], ident: str, described: str) -> Chart:
    """Both kinds of error on probit axes."""
    missed = [
        svg.Trace(
            trace.style, [(x, 1 - y) for x, y in trace.points], [svg.Spot((spot.at[0], 1 - spot.at[1]), spot.words) for spot in trace.spots]
        )
        for trace in roc
    ]
    axes = svg.probit_axis(f"{_FLAGS}, probit"), svg.probit_axis("fakes missed, probit")
    equal = [(axes[0].low, axes[0].low), (axes[0].high, axes[0].high)]
    return Chart("DET", svg.plane(missed, *axes, ident=f"det-{ident}", title="DET", description=described, guide=equal))


def _precision_recall(systems: Sequence[SystemFacts], ident: str, described: str) -> list[Chart]:
    traces = [svg.Trace(style, points) for style, system in enumerate(systems) if len(points := _pairs(system.precision_recall)) > 1]
    if not traces:
        return []
    axes = svg.share_axis("fakes found (recall)"), svg.share_axis("flags that are right (precision)")
    drawn = svg.plane(traces, *axes, ident=f"precision-{ident}", title="Precision over recall", description=described)
    return [Chart("Precision over recall", drawn)]


def _operating(system: SystemFacts) -> list[svg.Spot]:
    """Where the threshold lies on the ROC curve."""
    found, cleared = system.figure("tpr").number, system.figure("tnr").number
    if found is None or cleared is None:
        return []
    words = f"{_called(system)} at its threshold: {wording.percent(found)} found, {wording.percent(1 - cleared)} flagged"
    return [svg.Spot((1 - cleared, found), words)]


def _risks(systems: Sequence[SystemFacts], ident: str) -> ChartGroup:
    traces = [svg.Trace(style, sorted(_pairs(system.risk_coverage.points))) for style, system in enumerate(systems)]
    top = max([y for trace in traces for _, y in trace.points] + [0.01])
    described = "; ".join(f"{_called(system)}: area {written('aurc', system.risk_coverage.aurc.number)}" for system in systems)
    axes = svg.share_axis("images that get a verdict"), svg.share_axis("judged wrongly of those", 0.0, min(1.0, 1.05 * top))
    chart = svg.plane(traces, *axes, ident=f"risk-{ident}", title="Risk over coverage", description=described, class_="plane flat")
    return ChartGroup([one.name for one in systems], _legend(systems), [Chart("Risk over coverage", chart)])


def _legend(systems: Sequence[SystemFacts]) -> list[tuple[Markup, str]]:
    return [(svg.sample(style), _called(system)) for style, system in enumerate(systems)]


def _over_amounts(systems: Sequence[SystemFacts], series: Series, key: str, ident: str) -> Chart | None:
    traces = []
    for style, system in enumerate(systems):
        views = {view.name: view.figures for view in system.views}
        placed = [(0, "clean", system.figure(key))]
        placed += [(place, short(name), found) for place, name in enumerate(series.views, 1) if (found := views.get(name, _NONE).get(key))]
        spots = [spot for place, name, found in placed if (spot := _place(system, place, name, key, found))]
        if len(spots) > 1:
            traces.append(svg.Trace(style, [spot.at for spot in spots], spots, level=spots[0].at[1] if spots[0].at[0] == 0 else None))
    if not traces:
        return None
    least = min(min(spot.ends or spot.at[1:]) for trace in traces for spot in trace.spots)
    y = _from_start(named(key), key, least)
    described = "; ".join(spot.words for trace in traces for spot in trace.spots)
    x = svg.order_axis(short(series.family), ["clean", *series.amounts])
    title = f"{named(key)[0].upper()}{named(key)[1:]} under {short(series.family)}"
    return Chart(title, svg.plane(traces, x, y, ident=ident, title=title, description=described, class_="plane flat"))


def _place(system: SystemFacts, place: int, name: str, key: str, found: FigureFacts) -> svg.Spot | None:
    if found.number is None:
        return None
    return svg.Spot((float(place), found.number), f"{_called(system)}, {name}: {in_words(key, found)}", found.ends)


def _called(system: SystemFacts) -> str:
    return short(system.called)


def _from_start(title: str, key: str, least: float) -> svg.Axis:
    """From the least figure, rounded down, to 1."""
    low = bars.axis_start([least])
    return svg.number_axis(title, low, 1.0) if key == "auc" else svg.share_axis(title, low, 1.0)


def _pairs(points: Points) -> list[svg.Point]:
    """The first two numbers of each point; points without are left out."""
    return [(float(point[0]), float(point[1])) for point in points if len(point) > 1 and point[0] is not None and point[1] is not None]
