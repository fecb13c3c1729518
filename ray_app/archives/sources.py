"""What a person calls an archive → its members. Knows sources and patterns; knows nothing of ids, blocks or pixels.

Every file is listed, whatever its name says it is: what is no image gets a row that says so. Hidden files are files too.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from ray_app.archives.members import Listed
from ray_app.errors import ConfigError
from ray_app.storage import base_of, canonical, list_objects, matcher, strip_secrets


class Source(Protocol):
    """One way to keep an archive: a new one is one class in a file of its own, and a line in `_source_for`."""

    @property
    def input_type(self) -> pa.StructType | None:
        """The columns that the archive's owner has beside the images, None without any."""

    def listed(self) -> Iterator[tuple[str, Listed]]:
        """Every member with the path that patterns are compared with, in a fixed order."""


class ObjectPrefix:
    """Files in a folder or under a key prefix, files that match a pattern, or one file."""

    input_type: pa.StructType | None = None

    def __init__(self, url: str) -> None:
        self._url = url

    def listed(self) -> Iterator[tuple[str, Listed]]:
        """Every object, with its path relative to the source; a single file goes by its name."""
        below = strip_secrets(base_of(self._url)).rstrip("/") + "/"
        for info in list_objects(self._url):
            path = info.uri.removeprefix(below) if info.uri.startswith(below) else info.uri.rpartition("/")[2]
            yield path, Listed(info.uri, None, 0, info.version, info.size_bytes)


class Archive:
    """All members of some sources, in order, as patterns let them pass. Iterating lists anew.

    `include` and `exclude` are patterns as in `ray_app.storage.globs`, over paths relative to their source; `skip` are places never
    listed, such as the run directory inside its own source. Iterating raises ConfigError when no file is left, StorageError when a
    source is out of reach.
    """

    def __init__(
        self, sources: Sequence[str], include: Sequence[str] = (), exclude: Sequence[str] = (), *, skip: Sequence[str] = ()
    ) -> None:
        if not sources:
            raise ConfigError("no source given", hint="name a folder, s3://BUCKET/PREFIX or a file")
        self._sources = [_source_for(url) for url in sources]
        self._names = [strip_secrets(url) for url in sources]
        self._include, self._exclude = tuple(include), tuple(exclude)
        self._skip = tuple(strip_secrets(canonical(url)).rstrip("/") for url in skip)

    @property
    def input_type(self) -> pa.StructType | None:
        """The input columns of all sources together. Raises ConfigError where two give one name different types."""
        types = [source.input_type for source in self._sources if source.input_type is not None]
        try:
            columns = list(pa.unify_schemas([pa.schema(list(fields)) for fields in types])) if types else []
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ConfigError(f"{', '.join(self._names)}: their columns do not fit together: {error}") from None
        return pa.struct(columns) if columns else None

    def __iter__(self) -> Iterator[Listed]:
        included, excluded = matcher(self._include or ("*",)), matcher(self._exclude)
        found = kept = 0
        for source in self._sources:
            for path, item in source.listed():
                if self._is_skipped(item.uri):
                    continue
                found += 1
                if included(path) and not excluded(path):
                    kept += 1
                    yield item
        if not kept:
            raise self._empty(found)

    def _is_skipped(self, uri: str) -> bool:
        return any(uri.startswith(place) and uri[len(place) : len(place) + 1] in ("", "/") for place in self._skip)

    def _empty(self, found: int) -> ConfigError:
        names = ", ".join(self._names)
        if not found:
            return ConfigError(f"{names}: nothing there but the run directory itself")
        patterns = " ".join([f"--include {p}" for p in self._include] + [f"--exclude {p}" for p in self._exclude])
        return ConfigError(
            f"{names}: none of {found} files passes {patterns}", hint="letters count as they are: *.jpg is not A.JPG; ** spans folders"
        )


def open_source(sources: Sequence[str], include: Sequence[str] = (), exclude: Sequence[str] = (), *, skip: Sequence[str] = ()) -> Archive:
    """The archive that some sources make up; touches nothing until it is iterated."""
    return Archive(sources, include, exclude, skip=skip)


def _source_for(url: str) -> Source:
    return ObjectPrefix(url)
