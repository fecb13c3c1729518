"""An evaluation's document → one HTML page that loads nothing, runs nothing and can be mailed as it is; and the same in a few lines.

Knows what the page says and in which order; `templates/` knows how it looks. Every text in the document is taken for hostile.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from ray_app.reports import figure_words, wording
from ray_app.reports.charts import range_meter
from ray_app.reports.evaluation_charts import Chart, curve_groups, reliability_chart, risk_groups, robustness_groups, score_chart
from ray_app.reports.evaluation_facts import EvaluationFacts, PairedFacts
from ray_app.reports.evaluation_grid import SEEN_SIGNS, Cell, Grid, grids
from ray_app.reports.evaluation_names import groups_table, identified_parts, name_lines, pairs_of
from ray_app.reports.evaluation_words import Warned, answers, headline, warnings
from ray_app.reports.figure_facts import FigureFacts
from ray_app.reports.mistakes import captioned
from ray_app.reports.page import jpeg_uri, render, settings
from ray_app.reports.system_facts import GeneratorFacts, SystemFacts
from ray_app.reports.text_table import table

_MOST_MISTAKES = 24
_MOST_OVERLAYS = 24
_MOST_GENERATORS = 20
_MOST_LINES = 20
_MOST_STRATA = 12
_BANDS = ("< 0.1 MP", "0.1–0.5 MP", "0.5–1 MP", "1–4 MP", "> 4 MP")
_WIDTH = 120
_LONGEST_NAME = 28


def render_evaluation(document: Mapping[str, Any]) -> str:
    """Write an evaluation's document (`metrics.json`) as one self-contained HTML page; any of its sections may be absent or null.

    Pictures are base64 of JPEGs, already re-encoded and free of metadata; what is no JPEG is not shown.
    Raises pydantic's ValidationError for a value of another type.
    """
    told = EvaluationFacts.model_validate(dict(document))
    return render(
        "evaluation.html",
        told=told,
        leading=told.leading,
        others=told.others,
        headline=headline(told),
        answers=answers(told),
        warnings=warnings(told),
        table=grids(told),
        seen_signs=SEEN_SIGNS,
        said=figure_words,
        curves=curve_groups(told.systems),
        risks=risk_groups(told.systems),
        robustness=robustness_groups(told.systems),
        confidence=_confidences(told),
        generator_tables=_generator_tables,
        bar=_bar,
        kinds_of=_kinds,
        strata=_strata,
        paired=_paired(told),
        mistakes=captioned(told.mistakes, lambda one: _picture(one.thumbnail), most=_MOST_MISTAKES),
        overlays=[(overlay, _picture(overlay.picture)) for overlay in told.overlays[:_MOST_OVERLAYS]],
        classes=_classes(told),
        named=identified_parts(told.identification),
        pairs=pairs_of(told.identification),
        grouped=groups_table(told),
        policy=settings(told.localization.policy) if told.localization else [],
        identity=settings(told.run.identity),
        glossary=_glossary(told),
    )


def evaluation_lines(document: Mapping[str, Any]) -> list[str]:
    """An evaluation in words for the terminal: the headline, the table, what to beware of."""
    told = EvaluationFacts.model_validate(dict(document))
    found = grids(told)
    lines = [headline(told)]
    if found.shown:
        lines += ["", *_grid_lines(found.shown), *[f"{sign} {wording.visible(text)}" for sign, text in found.notes]]
        lines += [f"not shown here: {', '.join(grid.summary for grid in found.more)}"] if found.more else []
    elif told.systems:
        lines += ["", *_system_lines(told.systems)]
    lines += name_lines(told)
    beware = [_warning_line(warned) for warned in warnings(told)]
    return lines + (["", *beware] if beware else [])


def _warning_line(warned: Warned) -> str:
    return f"{'warning' if warned.is_grave else 'note'}: {wording.visible(warned.heading)} {wording.visible(warned.text)}"


def _grid_lines(grid: Grid) -> list[str]:
    heads = ["", *[wording.shortened(one.name, _LONGEST_NAME) + (f" {one.notes}" if one.notes else "") for one in grid.columns]]
    rows = [[wording.shortened(row.name, _LONGEST_NAME), *map(_cell_text, row.cells)] for row in [*grid.rows, *grid.footers]]
    return table(heads, rows, _WIDTH, right=range(1, len(heads)))


def _cell_text(cell: Cell) -> str:
    ends = f" [{cell.ends[0]}, {cell.ends[1]}]" if cell.ends else ""
    return f"{cell.value}{ends}{' ' + cell.notes if cell.notes else ''}"


def _system_lines(systems: Sequence[SystemFacts]) -> list[str]:
    keys = figure_words.KEY_FIGURES
    heads = ["", *[figure_words.named(key) for key in keys]]
    rows = [
        [
            wording.shortened(one.called, _LONGEST_NAME) or wording.NONE,
            *[figure_words.written(key, one.figure(key).number) for key in keys],
        ]
        for one in systems[:_MOST_LINES]
    ]
    return table(heads, rows, _WIDTH, right=range(1, len(heads)))


class Confidence(NamedTuple):
    """What a system's scores look like, and whether its probabilities hold."""

    system: SystemFacts
    charts: list[Chart]


