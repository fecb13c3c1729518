"""Report the training of an identifier or a describer, as an HTML page and as lines.

An identifier names the generator of an image, or gives no name if the image resembles no generator
that it knows. A describer predicts the prompt of an image. All texts of a training are untrusted
and therefore escaped.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from ray_app.metrics.values import NOT_MEASURED, MetricValue
from ray_app.reports import format as wording
from ray_app.reports.format import format_metric_with_interval
from ray_app.reports.html import render, settings
from ray_app.reports.training import UnreadableFile, file_warnings

FIGURES = {
    "accuracy": "accuracy",
    "top_3": "right name among the first 3",
    "top_5": "right name among the first 5",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "family_accuracy": "accuracy of families",
    "family_macro_f1": "macro F1 of families",
    "calibration_error": "calibration error",
    "abstained": "given no name: known generators",
    "accuracy_of_named": "accuracy of those named",
    "unknown_abstained": "given no name: unknown generators",
    "reals_abstained": "given no name: real images",
    "open_set_auroc": "AUROC, known against unknown",
}
"""Names of the metrics of a split, which are all shown in per cent."""
_LINE_METRICS = ("accuracy", "top_3", "macro_f1", "open_set_auroc")
_MAX_CLASSES = 60
_MAX_NAMES_IN_LINE = 12
_MAX_NAME_WIDTH = 48
_SYSTEMS = {
    "describer": "predicted",
    "retrieval": "nearest image's",
    "random": "any prompt",
    "most_frequent": "most frequent",
}


@dataclass(frozen=True)
class NamedClass:
    """Metrics on the images of one generator that the identifier knows.

    Attributes:
        name: Name of the generator.
        n: Number of its images.
        recall: Fraction of its images that are named correctly.
        precision: Fraction of the images given its name that it generated.
        f1: F1 of its name.
        abstained: Fraction of its images that were given no name.
    """

    name: str = ""
    n: int = 0
    recall: MetricValue = NOT_MEASURED
    precision: MetricValue = NOT_MEASURED
    f1: MetricValue = NOT_MEASURED
    abstained: MetricValue = NOT_MEASURED


@dataclass(frozen=True)
class UnknownGenerator:
    """Metrics on the images of one generator that the identifier does not know.

    Attributes:
        name: Name of the generator.
        n: Number of its images.
        abstained: Fraction of its images that were given no name.
        nearest: The known generator that is the nearest to most of its images, whether they were
            given that name or no name.
        nearest_n: Number of images whose nearest known generator is `nearest`.
    """

    name: str = ""
    n: int = 0
    abstained: MetricValue = NOT_MEASURED
    nearest: str = ""
    nearest_n: int = 0


@dataclass(frozen=True)
class NamedSplit:
    """Metrics on how well an identifier names the generators of the images of one split.

    Attributes:
        n_known: Number of images of known generators.
        n_unknown: Number of images of unknown generators.
        n_real: Number of real images.
        figures: Metrics of the split, by key such as `accuracy` (`FIGURES`). Most of them are on
            the images of known generators only.
        classes: Metrics of each known generator.
        pairs: Confusions of known generators: true name, wrong name, number of images. The wrong
            name is None if the image was given no name.
        unknown: Metrics of each unknown generator.
    """

    n_known: int = 0
    n_unknown: int = 0
    n_real: int = 0
    figures: Mapping[str, MetricValue] = field(default_factory=dict)
    classes: tuple[NamedClass, ...] = ()
    pairs: tuple[tuple[str, str | None, int], ...] = ()
    unknown: tuple[UnknownGenerator, ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "NamedSplit":
        """Return the metrics of a split from a mapping of field names to values, read from JSON."""
        return TypeAdapter(cls).validate_python(content)


@dataclass(frozen=True)
class IdentifierTraining:
    """The content of `metrics.json` of the training of an identifier.

    Attributes:
        method: Value of the key `method` in the recipe, the YAML file with the training's settings.
        out: Directory of the training.
        detector: Name of the detector whose embeddings the identifier classifies.
        head: Kind of the classifier of embeddings: `linear` or `cosine`.
        level: `generator` or `family`: what a class is.
        classes: Number of training images of each class.
        families: Family (base architecture) of each class.
        left_out: Classes that had too few images to train on, with their numbers of images.
        held_out: Generators that are not in training.
        c: Inverse strength of the penalty of the classifier: the value with the lowest log loss.
        log_losses: Mean log loss, by value of `c`, on images that the classifier did not see.
        temperature: Number that divides the logits to calibrate probabilities. 1 without
            calibration.
        calibration_note: Reason why there is no calibration. None if there is one.
        open_set: Rule by which an image is given no name, as in the card, the YAML file of the
            identifier. None if all get a name.
        validation: Metrics on the validation split, which chose the threshold of `open_set`.
        test: Metrics on the test split. None without a test split.
        unreadable: Number of images that could not be read.
        unreadable_files: The first of the unreadable images. None if there are none.
        seconds: Duration of the training.
    """

    schema: int = 1
    method: str = ""
    name: str = ""
    title: str = ""
    out: str = ""
    detector: str = ""
    head: str = ""
    level: str = ""
    classes: Mapping[str, int] = field(default_factory=dict)
    families: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    held_out: tuple[str, ...] = ()
    c: float | None = None
    log_losses: Mapping[str, float] = field(default_factory=dict)
    temperature: float | None = None
    calibration_note: str | None = None
    open_set: Mapping[str, Any] | None = None
    validation: NamedSplit = NamedSplit()
    test: NamedSplit | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    unreadable: int = 0
    unreadable_files: tuple[UnreadableFile, ...] | None = None
    seconds: float | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "IdentifierTraining":
        """Return the results of a training from the content of its `metrics.json`.

        Unknown keys are ignored, and null is treated as an absent key.
        """
        present = {key: value for key, value in content.items() if value is not None}
        return TypeAdapter(cls).validate_python(present)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `metrics.json`."""
        return asdict(self)

    @property
    def splits(self) -> list[tuple[str, NamedSplit]]:
        """Names and metrics of the splits that were measured."""
        return [
            (name, split)
            for name, split in (("validation", self.validation), ("test", self.test))
            if split is not None
        ]


