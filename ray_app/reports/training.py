"""A training's document (`TrainingFacts`, `metrics.json`) → one HTML page (`render_training_report`), and a few lines (`training_lines`).

Its JSON schema: docs/schemas/training.json. Fields stand in the order of the file; `history` and `mistakes` are for the page alone. The
page loads nothing and runs nothing. Every text in the facts is taken for hostile.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup
from pydantic import Field

from ray_app.config import OptionalKey, Section
from ray_app.detectors.card import Calibration
from ray_app.metrics import FIGURES
from ray_app.reports import charts
from ray_app.reports import format as wording
from ray_app.reports.html import render, settings

TRAINING_SCHEMA = 1
_MOST_GENERATORS = 60
_MOST_VALIDATIONS = 200
_HARDEST = 3
_LONGEST_NAME = 60


class GeneratorFigures(Section):
    """Figures of one generator's images; of `tpr` and `tnr` only that of its label."""

    n: int = 0
    label: str = ""
    auc: float | None = None
    auc_interval: tuple[float, ...] | None = None
    tpr: float | None = None
    tnr: float | None = None
    interval: tuple[float, ...] = ()


class Figures(Section):
    """Figures of one split (ray_app.metrics.detection_figures, and those of masks where there are any: `n` of them).

    `unreadable`: rows that have no score.
    """

    n_real: int = 0
    n_fake: int = 0
    auc: float | None = None
    auc_interval: tuple[float, ...] | None = None
    average_precision: float | None = None
    mean_generator_auc: float | None = None
    worst_generator_auc: float | None = None
    tpr_at_fpr_1: float | None = None
    tpr_at_fpr_1_interval: tuple[float, ...] | None = None
    balanced_accuracy: float | None = None
    f1: float | None = None
    loss: float | None = None
    generators: Mapping[str, GeneratorFigures] = {}
    pixel_f1: float | None = None
    pixel_iou: float | None = None
    n: int = 0
    unreadable: int = 0

    def value(self, name: str) -> float | None:
        """A figure by its name in FIGURES; None where it was not measured or is none of those."""
        number: float | None = getattr(self, name) if name in FIGURES else None
        return number

    def interval(self, name: str) -> tuple[float, ...]:
        """The ends of a figure's 95 % interval, where it has one."""
        ends: tuple[float, ...] | None = getattr(self, f"{name}_interval", None)
        return ends or ()

    def hardest(self, label: str, most: int) -> list[tuple[str, GeneratorFigures]]:
        """The generators of one label, the least AUC first; those that have none come last."""
        mine = [(name, figures) for name, figures in self.generators.items() if figures.label == label]
        return sorted(mine, key=lambda item: (math.inf if item[1].auc is None else item[1].auc, item[0]))[:most]


class HistoryPoint(Section):
    """One step of the training, or a few that were averaged."""

    step: int = 0
    loss: float = math.nan
    rate: float = math.nan
    gradient_norm: float = math.nan
    images_per_s: float = math.nan


class TrainingMistake(Section):
    """One image that the network misclassifies; `jpeg`: its thumbnail, re-encoded and free of metadata."""

    jpeg: bytes = b""
    label: str = ""
    generator: str = ""
    score: float = math.nan
    name: str = ""


class SplitCounts(Section):
    """What one split holds; `generators`: images of each, sources of real ones included."""

    images: int = 0
    real: int = 0
    fake: int = 0
    generators: Mapping[str, int] = {}
    digest: OptionalKey[str] = None


class SetAside(Section):
    """Images of the training sources that are in no split, and why."""

    images: int = 0
    why: Mapping[str, int] = {}


