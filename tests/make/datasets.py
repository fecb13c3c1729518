"""Labelled tables and indexes of a test's own rows."""

import json
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa

from ray_app.archives import BlockPlan, ListedMember, image_id
from ray_app.archives.build import write_selected
from ray_app.archives.manifest import cut_rows, listed_rows, manifest_schema
from ray_app.datasets.index import IndexInfo
from ray_app.datasets.labels import INPUT
from ray_app.storage import Store

PLAN = BlockPlan(batch_slots=1, max_block_members=64, blocks_per_doubling=1)


def labelled(rows: list[dict], chunk: int | None = None) -> pa.Table:
    """Return a table with a row for each of `rows`, which have the fields of INPUT, and `item`, the
    listed member, or `uri`, a file. `chunk`: rows per chunk of the table.
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
    """Return this number of rows of each generator; those whose name begins with `real` are real."""
    return [
        {"label": "real" if name.startswith("real") else "fake", "generator": name}
        for name, count in counts.items()
        for _ in range(count)
    ]


def made_index(folder, rows):
    """Write an index of these rows in blocks of 64, without a source; return its folder as text."""
    store = Store.open(str(folder))
    written = write_selected(store, [labelled(rows)], PLAN, INPUT)
    counts = Counter((row.get("split"), row["label"], row.get("generator") or "") for row in rows)
    told = [
        {"split": split, "label": label, "generator": maker, "rows": count}
        for (split, label, maker), count in counts.items()
    ]
    info = IndexInfo(
        {"at": [str(folder)]}, "columns", [], written.members, "0" * 64, told, [], [], [], 0
    )
    store.write("index.json", json.dumps(asdict(info)).encode())
    return str(folder)
