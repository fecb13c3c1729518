"""List Parquet tables of encoded images, as the Hugging Face hub writes them (`index`, `reader`,
`index_uris`, `rows_by`).

A row is a member. If rows have lists of images, an image of a list is a member, named ROW/NUMBER.

Indexing reads the footer and every column but the images' bytes, row group by row group. Other
columns of bytes (masks, depth maps) are left where they are, and so are long texts: `input` gets a
reference, NAME_uri, that `read_referenced` follows. A table without images but with uris is a list,
whose rows are files of their own, if the user named it as a source; in a folder it is a file like
others.
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
    cell_bytes,
    features_of,
    field_beside_bytes,
    has_binary,
    holds_files,
    input_rows,
    is_struct_of_bytes,
    is_text,
    nested_files,
    no_uris,
    roles_of,
    uri_column,
    without,
)
from ray_app.archives.containers.base import Container, printable, why_closed
from ray_app.archives.containers.parquet_reader import (
    UNREADABLE,
    ParquetReader,
    buffer_of,
    fault,
    leaves_of,
    no_bytes,
    open_parquet,
    reference,
)
from ray_app.archives.members import ListedMember, MemberLocation, RefusedMember
from ray_app.archives.uri_list_rows import ListEntries
from ray_app.errors import ConfigError, InputError, Status, describe_error
from ray_app.images import sniff_format
from ray_app.storage import Fetcher

T = TypeVar("T")
# Row group, `input`, the bytes of `input`, and False if the image is known to be null without
# reading it. A plain tuple is the fastest.
Row: TypeAlias = tuple[int, dict[str, Any], int, bool]

_ROWS_AT_ONCE = 4096
_WINDOW = 1 << 18  # between the columns that are read lie the images, which are not
_MAGIC, _MAGIC_ENCRYPTED = b"PAR1", b"PARE"
_SMALLEST = 12  # the magic twice, and the footer's length
_SMALL = 1_000_000  # bytes below which a ratio says nothing
_ALWAYS_ALLOWED = 64 << 20  # of columns beside the images
# of a row's other columns, as of a sidecar: what is more is only referred to
MAX_ROW_BYTES = 64 * 1024
MAX_COLUMNS = 1024
# An encoded image has more bytes than one, so that a longer table claims rows that it has not, or
# the same one over and over.
_FEW_ROWS = 4096
# A row is read as a whole. All images of its list may be copies of one large entry of a dictionary.
MAX_IMAGES_PER_ROW = 256
_SAMPLE_ROWS, _SAMPLE_LETTERS = 16, 4096  # of texts that may be images in base64

reader = ParquetReader


def index(container: Container, fetcher: Fetcher) -> Iterator[ListedMember]:
    """Every row, as a member named by its number, or, of a table that the user named, as the file
    that a list's row names. Raises as `ContainerFormat.index`, and of such a table ConfigError
    where the user has to say which column holds the images.
    """
    yield from _opened(container, fetcher, _rows)


def index_uris(container: Container, fetcher: Fetcher) -> Iterator[ListedMember]:
    """Every row of a table that its user calls a list, whatever other columns it has. Raises
    ConfigError where it has no uris.
    """
    yield from _opened(container, fetcher, _listed)


def rows_by(
    column: str, table: Container, fetcher: Fetcher, *, most: int
) -> dict[str, dict[str, Any]]:
    """The columns of every row by the text in one of them; without rows that share theirs.

    Nothing of a table that has no such column, holds images, cannot be read to its end or has more
    than `most` cells. Raises StorageError where the store gives no answer.
    """
    found: dict[str, dict[str, Any]] = {}
    shared: set[str] = set()
    for row in _opened(
        table, fetcher, lambda container, file: _keyed(container, file, column, most)
    ):
        if isinstance(row, ListedMember):
            return {}
        if row[column] in found:
            shared.add(row[column])
        found[row[column]] = row
    return {key: row for key, row in found.items() if key not in shared}


def _opened(
    container: Container, fetcher: Fetcher, rows: Callable[[Container, pq.ParquetFile], Iterator[T]]
) -> Iterator[T | ListedMember]:
    """The rows, and after them the container itself where its file ends them early."""
    try:
        with fetcher.open(
            container.uri, container.version, container.size_bytes, window=_WINDOW
        ) as file:
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
    names, rows = (
        file.schema_arrow.names,
        [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)],
    )
    if len(set(names)) < len(names):
        return RefusedMember(
            Status.UNSUPPORTED_FORMAT, "a Parquet file with two columns of one name"
        )
    if len(names) > MAX_COLUMNS:
        return RefusedMember(
            Status.UNSUPPORTED_FORMAT,
            f"a Parquet file with {len(names)} columns, more than {MAX_COLUMNS}",
        )
    if min(rows, default=0) < 0 or sum(rows) > max(_FEW_ROWS, size_bytes):
        return RefusedMember(
            Status.CORRUPT_IMAGE,
            f"a Parquet file whose footer claims {sum(rows)} rows in {size_bytes} bytes",
        )
    return None


def _rows(container: Container, file: pq.ParquetFile) -> Iterator[ListedMember]:
    try:
        roles = roles_of(
            file.schema_arrow,
            container.columns,
            printable(container.path),
            follows_uris=container.named,
        )
    except ConfigError as error:
        if container.named:
            raise
        yield container.itself(
            RefusedMember(Status.UNSUPPORTED_FORMAT, f"{error.message}; {error.hint}")
        )
        return
    if roles.image is not None:
        yield from _images(container, file, roles.image)
    elif roles.uri is not None and container.named:
        yield from _uris(container, file, roles.uri)
    elif roles.images is not None:
        yield from _images_of_lists(container, file, roles.images)
    else:
        why = RefusedMember(
            Status.UNSUPPORTED_FORMAT,
            f"a Parquet file without a column of images{_advice(container, file, roles.uri)}",
        )
        # a file like others
        yield ListedMember(
            container.uri, None, 0, container.version, container.size_bytes, refused=why
        )


def _advice(container: Container, file: pq.ParquetFile, uri: str | None) -> str:
    """Return what a table without a column of images has instead, and what its owner can do."""
    if (place := nested_files(file.schema_arrow)) is not None:
        return f"; it has files in '{place}', which are not read: write them into a column of structs {{bytes, path}}, or of lists of these"
    if (column := _base64_column(file)) is not None:
        return f"; its column '{column}' has images as base64 text, which is not read: decode it into a column of bytes"
    if uri is not None:
        return f"; to score what its column '{uri}' names, give it as a source of its own: list::{container.uri}"
    return ""


def _base64_column(file: pq.ParquetFile) -> str | None:
    """Return the first column of texts whose first value is an image in base64, perhaps as a
    `data:` URL.
    """
    texts: list[str] = [field.name for field in file.schema_arrow if is_text(field.type)]
    if not texts or not file.metadata.num_row_groups:
        return None
    for batch in islice(file.iter_batches(_SAMPLE_ROWS, [0], texts, use_threads=False), 1):
        for name in texts:
            value = next(
                (buffer_of(cell).to_pybytes() for cell in batch.column(name) if cell.is_valid), b""
            )
            if _is_image_in_base64(value[:_SAMPLE_LETTERS]):
                return name
    return None


def _is_image_in_base64(text: bytes) -> bool:
    start = text.rpartition(b"base64,")[2].strip()
    try:
        return sniff_format(b64decode(start[: len(start) // 4 * 4], validate=True)) is not None
    except ValueError:
        return False


def _listed(container: Container, file: pq.ParquetFile) -> Iterator[ListedMember]:
    column = uri_column(file.schema_arrow, container.columns)
    if column is None:
        raise no_uris(printable(container.path), file.schema_arrow.names)
    yield from _uris(container, file, column)


def _images(container: Container, file: pq.ParquetFile, image: str) -> Iterator[ListedMember]:
    bomb = _bomb(container, file)
    for number, (group, values, _, has_image) in enumerate(_Table(container, file, image).rows()):
        if number == container.limits.max_members:
            yield container.itself(
                RefusedMember(
                    Status.UNSAFE_MEMBER, f"more than {number} rows; further ones are not read"
                )
            )
            return
        refused = bomb if has_image else no_bytes(values)
        place = MemberLocation("parquet", number, -1, group, image)
        yield ListedMember(
            container.uri, str(number), 0, container.version, -1, values, place, refused
        )


def _images_of_lists(
    container: Container, file: pq.ParquetFile, images: str
) -> Iterator[ListedMember]:
    """Yield every image of every list; rows with empty lists have none."""
    bomb, count = _bomb(container, file), 0
    table = _Table(container, file, images)
    for number, ((group, columns, size_bytes, _), (length, files)) in enumerate(
        zip(table.rows(), _lists(file, images), strict=True)
    ):
        place = MemberLocation("parquet", number, -1, group, images)
        if length > MAX_IMAGES_PER_ROW:
            reason = f"a list of {length} images, over {MAX_IMAGES_PER_ROW} in one row: write them into several rows"
            refused = RefusedMember(Status.IMAGE_TOO_LARGE, reason)
            yield ListedMember(
                container.uri, str(number), 0, container.version, -1, columns, place, refused
            )
            continue
        table.take(size_bytes * max(0, length - 1))  # each image has the columns of the row
        for item, (path, is_there) in enumerate(files):
            if count == container.limits.max_members:
                yield container.itself(
                    RefusedMember(
                        Status.UNSAFE_MEMBER, f"more than {count} images; further ones are not read"
                    )
                )
                return
            count += 1
            values = columns if "path" in table.read else {**columns, "path": path}
            why = bomb if is_there else no_bytes(values)
            yield ListedMember(
                container.uri, f"{number}/{item}", 0, container.version, -1, values, place, why
            )


def _lists(
    file: pq.ParquetFile, column: str
) -> Iterator[tuple[int, list[tuple[str | None, bool]]]]:
    """Yield how many images each row has, and for each of the first ones its path, if it has one,
    and whether the image is there.

    The bytes of images are not read.
    """
    kind = file.schema_arrow.field(column).type
    name = field_beside_bytes(kind)
    assert name is not None, "roles_of chooses no other columns"
    has_path = name == "path" and is_text(kind.value_type.field(name).type)
    for group in range(file.metadata.num_row_groups):
        for batch in file.iter_batches(
            _ROWS_AT_ONCE, [group], leaves_of(file, column, name), use_threads=False
        ):
            cells, start = batch.column(column), 0
            files = cells.flatten()
            for length in pc.fill_null(pc.list_value_length(cells), 0).to_pylist():
                first = files.slice(start, min(length, MAX_IMAGES_PER_ROW))
                paths = first.field(name).to_pylist() if has_path else [None] * len(first)
                yield length, list(zip(paths, first.is_valid().to_pylist(), strict=True))
                start += length


def _uris(container: Container, file: pq.ParquetFile, column: str) -> Iterator[ListedMember]:
    yield from ListEntries(container.uri, column).members(
        values for _, values, _, _ in _Table(container, file, None).rows()
    )


def _keyed(
    container: Container, file: pq.ParquetFile, column: str, most: int
) -> Iterator[dict[str, Any]]:
    schema = file.schema_arrow
    is_keyed = (
        column in schema.names
        and is_text(schema.field(column).type)
        and not any(holds_files(field.type) for field in schema)
    )
    if is_keyed and file.metadata.num_rows * len(schema) <= most:
        yield from (
            values
            for _, values, _, _ in _Table(container, file, None).rows()
            if values[column] is not None
        )


def _bomb(container: Container, file: pq.ParquetFile) -> RefusedMember | None:
    # Sizes of single columns would say it more exactly, but pyarrow ends the process on footers
    # that lie in those.
    unpacked = sum(
        file.metadata.row_group(group).total_byte_size
        for group in range(file.metadata.num_row_groups)
    )
    if (
        unpacked > _SMALL
        and container.size_bytes > 0
        and unpacked / container.size_bytes > container.limits.max_ratio
    ):
        return RefusedMember(
            Status.IMAGE_TOO_LARGE,
            f"a table that unpacks from {container.size_bytes} to {unpacked} bytes",
        )
    return None


class _Table:
    """Which columns of one file are read for `input`, which are only referred to, and which of both
    images and those have a path.
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
        self._size, self._ratio, self._taken = container.size_bytes, container.limits.max_ratio, 0

    def take(self, size: int) -> None:
        """Count what cells unpack to: a text that stands in the file once may be in all its rows.
        Raises InputError once it is too much.
        """
        self._taken += size
        if self._taken > max(_ALWAYS_ALLOWED, self._size * self._ratio):
            reason = f"{self._taken} bytes of rows in {self._size}, over max_ratio ({self._ratio:g}); further ones are not read"
            raise InputError(
                Status.IMAGE_TOO_LARGE,
                reason,
                limit=self._ratio,
                observed=self._taken / max(1, self._size),
            )

    def rows(self) -> Iterator[Row]:
        """Every row in order."""
        first_row = 0
        for group in range(self.file.metadata.num_row_groups):
            yield from self._group(group, first_row)
            first_row += self.file.metadata.row_group(group).num_rows

    def _group(self, group: int, first_row: int) -> Iterator[Row]:
        """The rows of one row group, whose first row in the file is `first_row`."""
        row, expected = first_row, self.file.metadata.row_group(group).num_rows
        for values, size_bytes, nulls in (
            self._read(group, first_row)
            if self.read or self.with_path
            else (({}, 0, frozenset[str]()) for _ in range(expected))
        ):
            for name in self.referred:
                values[self._free(f"{name}_uri")] = (
                    None if name in nulls else reference(self.uri, row, name)
                )
            yield group, values, size_bytes, self.image not in nulls
            row += 1
        if row - first_row != expected:
            raise pa.ArrowInvalid(
                f"row group {group} has {row - first_row} rows, its footer says {expected}"
            )

    def _read(
        self, group: int, first_row: int
    ) -> Iterator[tuple[dict[str, Any], int, Collection[str]]]:
        features = features_of(self.file.schema_arrow)
        wanted = [*self.read, *(f"{name}.path" for name in self.with_path)]
        for batch in self.file.iter_batches(_ROWS_AT_ONCE, [group], wanted, use_threads=False):
            columns = {name: batch.column(name) for name in self.read}
            if self.image in self.with_path and "path" not in columns:
                columns["path"] = pc.struct_field(batch.column(self.image), "path")
            nulls = {name: batch.column(name).is_null().to_pylist() for name in self.with_path}
            sizes = {name: cell_bytes(column) for name, column in columns.items()}
            long = _long(sizes)
            row_sizes = sum(
                (np.where(long[name], 0, size) for name, size in sizes.items()),
                np.zeros(batch.num_rows, np.int64),
            )
            self.take(int(row_sizes.sum()))
            columns = {name: without(column, long[name]) for name, column in columns.items()}
            rows = input_rows(columns, features) if columns else [{} for _ in range(batch.num_rows)]
            for row, (values, size_bytes) in enumerate(zip(rows, row_sizes.tolist(), strict=True)):
                for name in (name for name, is_long in long.items() if is_long[row]):
                    values[self._free(f"{name}_uri")] = reference(self.uri, first_row + row, name)
                yield values, size_bytes, [name for name in nulls if nulls[name][row]]
            first_row += batch.num_rows

    def _free(self, name: str) -> str:
        while name in self.read:
            name += "_"
        return name


def _long(sizes: Mapping[str, Sizes]) -> dict[str, npt.NDArray[np.bool_]]:
    """For each column the rows in which it takes more than its share, where all columns together
    take too much.
    """
    is_much = sum(sizes.values()) > MAX_ROW_BYTES
    return {name: is_much & (size > MAX_ROW_BYTES // len(sizes)) for name, size in sizes.items()}


def _has_path(kind: pa.DataType) -> bool:
    return (
        is_struct_of_bytes(kind)
        and kind.get_field_index("path") >= 0
        and is_text(kind.field("path").type)
    )


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
