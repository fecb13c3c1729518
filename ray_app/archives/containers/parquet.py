"""Parquet tables of encoded images, as the Hugging Face hub writes them: one row is one member (`index`, `reader`, `index_uris`,
`rows_by`).

Indexing reads the footer and every column but the images' bytes, row group by row group. Other columns of bytes (masks, depth maps) are
left where they are, and so are long texts: `input` gets a reference, NAME_uri, that `read_referenced` follows. A table without images but
with uris is a list, whose rows are files of their own, if the user named it as a source; in a folder it is a file like others.
"""

import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app.archives.columns import (
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
from ray_app.archives.containers.base import Container, why_closed
from ray_app.archives.members import ListedMember, ManifestMember, MemberLocation, RefusedMember
from ray_app.archives.uri_list_rows import ListEntries
from ray_app.errors import ConfigError, InputError, SourceError, Status, describe_error
from ray_app.storage import Fetcher, errors

# What pyarrow raises on files that are not what they say; Arrow's own errors are some of these, or ArrowException.
UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, IndexError)
# Without a buffer a whole column chunk is read at once; with one, page by page.
_BUFFER = 1 << 20
# A footer's texts and lists, so that a small file cannot claim gigabytes.
_MAX_TEXT, _MAX_ITEMS = 64 << 20, 1 << 20

T = TypeVar("T")

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


def index(container: Container, fetcher: Fetcher) -> Iterator[ListedMember]:
    """Every row, as a member named by its number, or, of a table that the user named, as the file that a list's row names. Raises as
    `ContainerFormat.index`, and of such a table ConfigError where the user has to say which column holds the images.
    """
    yield from _opened(container, fetcher, _rows)


def index_uris(container: Container, fetcher: Fetcher) -> Iterator[ListedMember]:
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
        if isinstance(row, ListedMember):
            return {}
        if row[column] in found:
            shared.add(row[column])
        found[row[column]] = row
    return {key: row for key, row in found.items() if key not in shared}


def read_referenced(uri: str, fetcher: Fetcher) -> bytes:
    """The bytes that a reference in `input` (a column NAME_uri) stands for.

    Raises: ConfigError for what is no reference to one file, SourceError where the table cannot be read, InputError where it has
    no such cell.
    """
    place, mark, rest = uri.rpartition("#row=")
    number, _, column = rest.partition("&column=")
    if not mark or not number.isdigit() or not column:
        raise ConfigError(f"{uri}: not a reference into a table (…#row=N&column=NAME)")
    row = int(number)
    with fetcher.open(place, "") as file:
        try:
            return _referenced(open_parquet(file), row, column, uri)
        except UNREADABLE as error:
            raise InputError(Status.CORRUPT_IMAGE, f"{uri}: {describe_error(error)}") from error


def open_parquet(file: io.RawIOBase, *, texts_once: bool = False) -> pq.ParquetFile:
    """A Parquet file over ranged reads; the footer is read here. Raises one of UNREADABLE where it is none.

    `texts_once`: a text that the file holds once takes memory once, however many rows have it; they are dictionaries then.
    """
    limits = {"buffer_size": _BUFFER, "thrift_string_size_limit": _MAX_TEXT, "thrift_container_size_limit": _MAX_ITEMS}
    found = pq.ParquetFile(file, **limits)
    if not texts_once:
        return found
    leaves = (found.schema.column(place) for place in range(len(found.schema.names)))
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type in ("STRING", "JSON", "ENUM")]
    return pq.ParquetFile(file, metadata=found.metadata, read_dictionary=texts, **limits)


def fault(error: BaseException) -> Status:
    """Why pyarrow cannot read a file: a codec, encoding or type that it does not know (only its message says so), or damage."""
    is_unknown = isinstance(error, NotImplementedError) or any(word in str(error) for word in ("not supported", "Unsupported"))
    return Status.UNSUPPORTED_FORMAT if is_unknown else Status.CORRUPT_IMAGE


def no_bytes(others: Mapping[str, Any]) -> RefusedMember:
    """What a row says whose image was left out of the table; `others` are its other columns."""
    path = others.get("path")
    return RefusedMember(Status.SOURCE_MISSING, "the row has no bytes" + (f"; its path says '{path}'" if path else ""))


