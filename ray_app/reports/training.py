"""A training's document (`TrainingFacts`, `metrics.json`) → one HTML page
(`render_training_report`), and a few lines (`training_lines`).

Fields stand in the order of the file; `history` and `mistakes` are for the page alone. The
page loads nothing and runs nothing. Every text in the facts is taken for hostile.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from markupsafe import Markup
from pydantic import TypeAdapter

from ray_app.detectors.card import Platt
from ray_app.metrics import FIGURES
from ray_app.metrics.detection import ranks_backwards
from ray_app.metrics.values import MetricValue
from ray_app.reports import charts
from ray_app.reports import format as wording
from ray_app.reports.format import format_metric_with_interval, name_metric
from ray_app.reports.html import render, settings

T = TypeVar("T")
TRAINING_SCHEMA = 1
_MOST_VALIDATIONS = 200
_HARDEST = 3
_LONGEST_NAME = 60
_MOST_GENERATORS = 60
_NAMED = 3  # files on the terminal


def _read(kind: type[T], content: Mapping[str, Any]) -> T:
    """Return a dataclass of its fields by name. Other keys are ignored, and a null is the same as an
    absent key.
    """
    names = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    known = {key: content[key] for key in names & set(content) if content[key] is not None}
    return TypeAdapter(kind).validate_python(known)


def _metric(value: float | None, interval: tuple[float, float] | None) -> MetricValue:
    low, high = interval or (None, None)
    return MetricValue(value, low, high)


@dataclass(frozen=True)
class GeneratorFigures:
    """Figures of one generator's images; of `tpr` and `tnr` only that of its label."""

    n: int = 0
    label: str = ""
    auc: float | None = None
    auc_interval: tuple[float, float] | None = None
    tpr: float | None = None
    tnr: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def area(self) -> MetricValue:
        """The AUC with its interval."""
        return _metric(self.auc, self.auc_interval)

    @property
    def rate(self) -> MetricValue:
        """The share judged correctly: flagged of fakes, not flagged of real images."""
        return _metric(self.tpr if self.label == "fake" else self.tnr, self.interval)


@dataclass(frozen=True)
class Figures:
    """Figures of one split (ray_app.metrics.detection_figures, and those of masks where there are
    any: `n` of them).

    `unreadable`: rows that have no score.
    """

    n_real: int = 0
    n_fake: int = 0
    auc: float | None = None
    auc_interval: tuple[float, float] | None = None
    average_precision: float | None = None
    mean_generator_auc: float | None = None
    worst_generator_auc: float | None = None
    tpr_at_fpr_1: float | None = None
    tpr_at_fpr_1_interval: tuple[float, float] | None = None
    balanced_accuracy: float | None = None
    f1: float | None = None
    loss: float | None = None
    generators: Mapping[str, GeneratorFigures] = field(default_factory=dict)
    pixel_f1: float | None = None
    pixel_iou: float | None = None
    n: int = 0
    unreadable: int = 0

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Figures":
        """Return the figures of `metrics.detection_figures`."""
        return _read(cls, content)

    def figure(self, name: str) -> MetricValue:
        """A figure by its name in FIGURES, with its 95 % interval where it has one; without a value
        where it was not measured.
        """
        value: float | None = getattr(self, name) if name in FIGURES else None
        return _metric(value, getattr(self, f"{name}_interval", None))

    def hardest(self, label: str) -> list[tuple[str, GeneratorFigures]]:
        """The generators of one label, the least AUC first; those that have none come last."""
        mine = [
            (name, figures) for name, figures in self.generators.items() if figures.label == label
        ]
        return sorted(
            mine, key=lambda item: (math.inf if item[1].auc is None else item[1].auc, item[0])
        )


@dataclass(frozen=True)
class HistoryPoint:
    """One step of the training, or a few that were averaged."""

    step: int = 0
    loss: float = math.nan
    rate: float = math.nan
    gradient_norm: float = math.nan
    images_per_s: float = math.nan