class Shared(Section):
    """How many images of one split have their like in another: the same place, the same bytes, a like perceptual hash, the same group."""

    image_id: int = 0
    sha256: int = 0
    group: int = 0
    phash: int = 0
    examples: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether the two splits share anything."""
        return bool(self.image_id or self.sha256 or self.phash or self.group)


class Leakage(Section):
    """What every two splits share. `checked`: whether every split has hashes of that name; without, a count of 0 has no meaning.
    `unhashed`: how many images have none all the same.
    """

    checked: Mapping[str, bool] = {}
    unhashed: Mapping[str, int] = {}
    pairs: Mapping[str, Shared] = {}


class DataFindings(Section):
    """What is known of the data (ray_app.datasets.splits.Splits); `prompts_in_training`: images left out for their prompts."""

    splits: Mapping[str, SplitCounts] = {}
    set_aside: SetAside = SetAside()
    leakage: Leakage = Leakage()
    prompts_in_training: OptionalKey[Mapping[str, int]] = None


class TrainingFacts(Section):
    """A training from beginning to end. `out`: where its files lie. `validations`: for each its `step` and figures, side by side.

    `calibration_note`: why there is no calibration. `unreadable`: images of the training that could not be read and were left out.
    `probe`: of a linear probe alone.
    """

    schema_number: int = Field(default=TRAINING_SCHEMA, alias="schema")
    name: str = ""
    title: str = ""
    out: str = ""
    metric: str = "auc"
    best_step: int | None = None
    best_value: float | None = None
    steps: int = 0
    seconds: float | None = None
    wait_s_per_step: float | None = None
    unreadable: int = 0
    calibration: Calibration | None = None
    calibration_note: str | None = None
    calibration_error: float | None = None
    validation: Figures = Figures()
    test: Figures | None = None
    validations: tuple[Mapping[str, Any], ...] = ()
    data: DataFindings = DataFindings()
    recipe: Mapping[str, Any] = {}
    environment: Mapping[str, Any] = {}
    probe: OptionalKey[Mapping[str, Any]] = None
    card: Mapping[str, Any] = {}
    history: tuple[HistoryPoint, ...] = ()
    mistakes: tuple[TrainingMistake, ...] = ()

    @property
    def span(self) -> tuple[int, int]:
        """The steps that a chart shows: all of the training, though it ended early or is still going on."""
        return 0, max([self.steps, 1, *(point.step for point in self.history), *(step for step, _ in self.validated("loss"))])

    def validated(self, name: str) -> list[tuple[int, float]]:
        """One figure at every validation, by step; left out where it was not measured."""
        found = [(validation.get("step"), validation.get(name)) for validation in self.validations]
        return [(step, float(value)) for step, value in found if isinstance(step, int) and isinstance(value, int | float)]


class Curve(NamedTuple):
    """One drawing with its caption."""

    caption: str
    chart: Markup


class Validations(NamedTuple):
    """Figures of each validation as a table: heads, and per step a cell under each."""

    heads: list[str]
    rows: list[tuple[int, list[str]]]


class TrainingGeneratorTable(NamedTuple):
    """The generators of one label in one split, the hardest first; `left_out`: how many more there are.

    `start`: where the scale of their AUCs begins.
    """

    caption: str
    rate: str
    rows: list[tuple[str, GeneratorFigures]]
    left_out: int
    start: float


class Holdings(NamedTuple):
    """Images by generator and split; `left_out`: how many more generators there are."""

    rows: list[tuple[str, list[int]]]
    left_out: int


class About(NamedTuple):
    """The main facts of a recipe and its card."""

    detector: str
    licence: str
    source: str
    departures: list[str]


def render_training_report(facts: Mapping[str, Any]) -> str:
    """Write a training as one self-contained HTML page; the keys of `facts` are those of TrainingFacts, each may be absent.

    Thumbnails are JPEG bytes, already re-encoded and free of metadata; what is no JPEG is not shown.
    Raises pydantic's ValidationError for a value of another type.
    """
    training = TrainingFacts.model_validate(dict(facts))
    splits = [(name, figures) for name, figures in (("validation", training.validation), ("test", training.test)) if figures is not None]
    return render(
        "training.html",
        document=training,
        headline=headline(training),
        figures=_measured_figures(training),
        calibration=calibration_in_words(training),
        loss=_history_curve(training, "loss", "Loss of each step"),
        paces=_paces(training),
        validations=_validations(training),
        validation_curves=_validation_curves(training),
        generators=[table for name, figures in splits for table in _generator_tables(name, figures)],
        holdings=_holdings(training),
        leaks=_leaks(training),
        uncompared=_uncompared(training),
        about=_about(training),
        recipe=settings(training.recipe),
        environment=settings(training.environment),
        card=settings(training.card),
    )


def training_lines(facts: Mapping[str, Any]) -> list[str]:
    """The end of a training in words, for the terminal: the chosen step, its figures, what it finds hardest, where things lie."""
    training = TrainingFacts.model_validate(dict(facts))
    lines = [headline(training)]
    for name, figures in (("validation", training.validation), ("test", training.test)):
        if figures is not None and figures.n_real + figures.n_fake:
            parts = [
                f"{words} {wording.figure(key, figures.value(key), figures.interval(key))}"
                for key, words in wording.FIGURE_WORDS.items()
                if figures.value(key) is not None
            ]
            lines.append(f"{name} ({figures.n_real:,} real, {figures.n_fake:,} fake): {', '.join(parts)}")
    if training.validation.n_fake:
        lines.append(calibration_in_words(training))
    hardest = (training.test or training.validation).hardest("fake", _HARDEST)
    if len(hardest) > 1:
        named = [f"{wording.shortened(name, _LONGEST_NAME)} (AUC {wording.figure('auc', found.auc)})" for name, found in hardest]
        lines.append(f"hardest generators: {', '.join(named)}")
    if training.out:
        out = wording.visible(training.out.rstrip("/"))
        lines += [f"report: {out}/report.html", f"score with it: touchstone score SOURCE --detector {out}/card.yaml --out RUN"]
    return lines


def headline(facts: TrainingFacts) -> str:
    """The training in one sentence."""
    name = wording.visible(facts.title or facts.name or "Training")
    value = facts.validation.value(facts.metric)
    if value is None or facts.best_step is None:
        return f"{name}: {wording.counted(facts.steps, 'step')}, no step chosen yet."
    words = wording.FIGURE_WORDS[facts.metric]
    where = f"at step {facts.best_step:,} of {facts.steps:,}"
    return f"{name}: {words} {wording.figure(facts.metric, value, facts.validation.interval(facts.metric))} on validation, {where}."


def calibration_in_words(facts: TrainingFacts) -> str:
    """How probabilities come out of scores, or why a score is not to be read as one."""
    if facts.calibration is None:
        why = f": {wording.visible(facts.calibration_note)}" if facts.calibration_note else ""
        return f"Not calibrated{why}. Scores rank images; they are not chances."
    off = f"; on test, probabilities are off by {wording.percent(facts.calibration_error)}" if facts.calibration_error is not None else ""
    return f"Calibrated on validation: {facts.calibration}{off}."


def _measured_figures(facts: TrainingFacts) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Words of each figure that was measured, and per split its value and the ends of its interval; the one that chose stands first."""
    splits = [figures for figures in (facts.validation, facts.test) if figures is not None]
    rows = []
    for name in sorted(wording.FIGURE_WORDS, key=lambda name: name != facts.metric):
        if any(figures.value(name) is not None for figures in splits):
            cells = [(wording.figure(name, figures.value(name)), wording.interval(name, figures.interval(name))) for figures in splits]
            rows.append((wording.FIGURE_WORDS[name], cells))
    return rows


