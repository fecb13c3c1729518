"""Read and write manifests, the lists of members that a run scores.

A `ManifestInfo` has the counts of a manifest, and a `BlockRef` has the location of a block.
`read_blocks` returns the blocks of a manifest, and `write_listed` completes a manifest.
`listed_rows` converts members to Arrow rows. A retry adds a manifest to a run, and so does a
listing that finds a change. While a source is followed, the listings of a day share a manifest.
Manifest <n>, from 0, has these files in the run directory:

    manifest/<n>/part-00000-00000.parquet   members; a row group is a block, a few blocks are a file
    manifest/<n>/blocks.parquet             for each block: its file, row group, members, and bytes
    manifest/<n>/ids/                       the sorted ids that <n> adds, in files by their top bits, each with further bits of its digest as a check
    manifest/<n>/vanished.parquet           all ids of earlier manifests that the listing of <n> did not find
    manifest/<n>/_complete                  counts, as JSON; written last; a manifest without this file is open
    manifest/<n>/<k>/                       portion <k>: the same files for the members listed since portion <k> - 1
    manifest/<n>/<k>/vanished.parquet       which ids vanished or returned since manifest <n> - 1
    manifest/<n>/<k>/unlisted.json          what an unfinished listing must still list (`ArchiveWalker.save_state`)

A listing writes portions, so that the first portions are scored while the archive is still listed.
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
_MAX_REQUESTS = 16  # Portions that are read at once.
# The newest complete manifest that was read through each store.
_last_complete = WeakKeyDictionary[Store, "ManifestInfo"]()

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

# No store has a larger object. A larger stated size counts as unknown, so that the sum of a block
# does not overflow.
MAX_BYTES = 2**48
_PLACE_TYPE = pa.struct(
    [
        ("kind", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("group", pa.int64()),
        ("column", pa.string()),
    ]
)
_REFUSED_TYPE = pa.struct([("status", pa.string()), ("detail", pa.string())])

_LISTED_COLUMNS = [
    pa.field("image_id", pa.int64(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("member", pa.string()),
    pa.field("occurrence", pa.int32(), nullable=False),
    pa.field("version", pa.string(), nullable=False),
    pa.field("size_bytes", pa.int64(), nullable=False),
]
_CUT_COLUMNS = [
    pa.field("block", pa.int32(), nullable=False),
    pa.field("slot", pa.int32(), nullable=False),
]
_LAST_COLUMNS = [pa.field("place", _PLACE_TYPE), pa.field("refused", _REFUSED_TYPE)]


@dataclass(frozen=True)
class ManifestInfo:
    """The counts and facts of one manifest, or of one portion of it, as `_complete` stores them.

    A manifest is the list of members (files) that one listing of an archive found. A long listing
    writes the manifest in portions. The counts of a portion include all earlier portions of the
    manifest.

    Attributes:
        manifest: The number of the manifest.
        members: The number of members that the manifest adds, or that a retry lists again.
        size_bytes: The total size of these members in bytes, as far as sizes are known.
        blocks: The number of blocks into which the members are cut.
        batch_slots: The number of members in one full batch.
        listed: The number of members that the listing found and that passed the user's include and
            exclude patterns.
        vanished: The number of members of earlier manifests that are no longer in the archive.
        listing_s: The seconds that the listing took.
        named: The number of files and containers that the sources list, without members of
            containers.
        digest: A hash of the files and containers that `named` counts. It shows whether a later
            listing has anything new. It is "" if the listing is not finished, or if the members of
            a container may change without a change of the hash.
        linked_folders: The number of symbolic links to folders, which were not followed.
        linked_example: The path of the first of these links.
        closed_folders: The number of folders that could not be listed; each is a member.
        closed_example: The uri of the first of these folders.
        servers: The web servers that members may be read from, merged with those of earlier
            manifests if there are any.
        allow_private: Whether members may be read from any web server, also in private networks.
        earlier: The number of members of all earlier manifests.
        portions: The number of portions, 0 if the manifest was written at once.
        goes_on: Whether the listing continues after this portion.
        retried: For a retry, the statuses of the members that are listed again.
        retries: The numbers of the manifests up to this one that were written for retries.
        format: The version of the manifest format.
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
        """Whether the manifest lists members of earlier manifests again, to be scored again."""
        return bool(self.retried)

    @property
    def members_so_far(self) -> int:
        """The number of members in all manifests up to this one, each counted once."""
        return self.earlier if self.is_retry else self.earlier + self.members

    @property
    def current(self) -> int:
        """The number of members in the archive at the time of this manifest.

        These are the members of all manifests up to this one, without those that vanished.
        """
        return self.members_so_far - self.vanished


