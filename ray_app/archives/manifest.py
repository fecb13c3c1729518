"""The list of members that a run scores, on disk: written once, streamed, read block by block. Knows the files, not who scores them.

    manifest/<n>/part-00000.parquet …   members; one row group is one block, a few blocks are one file
    manifest/<n>/blocks.parquet         for each block: its file, row group, members and bytes
    manifest/<n>/vanished.parquet       ids of earlier manifests that the listing of <n> no longer had
    manifest/<n>/_complete              counts, as JSON; written last: without it the folder does not count

The struct column `input` is there only when the source has columns of its own: Parquet knows no struct without fields.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives.blocks import BlockPlan, block_sizes
from ray_app.archives.members import Ids, Listed, Member
from ray_app.errors import IdentityError
from ray_app.storage import Store

_FORMAT = 1
# Reading a block reads its file, in one request: few blocks to a file keep that small, many keep the number of files small.
_BLOCKS_PER_FILE = 8

_COLUMNS = [
    pa.field("image_id", pa.int64(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("member", pa.string()),
    pa.field("occurrence", pa.int32(), nullable=False),
    pa.field("version", pa.string(), nullable=False),
    pa.field("size_bytes", pa.int64(), nullable=False),
    pa.field("block", pa.int32(), nullable=False),
    pa.field("slot", pa.int32(), nullable=False),
]
_BLOCK_COLUMNS = pa.schema(
    [("block", pa.int32()), ("file", pa.string()), ("row_group", pa.int32()), ("members", pa.int32()), ("size_bytes", pa.int64())]
)
_VANISHED_COLUMNS = pa.schema([pa.field("image_id", pa.int64(), nullable=False)])


@dataclass(frozen=True)
class ManifestInfo:
    """One finished listing: `members` are those it adds, `listed` all that it saw, `vanished` the known ones that it did not see."""

    manifest: int
    members: int
    size_bytes: int
    blocks: int
    batch_slots: int
    listed: int
    vanished: int
    listing_s: float
    format: int = _FORMAT


@dataclass(frozen=True)
class BlockRef:
    """Where one block of a manifest lies; small, and all that a worker needs to read it."""

    manifest: int
    block: int
    members: int
    size_bytes: int
    file: str
    row_group: int


class ManifestWriter:
    """Streams members into the files of manifest `number`; memory holds a few blocks, however many members come.

    What an unfinished attempt left in that folder is removed first.
    """

    def __init__(self, store: Store, number: int, plan: BlockPlan, input_type: pa.StructType | None = None) -> None:
        self._store, self._number, self._plan = store, number, plan
        self._schema = pa.schema([*_COLUMNS, *([pa.field("input", input_type)] if input_type is not None else [])])
        self._sizes = block_sizes(plan)
        self._waiting: list[tuple[int, Listed]] = []
        self._wanted = next(self._sizes)
        self._blocks: list[BlockRef] = []
        self._files = 0
        self._file: io.BytesIO | None = None
        for name in store.names(_folder(number)):
            store.delete(f"{_folder(number)}/{name}")

    def add(self, ids: Ids, items: Sequence[Listed]) -> None:
        """Append members, in order."""
        self._waiting.extend(zip(ids.tolist(), items, strict=True))
        start = 0
        while len(self._waiting) - start >= self._wanted:
            self._write_block(self._waiting[start : start + self._wanted])
            start += self._wanted
            self._wanted = next(self._sizes)
        del self._waiting[:start]

    def finish(self, *, listed: int, vanished: Ids, listing_s: float) -> ManifestInfo:
        """Write what is left and the marker that makes it count."""
        if self._waiting:
            self._write_block(self._waiting)
        self._close_file()
        blocks = pa.Table.from_pylist([{name: asdict(ref)[name] for name in _BLOCK_COLUMNS.names} for ref in self._blocks], _BLOCK_COLUMNS)
        self._store.write(_path(self._number, "blocks.parquet"), _parquet(blocks))
        self._store.write(_path(self._number, "vanished.parquet"), _parquet(pa.table([pa.array(vanished)], schema=_VANISHED_COLUMNS)))
        info = ManifestInfo(
            manifest=self._number,
            members=sum(ref.members for ref in self._blocks),
            size_bytes=sum(ref.size_bytes for ref in self._blocks),
            blocks=len(self._blocks),
            batch_slots=self._plan.batch_slots,
            listed=listed,
            vanished=len(vanished),
            listing_s=round(listing_s, 3),
        )
        self._store.write(_path(self._number, "_complete"), json.dumps(asdict(info), indent=1).encode())
        return info

    def _write_block(self, members: Sequence[tuple[int, Listed]]) -> None:
        if self._file is None:
            self._file = io.BytesIO()
            self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd", use_dictionary=False)
            self._in_file = 0
        table = _table(members, len(self._blocks), self._schema)
        self._writer.write_table(table, row_group_size=len(members))
        size = sum(max(0, item.size_bytes) for _, item in members)
        self._blocks.append(BlockRef(self._number, len(self._blocks), len(members), size, f"part-{self._files:05}.parquet", self._in_file))
        self._in_file += 1
        if self._in_file == _BLOCKS_PER_FILE:
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._writer.close()
            self._store.write(_path(self._number, f"part-{self._files:05}.parquet"), self._file.getvalue())
            self._file = None
            self._files += 1


def manifests(store: Store) -> list[int]:
    """The numbers of all complete manifests, ascending."""
    numbers = sorted(int(name) for name in store.folders("manifest") if name.isdigit())
    # One is begun only when the one before is complete, so the last alone can be unfinished.
    return numbers if not numbers or read_complete(store, numbers[-1]) is not None else numbers[:-1]


def read_complete(store: Store, number: int) -> ManifestInfo | None:
    """What a complete manifest holds; None when there is none, or only an unfinished one.

    Raises IdentityError when another version of Touchstone wrote it.
    """
    try:
        fields = json.loads(store.read(_path(number, "_complete")))
    except FileNotFoundError:
        return None
    if fields.get("format") != _FORMAT:
        raise IdentityError(
            f"{store.url}/{_path(number, '_complete')} is of another version of Touchstone", hint="give another --out, or use that version"
        )
    return ManifestInfo(**fields)


def iter_blocks(store: Store, number: int) -> Iterator[BlockRef]:
    """The blocks of a complete manifest, in order."""
    table = pq.read_table(pa.BufferReader(store.read(_path(number, "blocks.parquet"))))
    for row in table.to_pylist():
        yield BlockRef(manifest=number, **row)


def read_block(store: Store, ref: BlockRef) -> pa.Table:
    """The rows of one block, slot 0 first, in one request."""
    return pq.ParquetFile(pa.BufferReader(store.read(_path(ref.manifest, ref.file)))).read_row_group(ref.row_group)


def member_rows(block: pa.Table) -> list[Member]:
    """A block's rows as members."""
    return [Member(**{"input": {}, **row}) for row in block.to_pylist()]


