"""Read tables in text files of users: CSV, TSV, and JSON lines.

`csv_tables` and `json_tables` yield Arrow tables. `json_rows` yields one dict per line, and
`read_chunks` yields chunks of whole lines.

A table may be larger than memory, so it is read in chunks of whole lines. A malformed table raises
pa.ArrowException, ValueError (of which UnicodeDecodeError is a subclass), or OSError. The message
names the line or the column; callers add the file's name. Texts are UTF-8, UTF-16, or UTF-32. A CSV
may have semicolons, tabs, or bars in place of commas (`text_encoding`).
"""

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.json as pjson

from ray_app.archives.text_encoding import find_delimiter, utf8_chunks

_CHUNK_BYTES = 1 << 20
_MAX_LINE_BYTES = 16 << 20  # A longer line means that the file is not a list.
# The first line of some CSV files that Excel writes.
_SEPARATOR_LINE = re.compile(rb"sep=(.)\r?\n", re.IGNORECASE)
_MAX_DEPTH = 64  # Nested brackets. pyarrow's parser ends the process at some ten thousand.


def csv_tables(
    file: Any,
    *,
    delimiter: str = ",",
    columns: Sequence[str] | None = None,
    text_columns: Callable[[list[str]], Collection[str]] = list,
    size: int | None = None,
) -> Iterator[pa.Table]:
    """Read a CSV file, and yield one Arrow table for each chunk of lines.

    An empty field is null. A line break inside double quotes does not end a row.

    Args:
        file: The file, opened in binary mode.
        delimiter: The separator that the file's name suggests. `find_delimiter` finds the real one
            in the header.
        columns: The columns to read, None for all.
        text_columns: A function from the names in the header to the columns that stay texts exactly
            as written (`007`, `1e5`, `NA`). The types of other columns are inferred for each table
            from its values.
        size: About how many bytes a chunk has, None for 1 MiB.

    Raises:
        ArrowException: The table is malformed.
        UnicodeDecodeError: The file is not in the encoding that its first bytes show.
    """
    names: list[str] | None = None
    kinds: dict[str, pa.DataType] = {}
    for chunk in read_chunks(file, quoted=True, size=size):
        is_first = names is None
        if names is None:
            chunk, names, delimiter = _read_header(chunk, delimiter)
            kinds = dict.fromkeys(text_columns(names), pa.string())
        read = pcsv.ReadOptions(
            column_names=None if is_first else names, use_threads=False, block_size=len(chunk) + 1
        )
        parse = pcsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        convert = pcsv.ConvertOptions(
            column_types=kinds, null_values=[""], strings_can_be_null=True, include_columns=columns
        )
        yield pcsv.read_csv(io.BytesIO(chunk), read, parse, convert)


def _read_header(chunk: bytes, expected: str) -> tuple[bytes, list[str], str]:
    """Return the first chunk of a CSV from its header on, its column names, and the separator.

    Empty lines and a line `sep=;` before the header are removed.

    Raises:
        ArrowInvalid: The header cannot be read.
    """
    chunk = chunk.lstrip(b"\r\n")
    if line := _SEPARATOR_LINE.match(chunk):
        chunk, delimiter = chunk[line.end() :], line[1].decode()
    else:
        delimiter = find_delimiter(chunk.partition(b"\n")[0].decode(), expected)
    try:
        return (
            chunk,
            next(csv.reader(io.StringIO(chunk.decode(), newline=""), delimiter=delimiter), []),
            delimiter,
        )
    except csv.Error as error:
        raise pa.ArrowInvalid(
            f"its first line cannot be read ({error}); is a quotation mark missing?"
        ) from None


def check_names_unique(names: list[str]) -> list[str]:
    """Check that no column name occurs twice, and return the names unchanged.

    Args:
        names: The names of the columns in a header.

    Raises:
        ArrowInvalid: A name occurs twice.
    """
    if len(set(names)) < len(names):
        raise pa.ArrowInvalid(
            f"its first line must name each column once, but is: {', '.join(map(repr, names))}"
        )
    return names