class ParquetReader:
    """The cells of one column after another, streamed; the place in a row group is kept, so that the next block goes on there.

    What is held is one page of the file and one cell.
    """

    def __init__(self, fetcher: Fetcher, max_bytes: int) -> None:
        self._fetcher, self._max_bytes = fetcher, max_bytes
        self._key: tuple[str, str] | None = None
        self._file: io.RawIOBase | None = None
        self._cursor: _Cursor | None = None

    def read(self, members: Sequence[ManifestMember]) -> Iterator[bytes | InputError]:
        """The bytes of rows of one file, in their order; see `Reader.read`. A row group that fails is not tried again for this call."""
        failed: dict[int, InputError] = {}
        for member in members:
            place = member.place
            assert place is not None, "a row of a table has a place"
            if place.group not in failed:
                try:
                    yield self._cell(member)
                    continue
                except SourceError as error:
                    failed[place.group] = error
                except UNREADABLE as error:
                    failed[place.group] = InputError(fault(error), f"row group {place.group} is not readable: {describe_error(error)}")
                self._close()
            yield failed[place.group]

    def _cell(self, member: ManifestMember) -> bytes | InputError:
        place = member.place
        assert place is not None
        assert place.column is not None
        parquet = self._open(member)
        if self._cursor is None or not self._cursor.reaches(place.group, place.offset, place.column):
            self._cursor = _Cursor(parquet, place.group, place.column)
        data = self._cursor.at(place.offset)
        if data is None:
            return no_bytes(member.input).error()
        return errors.too_large(data.size, self._max_bytes) if data.size > self._max_bytes else data.to_pybytes()

    def _open(self, member: ManifestMember) -> pq.ParquetFile:
        if self._key != (member.uri, member.version):
            self._close()
            self._file = self._fetcher.open(member.uri, member.version)
            self._parquet = open_parquet(self._file)
            self._key = (member.uri, member.version)
        return self._parquet

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._key = self._file = self._cursor = None


class _Cursor:
    """A way through one column of one row group, forwards only."""

    def __init__(self, file: pq.ParquetFile, group: int, column: str) -> None:
        if not 0 <= group < file.metadata.num_row_groups:
            raise IndexError(f"there is no row group {group}, only {file.metadata.num_row_groups} of them")
        self._group, self._column = group, column
        self._next = sum(file.metadata.row_group(i).num_rows for i in range(group))
        self._is_struct = is_struct_of_bytes(file.schema_arrow.field(column).type)
        leaf = f"{column}.bytes" if self._is_struct else column
        # One row at a time: any number of rows may be copies of one large dictionary entry.
        self._batches = file.iter_batches(1, [group], [leaf], use_threads=False)

    def reaches(self, group: int, row: int, column: str) -> bool:
        """Whether a cell lies ahead."""
        return (group, column) == (self._group, self._column) and row >= self._next

    def at(self, row: int) -> Any:
        """The buffer of the cell in a row of the file, None where it is null. Raises IndexError past the group's end."""
        for batch in self._batches:
            self._next += 1
            if self._next > row:
                cells = batch.column(self._column)  # by its name: `image.bytes` is read, too, where a column is called so
                cell = (cells.field("bytes") if self._is_struct else cells)[0]
                return (cell.value if isinstance(cell, pa.DictionaryScalar) else cell).as_buffer()
        raise IndexError(f"row group {self._group} has no row {row}")


def reference(uri: str, row: int, column: str) -> str:
    """What `input` says instead of a cell's bytes."""
    return f"{uri}#row={row}&column={column}"


def _referenced(file: pq.ParquetFile, row: int, column: str, uri: str) -> bytes:
    kind = file.schema_arrow.field(column).type if column in file.schema_arrow.names else pa.null()
    if not (holds_files(kind) or is_text(kind)):
        raise ConfigError(f"{uri}: the table has no column '{column}' with one file or text in each row")
    group, end = 0, 0
    while group < file.metadata.num_row_groups and (end := end + file.metadata.row_group(group).num_rows) <= row:
        group += 1
    if group == file.metadata.num_row_groups:
        raise IndexError(f"there is no row {row}")
    data = _Cursor(file, group, column).at(row)
    if data is None:
        raise SourceError(Status.SOURCE_MISSING, f"{uri}: the row has no bytes")
    return bytes(data.to_pybytes())


reader = ParquetReader


def _opened(container: Container, fetcher: Fetcher, rows: Callable[[Container, pq.ParquetFile], Iterator[T]]) -> Iterator[T | ListedMember]:
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


