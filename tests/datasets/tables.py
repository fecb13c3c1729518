"""Labelled tables of a test's own rows, as an index keeps them."""

import numpy as np
import pyarrow as pa

from ray_app.archives import Listed, Place, image_id
from ray_app.archives.rows import cut_rows, listed_rows, manifest_schema
from ray_app.datasets.labels import INPUT


def labelled(rows: list[dict], chunk: int | None = None) -> pa.Table:
    """One row for each; `uri` and what is not a field of INPUT say where the image is. `chunk`: rows of one piece of memory."""
    items = [_listed(number, row) for number, row in enumerate(rows)]
    table = cut_rows(listed_rows(np.array([image_id(item) for item in items]), items), 0, manifest_schema(None))
    inputs = pa.array([{name: row.get(name) for name in INPUT.names} for row in rows], INPUT)
    table = table.append_column(pa.field("input", INPUT), inputs)
    return pa.Table.from_batches(table.to_batches(max_chunksize=chunk)) if chunk else table


def _listed(number: int, row: dict) -> Listed:
    place: Place | None = row.get("place")
    uri = str(row.get("uri", f"/nowhere/{number}.png"))
    return Listed(uri, row.get("member"), 0, "", -1, place=place)


def mixture(**counts: int) -> list[dict]:
    """So many rows of each generator; those whose name begins with `real` are real."""
    return [
        {"label": "real" if name.startswith("real") else "fake", "generator": name} for name, count in counts.items() for _ in range(count)
    ]
