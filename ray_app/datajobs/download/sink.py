"""Where a good image goes: a `FileSink` writes files, a `ShardSink` shards that are published when full. `Checker` decodes first.

Rows are committed here too. Files: rows after their files; a file without a row is checked before its url is requested again.
Shards: rows before their shard; rows whose shard is not there count for nothing.

What travels between the driver and its workers: a `Task` for one url, and its `DownloadResult`.
"""

import hashlib
import io
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from yarl import URL

from ray_app.archives import ManifestMember
from ray_app.datajobs.download.config import OK, CollectConfig, Failed
from ray_app.datajobs.shards.plan import SHARD_ENDINGS
from ray_app.datajobs.shards.plan import Form as PackedForm
from ray_app.datajobs.shards.writer import FORMATS, Packed, ShardFile
from ray_app.errors import InputError, Status, StorageError
from ray_app.images import ImageLimits, formats
from ray_app.inference.decoder_pool import IsolatedDecoders
from ray_app.storage import Store, strip_secrets

# A row of the state. `place`: the file below `out`, or the shard; `url` as the list has it, without secrets in `final_url`.
OUTCOME = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("status", pa.string()),
        ("detail", pa.string()),
        ("place", pa.string()),
        ("sha256", pa.string()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("size_bytes", pa.int64()),
        ("http_status", pa.int32()),
        ("requests", pa.int32()),
        ("final_url", pa.string()),
        ("ended_at", pa.timestamp("us", "UTC")),
    ]
)


def host_of(url: str) -> str:
    """The host that a url is counted at, as it is dialled: in ASCII, small letters, without port; '' where there is none."""
    try:
        return (URL(url).raw_host or "").removesuffix(".")
    except ValueError:
        return ""


@dataclass(frozen=True)
class Task:
    """One url that is to be had now. `stem`: its file's name without ending; `there`: files of that name, perhaps of a killed session.

    After redirects, `url` is the next place to ask and `wanted` what the list says; `hops` counts them, `requests` all requests.
    `before`: when the row of an earlier session ended, which this one's is to replace.
    """

    id: str
    wanted: str
    url: str
    stem: str
    there: tuple[str, ...] = ()
    columns: Mapping[str, str | None] = field(default_factory=dict)
    hops: int = 0
    requests: int = 0
    before: datetime | None = None

    @property
    def host(self) -> str:
        """Whose limit it counts for."""
        return host_of(self.url)


@dataclass(frozen=True)
class DownloadResult:
    """What became of a task; a row of the state."""

    id: str
    url: str
    status: str
    detail: str | None = None
    place: str | None = None
    sha256: str | None = None
    format: str | None = None
    width: int | None = None
    height: int | None = None
    size_bytes: int | None = None
    http_status: int | None = None
    requests: int = 0
    final_url: str | None = None
    ended_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def is_ok(self) -> bool:
        """Whether its image is there."""
        return self.status == OK

    def row(self) -> dict[str, Any]:
        """As `OUTCOME`."""
        return asdict(self)


