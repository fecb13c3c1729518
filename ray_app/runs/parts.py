"""Store the result rows of a run while it scores, and merge them into few files (`PartTable`).

A manifest is a list of files to score. It is cut into blocks, fixed ranges of files that one worker
scores. The worker writes the rows of a block to a part, a small Parquet file. When all blocks of a
manifest are done, their parts are merged into published files:

    parts/<manifest>/<block>.parquet    part: the rows of one block
    scores/*.parquet                    published: the rows of consecutive blocks, 64 to 128 MiB

A block is done if it has a part, or if a published file contains it. No index is stored: the names
of the files show which blocks they contain (`score_files`). A published file is written before its
parts are deleted. So if the process stops at any point, published files and parts together still
contain every row. Readers skip a part whose block is in a published file.
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

from ray_app.archives import BlockList, MapFunction, map_serial
from ray_app.runs.score_files import ScoreFile, parse_names, split_replaced
from ray_app.storage import Store

# The compressed size at which a published file is closed, so that files are few and quick to read.
PUBLISHED_BYTES = 64 * 2**20
# The size of parts for a task. Merged parts are smaller, so a task still fills one or more files.
TASK_BYTES = 8 * PUBLISHED_BYTES
ROW_GROUP = 32_768  # Rows. Parts have few rows, and reading costs time per row group.
LITTLE_BYTES = 4 * 2**20  # Up to this size, parts are merged here instead of in tasks.
_REQUESTS = 16  # Small files that are read at once.
_SMALL_BYTES = 2**20  # A file of up to this size is read in one request.
_FEW = 8  # For up to this many manifests, files are listed per manifest instead of for the run.


@dataclass(frozen=True)
class BlockRange:
    """Consecutive blocks of a manifest that have a part file each.

    A block is a fixed range of files, and its part has the rows of these files.

    Attributes:
        manifest: The number of the manifest.
        first: The number of the first block.
        sizes: The size in bytes of the part of each block.
    """

    manifest: int
    first: int
    sizes: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Total size of the parts in bytes."""
        return sum(self.sizes)

    def split(self) -> list["BlockRange"]:
        """Split the range into ranges whose parts have about 512 MiB (`TASK_BYTES`).

        One task, such as a Ray task, merges the parts of each range. A range of less than 1 GiB is
        not split.
        """
        count = max(1, self.size_bytes // TASK_BYTES)
        stops = np.searchsorted(
            np.cumsum(self.sizes), self.size_bytes * np.arange(1, count) / count
        )
        cuts = [0, *np.unique(stops[stops > 0]).tolist(), len(self.sizes)]
        return [
            BlockRange(self.manifest, self.first + start, self.sizes[start:end])
            for start, end in pairwise(cuts)
        ]


def group_consecutive(
    manifest: int, sizes: Mapping[int, int], covered: Container[int]
) -> list[BlockRange]:
    """Return ranges of consecutive blocks whose parts are not merged into a published file yet.

    A block is a fixed range of files, and a part is the Parquet file with the rows of one block.
    The parts of a range can be merged into one file, whose name has the first and the last block.

    Args:
        manifest: The number of the manifest, a list of files to score.
        sizes: The size in bytes of each existing part, by number of its block.
        covered: Blocks whose rows are already in a published file. They are left out.

    Returns:
        The ranges in ascending order.
    """
    runs: list[list[int]] = []
    for block in sorted(block for block in sizes if block not in covered):
        if runs and runs[-1][-1] == block - 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return [BlockRange(manifest, run[0], tuple(sizes[block] for block in run)) for run in runs]


class Merger:
    """Merge tables of rows into one Parquet file in memory, in the order in which they are added.

    The tables are the rows of consecutive blocks. Call `add` for each table, and then `finish`.
    """

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._waiting: list[pa.Table] = []
        self._rows = 0
        self._schema: pa.Schema | None = None
        self._writer: pq.ParquetWriter | None = None

    @property
    def size_bytes(self) -> int:
        """Current size of the file in bytes, without the rows that still wait to be compressed."""
        return self._buffer.tell()

    def accepts(self, table: pa.Table) -> bool:
        """Return whether a table can be added, because it has the schema of the earlier tables."""
        return self._schema is None or self._schema.equals(table.schema)

    def add(self, table: pa.Table) -> None:
        """Append a table of rows to the file. `accepts` must be True for the table."""
        self._schema = table.schema
        self._waiting.append(table)
        self._rows += len(table)
        if self._rows >= ROW_GROUP:
            self._flush()

    def finish(self) -> bytes:
        """Return the content of the merged Parquet file."""
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
    """The result rows of a run in its store.

    A manifest, a list of files to score, is cut into blocks. A worker writes the rows of each block
    to a Parquet file of its own, a part. Later, the parts of a manifest are merged into few
    published files. The object is small and picklable, because workers receive it to write their
    parts.
    """

    store: Store

    def part_path(self, manifest: int, block: int) -> str:
        """Return the path of a part, the Parquet file with the rows of one block.

        Args:
            manifest: The number of the manifest, a list of files to score.
            block: The number of the block, a fixed range of these files.

        Returns:
            The path, relative to the run directory. The file may not exist.
        """
        return f"parts/{manifest:05d}/{block:08d}.parquet"

    def write_part(self, manifest: int, block: int, rows: pa.Table) -> int:
        """Write the result rows of one block to its part file, which marks the block as done.

        A block is a fixed range of files. An existing part of the block is replaced.

        Args:
            manifest: The number of the manifest, a list of files to score.
            block: The number of the block in the manifest.
            rows: The result rows, one for each file of the block.

        Returns:
            The size of the part in bytes.
        """
        buffer = io.BytesIO()
        pq.write_table(rows, buffer, compression="zstd")
        self.store.write(self.part_path(manifest, block), buffer.getvalue())
        return buffer.tell()

    def remove_parts(self, manifest: int, blocks: Sequence[int]) -> None:
        """Delete parts, the Parquet files with the rows of one block each.

        Args:
            manifest: The number of the manifest, a list of files to score.
            blocks: The numbers of the blocks.
        """
        self.store.delete_all([self.part_path(manifest, block) for block in blocks])

    def parts(self, manifest: int) -> list[int]:
        """Return the numbers of the blocks of a manifest that have a part, in ascending order.

        A part is a Parquet file with the rows of one block. Blocks whose rows were merged into a
        published file no longer have one.
        """
        return sorted(self._part_sizes(manifest))

    def _part_sizes(self, manifest: int) -> dict[int, int]:
        sizes = self.store.sizes(f"parts/{manifest:05d}")
        return {
            int(name.removesuffix(".parquet")): size
            for name, size in sizes.items()
            if re.fullmatch(r"\d+\.parquet", name)
        }

    def part_spans(
        self, manifest: int, parts: Iterable[int], max_blocks: int
    ) -> Iterator[tuple[ScoreFile, tuple[str, ...]]]:
        """Yield ranges of consecutive blocks that have a part, each with the paths of its parts.

        A part is the Parquet file with the rows of one block, a fixed range of files.

        Args:
            manifest: The number of the manifest, a list of files to score.
            parts: The numbers of the blocks that have a part.
            max_blocks: The maximum number of blocks in a range.

        Yields:
            The range and the paths of its parts. The range is a `ScoreFile`, of which only the
            numbers `manifest`, `first`, and `last` matter. A file with its name may not exist.
        """
        for block_range in group_consecutive(manifest, dict.fromkeys(parts, 0), ()):
            for start in range(0, len(block_range.sizes), max_blocks):
                blocks = range(
                    block_range.first + start,
                    block_range.first + min(start + max_blocks, len(block_range.sizes)),
                )
                yield (
                    ScoreFile(manifest, blocks[0], blocks[-1]),
                    tuple(self.part_path(manifest, block) for block in blocks),
                )

    def part_folders(self) -> list[int]:
        """Return the numbers of the manifests that have a folder in `parts/`.

        Such a manifest usually has rows that are not merged into published files yet. A local disk
        may keep the empty folder of a merged manifest.
        """
        return sorted(int(name) for name in self.store.folders("parts") if name.isdigit())

    def published(self, manifests: Collection[int] | None = None) -> list[ScoreFile]:
        """Return the merged Parquet files in `scores/`, in the order of the manifests.

        Args:
            manifests: The numbers of the manifests (lists of files to score) whose rows are needed.
                Files of other manifests may also be returned. None returns all files.

        Returns:
            The files, whose names show which blocks they contain.
        """
        if manifests is None or len(manifests) > _FEW:
            names = self.store.names("scores")
        else:
            names = [
                name
                for number in sorted(manifests)
                for name in self.store.names("scores", f"{number:05d}-")
            ]
        return split_replaced(parse_names(names))[0]

    def last_finished(self, summary: Mapping[str, Any] | None = None) -> int:
        """Return the number of the last finished manifest; -1 if there is none.

        A manifest is a list of files to score. It is finished when all its files have rows and its
        summary exists.

        Args:
            summary: The content of `summary.json`. None reads it.
        """
        content = self._read_summary() if summary is None else summary
        return self._last_number("summaries", content.get("listing"), -1)

    def last_session(self, summary: Mapping[str, Any] | None = None) -> int:
        """Return the number of the last session, one command's work on the run; 0 without any.

        Args:
            summary: The content of `summary.json`. None reads it.
        """
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

        A run of many sessions has many files. So instead of listing them, the files after the number
        in the last summary are looked up.

        Args:
            folder: The folder.
            start: The number in the last summary; None lists the folder.
            default: The number to return for an empty folder.
        """
        if start is None:
            names = self.store.names(folder)
            return max((int(name.removesuffix(".json")) for name in names), default=default)
        number = start
        while self.store.exists(f"{folder}/{number + 1:05d}.json"):
            number += 1
        return number

    def find_pending(self, lists: Mapping[int, BlockList]) -> list[BlockList]:
        """Return the blocks that still have to be scored, because they have no rows.

        Args:
            lists: All blocks of each manifest to consider, by number of the manifest. A manifest is
                a list of files to score.

        Returns:
            The blocks without rows, as one list for each manifest, in the order of `lists`.
        """
        files, folders = self.published(lists.keys()), set(self.part_folders())
        pending = []
        for number, blocks in lists.items():
            done_blocks = set(self.parts(number)) if number in folders else set()
            done_blocks.update(
                block for file in files for block in file.blocks_of(number, len(blocks))
            )
            pending.append(blocks.exclude(done_blocks))
        return pending

    def row_files(self, manifests: Sequence[int]) -> list[str]:
        """Return the paths of the Parquet files that contain the rows of some manifests.

        The paths are those of merged files in `scores/`, and of files in `parts/` whose rows are
        not merged yet. A file that a version before 0.25 merged may also contain rows of other
        manifests.

        Args:
            manifests: The numbers of the manifests, which are lists of files to score.

        Returns:
            The paths, relative to the run directory, in the order of the manifests.
        """
        numbers = set(manifests)
        published = self.published(numbers)
        files = [file for file in published if not numbers.isdisjoint(file.manifests())]
        located = [(file.start, file.path) for file in files]
        for number in self.part_folders():
            if number in numbers:
                covering = [file for file in files if number in file.manifests()]
                blocks = [
                    block
                    for block in self.parts(number)
                    if not any(file.has_block(number, block) for file in covering)
                ]
                located += [((number, block), self.part_path(number, block)) for block in blocks]
        return [path for _, path in sorted(located)]

    def rows_in(self, path: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows of one Parquet file of the run, as tables of bounded size.

        `path` is relative to the run directory. `columns` are the columns to read; None reads all.
        """
        with self.store.open_file(path) as handle, pq.ParquetFile(handle) as file:
            yield from _row_groups(file, columns)

    def rows_of(
        self, paths: Sequence[str], columns: list[str] | None = None
    ) -> Iterator[tuple[str, pa.Table]]:
        """Yield the rows of several Parquet files of the run, as tables of bounded size.

        A run on which many commands worked has many small files. If the files are not on a local
        disk, several small files are read at once.

        Args:
            paths: The paths of the files, relative to the run directory.
            columns: The columns to read. None reads all.

        Yields:
            The path of a file, and a table with some of its rows, in the order of `paths`.
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

    def publish(self, manifest: int, *, each: MapFunction = map_serial) -> list[str]:
        """Merge the parts of a finished manifest into files of 64 to 128 MiB in `scores/`.

        A part is a small Parquet file with the rows of one block. Parts are deleted only after
        their merged file is written. If the process stops at any point, no row is lost, and the
        next call continues.

        Args:
            manifest: The number of the manifest, a list of files to score.
            each: Maps a function over ranges of parts to merge them, for example as Ray tasks.

        Returns:
            The paths of the new files.
        """
        files = self.published([manifest])
        sizes = self._part_sizes(manifest)
        covered = {
            block for block in sizes if any(file.has_block(manifest, block) for file in files)
        }
        self.remove_parts(manifest, sorted(covered))
        ranges = [
            part_range
            for block_range in group_consecutive(manifest, sizes, covered)
            for part_range in block_range.split()
        ]
        is_little = sum(part_range.size_bytes for part_range in ranges) <= LITTLE_BYTES
        paths = [
            path
            for paths in (map_serial if is_little else each)(_Compactor(self), ranges)
            for path in paths
        ]
        self.store.drop_folder(f"parts/{manifest:05d}")
        return paths

    def publish_all(self, *, each: MapFunction = map_serial) -> list[str]:
        """Merge all parts of the run into few files in `scores/` (see `publish`).

        A part is a small Parquet file with the rows of one block, a fixed range of files.

        Args:
            each: Maps a function over ranges of parts to merge them, for example as Ray tasks.

        Returns:
            The paths of the new files.
        """
        return [
            path for manifest in self.part_folders() for path in self.publish(manifest, each=each)
        ]


def _row_groups(file: pq.ParquetFile, columns: list[str] | None) -> Iterator[pa.Table]:
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=columns)


@dataclass(frozen=True)
class _Compactor:
    """Merge the parts of a `BlockRange` into published files. Picklable, as tasks need it."""

    table: PartTable

    def __call__(self, parts: BlockRange) -> list[str]:
        """Publish files of `PUBLISHED_BYTES` to twice that size, and return their paths.

        The last or only file may be smaller. Each file is published before its parts are deleted.
        """
        paths: list[str] = []
        merger, first, remaining_bytes = Merger(), parts.first, parts.size_bytes
        read_bytes = written_bytes = 0
        with ThreadPoolExecutor(_REQUESTS) as pool:
            for block, (size, table) in enumerate(
                zip(parts.sizes, self._tables(parts, pool), strict=True), start=parts.first
            ):
                if not merger.accepts(table):  # A later session added a column.
                    written_bytes += merger.size_bytes
                    paths.append(self._publish(parts.manifest, first, block - 1, merger))
                    merger, first = Merger(), block
                merger.add(table)
                read_bytes, remaining_bytes = read_bytes + size, remaining_bytes - size
                expected_bytes = remaining_bytes * (written_bytes + merger.size_bytes) / read_bytes
                if merger.size_bytes >= PUBLISHED_BYTES <= expected_bytes or not remaining_bytes:
                    written_bytes += merger.size_bytes
                    paths.append(self._publish(parts.manifest, first, block, merger))
                    merger, first = Merger(), block + 1
        return paths

    def _tables(self, parts: BlockRange, pool: ThreadPoolExecutor) -> Iterator[pa.Table]:
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
        file = ScoreFile(manifest, first, last)
        self.table.store.write(file.path, merger.finish())
        self.table.remove_parts(manifest, range(first, last + 1))
        return file.path
