"""A sample of images → one HTML page that shows them to a person who labels them (`render_audit`),
and an audit's answer in lines (`audit_lines`).

The page shows no score and no verdict, so that nobody is led by them. It runs no script and loads
nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_app.metrics.values import MetricValue
from ray_app.reports import format as wording
from ray_app.reports import text
from ray_app.reports.html import jpeg_uri, render

_WORDS = {
    "prevalence": "prevalence: the share of fakes",
    "precision": "precision: fakes among what is flagged",
    "recall": "recall: flagged among the fakes",
    "false_positive_rate": "false-positive rate: flagged among the reals",
}


def render_audit(
    facts: Mapping[str, Any], images: Sequence[Mapping[str, Any]], pictures: Mapping[int, bytes]
) -> str:
    """The page. `facts`: the content of `audit.json`; `images`: `image_id`, `uri` and `member` of
    each, in the order of sample.csv, and JPEGs of them by id, of those that could be read. Every
    text is taken for hostile.
    """
    shown = {image_id: jpeg_uri(data) for image_id, data in pictures.items()}
    return render("audit.html", facts=facts, images=images, shown=shown)


def audit_lines(document: Mapping[str, Any], width: int) -> list[str]:
    """An audit's answer for the terminal, in at most `width` columns but for words that are longer."""
    lines = text.paragraph(
        f"{document['labelled']:,} of {document['drawn']:,} drawn images labelled, of {document['scored']:,} with a verdict "
        f"(ensemble {wording.visible(str(document['audit']['ensemble'] or wording.NONE))})", width
    )  # fmt: skip
    rows = [
        [words, *_stated(MetricValue(**document["figures"][name]))]
        for name, words in _WORDS.items()
    ]
    lines += ["", *text.table(["", "", "95 % interval"], rows, width, right={1}), ""]
    heads = ["stratum", "images", "labelled", "fake", *(["unsure"] if document["unsure"] else [])]
    rows = [
        [one["name"], f"{one['size']:,}", f"{one['fakes'] + one['reals']:,}", f"{one['fakes']:,}",
         *([f"{one['unsure']:,}"] if document["unsure"] else [])]
        for one in document["strata"]
    ]  # fmt: skip
    lines += text.table(heads, rows, width, right={1, 2, 3, 4})
    for finding in document["findings"]:
        lines += text.paragraph(wording.visible(finding), width)
    for note in document["notes"]:
        lines += text.paragraph(f"! {wording.visible(note)}", width)
    return lines


def _stated(figure: MetricValue) -> list[str]:
    if figure.value is None:
        return [wording.NONE, f"cannot be said: {figure.why}"]
    ends = figure.interval or (figure.value, figure.value)
    return [wording.percent(figure.value), wording.interval(ends, wording.percent)]
