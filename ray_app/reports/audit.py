"""Render the page of an audit (`render_audit`), and format its results (`audit_lines`).

An audit (`touchstone runs audit`) estimates the error rates of a run from a sample of its images
that a person labels. The person looks at the images on the page. The page shows neither scores nor
verdicts, so that they do not influence the labels. It has no scripts and loads nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_app.metrics.values import MetricValue
from ray_app.reports import format as wording
from ray_app.reports import text
from ray_app.reports.html import jpeg_uri, render

_TITLES = {
    "prevalence": "prevalence: fraction of fakes",
    "precision": "precision: fakes among flagged images",
    "recall": "recall: flagged images among fakes",
    "false_positive_rate": "false-positive rate: flagged images among reals",
}


def render_audit(
    facts: Mapping[str, Any], images: Sequence[Mapping[str, Any]], pictures: Mapping[int, bytes]
) -> str:
    """Render the HTML page that shows the images of an audit to the person who labels them.

    Args:
        facts: The content of `audit.json`, which describes the sample.
        images: `image_id`, `uri`, and `member` of each image, in the order of sample.csv. `member`
            is the path in a container, such as a tar file, or None.
        pictures: JPEG bytes by `image_id`, for the images that could be read.

    Returns:
        The page as HTML.
    """
    uris = {image_id: jpeg_uri(data) for image_id, data in pictures.items()}
    return render("audit.html", facts=facts, images=images, shown=uris)


def audit_lines(document: Mapping[str, Any], width: int) -> list[str]:
    """Return the results of an audit as lines for the terminal.

    The lines show the estimated rates, such as precision and recall. A table has a line for each
    stratum, a group of images from which the sample was drawn. It has the numbers of all images, of
    labelled images, and of fakes in the stratum.

    Args:
        document: The content of `result.json` in the folder of the audit.
        width: Maximum width of the lines in columns, unless a word is longer.

    Returns:
        The lines.
    """
    lines = text.paragraph(
        f"{document['labelled']:,} of {document['drawn']:,} drawn images labelled, of {document['scored']:,} with a verdict "
        f"(ensemble {wording.escape_invisible(str(document['audit']['ensemble'] or wording.NONE))})", width
    )  # fmt: skip
    rows = [
        [title, *_format_metric(MetricValue(**document["figures"][name]))]
        for name, title in _TITLES.items()
    ]
    lines += ["", *text.table(["", "", "95 % interval"], rows, width, right={1}), ""]
    headers = ["stratum", "images", "labelled", "fake", *(["unsure"] if document["unsure"] else [])]
    rows = [
        [stratum["name"], f"{stratum['size']:,}", f"{stratum['fakes'] + stratum['reals']:,}", f"{stratum['fakes']:,}",
         *([f"{stratum['unsure']:,}"] if document["unsure"] else [])]
        for stratum in document["strata"]
    ]  # fmt: skip
    lines += text.table(headers, rows, width, right={1, 2, 3, 4})
    for finding in document["findings"]:
        lines += text.paragraph(wording.escape_invisible(finding), width)
    for note in document["notes"]:
        lines += text.paragraph(f"! {wording.escape_invisible(note)}", width)
    return lines


def _format_metric(metric: MetricValue) -> list[str]:
    if metric.value is None:
        return [wording.NONE, f"not available: {metric.why}"]
    bounds = metric.interval or (metric.value, metric.value)
    return [wording.percent(metric.value), wording.interval(bounds, wording.percent)]
