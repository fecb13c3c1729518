"""Small published files → large ones (`merge_small`), so that a run of many nights has few files.

Files that follow one another are merged once there are more than `MOST_SMALL` of them, and again
where the merged ones have become many: a night's work is constant on average, and files are few
whatever the number of nights.

A merged file is written before those in whose place it stands go. Whoever reads `scores/*.parquet`
in that moment sees their rows twice (equal ones); readers that know the names pass them over. An
interrupted merge is finished by the next command.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives import Each, in_turn
from ray_app.archives.manifest import input_type, joined_inputs, with_input
from ray_app.errors import ClusterError
from ray_app.runs import parts, score_files

SMALL_BYTES = 8 * 2**20
MOST_SMALL = 8


def groups(
    files: Sequence[score_files.Published], sizes: Mapping[str, int]
) -> list[list[score_files.Published]]:
    """Which files, given with their bytes by name, are to become one each: neighbours that are
    small, else such that are no whole file.
    """
    small = _many(files, lambda file: sizes[file.name] < SMALL_BYTES)
    few = small or _many(
        files,
        lambda file: sizes[file.name] < parts.PUBLISHED_BYTES,
        counts=lambda file: sizes[file.name] >= SMALL_BYTES,
    )
    return [group for row in few for group in _divided(row, sizes) if len(group) > 1]


def _many(
    files: Sequence[score_files.Published],
    belongs: Callable[[score_files.Published], bool],
    counts: Callable[[score_files.Published], bool] = lambda file: True,
) -> list[list[score_files.Published]]:
    """Neighbours that belong together, where more than `MOST_SMALL` of them count."""
    rows: list[list[score_files.Published]] = [[]]
    for file in files:
        if belongs(file):
            rows[-1].append(file)
        elif rows[-1]:
            rows.append([])
    return [row for row in rows if sum(map(counts, row)) > MOST_SMALL]


def _divided(
    row: Sequence[score_files.Published], sizes: Mapping[str, int]
) -> Iterator[list[score_files.Published]]:
    """The same in groups that each make about a whole file."""
    group: list[score_files.Published] = []
    for file in row:
        group.append(file)
        if sum(sizes[one.name] for one in group) >= parts.PUBLISHED_BYTES:
            yield group
            group = []
    yield group


def merge_small(
    run: parts.PartTable, written: Callable[[], object] = lambda: None, *, each: Each = in_turn
) -> list[str]:
    """Merge small published files of a run in which no block is missing; returns the files written.
    `each` runs what is not little.

    `written` is called when merged files are there, before those in whose place they stand go.
    """
    sizes = run.store.sizes("scores")
    chosen = groups(score_files.split_off(score_files.named(sizes))[0], sizes)
    if not chosen:
        return []
    is_little = sum(sizes[file.name] for group in chosen for file in group) <= parts.LITTLE_BYTES
    paths = list((in_turn if is_little else each)(_FileMerger(run), chosen))
    written()
    run.store.delete_all([file.path for group in chosen for file in group])
    return paths


@dataclass(frozen=True)
class _FileMerger:
    """Writes one file of the rows of several; called with those. Picklable, as tasks need it.
    Memory: the compressed files, twice.
    """

    run: parts.PartTable

    def __call__(self, files: Sequence[score_files.Published]) -> str:
        opened = [pq.ParquetFile(pa.BufferReader(self.run.store.read(file.path))) for file in files]
        shape = _Shape.of([one.schema_arrow for one in opened])
        whole, merger = score_files.merged(files), parts.Merger()
        ids = []
        for one in opened:
            for group in range(one.num_row_groups):
                table = one.read_row_group(group)
                ids.append(table["image_id"].to_numpy())
                merger.add(shape.table(table))
        data = merger.finish()
        found = pq.read_table(pa.BufferReader(data), columns=["image_id"])["image_id"].to_numpy()
        if not np.array_equal(found, np.concatenate(ids)):
            raise ClusterError(
                f"{self.run.store.url}: {whole.path} does not hold the rows that it was merged from",
                hint="please report this: it is a bug",
            )
        self.run.store.write(whole.path, data)
        return whole.path


@dataclass(frozen=True)
class _Shape:
    """The schema of rows that were written by several sessions: what some do not have is null in
    theirs.

    The source's own columns are of the type that holds all of them, else texts.
    """

    schema: pa.Schema
    given: pa.StructType | None

    @classmethod
    def of(cls, schemas: Sequence[pa.Schema]) -> "_Shape":
        """The one for tables of these schemas; its columns stand as in the longest."""
        empty = [schema.empty_table() for schema in schemas]
        given = joined_inputs(map(input_type, empty), as_text=True)
        found = [with_input(table, given).schema for table in empty]
        fields = {
            field.name: field for field in pa.unify_schemas(found, promote_options="permissive")
        }
        longest = max(found, key=lambda schema: len(schema.names)).names
        names = [*longest, *(name for name in fields if name not in longest)]
        return cls(pa.schema([fields[name] for name in names], metadata=found[-1].metadata), given)

    def table(self, rows: pa.Table) -> pa.Table:
        """Rows in this shape."""
        rows = with_input(rows, self.given)
        empty = {
            field.name: pa.nulls(len(rows), field.type)
            for field in self.schema
            if field.name not in rows.column_names
        }
        columns = [
            empty[field.name] if field.name in empty else rows[field.name].cast(field.type)
            for field in self.schema
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)
