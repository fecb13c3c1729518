"""Define the content of `summary.json`, which describes a finished run (`RunSummary`).

`summary.json` has the counts, the ensemble, and the costs of a run. The other classes are its
sections. Their fields are in the order of the file. If a run does not use a feature, such as a
cascade, the key of this feature is missing.
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
    """A file that is shown as an example of a status other than `ok`.

    Attributes:
        uri: The URI of the file, or of the archive that contains it.
        member: The name of the file inside the archive; None for a file outside of archives.
        detail: Details of the status, such as the message of a decoder.
    """

    uri: str = ""
    member: str | None = None
    detail: str = ""


class TopRow(Section):
    """One of the images with the highest scores of a run.

    Attributes:
        image_id: The id of the image.
        uri: The URI of the file, or of the archive that contains it.
        member: The name of the file inside the archive; None for a file outside of archives.
        score: The log-odds of fake by the ensemble.
        probability: The probability of fake by the ensemble.
        verdict: `fake`, `real`, or `abstain`.
        sha256: The SHA-256 of the file.
    """

    image_id: int = 0
    uri: str = ""
    member: str | None = None
    score: float = float("nan")
    probability: float = float("nan")
    verdict: str = ""
    sha256: str | None = None


class Histogram(Section):
    """Histogram of the scores of a run, of the ensemble and of each detector.

    Attributes:
        edges: n + 1 edges for n bins, in log-odds of fake. Scores beyond the outermost edges are
            counted in the outermost bins.
        counts: Number of images per bin (n,), by name of the detector. The key `ensemble` has those
            of the ensemble.
    """

    edges: Sequence[float] = ()
    counts: Mapping[str, list[int]] = {}

    @property
    def ensemble(self) -> Sequence[int]:
        """Number of images in each bin of the ensemble's score; empty if no image has a score."""
        return self._drawable().get("ensemble", [])

    @property
    def detectors(self) -> dict[str, Sequence[int]]:
        """Number of images in each bin of each detector's score, by name of the detector.

        Empty if there is only one detector and its counts equal those of the ensemble.
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
    """One detector of the ensemble that scored a run.

    Attributes:
        name: The name of the detector.
        title: The title of the detector.
        licence: The licence of the weights.
        calibrated: Whether the detector's scores are calibrated before they are combined.
        demonstration: Whether the detector is only for demonstrations.
        masks: Whether the detector also returns masks of altered pixels.
    """

    name: str = ""
    title: str = ""
    licence: str = ""
    calibrated: bool = False
    demonstration: bool = False
    masks: bool = False


class EnsembleSummary(Section):
    """The ensemble of detectors that gave the verdicts of a run.

    Attributes:
        name: The name of the ensemble card.
        title: The title of the card.
        rule: The rule that combines the detectors' scores, such as `stacked`.
        calibrated: Whether the probabilities are calibrated.
        demonstration: Whether any detector is only for demonstrations.
        members: The detectors.
        thresholds: The scores from which a verdict is `fake` or `real`, with measured error rates.
        blind_to: Sentences on what the detectors cannot detect; None if their cards have none.
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
    """How often a backbone network ran, and how often detectors used its features.

    Several detectors can share the features of one backbone.

    Attributes:
        runs: The number of executions of the backbone.
        asked: The number of times that detectors requested the features. Requests beyond `runs`
            needed no further execution.
    """

    runs: int = 0
    asked: int = 0


class DetectorTime(Section):
    """The time that one detector took for its images.

    Attributes:
        seconds: Seconds, summed over all workers.
        images: The number of scored images. Each perturbed copy of an image counts as an image.
        ms_per_image: The milliseconds per image that this detector would take without the others.
            They include the time of a backbone that it shares. `seconds` include this time only for
            the detector that runs the backbone first.
    """

    seconds: float = 0.0
    images: int = 0
    ms_per_image: float | None = None


class CostSummary(Section):
    """The cost of machines and of traffic, in the currency of the config's prices.

    Attributes:
        compute: The cost of machines; None if the hours are not known.
        egress: The cost of bytes that leave the store.
        total: The sum of both costs.
        compute_share: The cost of machines as a fraction of the total; None if nothing has a price.
    """

    compute: float | None = None
    egress: float = 0.0
    total: float = 0.0
    compute_share: float | None = None


