"""The result of `touchstone plan`: `Plan`. `--json` prints it, and `plan_lines` formats it.

Fields for parts that a plan does not have, such as a cascade or a profile, are None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ray_app.metrics.values import NOT_MEASURED, MetricValue


@dataclass(frozen=True)
class PlannedKind:
    """Number and size of the members that are separate files, or in containers of one format."""

    members: int = 0
    size_bytes: int = 0
    containers: int = 0


@dataclass(frozen=True)
class PlannedRun:
    """Progress of the run that the command would continue.

    Attributes:
        state: `begun`, `unfinished`, or `finished`.
    """

    url: str = ""
    state: str = ""
    blocks_done: int = 0
    members_done: int = 0
    blocks_left: int = 0
    members_left: int = 0


@dataclass(frozen=True)
class PlannedNodes:
    """Machines of one type in the cluster.

    Attributes:
        price_per_hour: Price of one machine.
    """

    name: str = ""
    count: int = 1
    cpus: int = 0
    gpus: int = 0
    gpu: str | None = None
    memory_gb: float | None = None
    price_per_hour: float = 0.0


@dataclass(frozen=True)
class PlannedCluster:
    """All machines of the cluster that the plan assumes.

    Attributes:
        nodes: Machines by type. Empty if only the number of cores and GPUs is known.
    """

    name: str = ""
    cpus: int = 0
    gpus: int = 0
    price_per_hour: float = 0.0
    nodes: Sequence[PlannedNodes] = ()


@dataclass(frozen=True)
class PlannedGuarantee:
    """The guarantee of the card of the ensemble.

    Attributes:
        otherwise: Settings of the run for which the guarantee does not hold.
    """

    target_fpr: float
    confidence: float
    upper_bound: float
    population: str | None = None
    otherwise: Sequence[str] = ()


@dataclass(frozen=True)
class PlannedProfile:
    """The identifier and the describer of the planned run, which name generators and prompts.

    Attributes:
        describe: Which images the describer describes.
        share: Fraction of the images that are described. None if no probe measured it.
    """

    identifier: str | None = None
    describer: str | None = None
    describe: str | None = None
    share: float | None = None


@dataclass(frozen=True)
class PlannedTensor:
    """An input tensor of detectors, made by one preprocessing for all detectors that share it.

    Attributes:
        shape: (height, width) in pixels. None if images keep their size.
    """

    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    detectors: Sequence[str] = ()


@dataclass(frozen=True)
class PlannedBackbone:
    """A backbone network. It runs once per image for each group of detectors."""

    name: str
    runs_once_for: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class PlannedMemory:
    """Maximum memory of a run on one node, in bytes.

    Attributes:
        processes: Number of processes.
        process_bytes: Memory of one process.
        decode_bytes: Memory for large images, which are decoded in turns.
        file_bytes: Memory for large files.
        total_bytes: Total memory. `total_bytes`, `decode_bytes`, and `file_bytes` are None if the
            memory of the node is not known.
        worst_bytes: Maximum memory that decoding one image within the limits takes.
    """

    processes: int = 0
    process_bytes: int = 0
    decode_bytes: int | None = None
    file_bytes: int | None = None
    total_bytes: int | None = None
    worst_bytes: int = 0


@dataclass(frozen=True)
class PlannedListing:
    """Cost of listing the source."""

    seconds: float = 0.0
    gets: int = 0
    bytes_read: int = 0


@dataclass(frozen=True)
class ProbeExample:
    """A member of the scored sample that was rejected, and the reason."""

    uri: str
    member: str | None
    detail: str


@dataclass(frozen=True)
class ProbeResult:
    """Results of the probe, which scores a small sample of the members.

    Attributes:
        score_basis: `measured` or `estimated`, for the time of the detectors.
        processes: Number of processes that scored the sample.
        refused: Number of rejected members.
        refused_share: Fraction of rejected members, with its 95 % interval.
        examples: The first rejected members by status.
    """

    members: int = 0
    scored: int = 0
    score_basis: str = ""
    device: str = ""
    processes: int = 1
    statuses: Mapping[str, int] = field(default_factory=dict)
    refused: int = 0
    refused_share: MetricValue = NOT_MEASURED
    examples: Mapping[str, Sequence[ProbeExample]] = field(default_factory=dict)
    bytes_per_member: int = 0


@dataclass(frozen=True)
class PlannedCascade:
    """The two stages of the cascade in the planned run.

    Attributes:
        first: Detectors of the first stage.
        second: Detectors of the second stage.
        share: Expected fraction of the images in the second stage.
        seconds_per_image: Core seconds per image of the archive, by stage.
    """

    first: Sequence[str] = ()
    second: Sequence[str] = ()
    share: float = 1.0
    seconds_per_image: Mapping[str, float] | None = None


@dataclass(frozen=True)
class PlannedStage:
    """The maximum rate of one stage of the run, such as decoding.

    Attributes:
        seconds_per_image: Seconds per image. None if not known.
        images_per_s: Maximum rate. None if not known.
        basis: `measured`, `estimated`, or `unknown`.
    """

    stage: str
    seconds_per_image: float | None = None
    images_per_s: float | None = None
    processes: int = 0
    basis: str = ""
    detectors: Sequence[str] = ()


@dataclass(frozen=True)
class PlannedBottleneck:
    """The stage that limits the rate of the planned run.

    Attributes:
        advice: How to raise the rate.
        scorers_busy: Fraction of the time in which scorers work.
    """

    stage: str
    advice: str = ""
    scorers_busy: float | None = None


@dataclass(frozen=True)
class PlannedTime:
    """Predicted rate and hours of a run, without the time to start new machines.

    Attributes:
        assumed_gmac_per_s: The assumed speed of a GPU if none could be measured.
    """

    images_per_s: float | None = None
    hours: float = 0.0
    bytes_per_s: int | None = None
    starting_s: float = 0.0
    listing_s: float = 0.0
    basis: str = ""
    assumed_gmac_per_s: float | None = None


@dataclass(frozen=True)
class PlannedDetector:
    """Time that one detector needs per image.

    Attributes:
        ms_per_image: Milliseconds per image on one core or GPU, if it runs alone.
        spent_ms: Milliseconds per image with the other detectors. The first detector of a shared
            backbone includes the time of the backbone.
        share: Fraction of the total time per image.
    """

    ms_per_image: float | None = None
    spent_ms: float | None = None
    share: float | None = None
    basis: str = ""


@dataclass(frozen=True)
class PlannedRequests:
    """Minimum numbers of requests of a run that a store bills."""

    list: int = 0
    get: int = 0
    put: int = 0

    @property
    def any(self) -> bool:
        """Whether any number of requests is above 0."""
        return bool(self.list or self.get or self.put)


@dataclass(frozen=True)
class PlannedCost:
    """Predicted cost of a run in the currency of the prices.

    Attributes:
        compute: Cost of the machines. None if the hours are not known.
        egress: Cost of bytes out of the store.
        compute_share: Fraction of the total that is compute. None if nothing has a price.
        per_1000_members: Cost per 1,000 members. None if the hours are not known.
    """

    compute: float | None = None
    egress: float = 0.0
    total: float = 0.0
    compute_share: float | None = None
    per_1000_members: float | None = None


@dataclass(frozen=True)
class PlannedStops:
    """The limits at which the run stops.

    Attributes:
        share: Fraction of the work that fits into the limits.
    """

    max_hours: float | None = None
    max_cost: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Plan:
    """The work and the cost of a scoring run.

    Attributes:
        unknown_sizes: Number of members whose size is only known after they are read.
        run: The run that would be continued.
        unlike: How the archive differs from the images of the calibration, if all verdicts abstain
            because of this difference; else None. It comes from the last summary of the run, or
            else from the sample.
        groups: Groups of detectors that take turns in each worker, because they do not fit into
            memory together.
        costs: Time by detector. `costs`, `probe`, `bottleneck`, and `forecast` are None without a
            probe.
    """

    members: int = 0
    size_bytes: int = 0
    unknown_sizes: int = 0
    kinds: Mapping[str, PlannedKind] = field(default_factory=dict)
    refused_in_listing: Mapping[str, int] = field(default_factory=dict)
    run: PlannedRun | None = None
    unlike: str | None = None
    cluster: PlannedCluster = PlannedCluster()

    ensemble: str = ""
    rule: str = ""
    detectors: Sequence[str] = ()
    guarantee: PlannedGuarantee | None = None
    views: Sequence[str] | None = None
    profile: PlannedProfile | None = None
    features: Mapping[str, int] | None = None
    tensors: Sequence[PlannedTensor] = ()
    backbones: Sequence[PlannedBackbone] = ()
    pools: Sequence[Sequence[str]] = ()
    kind: str = ""
    layout: str = ""
    block_members: int = 0
    workers: int = 0
    process_bytes: int = 0
    gmac_per_image: float = 0.0
    memory: PlannedMemory = PlannedMemory()
    blocks: int = 0
    listing: PlannedListing = PlannedListing()

    groups: Sequence[Sequence[str]] | None = None
    costs: Mapping[str, PlannedDetector] | None = None
    probe: ProbeResult | None = None
    cascade: PlannedCascade | None = None
    stages: Sequence[PlannedStage] = ()
    bottleneck: PlannedBottleneck | None = None
    forecast: PlannedTime | None = None

    requests: PlannedRequests = PlannedRequests()
    bytes_read: int = 0
    prices: Mapping[str, float] = field(default_factory=dict)
    cost: PlannedCost = PlannedCost()
    stops: PlannedStops = PlannedStops()

    @property
    def keeps_sizes(self) -> bool:
        """Whether some detector scores images at their own size, without resizing them."""
        return any(tensor.shape is None for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-compatible values, which `--json` prints."""
        return asdict(self)
