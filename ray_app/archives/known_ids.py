"""Read the ids of all members that a run has listed so far, and find members by their uris.

`read_known_ids` reads the ids, so that a new listing can leave out known members. `find_ids_in`
finds the members in folders and files that could not be listed.

    ids/00000.parquet    image_id and check word of all members that manifests 0 to n added; n is in its metadata

Each manifest or portion has files with its own ids. To save requests, the ids of many small
manifests are copied into one merged file, such as the file above. A listing reads the merged files
and the ids of later manifests, and then adds these ids to a merged file. If a merged file is
missing or damaged, the ids are read from the manifests, which takes more requests.
"""

import io
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app.archives import manifest, members
from ray_app.archives.raw_listing import ClosedPlace
from ray_app.storage import Store, local_path

FOLDER = "ids"
# A merged file of this size is final, and the ids of a manifest of this size are not merged.
FULL_BYTES = 8 * 2**20
_MAX_REQUESTS = 16  # Files that are read at once.
_NAME = re.compile(r"(\d+)\.parquet")
_LAST = b"touchstone.last"
_IDS = pa.schema([("image_id", pa.int64()), ("check", pa.int64())])


@dataclass
class _MergedIds:
    """Ids of consecutive manifests, collected for one merged file.

    Attributes:
        first: The first manifest.
        last: The last manifest.
        size: The bytes of the files that the ids came from.
        added: Whether some ids are not in a merged file yet.
        tables: The ids.
    """

    first: int
    last: int = -1
    size: int = 0
    added: bool = False
    tables: list[pa.Table] = field(default_factory=list)

    def add(self, last: int, size: int, tables: Iterable[pa.Table], *, added: bool) -> None:
        """Add the ids of the manifests up to `last`."""
        self.tables += tables
        self.last, self.size, self.added = last, self.size + size, self.added or added

    def keep(self, store: Store) -> None:
        """Write the ids into a merged file, unless they are in one."""
        if self.added:
            table = pa.concat_tables([_IDS.empty_table(), *self.tables]).replace_schema_metadata(
                {_LAST: str(self.last)}
            )
            file = io.BytesIO()
            pq.write_table(
                table, file, compression="zstd", use_dictionary=False, write_page_checksum=True
            )
            store.write(f"{FOLDER}/{self.first:05d}.parquet", file.getvalue())


def read_known_ids(store: Store) -> Iterator[pa.Table]:
    """Yield the ids and check words of all members that the run's manifests list so far.

    A check word is a second word of a member's digest, which differs if two members have the same
    id. The ids of small complete manifests are also copied into merged files (`ids/`). The next
    listing then reads fewer files.
    """
    earlier, open_info = manifest.list_manifests(store)
    if open_info is not None:
        yield from _read_own(store, open_info)[1]
    if not earlier:
        return
    number, end = earlier[0], earlier[-1]
    sizes = {
        int(match[1]): size
        for name, size in store.sizes(FOLDER).items()
        if (match := _NAME.fullmatch(name))
    }
    merged = _MergedIds(number)
    while number <= end:
        stored = _read(store, number, end) if number in sizes else None
        if stored is not None:
            table, last = stored
            size, tables = sizes[number], iter([table])
        else:
            info = manifest.read_complete(store, number)
            assert info is not None, "an earlier manifest is complete"
            size, tables = _read_own(store, info)
            last = number
        if size >= FULL_BYTES:
            merged.keep(store)
            merged = _MergedIds(last + 1)
            yield from tables
        else:
            small_tables = list(tables)
            merged.add(last, size, small_tables, added=stored is None)
            yield from small_tables
            if merged.size >= FULL_BYTES:
                merged.keep(store)
                merged = _MergedIds(last + 1)
        number = last + 1
    merged.keep(store)


