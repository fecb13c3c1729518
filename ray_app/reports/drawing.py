"""Parts of drawings as inline SVG text. Positions are per cents of the drawing, so that it widens with the page and its text does not.

Knows shapes and words; every word is made visible and escaped. Colours come from the page's style sheet by class name.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from ray_app.reports.wording import visible


def element(name: str, *children: str, **attributes: object) -> Markup:
    """One element; attribute values and plain text are made visible and escaped. `text_anchor` becomes `text-anchor`, `class_` `class`."""
    # Plain strings, each escaped: a page has ten thousand of these, and `Markup.format` is ten times slower.
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{_escaped(str(value))}"' for key, value in attributes.items())
    return Markup(f"<{name}{written}>{''.join(map(_escaped, children))}</{name}>")  # noqa: S704


def drawing(parts: Sequence[Markup], *, ident: str, title: str, description: str, class_: str) -> Markup:
    """A picture of its parts, with a title and a description for those who do not see it; `ident` is unique on the page."""
    named = [element("title", title, id=f"{ident}-title"), element("desc", description, id=f"{ident}-desc")]
    return element("svg", *named, *parts, class_=class_, role="img", aria_labelledby=f"{ident}-title {ident}-desc")


def rectangle(x: float, y: float, width: float, height: float, class_: str, label: str = "") -> Markup:
    """A rectangle, in per cents of the drawing, with words for its tooltip."""
    tooltip = [element("title", label)] if label else []
    place = {"x": percent(x), "y": percent(y), "width": percent(width), "height": percent(height)}
    return element("rect", *tooltip, **place, class_=class_)


def dot(x: float, y: float, radius: int, class_: str, label: str) -> Markup:
    """A circle at per cents of the drawing, its radius in pixels, with words for its tooltip."""
    return element("circle", element("title", label), cx=percent(x), cy=percent(y), r=radius, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line, in per cents of the drawing."""
    return element("line", x1=percent(x1), y1=percent(y1), x2=percent(x2), y2=percent(y2), class_=class_)


def text(x: float, y: float, text: str, class_: str, *, dx: int = 0, dy: int = 0, anchor: str = "start") -> Markup:
    """Words at per cents of the drawing, moved by pixels."""
    return element("text", text, x=percent(x), y=percent(y), dx=dx, dy=dy, text_anchor=anchor, class_=class_)


def position(value: float, low: float, high: float) -> float:
    """Where a value lies between two ends, in per cents; beyond them, at them."""
    return min(100.0, max(0.0, 100 * (value - low) / (high - low)))


def percent(value: float) -> str:
    """Per cents as SVG reads them."""
    return f"{value:.3f}".rstrip("0").rstrip(".") + "%"


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


def _escaped(text: str) -> str:
    return text if isinstance(text, Markup) else escape(visible(text))
