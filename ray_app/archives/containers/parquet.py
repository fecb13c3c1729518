"""Tables of encoded images, as the Hugging Face hub writes them: one row is one member. Knows footers and columns, not what images are.

Indexing reads the footer and every column but the images' bytes, row group by row group. Other columns of bytes (masks, depth maps)
are left where they are, and so are long texts: `input` gets a reference, NAME_uri, that `read_referenced` follows. A table without
images but with uris is a list, whose rows are files of their own, if the user named it as a source; in a folder it is a file like others.
"""

import io
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app.archives.containers.container import Container
from ray_app.archives.containers.entries import why_closed
from ray_app.archives.containers.parquet_cells import UNREADABLE, ParquetReader, fault, no_bytes, open_parquet, read_referenced, reference
from ray_app.archives.list_entries import ListEntries
from ray_app.archives.members import Listed, Place, Refused
from ray_app.archives.tables import (
    Sizes,
    cell_bytes,
    features_of,
    has_binary,
    holds_files,
    input_rows,
    is_struct_of_bytes,
    is_text,
    no_uris,
    roles_of,
    uri_column,
    without,
)
from ray_app.errors import ConfigError, InputError, Status, said
from ray_app.storage import Fetcher

T = TypeVar("T")

__all__ = ["index", "reader", "index_uris", "rows_by", "read_referenced"]

_ROWS_AT_ONCE = 4096
_WINDOW = 1 << 18  # between the columns that are read lie the images, which are not
_MAGIC, _MAGIC_ENCRYPTED = b"PAR1", b"PARE"
_SMALLEST = 12  # the magic twice, and the footer's length
_SMALL = 1_000_000  # bytes below which a ratio says nothing
_ALWAYS_ALLOWED = 64 << 20  # of columns beside the images
MAX_ROW_BYTES = 64 * 1024  # of a row's other columns, as of a sidecar: what is more is only referred to
MAX_COLUMNS = 1024
# An encoded image has more bytes than one, so that a longer table claims rows that it has not, or the same one over and over.
_FEW_ROWS = 4096


def index(container: Container, fetcher: Fetcher) -> Iterator[Listed]:
    """Every row, as a member named by its number, or, of a table that the user named, as the file that a list's row names. Raises as
    `Format.index`, and of such a table ConfigError where the user has to say which column holds the images.
    """
    yield from _opened(container, fetcher, _rows)


def index_uris(container: Container, fetcher: Fetcher) -> Iterator[Listed]:
    """Every row of a table that its user calls a list, whatever other columns it has. Raises ConfigError where it has no uris."""
    yield from _opened(container, fetcher, _listed)


def rows_by(column: str, table: Container, fetcher: Fetcher, *, most: int) -> dict[str, dict[str, Any]]:
    """The columns of every row by the text in one of them; without rows that share theirs.

    Nothing of a table that has no such column, holds images, cannot be read to its end or has more than `most` cells. Raises StorageError
    where the store gives no answer.
    """
    found: dict[str, dict[str, Any]] = {}
    shared: set[str] = set()
    for row in _opened(table, fetcher, lambda container, file: _keyed(container, file, column, most)):
        if isinstance(row, Listed):
            return {}
        if row[column] in found:
            shared.add(row[column])
        found[row[column]] = row
    return {key: row for key, row in found.items() if key not in shared}


def reader(fetcher: Fetcher, max_bytes: int) -> ParquetReader:
    """Reads cells row group by row group; see `Format.reader`."""
    return ParquetReader(fetcher, max_bytes)


def _opened(container: Container, fetcher: Fetcher, rows: Callable[[Container, pq.ParquetFile], Iterator[T]]) -> Iterator[T | Listed]:
    """The rows, and after them the container itself where its file ends them early."""
    try:
        with fetcher.open(container.uri, container.version, container.size_bytes, window=_WINDOW) as file:
            try:
                table, size = open_parquet(file, texts_once=True), file.seek(0, 2)
                if (refused := _refusal(table, size)) is None:
                    yield from rows(replace(container, size_bytes=size), table)
                else:
                    yield container.itself(refused)
            except UNREADABLE as error:
                yield container.itself(_fault(file, error))
    except InputError as error:
        yield container.itself(why_closed(container, error))


