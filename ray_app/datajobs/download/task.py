"""What travels between the driver and its workers: a `Task` for one url, and its `DownloadResult`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from yarl import URL

from ray_app.datajobs.download.config import OK

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
