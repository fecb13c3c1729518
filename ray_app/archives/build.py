"""List the files of an archive, and write the list into the run directory as manifests.

- `list_members` lists an archive at once, and writes one manifest.
- `list_portions` writes a manifest in portions, so that the first portions can be scored while the
  listing continues. If a source is listed repeatedly (`--follow`), it has one manifest per day.
- `is_as_listed` tests whether the sources have anything new.
- `write_selected` writes a manifest of members of other manifests, under their own ids.
- `write_retry` writes a manifest of members that are scored again.

A listing has three steps, which run in this process or in tasks (`MapFunction`):

1. `ArchiveWalker` lists the archive into raw files, which have members that are not cut into blocks
   yet. The files of the sources come first, then the members of containers. If a digest shows that
   the sources list the same files as before, the listing ends before it opens containers.
2. `IdTable` compares the ids of the listed members with the ids of earlier manifests. It finds new
   members, members that the run already has, and members that the archive no longer has.
3. The new members are cut into blocks, which workers score as units, and written. Readers use a
   portion or manifest only when all its files are written. An interrupted portion is listed again.

A listing takes memory for a few numbers per section, block, and container, a bit per member, 8
bytes per vanished member, and the comparison of ids.
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
from ray_app.archives.known_ids import find_file_rows, find_ids_in
from ray_app.archives.members import (
    BlockPlan,
    Digest,
    Ids,
    ListedMember,
    MapFunction,
    first_word,
    identity_digest,
    iter_block_sizes,
    map_serial,
)
from ray_app.archives.sources import Archive
from ray_app.archives.walk import ArchiveWalker
from ray_app.errors import StorageError
from ray_app.storage import Guard, Store
from ray_app.storage.lease import find_newest_claim


def find_input_type(store: Store) -> pa.StructType | None:
    """Return the Arrow type of the column `input` that fits the members of all manifests of a run.

    `input` is a struct of the user's own columns, for example of a list of uris. Only the first
    block of each complete manifest is read.

    Args:
        store: The run directory.

    Returns:
        The type; None if no manifest has the column.
    """
    firsts = (
        next(iter(manifest.read_blocks(store, number)), None)
        for number in manifest.list_complete_manifests(store)
    )
    return manifest.merge_input_types(
        (
            manifest.get_input_type(reader.read_block(store, ref))
            for ref in firsts
            if ref is not None
        ),
        as_text=True,
    )


def write_selected(
    store: Store,
    rows: Iterable[pa.Table],
    plan: BlockPlan,
    input_type: pa.StructType | None,
    guard: Guard = Guard(),  # noqa: B008 - frozen
    *,
    base: manifest.ManifestInfo | None = None,
    vanished: Ids | None = None,
) -> manifest.ManifestInfo:
    """Write a manifest from rows of existing manifests, for example to copy or to retry members.

    A manifest is a list of members. The rows keep their order and their ids, and are cut into new
    blocks.

    Args:
        store: The run directory.
        rows: Tables of rows of manifests. Only a few blocks are in memory at once.
        plan: The sizes of blocks.
        input_type: The type of the column `input`, which has the user's own columns. None if there
            are none.
        guard: Which web servers may be requested for the members. It is used only if `base` is
            None.
        base: The info to write for the new manifest, such as its number. This function sets the
            counts that depend on `rows` and `vanished`. None writes manifest 0.
        vanished: Sorted ids of the members that the manifest lists as no longer in the archive.

    Returns:
        The info of the new manifest.
    """
    number = base.manifest if base else 0
    store.clear(manifest.get_folder(number))
    writer = cut_blocks.PartWriter(
        store, number, "part-00000", manifest.manifest_schema(input_type)
    )
    stream = cut_blocks.TableStream(manifest.widen_input(table, input_type) for table in rows)
    for number, count in enumerate(iter_block_sizes(plan)):
        table = stream.up_to(count)
        if table is None:
            break
        writer.add(table, number)
    blocks = writer.finish()
    members, size_bytes = (int(blocks[name].to_numpy().sum()) for name in ("members", "size_bytes"))
    if base is None:
        base = manifest.ManifestInfo(0, 0, 0, 0, 0, listed=members, vanished=0, listing_s=0.0,
                                     servers=sorted(guard.named), allow_private=guard.allow_private)  # fmt: skip
    vanished_ids = np.empty(0, np.int64) if vanished is None else vanished
    info = replace(base, members=members, size_bytes=size_bytes, blocks=len(blocks),
                   batch_slots=plan.batch_slots, vanished=len(vanished_ids))  # fmt: skip
    manifest.write_listed(store, info, blocks, vanished_ids)
    return info


def write_retry(
    store: Store, rows: Iterable[pa.Table], plan: BlockPlan, statuses: Sequence[str]
) -> manifest.ManifestInfo:
    """Write the next manifest of a run for a retry, in which known members are scored again.

    Args:
        store: The run directory, which has a complete manifest.
        rows: The rows that earlier manifests have for the members to retry, in their order.
        plan: The sizes of blocks.
        statuses: The statuses for which members are retried, such as `source_timeout`. The manifest
            records them.

    Returns:
        The info of the new manifest.
    """
    last = manifest.last_complete(store)
    assert last is not None, "a retry follows a listing"
    number = last.manifest + 1
    base = replace(
        last,
        manifest=number,
        listing_s=0.0,
        portions=0,
        earlier=last.members_so_far,
        retried=list(statuses),
        retries=[*last.retries, number],
    )
    vanished = manifest.read_vanished(store, last.manifest)
    return write_selected(store, rows, plan, find_input_type(store), base=base, vanished=vanished)


_MAX_NAMED = 100_000  # Files and containers that one process lists in some seconds.


@dataclass(frozen=True)
class Portions:
    """Sizes of the parts into which the work of a listing is divided. Only tests change them.

    Attributes:
        raw_rows: The maximum number of members of one raw file, which one task holds in memory. A
            raw file has members that are not cut into blocks yet.
        id_rows: The approximate maximum number of ids in one file of a manifest's folder `ids/`.
        run_rows: The minimum number of members that one task cuts into blocks.
        few: Blocks are cut in this process, and not in tasks, if two counts are at most this
            number: the members of the listing or portion, and those that the run already lists.
    """

    raw_rows: int = raw_listing.RAW_ROWS
    id_rows: int = 1 << 20
    run_rows: int = cut_blocks.RUN_ROWS
    few: int = 100_000


class ListingOptions(TypedDict, total=False):
    """Options of a listing. The options `digest`, `portions`, and `clock` are for tests.

    Attributes:
        each: The function that runs the steps of the listing, in this process or in tasks.
        progress: A function that is called with the number of members listed so far.
        limit: The maximum number of members to list; None for all. The first members that pass the
            patterns are listed.
        lease: The number of this command's claim on the run directory. If another command has made
            a newer claim, no manifest is written. None skips this check.
        digest: Computes the digest of a member.
        portions: Sizes of the portions of work.
        clock: Returns the time in seconds.
    """

    each: MapFunction
    progress: raw_listing.Progress | None
    limit: int | None
    lease: int | None
    digest: Digest
    portions: Portions
    clock: Callable[[], float]


def list_members(
    store: Store, archive: Archive, plan: BlockPlan, **options: Unpack[ListingOptions]
) -> manifest.ManifestInfo | None:
    """List an archive, and write all new members as one manifest of a run.

    A member is new if no earlier manifest has its id. The manifest lists as vanished all ids of
    earlier manifests that are not in the archive now. If a file returns to an older version, its
    old id is no longer vanished, and its existing result row is used again. If a folder or
    container cannot be listed, its members stay as the earlier manifests list them.

    Args:
        store: The run directory.
        archive: The archive.
        plan: The sizes of blocks.
        **options: See `ListingOptions`.

    Returns:
        The info of the manifest; None if the archive is as the last manifest lists it.

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
    """List an archive in portions, so that scoring can start before the listing ends.

    A portion is a part of a manifest, which is a list of members. Portions are added to the run's
    open manifest, which is not complete yet, or to a new manifest.

    Only the first listing of an archive, without `limit`, has several portions. The first portion
    has some 50,000 members. Each further portion makes the total about four times as large. An
    interrupted listing continues after its last complete portion. Later listings of the archive,
    and listings with `limit`, have a single portion, or none if nothing is new.

    Args:
        store: The run directory.
        archive: The archive.
        plan: The sizes of blocks.
        ids: The known ids of the run, which repeated listings in one process share. None reads the
            ids from the run directory.
        **options: See `ListingOptions`.

    Yields:
        The info of the manifest so far, after each portion. Its attribute `goes_on` is False after
        the last portion of the listing.

    Raises:
        ConfigError: The source is empty, or types of columns clash.
        StorageError: A source or the store is unreachable.
    """
    with IdTable(store) if ids is None else nullcontext(ids) as id_table:
        is_whole = False
        while not is_whole:
            listing = _Listing(store, archive, plan, id_table, is_portion=True, **options)
            is_first = listing.goes_on or (listing.last is None and options.get("limit") is None)
            info = listing.list_next_portion() if is_first else listing.list_whole()
            is_whole = not is_first or listing.walk.is_over
            if info is not None:
                yield info


