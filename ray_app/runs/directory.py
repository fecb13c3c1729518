"""The run directory: where its files lie, what is done, and how parts become the files that people read.

A block is done when its part exists or a published file covers it; both are facts on disk, read back by listing names.
"""

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.errors import ConfigError, IdentityError
from ray_app.runs.identity import Identity, as_known_to, differences
from ray_app.runs.schema import SCHEMA_VERSION
from ray_app.storage import Store

PUBLISHED_BYTES = 64 * 2**20  # compressed size at which a published file is closed: few files, each quick to read
ROW_GROUP = 32_768  # rows; parts have few, and readers pay per row group
_PUBLISHED = re.compile(r"(\d+)-(\d+)-(\d+)\.parquet")


@dataclass(frozen=True, order=True)
class Published:
    """One file of `scores/`: the rows of blocks first…last of one manifest."""

    manifest: int
    first: int
    last: int

    @property
    def path(self) -> str:
        """Where it lies, relative to the run."""
        return f"scores/{self.manifest:05d}-{self.first:08d}-{self.last:08d}.parquet"


@dataclass(frozen=True)
class RunDirectory:
    """One run on any fsspec URL. Small and picklable: workers receive it and write their parts through it."""

    store: Store

    @classmethod
    def open(cls, url: str) -> "RunDirectory":
        """The run directory at a URL or path; touches nothing yet."""
        return cls(Store.open(url))

    # -- what the run is ---------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether a run was ever begun here."""
        return self.store.exists("run.json")

    def describe(self) -> dict[str, Any]:
        """The content of `run.json`: schema, creation time, detectors and identity."""
        return self.read_json("run.json")

    def check_settled(self) -> None:
        """Raises ConfigError while `touchstone decide` was interrupted, since verdicts of two ensembles then stand side by side."""
        if self.describe().get("deciding"):
            raise ConfigError(
                f"{self.store.url}: a `touchstone decide` was interrupted here; its verdicts are mixed",
                hint="run the same `touchstone decide` again",
            )

    def describe_finished(self) -> dict[str, Any]:
        """The same of a run that has ended. Raises ConfigError where there is none, or where blocks are still to be scored."""
        if not self.store.exists("summary.json"):
            raise ConfigError(f"{self.store.url}: no finished run here", hint="the `touchstone score` command that made it finishes it")
        return self.describe()

    def claim(self, identity: Identity, detectors: list[str], ensemble: dict[str, Any]) -> None:
        """Make the directory this command's, or check that it already is. Raises IdentityError with the differences."""
        if not self.exists():
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self.write_json(
                "run.json",
                {"schema": SCHEMA_VERSION, "created_at": now, "detectors": detectors, "ensemble": ensemble, "identity": dict(identity)},
            )
            return
        self.check_settled()
        described = self.describe()
        differing = differences(as_known_to(described["schema"], identity), described["identity"])
        if differing:
            raise IdentityError(
                f"{self.store.url} was made by another command:\n  " + "\n  ".join(differing),
                hint="give another --out, or the same source, detectors and settings; "
                "`touchstone decide` applies other thresholds without scoring again",
            )

    # -- what is done ------------------------------------------------------------------------------------

    def part_path(self, manifest: int, block: int) -> str:
        """Where a block's own rows lie."""
        return f"parts/{manifest:05d}/{block:08d}.parquet"

    def write_part(self, manifest: int, block: int, rows: pa.Table) -> int:
        """Commit one block; returns its size in bytes. A repeated commit replaces the same file."""
        buffer = io.BytesIO()
        pq.write_table(rows, buffer, compression="zstd")
        self.store.write(self.part_path(manifest, block), buffer.getvalue())
        return buffer.tell()

    def write_masks(self, manifest: int, block: int, rows: pa.Table) -> None:
        """Keep a block's masks; called before the block is committed, so that a row whose block is done has its mask."""
        buffer = io.BytesIO()
        pq.write_table(rows, buffer, compression="none")  # PNG is compressed already
        self.store.write(f"masks/{manifest:05d}/{block:08d}.parquet", buffer.getvalue())

    def masks(self, manifest: int) -> Iterator[pa.Table]:
        """The masks of a manifest (`MASK_SCHEMA`), a bounded table at a time, in block order."""
        for name in sorted(self.store.names(f"masks/{manifest:05d}")):
            yield from self._read(f"masks/{manifest:05d}/{name}", None)

    def parts(self, manifest: int) -> list[int]:
        """Blocks of a manifest with a part of their own."""
        names = self.store.names(f"parts/{manifest:05d}")
        return sorted(int(name.removesuffix(".parquet")) for name in names if re.fullmatch(r"\d+\.parquet", name))

    def published(self) -> list[Published]:
        """The files that people read, in the order of their blocks."""
        matches = (_PUBLISHED.fullmatch(name) for name in self.store.names("scores"))
        return sorted(Published(int(m[1]), int(m[2]), int(m[3])) for m in matches if m)

    def done_blocks(self, manifest: int) -> set[int]:
        """Every block that needs no more work."""
        return set(self.parts(manifest)) | self._covered(manifest)

    # -- rows --------------------------------------------------------------------------------------------

    def tables(self, manifest: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows of a manifest in block order, a bounded table at a time; a part that a published file covers is passed over."""
        files = [file for file in self.published() if file.manifest == manifest]
        covered = self._covered(manifest)
        parts = [(block, self.part_path(manifest, block)) for block in self.parts(manifest) if block not in covered]
        for _, path in sorted([(file.first, file.path) for file in files] + parts):
            yield from self._read(path, columns)

    def _read(self, path: str, columns: list[str] | None) -> Iterator[pa.Table]:
        filesystem, full = self.store.filesystem_and_path(path)
        with filesystem.open(full, "rb") as handle, pq.ParquetFile(handle) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns)

    def publish(self, manifest: int) -> list[str]:
        """Merge the parts of a finished manifest into files of `PUBLISHED_BYTES`, each published before its parts go.

        Interrupted anywhere, the next call goes on: published files and remaining parts together hold every row once.
        """
        covered = self._covered(manifest)
        paths: list[str] = []
        merger = _Merger()
        for block in self.parts(manifest):
            if block in covered:
                self.store.delete(self.part_path(manifest, block))
                continue
            for table in self._read(self.part_path(manifest, block), None):
                merger.add(table)
            merger.blocks.append(block)
            if merger.size_bytes >= PUBLISHED_BYTES:
                paths.append(self._publish(manifest, merger))
                merger = _Merger()
        if merger.blocks:
            paths.append(self._publish(manifest, merger))
        return paths

    def _publish(self, manifest: int, merger: "_Merger") -> str:
        file = Published(manifest, merger.blocks[0], merger.blocks[-1])
        self.store.write(file.path, merger.finish())
        for block in merger.blocks:
            self.store.delete(self.part_path(manifest, block))
        return file.path

    def _covered(self, manifest: int) -> set[int]:
        files = [file for file in self.published() if file.manifest == manifest]
        return {block for file in files for block in range(file.first, file.last + 1)}

    def rewrite(self, manifest: int, change: Callable[[pa.Table], pa.Table]) -> None:
        """Replace the published rows of a manifest by `change` of them, file by file, each at once."""
        for file in self.published():
            if file.manifest == manifest:
                merger = _Merger()
                for table in self._read(file.path, None):
                    merger.add(change(table))
                self.store.write(file.path, merger.finish())

    # -- small files -------------------------------------------------------------------------------------

    def read_json(self, path: str) -> dict[str, Any]:
        """A small file of the run. Raises FileNotFoundError."""
        content: dict[str, Any] = json.loads(self.store.read(path))
        return content

    def write_json(self, path: str, content: dict[str, Any]) -> None:
        """Write a small file of the run, at once."""
        self.store.write(path, json.dumps(content, indent=2, ensure_ascii=False).encode())


class _Merger:
    """Parts of consecutive blocks, growing into one Parquet file in memory."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self._buffer = io.BytesIO()
        self._waiting: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None

    @property
    def size_bytes(self) -> int:
        return self._buffer.tell()

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        if sum(len(waiting) for waiting in self._waiting) >= ROW_GROUP:
            self._flush()

    def finish(self) -> bytes:
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
        self._waiting = []