def _paces(facts: TrainingFacts) -> list[Curve]:
    captions = {"rate": "Learning rate", "gradient_norm": "Norm of the gradients", "images_per_s": "Images per second"}
    return [curve for name, caption in captions.items() if (curve := _history_curve(facts, name, caption, compact=True))]


def _history_curve(facts: TrainingFacts, name: str, caption: str, *, compact: bool = False) -> Curve | None:
    points = [(float(point.step), float(getattr(point, name))) for point in facts.history]
    described = f"{len(points):,} points from step {facts.span[0]:,} to {facts.span[1]:,}."
    chart = charts.line_chart(
        points,
        facts.span,
        ident=f"history-{name}",
        title=caption,
        description=described,
        chosen=None if compact else facts.best_step,
        from_zero=True,
        compact=compact,
    )
    return Curve(caption, chart) if chart else None


def _validation_curves(facts: TrainingFacts) -> list[Curve]:
    """Every figure over the validations, the one that chose first; none where there is but one validation."""
    curves = []
    for name in sorted(wording.FIGURE_WORDS, key=lambda name: name != facts.metric):
        points = [(float(step), value) for step, value in facts.validated(name)]
        words = wording.FIGURE_WORDS[name]
        described = f"{len(points):,} validations; the chosen step is {facts.best_step}."
        chart = charts.line_chart(
            points,
            facts.span,
            ident=f"validation-{name}",
            title=f"Validation: {words}",
            description=described,
            chosen=facts.best_step,
            compact=name != facts.metric,
        )
        if chart and len(points) > 1:
            curves.append(Curve(words[0].upper() + words[1:], chart))
    return curves