@dataclass(frozen=True)
class TrainingMistake:
    """One image that the network misclassifies; `jpeg`: its thumbnail, re-encoded and free of
    metadata.
    """

    jpeg: bytes = b""
    label: str = ""
    generator: str = ""
    score: float = math.nan
    name: str = ""


@dataclass(frozen=True)
class SplitCounts:
    """What one split holds; `generators`: images of each, sources of real ones included."""

    images: int = 0
    real: int = 0
    fake: int = 0
    generators: Mapping[str, int] = field(default_factory=dict)
    digest: str | None = None


@dataclass(frozen=True)
class SetAside:
    """Images of the training sources that are in no split, and why."""

    images: int = 0
    why: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Shared:
    """How many images of one split have their like in another: the same place, the same bytes, a
    like perceptual hash, the same group.
    """

    image_id: int = 0
    sha256: int = 0
    group: int = 0
    phash: int = 0
    examples: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether the two splits share anything."""
        return bool(self.image_id or self.sha256 or self.phash or self.group)


@dataclass(frozen=True)
class Leakage:
    """What every two splits share. `checked`: whether every split has hashes of that name; without,
    a count of 0 has no meaning. `unhashed`: how many images have none all the same.
    """

    checked: Mapping[str, bool] = field(default_factory=dict)
    unhashed: Mapping[str, int] = field(default_factory=dict)
    pairs: Mapping[str, Shared] = field(default_factory=dict)

    @property
    def uncompared(self) -> list[str]:
        """Which images no other was compared with, though their splits have hashes: a sentence for
        each kind.
        """
        counts = {
            words: self.unhashed.get(key, 0)
            for key, words in (("sha256", "bytes"), ("phash", "looks"))
            if self.checked.get(key)
        }
        return [
            f"{wording.counted(n, 'image')} could not be compared by {words}: no hash."
            for words, n in counts.items()
            if n
        ]


@dataclass(frozen=True)
class DataFindings:
    """What is known of the data (ray_app.datasets.splits.Splits); `prompts_in_training`: images
    left out for their prompts.
    """

    splits: Mapping[str, SplitCounts] = field(default_factory=dict)
    set_aside: SetAside = SetAside()
    leakage: Leakage = Leakage()
    prompts_in_training: Mapping[str, int] | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "DataFindings":
        """Return the findings of `Splits.findings`."""
        return _read(cls, content)

    @property
    def by_generator(self) -> list[tuple[str, list[int]]]:
        """Images of each generator by split, the most frequent first."""
        counts = [split.generators for split in self.splits.values()]
        rows = [
            (name, [one.get(name, 0) for one in counts])
            for name in {name for one in counts for name in one}
        ]
        return sorted(rows, key=lambda row: (-sum(row[1]), row[0]))


@dataclass(frozen=True)
class UnreadableFile:
    """An image that could not be read, and how often it was needed."""

    split: str = ""
    uri: str = ""
    member: str | None = None
    detail: str = ""
    times: int = 1


@dataclass(frozen=True)
class TrainingFacts:
    """A training from beginning to end. `out`: where its files lie. `validations`: for each its
    `step` and figures, side by side.

    `calibration_note`: why there is no calibration. `unreadable`: images of the training split that
    could not be read and were left out. `unreadable_files`: the first of them, and of those of
    other splits; absent if there are none. `mask_warning`: which masks of fakes mark nothing or
    everything; absent if none does. `probe`: of a linear probe alone.
    """

    schema: int = TRAINING_SCHEMA
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
    unreadable_files: tuple[UnreadableFile, ...] | None = None
    mask_warning: str | None = None
    calibration: Platt | None = None
    calibration_note: str | None = None
    calibration_error: float | None = None
    validation: Figures = Figures()
    test: Figures | None = None
    validations: tuple[Mapping[str, Any], ...] = ()
    data: DataFindings = DataFindings()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    probe: Mapping[str, Any] | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[HistoryPoint, ...] = ()
    mistakes: tuple[TrainingMistake, ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TrainingFacts":
        """Return the facts of `metrics.json`. Unknown keys are ignored, and a null is the same as an
        absent key.

        Raises:
            pydantic.ValidationError: A value is of another type.
        """
        return _read(cls, content)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `metrics.json`, which has no history and no images."""
        facts = replace(self, history=(), mistakes=())
        content: dict[str, Any] = TypeAdapter(TrainingFacts).dump_python(facts, mode="json")
        return {key: value for key, value in content.items() if key not in ("history", "mistakes")}

    @property
    def splits(self) -> list[tuple[str, Figures]]:
        """The splits that were measured."""
        return [
            (name, found)
            for name, found in (("validation", self.validation), ("test", self.test))
            if found is not None
        ]

    @property
    def figures(self) -> list[str]:
        """Names of the figures that any split has, the one that chose first."""
        return [
            name
            for name in self._chosen_first()
            if any(found.figure(name).value is not None for _, found in self.splits)
        ]

    @property
    def validated_figures(self) -> list[str]:
        """Names of the figures of the validations, the one that chose first."""
        return [name for name in self._chosen_first() if self.validated(name)]

    @property
    def shown_validations(self) -> list[tuple[int, dict[str, float]]]:
        """The figures of all validations, by step; of very many those of the last, and of the one
        that was chosen.
        """
        found: dict[int, dict[str, float]] = {}
        for name in FIGURES:
            for step, value in self.validated(name):
                found.setdefault(step, {})[name] = value
        steps = sorted(found)
        kept = {self.best_step, *steps[-_MOST_VALIDATIONS:]}
        return [(step, found[step]) for step in steps if step in kept]

    def _chosen_first(self) -> list[str]:
        return sorted(FIGURES, key=lambda name: name != self.metric)

    @property
    def span(self) -> tuple[int, int]:
        """The steps that a chart shows: all of the training, though it ended early or is still
        going on.
        """
        return 0, max(
            [
                self.steps,
                1,
                *(point.step for point in self.history),
                *(step for step, _ in self.validated("loss")),
            ]
        )

    def validated(self, name: str) -> list[tuple[int, float]]:
        """One figure at every validation, by step; left out where it was not measured."""
        found = [(validation.get("step"), validation.get(name)) for validation in self.validations]
        return [
            (step, float(value))
            for step, value in found
            if isinstance(step, int) and isinstance(value, int | float)
        ]


