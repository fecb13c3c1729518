"""Members as Arrow rows and back. Knows the columns of a manifest; knows neither files nor blocks.

The struct column `input` is there only when the source has columns of its own: Parquet knows no struct without fields. What a list has in
one column is of one type, or the list is refused; what several tables in an archive have under one name becomes text where no type holds
both, since no table there is to stop a run.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.archives.members import Described, Ids, Listed, Member, Place, Refused
from ray_app.errors import ConfigError, Status, one_line

MOST_BYTES = 2**48  # no store has a larger object; what states more counts as not known, and the sum of a block overflows nothing
_PLACE = pa.struct([("kind", pa.string()), ("offset", pa.int64()), ("length", pa.int64()), ("group", pa.int64()), ("column", pa.string())])
_REFUSED = pa.struct([("status", pa.string()), ("detail", pa.string())])

_LISTED = [
    pa.field("image_id", pa.int64(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("member", pa.string()),
    pa.field("occurrence", pa.int32(), nullable=False),
    pa.field("version", pa.string(), nullable=False),
    pa.field("size_bytes", pa.int64(), nullable=False),
]
_CUT = [pa.field("block", pa.int32(), nullable=False), pa.field("slot", pa.int32(), nullable=False)]
_REST = [pa.field("place", _PLACE), pa.field("refused", _REFUSED)]


def manifest_schema(input_type: pa.StructType | None) -> pa.Schema:
    """The columns of a manifest."""
    return pa.schema([*_LISTED, *_CUT, *_REST, *([pa.field("input", input_type)] if input_type is not None else [])])


def listed_rows(ids: Ids, items: Sequence[Listed]) -> pa.Table:
    """Members that are not cut into blocks yet. Raises ConfigError for a list's column whose values are of several types."""
    columns = [
        pa.array(ids, pa.int64()),
        pa.array([item.uri for item in items], pa.string()),
        pa.array([item.member for item in items], pa.string()),
        pa.array([item.occurrence for item in items], pa.int32()),
        pa.array([item.version for item in items], pa.string()),
        pa.array([item.size_bytes if item.size_bytes <= MOST_BYTES else -1 for item in items], pa.int64()),
        _struct([item.place for item in items], _PLACE),
        _struct([item.refused and replace(item.refused, detail=one_line(item.refused.detail)) for item in items], _REFUSED),
    ]
    fields = [*_LISTED, *_REST]
    if inputs := _inputs([item.input for item in items], as_text=any(map(is_told_by_archive, items))):
        columns.append(inputs)
        fields.append(pa.field("input", inputs.type))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def is_told_by_archive(item: Listed) -> bool:
    """Whether a member's columns are of the archive, and not of a list that its user named."""
    return item.place is not None or isinstance(item, Described)


def cut_rows(listed: pa.Table, block: int, schema: pa.Schema) -> pa.Table:
    """The same members as one block of a manifest, in their slots; those of 0.3.0 had neither `place` nor `refused`."""
    count = len(listed)
    columns: dict[str, Any] = {field.name: pa.nulls(count, field.type) for field in _REST}
    columns |= {name: listed[name] for name in listed.schema.names}
    columns |= {"block": pa.array(np.full(count, block, np.int32)), "slot": pa.array(np.arange(count, dtype=np.int32))}
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def input_type(table: pa.Table) -> pa.StructType | None:
    """The type of the source's own columns; None where it has none."""
    return table.schema.field("input").type if "input" in table.schema.names else None


def with_input(table: pa.Table, wanted: pa.StructType | None) -> pa.Table:
    """The table with `input` as a wider type: what it does not have is null."""
    if wanted is None or input_type(table) == wanted:
        return table
    count = len(table)
    if "input" not in table.schema.names:
        return table.append_column(pa.field("input", wanted), pa.nulls(count, wanted))
    given = table["input"].combine_chunks()
    names = [field.name for field in given.type]
    children = [as_type(given.field(field.name), field.type) if field.name in names else pa.nulls(count, field.type) for field in wanted]
    whole = pa.StructArray.from_arrays(children, fields=list(wanted), mask=given.is_null())
    return table.set_column(table.schema.get_field_index("input"), pa.field("input", wanted), whole)