@dataclass(frozen=True)
class BlockRef:
    """The location of one block of a manifest: the little data that a worker needs to read it.

    A block is a fixed list of members, and the unit in which they are scored and committed.

    Attributes:
        manifest: The number of the manifest.
        block: The number of the block in the manifest.
        members: The number of members in the block.
        size_bytes: The total size of the members in bytes, as far as sizes are known.
        file: The path of the Parquet file, relative to the folder of the manifest.
        row_group: The number of the row group within the file.
    """

    manifest: int
    block: int
    members: int
    size_bytes: int
    file: str
    row_group: int

    @property
    def place(self) -> tuple[int, int]:
        """The number of the manifest and that of the block, which identify the block in a run."""
        return self.manifest, self.block


class BlockList(Sequence[BlockRef]):
    """A sequence of `BlockRef`s, the locations of blocks in manifests, that takes little memory.

    A block is a fixed list of members that is scored as a unit. The list is stored as columns, and
    a `BlockRef` is created on access. A slice is also a `BlockList`.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @classmethod
    def concat(cls, lists: Sequence["BlockList"]) -> "BlockList":
        """Concatenate several lists of blocks into one."""
        empty = BLOCK_COLUMNS.append(pa.field("manifest", pa.int32())).empty_table()
        return cls(
            pa.concat_tables([empty, *(block_list._table for block_list in lists)]).combine_chunks()
        )

    def columns(self) -> pa.Table:
        """Return one row per block with its number, file, row group, members, and bytes.

        The columns are `BLOCK_COLUMNS`, as a manifest stores them in `blocks.parquet`.
        """
        return self._table.select(BLOCK_COLUMNS.names)

    @property
    def members(self) -> int:
        """The number of members of all blocks together."""
        return int(self._table["members"].to_numpy().sum())

    @property
    def sizes(self) -> Ids:
        """The number of members of each block, as an array."""
        sizes: Ids = self._table["members"].to_numpy().astype(np.int64)
        return sizes

    @property
    def size_bytes(self) -> int:
        """The total size of the members of all blocks in bytes, as far as sizes are known."""
        return int(self._table["size_bytes"].to_numpy().sum())

    @property
    def heaviest_mean(self) -> float:
        """The highest mean size of the members of a block in bytes, over all blocks.

        A high value means that some blocks have large files and take long. Members of unknown size
        count 0 bytes.
        """
        sizes, members = (self._table[name].to_numpy() for name in ("size_bytes", "members"))
        return float((sizes / np.maximum(members, 1)).max(initial=0.0))

    def exclude(self, excluded: Collection[int]) -> "BlockList":
        """Return the blocks without those whose numbers are in `excluded`."""
        excluded_numbers = np.fromiter(excluded, np.int32, len(excluded))
        return BlockList(
            self._table.filter(
                pa.array(~np.isin(self._table["block"].to_numpy(), excluded_numbers))
            )
        )

    def select(self, mask: Sequence[bool]) -> "BlockList":
        """Return the blocks for which `mask`, with one value per block, is true."""
        return BlockList(self._table.filter(pa.array(mask, pa.bool_())))

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


def get_folder(number: int, portion: int | None = None) -> str:
    """Return the folder of a manifest or of one of its portions, relative to the run directory.

    A portion is a part of a manifest that a long listing writes before it ends.
    """
    return f"manifest/{number}" if portion is None else f"manifest/{number}/{portion:05d}"


def path_in(number: int, name: str, portion: int | None = None) -> str:
    """Return the path of a file of a manifest or portion, relative to the run directory.

    A portion is a part of a manifest that a long listing writes before it ends.

    Args:
        number: The number of the manifest.
        name: The name of the file, such as `blocks.parquet`.
        portion: The number of the portion, None for the manifest itself.

    Returns:
        The path, such as `manifest/0/blocks.parquet`.
    """
    return f"{get_folder(number, portion)}/{name}"


def list_complete_manifests(store: Store) -> list[int]:
    """Return the numbers of all manifests whose listing is finished, ascending.

    Args:
        store: The run directory.

    Returns:
        The numbers, which begin with 0 and have no gaps.
    """
    return list_manifests(store)[0]


def read_open_manifest(store: Store) -> ManifestInfo | None:
    """Return the info of the open manifest, which a listing has not completed yet.

    A listing writes its manifest in portions, so that scoring can start before the listing ends.

    Args:
        store: The run directory.

    Returns:
        The info up to the last complete portion. None if no manifest is open, or if the open
        manifest has no complete portion yet.
    """
    return list_manifests(store)[1]


def list_manifests(store: Store) -> tuple[list[int], ManifestInfo | None]:
    """Return the numbers of all complete manifests, and the info of the open manifest so far.

    The open manifest is one that a listing has not completed yet. The listing writes it in
    portions.

    Args:
        store: The run directory.

    Returns:
        The numbers, ascending, and the info of the last complete portion. The info is None if no
        manifest with a complete portion is open.
    """
    last = last_complete(store)
    following = 0 if last is None else last.manifest + 1
    return list(range(following)), read_last_portion(store, following)


def last_complete(store: Store) -> ManifestInfo | None:
    """Return the info of the newest complete manifest; None if no manifest is complete.

    The result is kept for each `Store`, because a complete manifest never changes. Later calls only
    look for manifests with higher numbers.
    """
    last = _last_complete.get(store)
    if last is None:
        for number in reversed(_list_numbers(store, "manifest")):
            last = read_complete(store, number)
            if last is not None:
                break
    number = -1 if last is None else last.manifest
    while (info := read_complete(store, number + 1)) is not None:
        last, number = info, number + 1
    if last is not None:
        _last_complete[store] = last
    return last


def read_complete(store: Store, number: int, portion: int | None = None) -> ManifestInfo | None:
    """Read the info of a complete manifest, or of one complete portion of a manifest.

    A manifest or portion is complete when all of its files are written. A portion is a part of a
    manifest that a long listing writes before it ends.

    Args:
        store: The run directory.
        number: The number of the manifest.
        portion: The number of the portion, None for the manifest itself.

    Returns:
        The info; None if the manifest or portion does not exist or is not complete.

    Raises:
        IdentityError: Another version of Touchstone wrote the manifest.
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
    """Return the info of a manifest's last complete portion; None if it has no complete portion.

    A listing writes a manifest in portions, so that members are scored while it continues.
    """
    # Portions are written one after another, so the last alone can be incomplete.
    for portion in reversed(_list_numbers(store, get_folder(number))[-2:]):
        info = read_complete(store, number, portion)
        if info is not None:
            return info
    return None


