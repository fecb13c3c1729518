"""Tables that people bring, as text: CSV, TSV, JSON lines (`csv_tables`, `json_rows`,
`json_tables`, `pieces`).

A table may be longer than memory: it is read in pieces of whole lines. What is wrong with it is a
pa.ArrowException, a ValueError (UnicodeDecodeError is one) or an OSError, which say the line or the
column; callers add the file's name. Texts are UTF-8, UTF-16, or UTF-32; a CSV may have semicolons,
tabs, or bars in place of commas (`text_encoding`).
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

_PIECE = 1 << 20
_MAX_LINE = 16 << 20  # no row of a list is longer; a file without line breaks is no list
# the first line of some CSV files of Excel
_SEPARATOR_LINE = re.compile(rb"sep=(.)\r?\n", re.IGNORECASE)
_MAX_DEPTH = 64  # brackets in brackets; pyarrow's parser ends the process at some ten thousand


def csv_tables(
    file: Any,
    *,
    delimiter: str = ",",
    columns: Sequence[str] | None = None,
    texts: Callable[[list[str]], Collection[str]] = list,
    size: int | None = None,
) -> Iterator[pa.Table]:
    """Tables of these columns (None: of all), one to a piece of the file.

    `delimiter`: the separator that the name of the file announces; the header shows the real one
    (`find_delimiter`). `texts`: given the names in the header, those that stay texts as they stand
    there (`007`, `1e5`, `NA`); others get the type of their values, each table for itself. An empty
    field is null; a line break inside double quotes ends no row.
    """
    names: list[str] | None = None
    kinds: dict[str, pa.DataType] = {}
    for piece in pieces(file, quoted=True, size=size):
        first = names is None
        if names is None:
            piece, names, delimiter = _read_header(piece, delimiter)
            kinds = dict.fromkeys(texts(names), pa.string())
        read = pcsv.ReadOptions(
            column_names=None if first else names, use_threads=False, block_size=len(piece) + 1
        )
        parse = pcsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        convert = pcsv.ConvertOptions(
            column_types=kinds, null_values=[""], strings_can_be_null=True, include_columns=columns
        )
        yield pcsv.read_csv(io.BytesIO(piece), read, parse, convert)


def _read_header(piece: bytes, expected: str) -> tuple[bytes, list[str], str]:
    """Return the first piece of a CSV from its header on, the names in the header, and the
    separator.

    Empty lines and a line `sep=;` before the header are removed. Raises ArrowInvalid if the header
    cannot be read.
    """
    piece = piece.lstrip(b"\r\n")
    if line := _SEPARATOR_LINE.match(piece):
        piece, delimiter = piece[line.end() :], line[1].decode()
    else:
        delimiter = find_delimiter(piece.partition(b"\n")[0].decode(), expected)
    try:
        return (
            piece,
            next(csv.reader(io.StringIO(piece.decode(), newline=""), delimiter=delimiter), []),
            delimiter,
        )
    except csv.Error as error:
        raise pa.ArrowInvalid(
            f"its first line cannot be read ({error}); is a quotation mark missing?"
        ) from None


def named_once(names: list[str]) -> list[str]:
    """The same names. Raises ArrowInvalid where a header has one of them twice."""
    if len(set(names)) < len(names):
        raise pa.ArrowInvalid(
            f"its first line should name each column once: {', '.join(map(repr, names))}"
        )
    return names


def json_rows(file: Any, size: int | None = None) -> Iterator[dict[str, Any]]:
    """The objects of JSON lines, one by one; empty lines are none. What nests too deeply is an
    ArrowInvalid.
    """
    number = 0
    for piece in pieces(file, quoted=False, size=size):
        _check_depth(piece)
        # Not splitlines: prompts hold other line breaks than a file's.
        for line in piece.decode().removesuffix("\n").split("\n"):
            number += 1
            if line.strip():
                yield _object(line, number)


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is not a JSON object: {line[:80]}")
    return row


def text_table(
    rows: Iterable[dict[str, Any]], text: Callable[[Any], str], columns: Sequence[str] | None = None
) -> pa.Table:
    """Rows as columns of texts (None: all that a row has), null where a row has none or "" ."""
    rows = list(rows)
    names = columns or list(dict.fromkeys(name for row in rows for name in row))

    def texts(name: str) -> list[str | None]:
        return [
            None if (value := row.get(name)) is None or value == "" else text(value) for row in rows
        ]

    return pa.table({name: pa.array(texts(name), pa.string()) for name in names})


def json_tables(file: Any, texts: Collection[str | None]) -> Iterator[pa.Table]:
    """Tables of JSON lines, typed by their values, each for itself; what is in `texts` is no time,
    even where it looks like one.
    """
    for piece in pieces(file, quoted=False):
        _check_depth(piece)
        table = _json_table(piece, None)
        mistaken = [
            field.with_type(pa.string())
            for field in table.schema
            if field.name in texts and pa.types.is_timestamp(field.type)
        ]
        yield _json_table(piece, pa.schema(mistaken)) if mistaken else table


def _json_table(piece: bytes, schema: pa.Schema | None) -> pa.Table:
    read = pjson.ReadOptions(use_threads=False, block_size=len(piece) + 1)
    return pjson.read_json(io.BytesIO(piece), read, pjson.ParseOptions(explicit_schema=schema))


def _check_depth(piece: bytes) -> None:
    """Raises ArrowInvalid, as a parser would, for lines of JSON that are nested too deeply, each in
    itself or one in the other.
    """
    # a quotation mark that is left begins a text or ends it
    shown = piece.replace(rb"\\", b"").replace(rb"\"", b"")
    letters = np.frombuffer(shown, np.uint8)
    # brackets in texts do not count
    is_outside = np.cumsum(letters == ord('"'), dtype=np.uint8) % 2 == 0
    opened = (letters == ord("{")) | (letters == ord("["))
    closed = (letters == ord("}")) | (letters == ord("]"))
    depth = np.cumsum(
        (opened.astype(np.int8) - closed.astype(np.int8)) * is_outside, dtype=np.int64
    )
    # One that closes nothing ends no other: what follows it counts from there.
    depth -= np.minimum.accumulate(np.append(0, depth))[:-1]
    if depth.max(initial=0) > _MAX_DEPTH:
        start = shown.rfind(b"\n", 0, int(np.argmax(depth > _MAX_DEPTH))) + 1
        line = shown[start : start + 60].decode(errors="replace")
        raise pa.ArrowInvalid(f"over {_MAX_DEPTH} nested brackets, in or before the line: {line} …")


def pieces(file: Any, *, quoted: bool, size: int | None = None) -> Iterator[bytes]:
    """The file in pieces of whole lines, in UTF-8; with `quoted`, a line break inside double quotes
    ends no line.

    Raises ArrowInvalid, as a parser would, for a line longer than memory should hold.
    """
    waiting: list[bytes] = []
    is_inside = False
    for data in utf8_chunks(file, size or _PIECE):
        end = _last_end(data, is_inside) if quoted else data.rfind(b"\n") + 1
        is_inside ^= quoted and data.count(b'"') % 2 == 1
        if end:
            yield b"".join([*waiting, data[:end]])
            waiting = [data[end:]]
        else:
            waiting.append(data)
            if sum(map(len, waiting)) > _MAX_LINE:
                raise pa.ArrowInvalid(
                    f"a line of more than {_MAX_LINE} bytes; is a quotation mark missing?"
                )
    if left := b"".join(waiting):
        yield left


def _last_end(data: bytes, is_inside: bool) -> int:
    """The end of the last line that does not end inside quotes, 0 where there is none; `is_inside`:
    whether data begins in quotes.
    """
    letters = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(letters == ord("\n"))
    is_outside = np.cumsum(letters == ord('"'))[ends] % 2 == is_inside
    return int(ends[is_outside][-1]) + 1 if is_outside.any() else 0
