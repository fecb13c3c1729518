"""Write one shard: `WriteShard` reads its members, writes a local file, and then uploads it.

A member is one file of the source archive. A shard is the unit of work and of resuming. Members are
not decoded: a shard has their bytes unchanged, their SHA-256, and the format that their first bytes
show. `ParquetShard` has the layout of the Hugging Face hub, `WebDatasetShard` is a tar file. A
member that cannot be read has a row in the part of the shard, and is not in the shard.
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

from ray_app.archives import BlockRef, ManifestMember, MemberReader, read_block, rows_to_members
from ray_app.datajobs.parts import OK, write_part
from ray_app.datajobs.shards.config import Form
from ray_app.errors import InputError, StorageError
from ray_app.images import sniff_format
from ray_app.runs.table_files import to_json_value
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
FILE_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff", "AVIF": "avif", "HEIC": "heic",
           "JPEG2000": "jp2", "PNM": "pnm", "RAW": "raw"}  # fmt: skip
NO_IMAGE = "bin"
SHARD_EXTENSIONS: dict[Form, str] = {"parquet": "parquet", "webdataset": "tar"}
RESERVED = ("image", "source")
# The Hugging Face hub uses 100 rows for images. The limit in bytes is for large images, because a
# row group is built in memory.
GROUP_ROWS, GROUP_BYTES = 100, 64 * 2**20
# A row of a part is the result of one member. Only packed members have `format` and `size_bytes`.
# The format is `none` if the member is not a known image.
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
class PackedMember:
    """A file of the source archive (a member) with its bytes, as it goes into a shard.

    Attributes:
        key: Name in the shard, which is unique and safe in any file system.
        member: The member in the listing.
        data: Its bytes.
        sha256: SHA-256 of its bytes.
        format: Format that the bytes show. None if they are not a known image.
    """

    key: str
    member: ManifestMember
    data: bytes
    sha256: str
    format: str | None

    @property
    def extension(self) -> str:
        """File extension for the format of the bytes, not of the member's name; `bin` if unknown."""
        return FILE_EXTENSIONS.get(self.format or "", NO_IMAGE)

    @property
    def name(self) -> str:
        """File name of the member: the last part of its path.

        For an image in a Parquet file, the path is the `path` of its row or of its struct {bytes,
        path}. Without a path, the name is the number of the row, or of the image in the row's list.
        """
        member = self.member
        path = (
            member.input.get("path")
            if member.place is not None and member.place.kind == "parquet"
            else None
        )
        name = str(path or member.member or member.uri).rpartition("/")[2]
        return self.key if name in ("", ".", "..") else name

    @property
    def source(self) -> dict[str, Any]:
        """Where the file came from (URI, name in the archive, version), its SHA-256, and format.

        The keys are those of `SOURCE_TYPE`, the type of the column `source` of the shard.
        """
        identity = {
            name: getattr(self.member, name) for name in ("uri", "member", "occurrence", "version")
        }
        return {**identity, "sha256": self.sha256, "format": self.format}

    def rename_columns(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Return the values that the member has in the columns of the source, under new names.

        The new names are those of the columns in the shard.

        Args:
            names: The name in the shard of each column of the source.

        Returns:
            The values by the name of the column in the shard; None for a missing value.
        """
        return {new: self.member.input.get(old) for old, new in names.items()}


class LocalShard(ABC):
    """A shard that is written to a local temporary file, one member of the archive after another.

    Its methods raise StorageError if the disk of the temporary folder is full.

    Args:
        input_type: Arrow type of the columns that members have in the source. None if the source
            has no columns.

    Attributes:
        path: Path of the file.
        size_bytes: Total size of the members in bytes.
    """

    def __init__(self, input_type: pa.StructType | None) -> None:
        fields = [] if input_type is None else list(input_type)
        self._names = choose_column_names([field.name for field in fields])
        self._folder = tempfile.TemporaryDirectory(prefix="touchstone-shard-")
        self.path, self.size_bytes = Path(self._folder.name) / "shard", 0
        with _explain_write_error():
            self._begin(fields)

    def add(self, packed: PackedMember) -> None:
        """Append a member."""
        with _explain_write_error():
            self._append(packed)
        self.size_bytes += len(packed.data)

    def finish(self) -> None:
        """Write the end of the file and close it."""
        with _explain_write_error():
            self._complete()

    def drop(self) -> None:
        """Delete the file, whether it is complete or not."""
        # Closing fails if the disk is full or the file is already closed.
        with suppress(OSError, ValueError, pa.ArrowException):
            self._complete()
        self._folder.cleanup()

    @abstractmethod
    def _begin(self, fields: Sequence[pa.Field]) -> None: ...

    @abstractmethod
    def _append(self, packed: PackedMember) -> None: ...

    @abstractmethod
    def _complete(self) -> None: ...


class ParquetShard(LocalShard):
    """A shard as a Parquet file, which is written one row group at a time."""

    def _begin(self, fields: Sequence[pa.Field]) -> None:
        columns = [pa.field(self._names[field.name], field.type) for field in fields]
        self._schema = pa.schema(
            [pa.field("image", IMAGE_TYPE), pa.field("source", SOURCE_TYPE), *columns]
        )
        # `datasets` cannot infer from Arrow's types which structs are images.
        features = {
            field.name: {"_type": "Image"} for field in self._schema if field.type == IMAGE_TYPE
        }
        self._schema = self._schema.with_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
        # Compression, dictionaries, and statistics do not help for encoded images. They are used
        # for all other columns.
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

    def _append(self, packed: PackedMember) -> None:
        image = {"bytes": packed.data, "path": packed.name}
        self._rows.append(
            {"image": image, "source": packed.source, **packed.rename_columns(self._names)}
        )
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
    """A shard as a WebDataset tar file.

    Shards with the same members, under the same keys, are equal byte for byte. The tar has no
    times, owners, or modes of real files.
    """

    def _begin(self, fields: Sequence[pa.Field]) -> None:
        self._tar = tarfile.open(self.path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by _complete

    def _append(self, packed: PackedMember) -> None:
        metadata = {"source": packed.source, **to_json_value(packed.rename_columns(self._names))}
        document = json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode(
            "utf-8", "surrogateescape"
        )
        for extension, data in ((packed.extension, packed.data), ("json", document)):
            info = tarfile.TarInfo(f"{packed.key}.{extension}")
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))

    def _complete(self) -> None:
        self._tar.close()


SHARDS: dict[Form, type[LocalShard]] = {"parquet": ParquetShard, "webdataset": WebDatasetShard}


@contextmanager
def _explain_write_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write a shard to the folder for temporary files: {error.strerror or error}",
            hint="free space for one shard per worker, set TMPDIR to another folder, or make shards smaller with --set shard_mb=16",
        ) from error


@dataclass(frozen=True)
class Shard:
    """The plan of one shard: the files of the archive that go into it, and its name.

    A block is a group of files in the listing of the archive.

    Attributes:
        number: Index of the shard, from 0.
        count: Number of all shards of the job.
        form: Format of the shard.
        blocks: The consecutive blocks of the listing whose files go into the shard.
    """

    number: int
    count: int
    form: Form
    blocks: tuple[BlockRef, ...]

    @property
    def members(self) -> int:
        """Number of files of the archive (members) that are to go into the shard."""
        return sum(ref.members for ref in self.blocks)

    @property
    def name(self) -> str:
        """File name without extension, such as "train-00003-of-00012".

        The Hugging Face hub names the shards of a split in this way.
        """
        return f"train-{self.number:05}-of-{self.count:05}"

    @property
    def path(self) -> str:
        """Path below the output directory. The file exists if and only if the shard is complete."""
        return f"data/{self.name}.{SHARD_EXTENSIONS[self.form]}"


@dataclass(frozen=True)
class WriteShard:
    """Write shards with the files (members) of the listing in `store`.

    Call the object with a `Shard` to write it. The call returns the number of `images`, and how
    many of them are not in the shard (`bad`). The object is sent to worker processes.

    Attributes:
        store: The output directory, which has the listing.
        form: Format of the shards.
        input_type: Arrow type of the columns that members have in the source. None if the source
            has no columns.
        fetcher: Reads the members.
        max_member_bytes: Maximum size of a member in bytes.
    """

    store: Store
    form: Form
    input_type: pa.StructType | None
    fetcher: Fetcher
    max_member_bytes: int

    def __call__(self, shard: Shard) -> dict[str, int]:
        """Write a shard and its part. A repeated call replaces both with the same bytes.

        Returns:
            The number of `images`, and how many of them are `bad`, which means not in the shard.

        Raises:
            StorageError: If the output is unreachable, or the temporary folder is full.
        """
        members = [
            member
            for ref in shard.blocks
            for member in rows_to_members(read_block(self.store, ref))
        ]
        reader, file, rows = (
            MemberReader(self.fetcher, max_bytes=self.max_member_bytes),
            SHARDS[self.form](self.input_type),
            [],
        )
        try:
            for index, (member, data) in enumerate(reader.read(members)):
                key = f"{shard.number:05}-{index:06}-{member.image_id & 0xFFFFFFFF:08x}"
                rows.append(_add_member(file, key, member, data))
            file.finish()
            assert len(rows) == len(members), f"{shard.name}: files lost"
            # The part is written first, so that a shard that exists has a part.
            write_part(self.store, shard.name, rows, MEMBER)
            self.store.write_file(shard.path, file.path)
        finally:
            file.drop()
        return {"images": len(rows), "bad": sum(row["status"] != OK for row in rows)}


def _add_member(
    file: LocalShard, key: str, member: ManifestMember, data: bytes | InputError
) -> dict[str, Any]:
    """Append a member to a shard, unless it could not be read, and return its row of `MEMBER`."""
    row = {"uri": member.uri, "member": member.member, "occurrence": member.occurrence}
    if isinstance(data, InputError):
        return row | {"status": data.status.value, "detail": data.detail}
    packed = PackedMember(key, member, data, hashlib.sha256(data).hexdigest(), sniff_format(data))
    file.add(packed)
    return row | {"status": OK, "format": packed.format or "none", "size_bytes": len(data)}


def choose_column_names(columns: Collection[str]) -> dict[str, str]:
    """Return the name that each column of the source has in a shard.

    A column keeps its name unless the name is reserved (`RESERVED`). Then it is `input.NAME`.
    """
    names: dict[str, str] = {}
    for column in columns:
        name = column
        while name in RESERVED or name in names.values() or (name != column and name in columns):
            name = f"input.{name}"
        names[column] = name
    return names


def _leaves(path: str, kind: pa.DataType) -> list[str]:
    """Return the paths that Parquet uses for the leaves of a column."""
    if pa.types.is_struct(kind):
        return [leaf for field in kind for leaf in _leaves(f"{path}.{field.name}", field.type)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type)
    return [path]
