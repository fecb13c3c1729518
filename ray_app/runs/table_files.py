"""Write a stream of tables to a Parquet or CSV file, with one table in memory (`write_tables`).

`to_json_value` converts a value of a column for JSON.
"""

import base64
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ray_app.storage import Store

Form = Literal["parquet", "csv"]
_FORMULA, _SIGNED = r"^[=+\-@\t\r\n＝＋－＠]", r"^[+-][0-9]+(\.[0-9]+)?$"


def to_json_value(value: Any) -> Any:
    """Convert a value of a column to a value that JSON can represent.

    Bytes become base64, times become ISO 8601, and numbers that are not finite become null.
    """
    if isinstance(value, Mapping):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_value(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def write_tables(
    store: Store,
    stem: str,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    *,
    forms: Sequence[Form] = ("parquet",),
) -> int:
    """Write STEM.parquet or STEM.csv, or both, from tables of one schema.

    Parquet contains the values unchanged. In CSV, nested columns are JSON text. A text that a
    spreadsheet would run as a formula gets a leading apostrophe, because file names come from
    untrusted sources.

    Args:
        store: The store to write to.
        stem: The path of the files without the ending.
        schema: The schema of the tables.
        tables: The tables.
        forms: The formats to write.

    Returns:
        The number of rows.
    """
    rows = 0
    flat = pa.schema([pa.field(field.name, _flat(field.type)) for field in schema])
    header = pa.schema(
        [
            pa.field(name, field.type)
            for name, field in zip(_escape(pa.array(flat.names)).to_pylist(), flat, strict=True)
        ]
    )
    with tempfile.TemporaryDirectory(prefix="touchstone-list-") as folder, ExitStack() as files:
        paths = {form: Path(folder) / f"rows.{form}" for form in forms}
        columns = (
            files.enter_context(pq.ParquetWriter(paths["parquet"], schema, compression="zstd"))
            if "parquet" in paths
            else None
        )
        lines = (
            files.enter_context(pa_csv.CSVWriter(paths["csv"], header)) if "csv" in paths else None
        )
        for table in tables:
            if columns is not None:
                columns.write_table(table)
            if lines is not None:
                texts = [
                    _as_text(column, field.type)
                    for column, field in zip(table.columns, header, strict=True)
                ]
                lines.write_table(pa.Table.from_arrays(texts, schema=header))
            rows += len(table)
        files.close()
        for form, path in paths.items():
            store.write_file(f"{stem}.{form}", path)
    return rows


def _flat(kind: pa.DataType) -> pa.DataType:
    """Return the type itself if CSV can represent it, else text."""
    is_number = (
        pa.types.is_integer(kind)
        or pa.types.is_float32(kind)
        or pa.types.is_float64(kind)
        or pa.types.is_boolean(kind)
    )
    return (
        kind if is_number or pa.types.is_date(kind) or pa.types.is_timestamp(kind) else pa.string()
    )


def _as_text(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type != kind:
        column = pa.chunked_array(
            [
                pa.array(
                    [None if value is None else _text(value) for value in column.to_pylist()], kind
                )
            ]
        )
    return _escape(column) if pa.types.is_string(kind) else column


def _escape(texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Escape texts that begin like a formula (OWASP, CSV injection), but not signed numbers."""
    is_formula = pc.and_not(
        pc.match_substring_regex(texts, _FORMULA), pc.match_substring_regex(texts, _SIGNED)
    )
    return pc.if_else(is_formula, pc.binary_join_element_wise("'", texts, ""), texts)


def _text(value: Any) -> str:
    value = to_json_value(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
