"""Lists of uris as sources: CSV, TSV, JSON lines, plain text, Parquet, also compressed. Each row is a file of its own.

A list may be longer than memory: it is read in pieces of whole lines, each typed by pyarrow on its own; what a column is over all
pieces is settled where the manifest is made. Knows files of rows; what a row means is said in `list_entries`.
"""

import csv
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.json as pjson

from ray_app.archives.columns import URI_NAMES, input_rows, no_column, no_uris, uri_column
from ray_app.archives.containers import Container, ContainerLimits, TableColumns, Unopened, kind_of
from ray_app.archives.containers.parquet import index_uris
from ray_app.archives.members import ListedMember
from ray_app.archives.uri_list_rows import ListEntries
from ray_app.errors import ConfigError, SourceError, StorageError
from ray_app.storage import Fetcher, canonical, list_objects, strip_secrets

_PIECE = 1 << 20
_MAX_LINE = 16 << 20  # no row of a list is longer; a file without line breaks is no list
_MAX_DEPTH = 64  # brackets in brackets; pyarrow's parser ends the process at some ten thousand
_PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
# What must stay as it was written, even where it looks like a number or a date.
_TEXTS = ("version", "etag")

Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class UriLists:
    """The source `list::URL`: a list, or a folder or pattern of them; each is a section."""

    url: str
    columns: TableColumns
    limits: ContainerLimits

    def sections(self, fetcher: Fetcher) -> Iterator["UriList"]:
        """One list after the other, by name. Raises ConfigError for a file that is no list, StorageError as a listing does."""
        for info in list_objects(self.url, fetcher.guard):
            yield UriList(info.uri, info.version, info.size_bytes, self.columns, self.limits)


@dataclass(frozen=True)
class UriList:
    """One file of rows."""

    uri: str
    version: str
    size_bytes: int
    columns: TableColumns
    limits: ContainerLimits

    def found(self, fetcher: Fetcher) -> Iterator[tuple[str, ListedMember]]:
        """A member per row, with its path below the list's folder where it lies there, else its whole uri.

        Raises ConfigError naming the list, and the row or column that is wrong, StorageError when it cannot be read.
        """
        folder = self.uri.partition("?")[0].rpartition("/")[0] + "/"
        try:
            for item in self._members(fetcher):
                yield item.uri.removeprefix(folder), item
        except SourceError as error:
            raise StorageError(f"cannot read the list {self.uri}: {error.detail}") from error
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise ConfigError(
                f"{self.uri}: {' '.join(str(error).split())}", hint="a list has one header and, within a column, values of one type"
            ) from error

    def _members(self, fetcher: Fetcher) -> Iterator[ListedMember]:
        if kind_of(self.uri) == "parquet":
            name = self.uri.rpartition("/")[2]
            container = Container(self.uri, self.version, self.size_bytes, "parquet", name, self.columns, self.limits)
            yield from self._readable(index_uris(container, fetcher))
            return
        name, packed = _names(self.uri)
        if name not in _READERS:
            raise ConfigError(f"{self.uri}: not a list", hint=f"a list's name ends in {', '.join(LIST_ENDINGS)}, .parquet or .txt")
        with fetcher.open(self.uri, self.version, self.size_bytes) as file:
            rows = _READERS[name](_unpacked(file, packed), self)
            first = next(rows, None)
            if first is not None:
                entries = ListEntries(self.uri, self._uri_column(first))
                yield from entries.members(itertools.chain([first], rows))

    def _readable(self, items: Iterator[ListedMember]) -> Iterator[ListedMember]:
        for item in items:
            if isinstance(item, Unopened) and item.refused is not None:
                if item.refused.status.startswith("source_"):
                    raise StorageError(f"cannot read the list {self.uri}: {item.refused.detail}")
                raise ConfigError(f"{self.uri}: {item.refused.detail}", hint="the list itself is not readable")
            yield item

    def _uri_column(self, row: dict[str, Any]) -> str:
        """The column of uris among the names of the first row; Raises ConfigError where there is none."""
        column = uri_column(pa.schema([(name, pa.string()) for name in row]), self.columns)
        if column is None and self.columns.uri is not None:
            raise no_column(self.uri, self.columns.uri, list(row))
        if column is None:
            raise no_uris(self.uri, list(row))
        return column


def is_one_file(url: str, fetcher: Fetcher) -> bool:
    """Whether a source is one file, and neither a folder nor a pattern. Asks the store."""
    found = list(itertools.islice(list_objects(url, fetcher.guard), 2))
    return [info.uri for info in found] == [strip_secrets(canonical(url))]


def looks_like_list(url: str) -> bool:
    """Whether a source's name announces a list; touches nothing."""
    return _names(url)[0] in LIST_ENDINGS


def _names(uri: str) -> tuple[str, str | None]:
    """The ending that says how rows are written, and how the file is packed, if it is."""
    name = uri.partition("?")[0].lower() if "://" in uri else uri.lower()
    packed = next((ending for ending in _PACKED if name.endswith(ending)), None)
    name = name.removesuffix(packed or "")
    return "." + name.rpartition("/")[2].rpartition(".")[2], None if packed is None else _PACKED[packed]


