"""The result of `touchstone plan`, which predicts the time and the cost of a scoring run (`Plan`).

The other classes describe parts of a plan. `touchstone plan --json` prints the plan as JSON, and
`plan_lines` formats it as text. A member is a file of the archive that the run would score. Fields
for parts that a plan does not have, such as a cascade, are None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ray_app.metrics.values import NOT_MEASURED, MetricValue


@dataclass(frozen=True)
class PlannedKind:
    """Numbers of members, the files to score, of one kind.

    A kind is either all separate files, or all files in containers of one format, such as tar.

    Attributes:
        members: Number of members.
        size_bytes: Total size of the members whose size is known.
        containers: Number of containers, such as tar files. 0 for separate files.
    """

    members: int = 0
    size_bytes: int = 0
    containers: int = 0


@dataclass(frozen=True)
class PlannedRun:
    """Progress of the existing run that a command would continue.

    A member is a file to score. A block is a fixed range of members that is scored and stored
    together.

    Attributes:
        url: The run directory.
        state: `begun` if nothing is listed yet, `unfinished`, or `finished`.
        blocks_done: Number of blocks that are scored.
        members_done: Number of members of these blocks.
        blocks_left: Number of blocks to score.
        members_left: Number of members to score.
    """

    url: str = ""
    state: str = ""
    blocks_done: int = 0
    members_done: int = 0
    blocks_left: int = 0
    members_left: int = 0


@dataclass(frozen=True)
class PlannedNodes:
    """Machines of one type in the cluster that a plan assumes.

    Attributes:
        name: Name of the type.
        count: Number of machines.
        cpus: Cores of one machine.
        gpus: GPUs of one machine.
        gpu: Model of the GPUs.
        memory_gb: Memory of one machine in GB. None if it is not known.
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
    """All machines of the cluster that a plan assumes.

    Attributes:
        name: Name of the cluster.
        cpus: Number of cores of all machines.
        gpus: Number of GPUs of all machines.
        price_per_hour: Price of all machines.
        nodes: Machines by type. Empty if only the number of cores and GPUs is known.
    """

    name: str = ""
    cpus: int = 0
    gpus: int = 0
    price_per_hour: float = 0.0
    nodes: Sequence[PlannedNodes] = ()


@dataclass(frozen=True)
class PlannedGuarantee:
    """The guarantee on false positives in the card, the YAML file of the planned ensemble.

    Attributes:
        target_fpr: The false-positive rate that the guarantee states.
        confidence: Confidence of the guarantee, such as 0.95.
        upper_bound: Upper bound of the false-positive rate that the calibration measured.
        population: Description of the images of the calibration.
        otherwise: Settings of the planned run that differ from those of the calibration, so that
            the guarantee does not hold. Empty if none differ.
    """

    target_fpr: float
    confidence: float
    upper_bound: float
    population: str | None = None
    otherwise: Sequence[str] = ()


@dataclass(frozen=True)
class PlannedProfile:
    """The identifier and the describer of the planned run.

    Attributes:
        identifier: Name of the identifier, which names the generator of each image.
        describer: Name of the describer, which predicts prompts of images.
        describe: `all` if prompts are predicted for all images, `flagged` for those with the
            verdict `fake`.
        share: Fraction of the images for which prompts are predicted. It is measured if the plan
            scored a sample of the archive, and estimated if it only decoded the sample. None
            without a sample or a describer.
    """

    identifier: str | None = None
    describer: str | None = None
    describe: str | None = None
    share: float | None = None


@dataclass(frozen=True)
class PlannedTensor:
    """An input tensor, made by one preprocessing for all detectors that share it.

    Attributes:
        preprocessing: Settings of the preprocessing that differ from defaults.
        shape: (height, width) in pixels. None if images keep their size.
        detectors: Names of the detectors.
    """

    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    detectors: Sequence[str] = ()


