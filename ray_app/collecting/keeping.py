"""Where a good image goes: a file of its own, or a shard that is published when it is full. Nothing shows before it is whole.

A worker's rows are committed here too. Files: rows after their files; a file without a row is looked at before its url is asked again.
Shards: rows before their shard; rows whose shard is not there count for nothing.
"""

import io
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives import Member
from ray_app.collecting.config import CollectConfig
from ray_app.collecting.names import ending
from ray_app.collecting.wanted import OUTCOME, Outcome, Task
from ray_app.errors import StorageError
from ray_app.packing.config import Form as PackedForm
from ray_app.packing.packed import Packed
from ray_app.packing.shards import ENDINGS
from ray_app.packing.writing import FORMATS, ShardFile
from ray_app.storage import Store, strip_secrets

PARTS = "parts"


def encoded(rows: Sequence[Outcome]) -> bytes:
    """Rows as a Parquet file."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row.row() for row in rows], OUTCOME), file, compression="zstd")
    return file.getvalue()


class Keeper(Protocol):
    """What a worker asks of either. `read` and `keep` from many threads, the others from one."""

    def read(self, name: str) -> bytes:
        """What an earlier session left. Raises FileNotFoundError."""

    def keep(self, task: Task, data: bytes, image_format: str, content_type: str | None) -> str | None:
        """Put the bytes in their place and return it; None where that is not known yet."""

    def add(self, outcome: Outcome, data: bytes, task: Task) -> list[str]:
        """Note how a task ended; the ids of what is committed by that, if anything."""

    def commit(self, *, end: bool = False) -> list[str]:
        """Write down what has ended; the ids of what is committed now."""

    def close(self) -> None:
        """Forget what is not committed."""


class FileKeeper:
    """Each image a file of `folder`. From one thread at a time, except `keep`."""

    def __init__(self, store: Store, records: Store, folder: str) -> None:
        self._store, self._records, self._prefix = store, records, f"{folder}/" if folder else ""
        self._rows: list[Outcome] = []

    def read(self, name: str) -> bytes:
        """What an earlier session left. Raises FileNotFoundError."""
        return self._store.read(self._prefix + name)

    def keep(self, task: Task, data: bytes, image_format: str, content_type: str | None) -> str:
        """Put the bytes in their place and return it; what was there under another ending goes."""
        name = f"{task.stem}.{ending(content_type, image_format)}"
        if name not in task.there or self.read(name) != data:
            self._store.write(self._prefix + name, data)
        for other in task.there:
            if other != name:
                self._store.delete(self._prefix + other)
        return self._prefix + name

    def add(self, outcome: Outcome, data: bytes, task: Task) -> list[str]:
        """Note how a task ended; its file is in its place."""
        self._rows.append(outcome)
        return []

    def commit(self, *, end: bool = False) -> list[str]:
        """Write down what has ended; the ids of it."""
        rows, self._rows = self._rows, []
        if rows:
            self._records.write(f"{PARTS}/{secrets.token_hex(8)}.parquet", encoded(rows))
        return [row.id for row in rows]

    def close(self) -> None:
        """Holds nothing."""


class ShardKeeper:
    """Images one after the other into shards of `shard_mb`, with their columns beside. From one thread at a time."""

    def __init__(self, store: Store, records: Store, config: CollectConfig, columns: Sequence[str]) -> None:
        assert config.form != "files"
        self._store, self._records = store, records
        self._form: PackedForm = config.form
        self._most, self._type = config.shard_mb * 1e6, pa.struct([(name, pa.string()) for name in columns])
        self._failed: list[Outcome] = []
        self._file: ShardFile | None = None
        self._rows: list[Outcome] = []
        self._size = 0
        self._begin()

    def read(self, name: str) -> bytes:
        """No single file is ever left. Raises FileNotFoundError."""
        raise FileNotFoundError(name)

    def keep(self, task: Task, data: bytes, image_format: str, content_type: str | None) -> None:
        """Its place is known when its shard is full."""

    def add(self, outcome: Outcome, data: bytes, task: Task) -> list[str]:
        """Note how a task ended; a good image goes into the shard, and a full shard is published: then, the ids in it."""
        if not outcome.is_ok:
            self._failed.append(outcome)
            return []
        if self._file is None:
            self._file = self._open()
        key = f"{self._token}-{len(self._rows):06}"
        version = outcome.sha256 or ""
        member = Member(0, strip_secrets(task.wanted), None, 0, version, len(data), 0, 0, dict(task.columns))
        try:
            with _local():
                self._file.add(Packed(key, member, data, version, outcome.format))
        except BaseException:
            self._drop()  # of what it holds nothing is known now
            raise
        self._rows.append(outcome)
        self._size += len(data)
        return self._publish() if self._size >= self._most else []

    def commit(self, *, end: bool = False) -> list[str]:
        """Write down what failed, and at the `end` publish the shard that is not full; the ids of it."""
        failed, self._failed = self._failed, []
        if failed:
            self._records.write(f"{PARTS}/{secrets.token_hex(8)}.parquet", encoded(failed))
        return [row.id for row in failed] + (self._publish() if end else [])

    def close(self) -> None:
        """Forget what is not published."""
        file, self._file = self._file, None
        with suppress(OSError, pa.ArrowException):  # a full disk; what it holds is not wanted any more
            if file is not None:
                file.close()
        self._folder.cleanup()

    def _begin(self) -> None:
        self._token = secrets.token_hex(5)
        self._folder = tempfile.TemporaryDirectory(prefix="touchstone-collect-")
        self._rows, self._size = [], 0

    def _open(self) -> ShardFile:
        file: ShardFile = FORMATS[self._form](Path(self._folder.name) / "shard", self._type)
        return file

    def _publish(self) -> list[str]:
        if self._file is None:
            return []
        file, self._file = self._file, None
        place = f"data/{self._token}.{ENDINGS[self._form]}"
        placed = [replace(row, place=place) for row in self._rows]
        try:
            with _local():
                file.close()
            self._records.write(f"{PARTS}/{self._token}.parquet", encoded(placed))
            self._store.write_file(place, Path(self._folder.name) / "shard")
        finally:
            self._drop()
        return [row.id for row in placed]

    def _drop(self) -> None:
        """Begin anew. A shard that could not be published takes its rows along: no later one may count them as its own."""
        self.close()
        self._begin()


@contextmanager
def _local() -> Iterator[None]:
    """This machine's temporary folder. Raises StorageError where it is full."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write a shard in the folder for temporary files: {error.strerror or error}",
            hint="each worker needs room for one shard there; TMPDIR names another place, --set shard_mb=16 makes shards smaller",
        ) from error
