"""The settings of an endpoint: the `args` of a Ray Serve application, and of `touchstone serve`.
Defaults run on a laptop.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ray_app.config import Frozen, find_config, read_mapping
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.images.provenance import ProvenanceConfig


class RequestLimits(Frozen):
    """What one request may cost, and all requests of one HTTP process together."""

    max_body_bytes: int = Field(
        default=64 * 2**20,
        gt=0,
        description="one request to /v1/score; cut while it streams in: 413",
    )
    max_files: int = Field(default=16, ge=1, le=16, description="files in one request to /v1/score")
    max_requests: int = Field(
        default=64,
        ge=1,
        description="requests in one HTTP process whose images wait or are scored; the next one gets 503",
    )
    max_bytes_in_flight: int = Field(
        default=2**30, gt=0, description="bodies in memory of one HTTP process; beyond: 503"
    )
    deadline_s: float = Field(
        default=30.0, gt=0, description="from the first byte to the answer; beyond: 504"
    )
    decode_limit_s: float = Field(
        default=5.0, gt=0, description="decoding one image; beyond: 422 decode_timeout"
    )
    max_connections: int = Field(
        default=4096,
        ge=1,
        description="open connections of `touchstone serve`; further clients wait until one closes",
    )
    max_header_bytes: int = Field(
        default=128 * 2**10,
        ge=8192,
        description="request line and headers, and the read buffer of a connection, at `touchstone serve` without --ray; a larger "
        "head: 431. Up to twice as many bytes pass if they arrive at once",
    )
    header_timeout_s: float = Field(
        default=10.0,
        gt=0,
        description="from a connection or an answer to the end of the next headers, at `touchstone serve` without --ray; beyond: closed",
    )
    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="per token (or, without tokens, in all), in one HTTP process; beyond: 429; null = no limit",
    )
    formats: tuple[str, ...] = Field(
        default=("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "HEIC"),
        description="formats that are accepted, judged by their bytes; TIFF is left out: its decoder prints to stderr for every bad tag",
    )


class Access(Frozen):
    """Who may ask. Tokens stand in the environment or in a file, never here: at most their digests
    do.
    """

    tokens_variable: str = Field(
        default="TOUCHSTONE_TOKENS",
        description="environment variable with bearer tokens, one per line or comma",
    )
    tokens_file: str | None = Field(
        default=None,
        description="file with one token per line, for example a mounted secret; read anew when it changes",
    )
    tokens_sha256: tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], ...] = Field(
        default=(), description="SHA-256 of further tokens, in hex: lets them in without being one"
    )
    anonymous: bool = Field(
        default=False,
        description="answer everybody although there are no tokens; otherwise only this machine is answered",
    )
    cors_origins: tuple[str, ...] = Field(
        default=(), description="web origins whose pages may use the endpoint; none = CORS is off"
    )


class Resources(Frozen):
    """The resources of a replica on Ray, and the number of replicas."""

    replicas: int = Field(
        default=1, ge=1, description="replicas, or the minimum if max_replicas is set"
    )
    max_replicas: int | None = Field(
        default=None, ge=1, description="scale up to this many with the load; null = no scaling"
    )
    num_cpus: float = Field(default=0.7, ge=0, description="CPUs of each replica")
    num_gpus: float = Field(
        default=0.0, ge=0, description="GPUs of each replica; 0.5 puts two on one"
    )
    memory_bytes: int | None = Field(
        default=None, gt=0, description="memory that Ray reserves for each replica; null = none"
    )
    labels: Mapping[str, str] = Field(
        default={},
        description="Ray node labels that a replica's node must have, for example {workload: serving}",
    )


class Batching(Frozen):
    """How images of several requests share a batch: a worker takes what waits when it is free."""

    slots: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="images per batch; null = as in batch jobs: 4 on CPU, 64 on GPU",
    )


class ServeConfig(Frozen):
    """One endpoint: which ensembles, on what, within which limits."""

    retired_keys: ClassVar[Mapping[str, str]] = {
        "jobs": "submit runs with Ray's own job API: ray job submit -- touchstone score …",
        "arena": "use touchstone runs audit RUN --draw N --out DIR, whose page takes people's labels",
        "urls": "fetch the image and send its bytes to /v1/score, or use touchstone check URL",
        "ingress": "a replica has the HTTP side and all detectors: set `replica`",
        "detectors": "a replica has the HTTP side and all detectors: set `replica`",
        "groups": "a replica has all detectors; serve detectors apart as two endpoints",
        "fused": "a replica always has all detectors",
    }

    ensembles: tuple[str, ...] = Field(
        default=("default",),
        min_length=1,
        description="names or paths; a request that names none gets the first",
    )
    fpr: float | None = Field(
        default=None,
        description="decide at the operating point of every ensemble for this false-positive rate, unless a request chooses another; "
        "null = the thresholds of their cards",
    )
    optional_detectors: tuple[str, ...] = Field(
        default=(),
        description="further detectors that a request may name, for example a slow one; they have no part in the verdict",
    )
    accept_licences: tuple[str, ...] = Field(
        default=(), description="detectors, or licences, whose terms you accept"
    )
    generation: int = Field(default=0, ge=0, description="raise it to load cards and weights again")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where the networks run")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="auto = as calibrated, or as the cards say"
    )
    resize: Literal["auto", "exact", "fast"] = Field(
        default="auto", description="auto = as the ensembles were calibrated, or exact"
    )
    waive_guarantee: bool = Field(
        default=False,
        description="serve calibrated ensembles under other settings than their guarantees hold for",
    )
    images: ImageLimits = ImageLimits()
    provenance: ProvenanceConfig = ProvenanceConfig()
    batching: Batching = Batching()
    decoders: int = Field(default=1, ge=1, description="decoder processes per worker")
    replica: Resources = Field(
        default=Resources(), description="on Ray: each replica has the HTTP side and a worker"
    )
    limits: RequestLimits = RequestLimits()
    access: Access = Access()
    page: bool = Field(default=True, description="whether / is the web page")

    @model_validator(mode="before")
    @classmethod
    def _refuse_retired_keys(cls, given: Any) -> Any:
        """Raise ConfigError also if Ray Serve builds the config, which does not call `validate`."""
        for key, replacement in cls.retired_keys.items():
            if isinstance(given, Mapping) and key in given:
                raise ConfigError(f"{key}: retired", hint=replacement)
        return given


QUIET = {"log_level": "WARNING", "enable_access_log": False}


def read_file(name_or_path: str | None) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Of a Serve config file: the args of its application, where they stand, for errors, and how it
    logs. Raises ConfigError.
    """
    if name_or_path is None:
        return {}, "command line", QUIET
    path = find_config("serve", name_or_path)
    config = read_mapping(path)
    applications = config.get("applications")
    if (
        not isinstance(applications, list)
        or len(applications) != 1
        or not isinstance(applications[0], dict)
    ):
        raise ConfigError(
            f"{path}: expected a Serve config with one entry in `applications`",
            hint="see configs/serve/laptop.yaml",
        )
    logs = applications[0].get("logging_config") or config.get("logging_config") or QUIET
    if not isinstance(logs, dict):
        raise ConfigError(
            f"{path}: logging_config: expected keys and values, found {type(logs).__name__}",
            hint="for example {log_level: INFO}",
        )
    return dict(applications[0].get("args") or {}), f"{path}: applications.0.args", logs
