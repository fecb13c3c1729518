"""Prepare a retry: list the files of a run that have certain statuses, to score them again.

A manifest is a list of files to score. `begin_retry` writes a new manifest with, for example, the
files that could not be read. When the run has scored the new manifest, its rows replace the earlier
rows of these files.
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
class RetryManifest:
    """The result of `begin_retry`: a manifest, the list of files that will be scored again.

    Attributes:
        info: The new manifest; None if there is nothing to retry.
        refused: The number of files that have a requested status but are not retried, because the
            listing had refused them without reading them.
    """

    info: archives.ManifestInfo | None
    refused: int


def begin_retry(
    rows: CurrentRows, statuses: Sequence[str], plan: archives.BlockPlan
) -> RetryManifest:
    """Write a manifest, a list of files to score, of all files that have one of some statuses.

    The run then scores these files again. `touchstone score --retry` uses this function.

    Args:
        rows: The newest row of each file of a run. All files listed so far must be scored.
        statuses: The statuses to retry, such as `source_timeout`.
        plan: How to cut the files into blocks, which workers score.

    Returns:
        The new manifest, and the number of files that cannot be retried.
    """
    positions = {
        file.path: file_positions
        for file in rows.published()
        if len(file_positions := _positions_with(rows, file.path, file.manifest, statuses))
    }
    total = sum(len(file_positions) for file_positions in positions.values())
    members = _members_at(rows, positions)
    first = next(members, None)
    if first is None:
        return RetryManifest(None, total)
    info = write_retry(rows.run.store, chain([first], members), plan, statuses)
    return RetryManifest(info, total - info.members)


def _positions_with(
    rows: CurrentRows, path: str, manifest: int, statuses: Sequence[str]
) -> _Positions:
    """Return the positions of current rows of a file that have one of these statuses."""
    parts, start = [np.empty(0, np.int64)], 0
    for table in rows.run.rows_in(path, ["image_id", "status"]):
        has_status = pc.is_in(table["status"].cast(pa.string()), pa.array(list(statuses)))
        is_hit = has_status.to_numpy() & rows.select(table, manifest)
        parts.append(start + np.flatnonzero(is_hit))
        start += len(table)
    return np.concatenate(parts)


def _members_at(rows: CurrentRows, positions: Mapping[str, _Positions]) -> Iterator[pa.Table]:
    """Yield the manifest rows at positions of published files, a block at a time.

    Members that the listing refused are left out. Rows and members have the same order, so only the
    blocks concerned are read.
    """
    for file in rows.published():
        start = 0
        file_positions = positions.get(file.path, np.empty(0, np.int64))
        for ref in blocks_in(rows.run, file) if len(file_positions) else ():
            inside = (
                file_positions[(file_positions >= start) & (file_positions < start + ref.members)]
                - start
            )
            start += ref.members
            if len(inside):
                table = archives.read_block(rows.run.store, ref).take(inside)
                readable = table.filter(pc.is_null(table["refused"]))
                if len(readable):
                    yield readable
