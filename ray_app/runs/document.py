"""Define the document of a run, `summary.json` (`RunSummary`).

Fields are in the order of the file. If a run does not have a feature (a cascade, a profile, a
guarantee), its key is missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from ray_app.config import OptionalKey, Section
from ray_app.ensembles.card import Thresholds
from ray_app.ensembles.finding import format_error_rates
from ray_app.errors import DETECTOR_FINDINGS

SUMMARY_SCHEMA = 1


class Example(Section):
    """A member with a given status."""

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
    """Counts of scores (log-odds) per bin.

    Attributes:
        edges: n + 1 edges for n bins. The outermost bins include the scores beyond them.
        counts: Counts per bin, of the ensemble and of each detector.
    """

    edges: Sequence[float] = ()
    counts: Mapping[str, list[int]] = {}

    @property
    def ensemble(self) -> Sequence[int]:
        """Counts of the ensemble's score; empty if there are none."""
        return self._drawable().get("ensemble", [])

    @property
    def detectors(self) -> dict[str, Sequence[int]]:
        """Counts per detector; empty if they would only repeat those of the ensemble."""
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
    """The ensemble that gave the verdicts.

    Attributes:
        name: The name of the card.
        title: The title of the card.
        rule: The rule that combines the detectors.
        calibrated: Whether its probabilities are calibrated.
        demonstration: Whether a detector is for demonstration only.
        members: The detectors.
        thresholds: The thresholds.
        blind_to: Sentences on what its detectors cannot detect; None if their cards have none.
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
    """How often a shared backbone was requested, and how often it ran.

    Attributes:
        runs: How often the backbone ran.
        asked: How often detectors requested its features.
    """

    runs: int = 0
    asked: int = 0


class DetectorTime(Section):
    """The time of a detector.

    Attributes:
        seconds: Seconds of all workers.
        images: The number of images, counted in every view.
        ms_per_image: The milliseconds of an image for this detector alone, including the run of a
            shared backbone that was counted for another detector.
    """

    seconds: float = 0.0
    images: int = 0
    ms_per_image: float | None = None


class CostSummary(Section):
    """The cost of machines, and of bytes that leave the store, in the currency of the prices.

    Attributes:
        compute: The cost of machines; None if the hours are not known.
        egress: The cost of bytes.
        total: Both together.
        compute_share: The fraction of machines in the total; None if nothing has a price.
    """

    compute: float | None = None
    egress: float = 0.0
    total: float = 0.0
    compute_share: float | None = None


class CascadeStageCost(Section):
    """The cost of one stage of a cascade in the last command, for machines only.

    Attributes:
        images: The number of images.
        seconds: Seconds of all workers.
        hours_per_million: Hours for a million images of such an archive.
        cost_per_million: The cost of a million images of such an archive.
    """

    images: int = 0
    seconds: float = 0.0
    hours_per_million: float | None = None
    cost_per_million: float | None = None


class Memory(Section):
    """The maximum memory that a run uses on one node.

    Attributes:
        processes: The number of processes.
        process_bytes: The memory of one process.
        decode_bytes: The memory that large images use in turns; None if the node's memory is
            unknown.
        file_bytes: The memory that encoded files use in turns; None if the node's memory is unknown.
        total_bytes: The total; None if the node's memory is unknown.
    """

    processes: int = 0
    process_bytes: int = 0
    decode_bytes: int | None = None
    file_bytes: int | None = None
    total_bytes: int | None = None


class LinkedFoldersSummary(Section):
    """Symbolic links to folders that the listing did not follow."""

    count: int = 0
    example: str = ""


class KeptSetting(Section):
    """A setting that the command did not set, and that differs between the run and a new run.

    Attributes:
        key: The key of the setting.
        run: The value of the run, as JSON.
        today: The value of a new run, as JSON.
    """

    key: str = ""
    run: str = ""
    today: str = ""


class RetrySummary(Section):
    """A retry that the last command worked on.

    Attributes:
        listing: The number of its manifest.
        statuses: The statuses of the members that were retried.
        members: The number of members.
    """

    listing: int
    statuses: list[str]
    members: int


class SessionSummary(Section):
    """The work of the last command.

    Attributes:
        seconds: Seconds per stage, summed over the workers.
        described: The number of members with a predicted prompt.
        groups: Groups of detectors that took turns in each worker, if they did not fit together.
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
    """The stage that took the largest fraction of the workers' time, with advice."""

    stage: str = ""
    share: float | None = None
    advice: str = ""


