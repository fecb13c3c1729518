"""The document of a run, `summary.json` (`RunSummary`).

Fields stand in the order of the file. What a run does not have (a cascade, a profile, a guarantee)
has no key in it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from ray_app.config import OptionalKey, Section
from ray_app.ensembles.card import Thresholds
from ray_app.ensembles.finding import error_rates
from ray_app.errors import DETECTOR_FINDINGS

SUMMARY_SCHEMA = 1


class Example(Section):
    """One member that has a given status."""

    uri: str = ""
    member: str | None = None
    detail: str = ""


class TopRow(Section):
    """One of the members with the highest scores."""

    image_id: int = 0
    uri: str = ""
    member: str | None = None
    score: float = float("nan")
    probability: float = float("nan")
    verdict: str = ""
    sha256: str | None = None


class Histogram(Section):
    """Counts of scores (log-odds) per bin, n + 1 edges for n bins; the outermost bins hold what
    lies beyond them.
    """

    edges: Sequence[float] = ()
    counts: Mapping[str, list[int]] = {}

    @property
    def ensemble(self) -> Sequence[int]:
        """Counts of the ensemble's score; empty where none was scored."""
        return self._drawable().get("ensemble", [])

    @property
    def detectors(self) -> dict[str, Sequence[int]]:
        """Counts per detector; empty where the ensemble is one detector and would only be shown
        twice.
        """
        others = {name: counts for name, counts in self._drawable().items() if name != "ensemble"}
        return {} if list(others.values()) == [self.ensemble] else others

    def _drawable(self) -> dict[str, Sequence[int]]:
        if len(self.edges) < 2 or not self.edges[-1] > self.edges[0]:
            return {}
        return {
            name: counts
            for name, counts in self.counts.items()
            if len(counts) == len(self.edges) - 1 and any(counts)
        }


class DetectorSummary(Section):
    """One detector of the ensemble."""

    name: str = ""
    title: str = ""
    licence: str = ""
    calibrated: bool = False
    demonstration: bool = False
    masks: bool = False


class EnsembleSummary(Section):
    """What gave the verdicts. `blind_to`: what its detectors cannot see, in sentences; None where
    their cards say nothing of it.
    """

    name: str = ""
    title: str = ""
    rule: str = ""
    calibrated: bool = False
    demonstration: bool = False
    members: Sequence[DetectorSummary] = ()
    thresholds: Thresholds | None = None
    blind_to: OptionalKey[Sequence[str]] = None


class Sharing(Section):
    """How often detectors asked a shared backbone for features, and how often it had to run for
    them.
    """

    runs: int = 0
    asked: int = 0


class DetectorTime(Section):
    """What a detector took: `seconds` of all workers for `images`, counted in every view.
    `ms_per_image`: what one takes it alone, with the run of a shared backbone that another detector
    paid for.
    """

    seconds: float = 0.0
    images: int = 0
    ms_per_image: float | None = None


class CostSummary(Section):
    """A bill in the currency of its prices: machines, and bytes out of the store. `compute`: None
    if the hours are not known; `compute_share`: of the total, None if nothing has a price.
    """

    compute: float | None = None
    egress: float = 0.0
    total: float = 0.0
    compute_share: float | None = None


class CascadeStageCost(Section):
    """What one look of a cascade took in the last command, and costs for a million images of such
    an archive (machines alone).
    """

    images: int = 0
    seconds: float = 0.0
    hours_per_million: float | None = None
    cost_per_million: float | None = None


class Memory(Section):
    """What a run takes of one node's memory at most: processes, and what images and files of any
    size take in turns beside them; None where the node's memory is not stated.
    """

    processes: int = 0
    process_bytes: int = 0
    decode_bytes: int | None = None
    file_bytes: int | None = None
    total_bytes: int | None = None


class LinkedFoldersSummary(Section):
    """Symbolic links to folders, which the listing did not follow."""

    count: int = 0
    example: str = ""


class KeptSetting(Section):
    """A setting that the command left open, and that the run has otherwise than a new one would;
    values as JSON.
    """

    key: str = ""
    run: str = ""
    today: str = ""


