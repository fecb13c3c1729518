"""Lists of uris as sources (`lists_at`): CSV, TSV, JSON lines, plain text, Parquet, also
compressed. Each row is a file of its own.

A list may be longer than memory: it is read in pieces of whole lines, each typed by pyarrow on its
own; what a column is over all pieces is settled where the manifest is made.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_app.archives import members, tabular, uri_list_rows
from ray_app.archives.columns import URI_NAMES, input_rows, no_column, no_uris, uri_column
from ray_app.archives.containers import (
    Container,
    ContainerLimits,
    Unopened,
    kind_of,
    recognise_container,
)
from ray_app.archives.containers.parquet import index_uris
from ray_app.errors import ConfigError, SourceError, StorageError
from ray_app.images.formats import describe_signature
from ray_app.storage import ClosedFolder, Fetcher, canonical, list_objects, strip_secrets

_PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_PACKED_STARTS = {"gzip": b"\x1f\x8b", "bz2": b"BZh", "zstd": b"\x28\xb5\x2f\xfd"}
_HEAD_BYTES = 512
_NEEDS = "a list needs one header line and, within a column, values of one type"
# What must stay as it was written, even where it looks like a number or a date.
_TEXTS = ("version", "etag")

Rows = Iterator[dict[str, Any]]

LIST_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")


def lists_at(
    url: str, columns: members.TableColumns, limits: ContainerLimits, fetcher: Fetcher
) -> Iterator["UriList"]:
    """The lists that the source `list::URL` names, by name: one, or those in a folder or of a
    pattern. Raises as `list_objects`.
    """
    for info in list_objects(url, fetcher.guard):
        if isinstance(info, ClosedFolder):
            raise StorageError(
                f"{info.uri}: {info.error.detail}",
                hint="name the lists by a pattern that leaves the folder out",
            )
        yield UriList(info.uri, info.version, info.size_bytes, columns, limits)


@dataclass(frozen=True)
class UriList:
    """One file of rows. Raises ConfigError for a file that is no list."""

    uri: str
    version: str
    size_bytes: int
    columns: members.TableColumns
    limits: ContainerLimits

    def found(self, fetcher: Fetcher) -> Iterator[tuple[str, members.ListedMember]]:
        """A member per row, with its path below the list's folder where it lies there, else its
        whole uri.

        Raises ConfigError naming the list, and the row or column that is wrong, StorageError when
        it cannot be read.
        """
        folder = self.uri.partition("?")[0].rpartition("/")[0] + "/"
        try:
            for item in self._members(fetcher):
                yield item.uri.removeprefix(folder), item
        except SourceError as error:
            raise StorageError(f"cannot read the list {self.uri}: {error.detail}") from error
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            is_encoding = isinstance(error, UnicodeDecodeError) or "UTF8" in str(error)
            hint = "save it as UTF-8 (Excel: “CSV UTF-8”)" if is_encoding else _NEEDS
            raise ConfigError(f"{self.uri}: {' '.join(str(error).split())}", hint=hint) from error

    def _members(self, fetcher: Fetcher) -> Iterator[members.ListedMember]:
        if kind_of(self.uri) == "parquet":
            name = self.uri.rpartition("/")[2]
            container = Container(
                self.uri, self.version, self.size_bytes, "parquet", name, self.columns, self.limits
            )
            yield from self._readable(index_uris(container, fetcher), container, fetcher)
            return
        name, packed = _names(self.uri)
        if name not in _READERS:
            raise ConfigError(
                f"{self.uri}: not a list",
                hint=f"the name of a list ends in {', '.join(LIST_ENDINGS)}, .parquet or .txt",
            )
        with fetcher.open(self.uri, self.version, self.size_bytes) as file:
            self._require_text(file.read(_HEAD_BYTES), packed)
            file.seek(0)
            unpacked = (
                file
                if packed is None
                else pa.CompressedInputStream(pa.PythonFile(file, "r"), packed)
            )
            rows = _READERS[name](unpacked, self)
            first = next(rows, None)
            if first is not None:
                entries = uri_list_rows.ListEntries(self.uri, self.uri_column(list(first)))
                yield from entries.members(itertools.chain([first], rows))

    def _require_text(self, head: bytes, packed: str | None) -> None:
        """Raise ConfigError if the first bytes are those of another kind of file."""
        if packed is not None and head.startswith(_PACKED_STARTS[packed]):
            return
        ending = next(
            (ending for ending, kind in _PACKED.items() if head.startswith(_PACKED_STARTS[kind])),
            None,
        )
        if ending is not None:
            raise ConfigError(
                f"{self.uri}: the list is packed, but its name does not end in {ending}",
                hint=f"add {ending} to the name, or unpack the list",
            )
        if (description := describe_signature(head)) is not None:
            what, _, advice = description.partition(": ")
            raise ConfigError(
                f"{self.uri}: not a list but {what}",
                hint=advice or f"name a file of {', '.join(LIST_ENDINGS)}",
            )

    def _readable(
        self, items: Iterator[members.ListedMember], container: Container, fetcher: Fetcher
    ) -> Iterator[members.ListedMember]:
        for item in items:
            if isinstance(item, Unopened) and item.refused is not None:
                item = recognise_container(item, container, fetcher)
                assert item.refused is not None
                if item.refused.status.startswith("source_"):
                    raise StorageError(f"cannot read the list {self.uri}: {item.refused.detail}")
                raise ConfigError(
                    f"{self.uri}: {item.refused.detail}", hint="the list itself is not readable"
                )
            yield item

    def uri_column(self, names: Sequence[str]) -> str:
        """Return the column of uris among the names of all columns. Raises ConfigError if no column
        has uris.
        """
        column = uri_column(pa.schema([(name, pa.string()) for name in names]), self.columns)
        if column is None and self.columns.uri is not None:
            raise no_column(self.uri, self.columns.uri, names)
        if column is None:
            raise no_uris(self.uri, names)
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
    return "." + name.rpartition("/")[2].rpartition(".")[2], None if packed is None else _PACKED[
        packed
    ]


def _csv_rows(file: Any, where: UriList, delimiter: str = ",") -> Rows:
    def texts(names: list[str]) -> list[str]:
        if len(set(names)) < len(names) or "" in names:
            raise ConfigError(
                f"{where.uri}: its first line should name each column once",
                hint=f"found: {', '.join(names)}",
            )
        return [where.uri_column(names), *_TEXTS]

    for table in tabular.csv_tables(file, delimiter=delimiter, texts=texts):
        yield from input_rows(dict(zip(table.column_names, table.columns, strict=True)), {})


def _json_rows(file: Any, where: UriList) -> Rows:
    for table in tabular.json_tables(file, {where.columns.uri, *URI_NAMES, *_TEXTS}):
        yield from input_rows(dict(zip(table.column_names, table.columns, strict=True)), {})


def _text_rows(file: Any, where: UriList) -> Rows:
    name = where.columns.uri or "uri"
    for piece in tabular.pieces(file, quoted=False):
        lines = (line.rstrip("\r") for line in piece.decode().split("\n"))
        yield from ({name: line} for line in lines if line)


_READERS: dict[str, Callable[[Any, UriList], Rows]] = {
    ".csv": _csv_rows,
    ".tsv": functools.partial(_csv_rows, delimiter="\t"),
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".txt": _text_rows,
}
