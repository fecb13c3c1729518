"""List an archive into the manifests of a run.

`list_members` writes a manifest at once. `list_portions` writes it in portions, so that the first
ones can be scored early, and so that a source that is followed has a manifest a day.
`is_as_listed` tells whether anything is new.

1. The archive is walked (`Walk`), section by section, into raw files: first what its sources list,
   then what is in containers. If the sources list what they listed before (a digest), that is all.
2. Ids are joined (`IdTable`): duplicates, collisions, what is known, what vanished.
3. Runs of raw files are cut into blocks and written. Only then does the portion or manifest count;
   what was interrupted before is listed again.

`Each` runs the steps, here or in tasks. Memory: a few numbers per section, block, and container, a
bit per member, and 8 bytes per vanished member; in addition to the join's own.

`write_selected` writes a manifest of members of other manifests, under their own ids, and
`write_retry` a manifest of members that are scored again.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, TypedDict, Unpack

import numpy as np
import pyarrow as pa

from ray_app.archives import cut_blocks, manifest, raw_listing, reader
from ray_app.archives.dedup import IdTable
from ray_app.archives.known_ids import files_at, ids_in
from ray_app.archives.members import (
    BlockPlan,
    Digest,
    Each,
    Ids,
    ListedMember,
    block_sizes,
    first_word,
    identity_digest,
    in_turn,
)
from ray_app.archives.sources import Archive
from ray_app.archives.walk import Walk
from ray_app.errors import StorageError
from ray_app.storage import Guard, Store
from ray_app.storage.lease import newest_claim


def input_type_of(store: Store) -> pa.StructType | None:
    """The source's own columns, of whatever listing; None where it has none."""
    firsts = (
        next(iter(manifest.read_blocks(store, number)), None)
        for number in manifest.manifests(store)
    )
    return manifest.joined_inputs(
        (manifest.input_type(reader.read_block(store, ref)) for ref in firsts if ref is not None),
        as_text=True,
    )


def write_selected(
    store: Store,
    rows: Iterable[pa.Table],
    plan: BlockPlan,
    wanted: pa.StructType | None,
    guard: Guard = Guard(),  # noqa: B008 - frozen
    *,
    base: manifest.ManifestInfo | None = None,
    vanished: Ids | None = None,
) -> manifest.ManifestInfo:
    """Write a manifest from rows of other manifests, in their order, cut again.

    Args:
        store: The run directory.
        rows: Rows of manifests, a bounded table at a time. A few blocks are in memory.
        plan: How blocks are cut.
        wanted: The type of the source's own columns; None if it has none.
        guard: Which web servers may be requested for the members.
        base: The facts of the new manifest, without its counts. None: manifest 0 of a new listing.
        vanished: Sorted ids that the manifest lists as vanished.
    """
    number = base.manifest if base else 0
    store.clear(manifest.folder_of(number))
    writer = cut_blocks.PartWriter(store, number, "part-00000", manifest.manifest_schema(wanted))
    arriving = cut_blocks.TableStream(manifest.with_input(table, wanted) for table in rows)
    for number, count in enumerate(block_sizes(plan)):
        table = arriving.up_to(count)
        if table is None:
            break
        writer.add(table, number)
    blocks = writer.finish()
    members, size_bytes = (int(blocks[name].to_numpy().sum()) for name in ("members", "size_bytes"))
    if base is None:
        base = manifest.ManifestInfo(0, 0, 0, 0, 0, listed=members, vanished=0, listing_s=0.0,
                                     servers=sorted(guard.named), allow_private=guard.allow_private)  # fmt: skip
    gone = np.empty(0, np.int64) if vanished is None else vanished
    info = replace(base, members=members, size_bytes=size_bytes, blocks=len(blocks),
                   batch_slots=plan.batch_slots, vanished=len(gone))  # fmt: skip
    manifest.write_listed(store, info, blocks, gone)
    return info


def write_retry(
    store: Store, rows: Iterable[pa.Table], plan: BlockPlan, statuses: Sequence[str]
) -> manifest.ManifestInfo:
    """Write the next manifest of a run from rows of its earlier ones, to be scored once more.

    Args:
        store: The run directory, which has a complete manifest.
        rows: Rows of manifests, in their order.
        plan: How blocks are cut.
        statuses: The statuses for which the members are scored again.
    """
    last = manifest.last_complete(store)
    assert last is not None, "a retry follows a listing"
    number = last.manifest + 1
    base = replace(
        last,
        manifest=number,
        listing_s=0.0,
        portions=0,
        earlier=last.known,
        retried=list(statuses),
        retries=[*last.retries, number],
    )
    vanished = manifest.read_vanished(store, last.manifest)
    return write_selected(store, rows, plan, input_type_of(store), base=base, vanished=vanished)


