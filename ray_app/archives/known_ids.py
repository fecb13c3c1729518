"""The ids of earlier manifests, in a few files (`known_ids`); and the ids whose members are in
given places (`ids_in`).

    ids/00000.parquet    image_id and check word of all members that manifests 0 … n added; n stands in its metadata

Each manifest or portion has its own ids with it. Those of complete manifests with few of them are
kept together here: a listing reads the file and the ids of the manifests since, and writes it again
with these. The files here only repeat ids. Any of them may be removed or damaged, which costs
requests.
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
# a file of this size stays as it is, and the ids of a manifest that has as many are not repeated
FULL_BYTES = 8 * 2**20
_REQUESTS = 16  # files that are read at once
_NAME = re.compile(r"(\d+)\.parquet")
_LAST = b"touchstone.last"
_IDS = pa.schema([("image_id", pa.int64()), ("check", pa.int64())])


@dataclass
class _Together:
    """Ids of manifests in a row, `first` … `last`, as they come; `added`: whether any of them are
    not in a file of several yet.
    """

    first: int
    last: int = -1
    size: int = 0
    added: bool = False
    tables: list[pa.Table] = field(default_factory=list)

    def add(self, last: int, size: int, tables: Iterable[pa.Table], *, added: bool) -> None:
        """Take the ids of what follows."""
        self.tables += tables
        self.last, self.size, self.added = last, self.size + size, self.added or added

    def keep(self, store: Store) -> None:
        """Write them, unless they are written."""
        if self.added:
            table = pa.concat_tables([_IDS.empty_table(), *self.tables]).replace_schema_metadata(
                {_LAST: str(self.last)}
            )
            file = io.BytesIO()
            pq.write_table(
                table, file, compression="zstd", use_dictionary=False, write_page_checksum=True
            )
            store.write(f"{FOLDER}/{self.first:05d}.parquet", file.getvalue())


def known_ids(store: Store) -> Iterator[pa.Table]:
    """Yield ids and check words of all members that are listed so far, and keep those of complete
    manifests together for the next listing.
    """
    earlier, listed = manifest.listed_manifests(store)
    if listed is not None:
        yield from _own(store, listed)[1]
    if not earlier:
        return
    number, end = earlier[0], earlier[-1]
    sizes = {
        int(match[1]): size
        for name, size in store.sizes(FOLDER).items()
        if (match := _NAME.fullmatch(name))
    }
    waiting = _Together(number)
    while number <= end:
        kept = _read(store, number, end) if number in sizes else None
        if kept is not None:
            table, last = kept
            size, tables = sizes[number], iter([table])
        else:
            info = manifest.read_complete(store, number)
            assert info is not None, "an earlier manifest is complete"
            size, tables = _own(store, info)
            last = number
        if size >= FULL_BYTES:
            waiting.keep(store)
            waiting = _Together(last + 1)
            yield from tables
        else:
            few = list(tables)
            waiting.add(last, size, few, added=kept is None)
            yield from few
            if waiting.size >= FULL_BYTES:
                waiting.keep(store)
                waiting = _Together(last + 1)
        number = last + 1
    waiting.keep(store)


def _read(store: Store, first: int, end: int) -> tuple[pa.Table, int] | None:
    """What stands in a kept file, and the last manifest in it; None where it cannot be read, or
    knows of manifests that are not.
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


def _own(store: Store, listed: manifest.ManifestInfo) -> tuple[int, Iterator[pa.Table]]:
    """Return the bytes of the ids of one manifest, and the ids, from its own files."""
    portions = range(listed.portions) if listed.portions else (None,)
    folders = [f"{manifest.folder_of(listed.manifest, k)}/{FOLDER}" for k in portions]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        sizes = dict(zip(folders, pool.map(store.sizes, folders), strict=True))
    paths = [f"{folder}/{name}" for folder in folders for name in sorted(sizes[folder])]
    size = sum(sum(files.values()) for files in sizes.values())
    return size, _read_all(store, paths)


def _read_all(store: Store, paths: Sequence[str]) -> Iterator[pa.Table]:
    """Yield ids from files, a few of which are read at once."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for start in range(0, len(paths), _REQUESTS):
            read = partial(manifest.read_table, store)
            for table in pool.map(read, paths[start : start + _REQUESTS]):
                yield table.select(_IDS.names).cast(_IDS)


def copy_ids(store: Store, numbers: Sequence[int], target: Store, kept: members.Ids) -> None:
    """Write the ids of manifests as those of manifest 0 of another run.

    Args:
        store: The run directory with the manifests.
        numbers: The numbers of the manifests.
        target: The run directory to write to.
        kept: The sorted ids to copy.
    """
    listed = (manifest.read_complete(store, number) for number in numbers)
    tables = (table for info in listed if info for table in _own(store, info)[1])
    for file, table in enumerate(tables):
        ids = table["image_id"].to_numpy()
        at = np.minimum(np.searchsorted(kept, ids), max(len(kept) - 1, 0))
        rows = table.filter(pa.array(kept[at] == ids)) if len(kept) else table.slice(0, 0)
        if len(rows):
            path = f"{manifest.folder_of(0)}/{FOLDER}/0-{file:05}.parquet"
            target.write(path, manifest.parquet_bytes(rows))


def ids_in(store: Store, ids: members.Ids, places: Collection[ClosedPlace]) -> members.Ids:
    """Return the ids, of some sorted ids of earlier manifests, whose members are in one of these
    places.

    Reads the uris of all members of the manifests.
    """
    folders = {local_path(place.uri) for place in places if place.version is None}
    others = {(place.uri, place.version) for place in places if place.version is not None}
    of_any_version = {uri for uri, version in others if not version}

    def is_inside(uri: str, version: str) -> bool:
        path = local_path(uri) if uri.startswith("file:///") else uri
        end = len(path)
        while (end := path.rfind("/", 0, end)) > 0:
            if path[:end] in folders:
                return True
        return uri in of_any_version or (uri, version) in others

    found = []
    for table in _columns_of(store, ["image_id", "uri", "version"]):
        rows = table.filter(pa.array(np.isin(table["image_id"].to_numpy(), ids)))
        facts = zip(rows["uri"].to_pylist(), rows["version"].to_pylist(), strict=True)
        found += [
            image_id
            for image_id, fact in zip(rows["image_id"].to_pylist(), facts, strict=True)
            if is_inside(*fact)
        ]
    return np.unique(np.array(found, np.int64))


def files_at(store: Store, uris: Collection[str], without: members.Ids) -> set[str]:
    """Return which of these uris have a row of the file itself, of a known version, in what is
    listed so far.

    Args:
        store: The run directory.
        uris: The uris to look up.
        without: Ids of rows that do not count.
    """
    wanted, found = pa.array(sorted(uris), pa.string()), set[str]()
    for table in _columns_of(store, ["image_id", "uri", "member", "version"]):
        rows = table.filter(pc.is_in(table["uri"], wanted))
        counts = pc.and_(pc.is_null(rows["member"]), pc.not_equal(rows["version"], ""))
        stays = pa.array(~np.isin(rows["image_id"].to_numpy(), without))
        found.update(rows.filter(pc.and_(counts, stays))["uri"].to_pylist())
    return found


def _columns_of(store: Store, columns: list[str]) -> Iterator[pa.Table]:
    """Yield some columns of all members that are listed so far, a file at a time."""
    for blocks in manifest.read_block_lists(store):
        for path in dict.fromkeys(manifest.path_in(ref.manifest, ref.file) for ref in blocks):
            yield pq.read_table(pa.BufferReader(store.read(path)), columns=columns)
