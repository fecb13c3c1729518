"""The training of an identifier → one HTML page that loads nothing; its end, and the plan of one, in a few lines.

Knows what is said and in which order; `templates/identifier.html` knows how it looks. Every text in the facts is taken for hostile.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ray_app.reports import wording
from ray_app.reports.page import render, settings

Facts = Mapping[str, Any]
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
_IN_LINES = ("accuracy", "top_3", "macro_f1", "open_set_auroc")
_MOST = 60
_MOST_IN_LINE = 12
_LONGEST_NAME = 48


def render_identifier_report(facts: Facts) -> str:
    """Write what `training.identifying` tells as one self-contained HTML page."""
    splits = [(name, facts[name]) for name in ("validation", "test") if facts.get(name)]
    return render(
        "identifier.html",
        told=facts,
        splits=splits,
        headline=_headline(facts),
        figures=[
            (words, [_cell(split["figures"][name]) for _, split in splits])
            for name, words in FIGURES.items()
            if any(split["figures"][name]["value"] is not None for _, split in splits)
        ],
        reasons=_reasons(facts),
        open_set=open_set_in_words(facts),
        chances=_chances_in_words(facts),
        last=splits[-1],
        row=_cell,
        most=_MOST,
        recipe=settings(facts["recipe"]),
        environment=settings(facts["environment"]),
        card=settings(facts["card"]),
    )


def identifier_lines(facts: Facts) -> list[str]:
    """The end of the training in words, for the terminal."""
    lines = [_headline(facts)]
    for name in ("validation", "test"):
        if split := facts.get(name):
            told = [f"{FIGURES[one]} {_in_words(split['figures'][one])}" for one in _IN_LINES if split["figures"][one]["value"] is not None]
            lines.append(f"{name} ({split['n_known']:,} of known generators, {split['n_unknown']:,} of unknown): {', '.join(told)}")
    lines.append(open_set_in_words(facts))
    if pairs := (facts.get("test") or facts["validation"])["pairs"][:3]:
        lines.append("most often confused: " + ", ".join(f"{_name(true)} taken for {_name(said)} ({n:,})" for true, said, n in pairs))
    if facts["left_out"]:
        lines.append(f"left out for too few images: {_counts(facts['left_out'])}")
    out = wording.visible(str(facts["out"]).rstrip("/"))
    return [
        *lines,
        f"report: {out}/report.html",
        f"name a run's images with it: touchstone rescore RUN --identifier {out}/identifier.yaml --out NEW",
    ]


def identifier_plan_lines(planned: Facts) -> list[str]:
    """The dry run in words."""
    return [wording.visible(line) for line in _plan(planned)]


def _plan(planned: Facts) -> Iterator[str]:
    asked = planned["open_set"]
    yield (
        f"{planned['name']}: a {planned['head']} head over {len(planned['classes'])} classes ({planned['level']}), "
        f"on embeddings of {planned['detector']}"
    )
    yield f"classes     {', '.join(map(_name, planned['classes'][:_MOST]))}"
    if asked["abstains"]:
        yield f"open set    by {asked['method']}, gives up {wording.percent(asked['abstains'])} of known generators"
    else:
        yield "open set    none: every image is named"
    for name, split in planned["splits"].items():
        others = f"; besides {_counts(split['others'])}" if split["others"] else ""
        yield f"{name:<12}{split['images']:,} images to embed: {_counts(split['known'])}{others}"
    if planned["held_out"]:
        yield f"held out    {', '.join(map(_name, planned['held_out']))}"
    if planned["left_out"]:
        yield f"left out    {_counts(planned['left_out'])}: too few images"
    if "test" not in planned["splits"]:
        yield "there is no test split: how good it is on images that decided nothing stays unknown"


def open_set_in_words(facts: Facts) -> str:
    """What share of images was to be given no name, and what share was."""
    found = facts["open_set"]
    if found is None:
        return "Every image is given a name: no threshold was asked for."
    asked = f"Asked to give no name to {wording.percent(found['abstains'])} of images of known generators (by {found['method']}, "
    asked += f"a threshold from {found['n']:,} validation images)"
    test = facts.get("test")
    if not test or test["figures"]["abstained"]["value"] is None:
        return f"{asked}; no test image says what share it is."
    told = f"{asked}; on test it was {_in_words(test['figures']['abstained'])}"
    unknown = test["figures"]["unknown_abstained"]
    return f"{told}, and {_in_words(unknown)} of those of unknown generators." if unknown["value"] is not None else f"{told}."


def _headline(facts: Facts) -> str:
    split = "test" if facts.get("test") else "validation"
    title = wording.visible(facts["title"] or facts["name"])
    accuracy = facts[split]["figures"]["accuracy"]
    if accuracy["value"] is None:
        return f"{title}: {len(facts['classes'])} classes, not measured."
    return f"{title}: {wording.percent(accuracy['value'])} of {split} images of {len(facts['classes'])} classes rightly named."


def _reasons(facts: Facts) -> list[str]:
    """Why figures of the last split are not there."""
    last = facts.get("test") or facts["validation"]
    return [f"{FIGURES[name]}: {last['figures'][name]['why']}" for name in FIGURES if last["figures"][name]["value"] is None]


def _chances_in_words(facts: Facts) -> str:
    if facts["calibration_note"]:
        return f"Probabilities are not calibrated: {facts['calibration_note']}."
    return f"Probabilities are calibrated by a temperature of {facts['temperature']:.3g}, on training images by folds of groups."


def _cell(row: Facts) -> tuple[str, tuple[str, str] | None]:
    ends = row["interval"]
    return wording.percent(row["value"]), None if ends is None else (wording.percent(ends[0]), wording.percent(ends[1]))


def _in_words(row: Facts) -> str:
    value, ends = _cell(row)
    return value if ends is None else f"{value} ({ends[0]} to {ends[1]})"


def _name(name: str) -> str:
    return wording.shortened(name, _LONGEST_NAME)


def _counts(counts: Mapping[str, int]) -> str:
    told = [f"{_name(name)} {n:,}" for name, n in list(counts.items())[:_MOST_IN_LINE]]
    return ", ".join([*told, *([f"{len(counts) - len(told):,} more"] if len(counts) > len(told) else [])])
