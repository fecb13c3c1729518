"""The list of members that a run scores, on disk: its files and how they are read. Knows neither who makes it nor who scores it.

manifest/<n>/part-00000-00000.parquet …  members; one row group is one block, a few blocks are one file
manifest/<n>/blocks.parquet              for each block: its file, row group, members and bytes
manifest/<n>/ids/…                       the ids that <n> adds, sorted, by their top bits, each with the next word of its digest
manifest/<n>/vanished.parquet            ids of earlier manifests that the listing of <n> no longer had
manifest/<n>/_complete                   counts, as JSON; written last: without it the folder does not count
"""

import io
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives.members import Ids
from ray_app.archives.sources import places_of
from ray_app.errors import IdentityError
from ray_app.storage import Guard, Store

_FORMAT = 1

BLOCK_COLUMNS = pa.schema(
    [("block", pa.int32()), ("file", pa.string()), ("row_group", pa.int32()), ("members", pa.int32()), ("size_bytes", pa.int64())]
)
VANISHED_COLUMNS = pa.schema([pa.field("image_id", pa.int64(), nullable=False)])


@dataclass(frozen=True)
class ManifestInfo:
    """One finished listing: `members` are those it adds, `listed` all that it saw, `vanished` the known ones that it did not see.

    `named`: files and containers that the sources themselves list; `digest` is over those, "" where it does not say what containers hold.
    `linked_folders`: symbolic links to folders, which were not followed; `linked_example` is the first of them.
    `servers`, `allow_private`: the guard of who listed them, for those who read them later.
    """

    manifest: int
    members: int
    size_bytes: int
    blocks: int
    batch_slots: int
    listed: int
    vanished: int
    listing_s: float
    named: int = 0
    digest: str = ""
    linked_folders: int = 0
    linked_example: str = ""
    servers: Sequence[str] = ()
    allow_private: bool = False
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


class BlockList(Sequence[BlockRef]):
    """Many blocks in the memory of a few: columns, of which references are made when asked for. A slice is one, too."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @classmethod
    def joined(cls, lists: Sequence["BlockList"]) -> "BlockList":
        """Several, one after another."""
        empty = BLOCK_COLUMNS.append(pa.field("manifest", pa.int32())).empty_table()
        return cls(pa.concat_tables([empty, *(one._table for one in lists)]).combine_chunks())

    @property
    def members(self) -> int:
        """How many members they have together."""
        return int(self._table["members"].to_numpy().sum())

    @property
    def size_bytes(self) -> int:
        """How many bytes their members have together, as far as known."""
        return int(self._table["size_bytes"].to_numpy().sum())

    @property
    def heaviest_mean(self) -> float:
        """Mean bytes of a member in the block where that is highest, as far as known."""
        sizes, members = (self._table[name].to_numpy() for name in ("size_bytes", "members"))
        return float((sizes / np.maximum(members, 1)).max(initial=0.0))

    def without(self, done: Collection[int]) -> "BlockList":
        """Those whose number is not among `done`."""
        numbers = np.fromiter(done, np.int32, len(done))
        return BlockList(self._table.filter(pa.array(~np.isin(self._table["block"].to_numpy(), numbers))))

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> BlockRef: ...

    @overload
    def __getitem__(self, index: slice) -> "BlockList": ...

    def __getitem__(self, index: int | slice) -> "BlockRef | BlockList":
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            assert step == 1
            return BlockList(self._table.slice(start, max(0, stop - start)))
        [row] = self._table.slice(range(len(self))[index], 1).to_pylist()
        return BlockRef(**row)

    def __iter__(self) -> Iterator[BlockRef]:
        for batch in self._table.to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                yield BlockRef(**row)


def folder_of(number: int) -> str:
    """Where a manifest lies, relative to the run."""
    return f"manifest/{number}"


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


def guard_of(store: Store) -> Guard:
    """Which web servers are asked for the members of a store's manifests: those that their own commands could ask."""
    infos = [info for number in manifests(store) if (info := read_complete(store, number)) is not None]
    noted = Guard(frozenset(name for info in infos for name in info.servers), any(info.allow_private for info in infos))
    return noted.joined(Guard.of(places_of(_sources(store))))


def _sources(store: Store) -> list[str]:
    """The sources of a run: manifests of 0.8.0 and before note no servers. None of what is no run."""
    try:
        sources: list[str] = json.loads(store.read("run.json"))["identity"]["source"]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return []
    return sources


def write_complete(store: Store, info: ManifestInfo) -> None:
    """Make a manifest count."""
    store.write(_path(info.manifest, "_complete"), json.dumps(asdict(info), indent=1).encode())


def write_listed(store: Store, info: ManifestInfo, blocks: pa.Table, vanished: Ids) -> None:
    """Write what a manifest has beside its parts (`blocks`: BLOCK_COLUMNS), and make it count."""
    store.write(_path(info.manifest, "blocks.parquet"), parquet_bytes(blocks))
    store.write(_path(info.manifest, "vanished.parquet"), parquet_bytes(pa.table([pa.array(vanished)], schema=VANISHED_COLUMNS)))
    write_complete(store, info)


def parquet_bytes(table: pa.Table, *, row_group: int | None = None) -> bytes:
    """A table as a Parquet file."""
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", row_group_size=row_group, use_dictionary=False)
    return file.getvalue()


def copy_manifest(store: Store, number: int, to: Store) -> None:
    """Copy a complete manifest into another store, under the same number; there it counts when all of it is there."""
    _copy_folder(store, folder_of(number), to)
    to.write(_path(number, "_complete"), store.read(_path(number, "_complete")))


def _copy_folder(store: Store, folder: str, to: Store) -> None:
    for name in store.names(folder):
        if name != "_complete":
            to.write(f"{folder}/{name}", store.read(f"{folder}/{name}"))
    for name in store.folders(folder):
        _copy_folder(store, f"{folder}/{name}", to)


def read_blocks(store: Store, number: int) -> BlockList:
    """The blocks of a complete manifest, in order."""
    table = pq.read_table(pa.BufferReader(store.read(_path(number, "blocks.parquet"))))
    return BlockList(table.append_column("manifest", pa.array(np.full(len(table), number, np.int32))))


def iter_blocks(store: Store, number: int) -> Iterator[BlockRef]:
    """The same, one by one."""
    return iter(read_blocks(store, number))


def read_block(store: Store, ref: BlockRef) -> pa.Table:
    """The rows of one block, slot 0 first, in one request."""
    return pq.ParquetFile(pa.BufferReader(store.read(_path(ref.manifest, ref.file)))).read_row_group(ref.row_group)


def read_ids(store: Store, blocks: BlockList) -> Iterator[Ids]:
    """The ids of consecutive blocks, block by block in their order; each file is read once."""
    opened, file = None, ""
    for ref in blocks:
        if opened is None or ref.file != file:
            opened, file = pq.ParquetFile(pa.BufferReader(store.read(_path(ref.manifest, ref.file)))), ref.file
        yield opened.read_row_group(ref.row_group, columns=["image_id"])["image_id"].to_numpy()


def read_vanished(store: Store, number: int) -> Ids:
    """The sorted ids of earlier manifests that are not in the archive any more, as of listing `number`."""
    table = pq.read_table(pa.BufferReader(store.read(_path(number, "vanished.parquet"))))
    vanished: Ids = table["image_id"].to_numpy()
    return vanished


def _path(number: int, name: str) -> str:
    return f"{folder_of(number)}/{name}"
