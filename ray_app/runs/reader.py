"""The current row of each member, whatever the run went through; bounded memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import manifests, read_ids, read_vanished
from ray_app.errors import ClusterError, ConfigError
from ray_app.runs.directory import RunDirectory

Ids = npt.NDArray[np.int64]


def current_tables(run: RunDirectory, columns: list[str] | None = None, *, vanished: bool = False) -> Iterator[pa.Table]:
    """Result rows of the members that the last listing found, a bounded table at a time.

    With `vanished`, also those of members that were changed or removed since. Raises ConfigError where there is no run.
    """
    if not run.exists():
        raise ConfigError(f"{run.store.url}: no run here", hint="touchstone score SOURCE --out DIR makes one")
    run.check_settled()
    numbers = manifests(run.store)
    gone = np.empty(0, np.int64) if vanished or not numbers else read_vanished(run.store, numbers[-1])
    for manifest in numbers:
        for table in run.tables(manifest, columns):
            yield table.filter(pc.invert(pc.is_in(table["image_id"], pa.array(gone)))) if len(gone) else table


def current_rows(
    run: RunDirectory, *, verdict: str | None = None, status: str | None = None, vanished: bool = False
) -> Iterator[dict[str, Any]]:
    """The same as dictionaries, one by one, optionally of one verdict or status."""
    for table in current_tables(run, vanished=vanished):
        for name, wanted in (("verdict", verdict), ("status", status)):
            if wanted is not None:
                table = table.filter(pc.equal(table[name].cast(pa.string()), wanted))
        yield from table.to_pylist()


def current_masks(run: RunDirectory, *, vanished: bool = False) -> Iterator[dict[str, Any]]:
    """The masks of the members that `current_tables` has rows of, one by one (`MASK_SCHEMA`). Raises ConfigError as that does."""
    ids = [table["image_id"].to_numpy() for table in current_tables(run, ["image_id"], vanished=vanished)]
    known = pa.array(np.concatenate([np.empty(0, np.int64), *ids]))
    for manifest in manifests(run.store):
        for table in run.masks(manifest):
            yield from table.filter(pc.is_in(table["image_id"], known)).to_pylist()


def check_conservation(run: RunDirectory) -> int:
    """Compare every manifest with its rows, id by id and in order; returns the number of current members.

    Raises ClusterError when a member has no row, or a row no member.
    """
    total, numbers = 0, manifests(run.store)
    for manifest in numbers:
        found = (table["image_id"].to_numpy() for table in run.tables(manifest, ["image_id"]) if len(table))
        total += _compare(read_ids(run.store, manifest), found, f"{run.store.url}: manifest {manifest}")
    return total - len(read_vanished(run.store, numbers[-1]))


def _compare(expected: Ids, found: Iterator[Ids], what: str) -> int:
    at = 0
    for ids in found:
        part = expected[at : at + len(ids)]
        if not np.array_equal(part, ids):
            raise ClusterError(f"{what}: from row {at} on, the rows are not those of the members", hint="please report this: it is a bug")
        at += len(ids)
    if at < len(expected):
        raise ClusterError(f"{what}: {len(expected) - at} of {len(expected)} members have no row", hint="please report this: it is a bug")
    return at