PARTS = "parts"
_UNSAFE = re.compile(r"[^\w.+=,@-]")
_LONGEST = 150  # bytes of UTF-8; the usual file systems end at 255, and the ending and a store's own prefix want room
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)
# Subtypes under which a format is sent, the usual one first. Names are those of DFLIP-3K's own downloader, `<id>.<subtype>`
# (specs/localization.md §5.1), with ids kept whole where they have dots, and the ending corrected where the bytes say another format.
_SUBTYPES = {
    "JPEG": ("jpeg", "jpg"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tiff", "tif"),
    "AVIF": ("avif",),
    "HEIC": ("heic", "heif"),
    "JPEG2000": ("jp2", "jpx"),
    "JXL": ("jxl",),
    "PNM": ("pnm",),
    "RAW": ("raw",),
}
ENDINGS = frozenset(subtype for subtypes in _SUBTYPES.values() for subtype in subtypes)
_WALL_LIMIT_S = 20.0
_TORN = frozenset((Status.CORRUPT_IMAGE, Status.TRUNCATED_IMAGE, Status.EMPTY_FILE))


def encoded(rows: Sequence[DownloadResult]) -> bytes:
    """Rows as a Parquet file."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row.row() for row in rows], OUTCOME), file, compression="zstd")
    return file.getvalue()


class Sink(Protocol):
    """What a worker needs of either. `read` and `keep` from many threads, the others from one."""

    def read(self, name: str) -> bytes:
        """What an earlier session left. Raises FileNotFoundError."""

    def keep(self, task: Task, data: bytes, image_format: str, content_type: str | None) -> str | None:
        """Put the bytes in their place and return it; None where that is not known yet."""

    def add(self, outcome: DownloadResult, data: bytes, task: Task) -> list[str]:
        """Note how a task ended; the ids of what is committed by that, if anything."""

    def commit(self, *, end: bool = False) -> list[str]:
        """Write down what has ended; the ids of what is committed now."""

    def close(self) -> None:
        """Forget what is not committed."""


class FileSink:
    """Each image a file of `folder`. From one thread at a time, except `keep`."""

    def __init__(self, store: Store, records: Store, folder: str) -> None:
        self._store, self._records, self._prefix = store, records, f"{folder}/" if folder else ""
        self._rows: list[DownloadResult] = []

    def read(self, name: str) -> bytes:
        """What an earlier session left. Raises FileNotFoundError."""
        return self._store.read(self._prefix + name)

    def keep(self, task: Task, data: bytes, image_format: str, content_type: str | None) -> str:
        """Put the bytes in their place and return it; what was there under another ending goes."""
        name = f"{task.stem}.{ending(content_type, image_format)}"
        if name not in task.there or self.read(name) != data:
            self._store.write(self._prefix + name, data)
        for other in task.there:
            if other != name:
                self._store.delete(self._prefix + other)
        return self._prefix + name

    def add(self, outcome: DownloadResult, data: bytes, task: Task) -> list[str]:
        """Note how a task ended; its file is in its place."""
        self._rows.append(outcome)
        return []

    def commit(self, *, end: bool = False) -> list[str]:
        """Write down what has ended; the ids of it."""
        rows, self._rows = self._rows, []
        if rows:
            self._records.write(f"{PARTS}/{secrets.token_hex(8)}.parquet", encoded(rows))
        return [row.id for row in rows]

    def close(self) -> None:
        """Holds nothing."""


class ShardSink:
    """Images one after the other into shards of `shard_mb`, with their columns beside. From one thread at a time."""

    def __init__(self, store: Store, records: Store, config: CollectConfig, columns: Sequence[str]) -> None:
        assert config.form != "files"
        self._store, self._records = store, records
        self._form: PackedForm = config.form
        self._most, self._type = config.shard_mb * 1e6, pa.struct([(name, pa.string()) for name in columns])
        self._failed: list[DownloadResult] = []
        self._file: ShardFile | None = None
        self._rows: list[DownloadResult] = []
        self._size = 0
        self._begin()

    def read(self, name: str) -> bytes:
        """No single file is ever left. Raises FileNotFoundError."""
        raise FileNotFoundError(name)

    def keep(self, task: Task, data: bytes, image_format: str, content_type: str | None) -> None:
        """Its place is known when its shard is full."""

    def add(self, outcome: DownloadResult, data: bytes, task: Task) -> list[str]:
        """Note how a task ended; a good image goes into the shard, and a full shard is published: then, the ids in it."""
        if not outcome.is_ok:
            self._failed.append(outcome)
            return []
        if self._file is None:
            self._file = self._open()
        key = f"{self._token}-{len(self._rows):06}"
        version = outcome.sha256 or ""
        member = ManifestMember(0, strip_secrets(task.wanted), None, 0, version, len(data), 0, 0, dict(task.columns))
        try:
            with _local():
                self._file.add(Packed(key, member, data, version, outcome.format))
        except BaseException:
            self._drop()  # of what it holds nothing is known now
            raise
        self._rows.append(outcome)
        self._size += len(data)
        return self._publish() if self._size >= self._most else []

    def commit(self, *, end: bool = False) -> list[str]:
        """Write down what failed, and at the `end` publish the shard that is not full; the ids of it."""
        failed, self._failed = self._failed, []
        if failed:
            self._records.write(f"{PARTS}/{secrets.token_hex(8)}.parquet", encoded(failed))
        return [row.id for row in failed] + (self._publish() if end else [])

    def close(self) -> None:
        """Forget what is not published."""
        file, self._file = self._file, None
        with suppress(OSError, pa.ArrowException):  # a full disk; what it holds is not wanted any more
            if file is not None:
                file.close()
        self._folder.cleanup()

    def _begin(self) -> None:
        self._token = secrets.token_hex(5)
        self._folder = tempfile.TemporaryDirectory(prefix="touchstone-collect-")
        self._rows, self._size = [], 0

    def _open(self) -> ShardFile:
        file: ShardFile = FORMATS[self._form](Path(self._folder.name) / "shard", self._type)
        return file

    def _publish(self) -> list[str]:
        if self._file is None:
            return []
        file, self._file = self._file, None
        place = f"data/{self._token}.{SHARD_ENDINGS[self._form]}"
        placed = [replace(row, place=place) for row in self._rows]
        try:
            with _local():
                file.close()
            self._records.write(f"{PARTS}/{self._token}.parquet", encoded(placed))
            self._store.write_file(place, Path(self._folder.name) / "shard")
        finally:
            self._drop()
        return [row.id for row in placed]

    def _drop(self) -> None:
        """Begin anew. A shard that could not be published takes its rows along: no later one may count them as its own."""
        self.close()
        self._begin()


@contextmanager
def _local() -> Iterator[None]:
    """This machine's temporary folder. Raises StorageError where it is full."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write a shard in the folder for temporary files: {error.strerror or error}",
            hint="each worker needs room for one shard there; TMPDIR names another place, --set shard_mb=16 makes shards smaller",
        ) from error


