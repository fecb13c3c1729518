"""One shard, the unit of work and of resume: `WriteShard` reads its members, appends them to a
local file and publishes it whole.

Members are not decoded: a hash, the sniffed format, and the bytes as they are (`ParquetShard` as
the Hugging Face hub writes it, `WebDatasetShard`); one that cannot be had is a row of its part
alone.
"""

import hashlib
import io
import json
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives import BlockRef, ManifestMember, MemberReader, member_rows, read_block
from ray_app.datajobs.parts import OK, write_part
from ray_app.datajobs.shards.config import Form
from ray_app.errors import InputError, StorageError
from ray_app.images import sniff_format
from ray_app.runs.table_files import plain
from ray_app.storage import Fetcher, Store

_TEXT = pa.string()
SOURCE_TYPE = pa.struct(
    [
        ("uri", _TEXT),
        ("member", _TEXT),
        ("occurrence", pa.int32()),
        ("version", _TEXT),
        ("sha256", _TEXT),
        ("format", _TEXT),
    ]
)
FILE_ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff", "AVIF": "avif", "HEIC": "heic",
           "JPEG2000": "jp2", "PNM": "pnm", "RAW": "raw"}  # fmt: skip
NO_IMAGE = "bin"
SHARD_ENDINGS: dict[Form, str] = {"parquet": "parquet", "webdataset": "tar"}
RESERVED = ("image", "source")
# The hub's own figure for images; bytes bound it where they are large, since a row group is built
# in memory.
GROUP_ROWS, GROUP_BYTES = 100, 64 * 2**20
# A row of a part: what became of a member. `format` and `size_bytes` of one that is packed; no
# known image has the format `none`.
UNPACKED = pa.schema(
    [
        ("uri", _TEXT),
        ("member", _TEXT),
        ("occurrence", pa.int32()),
        ("status", _TEXT),
        ("detail", _TEXT),
    ]
)
MEMBER = pa.schema([*UNPACKED, ("format", _TEXT), ("size_bytes", pa.int64())])
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class Packed:
    """A member with its bytes; `key` is ours and safe in any file system, `format` is what the
    bytes say (None: no image).
    """

    key: str
    member: ManifestMember
    data: bytes
    sha256: str
    format: str | None

    @property
    def ending(self) -> str:
        """The file ending that the bytes deserve, whatever the member's name says; `bin` for no
        image.
        """
        return FILE_ENDINGS.get(self.format or "", NO_IMAGE)

    @property
    def name(self) -> str:
        """The name that the member had, as a label: the last part of its path; a table's row may
        name one, its own is a number.
        """
        member = self.member
        given = (
            member.input.get("path")
            if member.place is not None and member.place.kind == "parquet"
            else None
        )
        name = str(given or member.member or member.uri).rpartition("/")[2]
        return self.key if name in ("", ".", "..") else name

    @property
    def source(self) -> dict[str, Any]:
        """Where it came from, as `SOURCE_TYPE`."""
        named = {
            name: getattr(self.member, name) for name in ("uri", "member", "occurrence", "version")
        }
        return {**named, "sha256": self.sha256, "format": self.format}

    def beside(self, names: Mapping[str, str]) -> dict[str, Any]:
        """The source's own columns under the names that they have in the shard."""
        return {new: self.member.input.get(old) for old, new in names.items()}


class LocalShard(ABC):
    """A shard that grows at `path`, in this machine's folder for temporary files. Raises
    StorageError where that is full.
    """

    def __init__(self, input_type: pa.StructType | None) -> None:
        fields = [] if input_type is None else list(input_type)
        self._names = free_names([field.name for field in fields])
        self._folder = tempfile.TemporaryDirectory(prefix="touchstone-shard-")
        self.path, self.size_bytes = Path(self._folder.name) / "shard", 0
        with _room():
            self._begin(fields)

    def add(self, packed: Packed) -> None:
        """Append a member."""
        with _room():
            self._append(packed)
        self.size_bytes += len(packed.data)

    def finish(self) -> None:
        """Make the file complete."""
        with _room():
            self._complete()

    def drop(self) -> None:
        """Remove the file, complete or not."""
        with suppress(OSError, ValueError, pa.ArrowException):  # a full disk; or it is complete
            self._complete()
        self._folder.cleanup()

    @abstractmethod
    def _begin(self, fields: Sequence[pa.Field]) -> None: ...

    @abstractmethod
    def _append(self, packed: Packed) -> None: ...

    @abstractmethod
    def _complete(self) -> None: ...


