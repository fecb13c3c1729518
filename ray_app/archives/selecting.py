"""A manifest made of members of other manifests, under their own ids: what is to be scored again. Lists nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from ray_app.archives.blocks import BlockPlan, block_sizes
from ray_app.archives.manifest import (
    BLOCK_COLUMNS,
    VANISHED_COLUMNS,
    BlockRef,
    ManifestInfo,
    folder_of,
    iter_blocks,
    manifests,
    read_block,
    write_complete,
)
from ray_app.archives.raw import parquet_bytes
from ray_app.archives.rows import cut_rows, input_type, joined_inputs, manifest_schema, with_input
from ray_app.storage import Store


def input_type_of(store: Store) -> pa.StructType | None:
    """The source's own columns, of whatever listing; None where it has none."""
    firsts = (next(iter_blocks(store, number), None) for number in manifests(store))
    return joined_inputs(input_type(read_block(store, ref)) for ref in firsts if ref is not None)


def write_selected(store: Store, rows: Iterable[pa.Table], plan: BlockPlan, wanted: pa.StructType | None) -> ManifestInfo:
    """Write manifest 0 of `store` from manifest rows, in their order, cut anew; one file per block. Memory: a block."""
    schema = manifest_schema(wanted)
    refs: list[BlockRef] = []
    for table in _blocks((with_input(table, wanted) for table in rows), plan):
        number = len(refs)
        name, size = f"part-{number:05}.parquet", int(np.maximum(table["size_bytes"].to_numpy(), 0).sum())
        store.write(f"{folder_of(0)}/{name}", parquet_bytes(cut_rows(table, number, schema), row_group=len(table)))
        refs.append(BlockRef(0, number, len(table), size, name, 0))
    listed = pa.Table.from_pylist([asdict(ref) for ref in refs], BLOCK_COLUMNS)
    store.write(f"{folder_of(0)}/blocks.parquet", parquet_bytes(listed))
    store.write(f"{folder_of(0)}/vanished.parquet", parquet_bytes(VANISHED_COLUMNS.empty_table()))
    members = sum(ref.members for ref in refs)
    info = ManifestInfo(0, members, sum(ref.size_bytes for ref in refs), len(refs), plan.batch_slots, members, 0, 0.0)
    write_complete(store, info)
    return info


def _blocks(tables: Iterable[pa.Table], plan: BlockPlan) -> Iterator[pa.Table]:
    sizes = block_sizes(plan)
    wanted = next(sizes)
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(map(len, waiting)) >= wanted:
            rows = pa.concat_tables(waiting, promote_options="permissive")
            yield rows.slice(0, wanted)
            waiting, wanted = [rows.slice(wanted)], next(sizes)
    rows = pa.concat_tables(waiting, promote_options="permissive") if waiting else []
    if len(rows):
        yield rows
