"""Labelled rows → the columns by which files could be told apart without looking at a picture. Knows facts; judges nothing."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.runs.reader import numbers

FEATURES: Mapping[str, tuple[str, str]] = {
    "format": ("format", ""),
    "ending": ("file ending", ""),
    "mode": ("colour mode", ""),
    "subsampling": ("colour subsampling", ""),
    "icc": ("colour profile", ""),
    "camera": ("camera in EXIF", ""),
    "origin": ("statement of origin", ""),
    "orientation": ("EXIF orientation", ""),
    "quality": ("JPEG quality", ""),
    "megapixels": ("size", "MP"),
    "width": ("width", "px"),
    "height": ("height", "px"),
    "aspect": ("width to height", ""),
    "size_bytes": ("file size", "bytes"),
    "density": ("bytes per pixel", ""),
}
"""The columns, what people call each, and its unit; of differences alike the first is told."""
_TRUTHS = {"icc": ("none", "present"), "camera": ("none", "present"), "origin": ("none", "present")}


def features_of(rows: pa.Table) -> dict[str, NDArray[Any]]:
    """Those of FEATURES that are known of any row, (n,) each: float64 with NaN, or texts with None."""
    width, height, size = (numbers(rows[name]) for name in ("width", "height", "size_bytes"))
    with np.errstate(divide="ignore", invalid="ignore"):
        made = {
            "megapixels": np.round(width * height / 1e6, 3),
            "aspect": np.round(width / height, 3),
            "density": size * 1.0 / (width * height),
        }
    made |= {"width": width, "height": height, "size_bytes": size, "quality": numbers(rows["quality"])}
    texts = {name: _texts(rows, name) for name in ("format", "mode", "subsampling", "orientation", *_TRUTHS)}
    if rows["format"].null_count == len(rows):
        texts["ending"] = _endings(rows)
    found = {name: (made | texts).get(name) for name in FEATURES}
    return {name: column for name, column in found.items() if column is not None and _is_known(column)}


def _texts(rows: pa.Table, name: str) -> NDArray[Any]:
    column = rows[name]
    if name in _TRUTHS:
        none, present = _TRUTHS[name]
        column = pc.if_else(column, present, none)
    return np.array(column.cast(pa.string()).to_pylist(), dtype=object)


def _endings(rows: pa.Table) -> NDArray[Any]:
    """The endings of files' names, where formats are not known."""
    names = pc.coalesce(rows["member"], rows["uri"])
    found = pc.struct_field(pc.extract_regex(names, r"\.(?P<ending>[A-Za-z0-9]{1,5})$"), "ending")
    return np.array(pc.utf8_lower(found).to_pylist(), dtype=object)


def _is_known(column: NDArray[Any]) -> bool:
    return bool(any(value is not None for value in column)) if column.dtype == object else bool(np.isfinite(column).any())
