"""Bars with intervals on a stated axis, as inline SVG: a chart of them (`interval_bars`), one in a table's cell (`interval_meter`)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ray_app.reports import svg

_STARTS = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
_THINNEST = 0.4  # per cent of the axis: what is there at all must be seen

_FEW = 6  # bars that may be thick


@dataclass(frozen=True)
class IntervalBar:
    """A bar with its name, its value in words, the ends of its interval and its style class."""

    name: str
    words: str
    value: float
    ends: svg.Point | None = None
    kind: str = "plain"


def axis_start(lows: Iterable[float]) -> float:
    """Where an axis of shares or areas that ends at 1 begins, so that values near 1 differ to the eye: at the least, rounded down."""
    least = min(lows, default=0.0)
    return next((start for start in _STARTS if start <= least), 0.0)


def interval_bars(bars: Sequence[IntervalBar], x: svg.Axis, *, ident: str, title: str, description: str) -> Markup:
    """Bars one under the other, each under its name and its value, with a whisker over its interval; the axis has its ticks below."""
    row = 100 / max(len(bars), 1)
    parts = []
    for value, words in x.ticks:
        parts += [svg.line(x.at(value), 0, x.at(value), 100, "grid"), svg.text(x.at(value), 100, words, "tick", dy=17, anchor="middle")]
    for place, bar in enumerate(bars):
        top, middle = (place + 0.56) * row, (place + 0.72) * row
        parts += [svg.text(0, top, bar.name, "zone", dy=-5), svg.text(100, top, bar.words, "zone", dy=-5, anchor="end")]
        parts.append(svg.rectangle(0, top, max(_THINNEST, x.at(bar.value)), 0.32 * row, f"fill-{bar.kind}"))
        if bar.ends:
            low, high = (min(100.0, max(0.0, x.at(end))) for end in bar.ends)
            parts.append(svg.line(low, middle, high, middle, "whisker"))
            parts += [svg.line(at, middle - 0.09 * row, at, middle + 0.09 * row, "whisker") for at in (low, high)]
    parts += [svg.line(0, 0, 0, 100, "axis"), svg.text(100, 100, x.title, "title", dy=36, anchor="end")]
    height = f"{(4.8 if len(bars) <= _FEW else 3.4) * len(bars) + 3:g}em"
    return svg.drawing(parts, ident=ident, title=title, description=description, class_="rows", height=height)


def interval_meter(value: float, ends: svg.Point | None, start: float, kind: str = "plain", level: float | None = None) -> Markup:
    """A small bar for a table's cell on a scale from `start` to 1, with a whisker over its interval and a line across at `level`."""
    low, high = ends or (value, value)
    value, low, high = (max(0.0, number - start) for number in (value, low, high))
    return svg.range_meter(value, low, high, 1 - start, kind, None if level is None else max(0.0, level - start))