def _refusal(file: pq.ParquetFile, size_bytes: int) -> RefusedMember | None:
    """Why a table is not listed, by what its footer says."""
    names, rows = file.schema_arrow.names, [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    if len(set(names)) < len(names):
        return RefusedMember(Status.UNSUPPORTED_FORMAT, "a Parquet file with two columns of one name")
    if len(names) > MAX_COLUMNS:
        return RefusedMember(Status.UNSUPPORTED_FORMAT, f"a Parquet file with {len(names)} columns, more than {MAX_COLUMNS}")
    if min(rows, default=0) < 0 or sum(rows) > max(_FEW_ROWS, size_bytes):
        return RefusedMember(Status.CORRUPT_IMAGE, f"a Parquet file whose footer claims {sum(rows)} rows in {size_bytes} bytes")
    return None


def _rows(container: Container, file: pq.ParquetFile) -> Iterator[ListedMember]:
    try:
        roles = roles_of(file.schema_arrow, container.columns, container.path)
    except ConfigError as error:
        if container.named:
            raise
        yield container.itself(RefusedMember(Status.UNSUPPORTED_FORMAT, f"{error.message}; {error.hint}"))
        return
    if roles.image is not None:
        yield from _images(container, file, roles.image)
    elif roles.uri is not None and container.named:
        yield from _uris(container, file, roles.uri)
    else:
        reason = (
            f"; to score what its column '{roles.uri}' names, give it as a source of its own: list::{container.uri}" if roles.uri else ""
        )
        why = RefusedMember(Status.UNSUPPORTED_FORMAT, f"a Parquet file without a column of images{reason}")
        yield ListedMember(container.uri, None, 0, container.version, container.size_bytes, refused=why)  # a file like others


def _listed(container: Container, file: pq.ParquetFile) -> Iterator[ListedMember]:
    column = uri_column(file.schema_arrow, container.columns)
    if column is None:
        raise no_uris(container.path, file.schema_arrow.names)
    yield from _uris(container, file, column)


def _images(container: Container, file: pq.ParquetFile, image: str) -> Iterator[ListedMember]:
    bomb = _bomb(container, file)
    for row, (group, values, has_image) in enumerate(_Table(container, file, image).rows()):
        if row == container.limits.max_members:
            yield container.itself(RefusedMember(Status.UNSAFE_MEMBER, f"more than {row} rows; further ones are not read"))
            return
        refused = bomb if has_image else no_bytes(values)
        yield ListedMember(
            container.uri, str(row), 0, container.version, -1, values, MemberLocation("parquet", row, -1, group, image), refused
        )


def _uris(container: Container, file: pq.ParquetFile, column: str) -> Iterator[ListedMember]:
    yield from ListEntries(container.uri, column).members(values for _, values, _ in _Table(container, file, None).rows())


def _keyed(container: Container, file: pq.ParquetFile, column: str, most: int) -> Iterator[dict[str, Any]]:
    schema = file.schema_arrow
    is_keyed = column in schema.names and is_text(schema.field(column).type) and not any(holds_files(field.type) for field in schema)
    if is_keyed and file.metadata.num_rows * len(schema) <= most:
        yield from (values for _, values, _ in _Table(container, file, None).rows() if values[column] is not None)


def _bomb(container: Container, file: pq.ParquetFile) -> RefusedMember | None:
    # Sizes of single columns would say it more exactly, but pyarrow ends the process on footers that lie in those.
    unpacked = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
    if unpacked > _SMALL and container.size_bytes > 0 and unpacked / container.size_bytes > container.limits.max_ratio:
        return RefusedMember(Status.IMAGE_TOO_LARGE, f"a table that unpacks from {container.size_bytes} to {unpacked} bytes")
    return None


class _Table:
    """Which columns of one file are read for `input`, which are only referred to, and which of both images and those have a path."""

    def __init__(self, container: Container, file: pq.ParquetFile, image: str | None) -> None:
        self.uri, self.file, self.image = container.uri, file, image
        binary = {field.name: field.type for field in file.schema_arrow if field.name == image or has_binary(field.type)}
        self.read = tuple(name for name in file.schema_arrow.names if name not in binary)
        self.referred = tuple(name for name in binary if name != image)
        self.with_path = tuple(name for name, kind in binary.items() if _has_path(kind))
        self._size, self._ratio, self._taken = container.size_bytes, container.limits.max_ratio, 0

    def _take(self, size: int) -> None:
        """Count what cells unpack to: a text that stands in the file once may be in all its rows. Raises InputError once it is too much."""
        self._taken += size
        if self._taken > max(_ALWAYS_ALLOWED, self._size * self._ratio):
            reason = f"{self._taken} bytes of rows in {self._size}, over max_ratio ({self._ratio:g}); further ones are not read"
            raise InputError(Status.IMAGE_TOO_LARGE, reason, limit=self._ratio, observed=self._taken / max(1, self._size))

    def rows(self) -> Iterator[tuple[int, dict[str, Any], bool]]:
        """Every row in order: its row group, its `input`, and False where its image is known to be null without reading it."""
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
            self._take(sum(int(size[~long[name]].sum()) for name, size in sizes.items()))
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


def _fault(file: io.RawIOBase, error: BaseException) -> RefusedMember:
    """What a file that pyarrow refuses is: empty, cut, encrypted, or not Parquet."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(4) or b""
    file.seek(max(0, size - 4))
    tail = file.read(4) or b""
    if not size:
        return RefusedMember(Status.EMPTY_FILE, "an empty file: it has no bytes")
    if tail == _MAGIC_ENCRYPTED or head == _MAGIC_ENCRYPTED:
        return RefusedMember(Status.ENCRYPTED_MEMBER, "an encrypted Parquet file")
    if _MAGIC.startswith(head[: min(4, size)]) and (tail != _MAGIC or size < _SMALLEST):
        return RefusedMember(Status.TRUNCATED_IMAGE, "a Parquet file that ends before its footer")
    return RefusedMember(fault(error), f"not a readable Parquet file: {describe_error(error)}")
