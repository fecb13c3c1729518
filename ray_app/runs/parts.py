"""A table of result rows that grows by parts (`PartTable`): a part for each block, merged into the
files that people read.

    parts/<manifest>/<block>.parquet    the rows of one block; a block is done when its part is there, or a published file covers it
    scores/*.parquet                    published: the rows of consecutive blocks, 64 to 128 MiB each (see `score_files`)

Both are facts on disk, read back by listing names. A published file is written before its parts go:
wherever that ends, published files and remaining parts together hold every row once.
"""

import io
import json
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives import BlockList, Each, in_turn
from ray_app.runs.score_files import Published, named, split_off
from ray_app.storage import Store

# compressed size at which a published file is closed: few files, each quick to read
PUBLISHED_BYTES = 64 * 2**20
# of parts; merged they take less, so that a task still fills a file or several
TASK_BYTES = 8 * PUBLISHED_BYTES
ROW_GROUP = 32_768  # rows; parts have few, and readers pay per row group
LITTLE_BYTES = 4 * 2**20  # of parts, that are merged at once rather than by tasks
_REQUESTS = 16  # small files that are read at once
_SMALL_BYTES = 2**20  # a file of at most this size is read whole
_FEW = 8  # manifests for which files are listed one by one, in place of all files of the run


