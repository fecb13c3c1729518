"""An evaluation's document → one HTML page that loads nothing and runs nothing
(`render_evaluation`), and a few lines (`evaluation_lines`). Every text in the document is taken for
hostile.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from ray_app.metrics.values import NOT_MEASURED, MetricValue
from ray_app.reports import charts
from ray_app.reports import format as wording
from ray_app.reports.evaluation.model import EvaluationDocument, GroupRow, NamedFigures
from ray_app.reports.evaluation.protocol_table import MOST_ROWS, protocol_table, sources
from ray_app.reports.evaluation.sentences import (
    answers,
    headline,
    interval_in_words,
    short,
    warnings,
)
from ray_app.reports.evaluation.system_model import GeneratorFacts, Points, SystemFacts
from ray_app.reports.format import (
    in_words,
    named,
    rounded_share,
    three_digit_ends,
    three_digits,
    written,
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
    lines: list[tuple[GroupRow, list[MetricValue]]]


def render_evaluation(document: EvaluationDocument | Mapping[str, Any]) -> str:
    """Write an evaluation's document (`metrics.json`) as one self-contained HTML page; any of its
    sections may be absent or null.

    Pictures are base64 of JPEGs, already re-encoded and free of metadata; what is no JPEG is not
    shown. Raises pydantic's ValidationError for a value of another type.
    """
    facts = EvaluationDocument.model_validate(document)
    systems = [facts.leading, *facts.others] if facts.leading else []
    parts, notes = protocol_table(facts)
    opened = opening_systems(facts)
    return render(
        "evaluation.html",
        document=facts,
        leading=facts.leading,
        systems=systems,
        headline=headline(facts),
        opening=[(short(one.called), opening_cells(one)) for one in opened[:_MOST_ROWS]],
        opening_heads=HEADS,
        opening_bars=opening_bars(facts, opened[:_MOST_ROWS]),
        left_out=_left_out(facts),
        answers=answers(facts),
        warnings=warnings(facts),
        table=parts,
        notes=notes,
        sources=sources(facts),
        seen_signs=SEEN_SIGNS,
        curves=_groups([one for one in facts.systems if len(one.roc) > 1], _curves),
        risks=_groups([one for one in facts.systems if len(one.risk_coverage.points) > 1], _risks),
        robustness=_groups([one for one in facts.systems if one.views], _robustness),
        confidence=[(one, system_charts(one, str(place))) for place, one in enumerate(systems)],
        view_start=_view_start,
        called={system.name: system.called for system in facts.systems},
        named=_named_tables(facts.identification),
        pairs=facts.identification.confusions if facts.identification else [],
        grouped=group_table(facts),
        policy=settings(facts.localization.policy) if facts.localization else [],
        identity=settings(facts.run.identity),
        glossary=_glossary(facts),
    )


def evaluation_lines(document: EvaluationDocument | Mapping[str, Any]) -> list[str]:
    """An evaluation in words for the terminal: one sentence, key figures, what to beware of, then
    the protocol's table and names.
    """
    facts = EvaluationDocument.model_validate(document)
    lines, systems = [headline(facts)], opening_systems(facts)
    if systems:
        rows = [
            [
                wording.shortened(short(one.called), 44),
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
    beware = warnings(facts)
    lines += [""] if beware else []
    lines += [
        f"{'warning' if one.is_grave else 'note'}: {wording.visible(one.heading)} {wording.visible(one.text)}"
        for one in beware
    ]
    parts, notes = protocol_table(facts)
    if parts:
        lines += [
            "",
            "By source and generator, with 95 % intervals for further images of the same ones",
            *parts[0].lines(),
        ]
        lines += [f"{sign} {wording.visible(text)}" for text, sign in notes.items()]
        lines += [f"published: {line}" for line in sources(facts)]
        lines += (
            [f"on the page only: {', '.join(part.summary for part in parts[1:])}"]
            if parts[1:]
            else []
        )
    families = facts.identification.inner.get("families") if facts.identification else None
    named = [*_figures_line("Generators named", facts.identification, _KEYS), *_figures_line("Prompts predicted", facts.prompts, _PROMPTS),
             *_figures_line("Families named", families, _KEYS)]  # fmt: skip
    if groups := group_table(facts):
        rows = [
            [wording.shortened(row.name, 40), row.side, f"{row.n:,}",
             *(wording.written(key, cell.value) for key, cell in zip(groups.keys, cells, strict=True))]
            for row, cells in groups.lines
        ]  # fmt: skip
        named += [
            "",
            *table(
                ["fakes", "distribution", "n", *groups.heads],
                rows,
                _WIDTH,
                right=range(2, 3 + len(groups.heads)),
            ),
        ]
    return [*lines, "", *named] if named else lines


def opening_systems(facts: EvaluationDocument) -> list[SystemFacts]:
    """The leading system first, the others by their AUC."""
    return sorted(
        facts.systems,
        key=lambda one: (one is not facts.leading, -(one.figure("auc").value or 0.0)),
    )


def opening_cells(system: SystemFacts) -> list[tuple[str, str]]:
    """For each of HEADS a rounded value, and its 95 % interval or ""."""
    shares = [
        (rounded_share(one.value), interval_in_words(one))
        for one in (system.figure("tpr"), system.flagged)
    ]
    auc = system.figure("auc")
    return [
        *shares,
        (
            three_digits(auc.value),
            " to ".join(three_digit_ends(auc.interval)) if auc.interval else "",
        ),
    ]


def opening_bars(facts: EvaluationDocument, systems: Sequence[SystemFacts]) -> OpeningBars | None:
    """AUCs where there are several to compare; else what one system makes of each generator; else
    its one AUC.
    """
    ranked = [(one, one.figure("auc")) for one in systems if one.figure("auc").value is not None]
    leading = facts.leading
    makers = [
        one
        for label in ("fake", "real")
        for one in (leading.hardest(label) if leading else ())
        if one.rate.value is not None
    ]
    if len(ranked) < 2 and len(makers) > 1:
        return _bars_by_generator(makers)
    if not ranked:
        return None
    start = charts.axis_start([figure.least or 0.0 for _, figure in ranked])
    bars = [
        (
            _brief(one.called),
            three_digits(figure.value),
            figure,
            "strong" if one is leading else "plain",
        )
        for one, figure in ranked
    ]
    return OpeningBars("How well each system ranks fakes above real images", "ROC AUC", start, bars)


def _bars_by_generator(makers: Sequence[GeneratorFacts]) -> OpeningBars:
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
        bars.append((name, f"{rounded_share(one.rate.value)} of {one.n:,}", one.rate, kind))
    hardest = f"; the {len(kept)} hardest" if len(kept) < len(makers) else ""
    return OpeningBars(
        f"Images judged correctly, by who made them{hardest}", "share judged correctly", 0.0, bars
    )


def group_table(facts: EvaluationDocument) -> GroupTable | None:
    """The groups by all figures that any of them has; None without groups."""
    if facts.groups is None or not facts.groups.groups:
        return None
    leading, rows = facts.leading, facts.groups.groups
    detection = [row.detection.get(leading.name if leading else "", {}) for row in rows]
    figures = [
        {**found, **(row.identification or {}), **(row.prompts or {})}
        for row, found in zip(rows, detection, strict=True)
    ]
    keys = [
        key for key in _COLUMNS if any(one[key].value is not None for one in figures if key in one)
    ]
    lines = [
        (row, [one.get(key, NOT_MEASURED) for key in keys])
        for row, one in zip(rows, figures, strict=True)
    ]
    return GroupTable(
        leading.called if leading else "",
        keys,
        [_CALLED.get(key) or wording.named(key) for key in keys],
        lines,
    )


def _brief(name: str) -> str:
    """A name in the chart."""
    return wording.shortened(name, 32) or wording.NONE


def _view_start(system: SystemFacts) -> float:
    """Where the scale of a system's AUCs under perturbation begins."""
    found = [view.figures["auc"] for view in system.views if "auc" in view.figures] + [
        system.figure("auc")
    ]
    return charts.axis_start([one.least for one in found if one.least is not None])


