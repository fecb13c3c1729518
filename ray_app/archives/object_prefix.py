"""List the objects of a folder, key prefix, or pattern as a source (`ObjectPrefix`).

An object whose name announces a container is listed as an unopened container, any other object as a
single file.

img2dataset writes sidecar tables (`SidecarTable`): next to a shard `00000.tar`, or a folder of
files `00000/`, there is `00000.parquet` with one row per sample. The columns of a row become
columns of the sample's image. The table itself is also listed, as any other file.

Source: https://github.com/rom1504/img2dataset, output formats `webdataset` and `files`; in
`parquet` the table holds the images itself.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import chain
from typing import Any

from ray_app.archives.containers import CONTAINERS, Container, ContainerLimits, base, detect_kind
from ray_app.archives.containers.parquet import read_rows_by
from ray_app.archives.members import (
    ListedMember,
    ListedWithColumns,
    TableColumns,
    UnreadableFolder,
    VersionlessFile,
)
from ray_app.archives.saved_datasets import refuse_saved_dataset
from ray_app.archives.selection import ListedEntry, Selection
from ray_app.errors import StorageError
from ray_app.storage import (
    ClosedFile,
    ClosedFolder,
    Fetcher,
    KeyPrefix,
    ObjectInfo,
    PrefixReader,
    canonicalize,
    find_object,
    list_objects,
    split_source,
    strip_secrets,
    urls,
)

TABLE, _SHARD = ".parquet", ".tar"
_BYTES_PER_MEMBER = 100_000  # An estimate, for a container that is not opened yet.
# A table is held in memory, one at a time. img2dataset writes 10,000 rows of some twelve columns
# per shard.
_MAX_CELLS = 2_000_000


class SidecarTable:
    """A table next to a shard or folder, with columns for its images. It is read when first needed.

    img2dataset writes such tables: `00000.parquet` describes the files in `00000.tar`.
    """

    def __init__(self, table: Container, fetcher: Fetcher) -> None:
        self._table, self._fetcher = table, fetcher
        self._rows: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def uri(self) -> str:
        """The uri of the sidecar table."""
        return self._table.uri

    def merge_columns(self, item: ListedMember, name: str) -> ListedMember:
        """Add the columns that the table has for an image to the `input` of the image's member.

        The row of an image is found by its name without the ending, which is in the column `key`.
        Columns that the member already has are not changed. Sidecar texts (`.json`, `.txt`, `.cls`)
        get no columns. Columns that name mask files are left out, because an untrusted table must
        not lead to other files. `name` is the path of the member in the shard or folder.
        """
        if self._rows is None:
            self._rows = read_rows_by("key", self._table, self._fetcher, max_cells=_MAX_CELLS)
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
        values = {
            item_field.name: getattr(item, item_field.name) for item_field in fields(item)
        } | {"input": {**columns, **item.input}}
        return ListedWithColumns(**values)


@dataclass(frozen=True)
class ObjectPrefix:
    """A source of files: a folder, a key prefix, a pattern that files match, or a single file.

    Attributes:
        kind: The container format that is assumed for every file, whatever its name. "files" opens
            no file as a container. None uses the format that the name of each file announces.
        selection: The patterns of the archive. Folders that it leaves out are not listed.
    """

    url: str
    kind: str | None
    columns: TableColumns
    limits: ContainerLimits
    selection: Selection = field(default_factory=Selection)

    def list_entries(self, fetcher: Fetcher) -> Iterator[ListedEntry]:
        """Yield every object as a member or container, with its path relative to the source.

        The path of a single file is its name.
        """
        enters = self.selection.enters()
        objects = list_objects(
            self.url,
            fetcher.guard,
            enters=lambda folder: enters(self._relative_path(folder), folder),
        )
        return self.items(objects, fetcher)

    @property
    def is_pattern(self) -> bool:
        """Whether the URL is a pattern, and not the literal name of an object or a prefix."""
        return self._split[1] is not None

    @cached_property
    def base_url(self) -> str:
        """The URL to which the paths of objects are relative, with a slash at the end."""
        return strip_secrets(self._split[0]).rstrip("/") + "/"

    @cached_property
    def _split(self) -> tuple[str, str | None]:
        return split_source(self.url)

    def _relative_path(self, uri: str) -> str:
        # A name that is not Unicode makes the whole uri a file:// URL.
        path = urls.local_path(uri)
        return (
            path.removeprefix(self.base_url)
            if path.startswith(self.base_url)
            else path.rpartition("/")[2]
        )

    def items(
        self, objects: Iterable[ObjectInfo], fetcher: Fetcher, table: ObjectInfo | None = None
    ) -> Iterator[ListedEntry]:
        """Convert objects of the store to members, or to unopened containers if they are archives.

        The objects are in the order of their uris. Each result has its path relative to the source.
        `table` is the sidecar table of the folder in which `objects` begin, if the table itself is
        not among them.
        """
        named_uri = None if self.is_pattern else strip_secrets(canonicalize(self.url))
        sidecar: SidecarTable | None = None
        if urls.get_scheme(self.url) == "s3":
            objects = self._require_order(objects)
        for info in objects:
            if isinstance(info, ClosedFolder):
                yield (
                    self._relative_path(info.uri),
                    UnreadableFolder.for_reason(info.uri, info.error),
                )
                continue
            path = self._relative_path(info.uri)
            if self.kind is None:
                refuse_saved_dataset(self.base_url, info.uri)
            item = classify_object(info, path, self.kind, self.columns, self.limits)
            stem = "" if table is None else table.uri.removesuffix(TABLE)
            described_by = None
            if table is not None and (info.uri == stem + _SHARD or info.uri.startswith(stem + "/")):
                described_by = Container(
                    table.uri,
                    table.version,
                    table.size_bytes,
                    "parquet",
                    table.uri,
                    self.columns,
                    self.limits,
                )
            elif info.uri.endswith(TABLE):  # A table precedes the objects that it may describe.
                table = info
            if isinstance(item, Container):
                item = replace(item, named=info.uri == named_uri, samples=described_by)
            elif described_by is not None and not isinstance(item, VersionlessFile):
                if sidecar is None or sidecar.uri != described_by.uri:
                    sidecar = SidecarTable(described_by, fetcher)
                item = sidecar.merge_columns(item, info.uri.rpartition("/")[2])
            yield path, item

    def _require_order(self, objects: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
        """Yield the objects; refuse tables that their store may list after what they describe."""
        previous, is_sorted, has_table, has_others = "", True, False, False
        for info in objects:
            is_table = info.uri.endswith(TABLE)
            has_table, has_others = has_table or is_table, has_others or not is_table
            is_sorted = is_sorted and info.uri > previous
            previous = info.uri
            if has_table and has_others and not is_sorted:
                raise StorageError(
                    f"{strip_secrets(self.url)}: the store lists keys out of order, so that tables cannot be"
                    " matched with the files that they describe",
                    hint="give a pattern that selects the files without the tables, as in s3://BUCKET/PREFIX/**/*.tar",
                )
            yield info


@dataclass(frozen=True)
class PrefixSection:
    """A part of a large S3 prefix, which one task lists."""

    source: ObjectPrefix
    keys: KeyPrefix

    def list_entries(self, fetcher: Fetcher) -> Iterator[ListedEntry]:
        """Yield the objects as members or containers, with paths relative to the source."""
        return self.items(PrefixReader(self.keys), fetcher)

    def items(self, reader: PrefixReader, fetcher: Fetcher) -> Iterator[ListedEntry]:
        """Convert the objects that `reader` lists to members or unopened containers."""
        objects = iter(reader)
        first = next(objects, None)
        return (
            iter(())
            if first is None
            else self.source.items(chain([first], objects), fetcher, self._table_before(first.uri))
        )

    def _table_before(self, uri: str) -> ObjectInfo | None:
        """Return the sidecar table of the first object or of its folder, if it is in the source."""
        stem = uri.removesuffix(_SHARD) if uri.endswith(_SHARD) else uri.rpartition("/")[0]
        table_uri, base_url = stem + TABLE, self.source.base_url
        matches = (
            (lambda _: True)
            if self.keys.pattern is None
            else urls.make_full_matcher(self.keys.pattern)
        )
        if not (table_uri.startswith(base_url) and matches(table_uri.removeprefix(base_url))):
            return None
        return find_object(table_uri)


class PartialSection:
    """The beginning of a section of an S3 prefix, up to about `max_members` members.

    A large section is listed in steps: first this part, then parts of `remaining`. Each container
    counts as a number of members that is estimated from its size. The listing stops at the end of a
    page.
    """

    def __init__(self, section: PrefixSection, max_members: int) -> None:
        self._section, self._max_members = section, max_members
        self._reader = PrefixReader(section.keys)

    def list_entries(self, fetcher: Fetcher) -> Iterator[ListedEntry]:
        """Yield the first objects of the section as members or containers."""
        members = 0
        for path, item in self._section.items(self._reader, fetcher):
            estimated_members = (
                item.size_bytes // _BYTES_PER_MEMBER if isinstance(item, Container) else 0
            )
            members += 1 + max(estimated_members, 0)
            if members >= self._max_members:
                self._reader.stop()
            yield path, item

    @property
    def remaining(self) -> PrefixSection | None:
        """The part of the section that `list_entries` did not reach; None if it reached the end."""
        rest = self._reader.rest
        return None if rest is None else replace(self._section, keys=rest)


def classify_object(
    info: ObjectInfo, path: str, kind: str | None, columns: TableColumns, limits: ContainerLimits
) -> ListedMember | Container:
    """Decide whether an object is a container or a single file.

    `kind` is a format, "files" for a single file, or None for the format that the name announces.
    The user's patterns are compared with `path`.
    """
    kind = detect_kind(path) if kind is None else kind
    if kind is not None and kind in CONTAINERS:
        return Container(info.uri, info.version, info.size_bytes, kind, path, columns, limits)
    member = VersionlessFile if isinstance(info, ClosedFile) else ListedMember
    return member(info.uri, None, 0, info.version, info.size_bytes)
