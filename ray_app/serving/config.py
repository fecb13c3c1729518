"""The settings of an endpoint: the `args` of a Ray Serve application, and of `touchstone serve`. Defaults run on a laptop."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from ray_app.config import Frozen
from ray_app.images import ImageLimits
from ray_app.images.provenance import ProvenanceConfig
from ray_app.storage import UNGUARDED


class RequestLimits(Frozen):
    """What one request may cost, and all requests of one ingress replica together."""

    max_body_bytes: int = Field(default=64 * 2**20, gt=0, description="one request to /v1/score; cut while it streams in: 413")
    max_files: int = Field(default=16, ge=1, le=16, description="files in one request to /v1/score")
    max_requests: int = Field(default=64, ge=1, description="requests at work in one ingress replica; the next one is told 503")
    max_bytes_in_flight: int = Field(default=2**30, gt=0, description="bodies in memory of one ingress replica; beyond: 503")
    deadline_s: float = Field(default=30.0, gt=0, description="from the first byte to the answer; beyond: 504")
    decode_limit_s: float = Field(default=5.0, gt=0, description="decoding one image; beyond: 422 decode_timeout")
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="per token (or, without tokens, in all), in one ingress replica; beyond: 429; null = no limit"
    )
    formats: tuple[str, ...] = Field(
        default=("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "HEIC"),
        description="what is let in, by its bytes; TIFF is left out: its decoder prints to stderr for every bad tag",
    )


class Access(Frozen):
    """Who may ask. Tokens stand in the environment or in a file, never here: at most their digests do."""

    tokens_variable: str = Field(default="TOUCHSTONE_TOKENS", description="environment variable with bearer tokens, one per line or comma")
    tokens_file: str | None = Field(
        default=None, description="file with one token per line, for example a mounted secret; read anew when it changes"
    )
    tokens_sha256: tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], ...] = Field(
        default=(), description="SHA-256 of further tokens, in hex: lets them in without being one"
    )
    anonymous: bool = Field(default=False, description="without tokens, answer everybody; else only this machine is answered")
    cors_origins: tuple[str, ...] = Field(default=(), description="web origins whose pages may ask; none = CORS is off")


class UrlFetching(Frozen):
    """Images by URL. Off unless asked for: a server that fetches what strangers name is a way into its own network."""

    enabled: bool = False
    allowed_hosts: tuple[str, ...] = Field(default=(), description="only these hosts (and `*.` subdomains of them); none = any public host")
    connect_timeout_s: float = Field(default=5.0, gt=0)
    total_timeout_s: float = Field(default=10.0, gt=0)
    max_redirects: int = Field(default=3, ge=0, le=10)


class JobLimits(Frozen):
    """Jobs: many images, scored behind the interactive requests."""

    max_images: int = Field(default=1000, ge=1, description="images or URLs in one job")
    max_body_bytes: int = Field(default=256 * 2**20, gt=0, description="one request to /v1/jobs")
    max_waiting_bytes: int = Field(default=2**30, gt=0, description="images of all unfinished jobs, in memory; beyond: 503")
    max_jobs: int = Field(default=100, ge=1, description="unfinished jobs; beyond: 503")
    concurrency: int = Field(default=4, ge=1, description="images of jobs at work at once: what they take from interactive requests")
    keep_hours: float = Field(default=24.0, gt=0, description="how long a finished job can be asked for")
    directory: str | None = Field(
        default=None,
        description="fsspec folder for the state and results of jobs (never images), so that they outlive the process; null = memory",
    )
    unguarded: bool = Field(default=False, description=UNGUARDED)
    webhooks: bool = Field(default=False, description="whether a job may name an https URL that is told of its end")
    webhook_secret_variable: str = Field(
        default="TOUCHSTONE_WEBHOOK_SECRET", description="environment variable with the key that signs webhooks"
    )


class Resources(Frozen):
    """What the replicas of one deployment take, and how many there are."""

    replicas: int = Field(default=1, ge=1, description="replicas, or the least of them where max_replicas is set")
    max_replicas: int | None = Field(default=None, ge=1, description="scale up to so many with the load; null = no scaling")
    num_cpus: float = Field(default=0.5, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    memory_bytes: int | None = Field(default=None, gt=0)
    labels: Mapping[str, str] = Field(
        default={}, description="Ray node labels that a replica's node must have, for example {workload: serving}"
    )


class Batching(Frozen):
    """How images of several requests share a batch."""

    slots: int | None = Field(default=None, ge=1, le=1024, description="images per batch; null = as in batch jobs: 4 on CPU, 64 on GPU")
    wait_ms: float = Field(default=5.0, ge=0, description="how long an image waits for company")


class ServeConfig(Frozen):
    """One endpoint: which ensembles, on what, within which limits."""

    ensembles: tuple[str, ...] = Field(
        default=("default",), min_length=1, description="names or paths; a request that names none gets the first"
    )
    optional_detectors: tuple[str, ...] = Field(
        default=(), description="detectors that a request may ask for besides, for example a slow one; they do not enter the verdict"
    )
    accept_licences: tuple[str, ...] = Field(default=(), description="detectors, or licences, whose terms you accept")
    generation: int = Field(default=0, ge=0, description="count it up to load cards and weights anew")
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    resize: Literal["auto", "exact", "fast"] = Field(default="auto", description="auto = as the ensembles were calibrated, or exact")
    waive_guarantee: bool = Field(
        default=False, description="serve calibrated ensembles under other settings than their guarantees hold for"
    )
    images: ImageLimits = ImageLimits()
    provenance: ProvenanceConfig = ProvenanceConfig()
    batching: Batching = Batching()
    decoders: int = Field(default=1, ge=1, description="decoder processes per ingress replica")
    ingress: Resources = Resources(num_cpus=0.2)
    detectors: Resources = Field(
        default=Resources(), description="each group of detectors that share a process; `groups` says otherwise by name"
    )
    groups: Mapping[str, Resources] = Field(
        default={}, description="resources of one group: `detectors`, or a detector with a process of its own"
    )
    limits: RequestLimits = RequestLimits()
    access: Access = Access()
    urls: UrlFetching = UrlFetching()
    jobs: JobLimits = JobLimits()
    page: bool = Field(default=True, description="whether / is the web page")
