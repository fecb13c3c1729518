"""List the images in Parquet tables, such as those of data sets on the Hugging Face hub.

`index` lists the images of a table, and `index_uris` lists the files that a table of uris names.
`read_rows_by` reads a small table into a dict. A row is a member. If rows have lists of images,
each image of a list is a member, named ROW/NUMBER.

Listing a table reads the footer and, row group by row group, all columns without bytes. These
columns become the `input` of members. Other columns of bytes than the images (masks, depth maps)
are not read, and long texts are not kept. In place of such a cell of the column NAME, `input` gets
a reference in the column NAME_uri. `read_referenced` reads the cell.

A table with uris and without images is a list of files if the user named the table as a source. In
a folder, such a table is listed as one file that cannot be scored.
"""

import io
from base64 import b64decode
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app.archives.columns import (
    Sizes,
    find_length_field,
    find_nested_files,
    find_roles,
    find_uri_column,
    has_binary,
    holds_files,
    is_struct_of_bytes,
    is_text,
    measure_cells,
    missing_uris_error,
    null_out,
    read_features,
    to_input_rows,
)
from ray_app.archives.containers.base import Container, escape_name, explain_refusal
from ray_app.archives.containers.parquet_reader import (
    UNREADABLE,
    ParquetReader,
    classify_error,
    find_leaves,
    format_reference,
    get_buffer,
    missing_bytes_refusal,
    open_parquet,
)
from ray_app.archives.members import ListedMember, MemberLocation, RefusedMember
from ray_app.archives.uri_list_rows import ListEntries
from ray_app.errors import ConfigError, InputError, Status, describe_error
from ray_app.images import sniff_format
from ray_app.storage import Fetcher

T = TypeVar("T")
# Row group, `input`, the bytes of `input`, and False if the image is known to be null without
# reading it. A plain tuple is the fastest type.
Row: TypeAlias = tuple[int, dict[str, Any], int, bool]

_ROWS_AT_ONCE = 4096
_WINDOW = 1 << 18  # Bytes. The images between the columns are not read.
_MAGIC, _MAGIC_ENCRYPTED = b"PAR1", b"PARE"
_MIN_FILE_BYTES = 12  # The magic twice, and the footer's length.
_MIN_RATIO_BYTES = 1_000_000  # A ratio of fewer bytes means nothing.
_ALWAYS_ALLOWED_BYTES = 64 << 20  # For the columns that are not images.
# The limit for a row's other columns, as for a sidecar; `input` only refers to larger cells.
MAX_ROW_BYTES = 64 * 1024
MAX_COLUMNS = 1024
# An encoded image has more than one byte. So a table with more rows than bytes claims rows that it
# does not have, or repeats one row.
_ALWAYS_ALLOWED_ROWS = 4096
# A row is read as a whole, and all images of its list may be copies of one large dictionary entry.
MAX_IMAGES_PER_ROW = 256
_SAMPLE_ROWS, _SAMPLE_CHARS = 16, 4096  # For texts that may be images in base64.

reader = ParquetReader


def index(container: Container, fetcher: Fetcher) -> Iterator[ListedMember]:
    """Yield every row of a table of images as a member, named by the row's number.

    If rows have lists of images, each image is a member, named ROW/NUMBER. If the user named the
    table as a source and it is a list of uris, the files in the list are yielded. Any other table
    is yielded as a single member that is refused.

    Args:
        container: The table.
        fetcher: Reads the table.

    Raises:
        ConfigError: The user named the table and must choose the column that holds the images.
        StorageError: The store is unreachable.
    """
    yield from _open_rows(container, fetcher, _rows)


def index_uris(container: Container, fetcher: Fetcher) -> Iterator[ListedMember]:
    """Yield the file of every row of a table that the user declared a list of uris.

    Other columns of the table, even columns of images, do not matter.

    Args:
        container: The table.
        fetcher: Reads the table.

    Raises:
        ConfigError: The table has no column of uris.
        StorageError: The store is unreachable.
    """
    yield from _open_rows(container, fetcher, _uri_rows)


