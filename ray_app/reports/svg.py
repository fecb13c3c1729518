"""Charts as inline SVG text: bars, histograms, lines over steps, curves of several systems on one plane (`histogram`, `line_chart`,
`plane`, …).

Positions are per cents of the drawing, so that it widens with the page and its text does not. Every text is made visible and escaped.
Colours and line styles come from the page's style sheet by class name.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

from markupsafe import Markup, escape

from ray_app.reports.format import visible

_STRETCHED = {"width": "100%", "height": "100%", "viewBox": "0 0 100 100", "preserveAspectRatio": "none"}
_THINNEST = 0.4  # per cent of the drawing: what is there at all must be seen
_MOST_RUNS = 240  # pieces of a line: more would not be seen, and a long training has very many
_MOST_DOTS = 40
STYLES = 6
_MARKS = (  # paths about the origin, in pixels
    "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0 -4.5 0Z",
    "M-4 -4H4V4H-4Z",
    "M0 -5.5L5 4H-5Z",
    "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
    "M0 5.5L5 -4H-5Z",
    "M-1.5 -5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5V-1.5H-1.5Z",
)
_INNER_STEPS = 6  # points put between two, where an axis bends what is straight
_FINEST = 0.35  # per cents of the drawing: points closer than that make no other line
_PROBIT = NormalDist().inv_cdf
_DETECTION_TICKS = (0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8)
Point = tuple[float, float]


@dataclass(frozen=True)
class Zones:
    """Two cuts on the score axis: below the first nothing was found, above the second is fake, between is abstained."""

    real_below: float
    fake_above: float

    def kind(self, value: float) -> str:
        """The verdict that a score gives."""
        return "real" if value < self.real_below else "fake" if value > self.fake_above else "abstain"


@dataclass(frozen=True)
class BarSegment:
    """One piece of a bar: style class, words for its tooltip, amount."""

    kind: str
    label: str
    amount: float


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, after `warp`; `bends` where that is not linear. `ticks`: values with their labels."""

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    warp: Callable[[float], float] = float
    bends: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, in per cents; beyond the ends it lies at most a little outside."""
        low, high = self.warp(self.low), self.warp(self.high)
        return min(101.0, max(-1.0, 100 * (self.warp(value) - low) / (high - low)))


@dataclass(frozen=True)
class Spot:
    """A mark on a line, with the ends of its interval along y and words for its tooltip."""

    at: Point
    words: str
    ends: Point | None = None


@dataclass(frozen=True)
class Trace:
    """One line with its marks; `level`: a faint line across, which it is to be held against."""

    style: int
    points: Sequence[Point]
    spots: Sequence[Spot] = ()
    level: float | None = None


def stacked_bar(segments: Sequence[BarSegment], *, ident: str, title: str, description: str) -> Markup:
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
    counted = [(tick, f"{tick:,.0f}") for tick in round_ticks(0, top, 3 if compact else 4) if tick == round(tick)]
    parts += _axis_beside(counted, 0, top)
    for (left, right), number in zip(pairwise(edges), counts, strict=True):
        if number:
            parts.append(_bar(left, right, number, top, (low, high), zones))
    parts += _axis_below([(tick, plain(tick)) for tick in round_ticks(low, high, 5 if compact else 9)], low, high)
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
    values = [(tick, plain(tick)) for tick in round_ticks(low, high, 4 if compact else 6)]
    steps = [(tick, f"{tick:,.0f}") for tick in round_ticks(*span, 3 if compact else 6) if tick == round(tick)]
    parts = [*_axis_beside(values, low, high, from_floor=True), *_axis_below(steps, *span), _curve(runs, span, (low, high))]
    if chosen is not None:
        at = position(chosen, *span)
        parts.append(line(at, 0, at, 100, "cut"))
    for x, y in finite:
        if x == chosen or len(finite) <= _MOST_DOTS:
            radius, kind, words = (6, "chosen", ", chosen") if x == chosen else (3, "dot", "")
            parts.append(dot(position(x, *span), 100 - position(y, low, high), radius, kind, f"step {x:,.0f}{words}: {plain(y)}"))
    style = "histogram lines compact" if compact else "histogram lines"
    return drawing(parts, ident=ident, title=title, description=description, class_=style)


def dot(x: float, y: float, radius: int, class_: str, label: str) -> Markup:
    """A circle at per cents of the drawing, its radius in pixels, with words for its tooltip."""
    return element("circle", element("title", label), cx=percent(x), cy=percent(y), r=radius, class_=class_)


def position(value: float, low: float, high: float) -> float:
    """Where a value lies between two ends, in per cents; beyond them, at them."""
    return min(100.0, max(0.0, 100 * (value - low) / (high - low)))


def share_axis(title: str, low: float = 0.0, high: float = 1.0) -> Axis:
    """A linear axis of shares, in per cent."""
    ticks = [(tick, f"{plain(round(100 * tick, 6))} %") for tick in round_ticks(low, high, 5)]
    return Axis(title, low, high, ticks)


def decade_axis(title: str, low: float) -> Axis:
    """A logarithmic axis of shares from `low`, a power of ten, to 1; what is less lies at its left edge."""
    powers = range(round(math.log10(low)), 1)
    ticks = [(10.0**power, f"{plain(100 * 10.0**power)} %") for power in powers]
    return Axis(title, low, 1.0, ticks, lambda value: math.log10(max(value, low / 10)), bends=True)


def probit_axis(title: str, low: float = 0.001, high: float = 0.8) -> Axis:
    """An axis on which scores of two normal distributions make a straight line, as of a DET curve (Martin et al. 1997)."""
    ticks = [(tick, f"{plain(100 * tick)} %") for tick in _DETECTION_TICKS if low <= tick <= high]
    return Axis(title, low, high, ticks, lambda value: _PROBIT(min(0.9999999, max(1e-7, value))), bends=True)


def order_axis(title: str, labels: Sequence[str]) -> Axis:
    """Places 0, 1, 2 … with their names."""
    return Axis(title, -0.35, len(labels) - 0.65, list(enumerate(labels)))


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
    class_: str = "plane",
) -> Markup:
    """Lines on one plane. `guide`: a dotted line for comparison; `shade`: from where to where on x too little is known."""
    parts = _grid(x, y)
    if shade:
        left, right = max(0.0, x.at(shade[0])), min(100.0, x.at(shade[1]))
        parts += [rectangle(left, 0, right - left, 100, "band")] if right > left else []
    paths = [_path(_bent(guide, x, y), x, y, "guide")] if guide else []
    for trace in traces:
        if trace.level is not None:
            paths.append(_path([(x.low, trace.level), (x.high, trace.level)], x, y, f"trace level s{trace.style}"))
        paths.append(_path(_bent(trace.points, x, y), x, y, f"trace s{trace.style}"))
    parts.append(element("svg", *paths, **_STRETCHED, class_="clipped", aria_hidden="true"))
    parts += [piece for trace in traces for spot in trace.spots for piece in _spot(spot, trace.style, x, y)]
    return drawing(parts, ident=ident, title=title, description=description, class_=class_)


def sample(style: int) -> Markup:
    """A piece of a line with its mark, for a legend."""
    stroke = line(0, 50, 100, 50, f"trace s{style}")
    return element("svg", stroke, mark(50, 50, style), class_="sample", aria_hidden="true")


def mark(x: float, y: float, style: int, label: str = "") -> Markup:
    """The mark of a style at per cents of the drawing: circle, square, triangle, diamond, triangle turned, cross."""
    tooltip = [element("title", label)] if label else []
    shape = element("path", *tooltip, d=_MARKS[style % len(_MARKS)], class_=f"mark-{style} spot")
    # Hidden where it has no words; with them, its chart is one picture with a description of its own.
    return element("svg", shape, x=percent(x), y=percent(y), width="1", height="1", aria_hidden="true")


def score_classes(
    edges: Sequence[float], fakes: Sequence[int], reals: Sequence[int], cut: float | None, *, ident: str, title: str
) -> Markup:
    """Scores of both classes, fakes upwards and real images downwards, each as shares of its class; `cut`: the threshold."""
    shares = [[count / max(sum(counts), 1) for count in counts] for counts in (fakes, reals)]
    top = max(max(shares[0]), max(shares[1])) or 1.0
    low, high = edges[0], edges[-1]
    x = number_axis("", low, high)
    parts = [_tick_below(x.at(tick), words) for tick, words in x.ticks]
    for tick in round_ticks(0, top, 3):
        for at in {50 - 50 * tick / top, 50 + 50 * tick / top}:
            parts += [line(0, at, 100, at, "grid"), _tick_beside(at, f"{plain(round(100 * tick, 6))} %")]
    for kind, counts, heights in (("fake", fakes, shares[0]), ("real", reals, shares[1])):
        for (left, right), count, share in zip(pairwise(edges), counts, heights, strict=True):
            if count:
                height = max(50 * share / top, 0.5)
                gap = 0.06 * (right - left)
                start, width = x.at(left + gap), x.at(right - gap) - x.at(left + gap)
                words = f"{kind}, {plain(left)} to {plain(right)}: {count:,}"
                parts.append(rectangle(start, 50 - height if kind == "fake" else 50, width, height, f"fill-{kind}", words))
    parts.append(line(0, 50, 100, 50, "axis"))
    parts += [text(0, 0, "fakes", "zone", dx=4, dy=22), text(100, 100, "real images", "zone", dx=-2, dy=4, anchor="end")]
    if cut is not None and low < cut < high:
        parts += [line(x.at(cut), -4, x.at(cut), 100, "cut"), text(x.at(cut), 0, f"threshold {plain(cut)}", "zone", dx=6, dy=4)]
    described = f"{sum(fakes):,} fakes and {sum(reals):,} real images; scores from {plain(low)} to {plain(high)}."
    return drawing(parts, ident=ident, title=title, description=described, class_="histogram classes")


def drawing(parts: Sequence[Markup], *, ident: str, title: str, description: str, class_: str, **size: str) -> Markup:
    """A picture of its parts, with a title and a description for those who do not see it; `ident` is unique on the page."""
    named = [element("title", title, id=f"{ident}-title"), element("desc", description, id=f"{ident}-desc")]
    return element("svg", *named, *parts, class_=class_, role="img", aria_labelledby=f"{ident}-title {ident}-desc", **size)


def rectangle(x: float, y: float, width: float, height: float, class_: str, label: str = "") -> Markup:
    """A rectangle, in per cents of the drawing, with words for its tooltip."""
    tooltip = [element("title", label)] if label else []
    place = {"x": percent(x), "y": percent(y), "width": percent(width), "height": percent(height)}
    return element("rect", *tooltip, **place, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line, in per cents of the drawing."""
    return element("line", x1=percent(x1), y1=percent(y1), x2=percent(x2), y2=percent(y2), class_=class_)