def _read(store: Store, first: int, end: int) -> tuple[pa.Table, int] | None:
    """Return the ids of a merged file, and its last manifest.

    The result is None if the file cannot be read, or has ids of manifests that do not exist.
    """
    try:
        table = pq.ParquetFile(
            pa.BufferReader(store.read(f"{FOLDER}/{first:05d}.parquet")),
            page_checksum_verification=True,
        ).read()
        last = int(table.schema.metadata[_LAST])
        return (table.select(_IDS.names).cast(_IDS), last) if first <= last <= end else None
    except (FileNotFoundError, pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None


def _read_own(store: Store, info: manifest.ManifestInfo) -> tuple[int, Iterator[pa.Table]]:
    """Return the bytes of the ids of one manifest, and the ids, from the manifest's own files."""
    portions = range(info.portions) if info.portions else (None,)
    folders = [f"{manifest.get_folder(info.manifest, k)}/{FOLDER}" for k in portions]
    with ThreadPoolExecutor(_MAX_REQUESTS) as pool:
        sizes = dict(zip(folders, pool.map(store.sizes, folders), strict=True))
    paths = [f"{folder}/{name}" for folder in folders for name in sorted(sizes[folder])]
    size = sum(sum(files.values()) for files in sizes.values())
    return size, _read_all(store, paths)


def _read_all(store: Store, paths: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the ids of files, a few of which are read at once."""
    with ThreadPoolExecutor(_MAX_REQUESTS) as pool:
        for start in range(0, len(paths), _MAX_REQUESTS):
            read = partial(manifest.read_table, store)
            for table in pool.map(read, paths[start : start + _MAX_REQUESTS]):
                yield table.select(_IDS.names).cast(_IDS)


def copy_ids(store: Store, numbers: Sequence[int], target: Store, kept: members.Ids) -> None:
    """Copy the ids of members from manifests of one run to manifest 0 of another run.

    Args:
        store: The run directory with the manifests.
        numbers: The numbers of the manifests.
        target: The run directory to write to.
        kept: The sorted ids to copy; other ids are left out.
    """
    infos = (manifest.read_complete(store, number) for number in numbers)
    tables = (table for info in infos if info for table in _read_own(store, info)[1])
    for file, table in enumerate(tables):
        ids = table["image_id"].to_numpy()
        positions = np.minimum(np.searchsorted(kept, ids), max(len(kept) - 1, 0))
        rows = table.filter(pa.array(kept[positions] == ids)) if len(kept) else table.slice(0, 0)
        if len(rows):
            path = f"{manifest.get_folder(0)}/{FOLDER}/0-{file:05}.parquet"
            target.write(path, manifest.to_parquet_bytes(rows))


def find_ids_in(store: Store, ids: members.Ids, places: Collection[ClosedPlace]) -> members.Ids:
    """Find which members are in folders, files, or containers that could not be listed.

    Such members are missing in the listing, but they may still exist, so they do not count as
    vanished. The uris of all members of all manifests are read for this.

    Args:
        store: The run directory.
        ids: Sorted ids of earlier manifests, which the listing did not find.
        places: The folders, files, and containers that could not be listed.

    Returns:
        Those of `ids` whose members are in `places`, sorted.
    """
    folders = {local_path(closed.uri) for closed in places if closed.version is None}
    others = {(closed.uri, closed.version) for closed in places if closed.version is not None}
    of_any_version = {uri for uri, version in others if not version}

    def is_inside(uri: str, version: str) -> bool:
        path = local_path(uri) if uri.startswith("file:///") else uri
        end = len(path)
        while (end := path.rfind("/", 0, end)) > 0:
            if path[:end] in folders:
                return True
        return uri in of_any_version or (uri, version) in others

    inside = []
    for table in _read_columns(store, ["image_id", "uri", "version"]):
        rows = table.filter(pa.array(np.isin(table["image_id"].to_numpy(), ids)))
        locations = zip(rows["uri"].to_pylist(), rows["version"].to_pylist(), strict=True)
        inside += [
            image_id
            for image_id, location in zip(rows["image_id"].to_pylist(), locations, strict=True)
            if is_inside(*location)
        ]
    return np.unique(np.array(inside, np.int64))


def find_file_rows(store: Store, uris: Collection[str], without: members.Ids) -> set[str]:
    """Find which uris any manifest of a run lists as separate files with a known version.

    If a later listing cannot read the version of such a file, its existing result row is kept.

    Args:
        store: The run directory.
        uris: The uris to find.
        without: Ids of members to ignore, such as those that vanished.

    Returns:
        Those of `uris` that are found.
    """
    uri_array, present = pa.array(sorted(uris), pa.string()), set[str]()
    for table in _read_columns(store, ["image_id", "uri", "member", "version"]):
        rows = table.filter(pc.is_in(table["uri"], uri_array))
        counts = pc.and_(pc.is_null(rows["member"]), pc.not_equal(rows["version"], ""))
        is_counted = pa.array(~np.isin(rows["image_id"].to_numpy(), without))
        present.update(rows.filter(pc.and_(counts, is_counted))["uri"].to_pylist())
    return present


def _read_columns(store: Store, columns: list[str]) -> Iterator[pa.Table]:
    """Yield some columns of all members that are listed so far, a file at a time."""
    for blocks in manifest.read_block_lists(store):
        for path in dict.fromkeys(manifest.path_in(ref.manifest, ref.file) for ref in blocks):
            yield pq.read_table(pa.BufferReader(store.read(path)), columns=columns)
