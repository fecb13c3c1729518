"""img2dataset's sidecar tables: beside a shard `00000.tar`, or a folder of files `00000/`, lies `00000.parquet` with a row for every sample
by its key (`Samples`, `beside`). Its columns become columns of that image, and the table stays a file like others.

Source: https://github.com/rom1504/img2dataset, output formats `webdataset` and `files`; in `parquet` the table holds the images itself.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from ray_app.archives.containers import Container
from ray_app.archives.containers.base import sample_key, sidecar_column
from ray_app.archives.containers.parquet import rows_by
from ray_app.archives.members import ListedMember, ListedWithColumns
from ray_app.errors import ConfigError
from ray_app.storage import Fetcher, ObjectInfo, list_objects

TABLE, _SHARD = ".parquet", ".tar"
_MOST_CELLS = 2_000_000  # held in memory, one table at a time; img2dataset writes 10,000 rows of some twelve to a shard


class Samples:
    """What one table says of its samples, read when the first of them is asked for."""

    def __init__(self, table: Container, fetcher: Fetcher) -> None:
        self._table, self._fetcher = table, fetcher
        self._rows: Mapping[str, Mapping[str, Any]] | None = None

    def told(self, item: ListedMember, name: str) -> ListedMember:
        """A member with the columns of its sample, `name` being its path in the shard or folder; its own columns stay as they are.

        Texts beside an image stay without. Of masks it tells nothing: the table came with the files, and would lead to others. Raises
        StorageError where the store gives no answer.
        """
        if self._rows is None:
            self._rows = rows_by("key", self._table, self._fetcher, most=_MOST_CELLS)
        row = None if sidecar_column(name, item.size_bytes) else self._rows.get(sample_key(name))
        if row is None:
            return item
        described = {column: value for column, value in row.items() if not _names_a_mask(column)}
        values = {one.name: getattr(item, one.name) for one in fields(item)} | {"input": {**described, **item.input}}
        return ListedWithColumns(**values)


def beside(objects: Iterable[ObjectInfo], table: ObjectInfo | None = None) -> Iterator[tuple[ObjectInfo, ObjectInfo | None]]:
    """Objects in the order of their uris, each with the table that tells of it and therefore came before; `table`: of the first ones."""
    for info in objects:
        tells = table is not None and _tells_of(table, info.uri)
        yield info, table if tells else None
        if not tells and info.uri.endswith(TABLE):
            table = info


def table_of_folder(uri: str, below: str) -> ObjectInfo | None:
    """The table that tells of a file in a folder, if it lies below a place: for those who begin to list there. Raises StorageError."""
    place = uri.rpartition("/")[0] + TABLE
    try:
        return next((info for info in list_objects(place) if info.uri == place), None) if place.startswith(below) else None
    except ConfigError:  # nothing is there
        return None


def _names_a_mask(column: str) -> bool:
    return column == "mask" or column.endswith("_uri")


def _tells_of(table: ObjectInfo, uri: str) -> bool:
    stem = table.uri.removesuffix(TABLE)
    return uri == stem + _SHARD or uri.startswith(stem + "/")