def _named_tables(found: NamedFigures | None) -> list[tuple[str, NamedFigures]]:
    """Every table of the section on generators named, with its caption."""
    if found is None:
        return []
    plain = found.inner.get("plain")
    parts = [("Generators named, by DFLIP-3K’s own rules" if plain else "Generators named", found)]
    if plain:
        theirs = (
            ("by_index", "The same by any spelling"),
            ("detection", "Real or fake, by their rules"),
        )
        parts += [(caption, found.inner[key]) for key, caption in theirs if key in found.inner]
        parts.append(("Generators named, by ours", plain))
    families = (plain or found).inner.get("families")
    return [*parts, ("Families named", families)] if families else parts


def _figures_line(caption: str, found: NamedFigures | None, keys: Sequence[str]) -> list[str]:
    if found is None:
        return []
    known = [
        (key, found.figures[key])
        for key in keys
        if key in found.figures and found.figures[key].value is not None
    ]
    parts = [
        f"{_CALLED.get(key) or wording.named(key)} {in_words(key, figure)}" for key, figure in known
    ]
    return [f"{caption}: {', '.join(parts) or 'no figure is defined'}."]


def _left_out(facts: EvaluationDocument) -> list[str]:
    """What the page has on a screen and not on paper, so that a print stays short."""
    rest = {
        "what the tables and curves have of more generators and systems": len(facts.systems) > 1
        or len(facts.table.rows) > MOST_ROWS,
        "figures with abstentions": bool(facts.leading and facts.leading.decided),
        "risk over coverage": any(one.risk_coverage.points for one in facts.systems),
        "figures under perturbation": any(one.views for one in facts.systems),
        "figures within one format and size": bool(facts.leading and facts.leading.strata),
        "masks": facts.localization is not None,
        "generators named and prompts predicted": bool(
            facts.identification or facts.prompts or facts.groups
        ),
        "formats and sizes of the data": bool(facts.data.n),
        "all figures with their intervals": bool(facts.systems),
        "how labels and rows were joined, and the settings of the run": bool(
            facts.labels.rows or facts.run.identity
        ),
        "the glossary": True,
    }
    return [words for words, is_there in rest.items() if is_there]


