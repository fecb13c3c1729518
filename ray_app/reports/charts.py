"""Charts as inline SVG, drawn by matplotlib: curves on a plane, histograms of scores, values over
steps.

matplotlib is imported when the first chart is drawn. A chart is drawn in the colours of `_COLOURS`,
which become variables of the page's style sheet, so that one drawing serves light and dark screens.
It loads nothing, has no ids but those of its title and description, and the size of its text is set
by the page.
"""

import io
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from ray_app.import_path import PACKAGE, working_in
from ray_app.reports.format import plain, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = 6
Point = tuple[float, float]
Floats = npt.NDArray[np.float64]

_COLOURS = (
    "ink",
    "muted",
    "grid",
    "paper",
    "band",
    "fake",
    "abstain",
    "real",
    "plain",
    "strong",
    "gold",
    "s0",
    "s1",
    "s2",
    "s3",
    "s4",
    "s5",
)
# in widths of the line
_DASHES = ((), (4.6, 1.7), (1.4, 1.4), (5, 1.7, 1.2, 1.7), (8, 2.3), (2.9, 1.2, 0.9, 1.2, 0.9, 1.2))
_MARKERS = "os^DvP"
_LINE = 1.75
# points of a line over steps: more would not be seen, and a long training has very many
_MOST_RUNS = 240
_MOST_DOTS = 40
_DETECTION_TICKS = (0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8)
_SETTINGS: Any = {"svg.fonttype": "none", "path.simplify_threshold": 0.3}
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_DRAWING = Lock()  # matplotlib's settings are global


class Axis(NamedTuple):
    """From `low` to `high`, after `warp`; `bends` where that is not linear. `ticks`: values with
    their labels.
    """

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    warp: Callable[[Any], Any] = np.asarray
    bends: bool = False

    def at(self, values: Any) -> Floats:
        """Where values lie; those beyond an end lie at it."""
        places: Floats = np.clip(
            self.warp(np.asarray(values, float)), self.warp(self.low), self.warp(self.high)
        )
        return places


class Spot(NamedTuple):
    """A mark on a line, with the ends of its interval along y and words for its tooltip."""

    at: Point
    words: str
    ends: Point | None = None


class Trace(NamedTuple):
    """One line with its marks, in one of STYLES; `level`: a faint line across, to compare it with."""

    style: int
    points: Sequence[Point]
    spots: Sequence[Spot] = ()
    level: float | None = None


def number_axis(title: str, low: float, high: float, steps: int = 5) -> Axis:
    """A linear axis of plain numbers."""
    return Axis(
        title, low, high, [(tick, plain(round(tick, 9))) for tick in _round_ticks(low, high, steps)]
    )


def share_axis(title: str, low: float = 0.0, high: float = 1.0) -> Axis:
    """A linear axis of shares, in per cent."""
    return Axis(
        title,
        low,
        high,
        [(tick, f"{plain(round(100 * tick, 6))} %") for tick in _round_ticks(low, high, 5)],
    )


def decade_axis(title: str, low: float) -> Axis:
    """A logarithmic axis of shares from `low`, a power of ten, to 1."""
    powers = [10.0**power for power in range(round(math.log10(low)), 1)]
    return Axis(
        title,
        low,
        1.0,
        [(one, f"{plain(100 * one)} %") for one in powers],
        lambda values: np.log10(np.maximum(values, low)),
        True,
    )


def probit_axis(title: str, low: float = 0.001, high: float = 0.8) -> Axis:
    """An axis on which scores of two normal distributions make a straight line, as of a DET curve
    (Martin et al. 1997).
    """
    from scipy.special import ndtri

    ticks = [(tick, f"{plain(100 * tick)} %") for tick in _DETECTION_TICKS if low <= tick <= high]
    return Axis(
        title, low, high, ticks, lambda values: ndtri(np.clip(values, 1e-7, 1 - 1e-7)), True
    )


def order_axis(title: str, labels: Sequence[str]) -> Axis:
    """Places 0, 1, 2 … with their names."""
    return Axis(title, -0.35, len(labels) - 0.65, list(enumerate(labels)))


