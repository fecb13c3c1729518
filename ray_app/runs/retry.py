"""A retry: a small run inside the run, of the members whose current row has one of some statuses
(`begin_retry`, `merge_retry`).

    retries/<k>/retry.json              the statuses, of session k
    retries/<k>/manifest/0/…            the members under their own ids, in the order of their manifests
    retries/<k>/parts/00000/…           their new rows, block by block
    retries/<k>/masks/00000/…           and features/<detector>/00000/…

It is begun when its manifest is complete. When all its blocks are done, the new rows take the
places of the old ones, file by file, and the folder goes. Every step can be repeated, so that an
interrupted retry is finished by going through it again.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app import archives
from ray_app.archives.build import input_type_of, write_selected
from ray_app.archives.cut_blocks import TableStream
from ray_app.archives.manifest import input_type, joined_inputs, with_input
from ray_app.runs import reader
from ray_app.runs.directory import SETTLED, RunDirectory

Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Retry:
    """One retry of a run. `directory` is a run directory of its own, with a single manifest."""

    number: int
    statuses: tuple[str, ...]
    members: int
    directory: RunDirectory

    def blocks(self) -> archives.BlockList:
        """All its blocks."""
        return archives.read_blocks(self.directory.store, 0)

    def pending(self) -> archives.BlockList:
        """Its blocks that have no rows yet."""
        return self.blocks().without(self.directory.done_blocks(0))


def begun_retry(run: RunDirectory) -> Retry | None:
    """The retry that was begun and is not finished; what is left of one that was not yet begun, or
    already merged, is removed.
    """
    for name in run.store.folders("retries"):
        directory = RunDirectory(run.store.below(f"retries/{name}"))
        info = archives.read_complete(directory.store, 0)
        if info is not None:
            return Retry(
                int(name),
                tuple(directory.read_json("retry.json")["statuses"]),
                info.members,
                directory,
            )
        _remove(directory)
    return None


def begin_retry(
    run: RunDirectory,
    number: int,
    statuses: Sequence[str],
    plan: archives.BlockPlan,
    *,
    passed_over: Callable[[int], object] = lambda count: None,
) -> Retry | None:
    """Begin the retry of the current members that have one of these statuses; None when there are
    none.

    Every block of the run must be published. Reads statuses, and of the manifests only the blocks
    with members concerned. `passed_over` is called with how many were refused when they were
    listed: what is never read cannot be tried again.
    """
    directory = RunDirectory(run.store.below(f"retries/{number:05d}"))
    refused: list[int] = []
    members = _members(run, pa.array(list(statuses)), refused)
    first = next(members, None)
    if first is None:
        passed_over(sum(refused))
        return None
    directory.write_json("retry.json", {"statuses": list(statuses)})
    info = write_selected(directory.store, chain([first], members), plan, input_type_of(run.store))
    passed_over(sum(refused))
    return Retry(number, tuple(statuses), info.members, directory)


def merge_retry(run: RunDirectory, retry: Retry) -> None:
    """Put the new rows, masks and embeddings of a retry whose blocks are all done in place of the
    old ones, and remove its folder.

    Retry and run have their members in the same order, so both are read once, and of the new rows
    those of one file are in memory.
    """
    assert not retry.pending(), "a retry is merged when all its blocks are done"
    ids = np.sort(
        np.concatenate(
            [table["image_id"].to_numpy() for table in retry.directory.tables(0, ["image_id"])]
        )
    )
    arriving = TableStream(retry.directory.tables(0))
    run.store.delete(SETTLED)
    for file in run.published():
        count = sum(
            int(reader.are_among(table, ids).sum())
            for table in run.rows_in(file.path, ["image_id"])
        )
        if count:
            fresh = arriving.take(count)
            run.rewrite_file(file, lambda table, fresh=fresh: _replaced(table, fresh))  # type: ignore[misc]
    for folder in _folders_beside(run, retry):
        _merge_beside(run, retry, ids, folder)
    _remove(retry.directory)


def _members(run: RunDirectory, statuses: pa.Array, refused: list[int]) -> Iterator[pa.Table]:
    """The manifest rows of the current members that have one of these statuses, a block's at a
    time, in order.

    Those that were refused when they were listed are left out, and their numbers put into
    `refused`.
    """
    numbers = archives.manifests(run.store)
    gone = archives.read_vanished(run.store, numbers[-1]) if numbers else np.empty(0, np.int64)

    def concerned(table: pa.Table) -> Hits:
        has_status = pc.is_in(table["status"].cast(pa.string()), statuses).to_numpy()
        return np.asarray(has_status & ~reader.are_among(table, gone))

    for ref, ids in _blocks_with(run, ["image_id", "status"], concerned):
        rows = archives.read_block(run.store, ref)
        rows = rows.filter(pc.is_in(rows["image_id"], pa.array(ids)))
        readable = rows.filter(pc.is_null(rows["refused"]))
        refused.append(len(rows) - len(readable))
        if len(readable):
            yield readable


def _blocks_with(
    run: RunDirectory, columns: list[str], is_hit: Callable[[pa.Table], Hits]
) -> Iterator[tuple[archives.BlockRef, archives.Ids]]:
    """The blocks that have rows of some kind, with the ids of those: rows and blocks have one
    order, so their places say which is where.
    """
    numbers = archives.manifests(run.store)
    blocks = archives.BlockList.joined(
        [archives.read_blocks(run.store, number) for number in numbers]
    )
    ends = np.cumsum(blocks.sizes)
    ids, places, start = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for table in (table for path in run.row_files(numbers) for table in run.rows_in(path, columns)):
        hits = np.flatnonzero(is_hit(table))
        ids.append(table["image_id"].to_numpy()[hits])
        places.append(start + hits)
        start += len(table)
    found = np.concatenate(ids)
    at = np.searchsorted(ends, np.concatenate(places), side="right")
    with_hits, starts = np.unique(at, return_index=True)
    # of no hits, split makes one part
    for number, hit_ids in zip(with_hits.tolist(), np.split(found, starts[1:]), strict=False):
        yield blocks[number], hit_ids


def _replaced(rows: pa.Table, fresh: pa.Table) -> pa.Table:
    """The same rows, those of members that `fresh` has taken from there; with the columns of both."""
    # listings may have typed one column differently
    given = joined_inputs(map(input_type, (rows, fresh)), as_text=True)
    rows, fresh = with_input(rows, given), with_input(fresh, given)
    places = pc.fill_null(pc.index_in(rows["image_id"], value_set=fresh["image_id"]), -1).to_numpy()
    longest = max(rows.column_names, fresh.column_names, key=len)
    both = pa.concat_tables([rows, fresh], promote_options="permissive").unify_dictionaries()
    both = both.select(list(dict.fromkeys([*longest, *both.column_names])))
    taken = both.take(np.where(places >= 0, len(rows) + places, np.arange(len(rows))))
    return taken.replace_schema_metadata(rows.schema.metadata)


def _folders_beside(run: RunDirectory, retry: Retry) -> list[str]:
    """Where the run or the retry keeps what stands beside rows."""
    stores = (run.store, retry.directory.store)
    detectors = {name for store in stores for name in store.folders("features")}
    return ["masks"] * any(store.folders("masks") for store in stores) + [
        f"features/{name}" for name in sorted(detectors)
    ]


def _merge_beside(run: RunDirectory, retry: Retry, retried: archives.Ids, folder: str) -> None:
    ends = np.cumsum([ref.members for ref in retry.blocks()])
    start = 0
    for ref, ids in _blocks_with(run, ["image_id"], lambda table: reader.are_among(table, retried)):
        first, last = np.searchsorted(ends, (start, start + len(ids) - 1), side="right")
        start += len(ids)
        found = [retry.directory.beside(folder, 0, block) for block in range(first, last + 1)]
        new = [
            rows.filter(pc.is_in(rows["image_id"], pa.array(ids)))
            for rows in found
            if rows is not None
        ]
        old = run.beside(folder, ref.manifest, ref.block)
        kept = (
            [] if old is None else [old.filter(pc.invert(pc.is_in(old["image_id"], pa.array(ids))))]
        )
        merged = pa.concat_tables([*kept, *new], promote_options="default") if kept or new else None
        if merged is not None and (len(merged) or old is not None):
            run.write_beside(folder, ref.manifest, ref.block, merged)


def _remove(directory: RunDirectory) -> None:
    """Delete all of a retry's files, the manifest that makes it count first, and of that its
    marker.
    """
    for number in archives.manifests(directory.store):
        directory.store.delete(f"manifest/{number}/_complete")
    directory.store.clear("manifest")
    directory.store.clear("")
    here = directory.store.local_path("")
    if here:  # elsewhere a folder without files is none
        shutil.rmtree(here, ignore_errors=True)