def read_last_listing(store: Store) -> ManifestInfo | None:
    """Return the info of the newest manifest of a run, even if its listing is not finished.

    Args:
        store: The run directory.

    Returns:
        The info up to the last complete portion of the listing; None if nothing is listed yet.
    """
    last = last_complete(store)
    return read_last_portion(store, 0 if last is None else last.manifest + 1) or last


def close_manifest(store: Store, last_portion: ManifestInfo) -> ManifestInfo:
    """Complete a manifest that was written in portions, after its listing is finished.

    A portion is a part of a manifest that a long listing writes before it ends. If this function is
    interrupted, it can be called again.

    Args:
        store: The run directory.
        last_portion: The info of the manifest's last portion.

    Returns:
        The info of the complete manifest.
    """
    number = last_portion.manifest
    blocks = read_blocks_so_far(store, last_portion).columns()
    store.write(path_in(number, "blocks.parquet"), to_parquet_bytes(blocks))
    vanished = read_vanished_so_far(store, last_portion)
    store.write(path_in(number, "vanished.parquet"), _vanished_bytes(vanished))
    info = replace(last_portion, goes_on=False)
    create_file(store, path_in(number, "_complete"), _info_bytes(info))
    return info


def copy_manifest(store: Store, number: int, target: Store) -> None:
    """Copy a complete manifest (a list of members) into another run, under the same number.

    The copy is complete only when all files are copied, so an interrupted call can be repeated.

    Args:
        store: The run directory with the manifest.
        number: The number of the manifest.
        target: The run directory to write to.
    """

    def copy(path: str) -> None:
        target.write(path, store.read(path))

    with ThreadPoolExecutor(_MAX_REQUESTS) as pool:
        # Without the `_complete` of its portions, an incomplete copy is not an open manifest.
        for _ in pool.map(copy, _files_below(store, get_folder(number))):
            pass
    path = path_in(number, "_complete")
    create_file(target, path, store.read(path))