@dataclass(frozen=True)
class Stretch:
    """Consecutive blocks with a part of their own, and the bytes of each."""

    manifest: int
    first: int
    sizes: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Of all of them."""
        return sum(self.sizes)

    def divided(self) -> list["Stretch"]:
        """The same as pieces of about `TASK_BYTES`, none much smaller unless it is the only one."""
        count = max(1, self.size_bytes // TASK_BYTES)
        ends = np.searchsorted(np.cumsum(self.sizes), self.size_bytes * np.arange(1, count) / count)
        cuts = [0, *np.unique(ends[ends > 0]).tolist(), len(self.sizes)]
        return [
            Stretch(self.manifest, self.first + start, self.sizes[start:end])
            for start, end in pairwise(cuts)
        ]


def consecutive(manifest: int, sizes: Mapping[int, int], covered: Container[int]) -> list[Stretch]:
    """The parts that no published file covers, as runs without a gap: no file may reach over blocks
    of another.
    """
    runs: list[list[int]] = []
    for block in sorted(block for block in sizes if block not in covered):
        if runs and runs[-1][-1] == block - 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return [Stretch(manifest, run[0], tuple(sizes[block] for block in run)) for run in runs]


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
        self._writer = self._writer or pq.ParquetWriter(
            self._buffer, rows.schema, compression="zstd"
        )
        self._writer.write_table(rows.unify_dictionaries(), row_group_size=ROW_GROUP)
        self._waiting, self._rows = [], 0


@dataclass(frozen=True)
class PartTable:
    """The rows of a run, or of a retry within it, below one store. Small and picklable: workers
    receive it and write their parts by it.
    """

    store: Store

    def part_path(self, manifest: int, block: int) -> str:
        """Where a block's own rows lie."""
        return f"parts/{manifest:05d}/{block:08d}.parquet"

    def write_part(self, manifest: int, block: int, rows: pa.Table) -> int:
        """Commit one block; returns its size in bytes. A repeated commit replaces the same file."""
        buffer = io.BytesIO()
        pq.write_table(rows, buffer, compression="zstd")
        self.store.write(self.part_path(manifest, block), buffer.getvalue())
        return buffer.tell()

    def remove_parts(self, manifest: int, blocks: Sequence[int]) -> None:
        """Remove the parts of these blocks."""
        self.store.delete_all([self.part_path(manifest, block) for block in blocks])

    def parts(self, manifest: int) -> list[int]:
        """Blocks of a manifest with a part of their own."""
        return sorted(self._part_sizes(manifest))

    def _part_sizes(self, manifest: int) -> dict[int, int]:
        sizes = self.store.sizes(f"parts/{manifest:05d}")
        return {
            int(name.removesuffix(".parquet")): size
            for name, size in sizes.items()
            if re.fullmatch(r"\d+\.parquet", name)
        }

    def part_spans(
        self, manifest: int, parts: Iterable[int], most: int
    ) -> Iterator[tuple[Published, tuple[str, ...]]]:
        """Of some blocks with a part of their own those that are consecutive, at most so many
        together, and their files.
        """
        for stretch in consecutive(manifest, dict.fromkeys(parts, 0), ()):
            for start in range(0, len(stretch.sizes), most):
                blocks = range(
                    stretch.first + start, stretch.first + min(start + most, len(stretch.sizes))
                )
                yield (
                    Published(manifest, blocks[0], blocks[-1]),
                    tuple(self.part_path(manifest, block) for block in blocks),
                )

    def part_folders(self) -> list[int]:
        """Manifests that may have blocks with a part of their own: of those that are published,
        none has on a store without folders.
        """
        return sorted(int(name) for name in self.store.folders("parts") if name.isdigit())

    def published(self, manifests: Collection[int] | None = None) -> list[Published]:
        """Return the files that people read, in the order of their blocks.

        Args:
            manifests: The manifests that are needed; files of others may be returned, too. None
                returns all files.
        """
        if manifests is None or len(manifests) > _FEW:
            names = self.store.names("scores")
        else:
            names = [
                name
                for number in sorted(manifests)
                for name in self.store.names("scores", f"{number:05d}-")
            ]
        return split_off(named(names))[0]

    def last_finished(self, summary: Mapping[str, Any] | None = None) -> int:
        """Return the last finished manifest, whose summary exists; -1 if there is none.

        Args:
            summary: The content of `summary.json`. None reads it.
        """
        content = self._read_summary() if summary is None else summary
        return self._last_number("summaries", content.get("listing"), -1)

    def last_session(self, summary: Mapping[str, Any] | None = None) -> int:
        """Return the number of the last session; 0 if there is none. `summary`: as `last_finished`."""
        content = self._read_summary() if summary is None else summary
        return self._last_number("sessions", (content.get("session") or {}).get("number"), 0)

    def _read_summary(self) -> dict[str, Any]:
        try:
            summary: dict[str, Any] = json.loads(self.store.read("summary.json"))
        except FileNotFoundError:
            return {}
        return summary

    def _last_number(self, folder: str, start: int | None, default: int) -> int:
        """Return the last number in a folder of numbered files.

        A run of many sessions has many files. So the files after the one that the last summary
        names are looked up, in place of a listing.

        Args:
            folder: The folder.
            start: The number that the last summary names; None lists the folder.
            default: The number to return for an empty folder.
        """
        if start is None:
            names = self.store.names(folder)
            return max((int(name.removesuffix(".json")) for name in names), default=default)
        number = start
        while self.store.exists(f"{folder}/{number + 1:05d}.json"):
            number += 1
        return number

    def without_rows(self, lists: Mapping[int, BlockList]) -> list[BlockList]:
        """Of manifests and all their blocks those blocks that need work."""
        files, folders = self.published(lists.keys()), set(self.part_folders())
        pending = []
        for number, blocks in lists.items():
            done = set(self.parts(number)) if number in folders else set()
            done.update(block for file in files for block in file.blocks_of(number, len(blocks)))
            pending.append(blocks.without(done))
        return pending

    def row_files(self, wanted: Sequence[int]) -> list[str]:
        """The files with the rows of some manifests, in block order; a part that a published file
        covers is passed over.

        A merged file may also have rows of others.
        """
        numbers = set(wanted)
        published = self.published(numbers)
        files = [file for file in published if not numbers.isdisjoint(file.manifests())]
        placed = [(file.start, file.path) for file in files]
        for number in self.part_folders():
            if number in numbers:
                covering = [file for file in files if number in file.manifests()]
                own = [
                    block
                    for block in self.parts(number)
                    if not any(file.holds(number, block) for file in covering)
                ]
                placed += [((number, block), self.part_path(number, block)) for block in own]
        return [path for _, path in sorted(placed)]

    def rows_in(self, path: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows of one file of the run, a bounded table at a time."""
        with self.store.open_file(path) as handle, pq.ParquetFile(handle) as file:
            yield from _row_groups(file, columns)

    def rows_of(
        self, paths: Sequence[str], columns: list[str] | None = None
    ) -> Iterator[tuple[str, pa.Table]]:
        """Yield the rows of several files in their order, a bounded table with its path at a time.

        A run of many nights has many small files. If they are on a store, some are read at once.
        """
        is_elsewhere = self.store.local_path("scores") is None
        sizes = self.store.sizes("scores") if is_elsewhere and len(paths) > 1 else {}
        small = {f"scores/{name}" for name, size in sizes.items() if 0 <= size <= _SMALL_BYTES}
        with ThreadPoolExecutor(_REQUESTS) as pool:
            for start in range(0, len(paths), _REQUESTS):
                batch = paths[start : start + _REQUESTS]
                contents = {
                    path: pool.submit(self.store.read, path) for path in batch if path in small
                }
                for path in batch:
                    if path in contents:
                        file = pq.ParquetFile(pa.BufferReader(contents.pop(path).result()))
                        tables = _row_groups(file, columns)
                    else:
                        tables = self.rows_in(path, columns)
                    for table in tables:
                        yield path, table

    def publish(self, manifest: int, *, each: Each = in_turn) -> list[str]:
        """Merge the parts of a finished manifest into files of 64 to 128 MiB, each published before
        its parts go.

        Interrupted anywhere, the next call goes on: published files and remaining parts together
        hold every row once. `each` runs what is not little.
        """
        files = self.published([manifest])
        sizes = self._part_sizes(manifest)
        covered = {block for block in sizes if any(file.holds(manifest, block) for file in files)}
        self.remove_parts(manifest, sorted(covered))
        pieces = [
            piece
            for stretch in consecutive(manifest, sizes, covered)
            for piece in stretch.divided()
        ]
        is_little = sum(piece.size_bytes for piece in pieces) <= LITTLE_BYTES
        paths = [
            path
            for paths in (in_turn if is_little else each)(_Compactor(self), pieces)
            for path in paths
        ]
        self.store.drop_folder(f"parts/{manifest:05d}")
        return paths

    def publish_all(self, *, each: Each = in_turn) -> list[str]:
        """Publish whatever manifest has parts."""
        return [
            path for manifest in self.part_folders() for path in self.publish(manifest, each=each)
        ]


def _row_groups(file: pq.ParquetFile, columns: list[str] | None) -> Iterator[pa.Table]:
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=columns)


@dataclass(frozen=True)
class _Compactor:
    """Merges parts into published files; called with a `Stretch`. Picklable, as tasks need it."""

    table: PartTable

    def __call__(self, parts: Stretch) -> list[str]:
        """Publish files of `PUBLISHED_BYTES` to twice that, the last or only one perhaps smaller;
        each before its parts go.
        """
        paths: list[str] = []
        merger, first, left = Merger(), parts.first, parts.size_bytes
        taken = written = 0
        with ThreadPoolExecutor(_REQUESTS) as pool:
            for block, (size, table) in enumerate(
                zip(parts.sizes, self._tables(parts, pool), strict=True), start=parts.first
            ):
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

    def _tables(self, parts: Stretch, pool: ThreadPoolExecutor) -> Iterator[pa.Table]:
        for start in range(0, len(parts.sizes), _REQUESTS):
            blocks = range(
                parts.first + start, parts.first + min(start + _REQUESTS, len(parts.sizes))
            )
            for data in pool.map(
                lambda block: self.table.store.read(self.table.part_path(parts.manifest, block)),
                blocks,
            ):
                yield pq.ParquetFile(pa.BufferReader(data)).read()

    def _publish(self, manifest: int, first: int, last: int, merger: "Merger") -> str:
        file = Published(manifest, first, last)
        self.table.store.write(file.path, merger.finish())
        self.table.remove_parts(manifest, range(first, last + 1))
        return file.path
