"""Define the settings of an endpoint (`ServeConfig`).

An endpoint scores images over HTTP. Its settings are the `args` in a Ray Serve config file, which
`touchstone serve` also reads. The defaults suit a laptop.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ray_app.config import Frozen, find_config, read_mapping
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.images.provenance import ProvenanceConfig


class RequestLimits(Frozen):
    """Limits on one request, and on all requests of one HTTP process together."""

    max_body_bytes: int = Field(
        default=64 * 2**20,
        gt=0,
        description="maximum body of a request to /v1/score; a larger body gets 413 while it streams in",
    )
    max_files: int = Field(
        default=16, ge=1, le=16, description="maximum number of files in one request to /v1/score"
    )
    max_requests: int = Field(
        default=64,
        ge=1,
        description="maximum number of requests in one HTTP process whose images wait or are scored; further requests get 503",
    )
    max_bytes_in_flight: int = Field(
        default=2**30,
        gt=0,
        description="maximum size of all bodies in memory of one HTTP process; further requests get 503",
    )
    deadline_s: float = Field(
        default=30.0,
        gt=0,
        description="maximum time from the first byte to the answer; a slower request gets 504",
    )
    decode_limit_s: float = Field(
        default=5.0,
        gt=0,
        description="maximum time to decode one image; a slower image gets 422 decode_timeout",
    )
    max_connections: int = Field(
        default=4096,
        ge=1,
        description="maximum number of open connections of `touchstone serve`; further clients wait until a connection closes",
    )
    max_header_bytes: int = Field(
        default=128 * 2**10,
        ge=8192,
        description="maximum size of request line and headers, and of the read buffer of a connection, for `touchstone serve` without "
        "--ray; larger headers get 431. Up to twice as many bytes pass if they arrive at the same time",
    )
    header_timeout_s: float = Field(
        default=10.0,
        gt=0,
        description="maximum time from a connection or an answer to the end of the next headers, for `touchstone serve` without --ray; "
        "a slower connection is closed",
    )
    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="maximum number of requests per minute of each token, or of all clients if there are no tokens, in one HTTP process; "
        "further requests get 429; null = no limit",
    )
    formats: tuple[str, ...] = Field(
        default=("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "HEIC"),
        description="accepted formats, detected from the bytes of a file; TIFF is left out because its decoder prints to stderr for every bad tag",
    )


class Access(Frozen):
    """The clients that may use the endpoint, which is the scoring server.

    A config does not contain tokens. It names the environment variable or the file with the tokens,
    or contains their digests.
    """

    tokens_variable: str = Field(
        default="TOUCHSTONE_TOKENS",
        description="environment variable with bearer tokens, separated by newlines or commas",
    )
    tokens_file: str | None = Field(
        default=None,
        description="file with one token per line, for example a mounted secret; it is read again when it changes",
    )
    tokens_sha256: tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], ...] = Field(
        default=(),
        description="SHA-256 of further tokens, in hex; a client sends the token itself, since a digest is not accepted as a token",
    )
    anonymous: bool = Field(
        default=False,
        description="answer all clients if there are no tokens; otherwise only clients on this machine are answered",
    )
    cors_origins: tuple[str, ...] = Field(
        default=(), description="web origins whose pages may use the endpoint; empty = CORS is off"
    )


class Resources(Frozen):
    """The resources of a replica on Ray, and the number of replicas.

    A replica is one copy of the endpoint, which Ray Serve runs as an actor.
    """

    replicas: int = Field(
        default=1, ge=1, description="number of replicas, or the minimum if max_replicas is set"
    )
    max_replicas: int | None = Field(
        default=None,
        ge=1,
        description="maximum number of replicas under load; null = no autoscaling",
    )
    num_cpus: float = Field(default=0.7, ge=0, description="CPUs of each replica")
    num_gpus: float = Field(
        default=0.0, ge=0, description="GPUs of each replica; 0.5 puts two replicas on one GPU"
    )
    memory_bytes: int | None = Field(
        default=None, gt=0, description="memory that Ray reserves for each replica; null = none"
    )
    labels: Mapping[str, str] = Field(
        default={},
        description="Ray node labels that a replica's node must have, for example {workload: serving}",
    )


class Batching(Frozen):
    """How images of several requests share a batch.

    An idle worker takes all images that wait, up to `slots`, and scores them together.
    """

    slots: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="images per batch; null = as in batch jobs: 4 on CPU, 64 on GPU",
    )


class ServeConfig(Frozen):
    """The settings of one endpoint, which is a server that scores images over HTTP."""

    retired_keys: ClassVar[Mapping[str, str]] = {
        "jobs": "submit runs with Ray's own job API: ray job submit -- touchstone score …",
        "arena": "use touchstone runs audit RUN --draw N --out DIR, whose page takes people's labels",
        "urls": "fetch the image and send its bytes to /v1/score, or use touchstone check URL",
        "ingress": "set `replica`: a replica has the HTTP side and all detectors",
        "detectors": "set `replica`: a replica has the HTTP side and all detectors",
        "groups": "serve groups of detectors from separate endpoints: a replica has all detectors",
        "fused": "remove it: a replica always has all detectors",
    }

    ensembles: tuple[str, ...] = Field(
        default=("default",),
        min_length=1,
        description="names or paths of ensembles; a request that names no ensemble uses the first",
    )
    fpr: float | None = Field(
        default=None,
        description="use the operating point of every ensemble for this false-positive rate, unless a request chooses another; "
        "null = the thresholds of their cards",
    )
    optional_detectors: tuple[str, ...] = Field(
        default=(),
        description="further detectors that a request may name, for example a slow detector; they have no part in the verdict",
    )
    accept_licences: tuple[str, ...] = Field(
        default=(), description="detectors, or licences, whose terms you accept"
    )
    generation: int = Field(
        default=0, ge=0, description="increase it to load cards and weights again"
    )
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="device of the networks")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="auto = as calibrated, or as the cards of the detectors state"
    )
    resize: Literal["auto", "exact", "fast"] = Field(
        default="auto",
        description="auto = as the ensembles were calibrated, or fast for detectors in bf16",
    )
    waive_guarantee: bool = Field(
        default=False,
        description="serve calibrated ensembles under settings that their guarantees do not cover",
    )
    images: ImageLimits = Field(default=ImageLimits(), description="limits on the size of an image")
    provenance: ProvenanceConfig = Field(
        default=ProvenanceConfig(), description="how to read what a file states about its origin"
    )
    batching: Batching = Field(default=Batching(), description="batches of images")
    decoders: int = Field(default=1, ge=1, description="decoder processes per worker")
    replica: Resources = Field(
        default=Resources(), description="on Ray: each replica has the HTTP side and a worker"
    )
    limits: RequestLimits = Field(default=RequestLimits(), description="limits on requests")
    access: Access = Field(default=Access(), description="the clients that may use the endpoint")
    page: bool = Field(default=True, description="whether / serves the web page")

    @model_validator(mode="before")
    @classmethod
    def _refuse_retired_keys(cls, values: Any) -> Any:
        """Raise ConfigError also if Ray Serve builds the config, which does not call `validate`."""
        for key, replacement in cls.retired_keys.items():
            if isinstance(values, Mapping) and key in values:
                raise ConfigError(f"{key}: retired", hint=replacement)
        return values


QUIET = {"log_level": "WARNING", "enable_access_log": False}


def read_file(name_or_path: str | None) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Read a config file of Ray Serve for an endpoint.

    Args:
        name_or_path: The name of a shipped config, or a path. None for no file.

    Returns:
        A tuple of the `args` of the application (the values of a `ServeConfig`), their location
        in the file as a text for error messages, and the `logging_config`.

    Raises:
        ConfigError: The file does not exist, is not a Serve config with one application, or has an
            invalid `logging_config`.
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
            hint="compare it with configs/serve/laptop.yaml",
        )
    logs = applications[0].get("logging_config") or config.get("logging_config") or QUIET
    if not isinstance(logs, dict):
        raise ConfigError(
            f"{path}: logging_config: expected keys and values, found {type(logs).__name__}",
            hint="write a mapping, for example logging_config: {log_level: INFO}",
        )
    return dict(applications[0].get("args") or {}), f"{path}: applications.0.args", logs
