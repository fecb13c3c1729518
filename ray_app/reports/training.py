"""Report a training (`TrainingFacts`, `metrics.json`) as a page (`render_training_report`) or lines.

The fields of `TrainingFacts` have the order of `metrics.json`; `history` and `mistakes` are only
for the page. The page has no scripts and loads nothing. All texts of a training are untrusted and
therefore escaped.
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
_MAX_VALIDATIONS = 200
_MAX_HARDEST = 3
_MAX_NAME_WIDTH = 60
_MAX_GENERATORS = 60
_MAX_FILES = 3  # Names of unreadable files on the terminal.


def _read(kind: type[T], content: Mapping[str, Any]) -> T:
    """Make a dataclass from its fields by name; ignore other keys and null values."""
    names = {field_.name for field_ in fields(kind)}  # type: ignore[arg-type]
    present = {key: content[key] for key in names & set(content) if content[key] is not None}
    return TypeAdapter(kind).validate_python(present)


def _metric(value: float | None, interval: tuple[float, float] | None) -> MetricValue:
    low, high = interval or (None, None)
    return MetricValue(value, low, high)


@dataclass(frozen=True)
class GeneratorFigures:
    """Metrics on the images of one generator, or of one source of real images.

    Attributes:
        n: Number of images.
        label: `fake` for a generator, `real` for a source of real images.
        auc: AUC of a generator against all real images, or of a source against all fakes.
        auc_interval: 95 % interval of the AUC.
        tpr: Fraction of a generator's images that are flagged. None for sources of real images.
        tnr: Fraction of a source's images that are not flagged. None for generators.
        interval: 95 % interval of `tpr` or `tnr`.
    """

    n: int = 0
    label: str = ""
    auc: float | None = None
    auc_interval: tuple[float, float] | None = None
    tpr: float | None = None
    tnr: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def area(self) -> MetricValue:
        """AUC with its 95 % interval.

        The AUC compares the images of a generator with all real images, or the images of a source
        of real images with all fakes.
        """
        return _metric(self.auc, self.auc_interval)

    @property
    def rate(self) -> MetricValue:
        """Fraction of images that are judged correctly: `tpr` of fakes, or `tnr` of real images."""
        return _metric(self.tpr if self.label == "fake" else self.tnr, self.interval)


@dataclass(frozen=True)
class Figures:
    """Metrics of a trained detector on one split of the data, such as validation.

    The fields are named as the results of `ray_app.metrics.detection_figures`. If the detector
    predicts masks of altered pixels, `pixel_f1` and `pixel_iou` compare them with the true masks.

    Attributes:
        n_real: Number of real images.
        n_fake: Number of fakes.
        generators: Metrics on the images of each generator, and of each source of real images.
        n: Number of images with altered pixels, on which `pixel_f1` and `pixel_iou` are computed.
        unreadable: Number of images without a score.
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
        """Make the metrics of a split from the result of `metrics.detection_figures`."""
        return _read(cls, content)

    def figure(self, name: str) -> MetricValue:
        """Return a metric, and its 95 % interval if it has one.

        `name` is the key of the metric, such as `auc`. The value is None if the metric was not
        measured, or if the name is not a key of `ray_app.metrics.FIGURES`.
        """
        value: float | None = getattr(self, name) if name in FIGURES else None
        return _metric(value, getattr(self, f"{name}_interval", None))

    def hardest(self, label: str) -> list[tuple[str, GeneratorFigures]]:
        """Return the generators or the sources in order, beginning with the lowest AUC.

        Those without an AUC are last. `label` is `fake` for generators, `real` for sources of real
        images.
        """
        selected = [
            (name, figures) for name, figures in self.generators.items() if figures.label == label
        ]
        return sorted(
            selected, key=lambda item: (math.inf if item[1].auc is None else item[1].auc, item[0])
        )


@dataclass(frozen=True)
class HistoryPoint:
    """A point of the training charts: one step, or the mean of several steps.

    Attributes:
        step: Number of the step.
        loss: Training loss.
        rate: Learning rate.
        gradient_norm: Norm of the gradients.
        images_per_s: Images per second.
    """

    step: int = 0
    loss: float = math.nan
    rate: float = math.nan
    gradient_norm: float = math.nan
    images_per_s: float = math.nan


@dataclass(frozen=True)
class TrainingMistake:
    """An image that the trained network misclassifies, as the page shows it.

    Attributes:
        jpeg: JPEG bytes of a thumbnail, which was encoded again without metadata.
        label: True label, `real` or `fake`.
        generator: Generator of the image.
        score: Score in log-odds.
        name: Name of the file.
    """

    jpeg: bytes = b""
    label: str = ""
    generator: str = ""
    score: float = math.nan
    name: str = ""


