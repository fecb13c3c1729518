"""Read tables of users by column names, such as tables of labels, URLs, or prompts.

Every command reads such tables with `LabelTable`: CSV with commas, semicolons, tabs, or bars, JSON
lines, or Parquet, at a path or URL. Upper and lower case in column names do not matter. A table may
be larger than memory, so it is read in chunks.
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
from ray_app.storage import Fetcher, canonicalize, strip_secrets

_JSON_ENDINGS = (".jsonl", ".ndjson")
ENDINGS = (".csv", ".tsv", ".txt", *_JSON_ENDINGS, ".parquet")
_ROWS = 65_536
_CHUNK_BYTES = 8 << 20
_SAVE_AS_UTF8 = "save it as UTF-8: type 'CSV UTF-8' in Excel, or `iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW` for a file from Windows"
_READ_ERRORS = (pa.ArrowException, ValueError, csv.Error, OSError)


@dataclass(frozen=True)
class LabelTable:
    """One file with a table of a user, which may be read more than once.

    Attributes:
        place: The path or fsspec URL of the file. The ending of the name shows the format; a file
            with any other ending is read as CSV.
    """

    place: str

    @property
    def name(self) -> str:
        """The path or URL of the table without secrets, for messages."""
        return strip_secrets(self.place)

    @functools.cached_property
    def column_names(self) -> list[str]:
        """The names of the table's columns, spelled as in the file.

        Raises:
            ConfigError: The file cannot be read.
        """
        if get_ending(self.place) == ".parquet":  # Its first rows may hold large images.
            with self._open() as file, pq.ParquetFile(file) as table:
                return list(table.schema_arrow.names)
        # A later row may add a column.
        if get_ending(self.place) in _JSON_ENDINGS:
            return list(
                dict.fromkeys(
                    name for table in self._read_tables(None) for name in table.column_names
                )
            )
        first = next(self._read_tables(None), None)
        return [] if first is None else list(first.column_names)

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the requested columns as a sequence of tables, each with some rows of the file.

        The columns have the names in `columns`, even if the file spells the names differently.
        Cells of CSV and JSON files are texts, and an empty cell is null.

        Args:
            columns: The names of the columns; `match_columns` finds the columns in the file.

        Raises:
            ConfigError: The file cannot be read, or has no such column. The message has the file
                and what is wrong with it.
        """
        own_names = match_columns(self.column_names, columns, self.name)
        if missing := [column for column in columns if column not in own_names]:
            raise ConfigError(
                f"{self.name}: the table has no column '{missing[0]}'",
                hint=columns_hint(self.column_names),
            )
        for table in self._read_tables(list(own_names.values())):
            yield pa.table({column: table[own_names[column]] for column in columns})

    def read(self) -> pa.Table:
        """Return the whole table, with the column names of the file.

        Raises:
            ConfigError: The file is empty or cannot be read.
        """
        tables = list(self._read_tables(None))
        if not tables:
            raise ConfigError(
                f"{self.name}: the table is empty",
                hint="begin the table with a line of column names",
            )
        return pa.concat_tables(tables, promote_options="default")

    def _read_tables(self, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        """Yield tables with these columns of the file, None for all columns."""
        with self._open() as file:
            yield from _READERS.get(get_ending(self.place), _READERS[".csv"])(file, columns)

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        """Open the file, and raise its errors as ConfigError."""
        try:
            with Fetcher(signed=[self.place]).open(
                strip_secrets(canonicalize(self.place)), ""
            ) as file:
                yield file
        except InputError as error:
            raise ConfigError(f"{self.name}: {error.detail}") from None
        except _READ_ERRORS as error:
            message = " ".join(str(error).split())[:300]
            if isinstance(error, UnicodeDecodeError) or "invalid utf" in message.lower():
                raise ConfigError(
                    f"{self.name}: its text is not UTF-8: {message}", hint=_SAVE_AS_UTF8
                ) from None
            hint = "write one line with the names of the columns, and that many values in every row"
            raise ConfigError(
                f"{self.name}: cannot be read as a table: {message}", hint=hint
            ) from None


def is_label_table(path: str) -> bool:
    """Return whether `LabelTable` knows the format that a file's ending names, such as `.csv`."""
    return get_ending(path) in _READERS


def get_ending(path: str) -> str:
    """Return the ending of a path or URL in lower case, such as `.csv`, without a URL's query."""
    name = path.partition("?")[0] if "://" in path else path
    return posixpath.splitext(name)[1].lower()


def match_columns(names: Sequence[str], requested: Iterable[str], where: str) -> dict[str, str]:
    """Find the columns of a table that have the requested names.

    A column with exactly the requested name comes first. Otherwise upper and lower case, and the
    signs between words, do not matter: `Image URL` matches `image_url`.

    Args:
        names: The names that a table has.
        requested: The names to find.
        where: The name of the table in messages.

    Returns:
        A dict from each requested name that the table has to the table's spelling of the name.

    Raises:
        ConfigError: Several columns match one requested name.
    """
    by_plain_name: dict[str, list[str]] = {}
    for name in names:
        by_plain_name.setdefault(plain_name(name), []).append(name)
    own_names = {}
    for name in requested:
        candidates = [name] if name in names else by_plain_name.get(plain_name(name), [])
        if len(candidates) > 1:
            raise ConfigError(
                f"{where}: several columns match the name '{name}', which may be any of {', '.join(candidates)}",
                hint=f"give the column that you mean exactly the name {name}, which has precedence",
            )
        if candidates:
            own_names[name] = candidates[0]
    return own_names


def plain_name(name: str) -> str:
    """Simplify a column's name, so that spellings such as `Image URL` and `image_url` are equal.

    The result is in lower case, with underscores between its words.
    """
    return re.sub(r"[\W_]+", "_", name.strip().casefold()).strip("_")


def columns_hint(names: Sequence[str]) -> str:
    """Return a hint for an error about a missing column: the names of the table's columns."""
    return f"check the names of its columns: {', '.join(names) or 'none'}"


def format_value(value: Any) -> str:
    """Return a value from JSON as the text of a table's cell.

    A text is returned unchanged. Any other value is returned as JSON text.
    """
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else json.dumps(value, ensure_ascii=False)


def _csv_tables(file: Any, columns: Sequence[str] | None, delimiter: str) -> Iterator[pa.Table]:
    """Yield the columns that have a name.

    Spreadsheets also save columns without a name, and pandas saves an index without one.
    """
    for table in tabular.csv_tables(
        file, delimiter=delimiter, columns=columns, text_columns=_check_names, size=_CHUNK_BYTES
    ):
        yield table.select([index for index, name in enumerate(table.column_names) if name.strip()])


def _check_names(names: list[str]) -> list[str]:
    tabular.check_names_unique([name for name in names if name.strip()])
    return names


def _format_cell(value: Any) -> str:
    """Return a value of JSON as text.

    A whole number is the same text whether it is written as 1 or as 1.0. pandas writes 1.0 if a
    column has gaps.
    """
    return (
        str(int(value)) if isinstance(value, float) and value.is_integer() else format_value(value)
    )


def _json_tables(file: Any, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    rows = tabular.json_rows(file, _CHUNK_BYTES)
    while chunk := list(islice(rows, _ROWS)):
        yield tabular.text_table(chunk, _format_cell, columns)


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
