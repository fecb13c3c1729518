"""Parts → the few larger files that people read (`consecutive`, `Compactor`, `Merger`)."""

import io
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.runs.score_files import Published

if TYPE_CHECKING:
    from ray_app.runs.directory import RunDirectory

PUBLISHED_BYTES = 64 * 2**20  # compressed size at which a published file is closed: few files, each quick to read
TASK_BYTES = 8 * PUBLISHED_BYTES  # of parts; merged they take less, so that a task still fills a file or several
ROW_GROUP = 32_768  # rows; parts have few, and readers pay per row group
_REQUESTS = 16  # parts that are read at once


@dataclass(frozen=True)
class Parts:
    """Consecutive blocks with a part of their own, and the bytes of each."""

    manifest: int
    first: int
    sizes: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Of all of them."""
        return sum(self.sizes)

    def divided(self) -> list["Parts"]:
        """The same as pieces of about `TASK_BYTES`, none much smaller unless it is the only one."""
        count = max(1, self.size_bytes // TASK_BYTES)
        ends = np.searchsorted(np.cumsum(self.sizes), self.size_bytes * np.arange(1, count) / count)
        cuts = [0, *np.unique(ends[ends > 0]).tolist(), len(self.sizes)]
        return [Parts(self.manifest, self.first + start, self.sizes[start:end]) for start, end in pairwise(cuts)]


def consecutive(manifest: int, sizes: Mapping[int, int], covered: Container[int]) -> list[Parts]:
    """The parts that no published file covers, as runs without a gap: no file may reach over blocks of another."""
    runs: list[list[int]] = []
    for block in sorted(block for block in sizes if block not in covered):
        if runs and runs[-1][-1] == block - 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return [Parts(manifest, run[0], tuple(sizes[block] for block in run)) for run in runs]


@dataclass(frozen=True)
class Compactor:
    """Merges parts into published files; called with `Parts`. Picklable, as tasks need it."""

    run: "RunDirectory"

    def __call__(self, parts: Parts) -> list[str]:
        """Publish files of `PUBLISHED_BYTES` to twice that, the last or only one perhaps smaller; each before its parts go."""
        paths: list[str] = []
        merger, first, left = Merger(), parts.first, parts.size_bytes
        taken = written = 0
        with ThreadPoolExecutor(_REQUESTS) as pool:
            for block, (size, table) in enumerate(zip(parts.sizes, self._tables(parts, pool), strict=True), start=parts.first):
                if not merger.takes(table):  # a later session was asked for one more column
                    written += merger.size_bytes
                    paths.append(self._publish(parts.manifest, first, block - 1, merger))
                    merger, first = Merger(), block
                merger.add(table)
                taken, left = taken + size, left - size
                expected_bytes = left * (written + merger.size_bytes) / taken
                if merger.size_bytes >= PUBLISHED_BYTES <= expected_bytes or not left:
                    written += merger.size_bytes
                    paths.append(self._publish(parts.manifest, first, block, merger))
                    merger, first = Merger(), block + 1
        return paths

    def _tables(self, parts: Parts, pool: ThreadPoolExecutor) -> Iterator[pa.Table]:
        for start in range(0, len(parts.sizes), _REQUESTS):
            blocks = range(parts.first + start, parts.first + min(start + _REQUESTS, len(parts.sizes)))
            for data in pool.map(lambda block: self.run.store.read(self.run.part_path(parts.manifest, block)), blocks):
                yield pq.ParquetFile(pa.BufferReader(data)).read()

    def _publish(self, manifest: int, first: int, last: int, merger: "Merger") -> str:
        file = Published(manifest, first, last)
        self.run.store.write(file.path, merger.finish())
        remove_parts(self.run, manifest, range(first, last + 1))
        return file.path


def remove_parts(run: "RunDirectory", manifest: int, blocks: Sequence[int]) -> None:
    """Remove the parts of these blocks."""
    run.store.delete_all([run.part_path(manifest, block) for block in blocks])


class Merger:
    """Rows of consecutive blocks, growing into one Parquet file in memory."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._waiting: list[pa.Table] = []
        self._rows = 0
        self._schema: pa.Schema | None = None
        self._writer: pq.ParquetWriter | None = None

    @property
    def size_bytes(self) -> int:
        """Of the rows that are compressed already."""
        return self._buffer.tell()

    def takes(self, table: pa.Table) -> bool:
        """Whether rows with such columns can stand in this file."""
        return self._schema is None or self._schema.equals(table.schema)

    def add(self, table: pa.Table) -> None:
        """Append rows."""
        self._schema = table.schema
        self._waiting.append(table)
        self._rows += len(table)
        if self._rows >= ROW_GROUP:
            self._flush()

    def finish(self) -> bytes:
        """The file."""
        self._flush()
        assert self._writer is not None
        self._writer.close()
        return self._buffer.getvalue()

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = pa.concat_tables(self._waiting)
        self._writer = self._writer or pq.ParquetWriter(self._buffer, rows.schema, compression="zstd")
        self._writer.write_table(rows.unify_dictionaries(), row_group_size=ROW_GROUP)
        self._waiting, self._rows = [], 0