@dataclass(frozen=True)
class SplitCounts:
    """Numbers of images in one split.

    Attributes:
        images: Number of all images.
        real: Number of real images.
        fake: Number of fakes.
        generators: Number of images by generator, or by source of real images.
        digest: SHA-256 of the image ids with their labels.
    """

    images: int = 0
    real: int = 0
    fake: int = 0
    generators: Mapping[str, int] = field(default_factory=dict)
    digest: str | None = None


@dataclass(frozen=True)
class SetAside:
    """Images of the training sources that are in no split.

    Attributes:
        images: Number of these images.
        why: Number of these images by reason.
    """

    images: int = 0
    why: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Shared:
    """Numbers of images of a first split that have a duplicate in a second split.

    Attributes:
        image_id: Number of images that are the same file.
        sha256: Number of images with the same bytes.
        group: Number of images of the same group, such as a scene.
        phash: Number of images with a similar perceptual hash.
        examples: URIs of up to five images with the same bytes or a similar hash.
    """

    image_id: int = 0
    sha256: int = 0
    group: int = 0
    phash: int = 0
    examples: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether any image has a duplicate in the other split, or is of a group in both splits."""
        return bool(self.image_id or self.sha256 or self.phash or self.group)


@dataclass(frozen=True)
class Leakage:
    """Images that pairs of splits share, which make metrics on these splits too favourable.

    Attributes:
        checked: By kind of hash (`sha256`, `phash`), whether every split has images with a hash. If
            False, a count of 0 does not show that the splits share nothing.
        unhashed: Number of images without a hash, by kind of hash.
        pairs: Numbers of shared images, by pair of splits such as "test in train".
    """

    checked: Mapping[str, bool] = field(default_factory=dict)
    unhashed: Mapping[str, int] = field(default_factory=dict)
    pairs: Mapping[str, Shared] = field(default_factory=dict)

    @property
    def uncompared(self) -> list[str]:
        """Sentences on images that could not be compared with other splits, as they have no hash.

        There is at most one sentence for each kind of hash (`sha256`, `phash`). A kind is left out
        if no image lacks its hash, or if a split has no image with such a hash.
        """
        counts = {
            criterion: self.unhashed.get(key, 0)
            for key, criterion in (("sha256", "bytes"), ("phash", "looks"))
            if self.checked.get(key)
        }
        return [
            f"{wording.pluralize(n, 'image')} could not be compared by {criterion}: no hash."
            for criterion, n in counts.items()
            if n
        ]


@dataclass(frozen=True)
class DataFindings:
    """Findings on the data of a training (`ray_app.datasets.splits.Splits`).

    Attributes:
        splits: Counts of each split.
        set_aside: Images that are in no split.
        leakage: Images that splits share.
        prompts_in_training: Number of images that were left out of each split because their prompts
            are in training.
    """

    splits: Mapping[str, SplitCounts] = field(default_factory=dict)
    set_aside: SetAside = SetAside()
    leakage: Leakage = Leakage()
    prompts_in_training: Mapping[str, int] | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "DataFindings":
        """Read the numbers from the result of `Splits.findings`, which has the fields by name."""
        return _read(cls, content)

    @property
    def by_generator(self) -> list[tuple[str, list[int]]]:
        """The name of each generator, and its number of images in each split.

        The numbers are in the order of `splits`. The most frequent generator is first.
        """
        counts = [split.generators for split in self.splits.values()]
        rows = [
            (name, [split.get(name, 0) for split in counts])
            for name in {name for split in counts for name in split}
        ]
        return sorted(rows, key=lambda row: (-sum(row[1]), row[0]))


@dataclass(frozen=True)
class UnreadableFile:
    """An image of a training that could not be read.

    Attributes:
        split: Name of its split.
        uri: The file, or its container, such as a tar file.
        member: Path in the container. None if the file is not in a container.
        detail: Reason why the image could not be read.
        times: Number of times that the training tried to read it.
    """

    split: str = ""
    uri: str = ""
    member: str | None = None
    detail: str = ""
    times: int = 1


@dataclass(frozen=True)
class TrainingFacts:
    """The results of the training of a detector.

    The fields are the content of `metrics.json`, and two fields with data for the HTML page.

    Attributes:
        out: Directory of the training.
        metric: Key of the metric on validation by which the best step is chosen, such as `auc`.
        best_step: The chosen step. None if no step was chosen yet.
        best_value: Value of `metric` at this step, before calibration.
        steps: Number of steps of the training.
        seconds: Duration of all steps.
        wait_s_per_step: Mean seconds that a step waits for data.
        unreadable: Number of images of the training split that could not be read.
        unreadable_files: The first unreadable images of all splits. None if there are none.
        mask_warning: Sentence on masks of fakes that mark nothing or everything. None if there are
            none.
        calibration: Platt scaling that turns scores into probabilities. None without calibration.
        calibration_note: Reason why there is no calibration. None if there is one.
        calibration_error: Calibration error of the probabilities on the test split, as a fraction.
            None if it was not measured.
        validation: Metrics of the exported, calibrated detector on the validation split.
        test: Metrics of this detector on the test split. None without a test split.
        validations: `step` and metrics of each validation, before calibration.
        data: Numbers of images in each split, and of images that splits share.
        recipe: Settings of the recipe.
        environment: Facts that affect time but not the result, such as the device.
        probe: Facts of a linear probe, a linear classifier of fixed embeddings. None for other
            trainings.
        card: Name, licence, terms, and digest of the weights of the trained detector, as in its
            card (YAML).
        history: Loss, learning rate, and speed by step, for the charts of the page.
        mistakes: Misclassified images, for the page.
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
        """Make the facts from the content of `metrics.json`; ignore unknown keys and null values.

        Raises:
            pydantic.ValidationError: If a value has the wrong type.
        """
        return _read(cls, content)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `metrics.json`: all fields except `history` and `mistakes`."""
        facts = replace(self, history=(), mistakes=())
        content: dict[str, Any] = TypeAdapter(TrainingFacts).dump_python(facts, mode="json")
        return {key: value for key, value in content.items() if key not in ("history", "mistakes")}

    @property
    def splits(self) -> list[tuple[str, Figures]]:
        """Names and metrics of the splits that were measured."""
        return [
            (name, split)
            for name, split in (("validation", self.validation), ("test", self.test))
            if split is not None
        ]

    @property
    def figures(self) -> list[str]:
        """Keys of the metrics that were measured on any split, for the columns of a table.

        `metric`, by which the best step was chosen, is first if it was measured.
        """
        return [
            name
            for name in self._order_metrics()
            if any(split.figure(name).value is not None for _, split in self.splits)
        ]

    @property
    def validated_figures(self) -> list[str]:
        """Keys of the metrics that were measured in any validation during the training.

        `metric`, by which the best step was chosen, is first if it was measured.
        """
        return [name for name in self._order_metrics() if self.validated(name)]

    @property
    def shown_validations(self) -> list[tuple[int, dict[str, float]]]:
        """The validations to show, as (step, metrics) pairs in the order of their steps.

        These are the last 200 validations, and the one of the best step.
        """
        by_step: dict[int, dict[str, float]] = {}
        for name in FIGURES:
            for step, value in self.validated(name):
                by_step.setdefault(step, {})[name] = value
        steps = sorted(by_step)
        shown_steps = {self.best_step, *steps[-_MAX_VALIDATIONS:]}
        return [(step, by_step[step]) for step in steps if step in shown_steps]

    def _order_metrics(self) -> list[str]:
        return sorted(FIGURES, key=lambda name: name != self.metric)

    @property
    def span(self) -> tuple[int, int]:
        """First and last step of the charts, which cover the whole training.

        The last step is the highest of `steps`, `history`, and `validations`, and at least 1.
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
        """Return the values of a metric in the validations during the training.

        `name` is the key of the metric, such as `auc`. The result has a (step, value) pair for each
        validation that measured the metric.
        """
        values = [(validation.get("step"), validation.get(name)) for validation in self.validations]
        return [
            (step, float(value))
            for step, value in values
            if isinstance(step, int) and isinstance(value, int | float)
        ]


