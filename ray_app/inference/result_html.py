"""Render results as HTML for notebooks: one result (`card`), or the next ones of many (`cards`).

The HTML is self-contained: styles are inline, the image is a small JPEG in a data URI, and all text
from file names and errors is escaped.
"""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ray_app.errors import VERDICT_PHRASES, InputError, Reason, Status, one_line
from ray_app.images import BatchLimits, colour, decode_image
from ray_app.inference import image_inputs

SIDE_PX, SMALL_PX = 240, 96
# These colours are legible on a light and on a dark background.
_COLOURS = {"fake": "#c2452a", "abstain": "#a27000", "real": "#467da6"}
_BOX = "display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start;margin:4px 0 12px;font:14px/1.45 system-ui,sans-serif"
_TRACK = "display:block;width:160px;height:10px;border-radius:5px;overflow:hidden;background:rgba(127,127,127,.25)"
_BAR = "#6f8796"  # Not the colour of a verdict, since one detector decides nothing.
_NUMBER = "text-align:right;font-variant-numeric:tabular-nums"
_MAX_CHARACTERS = 120
_DEMONSTRATION = (
    '<div style="opacity:.75">A demonstration: not for decisions about any image.</div>'
)


def card(
    row: Mapping[str, Any], picture: Any, *, demonstration: bool = False, side: int = SIDE_PX
) -> str:
    """Render one result as HTML, with its image and a bar for the score of each detector.

    Args:
        row: The result, as `Result.to_dict` returns it.
        picture: The image, as in `ImageSource.picture`. The HTML has no image if it can no longer
            be read.
        demonstration: Whether to add the note that the result must not be used for decisions. It is
            for ensembles with a detector that is only for demonstrations.
        side: Maximum width and height of the image in pixels.

    Returns:
        The HTML.
    """
    jpeg = None if picture is None or row["status"] != Status.OK else thumbnail(picture, side)
    name = _escape(
        "the image"
        if row["source"] is None
        else f"image {row['source']}"
        if isinstance(row["source"], int)
        else row["source"]
    )
    encoded = base64.b64encode(jpeg or b"").decode()
    image = (
        f'<img src="data:image/jpeg;base64,{encoded}" alt="{name}" style="max-width:{side}px;border-radius:4px">'
        if jpeg
        else ""
    )
    lines = [f'<div style="overflow-wrap:anywhere;opacity:.75">{name}</div>', _render_verdict(row)]
    lines += (
        [f'<div style="max-width:460px">{_escape(reason)}</div>']
        if (reason := _get_reason(row))
        else []
    )
    lines += [_render_bars(row["scores"])] if row["status"] == Status.OK else []
    lines += [_DEMONSTRATION] if demonstration and row["status"] == Status.OK else []
    return f'<div style="{_BOX}">{image}<div style="flex:1 1 300px;min-width:0">{"".join(lines)}</div></div>'


def cards(
    results: Sequence[tuple[Mapping[str, Any], Any, bool]], n_read: int, count: int | None
) -> str:
    """Render the next unread results of a `Results` iterator as HTML, with small images.

    A notebook calls this to display the iterator. The displayed results still count as unread.

    Args:
        results: For each result to render, its row, its image, and whether its ensemble has a
            detector that is only for demonstrations.
        n_read: The number of results that were read before `results`.
        count: The number of all images. None if the number is unknown.

    Returns:
        The HTML.
    """
    total = "" if count is None else f" of {count:,}"
    header = (
        f"Results {n_read + 1:,} to {n_read + len(results):,}{total}"
        if results
        else f"No more results: {n_read:,} were read"
    )
    footer = (
        ". They are scored as they are read: for result in results, or results.to_frame()."
        if results
        else "."
    )
    rendered = "".join(card(row, picture, side=SMALL_PX) for row, picture, _ in results)
    note = _DEMONSTRATION if any(demonstration for _, _, demonstration in results) else ""
    return f'<div style="font:14px/1.45 system-ui,sans-serif"><div>{header}{footer}</div>{note}</div>{rendered}'


def thumbnail(picture: Any, side: int) -> bytes | None:
    """Return a small copy of an image as JPEG without metadata.

    Args:
        picture: The image, as in `ImageSource.picture`.
        side: Maximum length of the longer side in pixels.

    Returns:
        The JPEG. None if the image can no longer be read.
    """
    limits = BatchLimits()
    try:
        image = image_inputs.load_picture(picture, limits.max_bytes)
        pixels = (
            decode_image(image, limits).pixels
            if isinstance(image, bytes)
            else colour.to_rgb(image, set(), 8)
        )
    except (InputError, OSError, ValueError):
        return None
    small = ImageOps.contain(pixels, (side, side)) if max(pixels.size) > side else pixels
    stream = io.BytesIO()
    # An image made from pixels alone has no metadata.
    Image.fromarray(np.asarray(small)).save(stream, "JPEG", quality=80)
    return stream.getvalue()


def _render_verdict(row: Mapping[str, Any]) -> str:
    if row["status"] != Status.OK:
        return f"<div><b>not scored</b> · {_escape(row['status'])}</div>"
    kind, probability = row["verdict"], row["probability"]
    label = f'<b style="color:{_COLOURS.get(kind, "inherit")}">{_escape(VERDICT_PHRASES.get(kind, kind))}</b>'
    if probability is None:
        return f"<div>{label}</div>"
    calibrated = "" if row["calibrated"] else " (not calibrated)"
    return f"<div>{label} · probability of fake {_format_percent(probability)}{calibrated}</div>"


def _get_reason(row: Mapping[str, Any]) -> str:
    """Return why there is no score or no verdict. Empty if there are both."""
    if row["status"] != Status.OK:
        return row["detail"] or (
            Status(row["status"]).meaning if row["status"] in set(Status) else ""
        )
    reason = row.get("verdict_reason")
    parts = [Reason(reason).meaning if reason in set(Reason) else reason, row.get("verdict_detail")]
    return ": ".join(filter(None, parts))


def _render_bars(scores: Mapping[str, float | None]) -> str:
    """Render a table with one row per detector: its score, and a bar for its P(fake)."""
    rows = []
    for name, score in scores.items():
        percentage = 0.0 if score is None else 100 / (1 + math.exp(-max(-60.0, min(60.0, score))))
        bar = f'<span style="display:block;width:{percentage:.1f}%;height:10px;background:{_BAR}"></span>'
        score_text = "no score" if score is None else f"{score:+.2f}".replace("-", "−")
        label = f'<td style="text-align:left">{_escape(name)}</td>'
        rows.append(
            f'<tr>{label}<td><span style="{_TRACK}">{bar}</span></td><td style="{_NUMBER}">{score_text}</td></tr>'
        )
    return f'<table style="margin:6px 0;border:0;font:inherit" title="score of each detector: log-odds of fake">{"".join(rows)}</table>'


def _format_percent(fraction: float) -> str:
    return (
        "over 99.9 %"
        if fraction > 0.999
        else "under 0.1 %"
        if fraction < 0.001
        else f"{100 * fraction:.1f} %"
    )


def _escape(value: Any) -> str:
    """Escape text so that it cannot leave its element, nor hide or reorder the text around it."""
    text = one_line(str(value))
    return html.escape(text if len(text) <= _MAX_CHARACTERS else f"…{text[1 - _MAX_CHARACTERS :]}")