def render_identifier_report(document: Mapping[str, Any]) -> str:
    """Render the training of an identifier as one self-contained HTML page.

    `document` is the content of `metrics.json`.
    """
    facts = IdentifierTraining.from_dict(document)
    last = facts.splits[-1]
    unmeasured = [
        f"{title}: {last[1].figures[key].why}"
        for key, title in FIGURES.items()
        if last[1].figures[key].value is None
    ]
    return render(
        "identifier.html",
        document=facts,
        headline=_headline(facts),
        figures=FIGURES,
        unmeasured=unmeasured,
        open_set=describe_open_set(facts),
        chances=_describe_calibration(facts),
        last=last,
        most=_MAX_CLASSES,
        recipe=settings(facts.recipe),
        environment=settings(facts.environment),
        card=settings(facts.card),
    )


def identifier_lines(document: Mapping[str, Any]) -> list[str]:
    """Return the results of the training of an identifier as lines for the terminal.

    `document` is the content of `metrics.json`.
    """
    facts = IdentifierTraining.from_dict(document)
    lines = [_headline(facts)]
    for name, split in facts.splits:
        metrics = [
            f"{FIGURES[key]} {format_metric_with_interval('accuracy', split.figures[key])}"
            for key in _LINE_METRICS
            if split.figures[key].value is not None
        ]
        lines.append(
            f"{name} ({split.n_known:,} of known generators, {split.n_unknown:,} of unknown): {', '.join(metrics)}"
        )
    lines.append(describe_open_set(facts))
    if pairs := facts.splits[-1][1].pairs[:3]:
        lines.append(
            "most frequent confusions: "
            + ", ".join(
                f"{_shorten(true)} named {_shorten(str(wrong))} ({n:,})" for true, wrong, n in pairs
            )
        )
    if facts.left_out:
        lines.append(f"left out for too few images: {_format_counts(facts.left_out)}")
    lines += file_warnings(facts.unreadable_files, None, facts.out)
    out = wording.escape_invisible(facts.out.rstrip("/"))
    return [
        *lines,
        f"report: {out}/report.html",
        f"name images with it: put `profile: {{identifier: {out}/identifier.yaml}}` into an ensemble card, and score with that card",
    ]