class CascadeStageCost(Section):
    """The work of one stage of a cascade in the last command, and what its machines cost.

    The second stage of a cascade runs more detectors, and only on images that the first stage did
    not decide.

    Attributes:
        images: The number of images that the stage scored.
        seconds: Seconds, summed over all workers.
        hours_per_million: Worker hours of this stage for an archive of a million images.
        cost_per_million: The cost of this stage for an archive of a million images; None if no
            prices are set.
    """

    images: int = 0
    seconds: float = 0.0
    hours_per_million: float | None = None
    cost_per_million: float | None = None


class Memory(Section):
    """The maximum memory that a run uses on one node.

    Attributes:
        processes: The number of processes on the node.
        process_bytes: The memory of one process.
        decode_bytes: The memory that all processes share for decoding large images; None if the
            node's memory is unknown.
        file_bytes: The memory that all processes share for encoded files; None if the node's memory
            is unknown.
        total_bytes: The total; None if the node's memory is unknown.
    """

    processes: int = 0
    process_bytes: int = 0
    decode_bytes: int | None = None
    file_bytes: int | None = None
    total_bytes: int | None = None


class LinkedFoldersSummary(Section):
    """The number of symbolic links to folders, which the listing did not follow, and an example."""

    count: int = 0
    example: str = ""


class KeptSetting(Section):
    """A difference between the run's ensemble and the default ensemble of this version.

    It is recorded if the user did not choose an ensemble and the default has changed since the run
    was started. The run keeps its ensemble.

    Attributes:
        key: `ensemble`, or the dotted key of the setting that differs.
        run: The value that the run keeps.
        today: The value that a new run would have.
    """

    key: str = ""
    run: str = ""
    today: str = ""


class RetrySummary(Section):
    """A retry (`--retry`) that the last command worked on: it scores files with an error again.

    Attributes:
        listing: The number of the retry's manifest, the list of files that it scores again.
        statuses: The statuses whose files are scored again, such as `source_timeout`.
        members: The number of these files.
    """

    listing: int
    statuses: list[str]
    members: int


class SessionSummary(Section):
    """The work of the last command on the run.

    Attributes:
        number: The number of the session, which is one command's work on the run.
        rows: The number of rows that the command wrote.
        wall_s: Seconds since the start of the command.
        first_result_s: Seconds from the start until the first block of rows was written.
        images_per_s: Rate between the first and the last block; None if the time was too short.
        bytes_read: The bytes read from the source.
        requests: The number of read requests that a store bills.
        puts: The number of write requests that a store bills.
        retried: The number of repeated requests.
        throttled: The number of answers by which a store asked for fewer requests.
        decoded: The number of decoded images.
        retries: The retries (`--retry`) that the command worked on.
        backbones: The use of each shared backbone, by name.
        detectors: The time of each detector, by name.
        groups: Groups of detectors that took turns in each worker, if the memory of a worker was too
            small for all detectors together.
        peak_worker_bytes: The maximum measured memory of a worker process.
        memory: The maximum memory that the command may use on one node.
        workers: The number of worker processes.
        layout: `fused` if each worker decodes and scores, `split` if different processes do so.
        cost: The cost of the command; None if no prices are set.
        looks: The cost of each stage of a cascade, `first` and `second`.
        described: The number of members with a predicted prompt.
        seconds: Seconds per stage of the pipeline, summed over the workers.
        unguarded: True if the store cannot prevent a second command from writing to the run at the
            same time.
        kept: Differences between the run's ensemble and today's default ensemble.
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
    """The stage of the pipeline that took the largest fraction of the workers' time.

    Attributes:
        stage: The stage, such as `fetch`, `decode`, or `score`.
        share: The fraction of the time.
        advice: The work of the stage, and how to make it faster.
    """

    stage: str = ""
    share: float | None = None
    advice: str = ""


class Declarations(Section):
    """Counts of rows by what the metadata of files declare about their origin.

    Attributes:
        stated: Rows of files with any statement on their origin.
        declared: Rows of files that declare themselves generated, per verdict.
        undeclared: Rows of all other files, per verdict.
        c2pa: Rows per state of the file's C2PA manifest (Content Credentials), such as `trusted`.
        signers: Rows with a sound C2PA manifest, by a text on its signer: which trust list contains
            the signer, which checked lists do not, or that no list was checked.
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
    """The number of flagged images that are attributed to one generator.

    Images are flagged if their verdict is fake. The identifier, a model that names generators,
    attributes them.

    Attributes:
        family: The family of the generator.
        generator: The name of the generator.
        flagged: The number of flagged images.
    """

    family: str = ""
    generator: str = ""
    flagged: int = 0


