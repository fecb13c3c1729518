"""Read single cells of Parquet tables: `ParquetReader` for the images of blocks, `read_referenced`
for references in `input`.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives.columns import field_beside_bytes, holds_files, is_struct_of_bytes, is_text
from ray_app.archives.members import ManifestMember, RefusedMember
from ray_app.errors import ConfigError, InputError, SourceError, Status, describe_error
from ray_app.storage import Fetcher, errors

# What pyarrow raises on files that are not what they say; Arrow's own errors are some of these, or
# ArrowException.
UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, IndexError)
# Without a buffer a whole column chunk is read at once; with one, page by page.
_BUFFER = 1 << 20
# A footer's texts and lists, so that a small file cannot claim gigabytes.
_MAX_TEXT, _MAX_ITEMS = 64 << 20, 1 << 20


def read_referenced(uri: str, fetcher: Fetcher) -> bytes:
    """The bytes that a reference in `input` (a column NAME_uri) stands for.

    Raises: ConfigError for what is no reference to one file, SourceError where the table cannot be
    read, InputError where it has no such cell.
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
    """A Parquet file over ranged reads; the footer is read here. Raises one of UNREADABLE where it
    is none.

    `texts_once`: a text that the file holds once takes memory once, however many rows have it; they
    are dictionaries then.
    """
    limits = {
        "buffer_size": _BUFFER,
        "thrift_string_size_limit": _MAX_TEXT,
        "thrift_container_size_limit": _MAX_ITEMS,
    }
    found = pq.ParquetFile(file, **limits)
    if not texts_once:
        return found
    leaves = (found.schema.column(place) for place in range(len(found.schema.names)))
    texts = [
        leaf.path
        for leaf in leaves
        if leaf.physical_type == "BYTE_ARRAY"
        and leaf.logical_type.type in ("STRING", "JSON", "ENUM")
    ]
    return pq.ParquetFile(file, metadata=found.metadata, read_dictionary=texts, **limits)


def fault(error: BaseException) -> Status:
    """Why pyarrow cannot read a file: a codec, encoding or type that it does not know (only its
    message says so), or damage.
    """
    is_unknown = isinstance(error, NotImplementedError) or any(
        word in str(error) for word in ("not supported", "Unsupported")
    )
    return Status.UNSUPPORTED_FORMAT if is_unknown else Status.CORRUPT_IMAGE


def no_bytes(others: Mapping[str, Any]) -> RefusedMember:
    """What a row says whose image was left out of the table; `others` are its other columns."""
    path = others.get("path")
    return RefusedMember(
        Status.SOURCE_MISSING,
        "the row has no bytes" + (f"; its path says '{path}'" if path else ""),
    )


def reference(uri: str, row: int, column: str) -> str:
    """What `input` says instead of a cell's bytes."""
    return f"{uri}#row={row}&column={column}"


