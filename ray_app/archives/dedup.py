"""Which listed members are new: duplicates, colliding ids, what earlier manifests know, what vanished. One partition of the ids at a time.

A partition is all ids with the same top bits. Members with one id but different digests collide: the one known before, else the first
listed, keeps the id; the others are left to `settle`, since there will be a handful in a lifetime.

The ids that manifests have added, on disk, sorted and divided by their top bits, so that a later listing joins one part at a time.

Each id stands with the next word of its member's digest: what tells a known member from another whose id collides with it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives.manifest import folder_of, listed_row, parquet_bytes, read_block, read_blocks, read_complete
from ray_app.archives.members import Digest, Ids, ListedMember, check_word, first_word
from ray_app.archives.raw_listing import BUCKET_BITS, ID_RECORD, RawFile, Scratch, bucket_starts
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


_ROW_BITS = 32  # a member's position: the number of its raw file, then its row
_ROW_MASK = (1 << _ROW_BITS) - 1
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Matched:
    """What one partition found. `marked`: rows of each raw file that are to go (first listing) or to stay (later ones), those of file f
    from bounds[f] to bounds[f + 1]. `collided`: position and check word of members whose id is another's.
    """

    marked: Scratch
    bounds: Ids
    vanished: Ids
    collided: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Matcher:
    """Works on partitions of a listing; called with the partition's number. Picklable, as tasks need it.

    `known`: the id files of earlier manifests; `is_later`: whether there are such manifests.
    """

    store: Store
    number: int
    folder: str
    files: Sequence[RawFile]
    known: Sequence[IdFile]
    bits: int
    is_later: bool

    def __call__(self, partition: int) -> Matched:
        """Write the partition's new ids, and say which rows go or stay."""
        ids, checks, positions = self._listed(partition)
        known, known_checks = read_ids_of(self.store, self.known, self.bits, partition)
        is_first = np.ones(len(ids), bool)
        is_first[1:] = ids[1:] != ids[:-1]
        places, is_known = _find(known, ids)
        holder = checks[np.flatnonzero(is_first)[np.cumsum(is_first) - 1]]
        holder[is_known] = known_checks[places[is_known]]
        is_same = checks == holder
        stays = is_first & is_same & ~is_known
        is_present = np.zeros(len(known), bool)
        is_present[places[is_known & is_same]] = True
        if stays.any():
            write_ids(self.store, self.number, bucket_name(self.bits, partition), ids[stays], checks[stays])
        marked = np.sort(positions[stays if self.is_later else is_same & ~stays])
        rows = (marked & _ROW_MASK).astype(np.int32)
        return Matched(
            marked=Scratch.keep(self.store, f"{self.folder}/marked-{partition:05}", rows.tobytes()),
            bounds=np.searchsorted(marked, np.arange(len(self.files) + 1) << _ROW_BITS),
            vanished=known[~is_present],
            collided=tuple(zip(positions[~is_same].tolist(), checks[~is_same].tolist(), strict=True)),
        )

    def held(self, partition: int) -> tuple[Ids, Ids]:
        """All ids of a partition, sorted, before the listing or in it, with the check words of their holders."""
        known, known_checks = read_ids_of(self.store, self.known, self.bits, partition)
        ids, checks, _ = self._listed(partition)
        ids, first = np.unique(np.concatenate([known, ids]), return_index=True)
        return ids, np.concatenate([known_checks, checks])[first]

    def _listed(self, partition: int) -> tuple[Ids, Ids, Ids]:
        """Ids of the partition with check words and positions, by id and then by position."""
        step = 1 << (BUCKET_BITS - self.bits)
        parts = [file.records(self.store, partition * step, (partition + 1) * step) for file in self.files]
        numbers = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        records = np.concatenate([np.empty(0, ID_RECORD), *parts])
        order = np.argsort(records["id"], kind="stable")
        return records["id"][order], records["check"][order], ((numbers << _ROW_BITS) | records["row"])[order]


@dataclass(frozen=True)
class Settled:
    """What becomes of the members whose id was another's: new ids by position, positions that go, known ids that are there after all."""

    ids: dict[int, int]
    gone: frozenset[int]
    present: Ids


