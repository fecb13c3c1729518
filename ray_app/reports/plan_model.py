"""The document of a plan: `touchstone plan --json` prints it, and its lines are made of it.

Fields stand in the order in which they are printed. What the work does not have (a cascade, a
profile, views) has no key.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from ray_app.config import OptionalKey, Section
from ray_app.runs.document import CostSummary, Example, Memory


class PlannedKind(Section):
    """Members that are files of their own, or lie in containers of one format."""

    members: int = 0
    size_bytes: int = 0
    containers: int = 0


class PlannedRun(Section):
    """How far the run is that the command would continue: begun, unfinished or finished."""

    url: str = ""
    state: str = ""
    blocks_done: int = 0
    members_done: int = 0
    blocks_left: int = 0
    members_left: int = 0


class PlannedNodes(Section):
    """Some machines of one type; `price_per_hour` is that of one."""

    name: str = ""
    count: int = 1
    cpus: int = 0
    gpus: int = 0
    gpu: str | None = None
    memory_gb: float | None = None
    price_per_hour: float = 0.0


class PlannedCluster(Section):
    """The machines together; without `nodes` where they are only counted."""

    name: str = ""
    cpus: int = 0
    gpus: int = 0
    price_per_hour: float = 0.0
    nodes: Sequence[PlannedNodes] = ()


class PlannedGuarantee(Section):
    """What the ensemble's card guarantees; `otherwise`: why it would not hold whatever the archive
    is like.
    """

    target_fpr: float
    confidence: float
    upper_bound: float
    population: str | None = None
    otherwise: Sequence[str] = ()


class PlannedProfile(Section):
    """The identifier, the describer, and the share of the images that it describes; None where no
    probe measured it.
    """

    identifier: str | None = None
    describer: str | None = None
    describe: OptionalKey[str] = None
    share: float | None = None


class PlannedTensor(Section):
    """A preprocessing with the detectors that share its tensor; `shape`: None where images keep
    their size.
    """

    preprocessing: Mapping[str, Any] = {}
    shape: tuple[int, ...] | None = None
    detectors: Sequence[str] = ()


class PlannedBackbone(Section):
    """A backbone with the groups of detectors for which it runs once per image."""

    name: str
    runs_once_for: Sequence[Sequence[str]] = ()


class PlannedMemory(Memory):
    """And what no image within the limits takes more than to be decoded."""

    worst_bytes: int = 0


class PlannedListing(Section):
    """What listing the source took."""

    seconds: float = 0.0
    gets: int = 0
    bytes_read: int = 0


class RefusedShare(Section):
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


class ProbeResult(Section):
    """Statuses of the members of a sample. `score_basis`: whether the detectors' time was measured.
    `processes`: how many processes worked on the sample at once.
    """

    members: int = 0
    scored: int = 0
    score_basis: str = ""
    device: str = ""
    processes: int = 1
    statuses: Mapping[str, int] = {}
    refused: int = 0
    refused_share: RefusedShare
    examples: Mapping[str, Sequence[Example]] = {}
    bytes_per_member: int = 0


class PlannedCascade(Section):
    """Of a cascade: the fraction of images that its second stage is expected to score, and by stage
    what a core spends on an image.
    """

    first: Sequence[str] = ()
    second: Sequence[str] = ()
    share: float = 1.0
    seconds_per_image: Mapping[str, float] | None = None


class PlannedStage(Section):
    """What one stage does at most; None where it is not known. `basis`: measured, estimated or
    unknown.
    """

    stage: str
    seconds_per_image: float | None = None
    images_per_s: float | None = None
    processes: int = 0
    basis: str = ""
    detectors: Sequence[str] = ()


class PlannedBottleneck(Section):
    """The stage that sets the rate, and what would raise it; `scorers_busy`: the share of time that
    they work.
    """

    stage: str
    advice: str = ""
    scorers_busy: float | None = None


class PlannedTime(Section):
    """Rate and hours; machines that have yet to come are not in it. `assumed_gmac_per_s`: where no
    GPU could be measured.
    """

    images_per_s: float | None = None
    hours: float = 0.0
    bytes_per_s: int | None = None
    starting_s: float = 0.0
    listing_s: float = 0.0
    basis: str = ""
    assumed_gmac_per_s: float | None = None


class PlannedDetector(Section):
    """What one detector takes. `ms_per_image`: alone, on one core or GPU. `spent_ms`: with the
    others, where the first that has a shared backbone pays for it. `share`: of all the time that is
    spent on an image.
    """

    ms_per_image: float | None = None
    spent_ms: float | None = None
    share: float | None = None
    basis: str = ""


class PlannedRequests(Section):
    """Requests that a store bills, at the least."""

    lists: int = Field(default=0, alias="list")
    gets: int = Field(default=0, alias="get")
    puts: int = Field(default=0, alias="put")

    @property
    def any(self) -> bool:
        """Whether there is any request."""
        return bool(self.lists or self.gets or self.puts)


class PlannedCost(CostSummary):
    """And for a thousand members; None where the hours are not known."""

    per_1000_members: float | None = None


class PlannedStops(Section):
    """The limits that the run was given, and the share of the work that they leave it time or money
    for.
    """

    max_hours: float | None = None
    max_cost: float | None = None
    share: float | None = None


class Plan(Section):
    """What a scoring run will do and cost: the archive, the work, the prediction of a probe, and
    the bill.

    `unknown_sizes`: members whose size is known only after reading. Without a probe all that it
    predicts is null. `groups`: of detectors that take turns in each worker, where they do not fit
    together. `unlike`: in what the archive, by the run's last summary or else by the sample, differs so
    much from the images of the ensemble's calibration that all verdicts abstain.
    """

    members: int = 0
    size_bytes: int = 0
    unknown_sizes: int = 0
    kinds: Mapping[str, PlannedKind] = {}
    refused_in_listing: Mapping[str, int] = {}
    run: PlannedRun | None = None
    unlike: OptionalKey[str] = None
    cluster: PlannedCluster = PlannedCluster()

    ensemble: str = ""
    rule: str = ""
    detectors: Sequence[str] = ()
    guarantee: OptionalKey[PlannedGuarantee] = None
    views: OptionalKey[Sequence[str]] = None
    profile: OptionalKey[PlannedProfile] = None
    features: OptionalKey[Mapping[str, int]] = None
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

    groups: OptionalKey[Sequence[Sequence[str]]] = None
    costs: OptionalKey[Mapping[str, PlannedDetector]] = None
    probe: ProbeResult | None = None
    cascade: OptionalKey[PlannedCascade] = None
    stages: Sequence[PlannedStage] = ()
    bottleneck: PlannedBottleneck | None = None
    forecast: PlannedTime | None = None

    requests: PlannedRequests = PlannedRequests()
    bytes_read: int = 0
    prices: Mapping[str, float] = {}
    cost: PlannedCost = PlannedCost()
    stops: PlannedStops = PlannedStops()

    @property
    def keeps_sizes(self) -> bool:
        """Whether a detector takes images in their own size."""
        return any(tensor.shape is None for tensor in self.tensors)
