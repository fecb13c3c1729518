"""`ObjectPrefix`: objects below a place as a source; files of their own, and containers by their
names, none of which is opened.

img2dataset's sidecar tables: beside a shard `00000.tar`, or a folder of files `00000/`, lies
`00000.parquet` with a row for every sample by its key (`SidecarTable`). Its columns become columns
of that image, and the table stays a file like others.

Source: https://github.com/rom1504/img2dataset, output formats `webdataset` and `files`; in
`parquet` the table holds the images itself.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import chain
from typing import Any

from ray_app.archives.containers import CONTAINERS, Container, ContainerLimits, base, kind_of
from ray_app.archives.containers.parquet import rows_by
from ray_app.archives.members import (
    ListedMember,
    ListedWithColumns,
    TableColumns,
    UnreadableFolder,
    VersionlessFile,
)
from ray_app.archives.selection import Found, Selection
from ray_app.errors import ConfigError
from ray_app.storage import (
    ClosedFile,
    ClosedFolder,
    Fetcher,
    KeyRange,
    ObjectInfo,
    RangeReader,
    canonical,
    list_objects,
    split_range,
    split_source,
    strip_secrets,
    urls,
)

TABLE, _SHARD = ".parquet", ".tar"
_BYTES_A_MEMBER = 100_000  # of a container that has not been opened yet
# held in memory, one table at a time; img2dataset writes 10,000 rows of some twelve to a shard
_MOST_CELLS = 2_000_000


class SidecarTable:
    """One table of columns for the samples of a shard or folder, read when the first of them comes."""

    def __init__(self, table: Container, fetcher: Fetcher) -> None:
        self._table, self._fetcher = table, fetcher
        self._rows: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def uri(self) -> str:
        """Where it lies."""
        return self._table.uri

    def joined(self, item: ListedMember, name: str) -> ListedMember:
        """A member with the columns of its sample, `name` being its path in the shard or folder;
        its own columns stay as they are.

        Texts beside an image get none. Columns of masks are left out: the table came with the
        files, and would lead to others. Raises StorageError where the store gives no answer.
        """
        if self._rows is None:
            self._rows = rows_by("key", self._table, self._fetcher, most=_MOST_CELLS)
        row = (
            None
            if base.sidecar_column(name, item.size_bytes)
            else self._rows.get(base.sample_key(name))
        )
        if row is None:
            return item
        columns = {
            column: value
            for column, value in row.items()
            if column != "mask" and not column.endswith("_uri")
        }
        values = {one.name: getattr(item, one.name) for one in fields(item)} | {
            "input": {**columns, **item.input}
        }
        return ListedWithColumns(**values)


@dataclass(frozen=True)
class ObjectPrefix:
    """Files in a folder or under a key prefix, files that match a pattern, or one file; containers
    among them unless `kind` is files.

    `kind`: the format that every file is taken for, instead of what its name announces.
    `selection`: folders that it leaves out are not listed.
    """

    url: str
    kind: str | None
    columns: TableColumns
    limits: ContainerLimits
    selection: Selection = field(default_factory=Selection)

    def found(self, fetcher: Fetcher) -> Iterator[Found]:
        """Every object, with its path relative to the source; a single file goes by its name."""
        enters = self.selection.enters()
        objects = list_objects(
            self.url, fetcher.guard, enters=lambda folder: enters(self._path_of(folder), folder)
        )
        return self.items(objects, fetcher)

    @property
    def is_pattern(self) -> bool:
        """Whether the URL is a pattern, and not the literal name of an object or a prefix. Raises
        StorageError.
        """
        return self._split[1] is not None

    @cached_property
    def below(self) -> str:
        """The place that paths are relative to, with a slash."""
        return strip_secrets(self._split[0]).rstrip("/") + "/"

    @cached_property
    def _split(self) -> tuple[str, str | None]:
        return split_source(self.url)

    def _path_of(self, uri: str) -> str:
        # A name that is not Unicode makes the whole uri a file:// URL.
        place = urls.local_path(uri)
        return (
            place.removeprefix(self.below)
            if place.startswith(self.below)
            else place.rpartition("/")[2]
        )

    def items(
        self, objects: Iterable[ObjectInfo], fetcher: Fetcher, table: ObjectInfo | None = None
    ) -> Iterator[Found]:
        """Objects of it, in the order of their uris, as members and containers; `table`: the
        sidecar table of the first ones.
        """
        own = None if self.is_pattern else strip_secrets(canonical(self.url))
        sidecar: SidecarTable | None = None
        for info in objects:
            if isinstance(info, ClosedFolder):
                yield self._path_of(info.uri), UnreadableFolder.for_reason(info.uri, info.error)
                continue
            path = self._path_of(info.uri)
            item = as_found(info, path, self.kind, self.columns, self.limits)
            stem = "" if table is None else table.uri.removesuffix(TABLE)
            described = None
            if table is not None and (info.uri == stem + _SHARD or info.uri.startswith(stem + "/")):
                described = Container(
                    table.uri,
                    table.version,
                    table.size_bytes,
                    "parquet",
                    table.uri,
                    self.columns,
                    self.limits,
                )
            elif info.uri.endswith(TABLE):  # it comes before what it may describe
                table = info
            if isinstance(item, Container):
                item = replace(item, named=info.uri == own, samples=described)
            elif described is not None and not isinstance(item, VersionlessFile):
                if sidecar is None or sidecar.uri != described.uri:
                    sidecar = SidecarTable(described, fetcher)
                item = sidecar.joined(item, info.uri.rpartition("/")[2])
            yield path, item


@dataclass(frozen=True)
class PrefixRange:
    """A stretch of a large prefix."""

    prefix: ObjectPrefix
    keys: KeyRange

    def found(self, fetcher: Fetcher) -> Iterator[Found]:
        """Its objects, as `ObjectPrefix.found` gives them."""
        return self.items(RangeReader(self.keys), fetcher)

    def split(self, pieces: int) -> list["PrefixRange"]:
        """About so many ranges in its place, found by probing. Raises StorageError."""
        return [replace(self, keys=keys) for keys in split_range(self.keys, pieces)]

    def items(self, reader: RangeReader, fetcher: Fetcher) -> Iterator[Found]:
        """What the objects are that a reader of its keys gives."""
        objects = iter(reader)
        first = next(objects, None)
        return (
            iter(())
            if first is None
            else self.prefix.items(chain([first], objects), fetcher, self._table_before(first.uri))
        )

    def _table_before(self, uri: str) -> ObjectInfo | None:
        """The sidecar table of a folder in which the range begins, if it is part of the source.
        Raises StorageError.
        """
        place, below = uri.rpartition("/")[0] + TABLE, self.prefix.below
        matches = (
            (lambda _: True) if self.keys.pattern is None else urls.full_matcher(self.keys.pattern)
        )
        if not (place.startswith(below) and matches(place.removeprefix(below))):
            return None
        try:
            return next((info for info in list_objects(place) if info.uri == place), None)
        except ConfigError:  # nothing is there
            return None


class BegunRange:
    """A range that is read as far as `most` members go: a container counts for as many as it may
    hold.
    """

    def __init__(self, whole: PrefixRange, most: int) -> None:
        self._whole, self._most, self._reader = whole, most, RangeReader(whole.keys)

    def found(self, fetcher: Fetcher) -> Iterator[Found]:
        """As `PrefixRange.found`; of files whole pages, of containers no more than are wanted."""
        members = 0
        for path, item in self._whole.items(self._reader, fetcher):
            holds = item.size_bytes // _BYTES_A_MEMBER if isinstance(item, Container) else 0
            members += 1 + max(holds, 0)
            if members >= self._most:
                self._reader.stop(here=holds > 0)
            yield path, item

    @property
    def rest(self) -> PrefixRange | None:
        """What is left, once all was found; None where that is nothing."""
        return None if self._reader.rest is None else replace(self._whole, keys=self._reader.rest)


def as_found(
    info: ObjectInfo, path: str, kind: str | None, columns: TableColumns, limits: ContainerLimits
) -> ListedMember | Container:
    """An object as a container of the format `kind`, of that which its name announces (None), or as
    a file of its own.
    """
    kind = kind_of(path) if kind is None else kind
    if kind is not None and kind in CONTAINERS:
        return Container(info.uri, info.version, info.size_bytes, kind, path, columns, limits)
    member = VersionlessFile if isinstance(info, ClosedFile) else ListedMember
    return member(info.uri, None, 0, info.version, info.size_bytes)
