"""Masks as rows of PNG bytes, and back. Knows no detector."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ray_app.inference import Scored
from ray_app.inference.batches import Pixels
from ray_app.runs.schema import MASK_COLUMNS, MASK_SCHEMA, VIEWED_MASK_SCHEMA

ALTERED = 128  # the first grey level above one half


def mask_rows(image_ids: pa.ChunkedArray, scored: Scored) -> pa.Table:
    """The masks of some members as 8-bit PNG at the network's own size; `width` and `height` are the image's, for stretching it back.

    Where there are views, those that leave everything in its place have rows too, and a column `view` says which it is.
    """
    readings = scored.readings
    seen = [(None, readings.masks), *readings.view_masks.items()]
    rows = [
        {"image_id": image_id, "detector": name, "width": outcome.facts and outcome.facts.width,
         "height": outcome.facts and outcome.facts.height, "png": mask_png(mask), "view": view}
        for view, drawn in seen
        for name, masks in drawn.items()
        for image_id, outcome, mask in zip(image_ids.to_pylist(), scored.outcomes, masks, strict=True)
        if mask is not None
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, VIEWED_MASK_SCHEMA if readings.views else MASK_SCHEMA)


def mask_measures(masks: Mapping[str, Sequence[Pixels | None]]) -> dict[str, list[np.ndarray]]:
    """Per column and localizer, one number per member; NaN where there is no mask."""
    area = [np.array([np.nan if mask is None else mask_area(mask) for mask in column], np.float32) for column in masks.values()]
    peak = [np.array([np.nan if mask is None else mask.max() / 255 for mask in column], np.float32) for column in masks.values()]
    return dict(zip(MASK_COLUMNS, (area, peak), strict=True)) if masks else {}


def mask_image(row: Mapping[str, Any], *, stretched: bool) -> tuple[Image.Image, float]:
    """The mask of one row of `masks/` as a grey image, bilinearly stretched to the scored image's size if asked, and its area."""
    image = Image.open(io.BytesIO(row["png"]))
    area = mask_area(np.asarray(image))
    return (image.resize((row["width"], row["height"]), Image.Resampling.BILINEAR) if stretched and row["width"] else image), area


def mask_area(mask: Pixels) -> float:
    """Share of a mask's pixels above one half."""
    return float(np.mean(mask >= ALTERED))


def mask_png(mask: Pixels) -> bytes:
    """A mask as an 8-bit grey PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
