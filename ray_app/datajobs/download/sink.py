"""Store downloaded images as files or in shards, and record the result of each URL (`Sink`).

The result of a URL is a row of a table. If images are files, rows are committed after their files.
A file without a row is checked before its URL is requested again. If images are in shards, rows are
committed before their shard. Rows whose shard is missing are ignored.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from yarl import URL

from ray_app.archives import ManifestMember
from ray_app.datajobs.download.config import CollectConfig
from ray_app.datajobs.parts import OK, write_part
from ray_app.datajobs.shards.writer import SHARD_EXTENSIONS, SHARDS, LocalShard, PackedMember
from ray_app.storage import Store, strip_secrets

# The outcome of a URL. `place` is the path of the file or the shard below `out`. `url` and
# `final_url` are without secrets.
OUTCOME = pa.schema(
    [("id", pa.string()), ("url", pa.string()), ("status", pa.string()), ("detail", pa.string()), ("place", pa.string()),
     ("sha256", pa.string()), ("format", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("size_bytes", pa.int64()),
     ("http_status", pa.int32()), ("requests", pa.int32()), ("final_url", pa.string()), ("ended_at", pa.timestamp("us", "UTC"))]
)  # fmt: skip
Row = dict[str, Any]


def get_host(url: str) -> str:
    """Return the host of a URL in ASCII and lower case, without port; "" if it has no host."""
    try:
        return (URL(url).raw_host or "").removesuffix(".")
    except ValueError:
        return ""


@dataclass(frozen=True)
class Task:
    """A URL of the list to download.

    Attributes:
        id: Unique id of the image.
        listed_url: The URL in the list, without secrets.
        url: The URL to request, which differs from `listed_url` after a redirect.
        stem: Name of the image file, without extension.
        existing_files: Files with this stem that no row names, such as those of a killed session.
        columns: Columns of the list that a shard stores with the image.
        hops: Number of redirects so far.
        requests: Number of requests so far.
    """

    id: str
    listed_url: str
    url: str
    stem: str
    existing_files: tuple[str, ...] = ()
    columns: Mapping[str, str | None] = field(default_factory=dict)
    hops: int = 0
    requests: int = 0

    @property
    def host(self) -> str:
        """Host of the next request, whose limits apply."""
        return get_host(self.url)


def make_row(task: Task, status: str, **columns: Any) -> Row:
    """Return the row that records the result of downloading a URL, with the columns of `OUTCOME`.

    Args:
        task: The URL, as a task.
        status: Status of the download, a key of `MEANING` such as "ok".
        **columns: Values of further columns, such as `sha256`. Columns without a value are null.

    Returns:
        The row.
    """
    request_columns = {
        "id": task.id,
        "url": task.listed_url,
        "requests": task.requests,
        "final_url": strip_secrets(task.url),
    }
    return (
        dict.fromkeys(OUTCOME.names)
        | request_columns
        | {"status": status, "ended_at": datetime.now(UTC)}
        | columns
    )


_UNSAFE = re.compile(r"[^\w.+=,@-]")
# Bytes of UTF-8 in a file name. Most file systems allow 255; the extension and the prefix of a
# store need some of them.
_MAX_NAME_BYTES = 150
# Device names of Windows.
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)
# MIME subtypes of each format, the usual one first. File names are those of DFLIP-3K's own
# downloader, `<id>.<subtype>` (arXiv 2401.02335), with two differences: ids with dots are not cut,
# and the extension follows the bytes if they have another format.
_SUBTYPES = {
    "JPEG": ("jpeg", "jpg"), "PNG": ("png", "apng"), "WEBP": ("webp",), "GIF": ("gif",), "BMP": ("bmp",), "TIFF": ("tiff", "tif"),
    "AVIF": ("avif",), "HEIC": ("heic", "heif"), "JPEG2000": ("jp2", "jpx"), "PNM": ("pnm",), "RAW": ("raw",),
}  # fmt: skip
EXTENSIONS = frozenset(subtype for subtypes in _SUBTYPES.values() for subtype in subtypes)


class Sink:
    """Store downloaded images, as files or in shards, and a row with the result of each URL.

    Call `keep` for each image, then `add` for each URL, and `commit` from time to time. At the end,
    call `publish` and `close`.

    `read` and `keep` may be called from many threads. All other methods may be called from only one
    thread at a time.

    Args:
        store: The output directory.
        records: The store of the rows.
        config: Settings of the collection.
        columns: Names of the columns of the list that shards store.
    """

    def __init__(
        self, store: Store, records: Store, config: CollectConfig, columns: Sequence[str]
    ) -> None:
        self._store, self._records, self._form = store, records, config.form
        self._prefix = f"{config.folder}/" if config.folder else ""
        self._max_shard_bytes, self._type = (
            config.shard_mb * 1e6,
            pa.struct([(name, pa.string()) for name in columns]),
        )
        self._rows: list[Row] = []
        self._packed: list[Row] = []
        self._shard: LocalShard | None = None

    def read(self, name: str) -> bytes:
        """Return the bytes of an image file that an earlier call of the job has stored.

        `name` is the file name with extension. Raises FileNotFoundError if the file is missing.
        """
        return self._store.read(self._prefix + name)

    def keep(
        self, task: Task, data: bytes, image_format: str, content_type: str | None
    ) -> str | None:
        """Write the file of a downloaded image, and delete older files of this image.

        An older file has the same name with another extension. If images go into shards, nothing is
        written, because `add` writes them.

        Args:
            task: The task of the image.
            data: Bytes of the image.
            image_format: Format of the bytes.
            content_type: Content-Type of the response. None if it had none.

        Returns:
            The path of the file below the output directory. None if images go into shards.
        """
        if self._form != "files":
            return None
        name = f"{task.stem}.{choose_extension(content_type, image_format)}"
        if name not in task.existing_files or self.read(name) != data:
            self._store.write(self._prefix + name, data)
        for other in task.existing_files:
            if other != name:
                self._store.delete(self._prefix + other)
        return self._prefix + name

    def add(self, row: Row, data: bytes, task: Task) -> None:
        """Add the row of a finished task. Add its image to the shard, and upload a full shard.

        Args:
            row: The row with the result of the download, as `make_row` returns it.
            data: Bytes of the image, which are only used for shards.
            task: The task.
        """
        if self._form == "files" or row["status"] != OK:
            self._rows.append(row)
            return
        if self._shard is None:
            self._shard, self._token, self._packed = (
                SHARDS[self._form](self._type),
                secrets.token_hex(5),
                [],
            )
        member = ManifestMember(
            0,
            strip_secrets(task.listed_url),
            None,
            0,
            row["sha256"],
            len(data),
            0,
            0,
            dict(task.columns),
        )
        try:
            self._shard.add(
                PackedMember(
                    f"{self._token}-{len(self._packed):06}",
                    member,
                    data,
                    row["sha256"],
                    row["format"],
                )
            )
        except BaseException:
            self.close()  # The state of the shard is unknown after a failed write.
            raise
        self._packed.append(row)
        if self._shard.size_bytes >= self._max_shard_bytes:
            self._publish()

    def commit(self) -> None:
        """Write the rows that are not written yet.

        A later call of the job does not request the URLs of written rows. Rows of images in a shard
        that is not full are written later, with their shard.
        """
        rows, self._rows = self._rows, []
        if rows:
            write_part(self._records, secrets.token_hex(8), rows, OUTCOME)

    def publish(self) -> None:
        """Write all rows that are not written yet, and upload the last shard.

        The last shard is uploaded even if it is not full.
        """
        self.commit()
        if self._shard is not None:
            self._publish()

    def close(self) -> None:
        """Discard the shard that is not uploaded, with its images and rows.

        Call `publish` before to keep them. A later call of the job downloads discarded images
        again.
        """
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.drop()

    def _publish(self) -> None:
        assert self._shard is not None
        assert self._form != "files"
        path = f"data/{self._token}.{SHARD_EXTENSIONS[self._form]}"
        try:
            self._shard.finish()
            write_part(
                self._records,
                self._token,
                [row | {"place": path} for row in self._packed],
                OUTCOME,
            )
            self._store.write_file(path, self._shard.path)
        finally:
            self.close()


def make_safe_name(name: str) -> str:
    """Return a file name without extension for an id.

    The name is the id itself if the id is safe on every file system. Otherwise it is a safe form of
    the id, followed by eight digits of its hash.
    """
    plain = _UNSAFE.sub("_", name).lstrip(".")
    while len(plain.encode()) > _MAX_NAME_BYTES:
        plain = plain[:-1]
    if plain == name and plain and not plain.endswith(".") and not _RESERVED.fullmatch(plain):
        return name
    return append_hash(plain or "_", name)


def append_hash(plain: str, name: str) -> str:
    """Append eight hex digits of the SHA-256 of the id `name` to the file name `plain`."""
    return f"{plain.rstrip('.')}~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def make_file_stems(ids: Iterable[str]) -> tuple[list[str], int]:
    """Return a file name without extension for each id, in order.

    No two names are equal or differ only in case.

    Args:
        ids: The ids.

    Returns:
        The names, and the number of ids whose name got a hash because an earlier id has the name.
    """
    used: set[str] = set()
    stems: list[str] = []
    conflicts = 0
    for name in ids:
        stem = make_safe_name(name)
        conflicts += stem.casefold() in used
        # A loop, because an id may equal another id with its hash.
        while stem.casefold() in used:
            stem = append_hash(stem, name)
        used.add(stem.casefold())
        stems.append(stem)
    return stems, conflicts


def choose_extension(content_type: str | None, image_format: str) -> str:
    """Return the file extension of an image, without dot.

    The extension is the subtype of the Content-Type if the subtype matches the format of the bytes,
    else the usual extension of the format.
    """
    subtype = (content_type or "").partition(";")[0].strip().lower().rpartition("/")[2]
    subtypes = _SUBTYPES.get(image_format, (image_format.lower(),))
    return subtype if subtype in subtypes else subtypes[0]