def finish_manifest(store: Store, lease: int | None = None) -> manifest.ManifestInfo | None:
    """Complete the open manifest, which was written in portions, if its listing is finished.

    Args:
        store: The run directory.
        lease: The number of this command's claim on the run directory; None skips the check for a
            newer claim.

    Returns:
        The info of the manifest; None if no manifest is open, or if its listing is not finished.

    Raises:
        StorageError: Another command claimed the directory.
    """
    open_info = manifest.read_open_manifest(store)
    if open_info is None or open_info.goes_on:
        return None
    _check_lease(store, lease)
    return manifest.close_manifest(store, open_info)


def _check_lease(store: Store, lease: int | None) -> None:
    if lease is not None and find_newest_claim(store) != lease:
        raise StorageError(
            f"{store.url}: another run took this directory over",
            hint="let the other run finish, then run the same command again",
        )


def is_as_listed(
    store: Store, archive: Archive, limit: int | None = None, max_named: int = _MAX_NAMED
) -> bool:
    """Return whether the sources list the same files and containers as in the last listing.

    If they do, `list_members` would find nothing new. No container is opened for this test. The
    result is False if only opening the containers could show whether their members changed.

    Args:
        store: The run directory.
        archive: The archive.
        limit: The maximum number of members to list, None for all.
        max_named: If the last listing had more files and containers than this, the result is False,
            because this test lists them again in a single process.

    Raises:
        ConfigError: The source is empty.
        StorageError: A source or the store is unreachable.
    """
    info = manifest.last_complete(store)
    if info is None or not info.digest or info.named > max_named:
        return False
    folder = manifest.get_folder(info.manifest + 1)
    lister = raw_listing.SectionLister(
        store, f"{folder}/listing", archive.selection, archive.fetcher, identity_digest
    )
    walk = ArchiveWalker(lister, archive, limit=limit)
    walk.sources(in_order=True)
    store.clear(folder)
    return walk.digest == info.digest