@dataclass(frozen=True)
class PlannedBackbone:
    """A backbone network that several detectors can share.

    Attributes:
        name: Name of the backbone.
        runs_once_for: Groups of detectors. The backbone runs once per image for each group.
    """

    name: str
    runs_once_for: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class PlannedMemory:
    """Maximum memory of a run on one node, in bytes.

    Attributes:
        processes: Number of processes.
        process_bytes: Memory of one process.
        decode_bytes: Memory that all processes share to decode large images. An image waits until
            enough of it is free.
        file_bytes: Memory that all processes share for large files that they have read.
        total_bytes: Total memory. `total_bytes`, `decode_bytes`, and `file_bytes` are None if the
            memory of the node is not known.
        worst_bytes: Memory to decode the largest image that the run's limits allow.
    """

    processes: int = 0
    process_bytes: int = 0
    decode_bytes: int | None = None
    file_bytes: int | None = None
    total_bytes: int | None = None
    worst_bytes: int = 0


@dataclass(frozen=True)
class PlannedListing:
    """The work of listing the source for a plan.

    Attributes:
        seconds: Duration.
        gets: Number of GET requests.
        bytes_read: Bytes that were read.
    """

    seconds: float = 0.0
    gets: int = 0
    bytes_read: int = 0


@dataclass(frozen=True)
class ProbeExample:
    """A file that could not be scored when a plan measured the speed on a sample of the archive.

    Attributes:
        uri: The file, or its container.
        member: Path in the container. None if the file is not in a container.
        detail: Reason why it has no score.
    """

    uri: str
    member: str | None
    detail: str


@dataclass(frozen=True)
class ProbeResult:
    """Results of the probe, which scores a sample of the archive to measure the speed of a run.

    A member is a file of the archive.

    Attributes:
        sample_size: Number of members that were drawn for the sample.
        members: Number of members that were processed. It is less than `sample_size` if detectors
            are slow.
        scored: Number of members that detectors scored. 0 if the sample was only decoded.
        score_basis: `measured` or `estimated`, for the time of the detectors.
        device: Device of the planned run, such as `cpu`.
        processes: Number of processes that worked on the sample.
        statuses: Number of members by status.
        refused: Number of members with a status other than `ok`.
        refused_share: Fraction of members with a status other than `ok`, with its 95 % interval.
        examples: The first members with each status other than `ok`, by status.
        bytes_per_member: Mean size of a member.
    """

    sample_size: int = 0
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
    """The cascade of the planned run, which scores only doubtful images with all detectors.

    Attributes:
        first: Detectors of the first stage, which score all images.
        second: Detectors of the second stage, which score doubtful images and a random sample.
        share: Fraction of the images in the second stage. It is measured on a sample if the plan
            scored one. Otherwise it is the fraction that the card of the ensemble expects.
        seconds_per_image: Core seconds per image of the archive, by stage (`first`, `second`).
            None if the plan did not score a sample.
    """

    first: Sequence[str] = ()
    second: Sequence[str] = ()
    share: float = 1.0
    seconds_per_image: Mapping[str, float] | None = None


@dataclass(frozen=True)
class PlannedStage:
    """The maximum rate of one stage of the run, such as decoding.

    Attributes:
        stage: Name of the stage.
        seconds_per_image: Seconds that one process needs per image of the archive. None if not
            known.
        images_per_s: Rate of the stage if its processes did nothing else. None if not known.
        processes: Number of processes.
        basis: `measured`, `estimated`, or `unknown`.
        detectors: Detectors that the processes run. Empty for stages without detectors.
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
        stage: Name of the stage.
        advice: How to raise the rate.
        scorers_busy: Fraction of the time in which the scorers, the processes that run detectors,
            work. None if the run has no separate scorers.
        cores_per_gpu: Number of cores that fetch and decode as many images as one GPU scores. None
            without GPUs.
    """

    stage: str
    advice: str = ""
    scorers_busy: float | None = None
    cores_per_gpu: float | None = None