def _validations(facts: TrainingFacts) -> Validations:
    """All validations; of very many the last, and the one that was chosen."""
    names = [name for name in wording.FIGURE_WORDS if facts.validated(name)]
    by_figure = [dict(facts.validated(name)) for name in names]
    steps = sorted({step for found in by_figure for step in found})
    shown = [step for step in steps if step == facts.best_step or step in steps[-_MOST_VALIDATIONS:]]
    rows = [(step, [wording.figure(name, found.get(step)) for name, found in zip(names, by_figure, strict=True)]) for step in shown]
    return Validations([wording.FIGURE_WORDS[name] for name in names], rows)


def _generator_tables(split: str, figures: Figures) -> list[TrainingGeneratorTable]:
    tables = []
    for label, caption, rate in (("fake", "Generators", "Flagged as fake"), ("real", "Sources of real images", "Not flagged")):
        rows = figures.hardest(label, len(figures.generators))
        if rows:
            shown = rows[:_MOST_GENERATORS]
            start = charts.axis_start([min([found.auc, *(found.auc_interval or ())]) for _, found in shown if found.auc is not None])
            tables.append(TrainingGeneratorTable(f"{caption}, {split}", rate, shown, len(rows) - len(shown), start))
    return tables


def _holdings(facts: TrainingFacts) -> Holdings:
    """The generators of all splits, the most frequent first."""
    counts = [split.generators for split in facts.data.splits.values()]
    names = {name for generators in counts for name in generators}
    rows = [(name, [generators.get(name, 0) for generators in counts]) for name in names]
    rows.sort(key=lambda row: (-sum(row[1]), row[0]))
    return Holdings(rows[:_MOST_GENERATORS], max(0, len(rows) - _MOST_GENERATORS))


def _leaks(facts: TrainingFacts) -> list[tuple[str, list[str]]]:
    """Per two splits how many images they share, by place, bytes, perceptual hash and group; without hashes nothing is claimed."""
    checked = facts.data.leakage.checked
    rows = []
    for pair, shared in facts.data.leakage.pairs.items():
        counts = {name: getattr(shared, name) for name in ("image_id", "sha256", "phash", "group")}
        cells = [wording.count(n) if n or checked.get(name, name in ("image_id", "group")) else "not known" for name, n in counts.items()]
        rows.append((pair, cells))
    return rows


def _uncompared(facts: TrainingFacts) -> list[str]:
    """Which images no other was compared with, though their splits have hashes: a sentence for each kind."""
    found = facts.data.leakage
    words = {"sha256": "bytes", "phash": "looks"}
    counts = {name: found.unhashed.get(name, 0) if found.checked.get(name) else 0 for name in words}
    return [f"{wording.counted(n, 'image')} could not be compared by {words[name]}: no hash." for name, n in counts.items() if n]


def _about(facts: TrainingFacts) -> About:
    departures = facts.recipe.get("departures") or ()
    return About(
        detector=str(facts.recipe.get("detector") or wording.NONE),
        licence=str(facts.card.get("licence") or wording.NONE),
        source=str(facts.recipe.get("source") or wording.NONE),
        departures=list(map(str, departures)) if isinstance(departures, list | tuple) else [str(departures)],
    )
