"""Settings of `touchstone data collect` (`CollectConfig`), and the statuses of a url."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ray_app import __version__
from ray_app.config import Frozen
from ray_app.datajobs.parts import OK
from ray_app.errors import Status
from ray_app.images import ImageLimits
from ray_app.storage import UNGUARDED, RetryPolicy, S3Config
from ray_app.storage.errors import BAD_URL, FORBIDDEN_ADDRESS

Form = Literal["files", "parquet", "webdataset"]
_OURS = ("parts", "index", "_collected")
SOFTWARE = f"touchstone-collect/{__version__}"
MEANING: dict[str, str] = {
    OK: "an image that decodes, in its place",
    Status.SOURCE_MISSING: "404 or 410, or no such host",
    Status.SOURCE_DENIED: "the host refuses (401, 403, …), or answers with what is no use",
    Status.SOURCE_THROTTLED: "the host kept asking to slow down (429, 503)",
    Status.SOURCE_TIMEOUT: "no answer, a fault of the host, or an answer that broke off, each time",
    FORBIDDEN_ADDRESS: "its address is not on the public Internet",
    BAD_URL: "not a URL that is fetched",
    Status.UNSUPPORTED_FORMAT: "what came is no image, a page for example",
    Status.EMPTY_FILE: "what came has no bytes",
    Status.CORRUPT_IMAGE: "what came does not decode",
    Status.TRUNCATED_IMAGE: "what came ends before the image does, each time",
    Status.IMAGE_TOO_LARGE: "over the limits in bytes or pixels",
    Status.METADATA_TOO_LARGE: "printing colours whose profile is over the limits",
    Status.DECODE_TIMEOUT: "decoding took longer than the wall limit",
    Status.DECODER_CRASHED: "the decoder process died on it",
}
# What another day may give.
PASSING = (str(Status.SOURCE_THROTTLED), str(Status.SOURCE_TIMEOUT), str(Status.TRUNCATED_IMAGE))


class Politeness(Frozen):
    """Limits on the requests to one host."""

    per_host: int = Field(default=2, ge=1, le=64, description="requests at once to one host")
    pause_s: float = Field(
        default=0.0,
        ge=0,
        description="seconds from the start of one request to a host to the start of the next",
    )
    contact: str | None = Field(
        default=None,
        description="a mail address or page that owners of hosts find in the User-Agent",
    )
    user_agent: str | None = Field(
        default=None, description="instead of our own; it should say who asks"
    )
    longest_wait_s: float = Field(
        default=120.0,
        ge=0,
        description="a host that asks to wait longer (Retry-After) is asked nothing more in this session",
    )
    give_up_after: int = Field(
        default=20,
        ge=1,
        description="urls of a host in a row without any answer; then it is asked nothing more",
    )

    @property
    def agent(self) -> str:
        """The User-Agent: which software, and whom to turn to."""
        return self.user_agent or (f"{SOFTWARE} (+{self.contact})" if self.contact else SOFTWARE)


class Limits(Frozen):
    """Limits on one URL and on the process."""

    connect_timeout_s: float = Field(default=10.0, gt=0)
    read_timeout_s: float = Field(default=30.0, gt=0, description="between two pieces of an answer")
    total_timeout_s: float = Field(
        default=300.0, gt=0, description="of one request, its whole body included"
    )
    max_bytes: int = Field(
        default=32 * 2**20,
        gt=0,
        description="of one body; cut while it streams, whatever its headers say",
    )
    max_redirects: int = Field(default=5, ge=0, le=20)
    connections: int = Field(
        default=32, ge=1, le=1024, description="requests at once, and images in memory"
    )
    decoders: int = Field(
        default=1,
        ge=1,
        le=64,
        description="processes that decode what came, to see whether it is whole",
    )


class Patience(RetryPolicy):
    """How often one url is requested, and for how long: turns and waits that its host requests are
    part of that.
    """

    attempts: int = Field(default=4, ge=1)
    base_s: float = Field(default=1.0, gt=0)
    cap_s: float = Field(default=60.0, gt=0)
    deadline_s: float = Field(default=1800.0, gt=0)


class CollectConfig(Frozen):
    """Settings of `touchstone data collect`."""

    retired_keys: ClassVar[Mapping[str, str]] = {
        "cluster": "one process fetches all URLs; raise limits.connections and limits.decoders"
    }

    meta: str = Field(
        description="DFLIP-3K's JSON, or a CSV, JSONL or Parquet with a column of urls; any fsspec URL"
    )
    out: str = Field(description="the directory to write; any fsspec URL")
    form: Form = Field(
        default="files",
        description="files named after their ids, or shards with the columns beside",
    )
    folder: str = Field(
        default="images",
        description="where files lie below `out`; '' = directly in it, our own records in _collected",
    )
    shard_mb: float = Field(
        default=64.0,
        gt=0,
        description="bytes of images in one shard, in MB; a kill costs what is not yet in one",
    )
    id: str | None = Field(
        default=None,
        description="the column of ids; null = id, image_id or key, else a hash of the url",
    )
    url: str | None = Field(
        default=None, description="the column of urls; null = url, image_url, uri or link"
    )
    label: Literal["fake", "real"] = Field(
        default="fake", description="of images whose row has no column `label`"
    )
    generator: str | None = Field(
        default=None, description="generator of images whose row names none"
    )
    limit: int | None = Field(
        default=None, ge=1, description="maximum number of URLs, the first ones of the table"
    )
    resolve: Mapping[str, str] = Field(
        default={}, description="addresses of hosts, instead of the name service's: {host: address}"
    )
    allow_private: bool = Field(
        default=False, description="ask also hosts that are not on the public Internet"
    )
    politeness: Politeness = Politeness()
    limits: Limits = Limits()
    images: ImageLimits = ImageLimits()
    retry: Patience = Field(
        default=Patience(), description="what may pass by itself is asked again"
    )
    s3: S3Config = S3Config()
    commit_s: float = Field(
        default=15.0, gt=0, description="what has ended is written down at least so often"
    )
    unguarded: bool = Field(default=False, description=UNGUARDED)

    @field_validator("resolve")
    @classmethod
    def _addresses(cls, given: Mapping[str, str]) -> Mapping[str, str]:
        for host, address in given.items():
            try:
                ip_address(address)
            except ValueError:
                raise ValueError(f"{host}: {address!r} is no address") from None
        return {host.lower().removesuffix("."): address for host, address in given.items()}

    @field_validator("folder")
    @classmethod
    def _below(cls, folder: str) -> str:
        parts = folder.strip("/").split("/") if folder.strip("/") else []
        if any(part in ("", ".", "..") for part in parts):
            raise ValueError("a folder below `out`")
        if parts and parts[0].casefold() in _OURS:
            raise ValueError(f"{parts[0]} is where our own records lie")
        return "/".join(parts)


def failures(words: Any) -> tuple[str, ...]:
    """Statuses that may be tried again, out of words divided by commas. Raises ValueError."""
    chosen = tuple(word.strip() for word in str(words).split(",") if word.strip())
    known = [status for status in MEANING if status != OK]
    if unknown := [word for word in chosen if word not in known]:
        raise ValueError(
            f"{', '.join(unknown)}: no status of a url that failed; these are: {', '.join(known)}"
        )
    return chosen
