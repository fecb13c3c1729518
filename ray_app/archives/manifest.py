"""Manifests, the lists of members that a run scores, on disk: `ManifestInfo`, `BlockRef`,
`read_blocks`, `write_listed`, and their Arrow rows.

    manifest/<n>/part-00000-00000.parquet   members; a row group is a block, a few blocks are a file
    manifest/<n>/blocks.parquet             for each block: its file, row group, members, and bytes
    manifest/<n>/ids/                       the ids that <n> adds, sorted, by their top bits, each with the next word of its digest
    manifest/<n>/vanished.parquet           all ids of earlier manifests that the listing of <n> no longer had
    manifest/<n>/_complete                  counts, as JSON; written last: without it, the manifest is open
    manifest/<n>/<k>/                       portion <k>: the same files, of what was listed since portion <k> - 1
    manifest/<n>/<k>/vanished.parquet       which ids vanished or returned since manifest <n> - 1
    manifest/<n>/<k>/unlisted.json          what an unfinished listing has yet to list (`Walk.noted`)

A listing writes portions, so that the first ones are scored while the archive is still listed.
`close_manifest` adds `blocks.parquet`, `vanished.parquet`, and `_complete` of the whole manifest.
"""

import io
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, overload
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives.members import Ids, ListedMember, ListedWithColumns
from ray_app.errors import ConfigError, IdentityError, StorageError, one_line
from ray_app.storage import Guard, Store
from ray_app.storage.errors import refuses_condition

_FORMAT = 1
_REQUESTS = 16  # portions that are read at once
# The newest complete manifest that was read through each store.
_newest = WeakKeyDictionary[Store, "ManifestInfo"]()

BLOCK_COLUMNS = pa.schema(
    [
        ("block", pa.int32()),
        ("file", pa.string()),
        ("row_group", pa.int32()),
        ("members", pa.int32()),
        ("size_bytes", pa.int64()),
    ]
)
VANISHED_COLUMNS = pa.schema([pa.field("image_id", pa.int64(), nullable=False)])