def read_rows_by(
    column: str, table: Container, fetcher: Fetcher, *, max_cells: int
) -> dict[str, dict[str, Any]]:
    """Read a small table into a dict from the text in one of its columns to the row.

    Each row is a dict of all columns. If several rows have the same text, all of them are left out.

    Args:
        column: The name of the column with the keys.
        table: The table.
        fetcher: Reads the table.
        max_cells: The maximum number of cells, rows times columns.

    Returns:
        The rows by key. Empty if the table has no such column of texts, holds images, cannot be
        read to its end, or has more than `max_cells` cells.

    Raises:
        StorageError: The store did not answer.
    """
    by_key: dict[str, dict[str, Any]] = {}
    duplicate_keys: set[str] = set()
    for row in _open_rows(
        table, fetcher, lambda container, file: _keyed_rows(container, file, column, max_cells)
    ):
        if isinstance(row, ListedMember):
            return {}
        if row[column] in by_key:
            duplicate_keys.add(row[column])
        by_key[row[column]] = row
    return {key: row for key, row in by_key.items() if key not in duplicate_keys}


def _open_rows(
    container: Container, fetcher: Fetcher, rows: Callable[[Container, pq.ParquetFile], Iterator[T]]
) -> Iterator[T | ListedMember]:
    """Yield the rows, and after them the container as a member if its file ends them early."""
    try:
        with fetcher.open(
            container.uri, container.version, container.size_bytes, window=_WINDOW
        ) as file:
            try:
                table, size = open_parquet(file, texts_once=True), file.seek(0, 2)
                if (refused := _refusal(table, size)) is None:
                    yield from rows(replace(container, size_bytes=size), table)
                else:
                    yield container.as_unopened(refused)
            except UNREADABLE as error:
                yield container.as_unopened(_explain_unreadable(file, error))
    except InputError as error:
        yield container.as_unopened(explain_refusal(container, error))


def _refusal(file: pq.ParquetFile, size_bytes: int) -> RefusedMember | None:
    """Return why a table is not listed, as its footer shows; None if it is listed."""
    names, rows = (
        file.schema_arrow.names,
        [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)],
    )
    if len(set(names)) < len(names):
        return RefusedMember(
            Status.UNSUPPORTED_FORMAT, "a Parquet file in which two columns have the same name"
        )
    if len(names) > MAX_COLUMNS:
        return RefusedMember(
            Status.UNSUPPORTED_FORMAT,
            f"a Parquet file with {len(names)} columns; the maximum is {MAX_COLUMNS}",
        )
    if min(rows, default=0) < 0 or sum(rows) > max(_ALWAYS_ALLOWED_ROWS, size_bytes):
        return RefusedMember(
            Status.CORRUPT_IMAGE,
            f"a Parquet file whose footer claims {sum(rows)} rows in {size_bytes} bytes",
        )
    return None


def _rows(container: Container, file: pq.ParquetFile) -> Iterator[ListedMember]:
    try:
        roles = find_roles(
            file.schema_arrow,
            container.columns,
            escape_name(container.path),
            follows_uris=container.named,
        )
    except ConfigError as error:
        if container.named:
            raise
        yield container.as_unopened(
            RefusedMember(Status.UNSUPPORTED_FORMAT, f"{error.message}; {error.hint}")
        )
        return
    if roles.image is not None:
        yield from _image_rows(container, file, roles.image)
    elif roles.uri is not None and container.named:
        yield from _uri_members(container, file, roles.uri)
    elif roles.images is not None:
        yield from _list_image_rows(container, file, roles.images)
    else:
        refused = RefusedMember(
            Status.UNSUPPORTED_FORMAT,
            f"a Parquet file without a column of images{_advice(container, file, roles.uri)}",
        )
        # The table is a file like others, not an unopened container.
        yield ListedMember(
            container.uri, None, 0, container.version, container.size_bytes, refused=refused
        )


def _advice(container: Container, file: pq.ParquetFile, uri: str | None) -> str:
    """Return what a table without a column of images has instead, and what its owner can do."""
    if (nested := find_nested_files(file.schema_arrow)) is not None:
        return f"; it has files in '{nested}', which are not read: write them into a column of structs {{bytes, path}}, or of lists of these"
    if (column := _base64_column(file)) is not None:
        return f"; its column '{column}' has images as base64 text, which is not read: decode it into a column of bytes"
    if uri is not None:
        return f"; to score what its column '{uri}' names, give it as a source of its own: list::{container.uri}"
    return ""


