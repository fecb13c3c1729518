"""The ids of a run in its database (`IdTable`)."""

import numpy as np
import pyarrow as pa

from ray_app.archives.dedup import IdTable
from ray_app.archives.manifest import to_parquet_bytes
from ray_app.archives.members import identity_digest
from ray_app.archives.raw_listing import RawFile
from ray_app.storage import Store


def write_raw_file(rng, rows):
    """Return the description of so many listed members with random ids."""
    ids, words = rng.integers(-(2**63), 2**63 - 1, (2, rows))
    data = to_parquet_bytes(pa.table({"image_id": ids, "check": words}))
    return RawFile(rows, 1, False, False, None, "raw.parquet", data)


def test_portions_of_a_million_members_fit_into_memory(tmp_path):
    """800,000 ids at once did not fit into DuckDB's 64 MB, which ended every listing of that many
    files.
    """
    rng, store = np.random.default_rng(0), Store.open(str(tmp_path))
    with IdTable(store) as ids:
        for portion, rows in enumerate((50_000, 150_000, 800_000)):
            files = [write_raw_file(rng, 50_000) for _ in range(rows // 50_000)]
            chosen = ids.choose_new(f"manifest/0/{portion:05d}", files, identity_digest, 1 << 20)
            assert sum(file.rows for file in chosen) == rows
            ids.keep_new()
        again = ids.choose_new("manifest/0/00003", files, identity_digest, 1 << 20)
    assert sum(file.rows for file in again) == 0
