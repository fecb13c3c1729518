"""Where a good image goes (`Sink`): into a file, or a shard that is published when full. Rows are
committed here too.

Files: rows after their files; a file without a row is checked before its url is requested again.
Shards: rows before their shard; rows whose shard is not there count for nothing.
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
from ray_app.datajobs.shards.writer import SHARD_ENDINGS, SHARDS, LocalShard, Packed
from ray_app.storage import Store, strip_secrets

# A row of the state. `place`: the file below `out`, or the shard; `url` as the list has it, without
# secrets in `final_url`.
OUTCOME = pa.schema(
    [("id", pa.string()), ("url", pa.string()), ("status", pa.string()), ("detail", pa.string()), ("place", pa.string()),
     ("sha256", pa.string()), ("format", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("size_bytes", pa.int64()),
     ("http_status", pa.int32()), ("requests", pa.int32()), ("final_url", pa.string()), ("ended_at", pa.timestamp("us", "UTC"))]
)  # fmt: skip
Row = dict[str, Any]


def host_of(url: str) -> str:
    """The host that a url is counted at, as it is dialled: in ASCII, small letters, without port;
    '' where there is none.
    """
    try:
        return (URL(url).raw_host or "").removesuffix(".")
    except ValueError:
        return ""


@dataclass(frozen=True)
class Task:
    """A URL to fetch.

    Attributes:
        wanted: The URL in the list, without secrets.
        url: The URL to request, which differs from `wanted` after a redirect.
        stem: The name of its file, without ending.
        there: Files of that name, perhaps of a killed session.
        columns: What goes with the image into a shard.
        hops: Number of redirects so far.
        requests: Number of requests so far.
    """

    id: str
    wanted: str
    url: str
    stem: str
    there: tuple[str, ...] = ()
    columns: Mapping[str, str | None] = field(default_factory=dict)
    hops: int = 0
    requests: int = 0

    @property
    def host(self) -> str:
        """The host whose limits hold for the next request."""
        return host_of(self.url)


def row_of(task: Task, status: str, **found: Any) -> Row:
    """How a task ended, as a row of `OUTCOME`; what was not found is null."""
    asked = {
        "id": task.id,
        "url": task.wanted,
        "requests": task.requests,
        "final_url": strip_secrets(task.url),
    }
    return (
        dict.fromkeys(OUTCOME.names)
        | asked
        | {"status": status, "ended_at": datetime.now(UTC)}
        | found
    )


_UNSAFE = re.compile(r"[^\w.+=,@-]")
# bytes of UTF-8; the usual file systems end at 255, and the ending and a store's own prefix want
# room
_LONGEST = 150
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)
# Subtypes under which a format is sent, the usual one first. Names are those of DFLIP-3K's own
# downloader, `<id>.<subtype>` (specs/localization.md §5.1), with ids kept whole where they have
# dots, and the ending corrected where the bytes say another format.
_SUBTYPES = {
    "JPEG": ("jpeg", "jpg"), "PNG": ("png", "apng"), "WEBP": ("webp",), "GIF": ("gif",), "BMP": ("bmp",), "TIFF": ("tiff", "tif"),
    "AVIF": ("avif",), "HEIC": ("heic", "heif"), "JPEG2000": ("jp2", "jpx"), "PNM": ("pnm",), "RAW": ("raw",),
}  # fmt: skip
ENDINGS = frozenset(subtype for subtypes in _SUBTYPES.values() for subtype in subtypes)


class Sink:
    """Images as files of `folder`, or one after the other in shards of `shard_mb` with their
    columns beside; and the rows of all urls.

    `read` and `keep` from many threads, all else from one at a time.
    """

    def __init__(
        self, store: Store, records: Store, config: CollectConfig, columns: Sequence[str]
    ) -> None:
        self._store, self._records, self._form = store, records, config.form
        self._prefix = f"{config.folder}/" if config.folder else ""
        self._most, self._type = (
            config.shard_mb * 1e6,
            pa.struct([(name, pa.string()) for name in columns]),
        )
        self._rows: list[Row] = []
        self._packed: list[Row] = []
        self._shard: LocalShard | None = None

    def read(self, name: str) -> bytes:
        """A file that an earlier session left. Raises FileNotFoundError."""
        return self._store.read(self._prefix + name)

    def keep(
        self, task: Task, data: bytes, image_format: str, content_type: str | None
    ) -> str | None:
        """Put the bytes in their place and return it, where images are files; what was there under
        another ending goes.
        """
        if self._form != "files":
            return None
        name = f"{task.stem}.{ending(content_type, image_format)}"
        if name not in task.there or self.read(name) != data:
            self._store.write(self._prefix + name, data)
        for other in task.there:
            if other != name:
                self._store.delete(self._prefix + other)
        return self._prefix + name

    def add(self, row: Row, data: bytes, task: Task) -> None:
        """Note how a task ended; a good image goes into the shard, where there are shards, and a
        full one is published.
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
            strip_secrets(task.wanted),
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
                Packed(
                    f"{self._token}-{len(self._packed):06}",
                    member,
                    data,
                    row["sha256"],
                    row["format"],
                )
            )
        except BaseException:
            self.close()  # of what it holds nothing is known now
            raise
        self._packed.append(row)
        if self._shard.size_bytes >= self._most:
            self._publish()

    def commit(self) -> None:
        """Write the rows of what has ended."""
        rows, self._rows = self._rows, []
        if rows:
            write_part(self._records, secrets.token_hex(8), rows, OUTCOME)

    def publish(self) -> None:
        """Write the rows of what has ended, and the shard that is not full."""
        self.commit()
        if self._shard is not None:
            self._publish()

    def close(self) -> None:
        """Forget what is not published. A shard that could not be takes its rows along: no later
        one may count them as its own.
        """
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.drop()

    def _publish(self) -> None:
        assert self._shard is not None
        assert self._form != "files"
        place = f"data/{self._token}.{SHARD_ENDINGS[self._form]}"
        try:
            self._shard.finish()
            write_part(
                self._records,
                self._token,
                [row | {"place": place} for row in self._packed],
                OUTCOME,
            )
            self._store.write_file(place, self._shard.path)
        finally:
            self.close()


def safe_name(name: str) -> str:
    """An id as a file is named after it, without ending: itself, where it is harmless on every file
    system; else a harmless form of it and eight digits of its hash.
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
    """The names of ids in their order, no two of which differ only in case, and of how many that
    had to be mended.
    """
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
    """The ending, without its dot: the Content-Type's subtype where it agrees with what the bytes
    are, else the bytes' own.
    """
    subtype = (content_type or "").partition(";")[0].strip().lower().rpartition("/")[2]
    known = _SUBTYPES.get(image_format, (image_format.lower(),))
    return subtype if subtype in known else known[0]