def render_training_report(facts: Mapping[str, Any]) -> str:
    """Write a training as one self-contained HTML page; the keys of `facts` are those of
    TrainingFacts, each may be absent.

    Thumbnails are JPEG bytes, already re-encoded and free of metadata; what is no JPEG is not
    shown. Raises pydantic's ValidationError for a value of another type.
    """
    training = TrainingFacts.from_dict(facts)
    captions = {
        "rate": "Learning rate",
        "gradient_norm": "Norm of the gradients",
        "images_per_s": "Images per second",
    }
    paces = [
        (caption, _history_chart(training, name, caption, compact=True))
        for name, caption in captions.items()
    ]
    departures = training.recipe.get("departures") or ()
    return render(
        "training.html",
        document=training,
        headline=headline(training),
        calibration=calibration_in_words(training),
        loss=_history_chart(training, "loss", "Loss of each step"),
        paces=[(caption, chart) for caption, chart in paces if chart],
        validation_charts=_validation_charts(training),
        axis_start=charts.axis_start,
        most_generators=_MOST_GENERATORS,
        departures=list(map(str, departures))
        if isinstance(departures, list | tuple)
        else [str(departures)],
        recipe=settings(training.recipe),
        environment=settings(training.environment),
        card=settings(training.card),
    )


def training_lines(facts: Mapping[str, Any]) -> list[str]:
    """The end of a training in words, for the terminal: the chosen step, its figures, what it finds
    hardest, where things lie.
    """
    training = TrainingFacts.from_dict(facts)
    lines = [headline(training)]
    for name, split in training.splits:
        if split.n_real + split.n_fake:
            parts = [
                f"{name_metric(key)} {format_metric_with_interval(key, split.figure(key))}"
                for key in FIGURES
                if split.figure(key).value is not None
            ]
            lines.append(
                f"{name} ({split.n_real:,} real, {split.n_fake:,} fake): {', '.join(parts)}"
            )
            if ranks_backwards(split.figure("auc"), split.n_real, split.n_fake):
                lines.append(
                    f"warning: the labels of {name} may be swapped: the detector scores its real images higher than its fakes"
                )
    if training.validation.n_fake:
        lines.append(calibration_in_words(training))
    lines += file_warnings(training.unreadable_files, training.mask_warning, training.out)
    hardest = (training.test or training.validation).hardest("fake")[:_HARDEST]
    if len(hardest) > 1:
        shown = [
            f"{wording.shortened(name, _LONGEST_NAME)} (AUC {wording.format_metric('auc', found.auc)})"
            for name, found in hardest
        ]
        lines.append(f"hardest generators: {', '.join(shown)}")
    if training.out:
        out = wording.visible(training.out.rstrip("/"))
        lines += [
            f"report: {out}/report.html",
            f"score with it: touchstone score SOURCE --detector {out}/card.yaml --out RUN",
        ]
    return lines