class RetrySummary(Section):
    """A retry that the last command worked on: of the members with these statuses. `listing`: the
    number of its manifest.
    """

    listing: int
    statuses: list[str]
    members: int


class SessionSummary(Section):
    """What the last command did; `seconds` per stage are summed over the workers. `described`:
    members that words were found for. `groups`: of detectors that took turns in each worker, where
    they did not fit together.
    """

    number: int = 0
    rows: int = 0
    wall_s: float | None = None
    first_result_s: float | None = None
    images_per_s: float | None = None
    bytes_read: int = 0
    requests: int = 0
    puts: int = 0
    retried: int = 0
    throttled: int = 0
    decoded: int = 0
    retries: Sequence[RetrySummary] = ()
    backbones: Mapping[str, Sharing] = {}
    detectors: OptionalKey[Mapping[str, DetectorTime]] = None
    groups: OptionalKey[Sequence[Sequence[str]]] = None
    peak_worker_bytes: int = 0
    memory: Memory | None = None
    workers: int | None = None
    layout: str | None = None
    cost: CostSummary | None = None
    looks: OptionalKey[Mapping[str, CascadeStageCost]] = None
    described: OptionalKey[int] = None
    seconds: Mapping[str, float] = {}
    unguarded: OptionalKey[bool] = None
    kept: OptionalKey[Sequence[KeptSetting]] = None


class Bottleneck(Section):
    """The stage that took the largest share of the workers' time, and what to do."""

    stage: str = ""
    share: float | None = None
    advice: str = ""


class Declarations(Section):
    """What files say of their own origin: rows per verdict, of those that declare themselves
    generated and of the others; per state of a manifest; and of sound ones by where their signer
    stands: on which list, not on which, or there was none.
    """

    stated: int = 0
    declared: Mapping[str, int] = {}
    undeclared: Mapping[str, int] = {}
    c2pa: Mapping[str, int] = {}
    signers: Mapping[str, int] = {}

    @property
    def declaring(self) -> int:
        """Files that say that a model made them, or part of them."""
        return sum(self.declared.values())


class GeneratorCount(Section):
    """Flagged images that an identifier takes for one generator's."""

    family: str = ""
    generator: str = ""
    flagged: int = 0


class ProfileExample(Section):
    """What was said of one flagged image's origin."""

    image_id: int = 0
    uri: str = ""
    member: str | None = None
    score: float = float("nan")
    predicted_generator: str | None = None
    generator_family: str | None = None
    generator_probability: float | None = None
    generator_confidence: float | None = None
    generator_ranking: list[str] | None = None
    predicted_prompt: str | None = None
    prompt_likelihood: float | None = None


class ProfileSummary(Section):
    """Of the flagged images: which generators they are nearest to, how many are `unlike` any known
    one or got no say, and words.
    """

    flagged: int = 0
    identified: bool = False
    generators: Sequence[GeneratorCount] = ()
    unlike: int = 0
    silent: int = 0
    describes: bool = False
    described: int = 0
    told: Sequence[ProfileExample] = ()


class SecondLookSummary(Section):
    """How many images all members of a cascade looked at, and why."""

    band: int = 0
    audit: int = 0
    share: float | None = None


class ShiftSummary(Section):
    """How far the archive is from the images of the card's calibration in one property.

    Attributes:
        feature: The property.
        psi: Population stability index of the archive and a mixture of reals and fakes.
        limit: The largest index that is not noticed: 0.1, or what chance alone may reach.
        noticed: Whether the index is above the limit.
        beyond: Whether the index is above 0.25, too.
        fakes: Fraction of fakes in the mixture.
        images: Number of images that have the property.
        tells: Whether they are enough to show an index of 0.25.
    """

    feature: str = ""
    psi: float | None = None
    limit: float | None = None
    noticed: bool = False
    beyond: bool = False
    fakes: float | None = None
    images: int = 0
    tells: bool = False


