"""Describe charts as plain numbers, which the template `chart.html` draws as SVG.

Coordinates are percentages of the plotting area from its left and its top end, so that a chart fills
any width while its text keeps its size. Colours are classes of the page's style sheet, so that one
drawing serves light screens, dark screens, and paper.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ray_app.reports.html import render

Point = tuple[float, float]
Floats = npt.NDArray[np.float64]

MARKERS = "●■▲◆▼✚"
STYLES = len(MARKERS)
# A line with more points would look the same, and a long training has very many.
_MAX_RUNS = 240
_MAX_DOTS = 40
_DETECTION_TICKS = (0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8)
# Maximum distance of a simplified line from the original, in percent of the plotting area.
_TOLERANCE = 0.04
# The width of the plotting area on a telephone, of a character, and of the gap between two labels.
_NARROW_PX, _COMPACT_PX, _CHARACTER_PX, _GAP_PX = 255, 140, 6.8, 5


class Axis(NamedTuple):
    """An axis of a chart, which places values between `low` and `high`.

    Attributes:
        title: Name of the axis; "" to show none.
        low: Value at the start of the axis.
        high: Value at the end of the axis.
        ticks: Values to label, each with its label.
        warp: Transformation of values before they are placed, such as a logarithm.
        bends: Whether `warp` is not linear, so that straight lines become curves.
    """

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    warp: Callable[[Any], Any] = np.asarray
    bends: bool = False

    def across(self, values: Any) -> Floats:
        """Return the positions of values in percent from the start of the axis.

        Values outside the axis are placed at its ends.
        """
        low, high = float(self.warp(self.low)), float(self.warp(self.high))
        warped = np.clip(self.warp(np.asarray(values, float)), low, high)
        positions: Floats = 100 * (warped - low) / ((high - low) or 1.0)
        return positions.round(2)

    def down(self, values: Any) -> Floats:
        """Return the positions of values in percent from the top of the chart.

        This is for a vertical axis, which starts at the bottom.
        """
        return (100 - self.across(values)).round(2)


class Spot(NamedTuple):
    """A marked point on a line of a chart, with a tooltip and an optional error bar.

    Attributes:
        at: Coordinates (x, y) of the point in the units of the axes.
        words: Text of the tooltip.
        ends: Lower and upper end of the error bar along y. None without an error bar.
    """

    at: Point
    words: str
    ends: Point | None = None


class Trace(NamedTuple):
    """A line of a chart with its marks.

    Attributes:
        style: Number that selects the colour and the marker of the line, from 0. There are `STYLES`
            styles; higher numbers repeat them.
        points: Points (x, y) of the line, in the units of the axes.
        spots: Marks on the line.
        level: y of a faint horizontal line for comparison. None for no such line.
    """

    style: int
    points: Sequence[Point]
    spots: Sequence[Spot] = ()
    level: float | None = None


class Tick(NamedTuple):
    """A label of an axis.

    Attributes:
        at: Position in percent of the axis.
        words: Text of the label.
    """

    at: float
    words: str


class Bar(NamedTuple):
    """A rectangle of a chart. Positions and sizes are in percent of the plotting area.

    Attributes:
        x: Position of the left side.
        y: Position of the upper side, from the top.
        width: Width.
        height: Height.
        kind: Style class, such as "fill-fake", which sets the colour.
        words: Text of the tooltip; "" for no tooltip.
    """

    x: float
    y: float
    width: float
    height: float
    kind: str
    words: str = ""


class Line(NamedTuple):
    """A straight line of a chart from (`x1`, `y1`) to (`x2`, `y2`).

    Positions are in percent of the plotting area, from its upper left corner. `kind` is the style
    class, such as "cut".
    """

    x1: float
    y1: float
    x2: float
    y2: float
    kind: str


class ChartPath(NamedTuple):
    """A line or an area of a chart.

    Attributes:
        path: The attribute `d` of the SVG path, in percent of the plotting area.
        kind: Style class, such as "guide".
    """

    path: str
    kind: str


class Mark(NamedTuple):
    """A mark with a tooltip on a line of a chart: a glyph or a circle.

    Attributes:
        x: Position in percent of the plotting area.
        y: Position in percent, from the top.
        kind: Style class.
        words: Text of the tooltip.
        glyph: Character of the mark; "" for a circle.
        radius: Radius of the circle in pixels.
    """

    x: float
    y: float
    kind: str
    words: str
    glyph: str = ""
    radius: float = 0.0


class Label(NamedTuple):
    """A text inside a chart.

    Attributes:
        x: Position in percent of the plotting area.
        y: Position in percent, from the top.
        words: The text.
        anchor: Part of the text that is at `x`: "start", "middle", or "end".
        dx: Horizontal offset in em.
        dy: Vertical offset in em.
        kind: Style class.
    """

    x: float
    y: float
    words: str
    anchor: str = "start"
    dx: float = 0.0
    dy: float = 0.0
    kind: str = "label"


@dataclass
class _Drawing:
    """The parts of a chart, from the rearmost to the foremost.

    Attributes:
        shape: "square", "flat", "wide", or "compact".
        x_title: The name of the horizontal axis.
        y_title: The name of the vertical axis.
        x_ticks: The labels of the horizontal axis.
        y_ticks: The labels of the vertical axis.
        bars: Rectangles; those of the kind "band" have no outline.
        lines: Straight lines.
        curves: Lines and areas.
        marks: Marks on lines.
        labels: Texts inside the chart.
    """

    shape: str
    x_title: str
    y_title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    bars: list[Bar] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    curves: list[ChartPath] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)

    def draw(self, ident: str, title: str, description: str) -> Markup:
        """Return the chart as an SVG element that is one image to screen readers.

        Args:
            ident: An id that is unique on the page.
            title: The name of the chart.
            description: Text alternative of the chart.
        """
        characters = max((len(tick.words) for tick in self.y_ticks), default=0)
        margin_em = round(max(2.0, 0.62 * characters + 0.9), 2)
        facts: dict[str, Any] = {"ident": ident, "title": title, "description": description}
        return Markup(  # noqa: S704
            render("chart.html", **vars(self), **facts, margin_em=margin_em)
        )


def number_axis(title: str, low: float, high: float, steps: int = 5) -> Axis:
    """Return a linear axis of numbers.

    Args:
        title: Name of the axis.
        low: Value at its start.
        high: Value at its end.
        steps: Approximate number of ticks.
    """
    return Axis(title, low, high, [(tick, _plain(tick)) for tick in _round_ticks(low, high, steps)])


def share_axis(title: str, low: float = 0.0, high: float = 1.0) -> Axis:
    """Return a linear axis of fractions with ticks in per cent.

    Args:
        title: Name of the axis.
        low: Fraction at its start.
        high: Fraction at its end.
    """
    return Axis(
        title, low, high, [(tick, _in_percent(tick)) for tick in _round_ticks(low, high, 5)]
    )


def decade_axis(title: str, low: float) -> Axis:
    """Return a logarithmic axis of fractions from `low`, a power of ten, to 1."""
    powers = [10.0**power for power in range(round(math.log10(low)), 1)]
    return Axis(
        title,
        low,
        1.0,
        [(power, _in_percent(power)) for power in powers],
        lambda values: np.log10(np.maximum(values, low)),
        True,
    )


def probit_axis(title: str, low: float = 0.001, high: float = 0.8) -> Axis:
    """Return an axis of error rates for a DET curve (Martin et al. 1997).

    If the scores of both classes are normally distributed, the curve is a straight line.

    Args:
        title: Name of the axis.
        low: Fraction at its start.
        high: Fraction at its end.
    """
    from scipy.special import ndtri

    ticks = [(tick, _in_percent(tick)) for tick in _DETECTION_TICKS if low <= tick <= high]
    return Axis(
        title, low, high, ticks, lambda values: ndtri(np.clip(values, 1e-7, 1 - 1e-7)), True
    )


def order_axis(title: str, labels: Sequence[str]) -> Axis:
    """Return an axis of the positions 0, 1, 2, …, each labelled with one of `labels`."""
    return Axis(title, -0.35, len(labels) - 0.65, list(enumerate(labels)))


def axis_start(lows: Sequence[float]) -> float:
    """Choose the start of an axis that ends at 1, so that differences near 1 are visible.

    The axis shows fractions or AUCs.

    Args:
        lows: The values to show, or the lower bounds of their intervals.

    Returns:
        The highest of 0, 0.1, 0.2, …, 0.9, 0.95, and 0.99 that is not above any of `lows`. It is 0
        if `lows` is empty.
    """
    lowest = min(lows, default=0.0)
    if lowest >= 0.99:
        return 0.99
    return 0.95 if lowest >= 0.95 else max(0.0, math.floor(10 * lowest + 1e-9) / 10)


def plane(
    traces: Sequence[Trace],
    x: Axis,
    y: Axis,
    *,
    ident: str,
    title: str,
    description: str,
    guide: Sequence[Point] = (),
    shade: tuple[float, float] | None = None,
    flat: bool = False,
) -> Markup:
    """Draw a chart of one or more lines, and return it as an SVG element.

    Args:
        traces: The lines.
        x: The horizontal axis.
        y: The vertical axis.
        ident: An id that is unique on the page.
        title: The name of the chart.
        description: Text alternative of the chart.
        guide: A dotted line for comparison.
        shade: A range of x to shade, because too few images support the lines there.
        flat: Whether the chart is wider than high instead of square.
    """
    drawing = _start_drawing("flat" if flat else "square", x, y)
    if shade:
        drawing.bars.append(_band(*x.across(shade)))
    if guide:
        drawing.curves.append(ChartPath(_path(*_bent(guide, x, y)), "guide"))
    for trace in traces:
        style = trace.style % STYLES
        if trace.level is not None:
            level = float(y.down(trace.level))
            drawing.lines.append(Line(0, level, 100, level, f"level s{style}"))
        drawing.curves.append(ChartPath(_path(*_bent(trace.points, x, y)), f"trace s{style}"))
        for spot in trace.spots:
            across, down = float(x.across(spot.at[0])), float(y.down(spot.at[1]))
            if spot.ends:
                low, high = map(float, y.down(spot.ends))
                drawing.lines.append(Line(across, low, across, high, f"ends s{style}"))
            drawing.marks.append(
                Mark(across, down, f"glyph mark-{style}", spot.words, MARKERS[style])
            )
    return drawing.draw(ident, title, description)


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    ident: str,
    title: str,
    description: str,
    zones: tuple[float, float] | None = None,
    compact: bool = False,
) -> Markup:
    """Draw a histogram of scores, and return it as an SVG element.

    Every bar of a bin that is not empty is high enough to be seen.

    Args:
        edges: The ends of the bins, one more than there are bins.
        counts: The count of each bin.
        ident: An id that is unique on the page.
        title: The name of the chart.
        description: Text alternative of the chart.
        zones: Two thresholds. Images below the first threshold show no evidence of being fake, and
            images above the second are fake. The colours of the bars change at the thresholds, and
            the band between them is shaded. None for bars of one colour.
        compact: Whether the chart is one of many, and therefore small.
    """
    top = max([*counts, 1])
    x = number_axis("", edges[0], edges[-1], 5 if compact else 9)
    drawing = _start_drawing(
        "compact" if compact else "wide", x, _count_axis(top, 3 if compact else 4)
    )
    if zones and zones[0] < zones[1]:
        drawing.bars.append(_band(*x.across(zones)))
    for (left, right), count in zip(pairwise(edges), counts, strict=True):
        stops = sorted({left, right, *(cut for cut in zones or () if left < cut < right)})
        height = max(100 * count / top, 0.8)
        text = f"{_plain(left)} to {_plain(right)}: {count:,}"
        for start, stop in pairwise(stops if count else ()):
            kind = _zone((start + stop) / 2, zones)
            drawing.bars.append(_bar(x, start, stop, 100 - height, height, kind, text))
    for cut in sorted({cut for cut in zones or () if x.low < cut < x.high}):
        drawing.lines.append(_cut(x, cut))
    if zones and zones[0] < x.high and zones[1] > x.low:
        drawing.labels += _zone_labels(x, zones)
    return drawing.draw(ident, title, description)


def class_histogram(
    edges: Sequence[float],
    fakes: Sequence[int],
    reals: Sequence[int],
    cut: float | None,
    *,
    ident: str,
    title: str,
) -> Markup:
    """Draw the scores of both classes as fractions of each class: fakes upwards, reals downwards.

    Args:
        edges: The ends of the bins.
        fakes: The count of fakes in each bin.
        reals: The count of real images in each bin.
        cut: The threshold of the scores. None to draw none.
        ident: An id that is unique on the page.
        title: The name of the chart.
    """
    classes = (("fake", 1, fakes), ("real", -1, reals))
    top = max(max(counts) / max(sum(counts), 1) for _, _, counts in classes) or 1.0
    ticks = {sign * tick: _in_percent(tick) for tick in _round_ticks(0, top, 3) for sign in (1, -1)}
    x, y = number_axis("", edges[0], edges[-1]), Axis("", -top, top, list(ticks.items()))
    drawing = _start_drawing("square", x, y)
    for kind, sign, counts in classes:
        total = max(sum(counts), 1)
        for (left, right), count in zip(pairwise(edges), counts, strict=True):
            if count:
                height = 50 * max(count / total / top, 0.01)
                text = f"{kind}, {_plain(left)} to {_plain(right)}: {count:,}"
                start = 50 - height if sign > 0 else 50
                drawing.bars.append(_bar(x, left, right, start, height, kind, text))
    drawing.lines.append(Line(0, 50, 100, 50, "axis"))
    drawing.labels += [
        Label(0, 0, "fakes", dx=0.5, dy=1),
        Label(100, 100, "real images", "end", dx=-0.5, dy=-0.5),
    ]
    if cut is not None and x.low < cut < x.high:
        drawing.lines.append(_cut(x, cut))
        position = float(x.across(cut))
        anchor, dx = ("start", 0.5) if position < 60 else ("end", -0.5)
        drawing.labels.append(Label(position, 0, f"threshold {_plain(cut)}", anchor, dx, -0.6))
    description = f"{sum(fakes):,} fakes and {sum(reals):,} real images; scores from {_plain(x.low)} to {_plain(x.high)}."
    return drawing.draw(ident, title, description)


def line_chart(
    points: Sequence[Point],
    span: Point,
    *,
    ident: str,
    title: str,
    description: str,
    chosen: float | None = None,
    from_zero: bool = False,
    compact: bool = False,
) -> Markup | None:
    """Draw values over the steps of a training, and return the chart as an SVG element.

    If there are many points, the line shows means of groups of neighbours. A shaded area shows the
    minimum and the maximum of each group. The result is None if no value is finite.

    Args:
        points: Steps with their values.
        span: The first and the last step of the axis.
        ident: An id that is unique on the page.
        title: The name of the chart.
        description: Text alternative of the chart.
        chosen: The step to mark, such as the best step. None to mark none.
        from_zero: Whether the axis of the values starts at 0 if no value is negative. If False, it
            starts just below the lowest value.
        compact: Whether the chart is one of many, and therefore small.
    """
    finite = np.array([(x, y) for x, y in points if math.isfinite(y)])
    if not len(finite):
        return None
    runs = np.array_split(finite, math.ceil(len(finite) / math.ceil(len(finite) / _MAX_RUNS)))
    means = np.array([run.mean(axis=0) for run in runs])
    low, high = means[:, 1].min(), means[:, 1].max()
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low = 0.0 if from_zero and low >= 0 else low - margin
    x = _count_axis(span[1], 3 if compact else 6, span[0])
    y = number_axis("", low, high + margin, 4 if compact else 6)
    drawing = _start_drawing("compact" if compact else "wide", x, y)
    across = x.across(means[:, 0])
    lower, upper = (y.down([reduce(run[:, 1]) for run in runs]) for reduce in (np.min, np.max))
    outline = np.concatenate([across, across[::-1]]), np.concatenate([lower, upper[::-1]])
    drawing.curves.append(ChartPath(_path(*outline, tolerance=0) + "Z", "range"))
    drawing.curves.append(ChartPath(_path(across, y.down(means[:, 1])), "trace strong"))
    if chosen is not None:
        drawing.lines.append(_cut(x, chosen))
    for step, value in finite:
        if step == chosen or len(finite) <= _MAX_DOTS:
            radius, kind, suffix = (
                (5.0, "fill-gold", ", chosen") if step == chosen else (2.3, "fill-strong", "")
            )
            tip = f"step {step:,.0f}{suffix}: {_plain(value)}"
            position = float(x.across(step)), float(y.down(value))
            drawing.marks.append(Mark(*position, kind, tip, radius=radius))
    return drawing.draw(ident, title, description)


def _start_drawing(shape: str, x: Axis, y: Axis) -> _Drawing:
    width_px = _COMPACT_PX if shape == "compact" else _NARROW_PX
    x_ticks = _select_ticks((Tick(float(x.across(at)), text) for at, text in x.ticks), width_px)
    y_ticks = [Tick(float(y.down(at)), text) for at, text in y.ticks]
    return _Drawing(shape, x.title, y.title, x_ticks, y_ticks)


def _select_ticks(ticks: Iterable[Tick], width_px: float) -> list[Tick]:
    """Return the labels that do not overlap on an axis of this width in pixels."""
    selected, end = [], -math.inf
    for tick in ticks:
        middle, half = width_px * tick.at / 100, _CHARACTER_PX * len(tick.words) / 2
        if middle - half >= end:
            selected.append(tick)
            end = middle + half + _GAP_PX
    return selected


def _band(left: float, right: float) -> Bar:
    return Bar(float(left), 0, round(float(right - left), 2), 100, "band")


def _bar(
    x: Axis, left: float, right: float, top: float, height: float, kind: str, words: str
) -> Bar:
    start, stop = map(float, x.across([left, right]))
    return Bar(
        start, round(top, 2), round(stop - start, 2), round(height, 2), f"fill-{kind}", words
    )


def _cut(x: Axis, at: float) -> Line:
    position = float(x.across(at))
    return Line(position, -3, position, 100, "cut")


def _zone(score: float, zones: tuple[float, float] | None) -> str:
    if not zones:
        return "plain"
    if score < zones[0]:
        return "real"
    return "fake" if score > zones[1] else "abstain"


def _zone_labels(x: Axis, zones: tuple[float, float]) -> list[Label]:
    """Return the names of the parts that are wide enough; the legend has the same names."""
    real, fake = map(float, x.across(zones))
    labels = [
        (
            Label(real, 0, f"no evidence < {_plain(zones[0])}", "end", -0.5, -0.6, "zone"),
            real >= 26,
        ),
        (Label(fake, 0, f"fake > {_plain(zones[1])}", "start", 0.5, -0.6, "zone"), fake <= 78),
        (Label((real + fake) / 2, 0, "left open", "middle", 0, -0.6, "zone"), fake - real >= 16),
    ]
    return [label for label, fits in labels if fits]


def _path(across: Floats, down: Floats, tolerance: float = _TOLERANCE) -> str:
    """Return a line as the `d` of a path, without points that make no visible difference."""
    points = np.column_stack([across, down])
    selected = points[_find_corners(points, tolerance)] if len(points) > 2 else points
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in selected) if len(selected) else ""


def _find_corners(points: Floats, tolerance: float) -> npt.NDArray[np.bool_]:
    """Select the points without which a line would change visibly (Douglas and Peucker 1973)."""
    is_kept = np.zeros(len(points), bool)
    is_kept[[0, -1]] = True
    spans = [(0, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        chord, offsets = points[last] - points[first], points[first + 1 : last] - points[first]
        if not len(offsets):
            continue
        length = float(np.hypot(*chord))
        distances = np.hypot(*offsets.T)
        if length:
            distances = np.abs(chord[0] * offsets[:, 1] - chord[1] * offsets[:, 0]) / length
        farthest = int(distances.argmax())
        if distances[farthest] > tolerance:
            middle = first + 1 + farthest
            is_kept[middle] = True
            spans += [(first, middle), (middle, last)]
    return is_kept


def _bent(points: Sequence[Point], x: Axis, y: Axis) -> tuple[Floats, Floats]:
    """Return the positions of points, with more points between them if an axis bends lines."""
    positions = np.asarray(points, float).reshape(-1, 2)
    if (x.bends or y.bends) and len(positions) > 1:
        steps = max(6, 96 // len(positions))
        # The new points are close to the lower end, where such axes stretch most.
        fractions = (np.arange(1, steps + 1) / steps) ** 3
        inner = (
            positions[:-1, None] + fractions[None, :, None] * np.diff(positions, axis=0)[:, None]
        )
        positions = np.concatenate([positions[:1], inner.reshape(-1, 2)])
    return x.across(positions[:, 0]), y.down(positions[:, 1])


def _count_axis(high: float, steps: int, low: float = 0.0) -> Axis:
    ticks = _round_ticks(low, high, steps)
    return Axis("", low, high, [(tick, f"{tick:,.0f}") for tick in ticks if tick == round(tick)])


def _round_ticks(low: float, high: float, steps: int) -> list[float]:
    """Return about `steps` numbers that are 1, 2, or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    min_step = (high - low) / steps
    power = 10.0 ** math.floor(math.log10(min_step))
    step = next(
        power * factor for factor in (1, 2, 5, 10) if power * factor >= min_step * (1 - 1e-9)
    )
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _plain(value: float) -> str:
    text = np.format_float_positional(value, 6, fractional=False, trim="-")
    return text.replace("-", "−")


def _in_percent(fraction: float) -> str:
    return f"{_plain(round(100 * fraction, 9))} %"
