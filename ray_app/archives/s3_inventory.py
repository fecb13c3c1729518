"""S3 Inventory as a source, `inventory::s3://…/manifest.json` (`inventory_files`): the daily or weekly table of a bucket's objects (CSV.gz,
Parquet, ORC), read instead of listing the bucket.

Its members are those that a listing gives, with the same uris, versions and sizes, as of the day it was made. Source:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory.html and …/storage-inventory-location.html.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.orc as orc
import pyarrow.parquet as pq

from ray_app.archives import members, object_prefix
from ray_app.archives.containers import ContainerLimits
from ray_app.archives.selection import Found
from ray_app.errors import ConfigError, SourceError, Status, StorageError, describe_error
from ray_app.storage import Fetcher, ObjectInfo, Store, urls

MANY = 10_000_000  # keys that are better read from an inventory: as requests they are 10,000

_ROWS_AT_ONCE = 16_384
_MOST_BYTES = 64 * 2**20  # of a manifest.json, which has some 200 bytes for a data file of up to a million objects
# What the inventory is asked for besides the bucket and key that it always has, and how its settings call it.
_NEEDED = {"size": "Size", "etag": "ETag"}
_VERSIONED = ("islatest", "isdeletemarker")


def inventory_advice(sources: Sequence[str]) -> str | None:
    """What to say of sources with `MANY` keys; None where none of them is listed by requests to S3."""
    places = [source for source in sources if source.startswith(("s3://", "files::s3://"))]
    if not places:
        return None
    return (
        f"{places[0]} has very many keys: an S3 Inventory lists them without a request for every thousand"
        " (a daily or weekly table with Size and ETag; then inventory::s3://BUCKET/…/manifest.json is the source)"
    )


def inventory_files(url: str, columns: members.TableColumns, limits: ContainerLimits, fetcher: Fetcher) -> Iterator["InventoryFile"]:
    """The data files that the manifest.json at `url` lists, which are in its own bucket.

    Raises ConfigError for what is no inventory, or lacks a column; StorageError when it is out of reach.
    """
    try:
        manifest = _manifest(url)
        schema, kind = manifest["fileSchema"], manifest["fileFormat"]
        bucket, listed = manifest["destinationBucket"].removeprefix("arn:aws:s3:::"), str(manifest["sourceBucket"])
        files = [(f"s3://{bucket}/{file['key']}", int(file.get("size", -1))) for file in manifest["files"]]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{url}: not the manifest.json of an S3 Inventory: {describe_error(error)}") from None
    if urls.scheme_of(url) == "s3" and urls.bucket_and_key(url)[0] != bucket:
        raise ConfigError(f"{url}: its data files are in another bucket, {bucket}", hint="give the manifest.json in that bucket")
    names = _column_names(schema)
    missing = [setting for name, setting in _NEEDED.items() if name not in names]
    if missing:
        raise ConfigError(
            f"{url}: the inventory lacks {' and '.join(missing)}",
            hint=f"add to its optional fields: {', '.join(missing)}; without them an image cannot be distinguished from its later versions",
        )
    if kind not in _READERS:
        raise ConfigError(f"{url}: the inventory's format '{kind}' is not one of {', '.join(_READERS)}")
    for uri, size in files:
        yield InventoryFile(uri, size, kind, tuple(names), columns, limits, listed)


def _manifest(url: str) -> Any:
    """Raises ConfigError where there is none, ValueError for what is too long or no JSON."""
    folder, _, name = url.rpartition("/")
    store = Store.open(folder)
    if not store.exists(name):
        raise ConfigError(f"{url}: no such file", hint="an inventory's manifest.json lies in a folder named by its date")
    data = store.read_range(name, 0, _MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it is longer than {_MOST_BYTES} bytes")
    return json.loads(data)


@dataclass(frozen=True)
class InventoryFile:
    """One data file of an inventory of `bucket`."""

    uri: str
    size_bytes: int
    kind: str
    names: tuple[str, ...]
    columns: members.TableColumns
    limits: ContainerLimits
    bucket: str

    def found(self, fetcher: Fetcher) -> Iterator[Found]:
        """The objects that the bucket had, in the file's order, and their keys; rows of another bucket are refused.

        Raises StorageError when the file cannot be read.
        """
        other = members.RefusedMember(Status.UNSAFE_MEMBER, f"in another bucket than the inventory's, {self.bucket}")
        try:
            for info in self._objects(fetcher):
                bucket, _, key = info.uri.partition("://")[2].partition("/")
                if bucket == self.bucket:
                    yield key, object_prefix.as_found(info, key, None, self.columns, self.limits)
                else:
                    yield key, members.ListedMember(info.uri, None, 0, info.version, info.size_bytes, refused=other)
        except SourceError as error:
            raise StorageError(
                f"cannot read the inventory's file {self.uri}: {error.detail}",
                hint="buckets can have old inventories deleted: give the newest manifest.json",
            ) from error

    def _objects(self, fetcher: Fetcher) -> Iterator[ObjectInfo]:
        file = fetcher.open(self.uri, "", self.size_bytes)
        try:
            with file:
                for rows in _READERS[self.kind](file, self.names):
                    yield from self._listed(rows)
        except (pa.ArrowException, OSError, ValueError) as error:
            if file.failed is not None:  # of which the reader of ORC keeps only the text
                raise file.failed from error
            raise ConfigError(f"{self.uri}: not a readable {self.kind} file of an inventory: {' '.join(str(error).split())}") from error

    def _listed(self, rows: pa.RecordBatch) -> Iterator[ObjectInfo]:
        columns = {_plain(name): rows.column(i).to_pylist() for i, name in enumerate(rows.schema.names)}
        nothing = [None] * rows.num_rows
        wanted = [columns.get(name, nothing) for name in ("bucket", "key", "size", "etag", *_VERSIONED)]
        for bucket, key, size, etag, is_latest, is_marker in zip(*wanted, strict=True):
            # Booleans, or the texts of a CSV.
            if str(is_latest).lower() == "false" or str(is_marker).lower() == "true":
                continue
            key = unquote_plus(key) if self.kind == "CSV" else key
            size = -1 if size in (None, "") else int(size)
            # As a listing leaves out what consoles put there to show an empty folder.
            if not (key.endswith("/") and size == 0):
                yield ObjectInfo(f"s3://{bucket}/{key}", size, (etag or "").strip('"'))


def _plain(name: str) -> str:
    """One spelling for IsDeleteMarker, is_delete_marker, e_tag and ETag."""
    return name.replace("_", "").lower()


def _column_names(schema: str) -> list[str]:
    """The columns, in their order: from a comma-separated list (CSV), a Parquet message or an ORC struct."""
    if schema.lstrip().startswith("message"):
        return [_plain(name) for name in re.findall(r"(?:required|optional)\s+\w+\s+(\w+)", schema)]
    if schema.lstrip().startswith("struct<"):
        return [_plain(name) for name in re.findall(r"(\w+):", schema)]
    return [_plain(name.strip()) for name in schema.split(",")]


def _csv(file: Any, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    unpacked = pa.CompressedInputStream(pa.PythonFile(file, "r"), "gzip")
    texts = pcsv.ConvertOptions(column_types={name: pa.string() for name in names}, strings_can_be_null=False)
    yield from pcsv.open_csv(unpacked, pcsv.ReadOptions(column_names=list(names), use_threads=False), convert_options=texts)


def _parquet(file: Any, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    table = pq.ParquetFile(file, buffer_size=1 << 20)
    yield from table.iter_batches(_ROWS_AT_ONCE, columns=_wanted(table.schema_arrow.names), use_threads=False)


def _orc(file: Any, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    table = orc.ORCFile(file)
    wanted = _wanted(table.schema.names)
    for stripe in range(table.nstripes):
        yield table.read_stripe(stripe, columns=wanted)


def _wanted(names: list[str]) -> list[str]:
    return [name for name in names if _plain(name) in ("bucket", "key", *_NEEDED, *_VERSIONED)]


_READERS: dict[str, Callable[[Any, tuple[str, ...]], Iterator[pa.RecordBatch]]] = {"CSV": _csv, "Parquet": _parquet, "ORC": _orc}
