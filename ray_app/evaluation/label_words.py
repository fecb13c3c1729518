"""What an audit of labels found, in sentences. Knows its document; computes no figure."""

from collections.abc import Iterator, Mapping
from typing import Any

from ray_app.evaluation.label_features import FEATURES
from ray_app.metrics.class_differences import Difference
from ray_app.reports.wording import counted

_CANNOT = (
    "A doubted label is not a wrong one: hard images, new generators and images of a kind that is rare here are doubted too. Look at them.",
    "A wrong label that most images of its kind share is not doubted, because the classifier has learnt it.",
)
_PRESENT = {
    "present": {"icc": "have a colour profile", "camera": "name a camera in EXIF", "origin": "say where they come from"},
    "none": {"icc": "have no colour profile", "camera": "name no camera in EXIF", "origin": "do not say where they come from"},
}


def difference_text(one: Difference, fakes: str = "the fakes") -> str:
    """A difference as a sentence, the class that has more of it first."""
    what, unit = FEATURES[one.name]
    if not isinstance(one.value, str):
        said = f"have a {what} of at most {_number(one.value)}{' ' + unit if unit else ''}"
    elif one.name == "format":
        said = f"are {one.value}"
    else:
        said = _PRESENT.get(one.value, {}).get(one.name) or f"have {one.value} as {what}"
    sides = sorted([(one.fake, fakes), (one.real, "the real images")], key=lambda side: -side[0])
    (more, first), (less, second) = sides
    share = f"All {first.removeprefix('the ')}" if more == 1 and not first.startswith("those") else f"{_percent(more)} of {first}"
    return f"{share} {said}, and {'none' if less == 0 else _percent(less)} of {second}."


def headline(document: Mapping[str, Any]) -> str:
    """What stands first, in one sentence."""
    twice, found = _values(document, "bytes"), document["suspicious"]
    strong = [str(one["text"]) for one in document["differences"] if one["strength"] == "strong"]
    if twice:
        return f"{counted(twice, 'file')} stand{'s' if twice == 1 else ''} under both labels."
    if strong:
        return strong[0]
    if document["shortcut"]["confounded"]:
        return f"Metadata alone tell the classes apart, with an AUC of {document['shortcut']['auc']['value']:.2f}."
    doubted = sum(found["count"].values()) if found and not found["why"] else 0
    if found and doubted > 0.01 * found["n"]:
        return f"{counted(doubted, 'label')} of {found['n']:,} are worth a second look."
    return "Nothing alarming in what could be looked at."


def remarks_on(document: Mapping[str, Any]) -> list[str]:
    """What the audit cannot say, in sentences."""
    return [*document["warnings"], *_on_facts(document), *_on_suspects(document)]


def _on_facts(document: Mapping[str, Any]) -> Iterator[str]:
    if "width" not in document["known"]:
        yield (
            "Formats, sizes and qualities are not known: --read reads them from the files, and a run of touchstone score has them "
            "(touchstone labels RUN --labels INDEX)."
        )
    known = {one["kind"]: one["known"] for one in document["conflicts"]}
    missing = [word for kind, word in (("bytes", "sha256"), ("looks", "perceptual hash")) if not known[kind]]
    if missing:
        by = "it" if len(missing) == 1 else "them"
        yield f"Images have no {' and no '.join(missing)}, so that pictures under both labels could not be looked for by {by}."
    if document["shortcut"]["confounded"]:
        yield (
            "Where files tell the classes apart, a detector that is trained or measured here may read files: compress both classes alike, "
            "or compare within one format and size."
        )


def _on_suspects(document: Mapping[str, Any]) -> Iterator[str]:
    found = document["suspicious"]
    if found is None:
        yield "No label was doubted: that takes a run (touchstone score … --features NAME, then touchstone labels RUN --labels INDEX)."
        return
    if found["why"]:
        yield f"No label was doubted: {found['why']}."
        return
    yield from _CANNOT
    if found["source"].startswith("the scores"):
        yield "Doubts rest on the scores of detectors: one that was trained on these very images has learnt their labels and doubts none."
    if document["shortcut"]["confounded"]:
        yield "Since files tell the classes apart, an image may be doubted for its format or size alone."
    if found["left_out"]:
        yield f"{found['left_out']:,} labelled images were not looked at for doubts (a sample, or no features of them)."


def _values(document: Mapping[str, Any], kind: str) -> int:
    return next((int(one["values"]) for one in document["conflicts"] if one["kind"] == kind), 0)


def _percent(share: float) -> str:
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{share:.0%}".replace("%", " %")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
