"""Find which column of a user's table holds images or uris, and convert the other columns.

`find_roles` finds the columns of images or uris by their Arrow types and by the metadata that the
Hugging Face library `datasets` writes. `to_input_rows` converts the other columns to the values
that a run keeps for each image in its column `input`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives.members import TableColumns
from ray_app.errors import ConfigError

IMAGE_NAMES = (
    "image",
    "img",
    "picture",
    "photo",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "bytes",
    "content",
    "data",
)
URI_NAMES = ("uri", "url", "image_url", "path", "file_name", "image_path")

Features = Mapping[str, Mapping[str, Any]]
Sizes = npt.NDArray[np.int64]


def read_features(schema: pa.Schema) -> Features:
    """Return the descriptions of columns that the library `datasets` stored in a table's metadata.

    Args:
        schema: The schema of the table.

    Returns:
        A dict such as `{"_type": "Image"}` for each column name. Columns without a valid
        description are left out. Empty if another library wrote the table.
    """
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def is_struct_of_bytes(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is a struct with a field `bytes` that holds an encoded file.

    The Hugging Face library `datasets` stores images as such structs {bytes, path}.
    """
    return any(_is_bytes(_value_type(part)) for part in _bytes_fields(kind))


def holds_files(kind: pa.DataType) -> bool:
    """Return whether a column of an Arrow type can hold one encoded file, such as a JPEG, per row.

    Such types are bytes, and structs {bytes, path} as the library `datasets` writes them.
    """
    return _is_bytes(_value_type(kind)) or is_struct_of_bytes(kind)


def find_length_field(kind: pa.DataType) -> str | None:
    """Find the struct field to read in order to count the images in each row of a list column.

    Reading this field does not read the images. It is `path`, which the library `datasets` writes.
    Without `path`, it is the first field that is not nested and has no bytes.

    Args:
        kind: The Arrow type of the column.

    Returns:
        The name of the field. None if the column does not hold lists of structs with `bytes`, or if
        the struct has no suitable field.
    """
    if not _is_list(kind) or not is_struct_of_bytes(kind.value_type):
        return None
    names = [
        field.name
        for field in kind.value_type
        if not pa.types.is_nested(field.type) and not has_binary(field.type)
    ]
    return "path" if "path" in names else next(iter(names), None)


def find_nested_files(schema: pa.Schema) -> str | None:
    """Return the path of the first field with files that is nested too deeply to be read.

    Examples of paths are `meta.image` and `pages[].scan`. The result is None if no field with files
    is nested too deeply.
    """
    return next(
        (path for field in schema for path in _iter_file_paths(field.type, field.name)), None
    )


def _iter_file_paths(kind: pa.DataType, path: str) -> Iterator[str]:
    if holds_files(kind):
        yield path
    elif _is_struct(kind):
        for field in kind:
            yield from _iter_file_paths(field.type, f"{path}.{field.name}")
    elif has_binary(kind) and kind.num_fields:  # Lists and maps.
        for index in range(kind.num_fields):
            yield from _iter_file_paths(kind.field(index).type, f"{path}[]")


def _bytes_fields(kind: pa.DataType) -> list[pa.DataType]:
    return [field.type for field in kind if field.name == "bytes"] if _is_struct(kind) else []