def joined_inputs(types: Iterable[pa.StructType | None], *, as_text: bool) -> pa.StructType | None:
    """The type that holds all of these. A column of two types which no third holds becomes text, or raises ConfigError naming it."""
    joined: dict[str, pa.DataType] = {}
    for one in types:
        for field in one or ():
            before = joined.get(field.name, field.type)
            joined[field.name] = before if before == field.type else _wider(field.name, before, field.type, as_text=as_text)
    return pa.struct(list(joined.items())) if joined else None


def as_type(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column as a type that `joined_inputs` found; what is no text becomes one as JSON writes it."""
    if pa.types.is_string(kind) and not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return pa.array([_text(value) for value in column.to_pylist()], kind)
    if column.type == kind:
        return column
    # pyarrow 26 loses its way where it casts slices of lists within lists.
    return pa.array(column.to_pylist(), kind) if pa.types.is_nested(kind) else column.cast(kind)


def settled(kind: pa.StructType | None) -> pa.StructType | None:
    """The type as files keep it: a column without any value becomes one of texts."""
    return kind and pa.struct([(field.name, pa.string() if pa.types.is_null(field.type) else field.type) for field in kind])


def member_rows(block: pa.Table) -> list[Member]:
    """A block's rows as members."""
    return [_member(Member, row) for row in block.to_pylist()]


def listed_row(row: dict[str, Any]) -> Listed:
    """One row, cut or not, as its source listed it."""
    listed: Listed = _member(Listed, {name: value for name, value in row.items() if name not in ("image_id", "block", "slot")})
    return listed


def _member(kind: Callable[..., Any], row: dict[str, Any]) -> Any:
    place, refused = row.pop("place", None), row.pop("refused", None)
    return kind(
        **row | {"input": row.get("input") or {}},
        place=None if place is None else Place(**place),
        refused=None if refused is None else Refused(Status(refused["status"]), refused["detail"]),
    )


def _struct(values: Sequence[Any], kind: pa.StructType) -> pa.Array:
    is_null = np.array([value is None for value in values], bool)
    if is_null.all():
        return pa.nulls(len(values), kind)
    children = [pa.array([None if value is None else getattr(value, field.name) for value in values], field.type) for field in kind]
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=pa.array(is_null))


def _inputs(inputs: Sequence[dict[str, Any]], *, as_text: bool) -> pa.Array | None:
    names = list(dict.fromkeys(name for one in inputs for name in one))
    if not names:
        return None
    return pa.StructArray.from_arrays([_column(name, [one.get(name) for one in inputs], as_text=as_text) for name in names], names)


def _column(name: str, values: list[Any], *, as_text: bool) -> pa.Array:
    try:
        column = pa.array(values)
        if _has_times(column.type):
            column.to_pylist()  # the ends of Python's calendar lie beyond it in other time zones
        return column
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        if as_text:
            return pa.array([_text(value) for value in values], pa.string())
        kinds = sorted({type(value).__name__ for value in values if value is not None})
        raise _clash(name, " and ".join(kinds)) from None


def _has_times(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind)) or any(_has_times(kind.field(i).type) for i in range(kind.num_fields))


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False).strip('"')


def _wider(name: str, one: pa.DataType, other: pa.DataType, *, as_text: bool) -> pa.DataType:
    try:
        schemas = [pa.schema([(name, kind)]) for kind in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        if as_text:
            return pa.string()
        raise _clash(name, f"{one} and {other}") from None


def _clash(name: str, kinds: str) -> ConfigError:
    return ConfigError(
        f"column '{name}' of the source holds both {kinds}", hint="make its values of one type, or score the parts as runs of their own"
    )
