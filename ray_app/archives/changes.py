"""Listing an archive for the first time, and again later: which members are new, which are gone. Compares ids; reads no image."""

import time
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa

from ray_app.archives.blocks import BlockPlan
from ray_app.archives.manifest import ManifestInfo, ManifestWriter, manifests, read_ids, read_vanished
from ray_app.archives.members import Ids, Listed, identify
from ray_app.storage import Store

Progress = Callable[[int], object]


def build_manifest(
    store: Store,
    listed: Iterable[Listed],
    plan: BlockPlan,
    *,
    input_type: pa.StructType | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ManifestInfo:
    """Write manifest 0: every member of the archive. `progress` is told how many there are so far.

    Raises ConfigError and StorageError from the listing; what was written until then does not count and is written again next time.
    """
    began = clock()
    writer = ManifestWriter(store, 0, plan, input_type)
    count = 0
    for ids, items in identify(listed):
        writer.add(ids, items)
        count += len(items)
        _tell(progress, count)
    return writer.finish(listed=count, vanished=np.empty(0, np.int64), listing_s=clock() - began)


def list_changes(
    store: Store,
    listed: Iterable[Listed],
    plan: BlockPlan,
    *,
    input_type: pa.StructType | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ManifestInfo | None:
    """Compare the archive with the manifests there are; write the next one when anything changed, else return None.

    It holds the members whose id no manifest has, and as vanished all ids ever listed that are not there now: a file put back to an
    older version makes the old id current again, with the row that it has, and the newer one vanished. Memory: ids alone.
    """
    began = clock()
    numbers = manifests(store)
    known = known_ids(store)
    is_present = np.zeros(len(known), bool)
    writer: ManifestWriter | None = None
    count = 0
    for ids, items in identify(listed):
        places = np.minimum(np.searchsorted(known, ids), max(0, len(known) - 1))
        is_known = known[places] == ids if len(known) else np.zeros(len(ids), bool)
        is_present[places[is_known]] = True
        if not is_known.all():
            writer = writer or ManifestWriter(store, numbers[-1] + 1, plan, input_type)
            writer.add(ids[~is_known], [item for item, old in zip(items, is_known, strict=True) if not old])
        count += len(items)
        _tell(progress, count)
    vanished = known[~is_present]
    if writer is None and np.array_equal(vanished, read_vanished(store, numbers[-1])):
        return None
    writer = writer or ManifestWriter(store, numbers[-1] + 1, plan, input_type)
    return writer.finish(listed=count, vanished=vanished, listing_s=clock() - began)


def known_ids(store: Store) -> Ids:
    """Every id of every complete manifest, sorted."""
    return np.sort(np.concatenate([read_ids(store, number) for number in manifests(store)] or [np.empty(0, np.int64)]))


def current_ids(store: Store) -> Ids:
    """The sorted ids that the latest listing had: those that must have exactly one current row each."""
    numbers = manifests(store)
    if not numbers:
        return np.empty(0, np.int64)
    return np.setdiff1d(known_ids(store), read_vanished(store, numbers[-1]), assume_unique=True)


def _tell(progress: Progress | None, count: int) -> None:
    if progress is not None:
        progress(count)