def _confidences(told: EvaluationFacts) -> list[Confidence]:
    return [_confidence(system, index) for index, system in enumerate([told.leading, *told.others]) if system]


def _confidence(system: SystemFacts, index: int) -> Confidence:
    found = (score_chart(system, f"scores-{index}"), reliability_chart(system, f"reliability-{index}"))
    return Confidence(system, [chart for chart in found if chart])


class GeneratorTable(NamedTuple):
    """Generators of one label, the hardest first, those that are shown at once and the rest."""

    caption: str
    rate: str
    key: str
    shown: list[GeneratorFacts]
    more: list[GeneratorFacts]


def _generator_tables(system: SystemFacts) -> list[GeneratorTable]:
    tables = []
    for label, caption, key in (("fake", "Generators", "tpr"), ("real", "Sources of real images", "tnr")):
        found = system.hardest(label)
        if found:
            tables.append(GeneratorTable(caption, figure_words.named(key), key, found[:_MOST_GENERATORS], found[_MOST_GENERATORS:]))
    return tables


def _bar(figure: FigureFacts, kind: str = "plain", floor: float = 0.0, level: float | None = None) -> Markup:
    """A figure as a bar with its interval, on a scale from `floor` to 1; nothing where there is no figure."""
    if figure.number is None:
        return Markup("")
    low, high = figure.ends or (figure.number, figure.number)
    value, low, high = (max(0.0, number - floor) for number in (figure.number, low, high))
    return range_meter(value, low, high, 1 - floor, kind, None if level is None else max(0.0, level - floor))


def _kinds(system: SystemFacts) -> list[tuple[str, Mapping[str, FigureFacts]]]:
    """Whole fakes and local edits, where there are local edits."""
    known = [(kind, found) for kind, found in system.kinds.items() if any(figure.number is not None for figure in found.values())]
    return known if any(kind == "local" for kind, _ in known) else []


def _strata(system: SystemFacts) -> Any:
    """The fullest combinations of format and size."""
    return sorted(system.strata, key=lambda one: -(one.n_real + one.n_fake))[:_MOST_STRATA]


def _paired(told: EvaluationFacts) -> list[tuple[PairedFacts, str, str]]:
    """Each test with what its two systems are called."""
    called = {system.name: system.called for system in told.systems}
    return [(one, called.get(one.a, one.a), called.get(one.b, one.b)) for one in told.paired]


def _picture(encoded: str) -> str | None:
    """Base64 of a JPEG as a data URI; None for anything else."""
    try:
        return jpeg_uri(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError):
        return None


class Shares(NamedTuple):
    """One format or size band: how many images of each class, and which share of the class."""

    name: str
    real: int
    fake: int
    real_share: float
    fake_share: float


def _classes(told: EvaluationFacts) -> list[tuple[str, str, list[Shares]]]:
    """Formats and sizes of both classes side by side, the most frequent first; bands of size keep their order."""
    found = []
    for head, caption, counts in (("Format", "Formats by class", told.data.formats), ("Size", "Sizes by class", told.data.sizes)):
        real, fake = counts.get("real", {}), counts.get("fake", {})
        totals = max(sum(real.values()), 1), max(sum(fake.values()), 1)
        names = list(dict.fromkeys([*real, *fake]))
        names.sort(key=lambda name: (_BANDS.index(name) if name in _BANDS else len(_BANDS), -(real.get(name, 0) + fake.get(name, 0))))
        rows = [
            Shares(name, real.get(name, 0), fake.get(name, 0), real.get(name, 0) / totals[0], fake.get(name, 0) / totals[1])
            for name in names[:_MOST_GENERATORS]
        ]
        found += [(head, caption, rows)] if rows else []
    return found


def _glossary(told: EvaluationFacts) -> list[tuple[str, str]]:
    """What each figure of this document means."""
    there = {key for system in told.systems for found in (system.figures, system.decided, system.averages) for key in found}
    there |= {"aurc"} if any(system.risk_coverage.points for system in told.systems) else set()
    for section in (told.identification, told.prompts):
        there |= set(section.figures) if section else set()
    there |= {key for _, part in identified_parts(told.identification) for key in part.figures}
    there |= {key for row in (told.groups.groups if told.groups else ()) for key in row.identification}
    for masks in told.localization.systems if told.localization else ():
        there |= set(masks.figures)
    return [
        (meaning.words[0].upper() + meaning.words[1:], meaning.sentence) for key, meaning in figure_words.MEANINGS.items() if key in there
    ]