def safe_name(name: str) -> str:
    """An id as a file is named after it, without ending: itself, where it is harmless on every file system; else a harmless form of it
    and eight digits of its hash.
    """
    plain = _UNSAFE.sub("_", name).lstrip(".")
    while len(plain.encode()) > _LONGEST:
        plain = plain[:-1]
    if plain == name and plain and not plain.endswith(".") and not _RESERVED.fullmatch(plain):
        return name
    return marked(plain or "_", name)


def marked(plain: str, name: str) -> str:
    """A name with eight digits of a hash of the id, which no other id has."""
    return f"{plain.rstrip('.')}~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def file_stems(ids: Iterable[str]) -> tuple[list[str], int]:
    """The names of ids in their order, no two of which differ only in case, and of how many that had to be mended."""
    taken: set[str] = set()
    chosen: list[str] = []
    cases = 0
    for name in ids:
        stem = safe_name(name)
        cases += stem.casefold() in taken
        while stem.casefold() in taken:  # an id may be spelt as the mark of another
            stem = marked(stem, name)
        taken.add(stem.casefold())
        chosen.append(stem)
    return chosen, cases


def ending(content_type: str | None, image_format: str) -> str:
    """The ending, without its dot: the Content-Type's subtype where it agrees with what the bytes are, else the bytes' own."""
    subtype = (content_type or "").partition(";")[0].strip().lower().rpartition("/")[2]
    known = _SUBTYPES.get(image_format, (image_format.lower(),))
    return subtype if subtype in known else known[0]


@dataclass(frozen=True)
class CheckedImage:
    """Facts of bytes that decode."""

    sha256: str
    format: str
    width: int
    height: int


class Checker:
    """A few decoder processes, one per thread. `check` may be called from many threads; `close()` ends the processes."""

    def __init__(self, limits: ImageLimits, processes: int) -> None:
        self._pool = ThreadPoolExecutor(processes, thread_name_prefix="decode")
        self._decoders = IsolatedDecoders(limits, processes=processes, wall_limit_s=_WALL_LIMIT_S, memory_limit_bytes=None)

    def check(self, data: bytes) -> Future[CheckedImage]:
        """To be waited for. Raises Failed; `passing` where a torn transfer may be the reason."""
        return self._pool.submit(self._decoded, data)

    def close(self) -> None:
        """End the processes, when what they do is done."""
        self._pool.shutdown(wait=True)
        self._decoders.close()

    def _decoded(self, data: bytes) -> CheckedImage:
        digest = sha256(data).hexdigest()
        if data and formats.sniff_format(data) is None:
            raise Failed(Status.UNSUPPORTED_FORMAT, formats.describe_unsupported(data), sha256=digest, http_status=200)
        try:
            facts = self._decoders.decode(data).facts
        except InputError as error:
            raise Failed(error.status, error.detail, passing=error.status in _TORN, sha256=digest, http_status=200) from None
        return CheckedImage(digest, str(facts.format), facts.width or 0, facts.height or 0)
