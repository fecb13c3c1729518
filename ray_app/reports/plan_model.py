"""The result of `touchstone plan`: `Plan`. `--json` prints it, and `plan_lines` words it.

What the work does not have (a cascade, a profile, views) is None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ray_app.metrics.values import NOT_MEASURED, MetricValue


@dataclass(frozen=True)
class PlannedKind:
    """The members that are files of their own, or that lie in containers of one format."""

    members: int = 0
    size_bytes: int = 0
    containers: int = 0


@dataclass(frozen=True)
class PlannedRun:
    """How far the run is that the command would continue.

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
    """Some machines of one type.

    Attributes:
        price_per_hour: The price of one of them.
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
    """The machines together.

    Attributes:
        nodes: By type. Empty if only their cores and GPUs are known.
    """

    name: str = ""
    cpus: int = 0
    gpus: int = 0
    price_per_hour: float = 0.0
    nodes: Sequence[PlannedNodes] = ()


@dataclass(frozen=True)
class PlannedGuarantee:
    """What the card of the ensemble guarantees.

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
    """The identifier and the describer.

    Attributes:
        describe: Which images are described.
        share: The fraction of the images that is described. None if no probe measured it.
    """

    identifier: str | None = None
    describer: str | None = None
    describe: str | None = None
    share: float | None = None


@dataclass(frozen=True)
class PlannedTensor:
    """A preprocessing with the detectors that share its tensor.

    Attributes:
        shape: (height, width) in pixels. None if images keep their size.
    """

    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    detectors: Sequence[str] = ()


@dataclass(frozen=True)
class PlannedBackbone:
    """A backbone, and the groups of detectors for each of which it runs once per image."""

    name: str
    runs_once_for: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class PlannedMemory:
    """What a run takes of the memory of one node at most.

    Attributes:
        decode_bytes: For large images, which take turns. None if the memory of the node is not
            stated, as `file_bytes` and `total_bytes`.
        file_bytes: For large files.
        worst_bytes: What an image within the limits takes at most to be decoded.
    """

    processes: int = 0
    process_bytes: int = 0
    decode_bytes: int | None = None
    file_bytes: int | None = None
    total_bytes: int | None = None
    worst_bytes: int = 0


@dataclass(frozen=True)
class PlannedListing:
    """What listing the source took."""

    seconds: float = 0.0
    gets: int = 0
    bytes_read: int = 0


@dataclass(frozen=True)
class ProbeExample:
    """A member of the sample that was refused, and the reason."""

    uri: str
    member: str | None
    detail: str


@dataclass(frozen=True)
class ProbeResult:
    """What became of the members of the sample.

    Attributes:
        score_basis: Whether the time of the detectors was measured or estimated.
        processes: How many processes worked on the sample at once.
        refused_share: The fraction of refused members, with its 95 % interval.
        examples: By status, the first refused members.
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
    """The two stages of a cascade.

    Attributes:
        share: The fraction of the images that the second stage is expected to score.
        seconds_per_image: By stage, what a core spends on an image.
    """

    first: Sequence[str] = ()
    second: Sequence[str] = ()
    share: float = 1.0
    seconds_per_image: Mapping[str, float] | None = None


@dataclass(frozen=True)
class PlannedStage:
    """What one stage does at most.

    Attributes:
        seconds_per_image: None if it is not known, as `images_per_s`.
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
    """The stage that sets the rate, and what would raise it.

    Attributes:
        scorers_busy: The fraction of the time in which scorers work.
    """

    stage: str
    advice: str = ""
    scorers_busy: float | None = None


@dataclass(frozen=True)
class PlannedTime:
    """Rate and hours. Machines that have yet to come are not in it.

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
    """What one detector takes.

    Attributes:
        ms_per_image: On one core or GPU, by itself.
        spent_ms: With the others: the first detector that has a shared backbone pays for it.
        share: The fraction of all the time that is spent on an image.
    """

    ms_per_image: float | None = None
    spent_ms: float | None = None
    share: float | None = None
    basis: str = ""


@dataclass(frozen=True)
class PlannedRequests:
    """The requests that a store bills, at the least."""

    list: int = 0
    get: int = 0
    put: int = 0

    @property
    def any(self) -> bool:
        """Whether there is any request."""
        return bool(self.list or self.get or self.put)


@dataclass(frozen=True)
class PlannedCost:
    """The bill, in the currency of the prices.

    Attributes:
        compute: The machines. None if the hours are not known.
        egress: The bytes out of the store.
        compute_share: The fraction of the total. None if nothing has a price.
        per_1000_members: None if the hours are not known.
    """

    compute: float | None = None
    egress: float = 0.0
    total: float = 0.0
    compute_share: float | None = None
    per_1000_members: float | None = None


@dataclass(frozen=True)
class PlannedStops:
    """The limits of the run.

    Attributes:
        share: The fraction of the work for which they leave time and money.
    """

    max_hours: float | None = None
    max_cost: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Plan:
    """What a scoring run will do and cost.

    Attributes:
        unknown_sizes: Members whose size is known only after they were read.
        run: The run that would be continued.
        unlike: In what the archive differs so much from the images of the calibration that all
            verdicts abstain, by the last summary of the run or else by the sample.
        groups: Of detectors that take turns in each worker because they do not fit together.
        costs: By detector. None without a probe, as `probe`, `bottleneck`, and `forecast`.
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
        """Whether a detector takes images in their own size."""
        return any(tensor.shape is None for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as `--json` prints it."""
        return asdict(self)
