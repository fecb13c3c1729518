"""The shape of `summary.json` as the reports read it. Every key has a default, unknown keys and nulls are let pass."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class SummarySection(BaseModel):
    """A part of the summary: a null means the same as an absent key, so that old and partial summaries still render."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class Example(SummarySection):
    """One member that has a given status."""

    uri: str = ""
    member: str | None = None
    detail: str = ""


class TopRow(SummarySection):
    """One of the members with the highest scores."""

    image_id: int = 0
    uri: str = ""
    member: str | None = None
    score: float = float("nan")
    probability: float = float("nan")
    verdict: str = ""


class Histogram(SummarySection):
    """Counts of scores (log-odds) per bin, n + 1 edges for n bins; the outermost bins hold what lies beyond them."""

    edges: list[float] = []
    counts: dict[str, list[int]] = {}

    @property
    def ensemble(self) -> list[int]:
        """Counts of the ensemble's score; empty where none was scored."""
        return self._drawable().get("ensemble", [])

    @property
    def detectors(self) -> dict[str, list[int]]:
        """Counts per detector; empty where the ensemble is one detector and would only be shown twice."""
        others = {name: counts for name, counts in self._drawable().items() if name != "ensemble"}
        return {} if list(others.values()) == [self.ensemble] else others

    def _drawable(self) -> dict[str, list[int]]:
        if len(self.edges) < 2 or not self.edges[-1] > self.edges[0]:
            return {}
        return {name: counts for name, counts in self.counts.items() if len(counts) == len(self.edges) - 1 and any(counts)}


class ThresholdSummary(SummarySection):
    """Where the verdicts change, in log-odds, and the rates measured there."""

    real_below: float
    fake_above: float
    false_positive_rate: float | None = None
    true_positive_rate: float | None = None
    n_real: int | None = None
    n_fake: int | None = None
    measured_on: str | None = None


class DetectorSummary(SummarySection):
    """One detector of the ensemble."""

    name: str = ""
    title: str = ""
    licence: str = ""
    calibrated: bool = False
    demonstration: bool = False
    masks: bool = False


class EnsembleSummary(SummarySection):
    """What gave the verdicts."""

    name: str = ""
    title: str = ""
    rule: str = ""
    calibrated: bool = False
    demonstration: bool = False
    members: list[DetectorSummary] = []
    thresholds: ThresholdSummary | None = None


class Sharing(SummarySection):
    """How often detectors asked a shared backbone for features, and how often it had to run for them."""

    asked: int = 0
    runs: int = 0


class RunCost(SummarySection):
    """What the last command cost, in the currency of its prices."""

    compute: float = 0.0
    requests: float = 0.0
    egress: float = 0.0
    total: float | None = None


class CascadeStageCost(SummarySection):
    """What one look of a cascade took in the last command, and costs for a million images of such an archive (machines alone)."""

    images: int = 0
    seconds: float = 0.0
    hours_per_million: float | None = None
    cost_per_million: float | None = None


class Memory(SummarySection):
    """What the processes of a run take of one node's memory at most."""

    processes: int = 0
    process_bytes: int = 0
    decode_bytes: int = 0
    file_bytes: int = 0
    total_bytes: int = 0


class LinkedFoldersSection(SummarySection):
    """Symbolic links to folders, which the listing did not follow."""

    count: int = 0
    example: str = ""


class KeptSetting(SummarySection):
    """A setting that the command left open, and that the run has otherwise than a new one would; values as JSON."""

    key: str = ""
    run: str = ""
    today: str = ""


class SessionSummary(SummarySection):
    """What the last command did; `seconds` per stage are summed over the workers."""

    rows: int = 0
    wall_s: float | None = None
    first_result_s: float | None = None
    images_per_s: float | None = None
    bytes_read: int = 0
    throttled: int = 0
    retried: int = 0
    workers: int | None = None
    layout: str = ""
    peak_worker_bytes: int = 0
    memory: Memory = Memory()
    backbones: dict[str, Sharing] = {}
    cost: RunCost = RunCost()
    looks: dict[str, CascadeStageCost] = {}
    seconds: dict[str, float] = {}
    kept: list[KeptSetting] = []
    unguarded: bool = False