class ParquetShard(LocalShard):
    """A file that grows by a row group at a time."""

    def _begin(self, fields: Sequence[pa.Field]) -> None:
        beside = [pa.field(self._names[field.name], field.type) for field in fields]
        self._schema = pa.schema(
            [pa.field("image", IMAGE_TYPE), pa.field("source", SOURCE_TYPE), *beside]
        )
        # What `datasets` cannot see from Arrow's types: which structs are images.
        features = {
            field.name: {"_type": "Image"} for field in self._schema if field.type == IMAGE_TYPE
        }
        self._schema = self._schema.with_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
        # Encoded images neither shrink nor repeat nor compare: all that is for the columns beside
        # them.
        others = [
            leaf
            for field in self._schema
            for leaf in _leaves(field.name, field.type)
            if leaf != "image.bytes"
        ]
        self._writer = pq.ParquetWriter(
            self.path,
            self._schema,
            compression={"image.bytes": "none"} | dict.fromkeys(others, "zstd"),
            use_dictionary=others,
            write_statistics=others,
            write_page_index=True,
        )
        self._rows: list[dict[str, Any]] = []
        self._group_bytes = 0

    def _append(self, packed: Packed) -> None:
        image = {"bytes": packed.data, "path": packed.name}
        self._rows.append({"image": image, "source": packed.source, **packed.beside(self._names)})
        self._group_bytes += len(packed.data)
        if len(self._rows) >= GROUP_ROWS or self._group_bytes >= GROUP_BYTES:
            self._flush()

    def _complete(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(
                pa.Table.from_pylist(self._rows, self._schema), row_group_size=GROUP_ROWS
            )
        self._rows, self._group_bytes = [], 0


class WebDatasetShard(LocalShard):
    """A tar that grows by a sample at a time. Equal samples give equal bytes: no times, owners or
    modes of a real file get in.
    """

    def _begin(self, fields: Sequence[pa.Field]) -> None:
        self._tar = tarfile.open(self.path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by _complete

    def _append(self, packed: Packed) -> None:
        facts = {"source": packed.source, **plain(packed.beside(self._names))}
        beside = json.dumps(facts, ensure_ascii=False, allow_nan=False).encode(
            "utf-8", "surrogateescape"
        )
        for ending, data in ((packed.ending, packed.data), ("json", beside)):
            info = tarfile.TarInfo(f"{packed.key}.{ending}")
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))

    def _complete(self) -> None:
        self._tar.close()


SHARDS: dict[Form, type[LocalShard]] = {"parquet": ParquetShard, "webdataset": WebDatasetShard}


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write a shard in the folder for temporary files: {error.strerror or error}",
            hint="each worker needs room for one shard there; TMPDIR names another place, --set shard_mb=16 makes shards smaller",
        ) from error


@dataclass(frozen=True)
class Shard:
    """One file to be written: a run of blocks of manifest 0, shard `number` of `count`."""

    number: int
    count: int
    form: Form
    blocks: tuple[BlockRef, ...]

    @property
    def members(self) -> int:
        """How many members the manifest has for it."""
        return sum(ref.members for ref in self.blocks)

    @property
    def name(self) -> str:
        """Its file's name without ending, as the Hugging Face hub names the shards of one split."""
        return f"train-{self.number:05}-of-{self.count:05}"

    @property
    def path(self) -> str:
        """Where it lies in the output directory. It exists when, and only when, the shard is
        finished.
        """
        return f"data/{self.name}.{SHARD_ENDINGS[self.form]}"


@dataclass(frozen=True)
class WriteShard:
    """Writes shards of the listing in `store`; called with a `Shard`, returns how many {images,
    bad} it had: bad ones are not in it. Picklable: it travels to workers.

    Raises StorageError when the output is out of reach or this machine's temporary folder is full.
    """

    store: Store
    form: Form
    input_type: pa.StructType | None
    fetcher: Fetcher
    max_member_bytes: int

    def __call__(self, shard: Shard) -> dict[str, int]:
        """Write one shard; done again, it replaces its own files with the same bytes."""
        members = [
            member for ref in shard.blocks for member in member_rows(read_block(self.store, ref))
        ]
        reader, file, rows = (
            MemberReader(self.fetcher, max_bytes=self.max_member_bytes),
            SHARDS[self.form](self.input_type),
            [],
        )
        try:
            for index, (member, data) in enumerate(reader.read(members)):
                key = f"{shard.number:05}-{index:06}-{member.image_id & 0xFFFFFFFF:08x}"
                rows.append(_packed(file, key, member, data))
            file.finish()
            assert len(rows) == len(members), f"{shard.name}: files lost"
            # The rows first: a shard that is there has them.
            write_part(self.store, shard.name, rows, MEMBER)
            self.store.write_file(shard.path, file.path)
        finally:
            file.drop()
        return {"images": len(rows), "bad": sum(row["status"] != OK for row in rows)}


def _packed(
    file: LocalShard, key: str, member: ManifestMember, data: bytes | InputError
) -> dict[str, Any]:
    """Append a member to a shard, if it can be had: its row of `MEMBER`."""
    row = {"uri": member.uri, "member": member.member, "occurrence": member.occurrence}
    if isinstance(data, InputError):
        return row | {"status": data.status.value, "detail": data.detail}
    packed = Packed(key, member, data, hashlib.sha256(data).hexdigest(), sniff_format(data))
    file.add(packed)
    return row | {"status": OK, "format": packed.format or "none", "size_bytes": len(data)}


def free_names(columns: Collection[str]) -> dict[str, str]:
    """Return a name for each of the source's columns: its own, or `input.NAME` if the name is
    reserved.
    """
    names: dict[str, str] = {}
    for column in columns:
        name = column
        while name in RESERVED or name in names.values() or (name != column and name in columns):
            name = f"input.{name}"
        names[column] = name
    return names


def _leaves(path: str, kind: pa.DataType) -> list[str]:
    """Parquet's own paths of the leaves of a column."""
    if pa.types.is_struct(kind):
        return [leaf for field in kind for leaf in _leaves(f"{path}.{field.name}", field.type)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type)
    return [path]
