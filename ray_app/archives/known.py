"""The ids that manifests have added, on disk, sorted and divided by their top bits, so that a later listing joins one part at a time.

Each id stands with the next word of its member's digest: what tells a known member from another whose id collides with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives.manifest import folder_of, parquet_bytes, read_block, read_blocks, read_complete
from ray_app.archives.members import Digest, Ids, check_word
from ray_app.archives.raw import bucket_starts
from ray_app.archives.rows import listed_row
from ray_app.storage import Store

_WHOLE = "all.parquet"
REHASHED = "rehashed.parquet"


@dataclass(frozen=True)
class IdFile:
    """One file of sorted ids: bucket `bucket` of 2**bits, or of the whole range where `bits` is 0."""

    path: str
    bits: int
    bucket: int

    def touches(self, bits: int, bucket: int) -> bool:
        """Whether it may have ids of that bucket of 2**bits."""
        shift = self.bits - bits
        return self.bucket >> shift == bucket if shift >= 0 else bucket >> -shift == self.bucket


def id_files(store: Store, number: int) -> list[IdFile]:
    """The id files of a manifest; none where it added nothing, or was written before there were any."""
    folder = f"{folder_of(number)}/ids"
    return [IdFile(f"{folder}/{name}", *_span(name)) for name in store.names(folder)]


def bucket_name(bits: int, bucket: int) -> str:
    """The name of the file with one bucket's ids."""
    return f"{bits}-{bucket:05}.parquet"


def write_ids(store: Store, number: int, name: str, ids: Ids, checks: Ids) -> None:
    """Write sorted ids as one file of a manifest."""
    table = pa.table({"image_id": ids, "check": checks})
    store.write(f"{folder_of(number)}/ids/{name}", parquet_bytes(table))


def read_ids_of(store: Store, files: Sequence[IdFile], bits: int, bucket: int) -> tuple[Ids, Ids]:
    """All ids of one bucket of 2**bits, sorted, and their check words."""
    found = [np.empty((2, 0), np.int64), *(_within(store, file, bits, bucket) for file in files if file.touches(bits, bucket))]
    ids, checks = np.concatenate(found, axis=1)
    order = np.argsort(ids, kind="stable")
    return ids[order], checks[order]


def add_missing_ids(store: Store, digest: Digest, number: int) -> None:
    """Give a manifest that was written before there were id files its own, from its rows."""
    info = read_complete(store, number)
    if info is None or not info.members or store.names(f"{folder_of(number)}/ids"):
        return
    tables = [read_block(store, ref) for ref in read_blocks(store, number)]
    ids = np.concatenate([table["image_id"].to_numpy() for table in tables])
    checks = np.array([check_word(digest(listed_row(row), 0)) for table in tables for row in table.to_pylist()], np.int64)
    order = np.argsort(ids)
    write_ids(store, number, _WHOLE, ids[order], checks[order])


def _within(store: Store, file: IdFile, bits: int, bucket: int) -> Any:
    table = pq.read_table(pa.BufferReader(store.read(file.path)))
    both = np.stack([table["image_id"].to_numpy(), table["check"].to_numpy()])
    if file.bits >= bits:
        return both
    starts = bucket_starts(bits)
    first = np.searchsorted(both[0], starts[bucket])
    last = np.searchsorted(both[0], starts[bucket + 1]) if bucket + 1 < len(starts) else both.shape[1]
    return both[:, first:last]


def _span(name: str) -> tuple[int, int]:
    if name in (_WHOLE, REHASHED):
        return 0, 0
    bits, bucket = name.removesuffix(".parquet").split("-")
    return int(bits), int(bucket)