def file_warnings(
    unreadable: Sequence[UnreadableFile] | None, mask_warning: str | None, out: str
) -> list[str]:
    """Return the lines for the terminal about files that could not be read and masks that may be
    misread.
    """
    lines = [f"warning: {wording.visible(mask_warning)}"] if mask_warning else []
    if unreadable:
        names = ", ".join(
            wording.visible(wording.file_name(file.uri, file.member))
            for file in unreadable[:_NAMED]
        )
        rest = (
            f" and more, all in {wording.visible(out.rstrip('/'))}/unreadable.jsonl"
            if len(unreadable) > _NAMED
            else ""
        )
        lines.append(f"could not be read: {names}{rest}")
    return lines


def headline(facts: TrainingFacts) -> str:
    """The training in one sentence."""
    name = wording.visible(facts.title or facts.name or "Training")
    found = facts.validation.figure(facts.metric)
    if found.value is None or facts.best_step is None:
        return f"{name}: {wording.counted(facts.steps, 'step')}, no step chosen yet."
    where = f"at step {facts.best_step:,} of {facts.steps:,}"
    return f"{name}: {name_metric(facts.metric)} {format_metric_with_interval(facts.metric, found)} on validation, {where}."


def calibration_in_words(facts: TrainingFacts) -> str:
    """How probabilities come out of scores, or why a score is not to be read as one."""
    if facts.calibration is None:
        why = f": {wording.visible(facts.calibration_note)}" if facts.calibration_note else ""
        return f"Not calibrated{why}. Scores rank images; they are not chances."
    off = (
        f"; on test, probabilities are off by {wording.percent(facts.calibration_error)}"
        if facts.calibration_error is not None
        else ""
    )
    return f"Calibrated on validation: {facts.calibration}{off}."


def _history_chart(
    facts: TrainingFacts, name: str, caption: str, *, compact: bool = False
) -> Markup | None:
    points = [(float(point.step), float(getattr(point, name))) for point in facts.history]
    described = f"{len(points):,} points from step {facts.span[0]:,} to {facts.span[1]:,}."
    chosen = None if compact else facts.best_step
    texts: Any = {"ident": f"history-{name}", "title": caption, "description": described}
    return charts.line_chart(
        points, facts.span, **texts, chosen=chosen, from_zero=True, compact=compact
    )


def _validation_charts(facts: TrainingFacts) -> list[tuple[str, Markup]]:
    """Every figure over the validations with its caption, the one that chose first; none where
    there is but one validation.
    """
    drawn = []
    for name in facts.validated_figures:
        points = [(float(step), value) for step, value in facts.validated(name)]
        described = f"{len(points):,} validations; the chosen step is {facts.best_step}."
        texts: Any = {
            "ident": f"validation-{name}",
            "title": f"Validation: {name_metric(name)}",
            "description": described,
        }
        chart = charts.line_chart(
            points, facts.span, **texts, chosen=facts.best_step, compact=name != facts.metric
        )
        if chart and len(points) > 1:
            drawn.append((name_metric(name)[0].upper() + name_metric(name)[1:], chart))
    return drawn