def _unpacked(file: io.RawIOBase, packed: str | None) -> Any:
    return file if packed is None else pa.CompressedInputStream(pa.PythonFile(file, "r"), packed)


def pieces(file: Any, *, quoted: bool, size: int = _PIECE) -> Iterator[bytes]:
    """The file in pieces of whole lines; with `quoted`, a line break inside double quotes ends no line.

    Raises ArrowInvalid, as a parser would, for a line longer than memory should hold.
    """
    waiting: list[bytes] = []
    is_inside = False
    while data := file.read(size):
        end = _last_end(data, is_inside) if quoted else data.rfind(b"\n") + 1
        is_inside ^= quoted and data.count(b'"') % 2 == 1
        if end:
            yield b"".join([*waiting, data[:end]])
            waiting = [data[end:]]
        else:
            waiting.append(data)
            if sum(map(len, waiting)) > _MAX_LINE:
                raise pa.ArrowInvalid(f"a line of more than {_MAX_LINE} bytes; is a quotation mark missing?")
    if left := b"".join(waiting):
        yield left


def _last_end(data: bytes, is_inside: bool) -> int:
    """The end of the last line that does not end inside quotes, 0 where there is none; `is_inside`: whether data begins in quotes."""
    letters = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(letters == ord("\n"))
    is_outside = np.cumsum(letters == ord('"'))[ends] % 2 == is_inside
    return int(ends[is_outside][-1]) + 1 if is_outside.any() else 0


def _csv_rows(file: Any, where: UriList, delimiter: str = ",") -> Rows:
    names: list[str] | None = None
    parse = pcsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    for piece in pieces(file, quoted=True):
        read = pcsv.ReadOptions(column_names=names, use_threads=False, block_size=len(piece) + 1)
        if names is None:
            names = _header(piece, delimiter, where.uri)
        uri = uri_column(pa.schema([(name, pa.string()) for name in names]), where.columns)
        texts = {name: pa.string() for name in (uri, *_TEXTS) if name is not None}
        # An empty field is a missing one; a text such as NA or nan stays what it is.
        convert = pcsv.ConvertOptions(column_types=texts, null_values=[""], strings_can_be_null=True)
        table = pcsv.read_csv(io.BytesIO(piece), read, parse, convert)
        yield from input_rows(dict(zip(table.column_names, table.columns, strict=True)), {})


def _header(piece: bytes, delimiter: str, where: str) -> list[str]:
    names = next(csv.reader(io.StringIO(piece.decode("utf-8-sig"), newline=""), delimiter=delimiter), [])
    if len(set(names)) < len(names) or "" in names:
        raise ConfigError(f"{where}: its first line does not name each column once", hint=f"found: {', '.join(names)}")
    return names


def _tsv_rows(file: Any, where: UriList) -> Rows:
    return _csv_rows(file, where, "\t")


def _json_rows(file: Any, where: UriList) -> Rows:
    for piece in pieces(file, quoted=False):
        check_depth(piece)
        table = _json_table(piece, None)
        texts = {where.columns.uri, *URI_NAMES, *_TEXTS}
        mistaken = [field.with_type(pa.string()) for field in table.schema if field.name in texts and pa.types.is_timestamp(field.type)]
        if mistaken:
            table = _json_table(piece, pa.schema(mistaken))
        yield from input_rows(dict(zip(table.column_names, table.columns, strict=True)), {})


def check_depth(piece: bytes) -> None:
    """Raises ArrowInvalid, as a parser would, for lines of JSON that are nested too deeply, each in itself or one in the other."""
    shown = piece.replace(rb"\\", b"").replace(rb"\"", b"")  # a quotation mark that is left begins a text or ends it
    letters = np.frombuffer(shown, np.uint8)
    is_outside = np.cumsum(letters == ord('"'), dtype=np.uint8) % 2 == 0  # brackets in texts do not count
    opened = (letters == ord("{")) | (letters == ord("["))
    closed = (letters == ord("}")) | (letters == ord("]"))
    depth = np.cumsum((opened.astype(np.int8) - closed.astype(np.int8)) * is_outside, dtype=np.int64)
    # One that closes nothing ends no other: what follows it counts from there.
    depth -= np.minimum.accumulate(np.append(0, depth))[:-1]
    if depth.max(initial=0) > _MAX_DEPTH:
        start = shown.rfind(b"\n", 0, int(np.argmax(depth > _MAX_DEPTH))) + 1
        line = shown[start : start + 60].decode(errors="replace")
        raise pa.ArrowInvalid(f"over {_MAX_DEPTH} brackets in one another, in or before the line: {line} …")


def _json_table(piece: bytes, schema: pa.Schema | None) -> pa.Table:
    read = pjson.ReadOptions(use_threads=False, block_size=len(piece) + 1)
    return pjson.read_json(io.BytesIO(piece), read, pjson.ParseOptions(explicit_schema=schema))


def _text_rows(file: Any, where: UriList) -> Rows:
    name = where.columns.uri or "uri"
    for piece in pieces(file, quoted=False):
        lines = (line.rstrip("\r") for line in piece.decode("utf-8-sig").split("\n"))
        yield from ({name: line} for line in lines if line)


_READERS: dict[str, Callable[[Any, UriList], Rows]] = {
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".txt": _text_rows,
}
LIST_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