def read_ids(store: Store, number: int) -> Ids:
    """The ids of one manifest, in its order."""
    files = dict.fromkeys(ref.file for ref in iter_blocks(store, number))
    tables = [pq.read_table(pa.BufferReader(store.read(_path(number, file))), columns=["image_id"]) for file in files]
    return np.concatenate([table["image_id"].to_numpy() for table in tables] or [np.empty(0, np.int64)])


def read_vanished(store: Store, number: int) -> Ids:
    """The sorted ids of earlier manifests that are not in the archive any more, as of listing `number`."""
    table = pq.read_table(pa.BufferReader(store.read(_path(number, "vanished.parquet"))))
    ids: Ids = table["image_id"].to_numpy()
    return ids


def _folder(number: int) -> str:
    return f"manifest/{number}"


def _path(number: int, name: str) -> str:
    return f"{_folder(number)}/{name}"


def _table(members: Sequence[tuple[int, Listed]], block: int, schema: pa.Schema) -> pa.Table:
    ids, items = zip(*members, strict=True)
    columns = [
        pa.array(ids, pa.int64()),
        pa.array([item.uri for item in items], pa.string()),
        pa.array([item.member for item in items], pa.string()),
        pa.array([item.occurrence for item in items], pa.int32()),
        pa.array([item.version for item in items], pa.string()),
        pa.array([item.size_bytes for item in items], pa.int64()),
        pa.array(np.full(len(items), block, np.int32)),
        pa.array(np.arange(len(items), dtype=np.int32)),
    ]
    if "input" in schema.names:
        columns.append(pa.array([item.input for item in items], schema.field("input").type))
    return pa.Table.from_arrays(columns, schema=schema)


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()
