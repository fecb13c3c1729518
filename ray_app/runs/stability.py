"""Scores of recompressed views as a column of result rows, and back. Knows no detector and no threshold."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.inference import Scores


def stability_column(views: Sequence[Scores], kind: pa.ListType, has_score: npt.NDArray[np.bool_]) -> pa.ListArray:
    """A list of one struct per view and row, of `kind`; null where a row has no score, or no view of it has any.

    `views`: per view one column of scores per detector, of all rows.
    """
    asked = has_score & np.any([np.isfinite(column) for view in views for column in view.values()], axis=0)
    columns = [np.stack([view[name] for view in views], axis=1)[asked].ravel() for name in views[0]]
    children = [pa.array(column, pa.float32(), mask=~np.isfinite(column)) for column in columns]
    values = pa.StructArray.from_arrays(children, fields=list(kind.value_type))
    offsets = np.concatenate([[0], np.cumsum(asked) * len(views)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind, mask=pa.array(~asked))


def stability_views(column: pa.ChunkedArray, detectors: Iterable[str]) -> list[Scores]:
    """What `stability_column` was given, of these detectors, in their order: NaN where there was nothing. No view, no entry."""
    asked = column.is_valid().to_numpy()
    values = pc.list_flatten(column.combine_chunks())
    count = len(values) // asked.sum() if asked.any() else 0
    views: list[Scores] = [{} for _ in range(count)]
    for name in detectors if count else ():
        table = pc.struct_field(values, name).to_numpy(zero_copy_only=False).reshape(-1, count)
        for number, view in enumerate(views):
            view[name] = np.full(len(asked), np.nan, np.float32)
            view[name][asked] = table[:, number]
    return views
