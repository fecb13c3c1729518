"""Tables that people bring, by the names of their columns (`LabelTable`): labels, lists of urls,
prompts.

Every command reads such tables here: CSV with commas, semicolons, tabs, or bars, JSON lines, or
Parquet, at a path or URL. Columns are found in any case. A table may be longer than memory: it is
read in pieces.
"""

import contextlib
import csv
import functools
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives import tabular
from ray_app.errors import ConfigError, InputError
from ray_app.storage import Fetcher, canonical, strip_secrets

_JSON_ENDINGS = (".jsonl", ".ndjson")
ENDINGS = (".csv", ".tsv", ".txt", *_JSON_ENDINGS, ".parquet")
_ROWS = 65_536
_PIECE_BYTES = 8 << 20
_SAVE_AS_UTF8 = "save it as UTF-8: type 'CSV UTF-8' in Excel, or `iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW` for a file of Windows"
_ERRORS = (pa.ArrowException, ValueError, csv.Error, OSError)


@dataclass(frozen=True)
class LabelTable:
    """One file with a table, at a path or fsspec URL; a CSV if its name has no ending of a table.
    It may be read more than once.
    """

    place: str

    @property
    def name(self) -> str:
        """The name in messages, without secrets."""
        return strip_secrets(self.place)

    @functools.cached_property
    def column_names(self) -> list[str]:
        """The names of the columns as the file has them. Raises ConfigError for a file that cannot
        be read.
        """
        if get_ending(self.place) == ".parquet":  # its first rows may hold large images
            with self._opened() as file, pq.ParquetFile(file) as table:
                return list(table.schema_arrow.names)
        # a row may have a column that no row before it has
        if get_ending(self.place) in _JSON_ENDINGS:
            return list(
                dict.fromkeys(name for table in self._pieces(None) for name in table.column_names)
            )
        first = next(self._pieces(None), None)
        return [] if first is None else list(first.column_names)

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield these columns, under these names, some rows at a time. Cells of a CSV or of JSON
        are texts, null for an empty one.

        Raises:
            ConfigError: The file cannot be read, or has no such column; the message names the file
                and what is wrong in it.
        """
        found = match_columns(self.column_names, columns, self.name)
        if missing := [column for column in columns if column not in found]:
            raise ConfigError(
                f"{self.name}: no column '{missing[0]}'", hint=columns_hint(self.column_names)
            )
        for table in self._pieces(list(found.values())):
            yield pa.table({column: table[found[column]] for column in columns})

    def read(self) -> pa.Table:
        """Return the whole table, with the names that the file has. Raises ConfigError for a file
        that cannot be read.
        """
        tables = list(self._pieces(None))
        if not tables:
            raise ConfigError(
                f"{self.name}: the table is empty",
                hint="a table has a line with the names of its columns",
            )
        return pa.concat_tables(tables, promote_options="default")

    def _pieces(self, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        """Yield tables with all columns of the file (None), or with these."""
        with self._opened() as file:
            yield from _READERS.get(get_ending(self.place), _READERS[".csv"])(file, columns)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """Open the file; what is wrong with it is a ConfigError."""
        try:
            with Fetcher(signed=[self.place]).open(
                strip_secrets(canonical(self.place)), ""
            ) as file:
                yield file
        except InputError as error:
            raise ConfigError(f"{self.name}: {error.detail}") from None
        except _ERRORS as error:
            message = " ".join(str(error).split())[:300]
            if isinstance(error, UnicodeDecodeError) or "invalid utf" in message.lower():
                raise ConfigError(
                    f"{self.name}: its text is not UTF-8: {message}", hint=_SAVE_AS_UTF8
                ) from None
            hint = "a table has one line with the names of its columns, and as many values in every row"
            raise ConfigError(
                f"{self.name}: cannot be read as a table: {message}", hint=hint
            ) from None


def is_label_table(place: str) -> bool:
    """Return whether the name of a file announces a table."""
    return get_ending(place) in _READERS


def get_ending(place: str) -> str:
    """Return the ending of a file's name in small letters, without the query of a URL."""
    name = place.partition("?")[0] if "://" in place else place
    return posixpath.splitext(name)[1].lower()


def match_columns(names: Sequence[str], wanted: Iterable[str], where: str) -> dict[str, str]:
    """Find columns by name: exactly, or else in any case and with any signs between words.

    Args:
        names: The names that a table has.
        wanted: The names to find.
        where: The name of the table in messages.

    Returns:
        The table's own name for each wanted one that it has.

    Raises:
        ConfigError: Two columns could be meant.
    """
    by_plain_name: dict[str, list[str]] = {}
    for name in names:
        by_plain_name.setdefault(plain_name(name), []).append(name)
    found = {}
    for name in wanted:
        candidates = [name] if name in names else by_plain_name.get(plain_name(name), [])
        if len(candidates) > 1:
            raise ConfigError(
                f"{where}: the column '{name}' may be any of {', '.join(candidates)}",
                hint=f"rename one to {name}",
            )
        if candidates:
            found[name] = candidates[0]
    return found


def plain_name(name: str) -> str:
    """Return a column's name in small letters, its words joined by underscores."""
    return re.sub(r"[\W_]+", "_", name.strip().casefold()).strip("_")


def columns_hint(names: Sequence[str]) -> str:
    """Return the hint that names the columns that a table has."""
    return f"its columns: {', '.join(names) or 'none'}"


def format_value(value: Any) -> str:
    """Return a value of JSON as the text of a cell: a text as it is, all others as JSON writes
    them.
    """
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else json.dumps(value, ensure_ascii=False)


def _csv_tables(file: Any, columns: Sequence[str] | None, delimiter: str) -> Iterator[pa.Table]:
    """Yield the columns that have a name: spreadsheets also save empty ones, and pandas an index."""
    for table in tabular.csv_tables(
        file, delimiter=delimiter, columns=columns, texts=_check_names, size=_PIECE_BYTES
    ):
        yield table.select(
            [number for number, name in enumerate(table.column_names) if name.strip()]
        )


def _check_names(names: list[str]) -> list[str]:
    tabular.named_once([name for name in names if name.strip()])
    return names


def _format_cell(value: Any) -> str:
    """Return a value of JSON as text. A whole number is one whether it is written as 1 or, as
    pandas does beside a gap, as 1.0.
    """
    return (
        str(int(value)) if isinstance(value, float) and value.is_integer() else format_value(value)
    )


def _json_tables(file: Any, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    rows = tabular.json_rows(file, _PIECE_BYTES)
    while some := list(islice(rows, _ROWS)):
        yield tabular.text_table(some, _format_cell, columns)


def _parquet_tables(file: Any, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches(_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])


_READERS: Mapping[str, Callable[[Any, Sequence[str] | None], Iterator[pa.Table]]] = {
    ".csv": lambda file, columns: _csv_tables(file, columns, ","),
    ".tsv": lambda file, columns: _csv_tables(file, columns, "\t"),
    ".txt": lambda file, columns: _csv_tables(file, columns, "\t"),
    **dict.fromkeys(_JSON_ENDINGS, _json_tables),
    ".parquet": _parquet_tables,
}