def _files_below(store: Store, folder: str) -> Iterator[str]:
    yield from (f"{folder}/{name}" for name in store.names(folder) if name != "_complete")
    for name in store.folders(folder):
        yield from _files_below(store, f"{folder}/{name}")


def _list_numbers(store: Store, folder: str) -> list[int]:
    return sorted(int(name) for name in store.folders(folder) if name.isdigit())


def load_guard(store: Store) -> Guard:
    """Load the guard of a run, which limits from which web servers members may be read.

    The guard allows every server that was allowed when the members were listed.

    Args:
        store: The run directory.

    Returns:
        The guard.
    """
    return read_known_count(store)[1]


def read_known_count(store: Store) -> tuple[int, Guard]:
    """Return the number of members that all manifests of a run list so far, and the run's guard.

    The guard limits from which web servers these members may be read.
    """
    last = read_last_listing(store)
    if last is None:
        return 0, Guard()
    return last.members_so_far, Guard(frozenset(last.servers), last.allow_private)


def create_file(store: Store, path: str, data: bytes) -> None:
    """Write a file of a manifest; raise an error if another process has already written it.

    Args:
        store: The run directory.
        path: The path of the file in the run directory.
        data: The content.

    Raises:
        StorageError: Another process has written the file.
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
    """Write the last files of a manifest, which make it complete.

    The files of the members and of their ids must already be written. This function writes
    `blocks.parquet`, `vanished.parquet`, and `_complete`.

    Args:
        store: The run directory.
        info: The info of the manifest.
        blocks: The table of its blocks (`BLOCK_COLUMNS`).
        vanished: The sorted ids of the members that the listing no longer found.

    Raises:
        StorageError: Another process wrote the manifest.
    """
    create_file(store, path_in(info.manifest, "blocks.parquet"), to_parquet_bytes(blocks))
    create_file(store, path_in(info.manifest, "vanished.parquet"), _vanished_bytes(vanished))
    create_file(store, path_in(info.manifest, "_complete"), _info_bytes(info))


def write_portion(store: Store, info: ManifestInfo, blocks: pa.Table, vanished: Ids) -> None:
    """Write the last files of a portion of a manifest, which make the portion complete.

    A portion is a part of a manifest that a long listing writes before it ends. The files of the
    portion's members and of their ids must already be written. This function writes the portion's
    `blocks.parquet`, `vanished.parquet`, and `_complete`.

    Args:
        store: The run directory.
        info: The info of the manifest up to the end of this portion.
        blocks: The table of the portion's blocks (`BLOCK_COLUMNS`).
        vanished: The sorted ids of all known members that the listing no longer found.

    Raises:
        StorageError: Another process wrote the portion.
    """
    number, portion = info.manifest, info.portions - 1
    previous = _read_vanished(store, number - 1)
    vanished_now, returned_now = np.setdiff1d(vanished, previous), np.setdiff1d(previous, vanished)
    changes = pa.table(
        {
            "image_id": pa.array(np.concatenate([vanished_now, returned_now]), pa.int64()),
            "is_back": pa.array(
                np.arange(len(vanished_now) + len(returned_now)) >= len(vanished_now)
            ),
        }
    )
    create_file(store, path_in(number, "blocks.parquet", portion), to_parquet_bytes(blocks))
    create_file(store, path_in(number, "vanished.parquet", portion), to_parquet_bytes(changes))
    create_file(store, path_in(number, "_complete", portion), _info_bytes(info))


def _info_bytes(info: ManifestInfo) -> bytes:
    return json.dumps(asdict(info), indent=1).encode()


def _vanished_bytes(vanished: Ids) -> bytes:
    return to_parquet_bytes(pa.table([pa.array(vanished)], schema=VANISHED_COLUMNS))


def read_table(store: Store, path: str) -> pa.Table:
    """Read a whole Parquet file of a store in one request."""
    return pq.ParquetFile(pa.BufferReader(store.read(path))).read()


def to_parquet_bytes(table: pa.Table, *, row_group: int | None = None) -> bytes:
    """Return a table as the content of a Parquet file, with `row_group` rows per row group."""
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", row_group_size=row_group, use_dictionary=False)
    return file.getvalue()


def read_blocks(store: Store, number: int, portion: int | None = None) -> BlockList:
    """Return the blocks of a complete manifest, or of one of its portions, in order.

    A block is a fixed list of members that is scored as a unit. A portion is a part of a manifest
    that a long listing writes before it ends.

    Args:
        store: The run directory.
        number: The number of the manifest.
        portion: The number of the portion, None for the whole manifest.

    Returns:
        The locations of the blocks in the files of the manifest.
    """
    table = read_table(store, path_in(number, "blocks.parquet", portion))
    return BlockList(
        table.append_column("manifest", pa.array(np.full(len(table), number, np.int32)))
    )


def read_blocks_so_far(store: Store, portion_info: ManifestInfo) -> BlockList:
    """Return the blocks of an open manifest, which a listing has not completed yet, in order.

    Args:
        store: The run directory.
        portion_info: The info of one portion of the manifest. Blocks of later portions are left
            out.

    Returns:
        The locations of the blocks in the files of the manifest.
    """
    portions = range(portion_info.portions)
    with ThreadPoolExecutor(_MAX_REQUESTS) as pool:
        read = partial(read_blocks, store, portion_info.manifest)
        return BlockList.concat(list(pool.map(read, portions)))


def read_block_lists(store: Store) -> Iterator[BlockList]:
    """Yield the blocks of each manifest of a run, a list per manifest.

    If a listing is in progress, the last list has the blocks that it has written so far.

    Args:
        store: The run directory.
    """
    numbers, open_info = list_manifests(store)
    for number in numbers:
        yield read_blocks(store, number)
    if open_info is not None:
        yield read_blocks_so_far(store, open_info)


def read_ids(store: Store, blocks: BlockList) -> Iterator[Ids]:
    """Yield, for each of several consecutive blocks, the ids of its members as an array.

    Each file of the manifest is read once, because it contains several blocks.

    Args:
        store: The run directory.
        blocks: The blocks.
    """
    parquet, open_path = None, ""
    for ref in blocks:
        if parquet is None or ref.file != open_path:
            parquet, open_path = (
                pq.ParquetFile(pa.BufferReader(store.read(path_in(ref.manifest, ref.file)))),
                ref.file,
            )
        yield parquet.read_row_group(ref.row_group, columns=["image_id"])["image_id"].to_numpy()


def read_vanished(store: Store, number: int) -> Ids:
    """Return the sorted ids of the members that a complete manifest lists as vanished.

    An earlier manifest lists these members, but the archive no longer has them.

    Args:
        store: The run directory.
        number: The number of the manifest.
    """
    vanished: Ids = read_table(store, path_in(number, "vanished.parquet"))["image_id"].to_numpy()
    return vanished


def read_vanished_so_far(store: Store, portion_info: ManifestInfo) -> Ids:
    """Return the sorted ids of the members that an open manifest lists as vanished so far.

    An earlier manifest lists these members, but the archive no longer has them. A listing that is
    not finished writes the open manifest in portions.

    Args:
        store: The run directory.
        portion_info: The info of one portion of the manifest. Later portions are left out.

    Returns:
        The ids.
    """
    number, previous = portion_info.manifest, _read_vanished(store, portion_info.manifest - 1)
    changes = read_table(store, path_in(number, "vanished.parquet", portion_info.portions - 1))
    ids, is_back = changes["image_id"].to_numpy(), changes["is_back"].to_numpy()
    return np.union1d(np.setdiff1d(previous, ids[is_back]), ids[~is_back])


def _read_vanished(store: Store, number: int) -> Ids:
    return read_vanished(store, number) if number >= 0 else np.empty(0, np.int64)


# The struct column `input` exists only if the source has columns of its own, because Parquet has no
# structs without fields. A column of a list must have one type, or the list is refused. Columns of
# one name in several tables of an archive become text if no type holds both, because no table in an
# archive may stop a run.
def manifest_schema(input_type: pa.StructType | None) -> pa.Schema:
    """Return the Arrow schema of the members in a manifest.

    Args:
        input_type: The type of the struct column `input`, which has the source's own columns. None
            leaves the column out.

    Returns:
        The schema of the files `part-….parquet` of a manifest.
    """
    return pa.schema(
        [
            *_LISTED_COLUMNS,
            *_CUT_COLUMNS,
            *_LAST_COLUMNS,
            *([pa.field("input", input_type)] if input_type is not None else []),
        ]
    )


def listed_rows(ids: Ids, items: Sequence[ListedMember]) -> pa.Table:
    """Convert listed members into Arrow rows, before they are cut into blocks.

    The rows have the columns of a manifest except for `block` and `slot`.

    Args:
        ids: The ids of the members, in the same order.
        items: The members.

    Returns:
        One row per member. The column `input`, with the user's own columns, exists if any member
        has such columns.

    Raises:
        ConfigError: The members are from a list of uris, and a column of the list has values of
            several types.
    """
    columns = [
        pa.array(ids, pa.int64()),
        pa.array([item.uri for item in items], pa.string()),
        pa.array([item.member for item in items], pa.string()),
        pa.array([item.occurrence for item in items], pa.int32()),
        pa.array([item.version for item in items], pa.string()),
        pa.array(
            [item.size_bytes if item.size_bytes <= MAX_BYTES else -1 for item in items], pa.int64()
        ),
        _build_struct([item.place for item in items], _PLACE_TYPE),
        _build_struct(
            [
                item.refused and replace(item.refused, detail=one_line(item.refused.detail))
                for item in items
            ],
            _REFUSED_TYPE,
        ),
    ]
    fields = [*_LISTED_COLUMNS, *_LAST_COLUMNS]
    if inputs := _build_input(
        [item.input for item in items], as_text=any(map(has_archive_columns, items))
    ):
        columns.append(inputs)
        fields.append(pa.field("input", inputs.type))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def has_archive_columns(item: ListedMember) -> bool:
    """Return whether a member's `input` is from a file of the archive, not from a list of uris.

    `input` has the user's own columns. If the types of a column clash in tables or sidecar files of
    the archive, the column becomes text, so that the run continues. A clash in a list of uris
    raises a ConfigError.
    """
    return item.place is not None or isinstance(item, ListedWithColumns)


def cut_rows(rows: pa.Table, block: int, schema: pa.Schema) -> pa.Table:
    """Add the columns `block` and `slot` to the rows of one block of a manifest.

    `block` is the number of the block, and `slot` is the position of a member in the block.

    Args:
        rows: The rows of the block's members, as `listed_rows` returns them.
        block: The number of the block.
        schema: The schema of the manifest, whose order of columns the result has.

    Returns:
        The rows with all columns of the manifest.
    """
    count = len(rows)
    columns: dict[str, Any] = {name: rows[name] for name in rows.schema.names}
    columns |= {
        "block": pa.array(np.full(count, block, np.int32)),
        "slot": pa.array(np.arange(count, dtype=np.int32)),
    }
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def get_input_type(table: pa.Table) -> pa.StructType | None:
    """Return the type of the column `input`, which has the user's own columns for each member.

    The result is None if the table has no column `input`.
    """
    return table.schema.field("input").type if "input" in table.schema.names else None


def widen_input(table: pa.Table, kind: pa.StructType | None) -> pa.Table:
    """Convert the column `input` of rows of members to a type with at least the same fields.

    `input` is a struct of the user's own columns. Files with different columns get one common type,
    so that they fit into one manifest. Fields that a file does not have are null.

    Args:
        table: The rows of members.
        kind: The wider type, None for no change.

    Returns:
        The rows with `input` of the wider type.
    """
    if kind is None or get_input_type(table) == kind:
        return table
    count = len(table)
    if "input" not in table.schema.names:
        return table.append_column(pa.field("input", kind), pa.nulls(count, kind))
    present = table["input"].combine_chunks()
    names = [field.name for field in present.type]
    children = [
        as_type(present.field(field.name), field.type)
        if field.name in names
        else pa.nulls(count, field.type)
        for field in kind
    ]
    widened = pa.StructArray.from_arrays(children, fields=list(kind), mask=present.is_null())
    return table.set_column(table.schema.get_field_index("input"), pa.field("input", kind), widened)


def merge_input_types(
    types: Iterable[pa.StructType | None], *, as_text: bool
) -> pa.StructType | None:
    """Merge the types that the column `input` has in several files into one type.

    `input` is a struct of the user's own columns.

    Args:
        types: The types of `input` in several files; None for a file without columns.
        as_text: Whether a column whose types clash becomes text.

    Returns:
        The common type; None if all of `types` are None.

    Raises:
        ConfigError: The types of a column clash, and `as_text` is False. The message names the
            column.
    """
    columns: dict[str, pa.DataType] = {}
    for kind in types:
        for column in kind or ():
            merged = columns.get(column.name, column.type)
            columns[column.name] = (
                merged
                if merged == column.type
                else _unify_types(column.name, merged, column.type, as_text=as_text)
            )
    return pa.struct(list(columns.items())) if columns else None


def as_type(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Convert a column to a type that `merge_input_types` returned.

    If the type is text, other values are converted to JSON text.
    """
    if pa.types.is_string(kind) and not (
        pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ):
        return pa.array([_to_text(value) for value in column.to_pylist()], kind)
    if column.type == kind:
        return column
    # pyarrow 26 casts slices of lists within lists wrongly.
    return pa.array(column.to_pylist(), kind) if pa.types.is_nested(kind) else column.cast(kind)


