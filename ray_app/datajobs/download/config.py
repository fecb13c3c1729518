"""Settings of `touchstone data collect` (`CollectConfig`), and the statuses of a URL (`MEANING`).

The command downloads the images of a list of URLs.
"""

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
_RESERVED_FOLDERS = ("parts", "index", "_collected")
SOFTWARE = f"touchstone-collect/{__version__}"
MEANING: dict[str, str] = {
    OK: "the image was stored, and it decodes",
    Status.SOURCE_MISSING: "the host responded 404 or 410, or does not exist",
    Status.SOURCE_DENIED: "the host denied the request (401, 403, …), or sent a response that cannot be used",
    Status.SOURCE_THROTTLED: "the host asked to slow down (429, 503) at every attempt",
    Status.SOURCE_TIMEOUT: "no response, an error of the host, or an incomplete response, at every attempt",
    FORBIDDEN_ADDRESS: "the address of the host is not on the public Internet",
    BAD_URL: "the URL is invalid, or its scheme is not supported",
    Status.UNSUPPORTED_FORMAT: "the response is not an image; it may be a web page",
    Status.EMPTY_FILE: "the response has no bytes",
    Status.CORRUPT_IMAGE: "the response does not decode",
    Status.TRUNCATED_IMAGE: "the response ends before the image does, at every attempt",
    Status.IMAGE_TOO_LARGE: "the image exceeds the limits in bytes or pixels",
    Status.METADATA_TOO_LARGE: "the image has CMYK colours with a profile above the limits",
    Status.DECODE_TIMEOUT: "decoding took longer than the time limit",
    Status.DECODER_CRASHED: "the decoder process crashed on the image",
}
# Statuses that may pass, so that a later attempt can succeed.
PASSING = (str(Status.SOURCE_THROTTLED), str(Status.SOURCE_TIMEOUT), str(Status.TRUNCATED_IMAGE))


class Politeness(Frozen):
    """Limits on the requests to one host, so that a download does not disturb it."""

    per_host: int = Field(
        default=2, ge=1, le=64, description="maximum number of concurrent requests to one host"
    )
    pause_s: float = Field(
        default=0.0,
        ge=0,
        description="minimum time in seconds between the starts of two requests to one host",
    )
    contact: str | None = Field(
        default=None,
        description="e-mail address or web page in the User-Agent, by which owners of hosts can reach you",
    )
    user_agent: str | None = Field(
        default=None,
        description="the whole User-Agent, which should name you; null = Touchstone's with `contact`",
    )
    longest_wait_s: float = Field(
        default=120.0,
        ge=0,
        description="maximum wait in seconds that a host may request (Retry-After); after a longer one it gets no more requests in this session",
    )
    give_up_after: int = Field(
        default=20,
        ge=1,
        description="number of consecutive URLs of a host without any response after which it gets no more requests",
    )

    @property
    def agent(self) -> str:
        """Value of the User-Agent header, which names the software and the contact."""
        return self.user_agent or (f"{SOFTWARE} (+{self.contact})" if self.contact else SOFTWARE)


class Limits(Frozen):
    """Limits on the request of each URL, and on the connections and decoders of the process."""

    connect_timeout_s: float = Field(
        default=10.0, gt=0, description="maximum time to connect to a host in seconds"
    )
    read_timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="maximum time between two chunks of a response in seconds",
    )
    total_timeout_s: float = Field(
        default=300.0,
        gt=0,
        description="maximum time of one request, including its body, in seconds",
    )
    max_bytes: int = Field(
        default=32 * 2**20,
        gt=0,
        description="maximum size of a body in bytes; counted while it streams, regardless of the headers",
    )
    max_redirects: int = Field(
        default=5, ge=0, le=20, description="maximum number of redirects of one URL"
    )
    connections: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="maximum number of concurrent requests, and of images in memory",
    )
    decoders: int = Field(
        default=1,
        ge=1,
        le=64,
        description="number of processes that decode images, to check that they are complete",
    )


