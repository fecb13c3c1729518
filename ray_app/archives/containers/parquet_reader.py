"""Read single cells of Parquet tables.

`ParquetReader` reads the images of blocks. `read_referenced` reads a mask, depth map, or long text,
to which a member's `input` only has a reference.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives.columns import find_length_field, holds_files, is_struct_of_bytes, is_text
from ray_app.archives.members import ManifestMember, RefusedMember
from ray_app.errors import ConfigError, InputError, SourceError, Status, describe_error
from ray_app.storage import Fetcher, errors

# The exceptions that pyarrow raises for damaged files and for files that are not Parquet. Arrow's
# own errors are among these, or subclasses of ArrowException.
UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, IndexError)
# With a buffer, pages are read one by one; without it, a whole column chunk is read at once.
_BUFFER = 1 << 20
# Limits for the texts and lists of a footer, so that a small file cannot claim gigabytes.
_MAX_TEXT, _MAX_ITEMS = 64 << 20, 1 << 20


def read_referenced(uri: str, fetcher: Fetcher) -> bytes:
    """Read the table cell to which a reference points, such as a mask of an image.

    A member's `input` has such references in columns NAME_uri, in place of large cells.

    Args:
        uri: The reference, TABLE#row=N&column=NAME.
        fetcher: Reads the table.

    Returns:
        The bytes of the cell.

    Raises:
        ConfigError: The uri is not a reference to a cell with one file or text.
        SourceError: The table cannot be read, or the cell is null.
        InputError: The table is damaged, or has no such cell.
    """
    table, separator, tail = uri.rpartition("#row=")
    number, _, column = tail.partition("&column=")
    if not separator or not number.isdigit() or not column:
        raise ConfigError(
            f"{uri}: not a reference into a table, which has the form TABLE#row=N&column=NAME"
        )
    row = int(number)
    with fetcher.open(table, "") as file:
        try:
            return _read_referenced_cell(open_parquet(file), row, column, uri)
        except UNREADABLE as error:
            raise InputError(Status.CORRUPT_IMAGE, f"{uri}: {describe_error(error)}") from error


def open_parquet(file: io.RawIOBase, *, texts_once: bool = False) -> pq.ParquetFile:
    """Open a Parquet file that is read in ranges, and read its footer.

    If the file is not a readable Parquet file, one of the exceptions in `UNREADABLE` is raised.

    Args:
        file: The file.
        texts_once: Whether to read texts as dictionaries. A text that the file stores once then
            takes memory only once, however many rows have it.
    """
    limits = {
        "buffer_size": _BUFFER,
        "thrift_string_size_limit": _MAX_TEXT,
        "thrift_container_size_limit": _MAX_ITEMS,
    }
    parquet = pq.ParquetFile(file, **limits)
    if not texts_once:
        return parquet
    columns = (parquet.schema.column(index) for index in range(len(parquet.schema.names)))
    text_paths = [
        leaf.path
        for leaf in columns
        if leaf.physical_type == "BYTE_ARRAY"
        and leaf.logical_type.type in ("STRING", "JSON", "ENUM")
    ]
    return pq.ParquetFile(file, metadata=parquet.metadata, read_dictionary=text_paths, **limits)


def classify_error(error: BaseException) -> Status:
    """Return the status of a Parquet file that pyarrow cannot read.

    The status is `unsupported_format` if pyarrow does not know a codec, encoding, or type of the
    file. The type or the message of the error shows this. Otherwise the file is damaged, and the
    status is `corrupt_image`.
    """
    is_unknown = isinstance(error, NotImplementedError) or any(
        phrase in str(error) for phrase in ("not supported", "Unsupported")
    )
    return Status.UNSUPPORTED_FORMAT if is_unknown else Status.CORRUPT_IMAGE


def missing_bytes_refusal(others: Mapping[str, Any]) -> RefusedMember:
    """Return the reason to show for a row of a table whose image is null.

    Args:
        others: The row without its image. If it has a `path`, the reason quotes the path.

    Returns:
        The reason, with the status `source_missing`.
    """
    path = others.get("path")
    return RefusedMember(
        Status.SOURCE_MISSING,
        "the row has no bytes" + (f"; its path says '{path}'" if path else ""),
    )


def format_reference(uri: str, row: int, column: str) -> str:
    """Return a reference to a table cell, which `read_referenced` can read.

    A member's `input` has the reference in place of a cell that is too large to keep.

    Args:
        uri: The uri of the table.
        row: The number of the row in the table.
        column: The name of the cell's column.

    Returns:
        The text TABLE#row=N&column=NAME.
    """
    return f"{uri}#row={row}&column={column}"


class ParquetReader:
    """Reads the images of Parquet tables as a stream, with one page and one cell in memory.

    The reader keeps its position in a row group, so that the next block of members continues there.

    Args:
        fetcher: Reads the tables.
        max_bytes: The maximum size of an image. A larger image yields an error.
    """

    def __init__(self, fetcher: Fetcher, max_bytes: int) -> None:
        self._fetcher, self._max_bytes = fetcher, max_bytes
        self._key: tuple[str, str] | None = None
        self._file: io.RawIOBase | None = None
        self._cursor: _Cursor | None = None

    def read(self, members: Sequence[ManifestMember]) -> Iterator[bytes | InputError]:
        """Yield, for each of several rows of one table, its image bytes or the error for it.

        A row group that cannot be read is not tried again within this call.
        """
        failed: dict[int, InputError] = {}
        for member in members:
            location = member.place
            assert location is not None, "a row of a table has a place"
            if location.group not in failed:
                try:
                    yield self._cell(member)
                    continue
                except SourceError as error:
                    failed[location.group] = error
                except UNREADABLE as error:
                    failed[location.group] = InputError(
                        classify_error(error),
                        f"row group {location.group} cannot be read: {describe_error(error)}",
                    )
                self._close()
            yield failed[location.group]

    def _cell(self, member: ManifestMember) -> bytes | InputError:
        location = member.place
        assert location is not None
        assert location.column is not None
        parquet = self._open(member)
        if self._cursor is None or not self._cursor.can_reach(
            location.group, location.offset, location.column
        ):
            self._cursor = _Cursor(parquet, location.group, location.column)
        data = self._cursor.read_cell(location.offset, member.member)
        if data is None:
            return missing_bytes_refusal(member.input).error()
        return (
            errors.make_too_large_error(data.size, self._max_bytes)
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
    """Reads one column of one row group, forwards only."""

    def __init__(self, file: pq.ParquetFile, group: int, column: str) -> None:
        if not 0 <= group < file.metadata.num_row_groups:
            raise IndexError(
                f"row group {group} does not exist; the file has {file.metadata.num_row_groups} row groups"
            )
        self._group, self._column = group, column
        self._next = sum(file.metadata.row_group(i).num_rows for i in range(group))
        kind = file.schema_arrow.field(column).type
        self._is_struct, self._is_list = (
            is_struct_of_bytes(kind),
            find_length_field(kind) is not None,
        )
        paths = (
            find_leaves(file, column, "bytes")
            if self._is_list
            else [f"{column}.bytes" if self._is_struct else column]
        )
        self._list: pa.Array | None = None  # The files of the row that was read last.
        # One row at a time: any number of rows may be copies of one large dictionary entry.
        self._batches = file.iter_batches(1, [group], paths, use_threads=False)

    def can_reach(self, group: int, row: int, column: str) -> bool:
        """Return whether a cell is ahead, or another image of the row that was read last."""
        return (group, column) == (self._group, self._column) and row >= self._next - (
            self._list is not None
        )

    def read_cell(self, row: int, member: str | None = None) -> Any:
        """Return the buffer of the cell in a row of the file, None if the cell is null.

        Args:
            row: The row's number in the file.
            member: The name of the image, which ends with its number in the row's list, if cells
                are lists.

        Raises:
            IndexError: The row group or the list is shorter.
        """
        if self._is_list:
            _, _, number = (member or "").partition("/")
            files = self._files(row)
            if not number or int(number) >= len(files):
                raise IndexError(
                    f"row {row} has no file number '{number}' in column '{self._column}'"
                )
            return (
                get_buffer(files.field("bytes")[int(number)])
                if files[int(number)].is_valid
                else None
            )
        for batch in self._batches:
            self._next += 1
            if self._next > row:
                # The column is looked up by name, because a column called `image.bytes` would be
                # read too.
                cells = batch.column(self._column)
                return get_buffer((cells.field("bytes") if self._is_struct else cells)[0])
        raise IndexError(f"row group {self._group} has no row {row}")

    def _files(self, row: int) -> pa.Array:
        """Return the files of a row's list."""
        while self._list is None or self._next <= row:
            self._list = None  # Never hold two rows at once.
            batch = next(self._batches, None)
            if batch is None:
                raise IndexError(f"row group {self._group} has no row {row}")
            self._next += 1
            self._list = batch.column(self._column).flatten()
        return self._list