@dataclass
class _Listing:
    """The manifest or portion that is being written, and the walk that finds its members.

    Attributes:
        is_portion: Whether a portion is written, and not a whole manifest. For the other settings
            see `ListingOptions`.
    """

    store: Store
    archive: Archive
    plan: BlockPlan
    ids: IdTable
    is_portion: bool
    each: MapFunction = map_serial
    progress: raw_listing.Progress | None = None
    limit: int | None = None
    lease: int | None = None
    digest: Digest = identity_digest
    portions: Portions = Portions()
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        store = self.store
        self._began = self.clock()
        complete = manifest.last_complete(store)
        self.number = 0 if complete is None else complete.manifest + 1
        self._open_info = (
            manifest.read_last_portion(store, self.number) if self.is_portion else None
        )
        self.last = self._open_info or complete
        self._portion = (
            None if not self.is_portion else self._open_info.portions if self._open_info else 0
        )
        self._clear()
        if self._open_info is not None:
            # An interrupted `close_manifest` may have left this file.
            store.delete(manifest.path_in(self.number, "blocks.parquet"))
        self._scratch = f"{manifest.get_folder(self.number, self._portion)}/listing"
        lister = raw_listing.SectionLister(
            store,
            self._scratch,
            self.archive.selection,
            self.archive.fetcher,
            self.digest,
            self.portions.raw_rows,
        )
        self.walk = ArchiveWalker(lister, self.archive, self.each, self.limit, self.progress)
        if self._open_info is not None and self._open_info.goes_on:
            path = manifest.path_in(self.number, "unlisted.json", self._open_info.portions - 1)
            self.walk.resume(store.read(path))

    @property
    def goes_on(self) -> bool:
        """Whether an earlier listing of the manifest has not reached its end."""
        return self._open_info is not None and self._open_info.goes_on

    def list_whole(self) -> manifest.ManifestInfo | None:
        """List everything; return None if nothing is new."""
        self.walk.sources()
        if self.last is not None and self.last.digest == self.walk.digest:
            self._clear()
            return None
        self.walk.containers()
        return self._write(is_first=False)

    def list_next_portion(self) -> manifest.ManifestInfo | None:
        """List until a portion has enough new members, or until everything is listed.

        The result is None if nothing is new.
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
            is_first: Whether this is a part of the first listing, in which no known id counts as
                vanished.
        """
        walk, store, number, last = self.walk, self.store, self.number, self.last
        goes_on = is_first and not walk.is_over
        if not walk.listed and not goes_on:
            raise self.archive.empty_error(walk.found, walk.opened)
        files, each, folder = walk.files, self.each, manifest.get_folder(number, self._portion)
        merged_type = manifest.merge_input_types(
            (file.input_type for file in files), as_text=any(file.as_text for file in files)
        )
        input_type = manifest.finalize_type(merged_type)
        known_count, guard = manifest.read_known_count(store)
        if max(walk.kept, known_count) <= self.portions.few:
            each = map_serial
        replaced = self._find_replaced()
        chosen_members = self.ids.choose_new(
            folder, files, self.digest, self.portions.id_rows, without=replaced
        )
        vanished = np.empty(0, np.int64)
        if not is_first:
            vanished = self._exclude_closed(self.ids.vanished(), replaced)
        runs = cut_blocks.build_runs(chosen_members, self.portions.run_rows)
        if last is not None and not runs:
            # The end of a first listing is always written.
            if goes_on:
                walk.next_portion()
                return None
            if not is_first and np.array_equal(vanished, self._read_previous_vanished()):
                self._clear()
                return None
        blocks = self._cut(runs, input_type, each)
        _check_lease(store, self.lease)
        previous = self._open_info
        info = manifest.ManifestInfo(
            manifest=number,
            members=int(blocks["members"].to_numpy().sum()) + (previous.members if previous else 0),
            size_bytes=int(blocks["size_bytes"].to_numpy().sum())
            + (previous.size_bytes if previous else 0),
            blocks=len(blocks) + (previous.blocks if previous else 0),
            batch_slots=self.plan.batch_slots,
            listed=walk.listed,
            vanished=len(vanished),
            listing_s=round(self.clock() - self._began, 3),
            goes_on=goes_on,
            portions=0 if self._portion is None else self._portion + 1,
            earlier=previous.earlier if previous else known_count,
            retries=last.retries if last else [],
            **_describe_listing(walk, guard) | ({"digest": ""} if goes_on else {}),
        )
        store.clear(self._scratch)
        if goes_on:
            path = manifest.path_in(number, "unlisted.json", self._portion)
            manifest.create_file(store, path, walk.save_state())
        if self._portion is None:
            manifest.write_listed(store, info, blocks, vanished)
        else:
            manifest.write_portion(store, info, blocks, vanished)
        self.ids.keep_new()
        return info

    def _cut(
        self, runs: Sequence[cut_blocks.Run], input_type: pa.StructType | None, each: MapFunction
    ) -> pa.Table:
        """Write the files of members; return the blocks."""
        store, plan = self.store, self.plan
        measure = partial(cut_blocks.find_block_ends, store, plan)
        measured_ends = iter(
            each(measure, [run for run in runs if cut_blocks.must_read_rows(plan, run)])
        )
        stops = [
            next(measured_ends) if cut_blocks.must_read_rows(plan, run) else measure(run)
            for run in runs
        ]
        first = self._open_info.blocks if self._open_info else 0
        firsts = accumulate((len(run_ends) for run_ends in stops), initial=first)
        tables = each(
            partial(cut_blocks.cut_run, store, self.number, self._portion, input_type),
            list(zip(runs, stops, firsts, strict=False)),
        )
        return pa.concat_tables([manifest.BLOCK_COLUMNS.empty_table(), *tables]).combine_chunks()

    def _clear(self) -> None:
        """Remove what this listing wrote."""
        portion = None if self._open_info is None else self._portion
        self.store.clear(manifest.get_folder(self.number, portion))

    def _read_previous_vanished(self) -> Ids:
        """Return the sorted ids that the last listing no longer found."""
        if self.last is None:
            return np.empty(0, np.int64)
        if self._open_info is not None:
            return manifest.read_vanished_so_far(self.store, self._open_info)
        return manifest.read_vanished(self.store, self.last.manifest)

    def _find_replaced(self) -> Ids | None:
        """Return the ids of files of unknown version whose last rows stay current.

        Thus each file has one row.
        """
        uris = {closed.uri for closed in self.walk.closed if closed.version == ""}
        if not uris or self.last is None:
            return None
        uris = find_file_rows(self.store, uris, self._read_previous_vanished())
        return np.unique(
            np.array(
                [first_word(self.digest(ListedMember(uri, None, 0, "", -1), 0)) for uri in uris],
                np.int64,
            )
        )

    def _exclude_closed(self, vanished: Ids, replaced: Ids | None) -> Ids:
        """Return the vanished ids without recent members that may still exist.

        These are members of folders, files, and containers that this listing could not list. The
        ids in `replaced` stay vanished.
        """
        if not (self.walk.closed and len(vanished)):
            return vanished
        recent = np.setdiff1d(vanished, self._read_previous_vanished(), assume_unique=True)
        if replaced is not None:
            recent = np.setdiff1d(recent, replaced, assume_unique=True)
        still_present = find_ids_in(self.store, recent, self.walk.closed) if len(recent) else recent
        return np.setdiff1d(vanished, still_present, assume_unique=True)


def _describe_listing(walk: ArchiveWalker, earlier_guard: Guard) -> dict[str, Any]:
    """Return the fields of `ManifestInfo` that the next listing needs.

    The digest is empty if only opening the containers shows what they hold. Members of earlier
    listings are read under their own guard (`earlier_guard`).
    """
    guard = walk.archive.fetcher.guard.merge(earlier_guard)
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