class Declarations(Section):
    """Counts of what files declare about their own origin.

    Attributes:
        stated: Rows with any statement.
        declared: Rows per verdict, of files that declare themselves generated.
        undeclared: Rows per verdict, of the other files.
        c2pa: Rows per state of a C2PA manifest.
        signers: Rows with a sound manifest by the trust of its signer: the list that contains the
            signer, no list that was checked, or no list.
    """

    stated: int = 0
    declared: Mapping[str, int] = {}
    undeclared: Mapping[str, int] = {}
    c2pa: Mapping[str, int] = {}
    signers: Mapping[str, int] = {}

    @property
    def declaring(self) -> int:
        """The number of files that declare that a model generated them, or a part of them."""
        return sum(self.declared.values())


class GeneratorCount(Section):
    """Flagged images that an identifier attributes to one generator."""

    family: str = ""
    generator: str = ""
    flagged: int = 0


class ProfileExample(Section):
    """The profile of one flagged image."""

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
    """The profiles of the flagged images.

    Attributes:
        flagged: The number of flagged images.
        identified: Whether generators were named.
        generators: The number of images per generator.
        unlike: The number of images that are unlike any known generator.
        silent: The number of images without a result.
        describes: Whether prompts were predicted.
        described: The number of images with a predicted prompt.
        told: The images with the highest scores.
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
    """The number of images that all members of a cascade scored.

    Attributes:
        band: Images whose score was in the band.
        audit: Images that were sampled for the audit.
        share: The fraction of scored images.
    """

    band: int = 0
    audit: int = 0
    share: float | None = None


class ShiftSummary(Section):
    """The difference between the archive and the images of the card's calibration in one property.

    Attributes:
        feature: The property.
        psi: Population stability index of the archive and a mixture of reals and fakes.
        limit: The largest index that is not noticed: 0.1, or what chance alone may reach.
        noticed: Whether the index is above the limit.
        beyond: Whether the index is above 0.25, too.
        fakes: The fraction of fakes in the mixture.
        images: The number of images that have the property.
        tells: Whether these images are enough to show an index of 0.25.
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
        card: The digest of the ensemble card and its late detectors.
        counts: Images per bin of each property.
        decoders: Images per decoder, of formats that the calibration contained.
        images: The number of images with a score.
    """

    card: str = ""
    counts: Mapping[str, list[int]] = {}
    decoders: Mapping[str, int] = {}
    images: int = 0


class GuaranteeSummary(Section):
    """What the ensemble's card guarantees about false positives, and what contradicts it here.

    Attributes:
        holds: False if a difference was noticed, True if none was, which is no proof, None if there
            are too few images.
        why: The reason why the guarantee is not valid, or why that is unknown.
        unlike: The reason why every verdict has to be `abstain`; None if there is none.
        waived: Whether the user waived the guarantee.
        target_fpr: The false-positive rate of the guarantee.
        confidence: The confidence of the guarantee.
        upper_bound: The measured upper bound of the false-positive rate.
        population: A description of the images of the calibration.
        images: The number of images that were compared.
        shifts: The differences by property.
        decoders: Decoders that the calibration did not contain.
        settings: Settings that differ from those of the calibration.
        counted: The counts that were compared.
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
        """Whether there is a guarantee, or a comparison was made."""
        return self.images is not None


class RunHead(Section):
    """The run, its version, and its times.

    Attributes:
        schema_number: The schema of this document.
        row_schema: The newest schema that its rows may have.
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
    """Counts of a run's rows.

    Attributes:
        days: Counts by the day (UTC) of the rows: `files`, and each status and verdict.
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
        """The number of members that have a score."""
        return self.statuses.get("ok", 0)


class RunSummary(RunCounts, RunHead):
    """The summary of a run: its head, the counts, and further facts, in this order.

    Attributes:
        detectors: The time per detector, of all commands that worked on the run.
        memory_per_worker_bytes: The maximum memory of a process that was measured in any of these
            commands.
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
        """The number of members that have a row, with any status."""
        return sum(self.statuses.values())

    @property
    def not_scored(self) -> int:
        """The number of members whose row says why there is no score."""
        return self.rows - self.scored

    @property
    def has_other_findings(self) -> bool:
        """Whether a finding is based on more than the verdict of the detectors."""
        return not set(self.findings) <= set(DETECTOR_FINDINGS.values())

    @property
    def error_rates(self) -> str:
        """The sentences on error rates that are shown next to verdicts."""
        confidence = self.guarantee.confidence if self.guarantee else None
        return format_error_rates(self.ensemble.name, self.ensemble.thresholds, confidence)

    def verdict(self, verdict: str) -> int:
        """Return the number of members with a verdict."""
        return self.verdicts.get(verdict, 0)