class ProfileExample(Section):
    """The profile of one flagged image: its predicted generator and prompt.

    Attributes:
        image_id: The id of the image.
        uri: The URI of the file, or of the archive that contains it.
        member: The name of the file inside the archive; None for a file outside of archives.
        score: The log-odds of fake by the ensemble.
        predicted_generator: The most similar known generator; None if none is similar.
        generator_family: The family of that generator.
        generator_probability: The probability of the first generator in the ranking, under the
            assumption that a known generator generated the image.
        generator_confidence: A number that is higher if it is more certain that a known generator
            generated the image. It is not a probability.
        generator_ranking: The most similar generators, best first.
        predicted_prompt: The predicted prompt.
        prompt_likelihood: The likelihood of the predicted prompt by the model that predicted it.
    """

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
    """The profiles of the flagged images: their predicted generators and prompts.

    Attributes:
        flagged: The number of flagged images.
        identified: Whether the ensemble names generators.
        generators: The number of flagged images per generator.
        unlike: The number of flagged images that are unlike the images of any known generator.
        silent: The number of flagged images for which the identifier gave no result.
        describes: Whether the ensemble predicts prompts.
        described: The number of flagged images with a predicted prompt.
        told: The profiles of the flagged images with the highest scores.
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
    """The number of images that the second stage of a cascade scored, by reason.

    The first stage of a cascade scores every image with cheap detectors. The second stage scores
    some images with all detectors.

    Attributes:
        band: Images whose first-stage score was uncertain: it was in the band of scores that the
            ensemble card sets.
        audit: Images that were drawn at random from the others. They show how the second stage
            would score images that it does not receive.
        share: Images of the second stage as a fraction of all scored images.
    """

    band: int = 0
    audit: int = 0
    share: float | None = None


class ShiftSummary(Section):
    """How much an archive differs in one property from the images of the ensemble's calibration.

    The archive is compared with a mixture of the real and the fake calibration images. The measure
    is the population stability index (PSI), which is 0 without a difference.

    Attributes:
        feature: The name of the property, such as `short_side_px`.
        psi: The index.
        limit: The largest index that counts as no difference. It is 0.1, or higher if the archive
            has so few images that a higher index is plausible by chance.
        noticed: Whether `psi` is above `limit`, so that the guarantee does not hold.
        beyond: Whether `psi` is also above 0.25. Every verdict then becomes `abstain`, unless the
            user waived the guarantee.
        fakes: The fraction of fakes in the mixture, which is chosen to fit the archive.
        images: The number of images of the archive that have the property.
        tells: Whether the archive has enough images, so that an index of 0.25 is not plausible by
            chance.
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
    """Counts of a run's images, to compare them with the images of the ensemble's calibration.

    `summary.json` stores the counts, so that a later command only has to count changed rows.

    Attributes:
        card: The digest of the ensemble card, and of the detectors in a cascade's second stage. If
            it differs from that of a later command, the command counts all rows again.
        counts: The number of images in each bin of a property, by name such as `short_side_px`.
        decoders: The number of images by name of their decoder. If the ensemble card lists the
            formats of the calibration, images of other formats are not counted.
        images: The number of images with a score.
    """

    card: str = ""
    counts: Mapping[str, list[int]] = {}
    decoders: Mapping[str, int] = {}
    images: int = 0