def _refusal(file: pq.ParquetFile, size_bytes: int) -> Refused | None:
    """Why a table is not listed, by what its footer says."""
    names, rows = file.schema_arrow.names, [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    if len(set(names)) < len(names):
        return Refused(Status.UNSUPPORTED_FORMAT, "a Parquet file with two columns of one name")
    if len(names) > MAX_COLUMNS:
        return Refused(Status.UNSUPPORTED_FORMAT, f"a Parquet file with {len(names)} columns, more than {MAX_COLUMNS}")
    if min(rows, default=0) < 0 or sum(rows) > max(_FEW_ROWS, size_bytes):
        return Refused(Status.CORRUPT_IMAGE, f"a Parquet file whose footer claims {sum(rows)} rows in {size_bytes} bytes")
    return None


def _rows(container: Container, file: pq.ParquetFile) -> Iterator[Listed]:
    try:
        roles = roles_of(file.schema_arrow, container.columns, container.path)
    except ConfigError as error:
        if container.named:
            raise
        yield container.itself(Refused(Status.UNSUPPORTED_FORMAT, f"{error.message}; {error.hint}"))
        return
    if roles.image is not None:
        yield from _images(container, file, roles.image)
    elif roles.uri is not None and container.named:
        yield from _uris(container, file, roles.uri)
    else:
        told = f"; to score what its column '{roles.uri}' names, give it as a source of its own: list::{container.uri}" if roles.uri else ""
        yield container.as_file(Refused(Status.UNSUPPORTED_FORMAT, f"a Parquet file without a column of images{told}"))


def _listed(container: Container, file: pq.ParquetFile) -> Iterator[Listed]:
    column = uri_column(file.schema_arrow, container.columns)
    if column is None:
        raise no_uris(container.path, file.schema_arrow.names)
    yield from _uris(container, file, column)


def _images(container: Container, file: pq.ParquetFile, image: str) -> Iterator[Listed]:
    bomb = _bomb(container, file)
    for row, (group, values, has_image) in enumerate(_Table.of(container, file, image).rows()):
        if row == container.limits.max_members:
            yield container.itself(Refused(Status.UNSAFE_MEMBER, f"more than {row} rows; further ones are not read"))
            return
        refused = bomb if has_image else no_bytes(values)
        yield Listed(container.uri, str(row), 0, container.version, -1, values, Place("parquet", row, -1, group, image), refused)


def _uris(container: Container, file: pq.ParquetFile, column: str) -> Iterator[Listed]:
    yield from ListEntries(container.uri, column).members(values for _, values, _ in _Table.of(container, file, None).rows())


def _keyed(container: Container, file: pq.ParquetFile, column: str, most: int) -> Iterator[dict[str, Any]]:
    schema = file.schema_arrow
    is_keyed = column in schema.names and is_text(schema.field(column).type) and not any(holds_files(field.type) for field in schema)
    if is_keyed and file.metadata.num_rows * len(schema) <= most:
        yield from (values for _, values, _ in _Table.of(container, file, None).rows() if values[column] is not None)


def _bomb(container: Container, file: pq.ParquetFile) -> Refused | None:
    # Sizes of single columns would say it more exactly, but pyarrow ends the process on footers that lie in those.
    unpacked = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
    if unpacked > _SMALL and container.size_bytes > 0 and unpacked / container.size_bytes > container.limits.max_ratio:
        return Refused(Status.IMAGE_TOO_LARGE, f"a table that unpacks from {container.size_bytes} to {unpacked} bytes")
    return None


class _Budget:
    """What the cells of one file may unpack to: a text that stands in it once may be in all its rows."""

    def __init__(self, container: Container) -> None:
        self._size, self._ratio = container.size_bytes, container.limits.max_ratio
        self._taken = 0

    def take(self, size: int) -> None:
        """Raises InputError once it is too much."""
        self._taken += size
        if self._taken > max(_ALWAYS_ALLOWED, self._size * self._ratio):
            told = f"{self._taken} bytes of rows in {self._size}, over max_ratio ({self._ratio:g}); further ones are not read"
            raise InputError(Status.IMAGE_TOO_LARGE, told, limit=self._ratio, observed=self._taken / max(1, self._size))


@dataclass(frozen=True)
class _Table:
    """Which columns of one file are read for `input`, which are only referred to, and which of both images and those have a path."""

    uri: str
    file: pq.ParquetFile
    image: str | None
    read: tuple[str, ...]
    referred: tuple[str, ...]
    with_path: tuple[str, ...]
    budget: _Budget

    @classmethod
    def of(cls, container: Container, file: pq.ParquetFile, image: str | None) -> "_Table":
        binary = {field.name: field.type for field in file.schema_arrow if field.name == image or has_binary(field.type)}
        read = tuple(name for name in file.schema_arrow.names if name not in binary)
        referred = tuple(name for name in binary if name != image)
        with_path = tuple(name for name, kind in binary.items() if _has_path(kind))
        return cls(container.uri, file, image, read, referred, with_path, _Budget(container))

    def rows(self) -> Iterator[tuple[int, dict[str, Any], bool]]:
        """Every row in order: its row group, its `input`, and False where its image is null as far as can be told without reading it."""
        first_row = 0
        for group in range(self.file.metadata.num_row_groups):
            for values, has_image in self._group(group, first_row):
                yield group, values, has_image
            first_row += self.file.metadata.row_group(group).num_rows

    def _group(self, group: int, first_row: int) -> Iterator[tuple[dict[str, Any], bool]]:
        """The same of one row group, whose first row in the file is `first_row`."""
        row, expected = first_row, self.file.metadata.row_group(group).num_rows
        for values, nulls in (
            self._read(group, first_row) if self.read or self.with_path else (({}, frozenset[str]()) for _ in range(expected))
        ):
            for name in self.referred:
                values[self._free(f"{name}_uri")] = None if name in nulls else reference(self.uri, row, name)
            yield values, self.image not in nulls
            row += 1
        if row - first_row != expected:
            raise pa.ArrowInvalid(f"row group {group} has {row - first_row} rows, its footer says {expected}")

    def _read(self, group: int, first_row: int) -> Iterator[tuple[dict[str, Any], Collection[str]]]:
        features = features_of(self.file.schema_arrow)
        wanted = [*self.read, *(f"{name}.path" for name in self.with_path)]
        for batch in self.file.iter_batches(_ROWS_AT_ONCE, [group], wanted, use_threads=False):
            columns = {name: batch.column(name) for name in self.read}
            if self.image in self.with_path and "path" not in columns:
                columns["path"] = pc.struct_field(batch.column(self.image), "path")
            nulls = {name: batch.column(name).is_null().to_pylist() for name in self.with_path}
            sizes = {name: cell_bytes(column) for name, column in columns.items()}
            long = _long(sizes)
            self.budget.take(sum(int(size[~long[name]].sum()) for name, size in sizes.items()))
            columns = {name: without(column, long[name]) for name, column in columns.items()}
            rows = input_rows(columns, features) if columns else [{} for _ in range(batch.num_rows)]
            for row, values in enumerate(rows):
                for name in (name for name, is_long in long.items() if is_long[row]):
                    values[self._free(f"{name}_uri")] = reference(self.uri, first_row + row, name)
                yield values, [name for name in nulls if nulls[name][row]]
            first_row += batch.num_rows

    def _free(self, name: str) -> str:
        while name in self.read:
            name += "_"
        return name


def _long(sizes: Mapping[str, Sizes]) -> dict[str, npt.NDArray[np.bool_]]:
    """For each column the rows in which it takes more than its share, where all columns together take too much."""
    is_much = sum(sizes.values()) > MAX_ROW_BYTES
    return {name: is_much & (size > MAX_ROW_BYTES // len(sizes)) for name, size in sizes.items()}


def _has_path(kind: pa.DataType) -> bool:
    return is_struct_of_bytes(kind) and kind.get_field_index("path") >= 0 and is_text(kind.field("path").type)


def _fault(file: io.RawIOBase, error: BaseException) -> Refused:
    """What a file that pyarrow refuses is: empty, cut, encrypted, or not Parquet."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(4) or b""
    file.seek(max(0, size - 4))
    tail = file.read(4) or b""
    if not size:
        return Refused(Status.EMPTY_FILE, "a Parquet file without bytes")
    if tail == _MAGIC_ENCRYPTED or head == _MAGIC_ENCRYPTED:
        return Refused(Status.ENCRYPTED_MEMBER, "an encrypted Parquet file")
    if _MAGIC.startswith(head[: min(4, size)]) and (tail != _MAGIC or size < _SMALLEST):
        return Refused(Status.TRUNCATED_IMAGE, "a Parquet file that ends before its footer")
    return Refused(fault(error), f"not a readable Parquet file: {said(error)}")
