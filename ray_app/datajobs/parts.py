"""Read and write the parts of a job, and run its units of work (`run_units`).

A job divides its work into units, such as blocks of images to generate, or shards to write. A part
is a Parquet file in `parts/` with one row for each image of a unit. The process that did the unit
writes the part. A unit without a part is not done. A job that is started again runs only these
units.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import wraps
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives import MapFunction
from ray_app.archives.manifest import to_parquet_bytes
from ray_app.cluster.progress import Progress
from ray_app.storage import Lease, Store

U = TypeVar("U")
PARTS = "parts"
OK = "ok"
_READERS = 16


def write_part(
    store: Store, name: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema
) -> None:
    """Write a part, the file of rows that marks a unit of work as done.

    An earlier part of the same name is replaced.

    Args:
        store: The store of the job's records.
        name: Name of the part, without extension.
        rows: One row for each image of the unit of work.
        schema: Columns of the rows.

    Raises:
        StorageError: If the part cannot be written.
    """
    store.write(f"{PARTS}/{name}.parquet", to_parquet_bytes(pa.Table.from_pylist(rows, schema)))


def list_parts(store: Store) -> list[str]:
    """Return the names of all parts in `store`, in order.

    Each part is a file of rows, and stands for a finished unit of work.
    """
    return [name.removesuffix(".parquet") for name in store.names(PARTS)]


def remove_part(store: Store, name: str) -> None:
    """Delete a part, the file of rows of a finished unit of work.

    A later call of the job does this unit again.
    """
    store.delete(f"{PARTS}/{name}.parquet")


def read_parts(store: Store, names: Sequence[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
    """Yield the name and the rows of parts.

    Args:
        store: The store of the job's records.
        names: Names of the parts to read, in this order; None for all.

    Yields:
        The name of each part, and its rows, which are those of a finished unit of work.
    """

    def read(name: str) -> tuple[str, pa.Table]:
        return name, pq.read_table(io.BytesIO(store.read(f"{PARTS}/{name}.parquet")))

    names = list_parts(store) if names is None else names
    with ThreadPoolExecutor(_READERS) as pool:
        # One batch at a time, which bounds the number of parts in memory.
        for start in range(0, len(names), _READERS):
            yield from pool.map(read, names[start : start + _READERS])


def format_labels(
    lines: Callable[[Mapping[str, Any]], Iterator[tuple[str, str]]],
) -> Callable[[Mapping[str, Any]], list[str]]:
    """Decorate a generator of (label, text) pairs so that it returns lines of text to print.

    A line has the label, such as "failed", in a column of 11 characters, followed by the text. The
    label "" marks a line that continues the one before it.
    """

    @wraps(lines)
    def in_lines(summary: Mapping[str, Any]) -> list[str]:
        return [f"{label:11}{text}".rstrip() for label, text in lines(summary)]

    return in_lines


def run_units(
    map_fn: MapFunction,
    work: Callable[[U], Mapping[str, int]],
    units: Sequence[U],
    *,
    progress: Progress,
    lease: Lease,
    message: str,
) -> None:
    """Run a function on all units of work of a job, such as blocks of images, with progress.

    Args:
        map_fn: Applies `work` to the units, in this process or on a cluster.
        work: Function that does one unit. It returns the number of its `images`, and how many of
            them failed (`bad`).
        units: The units that are not done.
        progress: The progress line, which is closed at the end.
        lease: The lock that keeps other commands from writing to the directory of the job. It is
            checked after each unit.
        message: Text to show before the first unit.

    Raises:
        IdentityError: If another command took over the directory.
    """
    progress.say(message)
    try:
        with closing(map_fn(work, units)) as reports:
            for report in reports:
                progress.advance(report["images"], report["bad"])
                lease.check()
    finally:
        progress.close()