def axis_start(lows: Sequence[float]) -> float:
    """Where an axis of shares or areas that ends at 1 begins, so that values near 1 differ to the
    eye: at the least, rounded down.
    """
    least = min(lows, default=0.0)
    return (
        0.99
        if least >= 0.99
        else 0.95
        if least >= 0.95
        else max(0.0, math.floor(10 * least + 1e-9) / 10)
    )


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
    """Lines on one plane. `guide`: a dotted line for comparison; `shade`: from where to where on x
    too little is known.
    """
    axes, tips = _axes(440, 300 if flat else 410, x, y)
    if shade:
        axes.axvspan(*x.at(shade), color=_colour("band"), linewidth=0, zorder=0)
    if guide:
        axes.plot(
            *_bent(guide, x, y),
            color=_colour("muted"),
            linewidth=1,
            linestyle=(0, (1, 4)),
            clip_on=False,
        )
    for trace in traces:
        style = trace.style % STYLES
        drawn: dict[str, Any] = {"color": _colour(f"s{style}"), "clip_on": False}
        if trace.level is not None:
            axes.axhline(float(y.at(trace.level)), linewidth=1, alpha=0.35, **drawn)
        axes.plot(
            *_bent(trace.points, x, y),
            linewidth=_LINE,
            linestyle=(0, _DASHES[style]) if style else "-",
            **drawn,
        )
        for spot in trace.spots:
            across, up = (
                float(axis.at(value)) for axis, value in zip((x, y), spot.at, strict=True)
            )
            if spot.ends:
                axes.plot([across, across], y.at(spot.ends), linewidth=1.25, **drawn)
            marked: dict[str, Any] = {
                "marker": _MARKERS[style],
                "markersize": 60**0.5,
                "markeredgecolor": _colour("paper"),
            }
            axes.plot(
                [across],
                [up],
                linestyle="none",
                markeredgewidth=1.25,
                zorder=3,
                gid=_tip(tips, spot.words),
                **marked,
                **drawn,
            )
    return _svg(axes, tips, ident, title, description)


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
    """Counts of scores between `edges` (n + 1 for n counts).

    `zones`: the scores below which nothing was found and above which is fake. Bars take the
    verdicts' colours, and change them at these scores; the band between is shaded. The smallest
    count is tall enough to be seen.
    """
    top = max([*counts, 1])
    x, y = (
        number_axis("", edges[0], edges[-1], 5 if compact else 9),
        _count_axis(top, 3 if compact else 4),
    )
    axes, tips = _axes(290 if compact else 520, 140 if compact else 250, x, y, compact=compact)
    if zones and zones[0] < zones[1]:
        axes.axvspan(*x.at(zones), color=_colour("band"), linewidth=0, zorder=0)
    for (left, right), count in zip(pairwise(edges), counts, strict=True):
        stops = sorted({left, right, *(cut for cut in zones or () if left < cut < right)})
        for start, stop in pairwise(stops if count else ()):
            middle = (start + stop) / 2
            kind = (
                "plain"
                if not zones
                else "real"
                if middle < zones[0]
                else "fake"
                if middle > zones[1]
                else "abstain"
            )
            words = f"{plain(left)} to {plain(right)}: {count:,}"
            _bar(axes, start, stop, max(count, 0.008 * top), kind, _tip(tips, words))
    for cut in sorted({cut for cut in zones or () if x.low < cut < x.high}):
        axes.axvline(
            cut,
            color=_colour("ink"),
            linewidth=1.25,
            linestyle=(0, (3, 3)),
            clip_on=False,
            ymax=1.04,
        )
    if zones and zones[0] < x.high and zones[1] > x.low:
        _names_of_zones(axes, x, zones)
    return _svg(axes, tips, ident, title, description)