# no store has a larger object; what states more counts as not known, and the sum of a block
# overflows nothing
MOST_BYTES = 2**48
_PLACE = pa.struct(
    [
        ("kind", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("group", pa.int64()),
        ("column", pa.string()),
    ]
)
_REFUSED = pa.struct([("status", pa.string()), ("detail", pa.string())])

_LISTED = [
    pa.field("image_id", pa.int64(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("member", pa.string()),
    pa.field("occurrence", pa.int32(), nullable=False),
    pa.field("version", pa.string(), nullable=False),
    pa.field("size_bytes", pa.int64(), nullable=False),
]
_CUT = [pa.field("block", pa.int32(), nullable=False), pa.field("slot", pa.int32(), nullable=False)]
_REST = [pa.field("place", _PLACE), pa.field("refused", _REFUSED)]


@dataclass(frozen=True)
class ManifestInfo:
    """One finished listing: `members` are those it adds, `listed` all that it saw, `vanished` the
    known ones that it did not see.

    `named`: files and containers that the sources themselves list; `digest` is over those, "" where
    it does not say what containers hold. `linked_folders`: symbolic links to folders, which were
    not followed; `linked_example` is the first of them. `closed_folders`: folders that could not be
    listed, and `closed_example`; each is a member. `earlier`: how many members the manifests before
    have. `servers`, `allow_private`: the guard of the listing, to be used when members are read;
    with `earlier`, joined with those before. `portions`: how many portions the manifest has, 0 if it
    was written at once; each portion counts what the manifest has so far. `goes_on`: the listing has
    not reached its end with this portion. `retried`: of a retry, the statuses of the members that it
    lists again; `retries`: the numbers of all retries so far.
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
    closed_folders: int = 0
    closed_example: str = ""
    servers: Sequence[str] = ()
    allow_private: bool = False
    earlier: int = 0
    portions: int = 0
    goes_on: bool = False
    retried: Sequence[str] = field(default_factory=list)
    retries: Sequence[int] = field(default_factory=list)
    format: int = _FORMAT

    @property
    def is_retry(self) -> bool:
        """Whether it lists members of earlier manifests again, to be scored once more."""
        return bool(self.retried)

    @property
    def known(self) -> int:
        """Number of members that the manifests up to this one list, each counted once."""
        return self.earlier if self.is_retry else self.earlier + self.members

    @property
    def current(self) -> int:
        """Number of members that the last listing found."""
        return self.known - self.vanished


@dataclass(frozen=True)
class BlockRef:
    """Where one block of a manifest lies; small, and all that a worker needs to read it."""

    manifest: int
    block: int
    members: int
    size_bytes: int
    file: str
    row_group: int

    @property
    def place(self) -> tuple[int, int]:
        """Its manifest, and its number there: unique in a run."""
        return self.manifest, self.block


class BlockList(Sequence[BlockRef]):
    """Many blocks in the memory of a few: columns, of which references are made on access. A slice
    is one, too.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @classmethod
    def joined(cls, lists: Sequence["BlockList"]) -> "BlockList":
        """Several, one after another."""
        empty = BLOCK_COLUMNS.append(pa.field("manifest", pa.int32())).empty_table()
        return cls(pa.concat_tables([empty, *(one._table for one in lists)]).combine_chunks())

    def columns(self) -> pa.Table:
        """Return them as a table (`BLOCK_COLUMNS`)."""
        return self._table.select(BLOCK_COLUMNS.names)

    @property
    def members(self) -> int:
        """How many members they have together."""
        return int(self._table["members"].to_numpy().sum())

    @property
    def sizes(self) -> Ids:
        """How many members each has."""
        sizes: Ids = self._table["members"].to_numpy().astype(np.int64)
        return sizes

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
        return BlockList(
            self._table.filter(pa.array(~np.isin(self._table["block"].to_numpy(), numbers)))
        )

    def where(self, wanted: Sequence[bool]) -> "BlockList":
        """Those at whose places it says so."""
        return BlockList(self._table.filter(pa.array(wanted, pa.bool_())))

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


def folder_of(number: int, portion: int | None = None) -> str:
    """Return the folder of a manifest, or of one of its portions, relative to the run."""
    return f"manifest/{number}" if portion is None else f"manifest/{number}/{portion:05d}"


def path_in(number: int, name: str, portion: int | None = None) -> str:
    """Return the path of a file of a manifest, or of one of its portions."""
    return f"{folder_of(number, portion)}/{name}"


def manifests(store: Store) -> list[int]:
    """The numbers of all complete manifests, ascending."""
    return listed_manifests(store)[0]


def open_manifest(store: Store) -> ManifestInfo | None:
    """Return what the open manifest holds so far; None if no manifest with a portion is open."""
    return listed_manifests(store)[1]


def listed_manifests(store: Store) -> tuple[list[int], ManifestInfo | None]:
    """Return the numbers of all complete manifests, ascending, and what the open manifest holds so
    far; None if no manifest with a portion is open.
    """
    last = last_complete(store)
    following = 0 if last is None else last.manifest + 1
    return list(range(following)), read_last_portion(store, following)


def last_complete(store: Store) -> ManifestInfo | None:
    """Return what the newest complete manifest holds; None if there is none.

    Manifests are numbered without gaps, and a complete one never changes. So the folder of a run
    with many manifests is listed once for each `Store`.
    """
    last = _newest.get(store)
    if last is None:
        for number in reversed(_numbers(store, "manifest")):
            last = read_complete(store, number)
            if last is not None:
                break
    number = -1 if last is None else last.manifest
    while (info := read_complete(store, number + 1)) is not None:
        last, number = info, number + 1
    if last is not None:
        _newest[store] = last
    return last


def read_complete(store: Store, number: int, portion: int | None = None) -> ManifestInfo | None:
    """Return what a complete manifest or a complete portion holds; None if it is not complete.

    Raises:
        IdentityError: Another version of Touchstone wrote it.
    """
    path = path_in(number, "_complete", portion)
    try:
        fields = json.loads(store.read(path))
    except FileNotFoundError:
        return None
    if fields.get("format") != _FORMAT:
        raise IdentityError(
            f"{store.url}/{path} was written by another version of Touchstone",
            hint="give another --out, or use that version",
        )
    return ManifestInfo(**fields)


def read_last_portion(store: Store, number: int) -> ManifestInfo | None:
    """Return what a manifest holds as its last complete portion states it; None without one."""
    # Portions are written one after another, so the last alone can be incomplete.
    for portion in reversed(_numbers(store, folder_of(number))[-2:]):
        info = read_complete(store, number, portion)
        if info is not None:
            return info
    return None


def last_listing(store: Store) -> ManifestInfo | None:
    """Return what the newest manifest holds as far as it is listed; None if nothing is listed."""
    last = last_complete(store)
    return read_last_portion(store, 0 if last is None else last.manifest + 1) or last


def close_manifest(store: Store, listed: ManifestInfo) -> ManifestInfo:
    """Complete a manifest with its portions. An interrupted call can be repeated.

    Args:
        store: The run directory.
        listed: What the manifest holds, as its last portion states it.
    """
    number = listed.manifest
    blocks = read_blocks_so_far(store, listed).columns()
    store.write(path_in(number, "blocks.parquet"), parquet_bytes(blocks))
    vanished = read_vanished_so_far(store, listed)
    store.write(path_in(number, "vanished.parquet"), _vanished_bytes(vanished))
    info = replace(listed, goes_on=False)
    create_file(store, path_in(number, "_complete"), _info_bytes(info))
    return info


def copy_manifest(store: Store, number: int, target: Store) -> None:
    """Copy a complete manifest into another run, under the same number. An interrupted call can be
    repeated: the manifest counts there once all of it is there.

    Args:
        store: The run directory with the manifest.
        number: The number of the manifest.
        target: The run directory to write to.
    """

    def copy(path: str) -> None:
        target.write(path, store.read(path))

    with ThreadPoolExecutor(_REQUESTS) as pool:
        # Without the `_complete` of its portions, an incomplete copy is not an open manifest.
        for _ in pool.map(copy, _files_below(store, folder_of(number))):
            pass
    path = path_in(number, "_complete")
    create_file(target, path, store.read(path))


def _files_below(store: Store, folder: str) -> Iterator[str]:
    yield from (f"{folder}/{name}" for name in store.names(folder) if name != "_complete")
    for name in store.folders(folder):
        yield from _files_below(store, f"{folder}/{name}")


def _numbers(store: Store, folder: str) -> list[int]:
    return sorted(int(name) for name in store.folders(folder) if name.isdigit())


def guard_of(store: Store) -> Guard:
    """Which web servers are requested for the members of a store's manifests: those that their own
    commands could ask.
    """
    return listed_so_far(store)[1]


def listed_so_far(store: Store) -> tuple[int, Guard]:
    """How many members all manifests list so far, and the guard under which these may be read."""
    last = last_listing(store)
    if last is None:
        return 0, Guard()
    return last.known, Guard(frozenset(last.servers), last.allow_private)


def create_file(store: Store, path: str, data: bytes) -> None:
    """Write a file of a manifest, unless another process wrote it.

    Raises:
        StorageError: Another process wrote it.
    """
    try:
        is_new = store.create(path, data)
    except StorageError as error:
        if not refuses_condition(error.__cause__):
            raise
        store.write(path, data)
        return
    if not is_new:
        raise StorageError(
            f"{store.url}/{path}: another process writes this listing",
            hint="wait until no other command runs on the directory, then run the same command again",
        )


def write_listed(store: Store, info: ManifestInfo, blocks: pa.Table, vanished: Ids) -> None:
    """Write what a manifest has besides its parts and ids, and make it count.

    Args:
        store: The run directory.
        info: The facts of the manifest.
        blocks: Its blocks (`BLOCK_COLUMNS`).
        vanished: The sorted ids that its listing no longer found.
    """
    create_file(store, path_in(info.manifest, "blocks.parquet"), parquet_bytes(blocks))
    create_file(store, path_in(info.manifest, "vanished.parquet"), _vanished_bytes(vanished))
    create_file(store, path_in(info.manifest, "_complete"), _info_bytes(info))


def write_portion(store: Store, info: ManifestInfo, blocks: pa.Table, vanished: Ids) -> None:
    """Write what the last portion of a manifest has besides its parts and ids, and make it count.

    Args:
        store: The run directory.
        info: The facts of the manifest with this portion.
        blocks: The blocks of the portion (`BLOCK_COLUMNS`).
        vanished: The sorted ids that the listing no longer found.
    """
    number, portion = info.manifest, info.portions - 1
    before = _read_vanished(store, number - 1)
    gone, back = np.setdiff1d(vanished, before), np.setdiff1d(before, vanished)
    changes = pa.table(
        {
            "image_id": pa.array(np.concatenate([gone, back]), pa.int64()),
            "is_back": pa.array(np.arange(len(gone) + len(back)) >= len(gone)),
        }
    )
    create_file(store, path_in(number, "blocks.parquet", portion), parquet_bytes(blocks))
    create_file(store, path_in(number, "vanished.parquet", portion), parquet_bytes(changes))
    create_file(store, path_in(number, "_complete", portion), _info_bytes(info))


def _info_bytes(info: ManifestInfo) -> bytes:
    return json.dumps(asdict(info), indent=1).encode()


def _vanished_bytes(vanished: Ids) -> bytes:
    return parquet_bytes(pa.table([pa.array(vanished)], schema=VANISHED_COLUMNS))


def read_table(store: Store, path: str) -> pa.Table:
    """A Parquet file of a store, in one request."""
    return pq.ParquetFile(pa.BufferReader(store.read(path))).read()


def parquet_bytes(table: pa.Table, *, row_group: int | None = None) -> bytes:
    """A table as a Parquet file."""
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", row_group_size=row_group, use_dictionary=False)
    return file.getvalue()


def read_blocks(store: Store, number: int, portion: int | None = None) -> BlockList:
    """Return the blocks of a complete manifest, or of one of its portions, in order."""
    table = read_table(store, path_in(number, "blocks.parquet", portion))
    return BlockList(
        table.append_column("manifest", pa.array(np.full(len(table), number, np.int32)))
    )


def read_blocks_so_far(store: Store, listed: ManifestInfo) -> BlockList:
    """Return the blocks of an open manifest, in order.

    Args:
        store: The run directory.
        listed: What the manifest holds, as one of its portions states it. Later ones are left out.
    """
    portions = range(listed.portions)
    with ThreadPoolExecutor(_REQUESTS) as pool:
        read = partial(read_blocks, store, listed.manifest)
        return BlockList.joined(list(pool.map(read, portions)))


def read_block_lists(store: Store) -> Iterator[BlockList]:
    """Yield the blocks of each manifest, also of the open one as far as it is listed."""
    numbers, listed = listed_manifests(store)
    for number in numbers:
        yield read_blocks(store, number)
    if listed is not None:
        yield read_blocks_so_far(store, listed)


def read_ids(store: Store, blocks: BlockList) -> Iterator[Ids]:
    """The ids of consecutive blocks, block by block in their order; each file is read once."""
    opened, file = None, ""
    for ref in blocks:
        if opened is None or ref.file != file:
            opened, file = (
                pq.ParquetFile(pa.BufferReader(store.read(path_in(ref.manifest, ref.file)))),
                ref.file,
            )
        yield opened.read_row_group(ref.row_group, columns=["image_id"])["image_id"].to_numpy()


def read_vanished(store: Store, number: int) -> Ids:
    """The sorted ids of earlier manifests that are not in the archive any more, as of complete
    manifest `number`.
    """
    vanished: Ids = read_table(store, path_in(number, "vanished.parquet"))["image_id"].to_numpy()
    return vanished


def read_vanished_so_far(store: Store, listed: ManifestInfo) -> Ids:
    """The same, as of a portion of an open manifest."""
    number, before = listed.manifest, _read_vanished(store, listed.manifest - 1)
    changes = read_table(store, path_in(number, "vanished.parquet", listed.portions - 1))
    ids, is_back = changes["image_id"].to_numpy(), changes["is_back"].to_numpy()
    return np.union1d(np.setdiff1d(before, ids[is_back]), ids[~is_back])


def _read_vanished(store: Store, number: int) -> Ids:
    return read_vanished(store, number) if number >= 0 else np.empty(0, np.int64)


# The struct column `input` is there only when the source has columns of its own: Parquet knows no
# struct without fields. What a list has in one column is of one type, or the list is refused; what
# several tables in an archive have under one name becomes text where no type holds both, since no
# table there is to stop a run.
def manifest_schema(input_type: pa.StructType | None) -> pa.Schema:
    """The columns of a manifest."""
    return pa.schema(
        [
            *_LISTED,
            *_CUT,
            *_REST,
            *([pa.field("input", input_type)] if input_type is not None else []),
        ]
    )


def listed_rows(ids: Ids, items: Sequence[ListedMember]) -> pa.Table:
    """Members that are not cut into blocks yet. Raises ConfigError for a list's column whose values
    are of several types.
    """
    columns = [
        pa.array(ids, pa.int64()),
        pa.array([item.uri for item in items], pa.string()),
        pa.array([item.member for item in items], pa.string()),
        pa.array([item.occurrence for item in items], pa.int32()),
        pa.array([item.version for item in items], pa.string()),
        pa.array(
            [item.size_bytes if item.size_bytes <= MOST_BYTES else -1 for item in items], pa.int64()
        ),
        _struct([item.place for item in items], _PLACE),
        _struct(
            [
                item.refused and replace(item.refused, detail=one_line(item.refused.detail))
                for item in items
            ],
            _REFUSED,
        ),
    ]
    fields = [*_LISTED, *_REST]
    if inputs := _inputs(
        [item.input for item in items], as_text=any(map(has_columns_of_archive, items))
    ):
        columns.append(inputs)
        fields.append(pa.field("input", inputs.type))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def has_columns_of_archive(item: ListedMember) -> bool:
    """Whether a member's columns are of the archive, and not of a list that its user named."""
    return item.place is not None or isinstance(item, ListedWithColumns)


def cut_rows(listed: pa.Table, block: int, schema: pa.Schema) -> pa.Table:
    """The same members as one block of a manifest, in their slots."""
    count = len(listed)
    columns: dict[str, Any] = {name: listed[name] for name in listed.schema.names}
    columns |= {
        "block": pa.array(np.full(count, block, np.int32)),
        "slot": pa.array(np.arange(count, dtype=np.int32)),
    }
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def input_type(table: pa.Table) -> pa.StructType | None:
    """The type of the source's own columns; None where it has none."""
    return table.schema.field("input").type if "input" in table.schema.names else None


def with_input(table: pa.Table, wanted: pa.StructType | None) -> pa.Table:
    """The table with `input` as a wider type: what it does not have is null."""
    if wanted is None or input_type(table) == wanted:
        return table
    count = len(table)
    if "input" not in table.schema.names:
        return table.append_column(pa.field("input", wanted), pa.nulls(count, wanted))
    given = table["input"].combine_chunks()
    names = [field.name for field in given.type]
    children = [
        as_type(given.field(field.name), field.type)
        if field.name in names
        else pa.nulls(count, field.type)
        for field in wanted
    ]
    whole = pa.StructArray.from_arrays(children, fields=list(wanted), mask=given.is_null())
    return table.set_column(table.schema.get_field_index("input"), pa.field("input", wanted), whole)


def joined_inputs(types: Iterable[pa.StructType | None], *, as_text: bool) -> pa.StructType | None:
    """The type that holds all of these. A column of two types which no third holds becomes text, or
    raises ConfigError naming it.
    """
    joined: dict[str, pa.DataType] = {}
    for one in types:
        for column in one or ():
            before = joined.get(column.name, column.type)
            joined[column.name] = (
                before
                if before == column.type
                else _wider(column.name, before, column.type, as_text=as_text)
            )
    return pa.struct(list(joined.items())) if joined else None


def as_type(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column as a type that `joined_inputs` found; what is no text becomes one as JSON writes it."""
    if pa.types.is_string(kind) and not (
        pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ):
        return pa.array([_text(value) for value in column.to_pylist()], kind)
    if column.type == kind:
        return column
    # pyarrow 26 loses its way where it casts slices of lists within lists.
    return pa.array(column.to_pylist(), kind) if pa.types.is_nested(kind) else column.cast(kind)


def settled(kind: pa.StructType | None) -> pa.StructType | None:
    """The type as files keep it: a column without any value becomes one of texts."""
    return kind and pa.struct(
        [
            (field.name, pa.string() if pa.types.is_null(field.type) else field.type)
            for field in kind
        ]
    )


def _struct(values: Sequence[Any], kind: pa.StructType) -> pa.Array:
    is_null = np.array([value is None for value in values], bool)
    if is_null.all():
        return pa.nulls(len(values), kind)
    children = [
        pa.array(
            [None if value is None else getattr(value, field.name) for value in values], field.type
        )
        for field in kind
    ]
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=pa.array(is_null))


def _inputs(inputs: Sequence[dict[str, Any]], *, as_text: bool) -> pa.Array | None:
    names = list(dict.fromkeys(name for one in inputs for name in one))
    if not names:
        return None
    return pa.StructArray.from_arrays(
        [_column(name, [one.get(name) for one in inputs], as_text=as_text) for name in names], names
    )


def _column(name: str, values: list[Any], *, as_text: bool) -> pa.Array:
    try:
        column = pa.array(values)
        if _has_times(column.type):
            column.to_pylist()  # the ends of Python's calendar lie beyond it in other time zones
        return column
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        if as_text:
            return pa.array([_text(value) for value in values], pa.string())
        kinds = sorted({type(value).__name__ for value in values if value is not None})
        raise _clash(name, " and ".join(kinds)) from None


def _has_times(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind)) or any(
        _has_times(kind.field(i).type) for i in range(kind.num_fields)
    )


def _text(value: Any) -> str | None:
    return (
        value
        if value is None or isinstance(value, str)
        else json.dumps(value, default=str, ensure_ascii=False).strip('"')
    )


def _wider(name: str, one: pa.DataType, other: pa.DataType, *, as_text: bool) -> pa.DataType:
    try:
        schemas = [pa.schema([(name, kind)]) for kind in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        if as_text:
            return pa.string()
        raise _clash(name, f"{one} and {other}") from None


def _clash(name: str, kinds: str) -> ConfigError:
    return ConfigError(
        f"column '{name}' of the source holds both {kinds}",
        hint="give it values of one type, or score the parts as runs of their own",
    )
