"""What the three jobs share: a directory of parts, which units of work leave there, and the loop
over these units.

A part is a Parquet file of rows in parts/, one row for each image of a unit, written by the process
that worked on it. What a part does not say has not been done: the same command does only that.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import wraps
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives import Each
from ray_app.archives.manifest import parquet_bytes
from ray_app.cluster.progress import Progress
from ray_app.storage import Lease, Store

U = TypeVar("U")
PARTS = "parts"
OK = "ok"
_READERS = 16


def write_part(
    store: Store, name: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema
) -> None:
    """Write the part of this name whole. Raises StorageError."""
    store.write(f"{PARTS}/{name}.parquet", parquet_bytes(pa.Table.from_pylist(rows, schema)))


def part_names(store: Store) -> list[str]:
    """The names of all parts, in order."""
    return [name.removesuffix(".parquet") for name in store.names(PARTS)]


def remove_part(store: Store, name: str) -> None:
    """Forget what a part says."""
    store.delete(f"{PARTS}/{name}.parquet")


def read_parts(store: Store, names: Sequence[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
    """(name, rows) of these parts, None = of all, in their order."""

    def read(name: str) -> tuple[str, pa.Table]:
        return name, pq.read_table(io.BytesIO(store.read(f"{PARTS}/{name}.parquet")))

    names = part_names(store) if names is None else names
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(names), _READERS):  # no more of them in memory
            yield from pool.map(read, names[start : start + _READERS])


def labelled(
    lines: Callable[[Mapping[str, Any]], Iterator[tuple[str, str]]],
) -> Callable[[Mapping[str, Any]], list[str]]:
    """A function from a summary to lines for people, of one that gives (label, text); "" goes on
    with what the line before says.
    """

    @wraps(lines)
    def in_lines(summary: Mapping[str, Any]) -> list[str]:
        return [f"{label:11}{text}".rstrip() for label, text in lines(summary)]

    return in_lines


def work_through(
    each: Each,
    work: Callable[[U], Mapping[str, int]],
    units: Sequence[U],
    *,
    progress: Progress,
    lease: Lease,
    say: str,
) -> None:
    """Have all units worked on; `work` returns how many {images, bad} a unit had. Raises
    IdentityError when another command took the directory over.
    """
    progress.say(say)
    try:
        with closing(each(work, units)) as reports:
            for report in reports:
                progress.advance(report["images"], report["bad"])
                lease.check()
    finally:
        progress.close()
