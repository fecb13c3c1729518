"""An archive → its next manifest: all members the first time, later what is new. Reads no image; who runs the steps is passed in.

1. The archive is walked, section by section, into raw files. Where its sources name what they named before, that is all.
2. Ids are compared partition by partition: duplicates, collisions, what is known, what vanished.
3. Runs of raw files are cut into blocks and written. Only then does the manifest count; an interrupted listing begins anew.

Memory here is a few numbers per section, block and container, and 8 bytes per vanished member.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.archives.blocks import BlockPlan
from ray_app.archives.cutting import RUN_ROWS, Cutter, Ends, Run, runs_of
from ray_app.archives.known import add_missing_ids, id_files
from ray_app.archives.manifest import (
    BLOCK_COLUMNS,
    ManifestInfo,
    folder_of,
    manifests,
    read_complete,
    read_vanished,
    write_complete,
    write_listed,
)
from ray_app.archives.matching import Chosen, Matched, Matcher, chosen, settle
from ray_app.archives.members import Digest, Ids, identity_digest
from ray_app.archives.raw import BUCKET_BITS, RAW_ROWS, Progress, RawFile, SectionLister
from ray_app.archives.rows import joined_inputs, settled
from ray_app.archives.sources import Archive
from ray_app.archives.walking import Each, Walk, in_turn
from ray_app.storage import Store

_FEW_NAMED = 100_000  # files and containers that one process lists in some seconds


@dataclass(frozen=True)
class Portions:
    """How many members one task holds at once, and how few are not worth a task at all."""

    raw_rows: int = RAW_ROWS
    partition_rows: int = 1 << 20
    run_rows: int = RUN_ROWS
    few: int = 100_000


def list_members(
    store: Store,
    archive: Archive,
    plan: BlockPlan,
    *,
    each: Each = in_turn,
    progress: Progress | None = None,
    limit: int | None = None,
    digest: Digest = identity_digest,
    portions: Portions = Portions(),
    clock: Callable[[], float] = time.monotonic,
) -> ManifestInfo | None:
    """Write the next manifest; None when the archive is as the last one says. `progress` is told how many members there are so far.

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
        SectionLister(store, scratch, archive.selection, archive.fetcher, digest, portions.raw_rows), archive, each, limit, progress
    )
    walk.sources()
    if numbers and _digest(store, numbers[-1]) == walk.digest:
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
    matcher = _matcher(store, number, scratch, files, numbers, math.ceil(max(listed, earlier) / portions.partition_rows), each, digest)
    kept, vanished = _matched(matcher, each, digest)
    runs = runs_of(kept, portions.run_rows)
    if numbers and not runs and np.array_equal(vanished, read_vanished(store, numbers[-1])):
        store.clear(folder_of(number))
        if (last := read_complete(store, numbers[-1])) is not None:
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
    walk = Walk(SectionLister(store, f"{folder}/listing", archive.selection, archive.fetcher, identity_digest), archive, limit=limit)
    walk.sources()
    store.clear(folder)
    return walk.digest == info.digest


def _digest(store: Store, number: int) -> str | None:
    info = read_complete(store, number)
    return info.digest if info is not None else None


def _noted(walk: Walk) -> dict[str, Any]:
    """What the next listing is told of this one; no digest where containers must be opened to know what is in them."""
    guard = walk.archive.fetcher.guard
    told = {"servers": sorted(guard.named), "allow_private": guard.allow_private}
    linked = {"linked_folders": walk.linked.count, "linked_example": walk.linked.example}
    return {"named": walk.named, "digest": walk.digest if walk.settled else "", **told, **linked}


def _matcher(
    store: Store, number: int, scratch: str, files: Sequence[RawFile], numbers: Sequence[int], partitions: int, each: Each, digest: Digest
) -> Matcher:
    for _ in each(_Adding(store, digest), numbers):
        pass
    known = [file for earlier in numbers for file in id_files(store, earlier)]
    bits = min(BUCKET_BITS, max(0, partitions - 1).bit_length())
    return Matcher(store, number, scratch, files, known, bits, is_later=bool(numbers))


@dataclass(frozen=True)
class _Adding:
    store: Store
    digest: Digest

    def __call__(self, number: int) -> None:
        add_missing_ids(self.store, self.digest, number)


def _matched(matcher: Matcher, each: Each, digest: Digest) -> tuple[list[Chosen], Ids]:
    """What the manifest gets of each raw file, and the ids that are not there any more."""
    matched: list[Matched] = list(each(matcher, range(1 << matcher.bits)))
    settling = settle(matcher, (one for part in matched for one in part.collided), digest)
    vanished = np.concatenate([part.vanished for part in matched])
    return chosen(matcher, matched, settling), vanished[~np.isin(vanished, settling.present)]


def _cut(store: Store, number: int, plan: BlockPlan, runs: Sequence[Run], input_type: pa.StructType | None, each: Each) -> pa.Table:
    """Write the manifest's parts; returns its blocks."""
    measure = Ends(store, plan)
    measured: Iterator[Any] = each(measure, [run for run in runs if measure.reads(run)])
    ends: list[Ids] = [next(measured) if measure.reads(run) else measure(run) for run in runs]
    firsts = accumulate((len(one) for one in ends), initial=0)
    tables = each(Cutter(store, number, input_type), list(zip(runs, ends, firsts, strict=False)))
    return pa.concat_tables([BLOCK_COLUMNS.empty_table(), *tables]).combine_chunks()
