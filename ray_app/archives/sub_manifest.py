"""`write_selected`: a manifest made of members of other manifests, under their own ids: what is to be scored again."""

from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from ray_app.archives.cut_blocks import TableStream
from ray_app.archives.manifest import (
    BLOCK_COLUMNS,
    BlockRef,
    ManifestInfo,
    cut_rows,
    folder_of,
    input_type,
    iter_blocks,
    joined_inputs,
    manifest_schema,
    manifests,
    parquet_bytes,
    read_block,
    with_input,
    write_listed,
)
from ray_app.archives.members import BlockPlan, block_sizes
from ray_app.storage import Guard, Store


def input_type_of(store: Store) -> pa.StructType | None:
    """The source's own columns, of whatever listing; None where it has none."""
    firsts = (next(iter_blocks(store, number), None) for number in manifests(store))
    return joined_inputs((input_type(read_block(store, ref)) for ref in firsts if ref is not None), as_text=True)


def write_selected(
    store: Store,
    rows: Iterable[pa.Table],
    plan: BlockPlan,
    wanted: pa.StructType | None,
    guard: Guard = Guard(),  # noqa: B008 - frozen
) -> ManifestInfo:
    """Write manifest 0 of `store` from manifest rows, in their order, cut anew; one file per block. `guard`: that of their own listing.

    Memory: a block.
    """
    schema = manifest_schema(wanted)
    refs: list[BlockRef] = []
    arriving = TableStream(with_input(table, wanted) for table in rows)
    for number, count in enumerate(block_sizes(plan)):
        table = arriving.up_to(count)
        if table is None:
            break
        name, size = f"part-{number:05}.parquet", int(np.maximum(table["size_bytes"].to_numpy(), 0).sum())
        store.write(f"{folder_of(0)}/{name}", parquet_bytes(cut_rows(table, number, schema), row_group=len(table)))
        refs.append(BlockRef(0, number, len(table), size, name, 0))
    members = sum(ref.members for ref in refs)
    info = ManifestInfo(0, members, sum(ref.size_bytes for ref in refs), len(refs), plan.batch_slots, members, 0, 0.0,
                        servers=sorted(guard.named), allow_private=guard.allow_private)  # fmt: skip
    write_listed(store, info, pa.Table.from_pylist([asdict(ref) for ref in refs], BLOCK_COLUMNS), np.empty(0, np.int64))
    return info
