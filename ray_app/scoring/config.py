"""Define the settings of a scoring run (`ScoreConfig`), whose defaults suit a laptop.

`ClusterDescription` is a cluster for `touchstone plan`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_app.archives import ContainerLimits, TableColumns
from ray_app.cluster.config import RAY_SHARE, ClusterConfig
from ray_app.config import Frozen, Seconds, find_config, get_set_values, load_yaml
from ray_app.errors import Status
from ray_app.images import BatchLimits, ImageLimits
from ray_app.images.provenance import ProvenanceConfig
from ray_app.storage import UNGUARDED, RetryPolicy, S3Config

_REQUEST_PRICE = "multiply requests of touchstone plan SOURCE --json by the price of the store"


class TrafficPrices(Frozen):
    """Prices for network traffic: the bytes that leave a store."""

    retired_keys: ClassVar[Mapping[str, str]] = {
        "get_per_1000": _REQUEST_PRICE,
        "put_per_1000": _REQUEST_PRICE,
    }

    egress_per_gb: float = Field(
        default=0.0, ge=0, description="price per GB read from the source: 0 inside its region"
    )


class Prices(TrafficPrices):
    """Prices from which the cost of a run is computed: machines, and bytes that leave the store."""

    per_hour: float = Field(
        default=0.0, ge=0, description="price per hour of all machines of the cluster together"
    )


class ScoreConfig(Frozen):
    """The settings of one scoring run: the source, the run directory, the ensemble, and the limits."""

    retired_keys: ClassVar[Mapping[str, str]] = {
        "perceptual_hash": "remove it, and compute the hashes with touchstone data index SOURCE --hash phash",
        "stability": "remove it, set perturb: [jpeg:75], and compare the column views with the column score",
        "stability_margin": "remove it together with stability",
        "reuse": "remove it and score a list of one file per SHA-256, which DuckDB writes (UPGRADING.md has the query)",
        "table": "remove it and append the rows with deltalake.write_deltalake(URL, ray_app.load_run(RUN).table(), mode='append')",
        "events": "use follow: 5m",
        "jpeg_decoder": "remove it; libjpeg decodes every JPEG",
    }

    source: tuple[str, ...] = Field(
        default=(), description="folders, files, prefixes or globs; any fsspec URL"
    )
    out: str | None = Field(
        default=None,
        description="the run directory; any fsspec URL; the same command resumes the run in it",
    )
    include: tuple[str, ...] = Field(
        default=(), description="only files whose path below the source matches this glob"
    )
    exclude: tuple[str, ...] = Field(
        default=(),
        description="leave out files whose path matches this glob, and folders by FOLDER/**",
    )
    limit: int | None = Field(default=None, ge=1, description="list up to this many files")
    ensemble: str = Field(default="default", description="a shipped name, or the path of a card")
    detectors: tuple[str, ...] = Field(
        default=(), description="instead of an ensemble: the mean of these detectors"
    )
    fpr: float | None = Field(
        default=None,
        description="decide at the ensemble's operating point for this false-positive rate, such as 0.05; "
        "null = the thresholds of its card",
    )
    identifier: str | None = Field(
        default=None,
        description="the card of the identifier that names the generator of every image from the embeddings of one of the detectors",
    )
    accept_licences: tuple[str, ...] = Field(
        default=(), description="detectors, or licences, whose terms you accept for this run"
    )
    columns: TableColumns = TableColumns()
    allow_private: bool = Field(
        default=False,
        description="also read URLs of a list from web servers that are not on the public Internet",
    )
    limits: BatchLimits = BatchLimits()
    container_limits: ContainerLimits = ContainerLimits()
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto = cuda if the run has GPUs"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="auto = as the ensemble was calibrated, or as the cards set it"
    )
    resize: Literal["auto", "exact", "fast"] = Field(
        default="auto",
        description="exact = as published; fast = by torch, at most two grey levels away; auto = as the ensemble was calibrated, "
        "or fast for detectors in bf16",
    )
    waive_guarantee: bool = Field(
        default=False,
        description="keep verdicts that a calibrated ensemble's guarantee does not cover, because of other settings or a different kind of archive",
    )
    compiled: bool = Field(
        default=False,
        description="on GPUs: run torch.compile on networks whose scores stay the same; takes a minute per network, for runs of many 100,000 images",
    )
    batch_slots: int | None = Field(
        default=None, ge=1, le=1024, description="images per batch; null = 4 on CPU, 64 on GPU"
    )
    block_members: int = Field(
        default=2048,
        ge=1,
        description="maximum size of a block, the unit of commit and resume; smaller if it would take over a minute or 512 MiB of tensors",
    )
    max_bad_fraction: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="maximum fraction of bad files, else exit code 3; null = only if no file could be read",
    )
    max_hours: float | None = Field(
        default=None, gt=0, description="stop after this many hours; the same command resumes"
    )
    max_cost: float | None = Field(
        default=None,
        gt=0,
        description="stop when this session has cost this much, by `prices`; the same command resumes",
    )
    prices: Prices = Prices()
    follow: Seconds | None = Field(
        default=None,
        ge=1,
        description="continue, and list the source again at this interval, such as 5m or 1h; null = one listing",
    )
    rescore: tuple[Status, ...] = Field(
        default=(), description="only score the rows with one of these statuses again (--retry)"
    )
    provenance: ProvenanceConfig = ProvenanceConfig()
    perturb: tuple[str, ...] = Field(
        default=(),
        description="also score every image under these perturbations: a list (standard, …), a YAML file, or steps such as blur:2+jpeg:50",
    )
    features: tuple[str, ...] = Field(
        default=(),
        description="keep the embeddings of this detector or backbone, for other heads",
    )
    prior: float | None = Field(
        default=None, gt=0, lt=1, description="fraction of fakes to expect, for the report"
    )
    thumbnails: bool = Field(
        default=True,
        description="show thumbnails of the 12 highest scores in the report, which are read from the source again",
    )
    retry: RetryPolicy = RetryPolicy()
    s3: S3Config = S3Config()
    unguarded: bool = Field(default=False, description=UNGUARDED)
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _follows_all(self) -> Self:
        if self.follow and (self.limit or self.rescore):
            raise ValueError(
                "--follow scores all new files, so it cannot be combined with --limit or --retry"
            )
        return self

    @field_validator("limits", mode="before")
    @classmethod
    def _of_archives(cls, limits: Any) -> Any:
        # Keep the values that a program has set explicitly. The others are defaults of batches.
        return get_set_values(limits) if type(limits) is ImageLimits else limits

    @field_validator("rescore", mode="before")
    @classmethod
    def _failed(cls, values: Any) -> Any:
        failed = [status.value for status in Status if status is not Status.OK]
        unknown = [str(value) for value in values if value not in failed]
        if unknown:
            raise ValueError(
                f"--retry {','.join(unknown)}: not a status of files without a score; these are: {', '.join(failed)}"
            )
        return values


class Nodes(Frozen):
    """The machines of one type in a cluster description."""

    name: str = Field(default="", description="the name of the machine type")
    count: int = Field(default=1, ge=1, description="number of machines")
    cpus: int = Field(
        ge=0,
        description="cores of a machine that work is scheduled on: 0 for a head node that does no work",
    )
    gpus: int = Field(default=0, ge=0, description="GPUs of a machine")
    gpu: str | None = Field(default=None, description="the GPU's name, for people")
    memory_gb: float | None = Field(
        default=None, gt=0, description="memory of a machine in GB; null = unknown"
    )
    price_per_hour: float = Field(ge=0, description="price of one machine per hour")


class ClusterDescription(Frozen):
    """The machines of a cluster, for which `touchstone plan` estimates the time of a run.

    Descriptions are shipped in configs/clusters, or are YAML files of the user.
    """

    name: str = Field(default="", description="the name of the cluster")
    nodes: tuple[Nodes, ...] = Field(min_length=1, description="the machines, by type")
    prices: TrafficPrices | None = Field(
        default=None, description="prices for traffic; null = those of the run's config"
    )

    @model_validator(mode="after")
    def _has_cores(self) -> Self:
        if not self.cpus:
            raise ValueError(
                "the nodes of the cluster have no cores to schedule on: set `cpus` of at least one node type"
            )
        return self

    @property
    def cpus(self) -> int:
        """Number of cores of all nodes."""
        return sum(node.count * node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """Number of GPUs of all nodes."""
        return sum(node.count * node.gpus for node in self.nodes)

    @property
    def workers(self) -> int:
        """Number of nodes that have cores to schedule on."""
        return sum(node.count for node in self.nodes if node.cpus)

    @property
    def memory_bytes(self) -> float | None:
        """Bytes of memory that Ray can schedule on all nodes that do work.

        A head node with 0 `cpus` does no work. None if the memory of any other node is unknown.
        """
        working = [node for node in self.nodes if node.cpus]
        if any(node.memory_gb is None for node in working):
            return None
        return RAY_SHARE * 1e9 * sum(node.count * (node.memory_gb or 0.0) for node in working)

    @property
    def smallest_bytes(self) -> int | None:
        """Bytes of memory of the smallest node that does work.

        A head node with 0 `cpus` does no work. None if the memory of any other node is unknown.
        """
        sizes = [node.memory_gb for node in self.nodes if node.cpus]
        known_sizes = [size for size in sizes if size is not None]
        return int(1e9 * min(known_sizes)) if len(known_sizes) == len(sizes) else None

    @property
    def price_per_hour(self) -> float:
        """Price per hour of all nodes together."""
        return sum(node.count * node.price_per_hour for node in self.nodes)


def load_cluster(name_or_path: str | Path) -> ClusterDescription:
    """Load a cluster description, by the name of a shipped file or by a path. Raises ConfigError."""
    return load_yaml(find_config("clusters", name_or_path), ClusterDescription)


def apply_cluster(
    config: ScoreConfig, cluster: ClusterDescription | None, price_per_hour: float | None
) -> ScoreConfig:
    """Return the config of a run with the cores, GPUs, and prices of a described cluster.

    Args:
        config: The config of the run.
        cluster: The cluster. None keeps the cluster of the config.
        price_per_hour: Price of all machines together. It replaces any other price of machines.
    """
    changed: dict[str, Any] = {}
    prices = config.prices.model_dump()
    if cluster is not None:
        machines = {"cpus": cluster.cpus, "gpus": cluster.gpus}
        changed["cluster"] = config.cluster.model_copy(update=machines)
        prices["per_hour"] = cluster.price_per_hour
        prices |= cluster.prices.model_dump() if cluster.prices else {}
    if price_per_hour is not None:
        prices["per_hour"] = price_per_hour
    return config.model_copy(update={**changed, "prices": Prices(**prices)})