_FEW_NAMED = 100_000  # files and containers that one process lists in some seconds


@dataclass(frozen=True)
class Portions:
    """How many members one task holds at once or one file of ids has, and how few are not worth a
    task at all.
    """

    raw_rows: int = raw_listing.RAW_ROWS
    id_rows: int = 1 << 20
    run_rows: int = cut_blocks.RUN_ROWS
    few: int = 100_000


class ListingOptions(TypedDict, total=False):
    """How a listing is made. `each` runs its steps; `progress` gets how many members there are so
    far; `limit`: no more than the first so many; `lease`: the number of the claim on the directory
    under which manifests are written, None for any. `digest`, `portions` and `clock` are for tests.
    """

    each: Each
    progress: raw_listing.Progress | None
    limit: int | None
    lease: int | None
    digest: Digest
    portions: Portions
    clock: Callable[[], float]


def list_members(
    store: Store, archive: Archive, plan: BlockPlan, **options: Unpack[ListingOptions]
) -> manifest.ManifestInfo | None:
    """Write the next manifest; return None if the archive is as the last one lists it.

    A later manifest holds the members whose id no earlier one has, and as vanished all ids ever
    listed that are not in the archive now. A file that is put back to an older version makes the
    old id current again, with the row that it has. Members of a folder or container that this
    listing could not list stay as the last one left them.

    Raises:
        ConfigError: The source is empty, or types of columns clash.
        StorageError: A source or the store is unreachable.
    """
    with IdTable(store) as ids:
        return _Listing(store, archive, plan, ids, is_portion=False, **options).list_whole()


def list_portions(
    store: Store,
    archive: Archive,
    plan: BlockPlan,
    ids: IdTable | None = None,
    **options: Unpack[ListingOptions],
) -> Iterator[manifest.ManifestInfo]:
    """List an archive into portions of the open manifest, or of a new one, and yield each portion.

    The first listing of a large archive has several portions. The first one has some 50,000
    members, each further one makes them about four times as many. `goes_on` is False for the last.
    An interrupted listing continues after its last portion. Any other listing has one portion, or
    none if nothing is new.

    Args:
        store: The run directory.
        archive: The archive.
        plan: How blocks are cut.
        ids: The ids of the run. Listings of one process share them. None reads them.
        **options: See `ListingOptions`.

    Raises:
        ConfigError: The source is empty, or types of columns clash.
        StorageError: A source or the store is unreachable.
    """
    with IdTable(store) if ids is None else nullcontext(ids) as known:
        is_whole = False
        while not is_whole:
            listing = _Listing(store, archive, plan, known, is_portion=True, **options)
            is_first = listing.goes_on or (listing.last is None and options.get("limit") is None)
            info = listing.list_next_portion() if is_first else listing.list_whole()
            is_whole = not is_first or listing.walk.is_over
            if info is not None:
                yield info


def finish_manifest(store: Store, lease: int | None = None) -> manifest.ManifestInfo | None:
    """Complete the open manifest if its listing has reached its end.

    Args:
        store: The run directory.
        lease: The number of the claim on the directory; None for any.

    Returns:
        What the manifest holds; None if there is nothing to complete.

    Raises:
        StorageError: Another command claimed the directory.
    """
    listed = manifest.open_manifest(store)
    if listed is None or listed.goes_on:
        return None
    _check_lease(store, lease)
    return manifest.close_manifest(store, listed)


def _check_lease(store: Store, lease: int | None) -> None:
    if lease is not None and newest_claim(store) != lease:
        raise StorageError(
            f"{store.url}: another run took this directory over",
            hint="let the other run finish, then run the same command again",
        )


