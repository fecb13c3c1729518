"""Objects below a place as a source: files of their own, and containers by their names. Opens none of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ray_app.archives.containers import CONTAINERS, Columns, Container, ContainerLimits, kind_of
from ray_app.archives.members import Listed
from ray_app.storage import Fetcher, KeyRange, ObjectInfo, base_of, list_divisions, list_objects, list_range, strip_secrets

Found = tuple[str, Listed | Container]


@dataclass(frozen=True)
class ObjectPrefix:
    """Files in a folder or under a key prefix, files that match a pattern, or one file; containers among them unless `kind` is files.

    `kind`: the format that every file is taken for, instead of what its name announces.
    """

    url: str
    kind: str | None
    columns: Columns
    limits: ContainerLimits

    def sections(self) -> Iterator["ObjectPrefix | PrefixRange"]:
        """The whole of it; where it is a large S3 prefix, stretches of it, in the order of keys."""
        divisions = list_divisions(self.url)
        yield from (PrefixRange(self, keys) for keys in divisions)
        if not divisions:
            yield self

    def found(self, fetcher: Fetcher) -> Iterator[Found]:
        """Every object, with its path relative to the source; a single file goes by its name."""
        return self.told(list_objects(self.url))

    def told(self, objects: Iterable[ObjectInfo]) -> Iterator[Found]:
        """What some of its objects are."""
        below = strip_secrets(base_of(self.url)).rstrip("/") + "/"
        for info in objects:
            path = info.uri.removeprefix(below) if info.uri.startswith(below) else info.uri.rpartition("/")[2]
            yield path, as_found(info, path, self.kind, self.columns, self.limits)


@dataclass(frozen=True)
class PrefixRange:
    """A stretch of a large prefix."""

    prefix: ObjectPrefix
    keys: KeyRange

    def found(self, fetcher: Fetcher) -> Iterator[Found]:
        """Its objects, as `ObjectPrefix.found` tells them."""
        return self.prefix.told(list_range(self.keys))


def as_found(info: ObjectInfo, path: str, kind: str | None, columns: Columns, limits: ContainerLimits) -> Listed | Container:
    """An object as a container of the format `kind`, of that which its name announces (None), or as a file of its own."""
    kind = kind_of(path) if kind is None else kind
    if kind is not None and kind in CONTAINERS:
        return Container(info.uri, info.version, info.size_bytes, kind, path, columns, limits)
    return Listed(info.uri, None, 0, info.version, info.size_bytes)
