"""Block cutting: chosen members (`Run`) → blocks in the files of a manifest (`block_ends`,
`cut_run`). Same input, same cuts.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives import dedup, manifest, members
from ray_app.storage import Store

RUN_ROWS = 4 * 131_072  # members that are cut by one task
# Reading a block reads its file, in one request: few blocks to a file keep that small, many keep
# the number of files small.
BLOCKS_PER_FILE = 8
# slots of a block left empty to end it where a container's group of members does
_MOST_EMPTY = 1 / 8


@dataclass(frozen=True)
class Run:
    """Raw files whose members are cut together. Blocks of the first run start small and grow."""

    number: int
    files: tuple[dedup.ChosenMembers, ...]

    @property
    def rows(self) -> int:
        """How many members it has."""
        return sum(chosen.rows for chosen in self.files)

    @property
    def has_groups(self) -> bool:
        """Whether some members are better read together with their neighbours."""
        return any(chosen.file.has_groups for chosen in self.files if chosen.rows)

    @property
    def largest_bytes(self) -> int:
        """Of its members, as far as their sizes are known."""
        return max((chosen.file.largest_bytes for chosen in self.files if chosen.rows), default=0)

    def tables(self, store: Store, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Its rows in order."""
        for chosen in self.files:
            yield from chosen.tables(store, columns)


def runs_of(files: Sequence[dedup.ChosenMembers], run_rows: int) -> list[Run]:
    """Consecutive files, so many that each run but the last has `run_rows` members or more."""
    runs: list[Run] = []
    waiting: list[dedup.ChosenMembers] = []
    rows = 0
    for chosen in files:
        if chosen.rows:
            waiting.append(chosen)
            rows += chosen.rows
        if rows >= run_rows:
            runs.append(Run(len(runs), tuple(waiting)))
            waiting, rows = [], 0
    return [*runs, Run(len(runs), tuple(waiting))] if waiting else runs


def reads_rows(plan: members.BlockPlan, run: Run) -> bool:
    """Whether rows must be read to know where blocks end: where groups matter, or a block may hold
    too many bytes.
    """
    return run.has_groups or _may_be_heavy(plan, run)


def block_ends(store: Store, plan: members.BlockPlan, run: Run) -> members.Ids:
    """Where the blocks of a run end, by its rows, which are read only where that must be."""
    sizes = members.block_sizes(plan) if run.number == 0 else repeat(plan.largest_block)
    starts = _group_starts(run.tables(store, ["uri", "place"])) if run.has_groups else None
    most = plan.max_block_bytes
    held = _bytes_before(run.tables(store, ["size_bytes"])) if _may_be_heavy(plan, run) else None
    ends: list[int] = []
    at, rows = 0, run.rows
    while at < rows:
        size = next(sizes)
        if starts is not None and at + size < rows:
            size = _size(size, starts[at : at + size + 1], plan.batch_slots)
        if held is not None and most is not None:
            fitting = int(np.searchsorted(held, held[at] + most, "right")) - 1 - at
            size = min(size, max(fitting, 1))
        at = min(at + size, rows)
        ends.append(at)
    return np.array(ends, np.int64)


def _may_be_heavy(plan: members.BlockPlan, run: Run) -> bool:
    return (
        plan.max_block_bytes is not None
        and run.largest_bytes * plan.largest_block > plan.max_block_bytes
    )


def cut_run(
    store: Store,
    number: int,
    portion: int | None,
    input_type: pa.StructType | None,
    item: tuple[Run, members.Ids, int],
) -> pa.Table:
    """Write the files of a run for a manifest or one of its portions.

    Args:
        store: The run directory.
        number: The number of the manifest.
        portion: The number of the portion; None for a whole manifest.
        input_type: The type of the source's own columns; None if it has none.
        item: The run, the ends of its blocks, and the number of its first block.

    Returns:
        The rows of the run in `blocks.parquet`.
    """
    run, ends, block = item
    stem = f"part-{run.number:05}" if portion is None else f"{portion:05d}/part-{run.number:05}"
    writer = PartWriter(store, number, stem, manifest.manifest_schema(input_type))
    rows = TableStream(manifest.with_input(table, input_type) for table in run.tables(store))
    for place, size in enumerate(np.diff(ends, prepend=0).tolist()):
        writer.add(rows.take(size).combine_chunks(), block + place)
    return writer.finish()