def render_training_report(facts: Mapping[str, Any]) -> str:
    """Render the results of the training of a detector as one self-contained HTML page.

    `facts` has fields of `TrainingFacts` by name; any of them may be absent. Thumbnails that are not
    JPEG are not shown.

    Raises:
        pydantic.ValidationError: If a value has the wrong type.
    """
    training = TrainingFacts.from_dict(facts)
    captions = {
        "rate": "Learning rate",
        "gradient_norm": "Norm of the gradients",
        "images_per_s": "Images per second",
    }
    rate_charts = [
        (caption, _draw_history(training, name, caption, compact=True))
        for name, caption in captions.items()
    ]
    departures = training.recipe.get("departures") or ()
    return render(
        "training.html",
        document=training,
        headline=headline(training),
        calibration=describe_calibration(training),
        loss=_draw_history(training, "loss", "Loss of each step"),
        paces=[(caption, chart) for caption, chart in rate_charts if chart],
        validation_charts=_draw_validations(training),
        axis_start=charts.axis_start,
        most_generators=_MAX_GENERATORS,
        departures=list(map(str, departures))
        if isinstance(departures, list | tuple)
        else [str(departures)],
        recipe=settings(training.recipe),
        environment=settings(training.environment),
        card=settings(training.card),
    )


def training_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return the results of the training of a detector as lines for the terminal.

    The lines show the chosen step, its metrics, and the hardest generators. The last lines are the
    path of the HTML report, and the command that scores with the new detector. `facts` has fields
    of `TrainingFacts` by name.
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
        lines.append(describe_calibration(training))
    lines += file_warnings(training.unreadable_files, training.mask_warning, training.out)
    hardest = (training.test or training.validation).hardest("fake")[:_MAX_HARDEST]
    if len(hardest) > 1:
        texts = [
            f"{wording.truncate(name, _MAX_NAME_WIDTH)} (AUC {wording.format_metric('auc', figures.auc)})"
            for name, figures in hardest
        ]
        lines.append(f"hardest generators: {', '.join(texts)}")
    if training.out:
        out = wording.escape_invisible(training.out.rstrip("/"))
        lines += [
            f"report: {out}/report.html",
            f"score with it: touchstone score SOURCE --detector {out}/card.yaml --out RUN",
        ]
    return lines


