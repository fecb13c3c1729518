"""A retry: a manifest that lists current members again whose row has one of some statuses.

Its rows are current once it is finished, since the last finished manifest that holds an id counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app import archives
from ray_app.archives.build import write_retry
from ray_app.runs.current import CurrentRows, blocks_in

_Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BegunRetry:
    """What `begin_retry` wrote.

    Attributes:
        info: The new manifest; None if there is nothing to retry.
        refused: Number of members that the listing refused. They are never read, so they are not
            retried.
    """

    info: archives.ManifestInfo | None
    refused: int


def begin_retry(rows: CurrentRows, statuses: Sequence[str], plan: archives.BlockPlan) -> BegunRetry:
    """Write the manifest of the members whose current row has one of these statuses.

    Args:
        rows: The current rows of a run whose manifests are all finished.
        statuses: The statuses to retry.
        plan: How blocks are cut.
    """
    positions = {
        file.path: found
        for file in rows.published()
        if len(found := _positions_with(rows, file.path, file.manifest, statuses))
    }
    total = sum(len(found) for found in positions.values())
    members = _members_at(rows, positions)
    first = next(members, None)
    if first is None:
        return BegunRetry(None, total)
    info = write_retry(rows.run.store, chain([first], members), plan, statuses)
    return BegunRetry(info, total - info.members)


def _positions_with(
    rows: CurrentRows, path: str, manifest: int, statuses: Sequence[str]
) -> _Positions:
    """Return the positions of current rows of a file that have one of these statuses."""
    found, start = [np.empty(0, np.int64)], 0
    for table in rows.run.rows_in(path, ["image_id", "status"]):
        has_status = pc.is_in(table["status"].cast(pa.string()), pa.array(list(statuses)))
        is_hit = has_status.to_numpy() & rows.select(table, manifest)
        found.append(start + np.flatnonzero(is_hit))
        start += len(table)
    return np.concatenate(found)


def _members_at(rows: CurrentRows, positions: Mapping[str, _Positions]) -> Iterator[pa.Table]:
    """Yield the manifest rows at these positions of published files, a block's at a time.

    Members that the listing refused are left out. Rows and members have the same order, so only
    the blocks concerned are read.
    """
    for file in rows.published():
        start = 0
        found = positions.get(file.path, np.empty(0, np.int64))
        for ref in blocks_in(rows.run, file) if len(found) else ():
            inside = found[(found >= start) & (found < start + ref.members)] - start
            start += ref.members
            if len(inside):
                table = archives.read_block(rows.run.store, ref).take(inside)
                readable = table.filter(pc.is_null(table["refused"]))
                if len(readable):
                    yield readable
