"""An index of a test's own rows, written without a source."""

import json
from collections import Counter
from dataclasses import asdict

from ray_app.archives import BlockPlan
from ray_app.archives.build import write_selected
from ray_app.datasets.index import IndexInfo
from ray_app.datasets.labels import INPUT
from ray_app.storage import Store
from tests.datasets.tables import labelled

PLAN = BlockPlan(batch_slots=1, max_block_members=64, blocks_per_doubling=1)


def made_index(folder, rows):
    """The folder, as text; blocks of 64 rows."""
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
