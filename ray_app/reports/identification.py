"""The training of an identifier or a describer: its HTML page, and its end and its plan in a few
lines.

Every text in the facts is taken for hostile.
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
"""Figures of a split, all of them shares in per cent."""
_IN_LINES = ("accuracy", "top_3", "macro_f1", "open_set_auroc")
_MOST = 60
_MOST_IN_LINE = 12
_LONGEST_NAME = 48
_SYSTEMS = {
    "describer": "predicted",
    "retrieval": "nearest image's",
    "random": "any prompt",
    "most_frequent": "the commonest",
}


@dataclass(frozen=True)
class NamedClass:
    """One known generator's images, and how they were named."""

    name: str = ""
    n: int = 0
    recall: MetricValue = NOT_MEASURED
    precision: MetricValue = NOT_MEASURED
    f1: MetricValue = NOT_MEASURED
    abstained: MetricValue = NOT_MEASURED


@dataclass(frozen=True)
class UnknownGenerator:
    """One unknown generator's images, and the name that they are given most."""

    name: str = ""
    n: int = 0
    abstained: MetricValue = NOT_MEASURED
    nearest: str = ""
    nearest_n: int = 0


@dataclass(frozen=True)
class NamedSplit:
    """How well one split's images are named (ray_app.training.identify). `pairs`: true name, wrong
    name, how many.
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
        """Return a split of its fields by name."""
        return TypeAdapter(cls).validate_python(content)


@dataclass(frozen=True)
class IdentifierTraining:
    """The document of an identifier's training, `metrics.json`: `training` fills it. `classes`:
    training images of each; `c`: the regression's, chosen by `log_losses`; `open_set`: the card's
    rule for giving no name. `unreadable_files`: the first of the images that could not be read;
    absent if there are none.
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
        """Return the training of `metrics.json`. Unknown keys are ignored, and a null is the same as
        an absent key.
        """
        known = {key: value for key, value in content.items() if value is not None}
        return TypeAdapter(cls).validate_python(known)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `metrics.json`."""
        return asdict(self)

    @property
    def splits(self) -> list[tuple[str, NamedSplit]]:
        """The splits that were measured."""
        return [
            (name, split)
            for name, split in (("validation", self.validation), ("test", self.test))
            if split is not None
        ]


def render_identifier_report(document: Mapping[str, Any]) -> str:
    """Write an identifier's training as one self-contained HTML page."""
    facts = IdentifierTraining.from_dict(document)
    last = facts.splits[-1]
    unmeasured = [
        f"{words}: {last[1].figures[key].why}"
        for key, words in FIGURES.items()
        if last[1].figures[key].value is None
    ]
    return render(
        "identifier.html",
        document=facts,
        headline=_headline(facts),
        figures=FIGURES,
        unmeasured=unmeasured,
        open_set=open_set_in_words(facts),
        chances=_chances_in_words(facts),
        last=last,
        most=_MOST,
        recipe=settings(facts.recipe),
        environment=settings(facts.environment),
        card=settings(facts.card),
    )


def identifier_lines(document: Mapping[str, Any]) -> list[str]:
    """The end of the training in words, for the terminal."""
    facts = IdentifierTraining.from_dict(document)
    lines = [_headline(facts)]
    for name, split in facts.splits:
        figures = [
            f"{FIGURES[one]} {format_metric_with_interval('accuracy', split.figures[one])}"
            for one in _IN_LINES
            if split.figures[one].value is not None
        ]
        lines.append(
            f"{name} ({split.n_known:,} of known generators, {split.n_unknown:,} of unknown): {', '.join(figures)}"
        )
    lines.append(open_set_in_words(facts))
    if pairs := facts.splits[-1][1].pairs[:3]:
        lines.append(
            "most often confused: "
            + ", ".join(
                f"{_name(true)} taken for {_name(str(said))} ({n:,})" for true, said, n in pairs
            )
        )
    if facts.left_out:
        lines.append(f"left out for too few images: {_counts(facts.left_out)}")
    lines += file_warnings(facts.unreadable_files, None, facts.out)
    out = wording.visible(facts.out.rstrip("/"))
    return [
        *lines,
        f"report: {out}/report.html",
        f"name images with it: put `profile: {{identifier: {out}/identifier.yaml}}` into an ensemble card, and score with that",
    ]


