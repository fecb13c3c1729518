"""One shard: its members are read, appended to a local file as they come, and published whole. The unit of work and of resume.

Members are not decoded: a hash, the sniffed format, and the bytes as they are. One that cannot be had is written down, not lost.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from ray_app.archives import Member, MemberReader, member_rows, read_block
from ray_app.errors import InputError, SourceError, Status, StorageError
from ray_app.images import sniff_format
from ray_app.packing.config import Form
from ray_app.packing.packed import EXPECTED, Packed
from ray_app.packing.parquet_shard import ParquetShard
from ray_app.packing.shards import Shard
from ray_app.packing.webdataset_shard import WebDatasetShard
from ray_app.storage import Fetcher, Store


class ShardFile(Protocol):
    """One output format: a local file that grows by members."""

    def add(self, packed: Packed) -> None:
        """Append a member."""

    def close(self) -> None:
        """Make the file complete."""


FORMATS: dict[Form, type[ParquetShard] | type[WebDatasetShard]] = {"parquet": ParquetShard, "webdataset": WebDatasetShard}


@dataclass
class Notes:
    """What became of a shard's members: packed + unpacked are all of them. `formats` counts packed ones, `none` = no known image."""

    members: int
    packed: int = 0
    size_bytes: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    unpacked: list[dict[str, Any]] = field(default_factory=list)

    def encode(self) -> bytes:
        """As a file of the output directory."""
        return json.dumps(vars(self), ensure_ascii=False).encode("utf-8", "surrogateescape")

    @classmethod
    def decode(cls, data: bytes) -> "Notes":
        """The same, read back."""
        return cls(**json.loads(data))


@dataclass(frozen=True)
class WriteShard:
    """Writes shards of the listing in `store`; called with a `Shard`, returns its `Notes`. Picklable: it travels to workers.

    Raises StorageError when the output is out of reach or this machine's temporary folder is full.
    """

    store: Store
    form: Form
    input_type: pa.StructType | None
    fetcher: Fetcher
    max_member_bytes: int

    def __call__(self, shard: Shard) -> Notes:
        """Write one shard; done again, it replaces its own files with the same bytes."""
        members = [member for ref in shard.blocks for member in member_rows(read_block(self.store, ref))]
        try:
            with tempfile.TemporaryDirectory(prefix="touchstone-pack-") as folder:
                path = Path(folder) / shard.name
                notes = self._fill(path, shard, members)
                assert notes.packed + len(notes.unpacked) == len(members), f"{shard.name}: members lost"
                # The notes first: a shard that is there has them.
                self.store.write(shard.notes_path, notes.encode())
                self.store.write_file(shard.path(self.form), path)
        except OSError as error:  # what the store says is a StorageError already
            raise StorageError(
                f"cannot write a shard in the folder for temporary files: {error.strerror or error}",
                hint="each worker needs room for one shard there; TMPDIR names another place, --shard-mb makes shards smaller",
            ) from error
        return notes

    def _fill(self, path: Path, shard: Shard, members: list[Member]) -> Notes:
        notes = Notes(len(members))
        file: ShardFile = FORMATS[self.form](path, self.input_type)
        for index, (member, data) in enumerate(self._read(members)):
            if isinstance(data, InputError):
                notes.unpacked.append(_unpacked(member, data))
                continue
            key = f"{shard.number:05}-{index:06}-{member.image_id & 0xFFFFFFFF:08x}"
            packed = Packed(key, member, data, hashlib.sha256(data).hexdigest(), sniff_format(data))
            changed = _changed(packed)
            if changed:
                notes.unpacked.append(_unpacked(member, changed))
                continue
            file.add(packed)
            notes.packed += 1
            notes.size_bytes += len(data)
            notes.formats[packed.format or "none"] += 1
        file.close()
        return notes

    def _read(self, members: list[Member]) -> Iterator[tuple[Member, bytes | InputError]]:
        return MemberReader(self.fetcher, max_bytes=self.max_member_bytes).read(members)


def _changed(packed: Packed) -> InputError | None:
    """Why bytes that are not those which were scored are not written."""
    expected = packed.member.input.get(EXPECTED)
    if expected is None or expected == packed.sha256:
        return None
    return SourceError(Status.SOURCE_CHANGED, f"scored with SHA-256 {expected}, now {packed.sha256}")


def _unpacked(member: Member, error: InputError) -> dict[str, Any]:
    named = {"uri": member.uri, "member": member.member, "occurrence": member.occurrence}
    return {**named, "status": error.status.value, "detail": error.detail}