class ArchiveCounts(Section):
    """Counts of the current rows, for a comparison with the calibration images.

    Attributes:
        card: Digest of the ensemble card and its late detectors.
        counts: Images per bin of each property.
        decoders: Images per decoder, of formats that the calibration saw.
        images: Number of images with a score.
    """

    card: str = ""
    counts: Mapping[str, list[int]] = {}
    decoders: Mapping[str, int] = {}
    images: int = 0


class GuaranteeSummary(Section):
    """What the ensemble's card guarantees of its false positives, and what contradicts it in this
    archive.

    `holds`: False if a difference was noticed, True if none was, which is no proof, None for too
    few images.
    """

    holds: bool | None = None
    why: str | None = None
    unlike: str | None = None
    waived: bool = False
    target_fpr: float | None = None
    confidence: float | None = None
    upper_bound: OptionalKey[float] = None
    population: str | None = None
    images: int | None = None
    shifts: Sequence[ShiftSummary] = ()
    decoders: Sequence[str] = ()
    settings: Sequence[str] = ()
    counted: OptionalKey[ArchiveCounts] = None

    @property
    def stated(self) -> bool:
        """Whether anything was promised, or looked at."""
        return self.images is not None


class RunHead(Section):
    """Which run it is, and when it was worked on last. `schema`: of this document; `row_schema`:
    the newest that rows of it may have.
    """

    schema_number: int = Field(default=SUMMARY_SCHEMA, alias="schema")
    row_schema: int = 0
    run: str = ""
    listing: int = 0
    version: str = ""
    started_at: str = ""
    finished_at: str = ""
    complete: bool = False
    thumbnails: bool = True
    linked_folders: LinkedFoldersSummary = LinkedFoldersSummary()


class RunCounts(Section):
    """What is counted on a run's rows; `days`: by the day (UTC) of their rows how many `files`, and
    of each status and verdict.
    """

    members: int = 0
    statuses: Mapping[str, int] = {}
    own_failures: int = 0
    examples: Mapping[str, list[Example]] = {}
    refused_by_limits: Mapping[str, int] = {}
    findings: Mapping[str, int] = {}
    verdicts: Mapping[str, int] = {}
    verdict_reasons: Mapping[str, int] = {}
    second_look: OptionalKey[SecondLookSummary] = None
    flags: Mapping[str, int] = {}
    formats: Mapping[str, int] = {}
    provenance: Declarations = Declarations()
    profile: OptionalKey[ProfileSummary] = None
    histogram: Histogram = Histogram()
    days: Mapping[str, Mapping[str, int]] = {}
    top: Sequence[TopRow] = ()

    @property
    def scored(self) -> int:
        """Members that have a score."""
        return self.statuses.get("ok", 0)


class RunSummary(RunCounts, RunHead):
    """A run in figures: its head, what was counted, and what is known of it besides, in this order.

    `detectors` and `memory_per_worker_bytes` (the most of any process, measured) are of all
    commands that worked on the run.
    """

    guarantee: OptionalKey[GuaranteeSummary] = None
    ensemble: EnsembleSummary = EnsembleSummary()
    session: SessionSummary = SessionSummary()
    detectors: OptionalKey[Mapping[str, DetectorTime]] = None
    memory_per_worker_bytes: OptionalKey[int] = None
    bottleneck: Bottleneck | None = None
    fingerprint: str = ""
    identity: Mapping[str, Any] = {}

    @property
    def rows(self) -> int:
        """Members that have a row, whatever its status."""
        return sum(self.statuses.values())

    @property
    def not_scored(self) -> int:
        """Members whose row says why there is no score."""
        return self.rows - self.scored

    @property
    def has_other_findings(self) -> bool:
        """Whether a finding rests on more than the verdict of the detectors."""
        return not set(self.findings) <= set(DETECTOR_FINDINGS.values())

    @property
    def error_rates(self) -> str:
        """The sentences on error rates that are shown next to verdicts."""
        confidence = self.guarantee.confidence if self.guarantee else None
        return error_rates(self.ensemble.name, self.ensemble.thresholds, confidence)

    def verdict(self, word: str) -> int:
        """How many members got this verdict."""
        return self.verdicts.get(word, 0)
