"""Read lists of uris as sources: CSV, TSV, JSON lines, plain text, Parquet, also compressed.

`find_lists` finds the lists that a source names. Each row of a list names one file. A list may be
larger than memory, so it is read in chunks of whole lines. pyarrow infers the types of columns for
each chunk. The type of a column over all chunks is determined when the manifest is written.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_app.archives import members, tabular, uri_list_rows
from ray_app.archives.columns import (
    URI_NAMES,
    find_uri_column,
    missing_column_error,
    missing_uris_error,
    to_input_rows,
)
from ray_app.archives.containers import (
    Container,
    ContainerLimits,
    Unopened,
    detect_kind,
    recognise_container,
)
from ray_app.archives.containers.parquet import index_uris
from ray_app.errors import ConfigError, SourceError, StorageError
from ray_app.images.formats import describe_signature
from ray_app.storage import ClosedFolder, Fetcher, canonicalize, list_objects, strip_secrets

_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_CODEC_MAGICS = {"gzip": b"\x1f\x8b", "bz2": b"BZh", "zstd": b"\x28\xb5\x2f\xfd"}
_HEAD_BYTES = 512
_LIST_RULES = "write one header line and, within a column, values of one type"
# Columns that stay as they were written, even if they look like numbers or dates.
_TEXT_COLUMNS = ("version", "etag")

Rows = Iterator[dict[str, Any]]

LIST_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")


def find_lists(
    url: str, columns: members.TableColumns, limits: ContainerLimits, fetcher: Fetcher
) -> Iterator["UriList"]:
    """Yield the lists that the source `list::URL` names, in the order of their names.

    Args:
        url: A list, a folder of lists, or a pattern.
        columns: The columns of images or uris that the user named, if any.
        limits: Limits on the rows and unpacked bytes of a Parquet table.
        fetcher: Lists the store.

    Raises:
        ConfigError: Nothing is found at the URL.
        StorageError: The store is unreachable, or a folder cannot be listed.
    """
    for info in list_objects(url, fetcher.guard):
        if isinstance(info, ClosedFolder):
            raise StorageError(
                f"{info.uri}: {info.error.detail}",
                hint="give a pattern that selects the lists and does not match this folder",
            )
        yield UriList(info.uri, info.version, info.size_bytes, columns, limits)


@dataclass(frozen=True)
class UriList:
    """A list of uris: one file, of which each row names an image.

    Attributes:
        uri: The uri of the list.
        version: The version of the file, "" if unknown.
        size_bytes: The size of the file, -1 if unknown.
        columns: The columns of images or uris that the user named, if any.
        limits: Limits on the rows and unpacked bytes of a Parquet table.
    """

    uri: str
    version: str
    size_bytes: int
    columns: members.TableColumns
    limits: ContainerLimits

    def list_entries(self, fetcher: Fetcher) -> Iterator[tuple[str, members.ListedMember]]:
        """Yield, for each row, the path and the member of the file that the row names.

        The user's patterns are compared with this path. If the file is in the list's folder, the
        path is relative to this folder. Otherwise it is the whole uri.

        Args:
            fetcher: Reads the list.

        Raises:
            ConfigError: The file is not a list, or a row or column is wrong. The message names the
                list, and the row or column.
            StorageError: The list cannot be read.
        """
        folder = self.uri.partition("?")[0].rpartition("/")[0] + "/"
        try:
            for item in self._members(fetcher):
                yield item.uri.removeprefix(folder), item
        except SourceError as error:
            raise StorageError(f"cannot read the list {self.uri}: {error.detail}") from error
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            is_encoding = isinstance(error, UnicodeDecodeError) or "UTF8" in str(error)
            hint = "save it as UTF-8 (Excel: “CSV UTF-8”)" if is_encoding else _LIST_RULES
            raise ConfigError(f"{self.uri}: {' '.join(str(error).split())}", hint=hint) from error

    def _members(self, fetcher: Fetcher) -> Iterator[members.ListedMember]:
        if detect_kind(self.uri) == "parquet":
            name = self.uri.rpartition("/")[2]
            container = Container(
                self.uri, self.version, self.size_bytes, "parquet", name, self.columns, self.limits
            )
            yield from self._check_readable(index_uris(container, fetcher), container, fetcher)
            return
        name, codec = _split_ending(self.uri)
        if name not in _READERS:
            raise ConfigError(
                f"{self.uri}: not a list, because its name does not end as that of a list",
                hint=f"give the list a name that ends in {', '.join(LIST_ENDINGS)}, .parquet, or .txt",
            )
        with fetcher.open(self.uri, self.version, self.size_bytes) as file:
            self._require_text(file.read(_HEAD_BYTES), codec)
            file.seek(0)
            unpacked = (
                file if codec is None else pa.CompressedInputStream(pa.PythonFile(file, "r"), codec)
            )
            rows = _READERS[name](unpacked, self)
            first = next(rows, None)
            if first is not None:
                entries = uri_list_rows.ListEntries(self.uri, self.find_uri_column(list(first)))
                yield from entries.members(itertools.chain([first], rows))

    def _require_text(self, head: bytes, codec: str | None) -> None:
        """Raise ConfigError if the first bytes are those of another kind of file."""
        if codec is not None and head.startswith(_CODEC_MAGICS[codec]):
            return
        ending = next(
            (ending for ending, kind in _CODECS.items() if head.startswith(_CODEC_MAGICS[kind])),
            None,
        )
        if ending is not None:
            raise ConfigError(
                f"{self.uri}: the list is compressed, but its name does not end in {ending}",
                hint=f"add {ending} to the name, or decompress the list",
            )
        if (description := describe_signature(head)) is not None:
            kind_of_file, _, advice = description.partition(": ")
            raise ConfigError(
                f"{self.uri}: not a list but {kind_of_file}",
                hint=advice or f"give a file in one of the formats {', '.join(LIST_ENDINGS)}",
            )

    def _check_readable(
        self, items: Iterator[members.ListedMember], container: Container, fetcher: Fetcher
    ) -> Iterator[members.ListedMember]:
        for item in items:
            if isinstance(item, Unopened) and item.refused is not None:
                item = recognise_container(item, container, fetcher)
                assert item.refused is not None
                if item.refused.status.startswith("source_"):
                    raise StorageError(f"cannot read the list {self.uri}: {item.refused.detail}")
                raise ConfigError(
                    f"{self.uri}: {item.refused.detail}",
                    hint="repair the list, or give another list",
                )
            yield item

    def find_uri_column(self, names: Sequence[str]) -> str:
        """Return which of the list's columns has the uris.

        Args:
            names: The names of all columns.

        Raises:
            ConfigError: The column that the user named is missing, or no column has a usual name.
        """
        column = find_uri_column(pa.schema([(name, pa.string()) for name in names]), self.columns)
        if column is None and self.columns.uri is not None:
            raise missing_column_error(self.uri, self.columns.uri, names)
        if column is None:
            raise missing_uris_error(self.uri, names)
        return column


def is_one_file(url: str, fetcher: Fetcher) -> bool:
    """Return whether a source is a single file, and no folder or pattern, by listing it."""
    objects = list(itertools.islice(list_objects(url, fetcher.guard), 2))
    return [info.uri for info in objects] == [strip_secrets(canonicalize(url))]


def looks_like_list(url: str) -> bool:
    """Return whether a source's name ends as that of a list of uris, such as `.csv` or `.jsonl.gz`.

    The store is not accessed.
    """
    return _split_ending(url)[0] in LIST_ENDINGS


def _split_ending(uri: str) -> tuple[str, str | None]:
    """Return the ending that names the format of rows, and the codec if the file is compressed."""
    name = uri.partition("?")[0].lower() if "://" in uri else uri.lower()
    codec_ending = next((ending for ending in _CODECS if name.endswith(ending)), None)
    name = name.removesuffix(codec_ending or "")
    return "." + name.rpartition("/")[2].rpartition(".")[
        2
    ], None if codec_ending is None else _CODECS[codec_ending]


def _csv_rows(file: Any, uri_list: UriList, delimiter: str = ",") -> Rows:
    def text_columns(names: list[str]) -> list[str]:
        if len(set(names)) < len(names) or "" in names:
            raise ConfigError(
                f"{uri_list.uri}: its first line must name each column once",
                hint=f"give each column a different name; found: {', '.join(names)}",
            )
        return [uri_list.find_uri_column(names), *_TEXT_COLUMNS]

    for table in tabular.csv_tables(file, delimiter=delimiter, text_columns=text_columns):
        yield from to_input_rows(dict(zip(table.column_names, table.columns, strict=True)), {})


def _json_rows(file: Any, uri_list: UriList) -> Rows:
    for table in tabular.json_tables(file, {uri_list.columns.uri, *URI_NAMES, *_TEXT_COLUMNS}):
        yield from to_input_rows(dict(zip(table.column_names, table.columns, strict=True)), {})


def _text_rows(file: Any, uri_list: UriList) -> Rows:
    name = uri_list.columns.uri or "uri"
    for chunk in tabular.read_chunks(file, quoted=False):
        lines = (line.rstrip("\r") for line in chunk.decode().split("\n"))
        yield from ({name: line} for line in lines if line)


_READERS: dict[str, Callable[[Any, UriList], Rows]] = {
    ".csv": _csv_rows,
    ".tsv": functools.partial(_csv_rows, delimiter="\t"),
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".txt": _text_rows,
}