@dataclass(frozen=True)
class PlannedTime:
    """Predicted rate and hours of a run, without the time to start new machines.

    Attributes:
        images_per_s: Rate of the run. None if there is nothing to score.
        hours: Hours to start the processes, to list the source, and to score all members.
        bytes_per_s: Bytes per second that are read from the source.
        starting_s: Seconds to start the processes; part of `hours`.
        listing_s: Seconds to list the source; part of `hours`.
        basis: `measured` or `estimated`, for the time of the detectors, or `nothing to do`.
        assumed_gmac_per_s: Assumed speed of a GPU, in billions of multiply-adds per second, if its
            speed could not be measured. None if the rate is measured.
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
        ms_per_image: Milliseconds per image on one core or GPU, if only this detector runs.
        spent_ms: Milliseconds per image that this detector adds if all detectors run. If several
            share a backbone, the first of them includes the time of the backbone.
        share: Fraction of the total time per image.
        basis: Always `measured`, because the times come from a sample of the archive.
    """

    ms_per_image: float | None = None
    spent_ms: float | None = None
    share: float | None = None
    basis: str = ""


@dataclass(frozen=True)
class PlannedRequests:
    """Minimum numbers of requests of a run that an object store bills.

    Attributes:
        list: Number of LIST requests.
        get: Number of GET requests.
        put: Number of PUT requests.
    """

    list: int = 0
    get: int = 0
    put: int = 0

    @property
    def any(self) -> bool:
        """Whether the run sends any request that a store bills."""
        return bool(self.list or self.get or self.put)


@dataclass(frozen=True)
class PlannedCost:
    """Predicted cost of a run in the currency of the prices.

    Attributes:
        compute: Cost of the machines. None if the hours are not known.
        egress: Cost of bytes out of the store.
        total: Sum of the known costs.
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
    """The limits at which the planned run stops.

    Attributes:
        max_hours: Maximum hours. None for no limit.
        max_cost: Maximum cost. None for no limit.
        share: Fraction of the work that fits into the limits. None if the hours are not known.
    """

    max_hours: float | None = None
    max_cost: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Plan:
    """The result of `touchstone plan`: the predicted work and cost of a scoring run.

    To measure the speed, the plan usually runs a probe, which scores a sample of the members.

    Attributes:
        members: Number of members: files of the archive that the run would score.
        size_bytes: Total size of the members whose size is known.
        unknown_sizes: Number of members whose size is only known after they are read.
        kinds: Members by kind: `files` for separate files, or the format of their containers.
        refused_in_listing: Number of members that the listing rejects, by status.
        run: The run that would be continued. None for a new run.
        unlike: Difference of the archive from the images on which the ensemble was calibrated, if
            it is so large that every verdict becomes `abstain`; else None. It is read from the last
            summary of the run. Without a summary, it is measured on the sample.
        views: Names of perturbations, which are scored in addition to the images. None if there are
            none.
        features: Length of the embeddings that the run stores, by name of the detector. None if it
            stores none.
        pools: Groups of detectors; each group has processes of its own.
        kind: Assignment of stages, such as decoding, to processes. `fused` if each process runs all
            stages, `split` if stages have their own processes.
        layout: Description of the processes, such as "8 workers, each decodes and scores".
        block_members: Maximum number of members in a block, which is scored and stored together.
        gmac_per_image: Billions of multiply-adds of the detectors per image.
        blocks: Number of blocks to score.
        groups: Groups of detectors that take turns in each worker, because they do not fit into
            memory together. None if all fit.
        costs: Time by detector. `costs`, `probe`, `cascade`, and `bottleneck` are None without a
            probe.
        stages: Rates of the stages of each pool. Empty without a probe.
        forecast: Predicted time. None if there are members to score, but the plan ran no probe.
        bytes_read: Bytes that the run and its listing read from the source.
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
