"""Read the result rows of single blocks of a finished run (`BlockRows`).

A block is a fixed range of files that is scored and stored together.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives import BlockList, BlockRef
from ray_app.errors import ConfigError
from ray_app.runs.current import block_lists_in
from ray_app.runs.directory import RunDirectory
from ray_app.runs.score_files import ScoreFile


class BlockRows:
    """Read the result rows of a finished run, one block at a time.

    A block is a fixed range of files of a manifest, a list of files to score. Rows that are not
    current, for example because a retry replaced them, are included. A Parquet row group contains
    the rows of many blocks. The last row group stays in memory, so each row group is loaded only
    once if blocks are read in their order.

    Args:
        run: The run directory.
        columns: The columns to read. A column that a file lacks is left out.
    """

    def __init__(self, run: RunDirectory, columns: Collection[str]) -> None:
        self._run, self._columns = run, columns
        self._files = run.published()
        self._file: ScoreFile | None = None

    def read(self, ref: BlockRef) -> pa.Table:
        """Return the rows of a block, a fixed range of the files of a manifest.

        Args:
            ref: The block.

        Returns:
            One row for each file, in the order of the manifest.

        Raises:
            ConfigError: If the run no longer has the rows of this block.
        """
        if self._file is None or not self._file.has_block(*ref.place):
            self._open(ref)
        start = self._starts[ref.place]
        first, last = np.searchsorted(self._ends, [start, start + ref.members - 1], side="right")
        tables = [self._group(number) for number in range(first, last + 1)]
        before = self._ends[first - 1] if first else 0
        return pa.concat_tables(tables).slice(start - before, ref.members)

    def _open(self, ref: BlockRef) -> None:
        """Open the file with the rows of a block."""
        self._file = next((file for file in self._files if file.has_block(*ref.place)), None)
        if self._file is None:
            raise ConfigError(
                f"{self._run.store.url}: the rows of block {ref.block} of listing {ref.manifest} are missing",
                hint="set another --out, because this run was changed while it was read",
            )
        blocks = BlockList.concat(list(block_lists_in(self._run, self._file)))
        starts = np.cumsum(blocks.sizes) - blocks.sizes
        self._starts = dict(zip((block.place for block in blocks), starts.tolist(), strict=True))
        self._parquet: Any = pq.ParquetFile(self._run.store.open_file(self._file.path))
        groups = range(self._parquet.num_row_groups)
        self._ends = np.cumsum(
            [self._parquet.metadata.row_group(number).num_rows for number in groups]
        )
        self._cached: tuple[int, pa.Table] | None = None

    def _group(self, number: int) -> pa.Table:
        if self._cached is None or self._cached[0] != number:
            names = self._parquet.schema_arrow.names
            columns = [name for name in self._columns if name in names]
            self._cached = number, self._parquet.read_row_group(number, columns=columns)
        return self._cached[1]