def _is_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def has_binary(kind: pa.DataType) -> bool:
    """Return whether cells of an Arrow type contain bytes at any depth."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    if pa.types.is_dictionary(kind):
        return has_binary(kind.value_type)
    return (
        _is_bytes(kind)
        or bool(pa.types.is_fixed_size_binary(kind))
        or any(has_binary(kind.field(i).type) for i in range(kind.num_fields))
    )


@dataclass(frozen=True)
class Roles:
    """The columns of a table that hold its images, or the uris of its images.

    Attributes:
        image: The column with one image per row.
        uri: The column with uris; never set together with `image`.
        images: The column with lists of images, if no column has one image per row. It may be set
            together with `uri`.
    """

    image: str | None
    uri: str | None
    images: str | None = None


def find_roles(
    schema: pa.Schema, columns: TableColumns, where: str, *, follows_uris: bool = False
) -> Roles:
    """Find the columns of a table that hold images or uris.

    Columns that the user named come first. Otherwise the columns are found by their types, by the
    metadata of the library `datasets`, and by usual names such as `image` or `url`.

    Args:
        schema: The table's columns.
        columns: The columns of images or uris that the user named, if any.
        where: The table's path, for error messages.
        follows_uris: Whether the files that the table's uris name may be read, because the user
            named the table as a source. If so, a column of uris has priority over lists of images.

    Returns:
        The columns that hold images or uris.

    Raises:
        ConfigError: Several columns may hold the images, or a column that the user named is missing
            or has an unfit type. The message names the columns. If there is a choice, the hint has
            the setting for it.
    """
    if columns.image in schema.names:
        kind = schema.field(columns.image).type
        if find_length_field(kind) is not None:
            return Roles(None, None, columns.image)
        if not holds_files(kind):
            raise ConfigError(
                f"{where}: column '{columns.image}' has the type {kind}, which cannot hold encoded images",
                hint="choose another column with --set columns.image=NAME",
            )
        return Roles(columns.image, None)
    uri = find_uri_column(schema, columns)
    if columns.uri is not None and uri is not None:
        return Roles(None, uri)
    plain, encoded = _file_columns(schema)
    image = None if columns.image is not None else _choose_column(schema, plain, where)
    if image is not None and uri is not None and not _is_surely_images(schema, image):
        raise ConfigError(
            f"{where}: the images may be the bytes in '{image}' or the files that '{uri}' names",
            hint=f"choose with --set columns.image={image} or --set columns.uri={uri}",
        )
    if image is None and uri is None and (columns.image or columns.uri):
        raise missing_column_error(where, columns.image or columns.uri or "", schema.names)
    if image is not None or columns.image is not None or (uri is not None and follows_uris):
        return Roles(image, None if image is not None else uri)
    # Columns that earlier versions did not read come last, so that images in other columns keep
    # their ids.
    image = _choose_column(schema, encoded, where)
    if image is not None and (uri is None or _is_surely_images(schema, image)):
        return Roles(image, None)
    lists = [field.name for field in schema if find_length_field(field.type) is not None]
    return Roles(None, uri, _choose_column(schema, lists, where))


def find_uri_column(schema: pa.Schema, columns: TableColumns) -> str | None:
    """Return the name of the column of uris, None if the table has no such column.

    If the user named a column, only that column counts. Otherwise the result is the text column
    with the most usual name of a column of uris.
    """
    if columns.uri is not None:
        return columns.uri if columns.uri in schema.names else None
    text_columns = {
        field.name.lower(): field.name for field in reversed(schema) if is_text(field.type)
    }
    return next((text_columns[name] for name in URI_NAMES if name in text_columns), None)


def missing_column_error(where: str, name: str, names: Sequence[str]) -> ConfigError:
    """Return the error to raise if a table lacks a column that the user named.

    Args:
        where: The table's path.
        name: The column.
        names: The columns of the table.
    """
    return ConfigError(
        f"{where}: the table has no column '{name}'",
        hint=f"name one of its columns: {', '.join(names) or 'none'}",
    )


def missing_uris_error(where: str, names: Sequence[str]) -> ConfigError:
    """Return the error to raise if no column of a list of uris has a usual name, such as `url`.

    Args:
        where: The path of the list.
        names: The names of its columns.

    Returns:
        The error, whose hint shows how to name the column.
    """
    return ConfigError(
        f"{where}: none of its columns holds uris: {', '.join(names)}",
        hint="name the column: --set columns.uri=NAME; the first line of the list must be its header",
    )


def _file_columns(schema: pa.Schema) -> tuple[list[str], list[str]]:
    """Return the columns with one file in each cell: plain bytes, and files in a dictionary."""
    columns = [field for field in schema if holds_files(field.type)]
    plain = [
        field.name
        for field in columns
        if any(map(_is_bytes, [field.type, *_bytes_fields(field.type)]))
    ]
    return plain, [field.name for field in columns if field.name not in plain]


def _choose_column(schema: pa.Schema, candidates: list[str], where: str) -> str | None:
    """Choose the column that `datasets` declares as images.

    Else it is the only candidate, or the one with the most usual name.
    """
    features = read_features(schema)
    candidates = [name for name in candidates if _is_declared(features.get(name, {}))] or candidates
    if len(candidates) <= 1:
        return candidates[0] if candidates else None
    names = {name.lower(): name for name in reversed(candidates)}
    usual = (*IMAGE_NAMES, *(f"{name}s" for name in IMAGE_NAMES))
    if (usual_name := next((names[name] for name in usual if name in names), None)) is not None:
        return usual_name
    raise ConfigError(
        f"{where}: the images may be in any of the columns {', '.join(candidates)}",
        hint="choose the column: --set columns.image=NAME",
    )


def _is_declared(feature: Mapping[str, Any]) -> bool:
    """Return whether `datasets` declares that a column holds one or several images per row."""
    inner = feature.get("feature")
    return feature.get("_type") == "Image" or (
        isinstance(inner, dict) and inner.get("_type") == "Image"
    )


def _is_surely_images(schema: pa.Schema, name: str) -> bool:
    declared = _is_declared(read_features(schema).get(name, {}))
    return declared or name.lower() in IMAGE_NAMES or is_struct_of_bytes(schema.field(name).type)


def to_input_rows(columns: Mapping[str, pa.Array], features: Features) -> list[dict[str, Any]]:
    """Convert the columns of a table to one dict per row, as members keep them in `input`.

    The dicts have Python values that Arrow can convert back. If a column NAME has the numbers of a
    ClassLabel, a type of the library `datasets`, the class names are added as NAME_name.

    Args:
        columns: The columns by name.
        features: The descriptions that `datasets` wrote, by column name.

    Returns:
        The rows, in order.
    """
    values: dict[str, list[Any]] = {}
    for name, column in columns.items():
        values[name] = _values(column)
        if (names := get_class_names(features.get(name, {}))) and f"{name}_name" not in columns:
            values[f"{name}_name"] = [
                names[v] if isinstance(v, int) and 0 <= v < len(names) else None
                for v in values[name]
            ]
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def get_class_names(feature: Mapping[str, Any]) -> list[str]:
    """Return the class names of a ClassLabel feature, in the order of their numbers.

    The result is empty for other features.
    """
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _values(column: pa.Array) -> list[Any]:
    if isinstance(column.type, pa.BaseExtensionType):
        column = (
            pc.cast(column, column.type.storage_type)
            if isinstance(column, pa.ChunkedArray)
            else column.storage
        )
    kind = column.type
    if (pa.types.is_temporal(kind)) and getattr(kind, "unit", "") == "ns":
        # Python's own dates and times have microseconds at most.
        column = column.cast(_in_microseconds(kind), safe=False)
    elif pa.types.is_uint64(kind):
        column = _to_signed(column)
    try:
        values: list[Any] = column.to_pylist()
    except (pa.ArrowException, OverflowError, ValueError):
        values = [_value(cell) for cell in column]
    if pa.types.is_nested(kind) and _is_beyond_inference(kind):
        return [
            None if value is None else json.dumps(value, default=str, ensure_ascii=False)
            for value in values
        ]
    return values


def _value(cell: pa.Scalar) -> Any:
    """Return a cell's value, or None if Python has none.

    Examples are a date beyond Python's calendar, and text that is not valid UTF-8. Other cells keep
    their values.
    """
    try:
        return cell.as_py()
    except (pa.ArrowException, OverflowError, ValueError):
        return None


def measure_cells(column: pa.Array) -> Sizes:
    """Estimate the bytes that each cell of a column would take outside of its table.

    Use this to find cells that are too large to keep. In a dictionary-encoded column, each cell
    counts its whole value, even if other cells share the value.

    Args:
        column: The column.

    Returns:
        The bytes of each cell. A null among texts or bytes has 0. Each cell of a column of numbers
        or times has the mean size of the column's cells.
    """
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return measure_cells(column.storage)
    if pa.types.is_dictionary(kind):
        sizes = np.append(measure_cells(column.dictionary), 0)  # A null takes 0 bytes.
        return _sizes(
            sizes[pc.fill_null(column.indices.cast(pa.int64()), len(sizes) - 1).to_numpy()]
        )
    if is_text(kind) or _is_bytes(kind):
        view = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
        return _sizes(
            pc.fill_null(pc.binary_length(column.cast(view.get(kind, kind))), 0).to_numpy()
        )
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        cells = [column.keys, column.items] if pa.types.is_map(kind) else [column.values]
        sums, offsets = (
            np.append(0, np.cumsum(sum(map(measure_cells, cells)))),
            column.offsets.to_numpy(),
        )
        return _sizes(sums[offsets[1:]] - sums[offsets[:-1]])
    if pa.types.is_struct(kind):
        return _sizes(sum(map(measure_cells, column.flatten()), np.zeros(len(column), np.int64)))
    return _sizes(np.full(len(column), -(-column.nbytes // max(1, len(column)))))


def _sizes(values: Any) -> Sizes:
    return np.asarray(values, np.int64)


def null_out(column: pa.Array, rows: npt.NDArray[np.bool_]) -> pa.Array:
    """Replace some cells of a column by null, for example cells that are too large to keep.

    Args:
        column: The column. If it is dictionary-encoded, the result is not, so that the values of
            the replaced cells are freed.
        rows: One value per row, which is true for the cells to replace.

    Returns:
        The column with nulls.
    """
    if not rows.any():
        return (
            pc.cast(column, column.type.value_type)
            if pa.types.is_dictionary(column.type)
            else column
        )
    column_with_nulls = column.take(pa.array(np.arange(len(column)), pa.int64(), mask=rows))
    # A cast would reserve the mean size for every cell, which took too much memory.
    return (
        pa.array(column_with_nulls.to_pylist(), column_with_nulls.type.value_type)
        if pa.types.is_dictionary(column_with_nulls.type)
        else column_with_nulls
    )


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us")


def _to_signed(column: pa.Array) -> pa.Array:
    # Arrow converts Python's integers to int64 only.
    largest = pc.max(column).as_py()
    return column if largest is None or largest < 2**63 else column.cast(pa.decimal128(20, 0))


def _is_beyond_inference(kind: pa.DataType) -> bool:
    """Return whether Arrow cannot infer a nested type from its Python values.

    That holds for maps, unions, nanoseconds and extensions inside the type. It also holds for
    structs without fields, which Parquet cannot store.
    """
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_map(kind) or pa.types.is_union(kind):
        return True
    if pa.types.is_struct(kind) and not kind.num_fields:
        return True
    if (pa.types.is_temporal(kind) and getattr(kind, "unit", "") == "ns") or pa.types.is_uint64(
        kind
    ):
        return True
    return any(_is_beyond_inference(kind.field(i).type) for i in range(kind.num_fields))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is a string type, plain or dictionary-encoded."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )
