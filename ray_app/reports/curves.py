"""Curves of several systems on one plane: linear, logarithmic and probit axes, lines that dashes and marks tell apart in print.

Knows numbers and names; which system is which style is told by number, and the page's style sheet says how the style looks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

from markupsafe import Markup

from ray_app.reports.drawing import drawing, element, line, percent, plain, rectangle, round_ticks, text

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


def share_axis(title: str, low: float = 0.0, high: float = 1.0) -> Axis:
    """A linear axis of shares, in per cent."""
    ticks = [(tick, f"{plain(round(100 * tick, 6))} %") for tick in round_ticks(low, high, 5)]
    return Axis(title, low, high, ticks)


def number_axis(title: str, low: float, high: float) -> Axis:
    """A linear axis of plain numbers."""
    return Axis(title, low, high, [(tick, plain(round(tick, 9))) for tick in round_ticks(low, high, 5)])


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
    whole = {"width": "100%", "height": "100%", "viewBox": "0 0 100 100", "preserveAspectRatio": "none"}
    parts.append(element("svg", *paths, **whole, class_="clipped", aria_hidden="true"))
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
    parts = [piece for tick, words in x.ticks for piece in [text(x.at(tick), 100, words, "tick", dy=17, anchor="middle")]]
    for tick in round_ticks(0, top, 3):
        for at in {50 - 50 * tick / top, 50 + 50 * tick / top}:
            parts += [line(0, at, 100, at, "grid"), text(0, at, f"{plain(round(100 * tick, 6))} %", "tick", dx=-8, dy=4, anchor="end")]
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


def _grid(x: Axis, y: Axis) -> list[Markup]:
    parts = []
    for value, words in x.ticks:
        at = x.at(value)
        parts += [line(at, 0, at, 100, "grid"), text(at, 100, words, "tick", dy=17, anchor="middle")]
    for value, words in y.ticks:
        at = 100 - y.at(value)
        parts += [line(0, at, 100, at, "grid"), text(0, at, words, "tick", dx=-8, dy=4, anchor="end")]
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