def file_warnings(
    unreadable: Sequence[UnreadableFile] | None, mask_warning: str | None, out: str
) -> list[str]:
    """Return lines for the terminal on unreadable files and on suspicious masks.

    `out` has the full list of unreadable files.
    """
    lines = [f"warning: {wording.escape_invisible(mask_warning)}"] if mask_warning else []
    if unreadable:
        names = ", ".join(
            wording.escape_invisible(wording.file_name(file.uri, file.member))
            for file in unreadable[:_MAX_FILES]
        )
        more = (
            f" and more, all in {wording.escape_invisible(out.rstrip('/'))}/unreadable.jsonl"
            if len(unreadable) > _MAX_FILES
            else ""
        )
        lines.append(f"could not be read: {names}{more}")
    return lines


def headline(facts: TrainingFacts) -> str:
    """Describe the result of a training in one sentence.

    The sentence has the chosen step, and the metric by which it was chosen, measured on the
    validation split.
    """
    name = wording.escape_invisible(facts.title or facts.name or "Training")
    metric = facts.validation.figure(facts.metric)
    if metric.value is None or facts.best_step is None:
        return f"{name}: {wording.pluralize(facts.steps, 'step')}, no step chosen yet."
    step = f"at step {facts.best_step:,} of {facts.steps:,}"
    return f"{name}: {name_metric(facts.metric)} {format_metric_with_interval(facts.metric, metric)} on validation, {step}."


def describe_calibration(facts: TrainingFacts) -> str:
    """Describe in a sentence how scores become probabilities, or why they do not.

    If the error of the probabilities was measured on test images, the sentence states it.
    """
    if facts.calibration is None:
        reason = (
            f": {wording.escape_invisible(facts.calibration_note)}"
            if facts.calibration_note
            else ""
        )
        return f"Not calibrated{reason}. Scores rank images; they are not probabilities."
    error = (
        f"; on test, probabilities are off by {wording.percent(facts.calibration_error)}"
        if facts.calibration_error is not None
        else ""
    )
    return f"Calibrated on validation: {facts.calibration}{error}."


def _draw_history(
    facts: TrainingFacts, name: str, caption: str, *, compact: bool = False
) -> Markup | None:
    points = [(float(point.step), float(getattr(point, name))) for point in facts.history]
    description = f"{len(points):,} points from step {facts.span[0]:,} to {facts.span[1]:,}."
    best_step = None if compact else facts.best_step
    texts: Any = {"ident": f"history-{name}", "title": caption, "description": description}
    return charts.line_chart(
        points, facts.span, **texts, chosen=best_step, from_zero=True, compact=compact
    )


def _draw_validations(facts: TrainingFacts) -> list[tuple[str, Markup]]:
    """Draw each metric with several validations; the one that chooses the step comes first."""
    captioned_charts = []
    for name in facts.validated_figures:
        points = [(float(step), value) for step, value in facts.validated(name)]
        description = f"{len(points):,} validations; the chosen step is {facts.best_step}."
        texts: Any = {
            "ident": f"validation-{name}",
            "title": f"Validation: {name_metric(name)}",
            "description": description,
        }
        chart = charts.line_chart(
            points, facts.span, **texts, chosen=facts.best_step, compact=name != facts.metric
        )
        if chart and len(points) > 1:
            captioned_charts.append((name_metric(name)[0].upper() + name_metric(name)[1:], chart))
    return captioned_charts
