"""`list_members`: an archive → its next manifest: all members the first time, later what is new;
`list_portions`: a first listing in several manifests, so that the first is there early.
`is_as_listed`: whether anything is new.

1. The archive is walked (`Walk`), section by section, into raw files: first what its sources list,
then what is in containers. Where the
   sources name what they named before (a digest), that is all.
2. Ids are joined: duplicates, collisions, what is known, what vanished.
3. Runs of raw files are cut into blocks and written. Only then does the manifest count; what was
interrupted before is listed anew.

`Each` runs the steps, here or in tasks. Memory: a few numbers per section, block and container, a
bit per member, and 8 bytes per vanished one; beside the join's own.

`write_selected`: a manifest made of members of other manifests, under their own ids;
`write_retry`: a manifest of members that are scored again.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, TypedDict, Unpack

import numpy as np
import pyarrow as pa

from ray_app.archives import cut_blocks, dedup, manifest, raw_listing, reader
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
    writer = cut_blocks.PartWriter(
        store, f"{manifest.folder_of(number)}/part-00000", manifest.manifest_schema(wanted)
    )
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
    last = manifest.last_listing(store)
    assert last is not None, "a retry follows a listing"
    number = last.manifest + 1
    base = replace(
        last,
        manifest=number,
        listing_s=0.0,
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
    """Write the next manifest; None when the archive is as the last one says.

    A later manifest holds the members whose id no earlier one has, and as vanished all ids ever
    listed that are not there now: a file put back to an older version makes the old id current
    again, with the row that it has. Members of a folder or container that this listing could not
    list stay as the last one left them.

    Raises ConfigError for an empty source and for columns whose types clash, StorageError when a
    source or the store is out of reach.
    """
    listing = _Listing(store, archive, plan, **options)
    walk, last = listing.walk, listing.last
    walk.sources()
    if last is not None and last.digest == walk.digest:
        store.clear(manifest.folder_of(listing.number))
        return None
    walk.containers()
    return listing.written()


def list_portions(
    store: Store, archive: Archive, plan: BlockPlan, **options: Unpack[ListingOptions]
) -> Iterator[manifest.ManifestInfo]:
    """The same, where it is the first listing of a large archive in several manifests, given out as
    they come to count.

    The first has some 50,000 members, each further one makes them about four times as many: the
    first can be scored while the others are listed, and a listing that was interrupted goes on
    behind the last of them. `goes_on` is False for the last.
    """
    last = manifest.last_listing(store)
    if options.get("limit") is not None or not (last is None or last.goes_on):
        info = list_members(store, archive, plan, **options)
        if info is not None:
            yield info
        return
    while last is None or last.goes_on:
        listing = _Listing(store, archive, plan, **options)
        if last is not None:
            listing.walk.resume(store.read(manifest.path_in(last.manifest, "unlisted.json")))
        info = listing.portion()
        last = manifest.last_listing(store)
        if info is not None:
            yield info


def is_as_listed(
    store: Store, archive: Archive, limit: int | None = None, most: int = _FEW_NAMED
) -> bool:
    """Whether the sources name the very files and containers of the last listing, so that
    `list_members` would find nothing new.

    Opens no container, and gives up (False) where they named more than `most`. Raises as
    `list_members`.
    """
    info = manifest.last_listing(store)
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
    """The manifest that is being written, and the walk that leads there; for its settings see
    `ListingOptions`.
    """

    store: Store
    archive: Archive
    plan: BlockPlan
    each: Each = in_turn
    progress: raw_listing.Progress | None = None
    limit: int | None = None
    lease: int | None = None
    digest: Digest = identity_digest
    portions: Portions = Portions()
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._began = self.clock()
        self._earlier = manifest.manifests(self.store)
        self.last = manifest.read_complete(self.store, self._earlier[-1]) if self._earlier else None
        self.number = self._earlier[-1] + 1 if self._earlier else 0
        self.store.clear(manifest.folder_of(self.number))
        self._scratch = f"{manifest.folder_of(self.number)}/listing"
        lister = raw_listing.SectionLister(
            self.store,
            self._scratch,
            self.archive.selection,
            self.archive.fetcher,
            self.digest,
            self.portions.raw_rows,
        )
        self.walk = Walk(lister, self.archive, self.each, self.limit, self.progress)

    def portion(self) -> manifest.ManifestInfo | None:
        """List on until there is a manifest's worth of new members, or nothing is left; None where
        nothing was new.
        """
        walk, info = self.walk, None
        while info is None:
            walk.step()
            walk.containers()
            if not walk.unlisted:
                return self.written(is_portion=True)
            if walk.kept:
                info = self.written(is_portion=True)
        return info

    def written(self, *, is_portion: bool = False) -> manifest.ManifestInfo | None:
        """Write the manifest of what the walk found; None if nothing is new.

        Args:
            is_portion: Earlier manifests are parts of the same listing.
        """
        walk, store, number, last = self.walk, self.store, self.number, self.last
        goes_on = is_portion and bool(walk.unlisted)
        if not walk.listed and not goes_on:
            raise self.archive.empty(walk.found, walk.opened)
        files, each = walk.files, self.each
        joined = manifest.joined_inputs(
            (file.input_type for file in files), as_text=any(file.as_text for file in files)
        )
        input_type = manifest.settled(joined)
        known, guard = manifest.listed_so_far(store)
        if max(walk.kept, known) <= self.portions.few:
            each = in_turn
        replaced = self._replaced_by_earlier()
        chosen, vanished = dedup.choose_new(
            store, number, self._earlier, files, self.digest, self.portions.id_rows, is_portion=is_portion, known=known, without=replaced
        )  # fmt: skip
        vanished = self._without_closed(vanished, replaced)
        runs = cut_blocks.runs_of(chosen, self.portions.run_rows)
        if (
            last is not None
            and not runs
            and (
                is_portion
                or np.array_equal(vanished, manifest.read_vanished(store, self._earlier[-1]))
            )
        ):
            walk.next_portion()
            if goes_on:
                return None
            store.clear(manifest.folder_of(number))
            manifest.write_complete(
                store, replace(last, goes_on=False, listed=walk.listed, **_noted(walk, guard))
            )
            return None
        blocks = _cut(store, number, self.plan, runs, input_type, each)
        if self.lease is not None and newest_claim(store) != self.lease:
            raise StorageError(
                f"{store.url}: another run took this directory over",
                hint="let the other run finish, then run the same command again",
            )
        noted = _noted(walk, guard)
        info = manifest.ManifestInfo(
            manifest=number,
            members=int(blocks["members"].to_numpy().sum()),
            size_bytes=int(blocks["size_bytes"].to_numpy().sum()),
            blocks=len(blocks),
            batch_slots=self.plan.batch_slots,
            listed=walk.listed,
            vanished=len(vanished),
            listing_s=round(self.clock() - self._began, 3),
            goes_on=goes_on,
            earlier=known,
            retries=last.retries if last else [],
            **noted | ({"digest": ""} if goes_on else {}),
        )
        store.clear(self._scratch)
        if goes_on:
            store.write(manifest.path_in(number, "unlisted.json"), walk.noted())
        manifest.write_listed(store, info, blocks, vanished)
        return info

    def _replaced_by_earlier(self) -> Ids | None:
        """Return the ids of files of unknown version whose rows of the last listing stay current,
        so that each file has one row.
        """
        uris = {place.uri for place in self.walk.closed if place.version == ""}
        if not (uris and self._earlier):
            return None
        uris = files_at(
            self.store, self._earlier, uris, manifest.read_vanished(self.store, self._earlier[-1])
        )
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
        recent = np.setdiff1d(
            vanished, manifest.read_vanished(self.store, self._earlier[-1]), assume_unique=True
        )
        if replaced is not None:
            recent = np.setdiff1d(recent, replaced, assume_unique=True)
        kept = (
            ids_in(self.store, self._earlier, recent, self.walk.closed) if len(recent) else recent
        )
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


def _cut(
    store: Store,
    number: int,
    plan: BlockPlan,
    runs: Sequence[cut_blocks.Run],
    input_type: pa.StructType | None,
    each: Each,
) -> pa.Table:
    """Write the manifest's parts; returns its blocks."""
    measure = partial(cut_blocks.block_ends, store, plan)
    measured = iter(each(measure, [run for run in runs if cut_blocks.reads_rows(plan, run)]))
    ends = [next(measured) if cut_blocks.reads_rows(plan, run) else measure(run) for run in runs]
    firsts = accumulate((len(one) for one in ends), initial=0)
    tables = each(
        partial(cut_blocks.cut_run, store, number, input_type),
        list(zip(runs, ends, firsts, strict=False)),
    )
    return pa.concat_tables([manifest.BLOCK_COLUMNS.empty_table(), *tables]).combine_chunks()
