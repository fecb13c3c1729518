"""Single cells of Parquet files: the bytes of a member, and of what `input` refers to. Knows row groups, not what a column is for."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives.members import Member, Refused
from ray_app.archives.tables import holds_files, is_struct_of_bytes, is_text
from ray_app.errors import ConfigError, InputError, SourceError, Status, said
from ray_app.storage import Fetcher
from ray_app.storage.errors import too_large

# What pyarrow raises on files that are not what they say; Arrow's own errors are some of these, or ArrowException.
UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, IndexError)
# Without a buffer a whole column chunk is read at once; with one, page by page.
_BUFFER = 1 << 20
# A footer's texts and lists, so that a small file cannot claim gigabytes.
_MAX_TEXT, _MAX_ITEMS = 64 << 20, 1 << 20


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
    """What it is that pyarrow cannot read: a codec, encoding or type that it does not know, which its words alone tell, or damage."""
    is_unknown = isinstance(error, NotImplementedError) or any(word in str(error) for word in ("not supported", "Unsupported"))
    return Status.UNSUPPORTED_FORMAT if is_unknown else Status.CORRUPT_IMAGE


def no_bytes(others: Mapping[str, Any]) -> Refused:
    """What a row says whose image was left out of the table; `others` are its other columns."""
    path = others.get("path")
    return Refused(Status.SOURCE_MISSING, "the row has no bytes" + (f"; its path says '{path}'" if path else ""))


class ParquetReader:
    """The cells of one column after another, streamed; the place in a row group is kept, so that the next block goes on there.

    What is held is one page of the file and one cell.
    """

    def __init__(self, fetcher: Fetcher, max_bytes: int) -> None:
        self._fetcher, self._max_bytes = fetcher, max_bytes
        self._key: tuple[str, str] | None = None
        self._file: io.RawIOBase | None = None
        self._cursor: _Cursor | None = None

    def read(self, members: Sequence[Member]) -> Iterator[bytes | InputError]:
        """The bytes of rows of one file, in their order; see `Reader.read`. A row group that fails is not asked again for this call."""
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
                    failed[place.group] = InputError(fault(error), f"row group {place.group} is not readable: {said(error)}")
                self._close()
            yield failed[place.group]

    def _cell(self, member: Member) -> bytes | InputError:
        place = member.place
        assert place is not None
        assert place.column is not None
        parquet = self._open(member)
        if self._cursor is None or not self._cursor.reaches(place.group, place.offset, place.column):
            self._cursor = _Cursor(parquet, place.group, place.column)
        data = self._cursor.at(place.offset)
        if data is None:
            return no_bytes(member.input).error()
        return too_large(data.size, self._max_bytes) if data.size > self._max_bytes else data.to_pybytes()

    def _open(self, member: Member) -> pq.ParquetFile:
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


def read_referenced(uri: str, fetcher: Fetcher) -> bytes:
    """The bytes that a reference in `input` (a column NAME_uri) stands for.

    Raises: ConfigError for what is no reference to one file, SourceError where the table cannot be read, InputError where it has
    no such cell.
    """
    place, mark, rest = uri.rpartition("#row=")
    number, _, column = rest.partition("&column=")
    if not mark or not number.isdigit() or not column:
        raise ConfigError(f"{uri}: no reference into a table (…#row=N&column=NAME)")
    row = int(number)
    with fetcher.open(place, "") as file:
        try:
            return _referenced(open_parquet(file), row, column, uri)
        except UNREADABLE as error:
            raise InputError(Status.CORRUPT_IMAGE, f"{uri}: {said(error)}") from error


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