def identifier_plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """Return what the training of an identifier would do, as lines for the terminal.

    `plan` is the result of a dry run (`touchstone train --dry-run`).
    """
    open_set = plan["open_set"]
    lines = [
        f"{plan['name']}: a {plan['head']} head over {len(plan['classes'])} classes ({plan['level']}), "
        f"on embeddings of {plan['detector']}",
        f"classes     {', '.join(map(_shorten, plan['classes'][:_MAX_CLASSES]))}",
        f"open set    by {open_set['method']}, leaves {wording.percent(open_set['abstains'])} of known generators unnamed"
        if open_set["abstains"]
        else "open set    none: every image is named",
    ]
    for name, split in plan["splits"].items():
        others = f"; others: {_format_counts(split['others'])}" if split["others"] else ""
        lines.append(
            f"{name:<12}{split['images']:,} images to embed: {_format_counts(split['known'])}{others}"
        )
    lines += (
        [f"held out    {', '.join(map(_shorten, plan['held_out']))}"] if plan["held_out"] else []
    )
    lines += (
        [f"left out    {_format_counts(plan['left_out'])}: too few images"]
        if plan["left_out"]
        else []
    )
    if "test" not in plan["splits"]:
        lines.append("there is no test split: accuracy on images that decided nothing is not known")
    return [wording.escape_invisible(line) for line in lines]


def describe_open_set(facts: IdentifierTraining) -> str:
    """Describe in a sentence how many images an identifier leaves without a name.

    An image gets no name if it resembles no generator that the identifier knows. The sentence has
    the fraction of images of known generators that the user requested. It also has the fractions
    that were measured on test images.
    """
    rule = facts.open_set
    if rule is None:
        return "Every image is given a name: no threshold was requested."
    target = f"The threshold leaves {wording.percent(rule['abstains'])} of images of known generators without a name (by {rule['method']}, "
    target += f"from {rule['n']:,} validation images)"
    test = facts.test
    if test is None or test.figures["abstained"].value is None:
        return f"{target}; it was not measured on test images."
    text = f"{target}; on test it was {format_metric_with_interval('abstained', test.figures['abstained'])}"
    unknown = test.figures["unknown_abstained"]
    return (
        f"{text}, and {format_metric_with_interval('abstained', unknown)} of those of unknown generators."
        if unknown.value is not None
        else f"{text}."
    )


def describer_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return the results of the training of a describer as lines for the terminal.

    A describer predicts prompts of images. The lines compare its metrics on each split with simple
    baselines: the prompt of the nearest image, any prompt, and the most frequent prompt. `facts`
    are the results of the training by key, such as `name` and `steps`.
    """
    lines = [
        f"{facts['name']}: {facts['tier']}, {facts['steps']:,} steps, {facts['out']}/describer.yaml"
    ]
    for split, systems in facts["figures"].items():
        lines.append(f"{split}: {facts['n'][split]:,} images with prompts that are not in training")
        lines += [
            f"  {title:<16}{_format_metrics(systems[system])}" for system, title in _SYSTEMS.items()
        ]
    return [
        *lines,
        "next: touchstone score ARCHIVE --out RUN with an ensemble whose profile names this card as its describer",
    ]


def describer_plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """Return what the training of a describer would do, as lines for the terminal.

    `plan` is the result of a dry run (`touchstone train --dry-run`).
    """
    counts = ", ".join(f"{split} {count:,}" for split, count in plan["images"].items())
    lines = [f"{plan['name']}: {plan['tier']} by {plan['detector']}; images with prompts: {counts}"]
    if plan["steps"]:
        lines.append(f"{plan['steps']:,} steps of {plan['batch']:,} images")
    left_out = plan["data"].get("prompts_in_training", {})
    return lines + [
        f"{split}: {count:,} images left out, because their prompt is in training"
        for split, count in left_out.items()
        if count
    ]


def _headline(facts: IdentifierTraining) -> str:
    split, last = facts.splits[-1]
    title = wording.escape_invisible(facts.title or facts.name)
    accuracy = last.figures["accuracy"].value
    if accuracy is None:
        return f"{title}: {len(facts.classes)} classes, not measured."
    return f"{title}: {wording.percent(accuracy)} of {split} images of {len(facts.classes)} classes named correctly."


def _describe_calibration(facts: IdentifierTraining) -> str:
    if facts.calibration_note:
        return f"Probabilities are not calibrated: {facts.calibration_note}."
    return f"Probabilities are calibrated by a temperature of {facts.temperature:.3g}, on training images by folds of groups."


def _format_counts(counts: Mapping[str, int]) -> str:
    texts = [f"{_shorten(name)} {n:,}" for name, n in list(counts.items())[:_MAX_NAMES_IN_LINE]]
    return ", ".join(
        [*texts, *([f"{len(counts) - len(texts):,} more"] if len(counts) > len(texts) else [])]
    )


def _shorten(name: str) -> str:
    return wording.truncate(name, _MAX_NAME_WIDTH)


def _format_metrics(metrics: Mapping[str, Any]) -> str:
    exact = metrics["exact"]
    return (
        f"not known: {exact['why']}"
        if exact["value"] is None
        else f"word for word {exact['value']:.3f}"
    )