class ParquetReader:
    """The cells of one column after another, streamed; the place in a row group is kept, so that
    the next block goes on there.

    What is held is one page of the file and one cell.
    """

    def __init__(self, fetcher: Fetcher, max_bytes: int) -> None:
        self._fetcher, self._max_bytes = fetcher, max_bytes
        self._key: tuple[str, str] | None = None
        self._file: io.RawIOBase | None = None
        self._cursor: _Cursor | None = None

    def read(self, members: Sequence[ManifestMember]) -> Iterator[bytes | InputError]:
        """The bytes of rows of one file, in their order; see `Reader.read`. A row group that fails
        is not tried again for this call.
        """
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
                    failed[place.group] = InputError(
                        fault(error),
                        f"row group {place.group} is not readable: {describe_error(error)}",
                    )
                self._close()
            yield failed[place.group]

    def _cell(self, member: ManifestMember) -> bytes | InputError:
        place = member.place
        assert place is not None
        assert place.column is not None
        parquet = self._open(member)
        if self._cursor is None or not self._cursor.reaches(
            place.group, place.offset, place.column
        ):
            self._cursor = _Cursor(parquet, place.group, place.column)
        data = self._cursor.at(place.offset, member.member)
        if data is None:
            return no_bytes(member.input).error()
        return (
            errors.too_large(data.size, self._max_bytes)
            if data.size > self._max_bytes
            else data.to_pybytes()
        )

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
    """Read one column of one row group, forwards only."""

    def __init__(self, file: pq.ParquetFile, group: int, column: str) -> None:
        if not 0 <= group < file.metadata.num_row_groups:
            raise IndexError(
                f"there is no row group {group}, only {file.metadata.num_row_groups} of them"
            )
        self._group, self._column = group, column
        self._next = sum(file.metadata.row_group(i).num_rows for i in range(group))
        kind = file.schema_arrow.field(column).type
        self._is_struct, self._is_list = (
            is_struct_of_bytes(kind),
            field_beside_bytes(kind) is not None,
        )
        leaves = (
            leaves_of(file, column, "bytes")
            if self._is_list
            else [f"{column}.bytes" if self._is_struct else column]
        )
        self._list: pa.Array | None = None  # the files of the row that was read last
        # One row at a time: any number of rows may be copies of one large dictionary entry.
        self._batches = file.iter_batches(1, [group], leaves, use_threads=False)

    def reaches(self, group: int, row: int, column: str) -> bool:
        """Return whether a cell is ahead, or another image of the row that was read last."""
        return (group, column) == (self._group, self._column) and row >= self._next - (
            self._list is not None
        )

    def at(self, row: int, member: str | None = None) -> Any:
        """Return the buffer of the cell in a row of the file, None if the cell is null.

        Args:
            row: The row's number in the file.
            member: The name of the image, which ends with its number in the row's list, if cells
                are lists.

        Raises:
            IndexError: the row group or the list ends before.
        """
        if self._is_list:
            _, _, number = (member or "").partition("/")
            files = self._files(row)
            if not number or int(number) >= len(files):
                raise IndexError(f"row {row} has no file '{number}' in '{self._column}'")
            return (
                buffer_of(files.field("bytes")[int(number)])
                if files[int(number)].is_valid
                else None
            )
        for batch in self._batches:
            self._next += 1
            if self._next > row:
                # by its name: `image.bytes` is read, too, where a column is called so
                cells = batch.column(self._column)
                return buffer_of((cells.field("bytes") if self._is_struct else cells)[0])
        raise IndexError(f"row group {self._group} has no row {row}")

    def _files(self, row: int) -> pa.Array:
        """Return the files of a row's list."""
        while self._list is None or self._next <= row:
            self._list = None  # never two rows at once
            batch = next(self._batches, None)
            if batch is None:
                raise IndexError(f"row group {self._group} has no row {row}")
            self._next += 1
            self._list = batch.column(self._column).flatten()
        return self._list


def buffer_of(cell: pa.Scalar) -> Any:
    """Return the bytes of a cell, also of one in a dictionary; None for null."""
    return (cell.value if isinstance(cell, pa.DictionaryScalar) else cell).as_buffer()


def leaves_of(file: pq.ParquetFile, column: str, field: str) -> list[str]:
    """Return the columns of a Parquet file that hold one field of the structs in a column."""
    paths = (file.schema.column(place).path for place in range(len(file.schema.names)))
    return [path for path in paths if path.startswith(f"{column}.") and path.endswith(f".{field}")]


def _referenced(file: pq.ParquetFile, row: int, column: str, uri: str) -> bytes:
    kind = file.schema_arrow.field(column).type if column in file.schema_arrow.names else pa.null()
    if not (holds_files(kind) or is_text(kind)):
        raise ConfigError(
            f"{uri}: the table has no column '{column}' with one file or text in each row"
        )
    group, end = 0, 0
    while (
        group < file.metadata.num_row_groups
        and (end := end + file.metadata.row_group(group).num_rows) <= row
    ):
        group += 1
    if group == file.metadata.num_row_groups:
        raise IndexError(f"there is no row {row}")
    data = _Cursor(file, group, column).at(row)
    if data is None:
        raise SourceError(Status.SOURCE_MISSING, f"{uri}: the row has no bytes")
    return bytes(data.to_pybytes())
