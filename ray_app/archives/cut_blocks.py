"""Cut listed members into blocks, which workers score as units, and write them into a manifest.

A listing writes all its members into raw files. The blocks leave out members that earlier
manifests already have. `build_runs` groups raw files into sequences of members (`Run`), each of
which one task cuts. `find_block_ends` finds the ends of the blocks of a `Run`, and `cut_run` writes
these blocks. The same input always gives the same blocks.
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

RUN_ROWS = 4 * 131_072  # Members that one task cuts.
# Reading a block reads its file, in one request. Few blocks per file keep the request small; many
# keep the number of files small.
BLOCKS_PER_FILE = 8
# The maximum fraction of slots of a block that stay empty so that it ends with a group of members.
_MAX_EMPTY_FRACTION = 1 / 8


@dataclass(frozen=True)
class Run:
    """Consecutive raw files whose members one task cuts into blocks.

    A raw file has listed members that are not cut into blocks yet. This run is a part of a listing,
    and not a scoring run. Blocks of run 0 start small and grow, for early results. Blocks of other
    runs have the full size.

    Attributes:
        number: The number of the run in the listing.
        files: For each raw file, those of its members that are new and go into the manifest.
    """

    number: int
    files: tuple[dedup.ChosenMembers, ...]

    @property
    def rows(self) -> int:
        """The number of archive members in all files of the run."""
        return sum(selected.rows for selected in self.files)

    @property
    def has_groups(self) -> bool:
        """Whether some members are in containers, which are best read with their neighbours."""
        return any(selected.file.has_groups for selected in self.files if selected.rows)

    @property
    def largest_bytes(self) -> int:
        """The size of the largest member in bytes, as far as sizes are known."""
        return max(
            (selected.file.largest_bytes for selected in self.files if selected.rows), default=0
        )

    def tables(self, store: Store, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows of all members in order, a table at a time."""
        for selected in self.files:
            yield from selected.tables(store, columns)


def build_runs(files: Sequence[dedup.ChosenMembers], run_rows: int) -> list[Run]:
    """Group raw files into runs of at least `run_rows` members each, except for the last run.

    A raw file has listed members that are not cut into blocks yet. A run is a sequence of members
    that one task cuts into blocks.
    """
    runs: list[Run] = []
    buffered: list[dedup.ChosenMembers] = []
    rows = 0
    for selected in files:
        if selected.rows:
            buffered.append(selected)
            rows += selected.rows
        if rows >= run_rows:
            runs.append(Run(len(runs), tuple(buffered)))
            buffered, rows = [], 0
    return [*runs, Run(len(runs), tuple(buffered))] if buffered else runs


def must_read_rows(plan: members.BlockPlan, run: Run) -> bool:
    """Return whether `find_block_ends` must read the rows of a run, and not only count them.

    A run is a sequence of members that one task cuts into blocks, not a scoring run. Its rows are
    necessary if a block should stop at the end of a container or of a row group of a table. They are also
    necessary if a block may exceed the plan's maximum bytes.
    """
    return run.has_groups or _may_be_heavy(plan, run)


def find_block_ends(store: Store, plan: members.BlockPlan, run: Run) -> members.Ids:
    """Find the ends of the blocks of a run. The rows of the run are read only if necessary.

    Args:
        store: The run directory.
        plan: The sizes of blocks.
        run: The run, a sequence of members that one task cuts.

    Returns:
        For each block, the number of members of the run up to the block's end.
    """
    sizes = members.iter_block_sizes(plan) if run.number == 0 else repeat(plan.largest_block)
    starts = _find_group_starts(run.tables(store, ["uri", "place"])) if run.has_groups else None
    max_bytes = plan.max_block_bytes
    total_bytes = (
        _cumulate_bytes(run.tables(store, ["size_bytes"])) if _may_be_heavy(plan, run) else None
    )
    stops: list[int] = []
    start, rows = 0, run.rows
    while start < rows:
        size = next(sizes)
        if starts is not None and start + size < rows:
            size = _fit_to_groups(size, starts[start : start + size + 1], plan.batch_slots)
        if total_bytes is not None and max_bytes is not None:
            fitting = (
                int(np.searchsorted(total_bytes, total_bytes[start] + max_bytes, "right"))
                - 1
                - start
            )
            size = min(size, max(fitting, 1))
        start = min(start + size, rows)
        stops.append(start)
    return np.array(stops, np.int64)


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
    """Cut a run of consecutive members into blocks, and write the blocks into files of a manifest.

    Args:
        store: The run directory.
        number: The number of the manifest.
        portion: The number of the portion of the manifest; None if it is written at once.
        input_type: The type of the column `input`, which has the user's own columns. None if there
            are none.
        item: The run, the ends of its blocks as `find_block_ends` returns them, and the number of
            its first block.

    Returns:
        One row per block of the run, for the manifest's `blocks.parquet`.
    """
    run, stops, block = item
    stem = f"part-{run.number:05}" if portion is None else f"{portion:05d}/part-{run.number:05}"
    writer = PartWriter(store, number, stem, manifest.manifest_schema(input_type))
    rows = TableStream(manifest.widen_input(table, input_type) for table in run.tables(store))
    for index, size in enumerate(np.diff(stops, prepend=0).tolist()):
        writer.add(rows.take(size).combine_chunks(), block + index)
    return writer.finish()