class Bottleneck(SummarySection):
    """The stage that took the largest share of the workers' time, and what to do."""

    stage: str = ""
    share: float | None = None
    advice: str = ""


class Declarations(SummarySection):
    """What files say of their own origin: rows per verdict, of those that declare themselves generated and of the others."""

    stated: int = 0
    declared: dict[str, int] = {}
    undeclared: dict[str, int] = {}
    c2pa: dict[str, int] = {}

    @property
    def declaring(self) -> int:
        """Files that say that a model made them, or part of them."""
        return sum(self.declared.values())


class GeneratorCount(SummarySection):
    """Flagged images that an identifier takes for one generator's."""

    family: str = ""
    generator: str = ""
    flagged: int = 0


class ToldProfile(SummarySection):
    """What was said of one flagged image's origin."""

    image_id: int = 0
    uri: str = ""
    member: str | None = None
    score: float = float("nan")
    predicted_generator: str | None = None
    generator_family: str | None = None
    generator_probability: float | None = None
    generator_ranking: list[str] = []
    predicted_prompt: str | None = None
    prompt_likelihood: float | None = None


class ProfileSummary(SummarySection):
    """Of the flagged images: which generators they are nearest to, how many are `unlike` any known one or got no say, and words."""

    flagged: int = 0
    identified: bool = False
    generators: list[GeneratorCount] = []
    unlike: int = 0
    silent: int = 0
    describes: bool = False
    described: int = 0
    told: list[ToldProfile] = []


class SecondLookSummary(SummarySection):
    """How many images all members of a cascade looked at, and why."""

    band: int = 0
    audit: int = 0
    share: float | None = None


class StabilitySummary(SummarySection):
    """How many images near a threshold were shown recompressed, and how many verdicts did not outlive it."""

    views: int = 0
    margin: float = 0.0
    asked: int = 0
    unstable: int = 0
    unasked: int = 0


class ShiftSummary(SummarySection):
    """How far one property of the archive is from what the card was calibrated on."""

    feature: str = ""
    psi: float | None = None
    ks: float | None = None
    p: float | None = None
    noticed: bool = False
    beyond: bool = False
    images: int = 0


class GuaranteeSummary(SummarySection):
    """What the ensemble's card guarantees of its false positives, and whether that holds for this archive; None = cannot be told."""

    holds: bool | None = None
    why: str = ""
    unlike: str = ""
    waived: bool = False
    target_fpr: float | None = None
    confidence: float | None = None
    population: str = ""
    images: int | None = None
    shifts: list[ShiftSummary] = []

    @property
    def stated(self) -> bool:
        """Whether anything was promised, or looked at."""
        return self.images is not None


class RunSummary(SummarySection):
    """A run in figures."""

    run: str = ""
    listing: int = 0
    version: str = ""
    started_at: str = ""
    finished_at: str = ""
    complete: bool = False
    members: int = 0
    linked_folders: LinkedFoldersSection = LinkedFoldersSection()
    reused: int = 0
    statuses: dict[str, int] = {}
    own_failures: int = 0
    examples: dict[str, list[Example]] = {}
    refused_by_limits: dict[str, int] = {}
    verdicts: dict[str, int] = {}
    verdict_reasons: dict[str, int] = {}
    stability: StabilitySummary = StabilitySummary()
    guarantee: GuaranteeSummary = GuaranteeSummary()
    second_look: SecondLookSummary | None = None
    flags: dict[str, int] = {}
    formats: dict[str, int] = {}
    provenance: Declarations = Declarations()
    profile: ProfileSummary | None = None
    histogram: Histogram = Histogram()
    top: list[TopRow] = []
    ensemble: EnsembleSummary = EnsembleSummary()
    session: SessionSummary = SessionSummary()
    bottleneck: Bottleneck = Bottleneck()
    identity: dict[str, Any] = {}

    @property
    def rows(self) -> int:
        """Members that have a row, whatever its status."""
        return sum(self.statuses.values())

    @property
    def scored(self) -> int:
        """Members that have a score."""
        return self.statuses.get("ok", 0)

    @property
    def not_scored(self) -> int:
        """Members whose row says why there is no score."""
        return self.rows - self.scored

    def verdict(self, word: str) -> int:
        """How many members got this verdict."""
        return self.verdicts.get(word, 0)