def settle(matcher: Matcher, collided: Iterable[tuple[int, int]], digest: Digest) -> Settled:
    """Hash colliding members again with a counter, in their order, until each has an id that nobody has; writes these ids."""
    look = _Lookup(matcher)
    taken: dict[int, int] = {}
    ids: dict[int, int] = {}
    gone, present = set(), set()
    for position, check in sorted(collided):
        item = look.item(position)
        for counter in count(1):
            number = first_word(digest(item, counter))
            holder = taken.get(number, look.holder(number))
            if holder is None:
                taken[number] = check
                ids[position] = number
                break
            if holder == check:
                gone.add(position)
                present.add(number)
                break
    if taken:
        order = sorted(taken)
        write_ids(matcher.store, matcher.number, REHASHED, np.array(order), np.array([taken[number] for number in order]))
    return Settled(ids, frozenset(gone), np.array(sorted(present - taken.keys()), np.int64))


class _Lookup:
    """Single members and ids of a listing; keeps the last file and partition that it read."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._items: tuple[int, list[dict[str, Any]]] = (-1, [])
        self._held: tuple[int, tuple[Ids, Ids]] | None = None

    def item(self, position: int) -> ListedMember:
        file, row = position >> _ROW_BITS, position & _ROW_MASK
        if self._items[0] != file:
            self._items = file, [row for table in self._matcher.files[file].tables(self._matcher.store) for row in table.to_pylist()]
        return listed_row(dict(self._items[1][row]))

    def holder(self, number: int) -> int | None:
        """The check word of the member that has this id."""
        bits = self._matcher.bits
        partition = (number >> (64 - bits)) + (1 << (bits - 1)) if bits else 0
        if self._held is None or self._held[0] != partition:
            self._held = partition, self._matcher.held(partition)
        ids, checks = self._held[1]
        [place], [is_there] = _find(ids, np.array([number]))
        return int(checks[place]) if is_there else None


@dataclass(frozen=True)
class ChosenMembers:
    """The members of one raw file that a manifest gets: all (`is_later`: none) but the marked rows, and what became of collided ones."""

    file: RawFile
    is_later: bool
    marked: tuple[tuple[Scratch, int, int], ...]
    ids: tuple[tuple[int, int], ...]
    gone: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many they are."""
        marked = sum(end - start for _, start, end in self.marked)
        return marked + len(self.ids) if self.is_later else self.file.rows - marked - len(self.gone)

    def tables(self, store: Store, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Their rows with their ids, a bounded table at a time."""
        if not self.rows:
            return
        stays = np.full(self.file.rows, not self.is_later)
        width = np.dtype("<i4").itemsize
        for scratch, start, end in self.marked:
            stays[np.frombuffer(scratch.read(store, start * width, end * width), "<i4")] = self.is_later
        stays[[row for row, _ in self.ids]] = True
        stays[list(self.gone)] = False
        at = 0
        for table in self.file.tables(store, columns):
            kept = stays[at : at + len(table)]
            yield self._renamed(table, at).filter(pa.array(kept)) if not kept.all() or self.ids else table
            at += len(table)

    def _renamed(self, table: pa.Table, at: int) -> pa.Table:
        new = [(row - at, number) for row, number in self.ids if at <= row < at + len(table)]
        if not new or "image_id" not in table.schema.names:
            return table
        ids = table["image_id"].to_numpy().copy()
        ids[[row for row, _ in new]] = [number for _, number in new]
        return table.set_column(0, table.schema.field("image_id"), pa.array(ids))


def chosen(matcher: Matcher, matched: Sequence[Matched], settled: Settled) -> list[ChosenMembers]:
    """What the partitions found, seen from each raw file, in order."""
    ids: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    gone: defaultdict[int, list[int]] = defaultdict(list)
    for position, number in settled.ids.items():
        ids[position >> _ROW_BITS].append((position & _ROW_MASK, number))
    for position in sorted(settled.gone):
        gone[position >> _ROW_BITS].append(position & _ROW_MASK)
    found = []
    for number, file in enumerate(matcher.files):
        ranges = ((one.marked, int(one.bounds[number]), int(one.bounds[number + 1])) for one in matched)
        marked = tuple((scratch, start, end) for scratch, start, end in ranges if end > start)
        found.append(ChosenMembers(file, matcher.is_later, marked, tuple(ids[number]), tuple(gone[number])))
    return found


def _find(held: Ids, wanted: Ids) -> tuple[Ids, Bools]:
    """Where each id stands among sorted ones, and whether it does."""
    if not len(held):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(held, wanted), len(held) - 1)
    return places, held[places] == wanted