class TableStream:
    """A stream of tables from which any number of rows can be taken at a time."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._buffered: list[pa.Table] = []

    def take(self, count: int) -> pa.Table:
        """Return the next `count` rows. At least this number of rows must remain."""
        table = self.up_to(count)
        assert table is not None, "the tables end before their rows do"
        assert len(table) == count, "the tables end before their rows do"
        return table

    def up_to(self, count: int) -> pa.Table | None:
        """Return the next `count` rows, or fewer at the end of the tables; None after the end."""
        while (
            sum(map(len, self._buffered)) < count
            and (following := next(self._tables, None)) is not None
        ):
            self._buffered.append(following)
        if not any(map(len, self._buffered)):
            return None
        table = pa.concat_tables(self._buffered, promote_options="permissive").unify_dictionaries()
        self._buffered = [table.slice(count)]
        return table.slice(0, count)


class PartWriter:
    """Writes the blocks of a manifest into files of a few blocks each.

    The files are `STEM-00000.parquet`, `STEM-00001.parquet`, and so on. Each file is written as a
    whole.

    Args:
        store: The run directory.
        number: The number of the manifest.
        stem: The beginning of the paths of the files in the manifest's folder.
        schema: The columns of the files.
    """

    def __init__(self, store: Store, number: int, stem: str, schema: pa.Schema) -> None:
        self._store, self._number, self._stem, self._schema = store, number, stem, schema
        self._files = 0
        self._buffered: list[pa.Table] = []
        self._blocks: list[dict[str, object]] = []

    def add(self, rows: pa.Table, block: int) -> None:
        """Add the rows of members as block number `block`, and write the file if it is full."""
        sizes = rows["size_bytes"].to_numpy()
        self._blocks.append(
            {
                "block": block,
                "file": self._file_name(),
                "row_group": len(self._buffered),
                "members": len(rows),
                "size_bytes": int(np.maximum(sizes, 0).sum()),
            }
        )
        self._buffered.append(manifest.cut_rows(rows, block, self._schema))
        if len(self._buffered) == BLOCKS_PER_FILE:
            self._flush()

    def finish(self) -> pa.Table:
        """Write the last file, and return one row per block that was added (`BLOCK_COLUMNS`)."""
        if self._buffered:
            self._flush()
        return pa.Table.from_pylist(self._blocks, manifest.BLOCK_COLUMNS)

    def _file_name(self) -> str:
        return f"{self._stem}-{self._files:05}.parquet"

    def _flush(self) -> None:
        file = io.BytesIO()
        with pq.ParquetWriter(
            file, self._schema, compression="zstd", use_dictionary=False
        ) as writer:
            for table in self._buffered:
                writer.write_table(table, row_group_size=len(table))
        path = manifest.path_in(self._number, self._file_name())
        manifest.create_file(self._store, path, file.getvalue())
        self._files += 1
        self._buffered = []


def _find_group_starts(tables: Iterator[pa.Table]) -> npt.NDArray[np.bool_]:
    """Return for each row whether a new file, or a new group of a file, begins there."""
    parts = [np.empty(0, bool)]
    last_key: tuple[object, object] = (None, None)
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
        starts[0] = (uris[0].as_py(), groups[0]) != last_key
        last_key = uris[-1].as_py(), groups[-1]
        parts.append(starts)
    return np.concatenate(parts)


def _cumulate_bytes(tables: Iterator[pa.Table]) -> members.Ids:
    """Return the bytes of all rows before each row, and of all rows.

    Rows of unknown size count 0 bytes.
    """
    sizes = [np.maximum(table["size_bytes"].to_numpy(), 0) for table in tables if len(table)]
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(sizes))])


def _fit_to_groups(size: int, starts: npt.NDArray[np.bool_], slots: int) -> int:
    """Return a block size up to `size` at which a group ends, or else `size`.

    The block keeps at least half of `size`, and leaves at most `_MAX_EMPTY_FRACTION` of its slots
    empty.
    """
    sizes = np.flatnonzero(starts[size // 2 + 1 :]) + size // 2 + 1
    empty = -sizes % slots / np.maximum(sizes, 1)
    best = sizes[empty <= _MAX_EMPTY_FRACTION]
    return int(best[-1]) if len(best) else size