class UrlRetryPolicy(RetryPolicy):
    """How often, and for how long in all, the download of one URL is tried.

    The time limit includes the time that the URL waits because of the limits on its host.
    """

    attempts: int = Field(default=4, ge=1, description="maximum number of requests for one URL")
    base_s: float = Field(default=1.0, gt=0, description="first pause before a retry in seconds")
    cap_s: float = Field(default=60.0, gt=0, description="longest pause before a retry in seconds")
    deadline_s: float = Field(
        default=1800.0,
        gt=0,
        description="maximum time for one URL in seconds, including waits for its host",
    )


class CollectConfig(Frozen):
    """Settings of `touchstone data collect`, which downloads the images of a list of URLs."""

    retired_keys: ClassVar[Mapping[str, str]] = {
        "cluster": "one process fetches all URLs; raise limits.connections and limits.decoders"
    }

    meta: str = Field(
        description="DFLIP-3K's JSON, or a CSV, JSONL, or Parquet table with a column of URLs; any fsspec URL"
    )
    out: str = Field(description="output directory; any fsspec URL")
    form: Form = Field(
        default="files",
        description="store images as files named after their ids, or in shards with the columns of the table",
    )
    folder: str = Field(
        default="images",
        description="folder of the files below `out`; '' = directly in `out`, with records in _collected",
    )
    shard_mb: float = Field(
        default=64.0,
        gt=0,
        description="size of the images in one shard, in MB; images of an incomplete shard are lost if the process is killed",
    )
    id: str | None = Field(
        default=None,
        description="column of ids; null = id, image_id, or key, else a hash of the URL",
    )
    url: str | None = Field(
        default=None, description="column of URLs; null = url, image_url, uri, or link"
    )
    label: Literal["fake", "real"] = Field(
        default="fake", description="label of images whose row does not have one"
    )
    generator: str | None = Field(
        default=None, description="generator of images whose row does not name one"
    )
    limit: int | None = Field(
        default=None, ge=1, description="use only the first URLs of the table, up to this number"
    )
    resolve: Mapping[str, str] = Field(
        default={}, description="IP addresses of hosts to use instead of DNS: {host: address}"
    )
    allow_private: bool = Field(
        default=False, description="also request URLs of hosts that are not on the public Internet"
    )
    politeness: Politeness = Field(
        default=Politeness(), description="limits on the requests to one host"
    )
    limits: Limits = Field(default=Limits(), description="limits on one URL and on the process")
    images: ImageLimits = Field(default=ImageLimits(), description="limits on decoding an image")
    retry: UrlRetryPolicy = Field(
        default=UrlRetryPolicy(), description="retries after failures that may pass"
    )
    s3: S3Config = Field(default=S3Config(), description="settings of S3 clients")
    commit_s: float = Field(
        default=15.0, gt=0, description="interval in seconds at which results are committed"
    )
    unguarded: bool = Field(default=False, description=UNGUARDED)

    @field_validator("resolve")
    @classmethod
    def _check_addresses(cls, addresses: Mapping[str, str]) -> Mapping[str, str]:
        for host, address in addresses.items():
            try:
                ip_address(address)
            except ValueError:
                raise ValueError(f"{host}: {address!r} is not an IP address") from None
        return {host.lower().removesuffix("."): address for host, address in addresses.items()}

    @field_validator("folder")
    @classmethod
    def _check_folder(cls, folder: str) -> str:
        parts = folder.strip("/").split("/") if folder.strip("/") else []
        if any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"must be a folder below `out`, got {folder!r}")
        if parts and parts[0].casefold() in _RESERVED_FOLDERS:
            raise ValueError(
                f"must not be in {parts[0]!r}, which has this command's own records: name another folder"
            )
        return "/".join(parts)


def parse_statuses(text: Any) -> tuple[str, ...]:
    """Parse a comma-separated list of statuses of failed URLs, such as "source_timeout".

    `MEANING` lists the statuses.

    Raises:
        ValueError: If a status is unknown, or is not the status of a failure.
    """
    statuses = tuple(item.strip() for item in str(text).split(",") if item.strip())
    valid = [status for status in MEANING if status != OK]
    if unknown := [status for status in statuses if status not in valid]:
        raise ValueError(
            f"{', '.join(unknown)}: not a status of a failed URL; valid are: {', '.join(valid)}"
        )
    return statuses