def identifier_plan_lines(planned: Mapping[str, Any]) -> list[str]:
    """The dry run in words."""
    asked = planned["open_set"]
    lines = [
        f"{planned['name']}: a {planned['head']} head over {len(planned['classes'])} classes ({planned['level']}), "
        f"on embeddings of {planned['detector']}",
        f"classes     {', '.join(map(_name, planned['classes'][:_MOST]))}",
        f"open set    by {asked['method']}, gives up {wording.percent(asked['abstains'])} of known generators"
        if asked["abstains"]
        else "open set    none: every image is named",
    ]
    for name, split in planned["splits"].items():
        others = f"; besides {_counts(split['others'])}" if split["others"] else ""
        lines.append(
            f"{name:<12}{split['images']:,} images to embed: {_counts(split['known'])}{others}"
        )
    lines += (
        [f"held out    {', '.join(map(_name, planned['held_out']))}"] if planned["held_out"] else []
    )
    lines += (
        [f"left out    {_counts(planned['left_out'])}: too few images"]
        if planned["left_out"]
        else []
    )
    if "test" not in planned["splits"]:
        lines.append(
            "there is no test split: how good it is on images that decided nothing stays unknown"
        )
    return [wording.visible(line) for line in lines]


def open_set_in_words(facts: IdentifierTraining) -> str:
    """What share of images was to be given no name, and what share was."""
    found = facts.open_set
    if found is None:
        return "Every image is given a name: no threshold was asked for."
    asked = f"Asked to give no name to {wording.percent(found['abstains'])} of images of known generators (by {found['method']}, "
    asked += f"a threshold from {found['n']:,} validation images)"
    test = facts.test
    if test is None or test.figures["abstained"].value is None:
        return f"{asked}; no test image says what share it is."
    words = f"{asked}; on test it was {format_metric_with_interval('abstained', test.figures['abstained'])}"
    unknown = test.figures["unknown_abstained"]
    return (
        f"{words}, and {format_metric_with_interval('abstained', unknown)} of those of unknown generators."
        if unknown.value is not None
        else f"{words}."
    )


def describer_lines(facts: Mapping[str, Any]) -> list[str]:
    """What came out: figures of each split beside what costs nothing, and where the card lies."""
    lines = [
        f"{facts['name']}: {facts['tier']}, {facts['steps']:,} steps, {facts['out']}/describer.yaml"
    ]
    for split, systems in facts["figures"].items():
        lines.append(f"{split}: {facts['n'][split]:,} images with prompts that training has not")
        lines += [
            f"  {title:<16}{_figures_in_words(systems[system])}"
            for system, title in _SYSTEMS.items()
        ]
    return [
        *lines,
        "touchstone score ARCHIVE --out RUN with an ensemble whose profile names this card as its describer",
    ]


def describer_plan_lines(planned: Mapping[str, Any]) -> list[str]:
    """The dry run."""
    counts = ", ".join(f"{split} {count:,}" for split, count in planned["images"].items())
    lines = [
        f"{planned['name']}: {planned['tier']} by {planned['detector']}; images with prompts: {counts}"
    ]
    if planned["steps"]:
        lines.append(f"{planned['steps']:,} steps of {planned['batch']:,} images")
    left_out = planned["data"].get("prompts_in_training", {})
    return lines + [
        f"{split}: {count:,} images left out, since training has their prompt"
        for split, count in left_out.items()
        if count
    ]


def _headline(facts: IdentifierTraining) -> str:
    split, last = facts.splits[-1]
    title = wording.visible(facts.title or facts.name)
    accuracy = last.figures["accuracy"].value
    if accuracy is None:
        return f"{title}: {len(facts.classes)} classes, not measured."
    return f"{title}: {wording.percent(accuracy)} of {split} images of {len(facts.classes)} classes rightly named."


def _chances_in_words(facts: IdentifierTraining) -> str:
    if facts.calibration_note:
        return f"Probabilities are not calibrated: {facts.calibration_note}."
    return f"Probabilities are calibrated by a temperature of {facts.temperature:.3g}, on training images by folds of groups."


def _counts(counts: Mapping[str, int]) -> str:
    words = [f"{_name(name)} {n:,}" for name, n in list(counts.items())[:_MOST_IN_LINE]]
    return ", ".join(
        [*words, *([f"{len(counts) - len(words):,} more"] if len(counts) > len(words) else [])]
    )


def _name(name: str) -> str:
    return wording.shortened(name, _LONGEST_NAME)


def _figures_in_words(figures: Mapping[str, Any]) -> str:
    exact = figures["exact"]
    return (
        f"not known: {exact['why']}"
        if exact["value"] is None
        else f"word for word {exact['value']:.3f}"
    )