class GuaranteeSummary(Section):
    """The false-positive guarantee of the ensemble, and whether it is valid for this archive.

    The guarantee is a bound on the fraction of real images that are flagged as fake. It was
    calibrated on some images, and is valid only for images like these.

    Attributes:
        holds: False if the images, the settings, or the decoders differ from those of the
            calibration. True if no difference was found, which is no proof. None if there are too
            few images to compare.
        why: The reason why the guarantee is not valid, or why its validity is unknown.
        unlike: The reason why every verdict has to be `abstain`; None if verdicts are kept.
        waived: Whether the user waived the guarantee.
        target_fpr: The false-positive rate of the guarantee.
        confidence: The confidence of the guarantee.
        upper_bound: The measured upper bound of the false-positive rate.
        population: A description of the images of the calibration.
        images: The number of images of the archive that were compared.
        shifts: The differences by property.
        decoders: Decoders of this run that the calibration did not use.
        settings: Settings of this run that differ from those of the calibration.
        counted: The counts of this archive's images, from which the shifts were computed.
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
        """Whether the archive was compared with the images of the ensemble's calibration.

        `holds` shows whether the guarantee is valid.
        """
        return self.images is not None


class RunHead(Section):
    """The first keys of `summary.json`: the run, its version, and its times.

    Attributes:
        schema_number: The schema of `summary.json`.
        row_schema: The newest version of the schema of result rows (`runs.schema`) that rows of the
            run may have.
        run: The URL of the run directory.
        listing: The number of the last list of files to score (manifest).
        version: The version of Touchstone that wrote the summary.
        started_at: The start of the last command, in ISO 8601.
        finished_at: The end of the last command, in ISO 8601.
        complete: Whether all listed files have rows.
        thumbnails: Whether reports show thumbnails.
        linked_folders: Symbolic links to folders, which were not followed.
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
    """Counts of a run's rows. A member is a file of the archive, and has one row.

    Attributes:
        members: The number of rows.
        statuses: Rows per status.
        own_failures: Rows that have no score because of a bug in Touchstone.
        examples: A few members of each status except `ok`.
        refused_by_limits: Rows of files over a limit, by name of the limit.
        findings: Rows per finding, the conclusion on the origin of a file.
        verdicts: Rows per verdict.
        verdict_reasons: Rows per reason of the verdict `abstain`.
        second_look: Images that a cascade's second stage scored.
        flags: Rows per irregularity of a file that did not prevent a score.
        formats: Rows per file format.
        provenance: Rows by what the metadata of files declare.
        profile: The predicted generators and prompts of images with the verdict `fake`.
        histogram: Counts of scores.
        days: For each day (UTC) of scoring, the counts of `files` and of each status and verdict.
        top: The images with the highest scores.
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
        """The number of image files that have a score."""
        return self.statuses.get("ok", 0)


class RunSummary(RunCounts, RunHead):
    """The content of `summary.json`, which describes a finished run.

    The keys of `RunHead` are first, then those of `RunCounts`, and then the attributes below.

    Attributes:
        guarantee: The false-positive guarantee of the ensemble, and whether it holds for the
            archive.
        ensemble: The ensemble that gave the verdicts.
        session: The work of the last command.
        detectors: The time per detector, summed over all commands that worked on the run.
        memory_per_worker_bytes: The maximum memory of a process, measured over all commands that
            worked on the run.
        bottleneck: The stage that limited the speed of the last command.
        fingerprint: The SHA-256 of the identity.
        identity: The settings that decide scores and verdicts.
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
        """The number of image files that have a row, with any status."""
        return sum(self.statuses.values())

    @property
    def not_scored(self) -> int:
        """The number of image files without a score: their rows have a status other than `ok`."""
        return self.rows - self.scored

    @property
    def has_other_findings(self) -> bool:
        """Whether any file has a finding that does not come from the detectors alone.

        A finding is the conclusion on the origin of a file. It may also come from other evidence,
        such as a signed declaration in the file that a model generated it.
        """
        return not set(self.findings) <= set(DETECTOR_FINDINGS.values())

    @property
    def error_rates(self) -> str:
        """Sentences on the ensemble's measured error rates, to show next to its verdicts."""
        confidence = self.guarantee.confidence if self.guarantee else None
        return format_error_rates(self.ensemble.name, self.ensemble.thresholds, confidence)

    def verdict(self, verdict: str) -> int:
        """Return the number of images with a verdict: `fake`, `real`, or `abstain`."""
        return self.verdicts.get(verdict, 0)