def is_as_listed(
    store: Store, archive: Archive, limit: int | None = None, most: int = _FEW_NAMED
) -> bool:
    """Whether the sources name the very files and containers of the last listing, so that
    `list_members` would find nothing new.

    Opens no container, and gives up (False) where they named more than `most`. Raises as
    `list_members`.
    """
    info = manifest.last_complete(store)
    if info is None or not info.digest or info.named > most:
        return False
    folder = manifest.folder_of(info.manifest + 1)
    lister = raw_listing.SectionLister(
        store, f"{folder}/listing", archive.selection, archive.fetcher, identity_digest
    )
    walk = Walk(lister, archive, limit=limit)
    walk.sources(in_order=True)
    store.clear(folder)
    return walk.digest == info.digest


@dataclass
class _Listing:
    """The manifest or portion that is being written, and the walk that leads to it.

    `is_portion`: write a portion; else a whole manifest. For the settings see `ListingOptions`.
    """

    store: Store
    archive: Archive
    plan: BlockPlan
    ids: IdTable
    is_portion: bool
    each: Each = in_turn
    progress: raw_listing.Progress | None = None
    limit: int | None = None
    lease: int | None = None
    digest: Digest = identity_digest
    portions: Portions = Portions()
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        store = self.store
        self._began = self.clock()
        before = manifest.last_complete(store)
        self.number = 0 if before is None else before.manifest + 1
        self._open = manifest.read_last_portion(store, self.number) if self.is_portion else None
        self.last = self._open or before
        self._portion = None if not self.is_portion else self._open.portions if self._open else 0
        self._clear()
        if self._open is not None:
            # An interrupted `close_manifest` left it there.
            store.delete(manifest.path_in(self.number, "blocks.parquet"))
        self._scratch = f"{manifest.folder_of(self.number, self._portion)}/listing"
        lister = raw_listing.SectionLister(
            store,
            self._scratch,
            self.archive.selection,
            self.archive.fetcher,
            self.digest,
            self.portions.raw_rows,
        )
        self.walk = Walk(lister, self.archive, self.each, self.limit, self.progress)
        if self._open is not None and self._open.goes_on:
            path = manifest.path_in(self.number, "unlisted.json", self._open.portions - 1)
            self.walk.resume(store.read(path))

    @property
    def goes_on(self) -> bool:
        """Whether an earlier listing of the manifest has not reached its end."""
        return self._open is not None and self._open.goes_on

    def list_whole(self) -> manifest.ManifestInfo | None:
        """List everything; return None if nothing is new."""
        self.walk.sources()
        if self.last is not None and self.last.digest == self.walk.digest:
            self._clear()
            return None
        self.walk.containers()
        return self._write(is_first=False)

    def list_next_portion(self) -> manifest.ManifestInfo | None:
        """List on until there is a portion's worth of new members, or nothing is left; return None
        if nothing is new.
        """
        walk, info = self.walk, None
        while info is None:
            if not walk.has_containers:
                walk.step()
            walk.containers(is_portion=True)
            if walk.kept or walk.is_over:
                info = self._write(is_first=True)
            if walk.is_over:
                break
        return info

    def _write(self, *, is_first: bool) -> manifest.ManifestInfo | None:
        """Write what the walk found; return None if nothing is new.

        Args:
            is_first: It is a part of the first listing, so that no known id counts as vanished.
        """
        walk, store, number, last = self.walk, self.store, self.number, self.last
        goes_on = is_first and not walk.is_over
        if not walk.listed and not goes_on:
            raise self.archive.empty(walk.found, walk.opened)
        files, each, folder = walk.files, self.each, manifest.folder_of(number, self._portion)
        joined = manifest.joined_inputs(
            (file.input_type for file in files), as_text=any(file.as_text for file in files)
        )
        input_type = manifest.settled(joined)
        known, guard = manifest.listed_so_far(store)
        if max(walk.kept, known) <= self.portions.few:
            each = in_turn
        replaced = self._replaced_by_earlier()
        chosen = self.ids.choose_new(
            folder, files, self.digest, self.portions.id_rows, without=replaced
        )
        vanished = np.empty(0, np.int64)
        if not is_first:
            vanished = self._without_closed(self.ids.vanished(), replaced)
        runs = cut_blocks.runs_of(chosen, self.portions.run_rows)
        if last is not None and not runs:
            # The end of a first listing is always written.
            if goes_on:
                walk.next_portion()
                return None
            if not is_first and np.array_equal(vanished, self._vanished_before()):
                self._clear()
                return None
        blocks = self._cut(runs, input_type, each)
        _check_lease(store, self.lease)
        before = self._open
        info = manifest.ManifestInfo(
            manifest=number,
            members=int(blocks["members"].to_numpy().sum()) + (before.members if before else 0),
            size_bytes=int(blocks["size_bytes"].to_numpy().sum())
            + (before.size_bytes if before else 0),
            blocks=len(blocks) + (before.blocks if before else 0),
            batch_slots=self.plan.batch_slots,
            listed=walk.listed,
            vanished=len(vanished),
            listing_s=round(self.clock() - self._began, 3),
            goes_on=goes_on,
            portions=0 if self._portion is None else self._portion + 1,
            earlier=before.earlier if before else known,
            retries=last.retries if last else [],
            **_noted(walk, guard) | ({"digest": ""} if goes_on else {}),
        )
        store.clear(self._scratch)
        if goes_on:
            path = manifest.path_in(number, "unlisted.json", self._portion)
            manifest.create_file(store, path, walk.noted())
        if self._portion is None:
            manifest.write_listed(store, info, blocks, vanished)
        else:
            manifest.write_portion(store, info, blocks, vanished)
        self.ids.keep_new()
        return info

    def _cut(
        self, runs: Sequence[cut_blocks.Run], input_type: pa.StructType | None, each: Each
    ) -> pa.Table:
        """Write the files of members; return the blocks."""
        store, plan = self.store, self.plan
        measure = partial(cut_blocks.block_ends, store, plan)
        measured = iter(each(measure, [run for run in runs if cut_blocks.reads_rows(plan, run)]))
        ends = [
            next(measured) if cut_blocks.reads_rows(plan, run) else measure(run) for run in runs
        ]
        first = self._open.blocks if self._open else 0
        firsts = accumulate((len(one) for one in ends), initial=first)
        tables = each(
            partial(cut_blocks.cut_run, store, self.number, self._portion, input_type),
            list(zip(runs, ends, firsts, strict=False)),
        )
        return pa.concat_tables([manifest.BLOCK_COLUMNS.empty_table(), *tables]).combine_chunks()

    def _clear(self) -> None:
        """Remove what this listing wrote."""
        portion = None if self._open is None else self._portion
        self.store.clear(manifest.folder_of(self.number, portion))

    def _vanished_before(self) -> Ids:
        """Return the sorted ids that the last listing no longer found."""
        if self.last is None:
            return np.empty(0, np.int64)
        if self._open is not None:
            return manifest.read_vanished_so_far(self.store, self._open)
        return manifest.read_vanished(self.store, self.last.manifest)

    def _replaced_by_earlier(self) -> Ids | None:
        """Return the ids of files of unknown version whose rows of the last listing stay current,
        so that each file has one row.
        """
        uris = {place.uri for place in self.walk.closed if place.version == ""}
        if not uris or self.last is None:
            return None
        uris = files_at(self.store, uris, self._vanished_before())
        return np.unique(
            np.array(
                [first_word(self.digest(ListedMember(uri, None, 0, "", -1), 0)) for uri in uris],
                np.int64,
            )
        )

    def _without_closed(self, vanished: Ids, replaced: Ids | None) -> Ids:
        """Return the vanished ids without recent members of places that this listing could not
        list, which may still be there.

        The ids in `replaced` stay vanished.
        """
        if not (self.walk.closed and len(vanished)):
            return vanished
        recent = np.setdiff1d(vanished, self._vanished_before(), assume_unique=True)
        if replaced is not None:
            recent = np.setdiff1d(recent, replaced, assume_unique=True)
        kept = ids_in(self.store, recent, self.walk.closed) if len(recent) else recent
        return np.setdiff1d(vanished, kept, assume_unique=True)


def _noted(walk: Walk, before: Guard) -> dict[str, Any]:
    """What is kept of this listing for the next one; no digest where containers must be opened to
    know what is in them.

    Members of earlier listings are read by the guard of those (`before`).
    """
    guard = walk.archive.fetcher.guard.joined(before)
    servers = {"servers": sorted(guard.named), "allow_private": guard.allow_private}
    linked = {"linked_folders": walk.linked.count, "linked_example": walk.linked.example}
    closed = {
        "closed_folders": walk.closed_folders.count,
        "closed_example": walk.closed_folders.example,
    }
    return {
        "named": walk.named,
        "digest": walk.digest if walk.settled else "",
        **servers,
        **linked,
        **closed,
    }
