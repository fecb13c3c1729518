"""`ObjectPrefix`: objects below a place as a source; files of their own, and containers by their names, none of which is opened."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from ray_app.archives.containers import CONTAINERS, Container, ContainerLimits, TableColumns, kind_of
from ray_app.archives.img2dataset import Samples, beside, table_of_folder
from ray_app.archives.members import ListedMember
from ray_app.storage import (
    Fetcher,
    KeyRange,
    ObjectInfo,
    base_of,
    canonical,
    is_pattern,
    list_divisions,
    list_objects,
    list_range,
    strip_secrets,
)
from ray_app.storage.urls import full_matcher

Found = tuple[str, ListedMember | Container]


@dataclass(frozen=True)
class ObjectPrefix:
    """Files in a folder or under a key prefix, files that match a pattern, or one file; containers among them unless `kind` is files.

    `kind`: the format that every file is taken for, instead of what its name announces.
    """

    url: str
    kind: str | None
    columns: TableColumns
    limits: ContainerLimits

    def sections(self, fetcher: Fetcher) -> Iterator["ObjectPrefix | PrefixRange"]:
        """The whole of it; where it is a large S3 prefix, stretches of it, in the order of keys."""
        divisions = list_divisions(self.url)
        yield from (PrefixRange(self, keys) for keys in divisions)
        if not divisions:
            yield self

    def found(self, fetcher: Fetcher) -> Iterator[Found]:
        """Every object, with its path relative to the source; a single file goes by its name."""
        return self.told(list_objects(self.url, fetcher.guard), fetcher)

    @property
    def below(self) -> str:
        """The place that paths are relative to, with a slash."""
        return strip_secrets(base_of(self.url)).rstrip("/") + "/"

    def told(self, objects: Iterable[ObjectInfo], fetcher: Fetcher, table: ObjectInfo | None = None) -> Iterator[Found]:
        """What some of its objects are, in the order of their uris; `table`: what tells of the first ones."""
        below, own = self.below, None if is_pattern(self.url) else strip_secrets(canonical(self.url))
        samples: tuple[str, Samples] | None = None
        for info, telling in beside(objects, table):
            path = info.uri.removeprefix(below) if info.uri.startswith(below) else info.uri.rpartition("/")[2]
            item = as_found(info, path, self.kind, self.columns, self.limits)
            described = None if telling is None else self._table(telling)
            if isinstance(item, Container):
                item = replace(item, named=info.uri == own, samples=described)
            elif described is not None:
                if samples is None or samples[0] != described.uri:
                    samples = described.uri, Samples(described, fetcher)
                item = samples[1].told(item, info.uri.rpartition("/")[2])
            yield path, item

    def _table(self, info: ObjectInfo) -> Container:
        return Container(info.uri, info.version, info.size_bytes, "parquet", info.uri, self.columns, self.limits)


@dataclass(frozen=True)
class PrefixRange:
    """A stretch of a large prefix."""

    prefix: ObjectPrefix
    keys: KeyRange

    def found(self, fetcher: Fetcher) -> Iterator[Found]:
        """Its objects, as `ObjectPrefix.found` tells them."""
        objects = list_range(self.keys)
        first = next(objects, None)
        if first is None:
            return iter(())
        table = table_of_folder(first.uri, self.prefix.below)
        # Of a pattern, a table tells only where it is among what matches, as in one listing of it all.
        if table is not None and self.keys.pattern is not None:
            table = table if full_matcher(self.keys.pattern)(table.uri.removeprefix(self.prefix.below)) else None
        return self.prefix.told(chain([first], objects), fetcher, table)


def as_found(info: ObjectInfo, path: str, kind: str | None, columns: TableColumns, limits: ContainerLimits) -> ListedMember | Container:
    """An object as a container of the format `kind`, of that which its name announces (None), or as a file of its own."""
    kind = kind_of(path) if kind is None else kind
    if kind is not None and kind in CONTAINERS:
        return Container(info.uri, info.version, info.size_bytes, kind, path, columns, limits)
    return ListedMember(info.uri, None, 0, info.version, info.size_bytes)
