"""Store a table of result rows that grows by parts (`PartTable`).

There is a part for each block. Parts are merged into published files:

    parts/<manifest>/<block>.parquet    the rows of one block; a block is done when its part exists, or a published file covers it
    scores/*.parquet                    published: the rows of consecutive blocks, 64 to 128 MiB each (see `score_files`)

Both are found by listing names. A published file is written before its parts are deleted. So if the
process stops at any point, published files and remaining parts together contain every row once.
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
        """Split the range into ranges of about `TASK_BYTES`, one for each merging task.

        A range smaller than twice `TASK_BYTES` is not split.
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
    """Group the parts whose rows are not published yet into ranges of consecutive blocks.

    Each range can become a published file, because no range spans blocks of another file.

    Args:
        manifest: The number of the manifest.
        sizes: The size of each part in bytes, by block.
        covered: Blocks that are in published files.
    """
    runs: list[list[int]] = []
    for block in sorted(block for block in sizes if block not in covered):
        if runs and runs[-1][-1] == block - 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return [BlockRange(manifest, run[0], tuple(sizes[block] for block in run)) for run in runs]


class Merger:
    """Merge rows of consecutive blocks into one Parquet file in memory."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._waiting: list[pa.Table] = []
        self._rows = 0
        self._schema: pa.Schema | None = None
        self._writer: pq.ParquetWriter | None = None

    @property
    def size_bytes(self) -> int:
        """Size of the rows that are already compressed, in bytes."""
        return self._buffer.tell()

    def accepts(self, table: pa.Table) -> bool:
        """Return whether a table has the schema of the rows that were added before."""
        return self._schema is None or self._schema.equals(table.schema)

    def add(self, table: pa.Table) -> None:
        """Append the rows of the next block."""
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

    Workers write the rows of each block, a fixed range of files, to a file of its own, a part.
    Later, the parts of a manifest are merged into few published files. The object is small and
    picklable, because workers receive it to write their parts.
    """

    store: Store

    def part_path(self, manifest: int, block: int) -> str:
        """Return the path of a block's part, the file with only the rows of this block."""
        return f"parts/{manifest:05d}/{block:08d}.parquet"

    def write_part(self, manifest: int, block: int, rows: pa.Table) -> int:
        """Commit one block by writing its part, and return the size of the file in bytes.

        A repeated commit replaces the file.

        Args:
            manifest: The number of the manifest.
            block: The number of the block.
            rows: The rows of its members.
        """
        buffer = io.BytesIO()
        pq.write_table(rows, buffer, compression="zstd")
        self.store.write(self.part_path(manifest, block), buffer.getvalue())
        return buffer.tell()

    def remove_parts(self, manifest: int, blocks: Sequence[int]) -> None:
        """Delete the parts of some blocks of a manifest."""
        self.store.delete_all([self.part_path(manifest, block) for block in blocks])

    def parts(self, manifest: int) -> list[int]:
        """Return the numbers of a manifest's blocks that have a part."""
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

        Args:
            manifest: The number of the manifest.
            parts: Blocks that have a part.
            max_blocks: The maximum number of blocks in a range.
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
        """Return the numbers of manifests that have a folder in `parts/`.

        If all parts of a manifest are published, a local folder may remain, while a store without
        folders no longer lists the manifest.
        """
        return sorted(int(name) for name in self.store.folders("parts") if name.isdigit())

    def published(self, manifests: Collection[int] | None = None) -> list[ScoreFile]:
        """Return the published files in `scores/`, in the order of their blocks.

        Args:
            manifests: The manifests whose files are needed. Files of other manifests may also be
                returned. None returns all files.
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

        A manifest is the list of files that one listing found. It is finished when all its files
        have rows and its summary exists.

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
        """Return the blocks that have no rows yet, from a mapping of manifests to all their blocks."""
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
        """Return the paths of the files that contain the rows of some manifests, in block order.

        Parts whose rows are already in a published file are left out. A merged file may also contain
        rows of other manifests.
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
        """Yield the rows of one file of the run, as tables of bounded size."""
        with self.store.open_file(path) as handle, pq.ParquetFile(handle) as file:
            yield from _row_groups(file, columns)

    def rows_of(
        self, paths: Sequence[str], columns: list[str] | None = None
    ) -> Iterator[tuple[str, pa.Table]]:
        """Yield the rows of several files in their order, as tables of bounded size.

        Each table has the path of its file. A run with many sessions has many small files. If the
        files are not on a local disk, several small files are read at once.
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
        """Merge the parts of a finished manifest into files of 64 to 128 MiB.

        Each file is published before its parts are deleted. If the process stops at any point, the
        next call continues: published files and remaining parts together contain every row once.

        Args:
            manifest: The number of the manifest.
            each: Maps a function over ranges of parts to merge them, for example as Ray tasks.

        Returns:
            The paths of the published files.
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
        """Publish every manifest that has parts, and return the paths of the files."""
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