def class_histogram(
    edges: Sequence[float],
    fakes: Sequence[int],
    reals: Sequence[int],
    cut: float | None,
    *,
    ident: str,
    title: str,
) -> Markup:
    """Scores of both classes, fakes upwards and real images downwards, each as shares of its class;
    `cut`: the threshold.
    """
    shares = [[count / max(sum(counts), 1) for count in counts] for counts in (fakes, reals)]
    top = max(map(max, shares)) or 1.0
    ticks = [
        (sign * tick, f"{plain(round(100 * tick, 6))} %")
        for tick in _round_ticks(0, top, 3)
        for sign in (1, -1)
    ]
    x, y = number_axis("", edges[0], edges[-1]), Axis("", -top, top, list(dict.fromkeys(ticks)))
    axes, tips = _axes(440, 410, x, y)
    for kind, sign, counts, heights in (
        ("fake", 1, fakes, shares[0]),
        ("real", -1, reals, shares[1]),
    ):
        for (left, right), count, share in zip(pairwise(edges), counts, heights, strict=True):
            if count:
                words = f"{kind}, {plain(left)} to {plain(right)}: {count:,}"
                _bar(axes, left, right, sign * max(share, 0.01 * top), kind, _tip(tips, words))
    axes.axhline(0, color=_colour("muted"), linewidth=1)
    axes.text(0.01, 0.96, "fakes", transform=axes.transAxes, color=_colour("ink"))
    axes.text(0.99, 0.02, "real images", transform=axes.transAxes, color=_colour("ink"), ha="right")
    if cut is not None and x.low < cut < x.high:
        axes.axvline(
            cut,
            color=_colour("ink"),
            linewidth=1.25,
            linestyle=(0, (3, 3)),
            clip_on=False,
            ymax=1.03,
        )
        axes.annotate(
            f"threshold {plain(cut)}",
            (cut, 1.02),
            (6, 0),
            axes.get_xaxis_transform(),
            "offset points",
            color=_colour("ink"),
        )
    described = f"{sum(fakes):,} fakes and {sum(reals):,} real images; scores from {plain(x.low)} to {plain(x.high)}."
    return _svg(axes, tips, ident, title, described)


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
    """Values over steps, which go from `span[0]` to `span[1]`; None where no value is finite.

    Of many points, the line is the mean of runs of neighbours, shaded from the least to the
    greatest of each. The step `chosen` is marked.
    """
    finite = np.array([(x, y) for x, y in points if math.isfinite(y)])
    if not len(finite):
        return None
    runs = np.array_split(finite, math.ceil(len(finite) / math.ceil(len(finite) / _MOST_RUNS)))
    means = np.array([run.mean(axis=0) for run in runs])
    low, high = means[:, 1].min(), means[:, 1].max()
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low = 0.0 if from_zero and low >= 0 else low - room
    x, y = (
        _count_axis(span[1], 3 if compact else 6, span[0]),
        number_axis("", low, high + room, 4 if compact else 6),
    )
    axes, tips = _axes(290 if compact else 520, 140 if compact else 250, x, y, compact=compact)
    least, most = (y.at([pick(run[:, 1]) for run in runs]) for pick in (np.min, np.max))
    axes.fill_between(
        x.at(means[:, 0]),
        least,
        most,
        color=_colour("plain"),
        alpha=0.3,
        linewidth=0,
        clip_on=False,
    )
    axes.plot(
        x.at(means[:, 0]),
        y.at(means[:, 1]),
        color=_colour("strong"),
        linewidth=_LINE,
        clip_on=False,
    )
    if chosen is not None:
        axes.axvline(
            float(x.at(chosen)), color=_colour("ink"), linewidth=1.25, linestyle=(0, (3, 3))
        )
    for step, value in finite:
        if step == chosen or len(finite) <= _MOST_DOTS:
            size, kind, words = (90, "gold", ", chosen") if step == chosen else (20, "strong", "")
            tip = _tip(tips, f"step {step:,.0f}{words}: {plain(value)}")
            axes.plot(
                x.at([step]),
                y.at([value]),
                "o",
                markersize=size**0.5,
                color=_colour(kind),
                zorder=3,
                clip_on=False,
                gid=tip,
            )
    return _svg(axes, tips, ident, title, description)


