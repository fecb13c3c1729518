"""Labelled tables of a test's own rows, as an index keeps them."""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from ray_app.archives import ListedMember, image_id
from ray_app.archives.manifest import cut_rows, listed_rows, manifest_schema
from ray_app.datasets.labels import INPUT


def labelled(rows: list[dict], chunk: int | None = None) -> pa.Table:
    """One row for each: the fields of INPUT, and `item`, the listed member, or `uri`, a file.
    `chunk`: rows of one piece of memory.
    """
    items = [
        row.get("item")
        or ListedMember(str(row.get("uri", f"/nowhere/{number}.png")), None, 0, "", -1)
        for number, row in enumerate(rows)
    ]
    items = [replace(item, input={}) for item in items]
    table = cut_rows(
        listed_rows(np.array([image_id(item) for item in items], np.int64), items),
        0,
        manifest_schema(None),
    )
    inputs = pa.array([{name: row.get(name) for name in INPUT.names} for row in rows], INPUT)
    table = table.append_column(pa.field("input", INPUT), inputs)
    return pa.Table.from_batches(table.to_batches(max_chunksize=chunk), table.schema)


def mixture(**counts: int) -> list[dict]:
    """So many rows of each generator; those whose name begins with `real` are real."""
    return [
        {"label": "real" if name.startswith("real") else "fake", "generator": name}
        for name, count in counts.items()
        for _ in range(count)
    ]
