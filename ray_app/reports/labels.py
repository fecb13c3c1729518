"""An audit of labels → one HTML page that loads nothing and runs nothing (`render_labels`), and a few lines (`labels_lines`).

Every text in the document of `touchstone labels` is taken for hostile.
"""

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from ray_app.reports import format as wording
from ray_app.reports.html import jpeg_uri, render
from ray_app.reports.text import table

_LINES = 110
_MOST_DIFFERENCES = 5
_MOST_SUSPECTS = 10
_LONGEST_NAME = 48


def render_labels(document: Mapping[str, Any], pictures: Mapping[int, str]) -> str:
    """The page. `pictures`: JPEG bytes in base64 by image id."""
    shown = {image_id: jpeg_uri(base64.b64decode(data)) for image_id, data in pictures.items()}
    suspicious = document["suspicious"]
    return render(
        "labels.html",
        document=document,
        suspicious=suspicious,
        images=[(one, shown.get(one["image_id"])) for one in (suspicious or {}).get("images", ())],
        conflicts=[one for one in document["conflicts"] if one["values"]],
        unknown=[one["what"] for one in document["conflicts"] if not one["known"]],
        picture=lambda image_id: shown.get(image_id),
        differing=[one for one in document["differences"] if one["strength"] != "none"],
        alike=[one for one in document["differences"] if one["strength"] == "none"],
        auc=_auc(document["shortcut"]["auc"]),
        suspects_auc=_auc((suspicious or {}).get("auc")),
    )


def labels_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The audit in words, for the terminal."""
    return map(wording.visible, _lines(document))


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    yield document["headline"]
    yield f"{document['n_fake']:,} fakes and {document['n_real']:,} real images; metadata alone: {_auc(document['shortcut']['auc'])}"
    for one in [one for one in document["differences"] if one["strength"] != "none"][:_MOST_DIFFERENCES]:
        yield f"  {one['strength']:8} {one['effect']:.2f}  {one['text']}"
    for one in document["conflicts"]:
        if one["values"]:
            yield f"under both labels: {one['images']:,} images by {one['what']}"
    yield from _suspects(document["suspicious"])
    yield from (f"note: {one}" for one in document["remarks"])


def _suspects(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None or found["why"]:
        return
    count = found["count"]["real"] + found["count"]["fake"]
    yield f"doubted: {count:,} of {found['n']:,} labels, by {found['source']} ({_auc(found['auc'])})"
    rows = [[wording.shortened(wording.file_name(one["uri"], one["member"]), _LONGEST_NAME), one["label"], one["likely_label"],
             f"{one['confidence']:.3f}"] for one in found["images"][:_MOST_SUSPECTS]]  # fmt: skip
    if rows:
        yield from table(["image", "label", "likely", "confidence"], rows, _LINES, right={3})


def _auc(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return wording.NONE
    if figure["value"] is None:
        return f"not defined, {figure['why']}"
    low, high = figure["interval"]
    return f"AUC {figure['value']:.3f} ({low:.3f} to {high:.3f})"