def _import_matplotlib() -> None:
    """Import matplotlib without the settings of a file `matplotlibrc` in the current folder, which
    may be an archive.
    """
    if "matplotlib" not in sys.modules and Path("matplotlibrc").exists():
        with working_in(PACKAGE):
            import_module("matplotlib")


def _axes(
    width: int, height: int, x: Axis, y: Axis, *, compact: bool = False
) -> tuple["Axes", list[str]]:
    """An empty plane in a figure of `width` × `height` pixels, with its ticks and grid, and the
    texts that _svg puts in.
    """
    _import_matplotlib()
    from matplotlib.figure import Figure

    left, right, bottom, top = (44, 18, 20, 10) if compact else (50, 18, 38 if x.title else 22, 24)
    figure = Figure(figsize=(width / 72, height / 72))
    figure.patch.set_visible(False)
    axes = figure.add_axes(
        (
            left / width,
            bottom / height,
            (width - left - right) / width,
            (height - top - bottom) / height,
        )
    )
    axes.patch.set_visible(False)
    axes.set(xlim=x.at([x.low, x.high]), ylim=y.at([y.low, y.high]))
    for axis, axes_axis in ((x, axes.xaxis), (y, axes.yaxis)):
        axes_axis.set_ticks(
            axis.at([tick for tick, _ in axis.ticks]),
            [words for _, words in axis.ticks],
            color=_colour("muted"),
        )
        axes_axis.set_tick_params(size=0, pad=6)
        if axes_axis is axes.yaxis or x.title:
            axes_axis.grid(color=_colour("grid"), linewidth=1, clip_on=False)
    axes.set_axisbelow(True)
    for side in ("left", "bottom", "top", "right"):
        axes.spines[side].set(
            visible=side == "bottom" or (side == "left" and bool(x.title)), color=_colour("muted")
        )
    tips = list[str]()
    # At fixed places: to find free ones, matplotlib would measure every label of the ticks.
    axes.set_xlabel(_tip(tips, x.title), ha="right", color=_colour("muted"))
    axes.xaxis.set_label_coords(1, (18 - bottom) / (height - top - bottom))
    axes.set_title(
        _tip(tips, y.title),
        loc="left",
        x=-left / (width - left - right),
        y=1,
        color=_colour("muted"),
    )
    return axes, tips