def finalize_type(kind: pa.StructType | None) -> pa.StructType | None:
    """Replace null types in the type of the column `input`, so that a manifest file can store it.

    `input` is a struct of the user's own columns. A field in which no member has a value has
    Arrow's null type, and becomes text. If `kind` is None, the result is None.
    """
    return kind and pa.struct(
        [
            (field.name, pa.string() if pa.types.is_null(field.type) else field.type)
            for field in kind
        ]
    )


def _build_struct(values: Sequence[Any], kind: pa.StructType) -> pa.Array:
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


def _build_input(inputs: Sequence[dict[str, Any]], *, as_text: bool) -> pa.Array | None:
    names = list(dict.fromkeys(name for values in inputs for name in values))
    if not names:
        return None
    return pa.StructArray.from_arrays(
        [
            _build_column(name, [values.get(name) for values in inputs], as_text=as_text)
            for name in names
        ],
        names,
    )


def _build_column(name: str, values: list[Any], *, as_text: bool) -> pa.Array:
    try:
        column = pa.array(values)
        if _has_times(column.type):
            column.to_pylist()  # Raises for times that leave Python's calendar in another time zone.
        return column
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        if as_text:
            return pa.array([_to_text(value) for value in values], pa.string())
        kinds = sorted({type(value).__name__ for value in values if value is not None})
        raise _clash_error(name, " and ".join(kinds)) from None


def _has_times(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind)) or any(
        _has_times(kind.field(i).type) for i in range(kind.num_fields)
    )


def _to_text(value: Any) -> str | None:
    return (
        value
        if value is None or isinstance(value, str)
        else json.dumps(value, default=str, ensure_ascii=False).strip('"')
    )


def _unify_types(name: str, left: pa.DataType, right: pa.DataType, *, as_text: bool) -> pa.DataType:
    try:
        schemas = [pa.schema([(name, kind)]) for kind in (left, right)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        if as_text:
            return pa.string()
        raise _clash_error(name, f"{left} and {right}") from None


def _clash_error(name: str, kinds: str) -> ConfigError:
    return ConfigError(
        f"column '{name}' of the source holds both {kinds}, but must have one type",
        hint="give the column values of one type, or score the files of each type in a separate run",
    )
