"""Results as pieces of HTML for notebooks: `card` of one, `cards` of the first of many.
Self-contained: styles stand in the elements, the picture is a small JPEG in a data URI, and
whatever a file name or an error says is escaped.
"""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ray_app.errors import VERDICT_WORDS, InputError, Reason, Status, one_line
from ray_app.images import BatchLimits, colour, decode_image
from ray_app.inference import image_inputs

SIDE_PX, SMALL_PX = 240, 96
# read on light and on dark alike
_COLOURS = {"fake": "#c2452a", "abstain": "#a27000", "real": "#467da6"}
_BOX = "display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start;margin:4px 0 12px;font:14px/1.45 system-ui,sans-serif"
_TRACK = "display:block;width:160px;height:10px;border-radius:5px;overflow:hidden;background:rgba(127,127,127,.25)"
_BAR = "#6f8796"  # of no verdict's colour: one detector decides nothing
_NUMBER = "text-align:right;font-variant-numeric:tabular-nums"
_MOST_CHARACTERS = 120
_DEMONSTRATION = (
    '<div style="opacity:.75">A demonstration: not for decisions about any image.</div>'
)


def card(
    row: Mapping[str, Any], picture: Any, *, demonstration: bool = False, side: int = SIDE_PX
) -> str:
    """One result (`Result.to_dict`) with its picture, no side above `side` pixels, and a bar per
    detector.

    `picture`: as `ImageSource.picture` has it; what cannot be read any more is left out.
    """
    jpeg = None if picture is None or row["status"] != Status.OK else thumbnail(picture, side)
    name = _text(
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
    lines = [f'<div style="overflow-wrap:anywhere;opacity:.75">{name}</div>', _verdict(row)]
    lines += [f'<div style="max-width:460px">{_text(why)}</div>'] if (why := _reason(row)) else []
    lines += [_bars(row["scores"])] if row["status"] == Status.OK else []
    lines += [_DEMONSTRATION] if demonstration and row["status"] == Status.OK else []
    return f'<div style="{_BOX}">{image}<div style="flex:1 1 300px;min-width:0">{"".join(lines)}</div></div>'


def cards(
    results: Sequence[tuple[Mapping[str, Any], Any, bool]], taken: int, count: int | None
) -> str:
    """The next of many results, small: (row, picture, whether it is a demonstration) of each;
    `taken` were read before, of `count`.
    """
    left = "" if count is None else f" of {count:,}"
    head = (
        f"Results {taken + 1:,} to {taken + len(results):,}{left}"
        if results
        else f"No more results: {taken:,} were taken"
    )
    foot = (
        ". They are scored as they are read: for result in results, or results.to_frame()."
        if results
        else "."
    )
    shown = "".join(card(row, picture, side=SMALL_PX) for row, picture, _ in results)
    note = _DEMONSTRATION if any(demonstration for _, _, demonstration in results) else ""
    return f'<div style="font:14px/1.45 system-ui,sans-serif"><div>{head}{foot}</div>{note}</div>{shown}'


def thumbnail(picture: Any, side: int) -> bytes | None:
    """JPEG bytes, no side above `side` pixels, without metadata; None where it cannot be read any
    more.
    """
    limits = BatchLimits()
    try:
        found = image_inputs.loaded_picture(picture, limits.max_bytes)
        pixels = (
            decode_image(found, limits).pixels
            if isinstance(found, bytes)
            else colour.to_rgb(found, set(), 8)
        )
    except (InputError, OSError, ValueError):
        return None
    small = ImageOps.contain(pixels, (side, side)) if max(pixels.size) > side else pixels
    stream = io.BytesIO()
    # from pixels alone: nothing else goes along
    Image.fromarray(np.asarray(small)).save(stream, "JPEG", quality=80)
    return stream.getvalue()


def _verdict(row: Mapping[str, Any]) -> str:
    if row["status"] != Status.OK:
        return f"<div><b>not scored</b> · {_text(row['status'])}</div>"
    kind, probability = row["verdict"], row["probability"]
    said = f'<b style="color:{_COLOURS.get(kind, "inherit")}">{_text(VERDICT_WORDS.get(kind, kind))}</b>'
    if probability is None:
        return f"<div>{said}</div>"
    calibrated = "" if row["calibrated"] else " (not calibrated)"
    return f"<div>{said} · probability of fake {_percent(probability)}{calibrated}</div>"


def _reason(row: Mapping[str, Any]) -> str:
    """Why there is no score or no verdict; empty where there are both."""
    if row["status"] != Status.OK:
        return row["detail"] or (
            Status(row["status"]).meaning if row["status"] in set(Status) else ""
        )
    reason = row.get("verdict_reason")
    said = [Reason(reason).meaning if reason in set(Reason) else reason, row.get("verdict_detail")]
    return ": ".join(filter(None, said))


def _bars(scores: Mapping[str, float | None]) -> str:
    """Of each detector a bar, as long as its own score is probable of fake, and the score in
    log-odds.
    """
    rows = []
    for name, score in scores.items():
        share = 0.0 if score is None else 100 / (1 + math.exp(-max(-60.0, min(60.0, score))))
        bar = (
            f'<span style="display:block;width:{share:.1f}%;height:10px;background:{_BAR}"></span>'
        )
        number = "no score" if score is None else f"{score:+.2f}".replace("-", "−")
        label = f'<td style="text-align:left">{_text(name)}</td>'
        rows.append(
            f'<tr>{label}<td><span style="{_TRACK}">{bar}</span></td><td style="{_NUMBER}">{number}</td></tr>'
        )
    return f'<table style="margin:6px 0;border:0;font:inherit" title="score of each detector: log-odds of fake">{"".join(rows)}</table>'


def _percent(share: float) -> str:
    return (
        "over 99.9 %"
        if share > 0.999
        else "under 0.1 %"
        if share < 0.001
        else f"{100 * share:.1f} %"
    )


def _text(value: Any) -> str:
    """Text that cannot leave its element, nor hide or turn what stands around it."""
    said = one_line(str(value))
    return html.escape(
        said if len(said) <= _MOST_CHARACTERS else f"…{said[1 - _MOST_CHARACTERS :]}"
    )