def _base64_column(file: pq.ParquetFile) -> str | None:
    """Return the first column of texts whose first value is an image in base64.

    The value may be a `data:` URL.
    """
    text_columns: list[str] = [field.name for field in file.schema_arrow if is_text(field.type)]
    if not text_columns or not file.metadata.num_row_groups:
        return None
    for batch in islice(file.iter_batches(_SAMPLE_ROWS, [0], text_columns, use_threads=False), 1):
        for name in text_columns:
            value = next(
                (get_buffer(cell).to_pybytes() for cell in batch.column(name) if cell.is_valid), b""
            )
            if _is_image_in_base64(value[:_SAMPLE_CHARS]):
                return name
    return None


def _is_image_in_base64(text: bytes) -> bool:
    start = text.rpartition(b"base64,")[2].strip()
    try:
        return sniff_format(b64decode(start[: len(start) // 4 * 4], validate=True)) is not None
    except ValueError:
        return False


def _uri_rows(container: Container, file: pq.ParquetFile) -> Iterator[ListedMember]:
    column = find_uri_column(file.schema_arrow, container.columns)
    if column is None:
        raise missing_uris_error(escape_name(container.path), file.schema_arrow.names)
    yield from _uri_members(container, file, column)


def _image_rows(container: Container, file: pq.ParquetFile, image: str) -> Iterator[ListedMember]:
    bomb = _check_ratio(container, file)
    for row, (group, values, _, has_image) in enumerate(_Table(container, file, image).rows()):
        if row == container.limits.max_members:
            yield container.as_unopened(
                RefusedMember(
                    Status.UNSAFE_MEMBER,
                    f"more than container_limits.max_members ({row}) rows; further rows are not read",
                )
            )
            return
        refused = bomb if has_image else missing_bytes_refusal(values)
        location = MemberLocation("parquet", row, -1, group, image)
        yield ListedMember(
            container.uri, str(row), 0, container.version, -1, values, location, refused
        )


def _list_image_rows(
    container: Container, file: pq.ParquetFile, images: str
) -> Iterator[ListedMember]:
    """Yield every image of every list; a row with an empty list yields nothing."""
    bomb, count = _check_ratio(container, file), 0
    table = _Table(container, file, images)
    for row, ((group, columns, size_bytes, _), (length, files)) in enumerate(
        zip(table.rows(), _read_lists(file, images), strict=True)
    ):
        location = MemberLocation("parquet", row, -1, group, images)
        if length > MAX_IMAGES_PER_ROW:
            reason = f"a list of {length} images, over {MAX_IMAGES_PER_ROW} in one row: write them into several rows"
            refused = RefusedMember(Status.IMAGE_TOO_LARGE, reason)
            yield ListedMember(
                container.uri, str(row), 0, container.version, -1, columns, location, refused
            )
            continue
        table.count_bytes(size_bytes * max(0, length - 1))  # Each image has the columns of the row.
        for index, (path, is_there) in enumerate(files):
            if count == container.limits.max_members:
                yield container.as_unopened(
                    RefusedMember(
                        Status.UNSAFE_MEMBER,
                        f"more than container_limits.max_members ({count}) images; further images are not read",
                    )
                )
                return
            count += 1
            values = columns if "path" in table.read else {**columns, "path": path}
            member_refused = bomb if is_there else missing_bytes_refusal(values)
            yield ListedMember(
                container.uri,
                f"{row}/{index}",
                0,
                container.version,
                -1,
                values,
                location,
                member_refused,
            )


def _read_lists(
    file: pq.ParquetFile, column: str
) -> Iterator[tuple[int, list[tuple[str | None, bool]]]]:
    """Yield the number of images of each row, and (path, is not null) for the first ones.

    The path is None if the column has no paths. The bytes of images are not read.
    """
    kind = file.schema_arrow.field(column).type
    name = find_length_field(kind)
    assert name is not None, "find_roles chooses no other columns"
    has_path = name == "path" and is_text(kind.value_type.field(name).type)
    for group in range(file.metadata.num_row_groups):
        for batch in file.iter_batches(
            _ROWS_AT_ONCE, [group], find_leaves(file, column, name), use_threads=False
        ):
            cells, start = batch.column(column), 0
            files = cells.flatten()
            for length in pc.fill_null(pc.list_value_length(cells), 0).to_pylist():
                first = files.slice(start, min(length, MAX_IMAGES_PER_ROW))
                paths = first.field(name).to_pylist() if has_path else [None] * len(first)
                yield length, list(zip(paths, first.is_valid().to_pylist(), strict=True))
                start += length


def _uri_members(container: Container, file: pq.ParquetFile, column: str) -> Iterator[ListedMember]:
    yield from ListEntries(container.uri, column).members(
        values for _, values, _, _ in _Table(container, file, None).rows()
    )


def _keyed_rows(
    container: Container, file: pq.ParquetFile, column: str, max_cells: int
) -> Iterator[dict[str, Any]]:
    schema = file.schema_arrow
    is_keyed = (
        column in schema.names
        and is_text(schema.field(column).type)
        and not any(holds_files(field.type) for field in schema)
    )
    if is_keyed and file.metadata.num_rows * len(schema) <= max_cells:
        yield from (
            values
            for _, values, _, _ in _Table(container, file, None).rows()
            if values[column] is not None
        )


def _check_ratio(container: Container, file: pq.ParquetFile) -> RefusedMember | None:
    # Sizes of single columns would be more exact, but pyarrow ends the process if a footer states
    # wrong ones.
    unpacked = sum(
        file.metadata.row_group(group).total_byte_size
        for group in range(file.metadata.num_row_groups)
    )
    if (
        unpacked > _MIN_RATIO_BYTES
        and container.size_bytes > 0
        and unpacked / container.size_bytes > container.limits.max_ratio
    ):
        return RefusedMember(
            Status.IMAGE_TOO_LARGE,
            f"{container.size_bytes} bytes unpack to {unpacked}, over container_limits.max_ratio ({container.limits.max_ratio:g})",
        )
    return None


class _Table:
    """The columns of one table, by how they get into `input`.

    Attributes:
        uri: The table.
        file: The opened table.
        image: The column with the images, None if there is none.
        read: Names of the columns that are read.
        referred: Names of the columns of bytes that `input` only refers to.
        with_path: Names of the columns of bytes, the images included, that have a path.
    """

    def __init__(self, container: Container, file: pq.ParquetFile, image: str | None) -> None:
        self.uri, self.file, self.image = container.uri, file, image
        binary = {
            field.name: field.type
            for field in file.schema_arrow
            if field.name == image or has_binary(field.type)
        }
        self.read = tuple(name for name in file.schema_arrow.names if name not in binary)
        self.referred = tuple(name for name in binary if name != image)
        self.with_path = tuple(name for name, kind in binary.items() if _has_path(kind))
        self._size, self._ratio, self._unpacked_bytes = (
            container.size_bytes,
            container.limits.max_ratio,
            0,
        )

    def count_bytes(self, size: int) -> None:
        """Add to the number of bytes that cells unpack to.

        A text that the file stores once may be in all its rows.

        Args:
            size: The bytes that further cells unpack to.

        Raises:
            InputError: The total exceeds `container_limits.max_ratio`.
        """
        self._unpacked_bytes += size
        if self._unpacked_bytes > max(_ALWAYS_ALLOWED_BYTES, self._size * self._ratio):
            reason = (
                f"{self._size} bytes unpack to {self._unpacked_bytes} bytes of rows, "
                f"over container_limits.max_ratio ({self._ratio:g}); further rows are not read"
            )
            raise InputError(
                Status.IMAGE_TOO_LARGE,
                reason,
                limit=self._ratio,
                observed=self._unpacked_bytes / max(1, self._size),
            )

    def rows(self) -> Iterator[Row]:
        """Yield every row in order."""
        first_row = 0
        for group in range(self.file.metadata.num_row_groups):
            yield from self._group(group, first_row)
            first_row += self.file.metadata.row_group(group).num_rows

    def _group(self, group: int, first_row: int) -> Iterator[Row]:
        """Yield the rows of one row group, whose first row in the file is `first_row`."""
        row, expected = first_row, self.file.metadata.row_group(group).num_rows
        for values, size_bytes, nulls in (
            self._read(group, first_row)
            if self.read or self.with_path
            else (({}, 0, frozenset[str]()) for _ in range(expected))
        ):
            for name in self.referred:
                values[self._unused_name(f"{name}_uri")] = (
                    None if name in nulls else format_reference(self.uri, row, name)
                )
            yield group, values, size_bytes, self.image not in nulls
            row += 1
        if row - first_row != expected:
            raise pa.ArrowInvalid(
                f"row group {group} has {row - first_row} rows, but the footer states {expected}"
            )

    def _read(
        self, group: int, first_row: int
    ) -> Iterator[tuple[dict[str, Any], int, Collection[str]]]:
        features = read_features(self.file.schema_arrow)
        column_names = [*self.read, *(f"{name}.path" for name in self.with_path)]
        for batch in self.file.iter_batches(
            _ROWS_AT_ONCE, [group], column_names, use_threads=False
        ):
            columns = {name: batch.column(name) for name in self.read}
            if self.image in self.with_path and "path" not in columns:
                columns["path"] = pc.struct_field(batch.column(self.image), "path")
            nulls = {name: batch.column(name).is_null().to_pylist() for name in self.with_path}
            sizes = {name: measure_cells(column) for name, column in columns.items()}
            long = _find_long_cells(sizes)
            row_sizes = sum(
                (np.where(long[name], 0, size) for name, size in sizes.items()),
                np.zeros(batch.num_rows, np.int64),
            )
            self.count_bytes(int(row_sizes.sum()))
            columns = {name: null_out(column, long[name]) for name, column in columns.items()}
            rows = (
                to_input_rows(columns, features) if columns else [{} for _ in range(batch.num_rows)]
            )
            for row, (values, size_bytes) in enumerate(zip(rows, row_sizes.tolist(), strict=True)):
                for name in (name for name, is_long in long.items() if is_long[row]):
                    values[self._unused_name(f"{name}_uri")] = format_reference(
                        self.uri, first_row + row, name
                    )
                yield values, size_bytes, [name for name in nulls if nulls[name][row]]
            first_row += batch.num_rows

    def _unused_name(self, name: str) -> str:
        while name in self.read:
            name += "_"
        return name


def _find_long_cells(sizes: Mapping[str, Sizes]) -> dict[str, npt.NDArray[np.bool_]]:
    """Return by column the rows in which a cell exceeds its part of `MAX_ROW_BYTES`.

    Each column gets an equal part. No cell of a row is long if all its columns together fit.
    """
    is_much = sum(sizes.values()) > MAX_ROW_BYTES
    return {name: is_much & (size > MAX_ROW_BYTES // len(sizes)) for name, size in sizes.items()}


def _has_path(kind: pa.DataType) -> bool:
    return (
        is_struct_of_bytes(kind)
        and kind.get_field_index("path") >= 0
        and is_text(kind.field("path").type)
    )


def _explain_unreadable(file: io.RawIOBase, error: BaseException) -> RefusedMember:
    """Return why pyarrow cannot read a file: it is empty, cut, encrypted, or not Parquet."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(4) or b""
    file.seek(max(0, size - 4))
    tail = file.read(4) or b""
    if not size:
        return RefusedMember(Status.EMPTY_FILE, "an empty file: it has no bytes")
    if tail == _MAGIC_ENCRYPTED or head == _MAGIC_ENCRYPTED:
        return RefusedMember(Status.ENCRYPTED_MEMBER, "an encrypted Parquet file")
    if _MAGIC.startswith(head[: min(4, size)]) and (tail != _MAGIC or size < _MIN_FILE_BYTES):
        return RefusedMember(Status.TRUNCATED_IMAGE, "a Parquet file that ends before its footer")
    return RefusedMember(
        classify_error(error), f"not a readable Parquet file: {describe_error(error)}"
    )
