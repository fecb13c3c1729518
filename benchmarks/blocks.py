"""Blocks of a run directory, written without a listing, for benchmarks of single stages."""

from collections.abc import Sequence

import numpy as np

from ray_app.archives import BlockRef, ListedMember, manifest
from ray_app.archives.members import image_id
from ray_app.runs import RunDirectory


def write_block(run: RunDirectory, number: int, members: Sequence[ListedMember]) -> BlockRef:
    """Write a block of manifest 0 as a file of its own."""
    ids = np.array([image_id(member) for member in members], np.int64)
    rows = manifest.listed_rows(ids, members)
    table = manifest.cut_rows(rows, number, manifest.manifest_schema(None))
    name = f"{number}.parquet"
    run.store.write(manifest.path_in(0, name), manifest.to_parquet_bytes(table))
    return BlockRef(0, number, len(members), 0, name, 0)