def json_rows(file: Any, size: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON lines file one by one. Empty lines are skipped.

    Args:
        file: The file, opened in binary mode.
        size: About how many bytes to read at once, None for 1 MiB.

    Raises:
        ArrowInvalid: Objects are nested too deeply.
        ValueError: A line is not a JSON object.
    """
    line_number = 0
    for chunk in read_chunks(file, quoted=False, size=size):
        _check_depth(chunk)
        # Not splitlines, because prompts contain other characters that it treats as line breaks.
        for line in chunk.decode().removesuffix("\n").split("\n"):
            line_number += 1
            if line.strip():
                yield _parse_object(line, line_number)


def _parse_object(line: str, line_number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {line_number}: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"line {line_number} is not a JSON object: {line[:80]}")
    return row


def text_table(
    rows: Iterable[dict[str, Any]],
    format_value: Callable[[Any], str],
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Convert rows to an Arrow table of text columns. A missing value and "" become null.

    Args:
        rows: The rows, by column name.
        format_value: Converts a value to text.
        columns: The columns of the table; None for all columns that occur in any row.
    """
    rows = list(rows)
    names = columns or list(dict.fromkeys(name for row in rows for name in row))

    def format_column(name: str) -> list[str | None]:
        return [
            None if (value := row.get(name)) is None or value == "" else format_value(value)
            for row in rows
        ]

    return pa.table({name: pa.array(format_column(name), pa.string()) for name in names})


def json_tables(file: Any, text_columns: Collection[str | None]) -> Iterator[pa.Table]:
    """Read a JSON lines file, and yield one Arrow table for each chunk of lines.

    The types of columns are inferred for each table from its values. Values of `text_columns` stay
    texts even if they look like times. A None among `text_columns` has no effect.
    """
    for chunk in read_chunks(file, quoted=False):
        _check_depth(chunk)
        table = _json_table(chunk, None)
        mistaken = [
            field.with_type(pa.string())
            for field in table.schema
            if field.name in text_columns and pa.types.is_timestamp(field.type)
        ]
        yield _json_table(chunk, pa.schema(mistaken)) if mistaken else table


def _json_table(chunk: bytes, schema: pa.Schema | None) -> pa.Table:
    read = pjson.ReadOptions(use_threads=False, block_size=len(chunk) + 1)
    return pjson.read_json(io.BytesIO(chunk), read, pjson.ParseOptions(explicit_schema=schema))


def _check_depth(chunk: bytes) -> None:
    """Check that the values in a chunk of JSON lines are not nested too deeply.

    Raises:
        ArrowInvalid: A line is nested too deeply, or several lines without closing brackets are.
    """
    # Each remaining quotation mark begins or ends a text.
    unescaped = chunk.replace(rb"\\", b"").replace(rb"\"", b"")
    chars = np.frombuffer(unescaped, np.uint8)
    # Brackets in texts do not count.
    is_outside = np.cumsum(chars == ord('"'), dtype=np.uint8) % 2 == 0
    is_opening = (chars == ord("{")) | (chars == ord("["))
    is_closing = (chars == ord("}")) | (chars == ord("]"))
    depth = np.cumsum(
        (is_opening.astype(np.int8) - is_closing.astype(np.int8)) * is_outside, dtype=np.int64
    )
    # After a closing bracket without an opening one, the depth starts again at 0.
    depth -= np.minimum.accumulate(np.append(0, depth))[:-1]
    if depth.max(initial=0) > _MAX_DEPTH:
        start = unescaped.rfind(b"\n", 0, int(np.argmax(depth > _MAX_DEPTH))) + 1
        line = unescaped[start : start + 60].decode(errors="replace")
        raise pa.ArrowInvalid(
            f"more than {_MAX_DEPTH} nested brackets in this line or before it: {line} …"
        )


def read_chunks(file: Any, *, quoted: bool, size: int | None = None) -> Iterator[bytes]:
    """Read a text file, and yield chunks of whole lines in UTF-8.

    Args:
        file: The file, opened in binary mode.
        quoted: Whether a line break inside double quotes does not end a line.
        size: About how many bytes a chunk has, None for 1 MiB.

    Raises:
        ArrowInvalid: A line has more than 16 MiB.
    """
    buffered: list[bytes] = []
    is_inside = False
    for data in utf8_chunks(file, size or _CHUNK_BYTES):
        end = _find_last_line_end(data, is_inside) if quoted else data.rfind(b"\n") + 1
        is_inside ^= quoted and data.count(b'"') % 2 == 1
        if end:
            yield b"".join([*buffered, data[:end]])
            buffered = [data[end:]]
        else:
            buffered.append(data)
            if sum(map(len, buffered)) > _MAX_LINE_BYTES:
                raise pa.ArrowInvalid(
                    f"it has a line of more than {_MAX_LINE_BYTES} bytes; is a quotation mark missing?"
                )
    if remaining := b"".join(buffered):
        yield remaining


def _find_last_line_end(data: bytes, is_inside: bool) -> int:
    """Return the end of the last line that does not end inside quotes, 0 if there is none.

    Args:
        data: The bytes.
        is_inside: Whether `data` begins inside quotes.
    """
    chars = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(chars == ord("\n"))
    is_outside = np.cumsum(chars == ord('"'))[newlines] % 2 == is_inside
    return int(newlines[is_outside][-1]) + 1 if is_outside.any() else 0
