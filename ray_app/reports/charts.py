"""Charts as inline SVG text. Positions are per cents of the drawing, so that a chart widens with the page and its text does not.

Knows numbers and labels; colours come from the page's style sheet by class name.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from ray_app.reports.drawing import dot, drawing, element, line, plain, position, rectangle, round_ticks, text

_THINNEST = 0.4  # per cent of the drawing: what is there at all must be seen
_MOST_RUNS = 240  # pieces of a line: more would not be seen, and a long training has very many
_MOST_DOTS = 40


@dataclass(frozen=True)
class Zones:
    """Two cuts on the score axis: below the first nothing was found, above the second is fake, between is abstained."""

    real_below: float
    fake_above: float

    def kind(self, value: float) -> str:
        """The verdict that a score gives."""
        return "real" if value < self.real_below else "fake" if value > self.fake_above else "abstain"


@dataclass(frozen=True)
class Segment:
    """One piece of a bar: style class, words for its tooltip, amount."""

    kind: str
    label: str
    amount: float


def stacked_bar(segments: Sequence[Segment], *, ident: str, title: str, description: str) -> Markup:
    """One horizontal bar, cut by amount. Pieces too small to see are drawn at the least visible width."""
    shown = [segment for segment in segments if segment.amount > 0]
    widths = [max(100 * s.amount / sum(s.amount for s in shown), _THINNEST) for s in shown]
    pieces, left = [], 0.0
    for segment, width in zip(shown, widths, strict=True):
        scaled = 100 * width / sum(widths)
        pieces.append(rectangle(left, 0, scaled, 100, f"fill-{segment.kind}", segment.label))
        left += scaled
    return drawing(pieces, ident=ident, title=title, description=description, class_="stacked")


def meter(share: float, kind: str = "plain") -> Markup:
    """A small bar for a table cell; the cell beside it has the number, so it is hidden from screen readers."""
    width = min(100.0, max(100 * share, _THINNEST if share > 0 else 0))
    return element("svg", rectangle(0, 0, width, 100, f"fill-{kind}"), class_="meter", aria_hidden="true")


def range_meter(value: float, low: float, high: float, full: float, kind: str = "plain", level: float | None = None) -> Markup:
    """A small bar with a whisker from `low` to `high`, on a scale that ends at `full`; a line across at `level`."""
    at = [min(100.0, 100 * number / full) if full else 0.0 for number in (value, low, high)]
    parts = [rectangle(0, 0, at[0], 100, f"fill-{kind}")]
    if high > low:
        parts.append(line(at[1], 50, at[2], 50, "whisker"))
        parts += [line(end, 15, end, 85, "whisker") for end in at[1:]]
    if level is not None and full:
        parts.append(line(min(100.0, 100 * level / full), -20, min(100.0, 100 * level / full), 120, "cut"))
    return element("svg", *parts, class_="meter", aria_hidden="true")


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    ident: str,
    title: str,
    description: str,
    zones: Zones | None = None,
    compact: bool = False,
) -> Markup:
    """Counts of scores between `edges` (n + 1 for n counts); with `zones` the bars take the verdicts' colours and the band is shaded."""
    low, high = edges[0], edges[-1]
    top = max(counts)
    parts = _band(zones, low, high) if zones else []
    parts += _count_axis(top, steps=3 if compact else 4)
    for (left, right), number in zip(pairwise(edges), counts, strict=True):
        if number:
            parts.append(_bar(left, right, number, top, (low, high), zones))
    parts += _score_axis(low, high, steps=5 if compact else 9)
    parts += _cuts(zones, low, high) if zones else []
    return drawing(parts, ident=ident, title=title, description=description, class_="histogram compact" if compact else "histogram")


def line_chart(
    points: Sequence[tuple[float, float]],
    span: tuple[float, float],
    *,
    ident: str,
    title: str,
    description: str,
    chosen: float | None = None,
    from_zero: bool = False,
    compact: bool = False,
) -> Markup | None:
    """Values over steps, which go from `span[0]` to `span[1]`; None where no value is finite.

    Of many points, the line is the mean of runs of neighbours, shaded from the least to the greatest of each. The step `chosen` is marked.
    """
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if not finite:
        return None
    runs = _runs(finite)
    low, high = _ends([run.mean for run in runs], from_zero)
    parts = [
        *_value_axis(low, high, steps=4 if compact else 6),
        *_step_axis(*span, steps=3 if compact else 6),
        _curve(runs, span, (low, high)),
    ]
    if chosen is not None:
        at = position(chosen, *span)
        parts.append(line(at, 0, at, 100, "cut"))
    for x, y in finite:
        if x == chosen or len(finite) <= _MOST_DOTS:
            radius, kind, words = (6, "chosen", ", chosen") if x == chosen else (3, "dot", "")
            parts.append(dot(position(x, *span), 100 - position(y, low, high), radius, kind, f"step {x:,.0f}{words}: {plain(y)}"))
    style = "histogram lines compact" if compact else "histogram lines"
    return drawing(parts, ident=ident, title=title, description=description, class_=style)


