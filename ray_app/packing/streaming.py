"""Tables larger than memory → one Parquet file, one CSV file of a store: grown in a local file, published whole."""

import json
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ray_app.packing.packed import plain
from ray_app.storage import Store

_FORMULA, _SIGNED = r"^[=+\-@\t\r\n＝＋－＠]", r"^[+-][0-9]+(\.[0-9]+)?$"


def write_tables(store: Store, stem: str, schema: pa.Schema, tables: Iterable[pa.Table], *, csv: bool = False) -> int:
    """Write STEM.parquet, and STEM.csv where asked for, from tables of one schema; returns the number of rows.

    Parquet holds the values as they are. In the CSV, nested columns are JSON text, and a text that a spreadsheet would run as a formula
    has an apostrophe before it: members' names are a stranger's.
    """
    rows = 0
    flat = pa.schema([pa.field(field.name, _flat(field.type)) for field in schema])
    header = pa.schema([pa.field(name, field.type) for name, field in zip(_tame(pa.array(flat.names)).to_pylist(), flat, strict=True)])
    with tempfile.TemporaryDirectory(prefix="touchstone-list-") as folder, ExitStack() as files:
        parquet, text = Path(folder) / "rows.parquet", Path(folder) / "rows.csv"
        columns = files.enter_context(pq.ParquetWriter(parquet, schema, compression="zstd"))
        lines = files.enter_context(pa_csv.CSVWriter(text, header)) if csv else None
        for table in tables:
            columns.write_table(table)
            if lines is not None:
                lines.write_table(_flattened(table, header))
            rows += len(table)
        files.close()
        store.write_file(f"{stem}.parquet", parquet)
        if csv:
            store.write_file(f"{stem}.csv", text)
    return rows


def _flat(kind: pa.DataType) -> pa.DataType:
    """The type itself where a CSV has a way to say it, else text."""
    is_number = pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind) or pa.types.is_boolean(kind)
    return kind if is_number or pa.types.is_date(kind) or pa.types.is_timestamp(kind) else pa.string()


def _flattened(table: pa.Table, flat: pa.Schema) -> pa.Table:
    columns = [_as_text(column, field.type) for column, field in zip(table.columns, flat, strict=True)]
    return pa.Table.from_arrays(columns, schema=flat)


def _as_text(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type != kind:
        column = pa.chunked_array([pa.array([None if value is None else _text(value) for value in column.to_pylist()], kind)])
    return _tame(column) if pa.types.is_string(kind) else column


def _tame(texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Texts of which none begins as a formula does (OWASP, CSV injection); a number with a sign stays one."""
    is_formula = pc.and_not(pc.match_substring_regex(texts, _FORMULA), pc.match_substring_regex(texts, _SIGNED))
    return pc.if_else(is_formula, pc.binary_join_element_wise("'", texts, ""), texts)


def _text(value: Any) -> str:
    value = plain(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