def _svg(axes: "Axes", tips: Sequence[str], ident: str, title: str, description: str) -> Markup:
    """The figure of `axes` as an element that is one picture to screen readers. `ident` is unique
    on the page.
    """
    from matplotlib import rc_context

    written = io.StringIO()
    with _DRAWING, rc_context(_SETTINGS):
        cast("Figure", axes.figure).savefig(
            written,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    drawn = ElementTree.fromstring(written.getvalue())  # noqa: S314  what matplotlib wrote
    shapes = {one.get("id"): one.get("d") for one in drawn.iter(f"{_SVG}path") if one.get("id")}
    body = "\n".join(_parts(drawn, shapes, tips, ""))
    names = Markup('<title id="{0}-title">{1}</title><desc id="{0}-desc">{2}</desc>').format(
        ident, visible(title), visible(description)
    )
    return Markup(
        '<svg class="chart" viewBox="{0}" role="img" aria-labelledby="{1}-title {1}-desc">{2}\n{3}</svg>'
    ).format(
        drawn.get("viewBox"),
        ident,
        names,
        Markup(body),  # noqa: S704
    )


def _parts(
    parent: ElementTree.Element,
    shapes: Mapping[str | None, str | None],
    tips: Sequence[str],
    tip: str,
) -> Iterator[str]:
    """The paths and texts of a drawing in their order, without groups and ids. `tip`: the tooltip
    of all in `parent`.
    """
    for one in parent:
        kind, name = one.tag.removeprefix(_SVG), one.get("id", "")
        style = re.sub(r"font-[a-z]+: [^;]*; ?", "", one.get("style", ""))
        style = re.sub(
            r"#0000([0-9a-f]{2})",
            lambda colour: f"var(--{_COLOURS[int(colour[1], 16) - 1]})",
            style,
        )
        if kind == "g":
            inner = f"<title>{_words(name, tips)}</title>" if name.startswith("tip") else tip
            yield from _parts(one, shapes, tips, inner)
        elif kind == "text" and (words := _words(one.text or "", tips)):
            yield f'<text x="{one.get("x")}" y="{one.get("y")}" style="{style}">{words}</text>'
        elif kind in ("path", "use"):
            place = (
                f' transform="translate({one.get("x")} {one.get("y")})"' if kind == "use" else ""
            )
            path = " ".join((one.get("d") or shapes[one.get(_LINK, "")[1:]] or "").split())
            yield f'<path d="{path}"{place} style="{style}">{tip}</path>'


def _bar(axes: "Axes", left: float, right: float, height: float, kind: str, tip: str) -> None:
    from matplotlib.patches import Rectangle

    outlined: dict[str, Any] = {
        "facecolor": _colour(kind),
        "edgecolor": _colour("paper"),
        "linewidth": 0.8,
    }
    axes.add_patch(Rectangle((left, 0), right - left, height, clip_on=False, gid=tip, **outlined))


def _names_of_zones(axes: "Axes", x: Axis, zones: tuple[float, float]) -> None:
    """Above their parts; a name is left out where its part is too narrow to hold it, and the legend
    has the same.
    """
    real, fake = ((cut - x.low) / (x.high - x.low) for cut in zones)
    names = [(real - 0.012, "right", f"no evidence < {plain(zones[0])}", real >= 0.26), (fake + 0.012, "left", f"fake > {plain(zones[1])}",
             fake <= 0.78), ((real + fake) / 2, "center", "abstain", fake - real >= 0.16)]  # fmt: skip
    for at, align, words, fits in names:
        if fits:
            axes.text(at, 1.04, words, transform=axes.transAxes, ha=align, color=_colour("ink"))


def _colour(name: str) -> str:
    """What stands for a variable of the style sheet while matplotlib draws."""
    return f"#0000{1 + _COLOURS.index(name):02x}"


def _tip(tips: list[str], words: str) -> str:
    """What stands for `words` while matplotlib draws, which knows few scripts: the id of a shape
    with this tooltip, or a text.
    """
    tips.append(words)
    return f"tip{len(tips) - 1}"


def _words(text: str, tips: Sequence[str]) -> Markup:
    """What a text of the drawing says, or what it stands for (_tip)."""
    return escape(visible(tips[int(text[3:])] if text.startswith("tip") else text))


def _bent(points: Sequence[Point], x: Axis, y: Axis) -> tuple[Floats, Floats]:
    """Where points lie, with others put between them where an axis bends what is straight."""
    places = np.asarray(points, float).reshape(-1, 2)
    if (x.bends or y.bends) and len(places) > 1:
        steps = max(6, 96 // len(places))
        # close to the smaller end, where such axes stretch most
        between = (np.arange(1, steps + 1) / steps) ** 3
        inner = places[:-1, None] + between[None, :, None] * np.diff(places, axis=0)[:, None]
        places = np.concatenate([places[:1], inner.reshape(-1, 2)])
    return x.at(places[:, 0]), y.at(places[:, 1])


def _count_axis(high: float, steps: int, low: float = 0.0) -> Axis:
    return Axis(
        "",
        low,
        high,
        [(tick, f"{tick:,.0f}") for tick in _round_ticks(low, high, steps) if tick == round(tick)],
    )


def _round_ticks(low: float, high: float, steps: int) -> list[float]:
    """About `steps` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    _import_matplotlib()
    from matplotlib.ticker import MaxNLocator

    if not high > low:
        return [low]
    ticks = MaxNLocator(nbins=steps, steps=[1, 2, 5, 10]).tick_values(low, high)
    edge = 1e-9 * (high - low)
    return [float(tick) for tick in ticks if low - edge <= tick <= high + edge]