@dataclass(frozen=True)
class _Run:
    """Neighbouring points of a line, as one: where, and the least, mean and greatest of their values."""

    at: float
    low: float
    mean: float
    high: float


def _runs(points: Sequence[tuple[float, float]]) -> list[_Run]:
    size = math.ceil(len(points) / _MOST_RUNS)
    runs = []
    for start in range(0, len(points), size):
        piece = points[start : start + size]
        steps, values = zip(*piece, strict=True)
        runs.append(_Run(sum(steps) / len(piece), min(values), sum(values) / len(piece), max(values)))
    return runs


def _ends(values: Sequence[float], from_zero: bool) -> tuple[float, float]:
    """The value axis: a little more than the values take, or from 0 where they are never below it."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if from_zero and low >= 0 else low - room), high + room


def _curve(runs: Sequence[_Run], span: tuple[float, float], ends: tuple[float, float]) -> Markup:
    """The line and its shade. A path knows no per cents: it has a drawing of its own, stretched over the whole one."""

    def at(run: _Run, value: float) -> str:
        return f"{position(run.at, *span):.2f} {100 - position(value, *ends):.2f}"

    shade = [at(run, run.high) for run in runs] + [at(run, run.low) for run in reversed(runs)]
    paths = [
        element("path", d=f"M{' L'.join(shade)}Z", class_="shade"),
        element("path", d=f"M{' L'.join(at(run, run.mean) for run in runs)}", class_="line"),
    ]
    whole = {"width": "100%", "height": "100%", "viewBox": "0 0 100 100", "preserveAspectRatio": "none"}
    return element("svg", *paths, **whole, aria_hidden="true")


def _bar(left: float, right: float, number: int, top: int, ends: tuple[float, float], zones: Zones | None) -> Markup:
    # A bin across a cut is drawn as two pieces of one height, so that colour and cut agree.
    inner = [cut for cut in (zones.real_below, zones.fake_above) if left < cut < right] if zones else []
    gap = 0.06 * (right - left)
    stops = [left + gap, *sorted(set(inner)), right - gap]
    height = max(100 * number / top, 0.8)
    label = f"{plain(left)} to {plain(right)}: {number:,}"
    pieces = []
    for start, stop in pairwise(stops):
        kind = zones.kind((start + stop) / 2) if zones else "plain"
        x = position(start, *ends)
        pieces.append(rectangle(x, 100 - height, position(stop, *ends) - x, height, f"fill-{kind}", label))
    return element("g", *pieces)


def _band(zones: Zones, low: float, high: float) -> list[Markup]:
    left, right = position(zones.real_below, low, high), position(zones.fake_above, low, high)
    return [rectangle(left, 0, right - left, 100, "band")] if right > left else []


def _cuts(zones: Zones, low: float, high: float) -> list[Markup]:
    left, right = position(zones.real_below, low, high), position(zones.fake_above, low, high)
    parts = [line(at, -4, at, 100, "cut") for at in sorted({left, right}) if 0 < at < 100]
    # A label is left out where its zone is too narrow to hold it on a telephone; the legend says the same.
    if left >= 26:
        parts.append(text(left, 0, f"no evidence < {plain(zones.real_below)}", "zone", dx=-7, dy=4, anchor="end"))
    if right <= 78:
        parts.append(text(right, 0, f"fake > {plain(zones.fake_above)}", "zone", dx=7, dy=4))
    if right - left >= 16:
        parts.append(text((left + right) / 2, 0, "abstain", "zone", dy=4, anchor="middle"))
    return parts


def _score_axis(low: float, high: float, steps: int) -> list[Markup]:
    parts = [line(0, 100, 100, 100, "axis")]
    for tick in round_ticks(low, high, steps):
        at = position(tick, low, high)
        parts.append(text(at, 100, plain(tick), "tick", dy=17, anchor="middle"))
    return parts


def _count_axis(top: int, steps: int) -> list[Markup]:
    parts = []
    for tick in round_ticks(0, top, steps):
        if tick != round(tick):
            continue
        at = 100 - 100 * tick / top
        parts += [line(0, at, 100, at, "grid")] if tick else []
        parts.append(text(0, at, f"{tick:,.0f}", "tick", dx=-8, dy=4, anchor="end"))
    return parts


def _step_axis(first: float, last: float, steps: int) -> list[Markup]:
    ticks = [tick for tick in round_ticks(first, last, steps) if tick == round(tick)]
    labels = [text(position(tick, first, last), 100, f"{tick:,.0f}", "tick", dy=17, anchor="middle") for tick in ticks]
    return [line(0, 100, 100, 100, "axis"), *labels]


def _value_axis(low: float, high: float, steps: int) -> list[Markup]:
    parts = []
    for tick in round_ticks(low, high, steps):
        at = 100 - position(tick, low, high)
        parts += [line(0, at, 100, at, "grid"), text(0, at, plain(tick), "tick", dx=-8, dy=4, anchor="end")]
    return parts
