"""The first screen of an evaluation: one sentence (`headline`), one chart and one table (`opening`)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from ray_app.reports import bars, svg
from ray_app.reports import format as wording
from ray_app.reports.evaluation.charts import Chart
from ray_app.reports.evaluation.model import EvaluationDocument
from ray_app.reports.evaluation.system_model import FigureFacts, GeneratorFacts, SystemFacts
from ray_app.reports.evaluation.text import short
from ray_app.reports.text import table

_WIDEST = 0.5  # of an interval: one that is wider says next to nothing
_WIDE = 0.1  # one that is wider is said in the sentence
_MOST_ROWS = 8
_LONGEST_NAME, _LONGEST_LINE = 32, 44
_WIDTH = 120
_HEADS = ("fakes found", "real images flagged", "ROC AUC")


class OpeningRow(NamedTuple):
    """One system: fakes found, real images flagged and ROC AUC, each with the words of its 95 % interval, or empty words."""

    name: str
    cells: list[tuple[str, str]]


class Opening(NamedTuple):
    """What stands under the sentence. `more`: how many systems are not in it."""

    chart: Chart | None
    heads: Sequence[str]
    rows: list[OpeningRow]
    more: int


def headline(facts: EvaluationDocument) -> str:
    """The evaluation in one plain sentence, with rounded figures."""
    system = facts.leading
    if system is None:
        return "Nothing was evaluated: the document names no system."
    name = short(system.called)
    if not system.n:
        return f"{name}: no labelled image has a score."
    text = _too_few(name, facts, system) or f"{_verdict(name, system)}{_doubt(facts)}."
    return text if any(sign in name for sign in "<>") else text.replace("< ", "under ").replace("> ", "over ")


def opening(facts: EvaluationDocument) -> Opening:
    """The leading system first, the others by their AUC."""
    systems = sorted(facts.systems, key=lambda one: (one is not facts.leading, -(one.figure("auc").number or 0.0)))
    rows = [OpeningRow(short(one.called), [_share(one.figure("tpr")), _share(_flagged(one)), _area(one.figure("auc"))]) for one in systems]
    return Opening(_chart(facts, systems[:_MOST_ROWS]), _HEADS, rows[:_MOST_ROWS], max(0, len(rows) - _MOST_ROWS))


def opening_lines(facts: EvaluationDocument) -> list[str]:
    """Sentence and table for the terminal."""
    found = opening(facts)
    if not found.rows:
        return [headline(facts)]
    rows = [[wording.shortened(one.name, _LONGEST_LINE), *map(_in_line, one.cells)] for one in found.rows]
    more = [f"and {wording.counted(found.more, 'more system')}"] if found.more else []
    return [headline(facts), "", *table(["", *found.heads], rows, _WIDTH, right=range(1, 4)), *more]


def rounded_share(share: float | None) -> str:
    """A share in whole per cent; never 0 or 100 by rounding."""
    if share is None or not math.isfinite(share):
        return wording.NONE
    if 0 < share < 0.01 or 0.99 < share < 1:
        return "< 1 %" if share < 0.5 else "> 99 %"
    return f"{100 * share:.0f} %"


def rounded_area(value: float | None) -> str:
    """An area with two digits; never 0 or 1 by rounding."""
    if value is None or not math.isfinite(value):
        return wording.NONE
    return "> 0.99" if 0.995 <= value < 1 else "< 0.01" if 0 < value < 0.005 else f"{value:.2f}"


def _verdict(name: str, system: SystemFacts, which: str = "the") -> str:
    """`which` images the shares are of: the, or these."""
    found, flagged, auc = system.figure("tpr"), _flagged(system), system.figure("auc")
    finds = f"{name} finds {_of_all(found, which, 'fake')}"
    flags = f"wrongly flags {_of_all(flagged, which, 'real image')}"
    if found.number is not None and flagged.number is not None:
        return f"{finds} and {flags}"
    if found.number is not None:
        return f"{finds}; there was no real image to try it on"
    if flagged.number is not None:
        return f"{name} {flags}; there was no fake to try it on"
    if auc.number is not None:
        return f"{name} scores a fake above a real image with a chance of {rounded_share(auc.number)}{_between(auc)}"
    right = system.figure("balanced_accuracy")
    if right.number is not None:
        return f"{name} judges {rounded_share(right.number)}{_between(right)} of images correctly, both classes counting the same"
    return f"{name} scored {wording.counted(system.n, 'image')}, and no figure is defined"


def _of_all(figure: FigureFacts, which: str, noun: str) -> str:
    """Such a share of images: "every fake", "none of the fakes", "91 % of the fakes"; with its interval where that is wide."""
    between = _between(figure)
    if figure.number == 1 and not between:
        return f"every {noun}" if which == "the" else f"every one of {which} {noun}s"
    share = "none" if figure.number == 0 else rounded_share(figure.number)
    return f"{share}{between} of {which} {noun}s"


def _between(figure: FigureFacts) -> str:
    return f" ({_ends_in_words(figure)})" if figure.ends and figure.ends[1] - figure.ends[0] > _WIDE else ""


def _ends_in_words(figure: FigureFacts) -> str:
    """The interval of a share, "90 to 93 %"; empty where there is none."""
    low, high = (rounded_share(end) for end in figure.ends or (None, None))
    if figure.ends is None or low == high:
        return "" if figure.ends is None else low
    return f"{low.removesuffix(' %')} to {high}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _too_few(name: str, facts: EvaluationDocument, system: SystemFacts) -> str:
    """What to say where an interval is so wide that its figure says nothing of further images, or of further generators and sources."""
    spoken = facts.intervals
    measured = (("AUC", system.figure("auc"), False), ("share of fakes found", system.figure("tpr"), False),
                ("share of real images flagged", _flagged(system), True))  # fmt: skip
    for what, figure, is_of_reals in measured:
        if figure.ends is None or figure.ends[1] - figure.ends[0] <= _WIDEST:
            continue
        if not spoken.of_images and not (is_of_reals and spoken.reals != "sources"):
            groups = spoken.sources if is_of_reals else spoken.generators
            few = wording.counted(groups, "source") + " of real images" if is_of_reals else wording.counted(groups, "generator")
            bare = system.model_copy(update={"figures": {key: found.bare for key, found in system.figures.items()}})
            return f"{_verdict(name, bare, 'these')}, but {few} {_are(groups)} too few to say how it does on others{_doubt(facts, 'and')}."
        written = rounded_area if what == "AUC" else rounded_share
        low, high = map(written, figure.ends)
        images = wording.counted(system.n, "image")
        return f"{images} {_are(system.n)} too few to say how good {name} is: its {what} could be anything from {low} to {high}."
    return ""


def _doubt(facts: EvaluationDocument, conjunction: str = "but") -> str:
    """The end of the sentence where the form of files alone gives fakes away."""
    shortcut = facts.data.shortcut
    if not shortcut.confounded:
        return ""
    names = f" ({', '.join(short(name) for name in shortcut.features[:2])})" if shortcut.features else ""
    return f", {conjunction} the form of the files alone{names} gives many fakes away"


def _flagged(system: SystemFacts) -> FigureFacts:
    """The share of real images that are called fake."""
    cleared = system.figure("tnr")
    if cleared.number is None:
        return cleared
    ends = (1 - cleared.ends[1], 1 - cleared.ends[0]) if cleared.ends else ()
    return cleared.model_copy(update={"value": 1 - cleared.number, "interval": ends})


def _share(figure: FigureFacts) -> tuple[str, str]:
    return rounded_share(figure.number), _ends_in_words(figure)


def _area(figure: FigureFacts) -> tuple[str, str]:
    return wording.three_digits(figure.number), " to ".join(wording.three_digit_ends(figure.ends)) if figure.ends else ""


def _brief(name: str) -> str:
    """A name in the chart."""
    return wording.shortened(name, _LONGEST_NAME) or wording.NONE


def _in_line(cell: tuple[str, str]) -> str:
    return f"{cell[0]} ({cell[1]})" if cell[1] else cell[0]


def _chart(facts: EvaluationDocument, systems: Sequence[SystemFacts]) -> Chart | None:
    """AUCs where there are several to compare; else what one system makes of each generator; else its one AUC."""
    ranked = [one for one in systems if one.figure("auc").number is not None]
    leading = facts.leading
    makers = [one for label in ("fake", "real") for one in (leading.hardest(label) if leading else ()) if one.rate.number is not None]
    if len(ranked) < 2 and len(makers) > 1 and leading is not None:
        return _by_generator(leading, makers)
    return _by_system(ranked, leading) if ranked else None


def _by_system(ranked: Sequence[SystemFacts], leading: SystemFacts | None) -> Chart:
    figures = [one.figure("auc") for one in ranked]
    low = bars.axis_start(figure.ends[0] if figure.ends else figure.number or 0.0 for figure in figures)
    drawn = [
        bars.IntervalBar(_brief(one.called), _area(figure)[0], figure.number or 0.0, figure.ends, "strong" if one is leading else "plain")
        for one, figure in zip(ranked, figures, strict=True)
    ]
    axis = svg.number_axis(f"ROC AUC; the axis begins at {svg.plain(low)}" if low else "ROC AUC", low, 1.0)
    described = "; ".join(f"{short(one.called)}: {wording.in_words('auc', one.figure('auc'))}" for one in ranked)
    title = "How well each system ranks fakes above real images"
    return Chart(title, _drawn(drawn, axis, title, described))


def _by_generator(system: SystemFacts, makers: Sequence[GeneratorFacts]) -> Chart:
    """The hardest generators and sources of real images."""
    shown = _hardest_of_both(makers)
    drawn = [
        bars.IntervalBar(
            f"{_brief(one.name.removeprefix('real:'))}, {'fake' if one.label == 'fake' else 'real'}",
            f"{rounded_share(one.rate.number)} of {one.n:,}",
            one.rate.number or 0.0,
            one.rate.ends,
            one.label if one.label in ("fake", "real") else "plain",
        )
        for one in shown
    ]
    described = "; ".join(f"{short(one.name)}: {wording.in_words('tpr', one.rate)}" for one in shown)
    hidden = len(makers) - len(shown)
    title = "Images judged correctly, by who made them" + (f"; the {len(shown)} hardest" if hidden else "")
    return Chart(title, _drawn(drawn, svg.share_axis("share judged correctly"), title, described))


def _hardest_of_both(makers: Sequence[GeneratorFacts]) -> list[GeneratorFacts]:
    """The first few, with at least two of either label where there are two; fakes first."""
    fakes, reals = ([one for one in makers if (one.label == "fake") is is_fake] for is_fake in (True, False))
    room = max(_MOST_ROWS - len(reals), _MOST_ROWS - 2)
    kept = fakes[:room]
    return kept + reals[: _MOST_ROWS - len(kept)]


def _drawn(drawn: Sequence[bars.IntervalBar], axis: svg.Axis, title: str, described: str) -> Markup:
    return bars.interval_bars(drawn, axis, ident="opening", title=title, description=described)