class TableStream:
    """Tables that arrive one after another, given out by numbers of rows."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._waiting: list[pa.Table] = []

    def take(self, count: int) -> pa.Table:
        """The next `count` rows, which must be there."""
        table = self.up_to(count)
        assert table is not None, "the tables end before their rows do"
        assert len(table) == count, "the tables end before their rows do"
        return table

    def up_to(self, count: int) -> pa.Table | None:
        """The next `count` rows, fewer where the tables end; None behind their end."""
        while (
            sum(map(len, self._waiting)) < count
            and (following := next(self._tables, None)) is not None
        ):
            self._waiting.append(following)
        if not any(map(len, self._waiting)):
            return None
        table = pa.concat_tables(self._waiting, promote_options="permissive").unify_dictionaries()
        self._waiting = [table.slice(count)]
        return table.slice(0, count)


class PartWriter:
    """Writes blocks into files `STEM-00000.parquet`, …, of a few blocks each, each written whole.

    Args:
        store: The run directory.
        number: The number of the manifest.
        stem: The beginning of the paths of the files in the manifest's folder.
        schema: The columns of the files.
    """

    def __init__(self, store: Store, number: int, stem: str, schema: pa.Schema) -> None:
        self._store, self._number, self._stem, self._schema = store, number, stem, schema
        self._files = 0
        self._waiting: list[pa.Table] = []
        self._blocks: list[dict[str, object]] = []

    def add(self, listed: pa.Table, block: int) -> None:
        """Take the members of a block."""
        sizes = listed["size_bytes"].to_numpy()
        self._blocks.append(
            {
                "block": block,
                "file": self._file(),
                "row_group": len(self._waiting),
                "members": len(listed),
                "size_bytes": int(np.maximum(sizes, 0).sum()),
            }
        )
        self._waiting.append(manifest.cut_rows(listed, block, self._schema))
        if len(self._waiting) == BLOCKS_PER_FILE:
            self._flush()

    def finish(self) -> pa.Table:
        """Write what is left; returns the blocks (`BLOCK_COLUMNS`)."""
        if self._waiting:
            self._flush()
        return pa.Table.from_pylist(self._blocks, manifest.BLOCK_COLUMNS)

    def _file(self) -> str:
        return f"{self._stem}-{self._files:05}.parquet"

    def _flush(self) -> None:
        file = io.BytesIO()
        with pq.ParquetWriter(
            file, self._schema, compression="zstd", use_dictionary=False
        ) as writer:
            for table in self._waiting:
                writer.write_table(table, row_group_size=len(table))
        path = manifest.path_in(self._number, self._file())
        manifest.create_file(self._store, path, file.getvalue())
        self._files += 1
        self._waiting = []


def _group_starts(tables: Iterator[pa.Table]) -> npt.NDArray[np.bool_]:
    """For each row whether it is read apart from the row before: another file, or another group of
    one.
    """
    found = [np.empty(0, bool)]
    before: tuple[object, object] = (None, None)
    for table in tables:
        if not len(table):
            continue
        uris = table["uri"].combine_chunks().dictionary_encode()
        codes = uris.indices.to_numpy()
        groups = (
            table["place"]
            .combine_chunks()
            .field("group")
            .fill_null(-1)
            .to_numpy(zero_copy_only=False)
        )
        starts = np.ones(len(table), bool)
        starts[1:] = (codes[1:] != codes[:-1]) | (groups[1:] != groups[:-1])
        starts[0] = (uris[0].as_py(), groups[0]) != before
        before = uris[-1].as_py(), groups[-1]
        found.append(starts)
    return np.concatenate(found)


def _bytes_before(tables: Iterator[pa.Table]) -> members.Ids:
    """For each row, and behind the last, the bytes of all rows before it; those of unknown size
    count as nothing.
    """
    sizes = [np.maximum(table["size_bytes"].to_numpy(), 0) for table in tables if len(table)]
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(sizes))])


def _size(size: int, starts: npt.NDArray[np.bool_], slots: int) -> int:
    """`size`, or the number of members in its last half after which a group ends, if hardly a slot
    stays empty for it.
    """
    sizes = np.flatnonzero(starts[size // 2 + 1 :]) + size // 2 + 1
    empty = -sizes % slots / np.maximum(sizes, 1)
    best = sizes[empty <= _MOST_EMPTY]
    return int(best[-1]) if len(best) else size