def get_buffer(cell: pa.Scalar) -> Any:
    """Return the Arrow buffer with the bytes or text of a table cell; None for null."""
    return (cell.value if isinstance(cell, pa.DictionaryScalar) else cell).as_buffer()


def find_leaves(file: pq.ParquetFile, column: str, field: str) -> list[str]:
    """Return the paths of the Parquet leaf columns that store one field of a column of structs.

    Reading only these leaves avoids reading the other fields. The column may also hold lists of
    structs.

    Args:
        file: The Parquet file.
        column: The name of the column, such as `images`.
        field: The name of the field, such as `path`.

    Returns:
        The paths, such as `images.list.element.path`.
    """
    paths = (file.schema.column(index).path for index in range(len(file.schema.names)))
    return [path for path in paths if path.startswith(f"{column}.") and path.endswith(f".{field}")]


def _read_referenced_cell(file: pq.ParquetFile, row: int, column: str, uri: str) -> bytes:
    kind = file.schema_arrow.field(column).type if column in file.schema_arrow.names else pa.null()
    if not (holds_files(kind) or is_text(kind)):
        raise ConfigError(
            f"{uri}: the table has no column '{column}' of images, paths, or URLs (one file or text in each row)"
        )
    group, end = 0, 0
    while (
        group < file.metadata.num_row_groups
        and (end := end + file.metadata.row_group(group).num_rows) <= row
    ):
        group += 1
    if group == file.metadata.num_row_groups:
        raise IndexError(f"the table has no row {row}")
    data = _Cursor(file, group, column).read_cell(row)
    if data is None:
        raise SourceError(Status.SOURCE_MISSING, f"{uri}: the row has no bytes")
    return bytes(data.to_pybytes())
