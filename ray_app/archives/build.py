"""`list_members`: an archive → its next manifest: all members the first time, later what is new. `is_as_listed` asks whether there is
anything new.

1. The archive is walked (`Walk`), section by section, into raw files: first what its sources list, then what is in containers. Where the
   sources name what they named before (a digest), that is all.
2. Ids are joined: duplicates, collisions, what is known, what vanished.
3. Runs of raw files are cut into blocks and written. Only then does the manifest count; an interrupted listing begins anew.

Who runs the steps is passed in (`Each`). Memory: a few numbers per section, block and container, a bit per member, and 8 bytes per vanished
one; beside the join's own.

`write_selected`: a manifest made of members of other manifests, under their own ids: what is to be scored again.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from ray_app import __version__
from ray_app.archives import cut_blocks, dedup, raw_listing
from ray_app.archives.containers import Container
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
    read_complete,
    read_vanished,
    settled,
    with_input,
    write_complete,
    write_listed,
)
from ray_app.archives.members import BlockPlan, Digest, Ids, block_sizes, identity_digest
from ray_app.archives.sources import Archive, Opened, SourceSection
from ray_app.storage import Guard, LinkedFolders, Store


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
    arriving = cut_blocks.TableStream(with_input(table, wanted) for table in rows)
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


T = TypeVar("T")
R = TypeVar("R")

_SHARDS_AT_ONCE, _SHARD_BYTES = 8, 2**30  # containers that one task opens, whichever is reached first
_LITTLE_BYTES = 8 * 2**20  # of containers that are opened at once rather than by tasks
_MOST_SECTIONS = 2048  # of very many containers, so many more to a task that there are no more tasks than this
_CARRIED_BYTES = 16 * 2**20

_FEW_NAMED = 100_000  # files and containers that one process lists in some seconds


class Each(Protocol):
    """Something that applies a picklable function to items, in whatever processes, and gives the results in their order."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """Raises what the function raises, if it is a TouchstoneError as it was."""


def in_turn(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
    """One after another, in this process."""
    return map(function, items)


@dataclass(frozen=True)
class Portions:
    """How many members one task holds at once or one file of ids has, and how few are not worth a task at all."""

    raw_rows: int = raw_listing.RAW_ROWS
    id_rows: int = 1 << 20
    run_rows: int = cut_blocks.RUN_ROWS
    few: int = 100_000


def list_members(
    store: Store,
    archive: Archive,
    plan: BlockPlan,
    *,
    each: Each = in_turn,
    progress: raw_listing.Progress | None = None,
    limit: int | None = None,
    digest: Digest = identity_digest,
    portions: Portions = Portions(),
    clock: Callable[[], float] = time.monotonic,
) -> ManifestInfo | None:
    """Write the next manifest; None when the archive is as the last one says. `progress` gets how many members there are so far.

    A later manifest holds the members whose id no earlier one has, and as vanished all ids ever listed that are not there now: a file
    put back to an older version makes the old id current again, with the row that it has. `limit`: no more than the first so many.

    Raises ConfigError for an empty source and for columns whose types clash, StorageError when a source or the store is out of reach.
    """
    began = clock()
    numbers = manifests(store)
    number = numbers[-1] + 1 if numbers else 0
    store.clear(folder_of(number))
    scratch = f"{folder_of(number)}/listing"
    walk = Walk(
        raw_listing.SectionLister(store, scratch, archive.selection, archive.fetcher, digest, portions.raw_rows),
        archive,
        each,
        limit,
        progress,
    )
    walk.sources()
    last = read_complete(store, numbers[-1]) if numbers else None
    if last is not None and last.digest == walk.digest:
        store.clear(folder_of(number))
        return None
    walk.containers()
    files, listed = walk.files, walk.kept
    if not listed:
        raise archive.empty(walk.found, walk.opened)
    input_type = settled(joined_inputs((file.input_type for file in files), as_text=any(file.as_text for file in files)))
    earlier = sum(info.members for info in (read_complete(store, one) for one in numbers) if info is not None)
    if max(listed, earlier) <= portions.few:
        each = in_turn
    kept, vanished = dedup.choose_new(store, number, numbers, files, digest, portions.id_rows)
    runs = cut_blocks.runs_of(kept, portions.run_rows)
    if numbers and not runs and np.array_equal(vanished, read_vanished(store, numbers[-1])):
        store.clear(folder_of(number))
        if last is not None:
            write_complete(store, replace(last, **_noted(walk)))
        return None
    blocks = _cut(store, number, plan, runs, input_type, each)
    info = ManifestInfo(
        manifest=number,
        members=int(blocks["members"].to_numpy().sum()),
        size_bytes=int(blocks["size_bytes"].to_numpy().sum()),
        blocks=len(blocks),
        batch_slots=plan.batch_slots,
        listed=listed,
        vanished=len(vanished),
        listing_s=round(clock() - began, 3),
        **_noted(walk),
    )
    store.clear(scratch)
    write_listed(store, info, blocks, vanished)
    return info


def is_as_listed(store: Store, archive: Archive, limit: int | None = None, most: int = _FEW_NAMED) -> bool:
    """Whether the sources name the very files and containers of the last listing, so that `list_members` would find nothing new.

    Opens no container, and gives up (False) where they named more than `most`. Raises as `list_members`.
    """
    numbers = manifests(store)
    info = read_complete(store, numbers[-1]) if numbers else None
    if info is None or not info.digest or info.named > most:
        return False
    folder = folder_of(info.manifest + 1)
    walk = Walk(
        raw_listing.SectionLister(store, f"{folder}/listing", archive.selection, archive.fetcher, identity_digest), archive, limit=limit
    )
    walk.sources()
    store.clear(folder)
    return walk.digest == info.digest


@dataclass
class Walk:
    """A way through the sections of an archive, and what was found on it.

    `found`: members, chosen or not; `files`: the chosen ones; `opened`: how many containers; `settled`: whether what they hold is known
    for good as long as their versions are the same. `named`: chosen files and containers that the sources themselves list, and `digest`
    what tells these from others. `linked`: folders that were not followed.
    """

    lister: raw_listing.SectionLister
    archive: Archive
    each: Each = in_turn
    limit: int | None = None
    progress: raw_listing.Progress | None = None
    found: int = 0
    kept: int = 0
    files: list[raw_listing.RawFile] = field(default_factory=list)
    opened: int = 0
    settled: bool = True
    digest: str = ""
    named: int = 0
    linked: LinkedFolders = field(default_factory=LinkedFolders)
    _waiting: list[Container] = field(default_factory=list)
    _carried: int = 0
    _sections: int = 0

    def sources(self) -> None:
        """List what the sources themselves say: files, and containers that are not opened yet."""
        guard = self.archive.fetcher.guard
        total = hashlib.sha256(repr((__version__, self.archive.selection, self.limit, sorted(guard.named), guard.allow_private)).encode())
        for listing in self._over(list(self.archive.sections())):
            total.update(listing.digest)
            if listing.linked.count:
                total.update(repr(listing.linked).encode("utf-8", "surrogateescape"))
        self.named = self.kept + len(self._waiting)
        self.settled = all(one.version for one in self._waiting)
        self.digest = total.hexdigest()

    def containers(self) -> None:
        """List what is in the containers, and in those that they name."""
        while self._waiting and (self.limit is None or self.kept < self.limit):
            groups, self._waiting = _groups(self._waiting), []
            for listing in self._over(groups):
                self.settled &= listing.settled

    def _over(self, sections: Sequence[SourceSection]) -> Iterator[raw_listing.SectionListing]:
        items = list(enumerate(sections, start=self._sections))
        self._sections += len(items)
        for listing in self._listings(items):
            self.found += listing.found
            self.linked.add(listing.linked)
            self.opened += len(listing.containers)
            self._waiting += listing.containers
            for file in listing.files:
                self._carried += file.carried_bytes
                self.files.append(file if self._carried <= _CARRIED_BYTES else file.stored(self.lister.store))
            self.kept += listing.kept
            if self.progress is not None:
                self.progress(self.kept)
            yield listing

    def _listings(self, items: Sequence[tuple[int, SourceSection]]) -> Iterator[raw_listing.SectionListing]:
        """With a limit one after another, since what comes later may not be wanted."""
        if self.limit is None and len(items) > 1:
            yield from self.each(self.lister, items)
            return
        for item in items:
            left = None if self.limit is None else self.limit - self.kept
            if left is not None and left <= 0:
                return
            yield replace(self.lister, limit=left, progress=_after(self.kept, self.progress))(item)


def _after(kept: int, progress: raw_listing.Progress | None) -> raw_listing.Progress | None:
    return None if progress is None else lambda count: progress(kept + count)


def _groups(containers: Sequence[Container]) -> list[SourceSection]:
    """Containers as sections, some to each; one section when all are small."""
    total_bytes = sum(one.size_bytes for one in containers)
    if total_bytes <= _LITTLE_BYTES:
        return [Opened(tuple(containers))]
    at_once = max(_SHARDS_AT_ONCE, math.ceil(len(containers) / _MOST_SECTIONS))
    most_bytes = max(_SHARD_BYTES, total_bytes // _MOST_SECTIONS)
    groups: list[SourceSection] = []
    waiting: list[Container] = []
    waiting_bytes = 0
    for container in containers:
        waiting.append(container)
        waiting_bytes += container.size_bytes
        if len(waiting) == at_once or waiting_bytes >= most_bytes:
            groups.append(Opened(tuple(waiting)))
            waiting, waiting_bytes = [], 0
    return [*groups, Opened(tuple(waiting))] if waiting else groups


def _noted(walk: Walk) -> dict[str, Any]:
    """What is kept of this listing for the next one; no digest where containers must be opened to know what is in them."""
    guard = walk.archive.fetcher.guard
    servers = {"servers": sorted(guard.named), "allow_private": guard.allow_private}
    linked = {"linked_folders": walk.linked.count, "linked_example": walk.linked.example}
    return {"named": walk.named, "digest": walk.digest if walk.settled else "", **servers, **linked}


def _cut(
    store: Store, number: int, plan: BlockPlan, runs: Sequence[cut_blocks.Run], input_type: pa.StructType | None, each: Each
) -> pa.Table:
    """Write the manifest's parts; returns its blocks."""
    measure = cut_blocks.Ends(store, plan)
    measured: Iterator[Any] = each(measure, [run for run in runs if measure.reads(run)])
    ends: list[Ids] = [next(measured) if measure.reads(run) else measure(run) for run in runs]
    firsts = accumulate((len(one) for one in ends), initial=0)
    tables = each(cut_blocks.Cutter(store, number, input_type), list(zip(runs, ends, firsts, strict=False)))
    return pa.concat_tables([BLOCK_COLUMNS.empty_table(), *tables]).combine_chunks()