def _glossary(facts: EvaluationDocument) -> list[tuple[str, str]]:
    """What each figure of this document means."""
    sections: list[Mapping[str, object]] = [
        part.figures for _, part in _named_tables(facts.identification)
    ]
    sections += [
        part
        for system in facts.systems
        for part in (system.figures, system.decided or {}, system.averages)
    ]
    sections += [facts.prompts.figures] if facts.prompts else []
    sections += [row.identification or {} for row in (facts.groups.groups if facts.groups else ())]
    sections += [
        masks.figures for masks in (facts.localization.systems if facts.localization else ())
    ]
    there = {key for part in sections for key in part}
    there |= {"aurc"} if any(system.risk_coverage.points for system in facts.systems) else set()
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


def system_charts(system: SystemFacts, ident: str) -> list[Chart]:
    """Scores of both classes, and the share that is fake over the probability that was stated, in
    bins of equal count; what there is.
    """
    found, name = [], short(system.called)
    scores = system.histogram
    if scores.drawable:
        drawn = charts.class_histogram(
            scores.edges,
            scores.fake,
            scores.real,
            system.threshold,
            ident=f"scores-{ident}",
            title=f"Scores of {name}",
        )
        found.append(Chart("Scores of fakes and of real images, as shares of each", drawn))
    bins = [(one, one.probability, one.fake_share) for one in system.reliability if one.n]
    spots = [
        charts.Spot(
            (stated, share),
            f"stated {stated:.2f}, fake {wording.percent(share)} of {one.n:,}",
            one.ends,
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
    systems: Sequence[SystemFacts], draw: Callable[[Sequence[SystemFacts], str], list[Chart]]
) -> list[ChartGroup]:
    """Charts of as many systems at a time as there are styles of lines."""
    some = (
        systems[start : start + charts.STYLES] for start in range(0, len(systems), charts.STYLES)
    )
    drawn = [
        ChartGroup([short(one.called) for one in group], draw(group, str(place)))
        for place, group in enumerate(some)
    ]
    return [group for group in drawn if group.charts]


def _curves(systems: Sequence[SystemFacts], ident: str) -> list[Chart]:
    """ROC, ROC on a logarithmic axis, DET and precision–recall."""
    roc = [
        charts.Trace(style, _pairs(system.roc), _operating(system))
        for style, system in enumerate(systems)
    ]
    described = "; ".join(
        f"{short(system.called)}: AUC {in_words('auc', system.figure('auc'))}" for system in systems
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
    n_real = max([1, *(system.n_real for system in systems)])
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
        if len(points := _pairs(one.precision_recall)) > 1
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


def _operating(system: SystemFacts) -> list[charts.Spot]:
    """Where the threshold lies on the ROC curve."""
    found, cleared = system.figure("tpr").value, system.figure("tnr").value
    if found is None or cleared is None:
        return []
    words = f"{short(system.called)} at its threshold: {wording.percent(found)} found, {wording.percent(1 - cleared)} flagged"
    return [charts.Spot((1 - cleared, found), words)]


def _risks(systems: Sequence[SystemFacts], ident: str) -> list[Chart]:
    """Risk over coverage."""
    traces = [
        charts.Trace(style, sorted(_pairs(system.risk_coverage.points)))
        for style, system in enumerate(systems)
    ]
    top = max([y for trace in traces for _, y in trace.points] + [0.01])
    described = "; ".join(
        f"{short(one.called)}: area {written('aurc', one.risk_coverage.aurc.value)}"
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


def _robustness(systems: Sequence[SystemFacts], ident: str) -> list[Chart]:
    """Of every series of views a figure over the amount, clean pictures first and as a faint line."""
    names = list(dict.fromkeys(view.name for system in systems for view in system.views))
    drawn = [
        _over_amounts(systems, series, key, f"view-{ident}-{number}-{key}")
        for number, series in enumerate(series_of(names))
        for key in ("auc", "balanced_accuracy")
    ]
    return [chart for chart in drawn if chart]


def _over_amounts(
    systems: Sequence[SystemFacts], series: Series, key: str, ident: str
) -> Chart | None:
    traces = []
    for style, system in enumerate(systems):
        views = {view.name: view.figures for view in system.views}
        placed = [
            ("clean", system.figure(key)),
            *((name, views.get(name, {}).get(key, MetricValue())) for name in series.views),
        ]
        spots = [
            charts.Spot(
                (place, found.value),
                f"{short(system.called)}, {short(name)}: {in_words(key, found)}",
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
        charts.number_axis(named(key), low, 1.0)
        if key == "auc"
        else charts.share_axis(named(key), low, 1.0)
    )
    described = "; ".join(spot.words for trace in traces for spot in trace.spots)
    x = charts.order_axis(short(series.family), ["clean", *series.amounts])
    title = f"{named(key)[0].upper()}{named(key)[1:]} under {short(series.family)}"
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