def number_axis(title: str, low: float, high: float) -> Axis:
    """A linear axis of plain numbers."""
    return Axis(title, low, high, [(tick, plain(round(tick, 9))) for tick in round_ticks(low, high, 5)])


def round_ticks(low: float, high: float, steps: int) -> list[float]:
    """About `steps` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / max(steps, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * index for index in range(first, math.floor(high / step + 1e-9) + 1)]


def plain(value: float) -> str:
    """A number as short as it can be, with a true minus sign."""
    return f"{value:.6g}".replace("-", "−")


def element(name: str, *children: str, **attributes: object) -> Markup:
    """One element; attribute values and plain text are made visible and escaped. `text_anchor` becomes `text-anchor`, `class_` `class`."""
    # Plain strings, each escaped: a page has ten thousand of these, and `Markup.format` is ten times slower.
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{_escaped(str(value))}"' for key, value in attributes.items())
    return Markup(f"<{name}{written}>{''.join(map(_escaped, children))}</{name}>")  # noqa: S704


def text(x: float, y: float, text: str, class_: str, *, dx: int = 0, dy: int = 0, anchor: str = "start") -> Markup:
    """Words at per cents of the drawing, moved by pixels."""
    return element("text", text, x=percent(x), y=percent(y), dx=dx, dy=dy, text_anchor=anchor, class_=class_)


def percent(value: float) -> str:
    """Per cents as SVG reads them."""
    return f"{value:.3f}".rstrip("0").rstrip(".") + "%"


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
    """The line and its shade. A path takes no per cents: it has a drawing of its own, stretched over the whole one."""

    def at(run: _Run, value: float) -> str:
        return f"{position(run.at, *span):.2f} {100 - position(value, *ends):.2f}"

    shade = [at(run, run.high) for run in runs] + [at(run, run.low) for run in reversed(runs)]
    paths = [
        element("path", d=f"M{' L'.join(shade)}Z", class_="shade"),
        element("path", d=f"M{' L'.join(at(run, run.mean) for run in runs)}", class_="line"),
    ]
    return element("svg", *paths, **_STRETCHED, aria_hidden="true")


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
    # A label is left out where its zone is too narrow to hold it on a telephone; the legend has the same.
    if left >= 26:
        parts.append(text(left, 0, f"no evidence < {plain(zones.real_below)}", "zone", dx=-7, dy=4, anchor="end"))
    if right <= 78:
        parts.append(text(right, 0, f"fake > {plain(zones.fake_above)}", "zone", dx=7, dy=4))
    if right - left >= 16:
        parts.append(text((left + right) / 2, 0, "abstain", "zone", dy=4, anchor="middle"))
    return parts


def _axis_below(ticks: Sequence[tuple[float, str]], low: float, high: float) -> list[Markup]:
    return [line(0, 100, 100, 100, "axis"), *(_tick_below(position(tick, low, high), words) for tick, words in ticks)]


def _axis_beside(ticks: Sequence[tuple[float, str]], low: float, high: float, *, from_floor: bool = False) -> list[Markup]:
    """Labels with a line across at each; at 0 only `from_floor`, since bars stand on a line of their own."""
    parts = []
    for tick, words in ticks:
        at = 100 - position(tick, low, high)
        parts += [line(0, at, 100, at, "grid")] if tick or from_floor else []
        parts.append(_tick_beside(at, words))
    return parts


def _tick_below(at: float, words: str) -> Markup:
    return text(at, 100, words, "tick", dy=17, anchor="middle")


def _tick_beside(at: float, words: str) -> Markup:
    return text(0, at, words, "tick", dx=-8, dy=4, anchor="end")


def _grid(x: Axis, y: Axis) -> list[Markup]:
    parts = []
    for value, words in x.ticks:
        at = x.at(value)
        parts += [line(at, 0, at, 100, "grid"), _tick_below(at, words)]
    for value, words in y.ticks:
        at = 100 - y.at(value)
        parts += [line(0, at, 100, at, "grid"), _tick_beside(at, words)]
    parts += [line(0, 100, 100, 100, "axis"), line(0, 0, 0, 100, "axis")]
    return [*parts, text(100, 100, x.title, "title", dy=36, anchor="end"), text(0, 0, y.title, "title", dx=-38, dy=-12)]


def _bent(points: Sequence[Point], x: Axis, y: Axis) -> list[Point]:
    """Points with others put between, so that what is straight on linear axes is bent as it must be on others."""
    if not (x.bends or y.bends):
        return list(points)
    bent = list(points[:1])
    for (x0, y0), (x1, y1) in pairwise(points):
        for step in range(1, _INNER_STEPS + 1):
            # Closer together towards the smaller end, where such axes stretch most.
            part = (step / _INNER_STEPS) ** 3 if x1 > x0 else step / _INNER_STEPS
            bent.append((x0 + part * (x1 - x0), y0 + part * (y1 - y0)))
    return bent


def _path(points: Sequence[Point], x: Axis, y: Axis, class_: str) -> Markup:
    places = [(x.at(across), 100 - y.at(up)) for across, up in points]
    kept = places[:1]
    for place in places[1:]:
        if abs(place[0] - kept[-1][0]) + abs(place[1] - kept[-1][1]) >= _FINEST:
            kept.append(place)
    kept += [places[-1]] if places and kept[-1] != places[-1] else []
    return element("path", d=f"M{'L'.join(f'{across:.2f} {up:.2f}' for across, up in kept)}", class_=class_)


def _spot(spot: Spot, style: int, x: Axis, y: Axis) -> list[Markup]:
    across, up = x.at(spot.at[0]), 100 - y.at(spot.at[1])
    if not (-0.5 <= across <= 100.5 and -0.5 <= up <= 100.5):
        return []
    whisker = []
    if spot.ends:
        ends = [min(100.0, max(0.0, 100 - y.at(end))) for end in spot.ends]
        whisker = [line(across, ends[0], across, ends[1], f"reach s{style}")]
    return [*whisker, mark(across, up, style, spot.words)]


def _escaped(text: str) -> str:
    return text if isinstance(text, Markup) else escape(visible(text))
