"""The result of `touchstone evaluate` (`EvaluationResult`).

The command measures systems, detectors and an ensemble, on labelled images. The result has facts on
the data and the systems (`EvaluationMeta`), the metrics, and the data of charts.

All metrics are in one table with a row per value (`MetricsTable`). Its column `scope` names the
images on which a value was measured, such as those of one generator. Classes with facts on such
images, such as `GeneratorInfo`, have a property `scope` with the value to look up in this column.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ray_app.metrics.table import ALL, MetricsTable
from ray_app.metrics.uncertainty import MIN_GROUPS
from ray_app.metrics.values import MetricValue

SCHEMA = 3
BANDS = ("< 0.1 MP", "0.1–0.5 MP", "0.5–1 MP", "1–4 MP", "> 4 MP")
DATA, DECIDED, AVERAGES, TABLE, PROMPTS = (
    "data",
    "with abstentions",
    "averages",
    "table",
    "prompts",
)
"""Scopes: facts of the files, verdicts, means over generators, rows of a protocol, prompts."""


@dataclass(frozen=True)
class RunInfo:
    """The run that was evaluated.

    Attributes:
        url: The run directory.
        fingerprint: Digest of all settings that determine scores.
        created_at: Time when the run started.
        detectors: Names of its detectors.
        ensemble: Name of its ensemble.
        identity: All settings that determine scores.
    """

    url: str = ""
    fingerprint: str = ""
    created_at: str = ""
    detectors: tuple[str, ...] = ()
    ensemble: str | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelInfo:
    """The labels of an evaluation, and how they were joined with the rows of the run.

    Attributes:
        name: Path or URL of the labels, without secrets.
        key: The column that joins labels and rows.
        rows: Number of labels that were read.
        joined: Number of rows of the run that have a label. If `key` is `sha256`, files with equal
            bytes share a label.
        without_row: Number of labels whose image has no row in the run.
        rows_without_label: Number of rows of the run that have no label.
        doubled: Number of labels that repeat an earlier, equal label of the same image. They are
            not used.
        other_split: Number of labels of splits that are not evaluated.
    """

    name: str = ""
    key: str = ""
    rows: int = 0
    joined: int = 0
    without_row: int = 0
    rows_without_label: int = 0
    doubled: int = 0
    other_split: int = 0


@dataclass(frozen=True)
class ProtocolInfo:
    """The protocol of an evaluation: the rules by which a table of a publication is reproduced.

    Attributes:
        name: Name of the protocol.
        title: Title of the protocol.
        source: The publication.
        what: Description of what the protocol measures.
        threshold: The threshold on the scores of all detectors and the ensemble, in log-odds of
            fake.
        strict: Whether a score that equals the threshold counts as real.
        averages: Description of how averages over generators are computed.
        notes: Notes on how to read the results.
        commands: The commands that run the protocol.
    """

    name: str = ""
    title: str = ""
    source: str = ""
    what: str = ""
    threshold: float | None = None
    strict: bool = True
    averages: str = ""
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataInfo:
    """The labelled images of an evaluation, and whether file facts reveal which are fakes.

    File facts are properties such as the format and the size. If they separate the classes, a
    detector can score well without looking at the pixels.

    Attributes:
        n: Number of rows with a label.
        n_real: Number of real images.
        n_fake: Number of fakes.
        n_whole: Number of fakes that are generated as a whole.
        n_local: Number of fakes that are local edits.
        digest: Digest of the image ids with their labels.
        statuses: Number of rows by status.
        formats: Number of rows by class and format.
        sizes: Number of rows by class and size.
        features: The file facts that separate fakes from real images best.
        confounded: Whether these file facts alone separate the classes.
        class_ratio: Number of fakes per real image.
    """

    n: int = 0
    n_real: int = 0
    n_fake: int = 0
    n_whole: int = 0
    n_local: int = 0
    digest: str = ""
    statuses: Mapping[str, int] = field(default_factory=dict)
    formats: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    confounded: bool = False
    class_ratio: float | None = None

    @staticmethod
    def most_frequent(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
        """Return the image formats or the image sizes of `counts`, in the order of a table.

        Args:
            counts: The attribute `formats` or `sizes`: numbers of images by class (`real` or
                `fake`), and then by format or by size, such as "0.5–1 MP".

        Returns:
            Formats, the most frequent first, or sizes, the smallest first.
        """
        totals = sum((Counter(by_name) for by_name in counts.values()), Counter[str]())
        return sorted(
            totals,
            key=lambda name: (BANDS.index(name) if name in BANDS else len(BANDS), -totals[name]),
        )


@dataclass(frozen=True)
class IntervalInfo:
    """Whether the 95 % intervals of an evaluation are valid for further generators and sources.

    With many generators, an interval shows how a metric would vary with generators that were not
    tested. With few, it only shows how the metric would vary with other images of the tested
    generators. The same applies to sources of real images.

    Attributes:
        fakes: `generators` if intervals are valid for further generators. `images` if they are
            valid only for further images of the tested generators. "" if it is not known.
        reals: `sources` if intervals are valid for further sources of real images. `images` if they
            are valid only for further images of the tested sources. "" if it is not known.
        generators: Number of generators that the labels name.
        sources: Number of sources that the labels name.
    """

    fakes: str = ""
    reals: str = ""
    generators: int = 0
    sources: int = 0

    @classmethod
    def from_names(cls, generators: Iterable[str], sources: Iterable[str]) -> "IntervalInfo":
        """Decide whether intervals can be valid for further generators and further sources.

        Intervals are valid for further generators if the fakes have eight or more generators. They
        are valid for further sources if the real images have eight or more sources.

        Args:
            generators: Names of the generators of the fakes. Names may repeat.
            sources: Names of the sources of the real images. Names may repeat.

        Returns:
            The decision, with the numbers of generators and sources.
        """
        counts = {"generators": len(set(generators)), "sources": len(set(sources))}
        fakes, reals = (word if n >= MIN_GROUPS else "images" for word, n in counts.items())
        return cls(fakes=fakes, reals=reals, **counts)

    @property
    def is_for_images(self) -> bool:
        """Whether intervals hold only for further images of the tested generators and sources."""
        return self.fakes != "generators" and self.reals != "sources"

    @property
    def words(self) -> str:
        """Sentence on what the intervals are valid for, to show above a table; "" if not known."""
        if not self.fakes:
            return ""
        if self.is_for_images:
            return f"95 % intervals are for further images of the same generators and sources.{self._few}"
        fakes = (
            f"generators like these {self.generators:,}"
            if self.fakes == "generators"
            else "fakes of the same generators"
        )
        same = "the same sources" if self.sources > 1 else "the same source"
        reals = (
            f"sources of real images like these {self.sources:,}"
            if self.reals == "sources"
            else f"real images of {same}"
        )
        return f"95 % intervals are for further {fakes} and further {reals}.{self._few}"

    @property
    def _few(self) -> str:
        few = [
            noun
            for count, has_further, noun in (
                (self.generators, self.fakes == "generators", "generators"),
                (self.sources, self.reals == "sources", "sources"),
            )
            if count > 1 and not has_further
        ]
        return f" Fewer than eight {' and '.join(few)} say nothing of further ones." if few else ""


@dataclass(frozen=True)
class GeneratorInfo:
    """The images of one generator, or of one source of real images.

    Attributes:
        name: The generator or the source.
        label: `fake` or `real`.
        kind: `whole` for fakes that are generated as a whole, `local` for local edits, or `real`.
        seen: Whether the evaluated detector or ensemble was trained on it: `in-training`, `unseen`,
            or `unknown`.
        released: Date of the release of the generator.
        architecture: Architecture of the generator.
        n: Number of images with a score.
        unscored: Number of images without a score.
    """

    name: str
    label: str = ""
    kind: str = ""
    seen: str = "unknown"
    released: str | None = None
    architecture: str | None = None
    n: int = 0
    unscored: int = 0

    @property
    def scope(self) -> str:
        """Value of the column `scope` in the metrics table for this generator or source.

        An example is "fake, whole: sdxl".
        """
        return f"{self.label}, {self.kind}: {self.name}"


@dataclass(frozen=True)
class StratumInfo:
    """The images of one format and one class of size.

    Metrics on these images show how well a detector or an ensemble works if the format and the size
    do not reveal which images are fakes.

    Attributes:
        format: Image format, such as JPEG.
        size: Class of the image size, such as "0.5–1 MP".
        n_real: Number of real images.
        n_fake: Number of fakes.
    """

    format: str = ""
    size: str = ""
    n_real: int = 0
    n_fake: int = 0

    @property
    def scope(self) -> str:
        """Value of the column `scope` in the metrics table for images of this format and size.

        An example is "JPEG, 0.5–1 MP".
        """
        return f"{self.format}, {self.size}"


@dataclass(frozen=True)
class ViewInfo:
    """The images that one detector or ensemble scored under one perturbation, such as JPEG.

    Attributes:
        name: Name of the perturbation, which is also in the column `view` of the metrics table.
        kind: `degradation`, `chain` (several changes), or `attack`.
        why: Reason why there are no images under the perturbation; "" if there are.
        n_real: Number of real images.
        n_fake: Number of fakes.
    """

    name: str
    kind: str = "degradation"
    why: str = ""
    n_real: int = 0
    n_fake: int = 0


@dataclass(frozen=True)
class SystemInfo:
    """Facts on one system of an evaluation: a detector or the ensemble.

    Attributes:
        name: Name of its column of scores.
        kind: `detector` or `ensemble`.
        title: Its title.
        output: `continuous`, or `binary` for replies of yes and no.
        calibrated: Whether its scores are calibrated.
        threshold: Threshold of the score (log-odds). Images with a higher score are flagged as
            fake.
        strict: If True, a score that equals the threshold is not flagged. If False, it is flagged.
        late: Whether it scores only some images: those in the second stage of a cascade.
        n_real: Number of real images with a score.
        n_fake: Number of fakes with a score.
        unscored: Number of images without a score.
        kinds_intervals: Whether intervals of metrics on only one kind of fakes are valid for
            further generators. The kinds are `whole` (generated as a whole) and `local` (local
            edits). The value applies to the metrics on either kind.
        generators: The scored images by generator and by source of real images.
        strata: The scored images by format and size.
        views: The perturbed copies of images that were scored, by perturbation.
    """

    name: str
    kind: str = ""
    title: str = ""
    output: str = "continuous"
    calibrated: bool = False
    threshold: float | None = None
    strict: bool = True
    late: bool = False
    n_real: int = 0
    n_fake: int = 0
    unscored: int = 0
    kinds_intervals: IntervalInfo = IntervalInfo()
    generators: tuple[GeneratorInfo, ...] = ()
    strata: tuple[StratumInfo, ...] = ()
    views: tuple[ViewInfo, ...] = ()

    @property
    def n(self) -> int:
        """Number of images with a score."""
        return self.n_real + self.n_fake

    @property
    def called(self) -> str:
        """Title of the system, or its name if it has no title."""
        return self.title or self.name


@dataclass(frozen=True)
class ReferenceInfo:
    """A column of published values, to compare them with the values that this evaluation measured.

    The column is part of the table of a protocol, the rules by which a published table is
    reproduced.

    Attributes:
        column: Header of the column.
        source: The publication.
        rows: Published values by name of the row.
        mark: Reason not to compare the column, such as an error in the publication. None if the
            column can be compared.
        marks: Reasons not to compare single values, by name of the row.
        system: Name of the measured system to which the column corresponds. None without such a
            system.
        verified: Whether the weights of that system were run on the data set of the publication,
            and the results compared with the published values.
    """

    column: str = ""
    source: str = ""
    rows: Mapping[str, float] = field(default_factory=dict)
    mark: str | None = None
    marks: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None
    verified: bool = False


@dataclass(frozen=True)
class TableRowInfo:
    """A row of the main table of an evaluation: the images of one generator or of several.

    A protocol, the rules by which a published table is reproduced, may define the rows. The values
    of a row are in the metrics table: in the scope `table`, under the name of the row.

    Attributes:
        name: Name of the row.
        label: Class of the images, `real` or `fake`.
        n: Number of the images.
        seen: By name of the system (a detector or the ensemble), whether it was trained on images
            of these generators: `in-training`, `unseen`, or `unknown`.
    """

    name: str
    label: str = ""
    n: int = 0
    seen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PairedTest:
    """A test whether one of two systems (detectors or ensemble) is better on the same images.

    The measured difference and its interval are in the metrics table (`find_difference`).

    Attributes:
        a: Name of the first system.
        b: Name of the second system.
        test: The metric that is compared, `auc` or `accuracy`. It has the prefix `clustered ` if
            the p-value is valid for further generators or sources of real images. Without the
            prefix, it is valid only for further images of the tested generators and sources.
        n: Number of images with scores of both systems.
        p: Two-sided p-value. None if the test is undefined.
        p_holm: p-value after Holm's correction for the tests of all pairs of systems.
    """

    a: str
    b: str
    test: str
    n: int = 0
    p: float | None = None
    p_holm: float | None = None

    @property
    def scope(self) -> str:
        """Value of the column `scope` for the row of the metrics table with the difference b − a.

        The row has `b` in the column `system`. If `a` is "ensemble", the value is "less ensemble",
        which means "minus the ensemble".
        """
        return f"less {self.a}"

    @property
    def is_clustered(self) -> bool:
        """Whether the p-value is valid for further generators or sources of real images.

        If False, it is valid only for further images of the tested generators and sources.
        """
        return self.test.startswith("clustered")


@dataclass(frozen=True)
class MaskPartInfo:
    """The number of compared masks of one generator's images, or under one perturbation.

    Attributes:
        name: Name of the generator or of the perturbation.
        n: Number of masks.
    """

    name: str
    n: int = 0


@dataclass(frozen=True)
class MaskInfo:
    """Masks of altered pixels that one detector predicted, compared at one resolution.

    Attributes:
        system: Name of the detector.
        resolution: `network` for the size of the network's output, `original` for the size of the
            image.
        images: Number of images.
        empty: Number of images in which nothing is altered.
        all_altered: Number of images in which everything is altered.
        generators: Numbers of masks of local edits, by generator.
        views: Numbers of masks of perturbed images, by perturbation.
        rules: Values of the column `scope` in the metrics table, such as "masks by OpenSDI", for
            metrics computed by the rules of a benchmark.
    """

    system: str
    resolution: str = ""
    images: int = 0
    empty: int = 0
    all_altered: int = 0
    generators: tuple[MaskPartInfo, ...] = ()
    views: tuple[MaskPartInfo, ...] = ()
    rules: tuple[str, ...] = ()

    @property
    def scope(self) -> str:
        """Value of the column `scope` in the metrics table, such as "masks at original size"."""
        return f"masks at {self.resolution} size"

    def get_scope(self, part: str) -> str:
        """Return the value of the column `scope` in the metrics table for one generator's masks.

        `part` is the name of the generator. An example is "masks at original size: sdxl".
        """
        return f"{self.scope}: {part}"


@dataclass(frozen=True)
class MaskFailure:
    """A reason why some true masks could not be read.

    Attributes:
        reason: The reason.
        n: Number of masks that could not be read for this reason.
        example: One of these masks.
    """

    reason: str = ""
    n: int = 0
    example: str = ""


@dataclass(frozen=True)
class LocalizationInfo:
    """How predicted masks of altered pixels were compared with true masks.

    Attributes:
        policy: Rules by which masks are compared, by key such as `threshold` and `resolution`.
        images: Number of images whose predicted masks were compared.
        without_label: Number of images with a predicted mask but without a label.
        warning: Sentence on true masks that mark nothing or everything. None if there are none.
        unreadable: True masks that could not be read, by reason.
        systems: Numbers of compared masks, for each detector and resolution.
    """

    policy: Mapping[str, Any] = field(default_factory=dict)
    images: int = 0
    without_label: int = 0
    warning: str | None = None
    unreadable: tuple[MaskFailure, ...] = ()
    systems: tuple[MaskInfo, ...] = ()


@dataclass(frozen=True)
class ClassInfo:
    """A generator or a family of generators, which an identifier can name.

    Attributes:
        name: Name of the generator or family.
        n: Number of its images.
        predicted: Number of images that were given its name.
    """

    name: str
    n: int = 0
    predicted: int = 0


@dataclass(frozen=True)
class IdentificationInfo:
    """The names of generators or families that an identifier gave to images.

    An identifier is a model that names the generator of an image.

    Attributes:
        scope: Value of the column `scope` in the metrics table for metrics on these names.
        title: Heading that says which names are compared, such as "Families named".
        classes: The true names, the most frequent first.
        pairs: Confusions: true name, wrong name, and number of images. The wrong name is None if
            the identifier gave no name.
        notes: Sentences on how to read the metrics.
        counts: Numbers of fakes that have no name (key `without_prediction`), and of fakes that the
            identifier did not process (`not_asked`).
    """

    scope: str
    title: str = ""
    classes: tuple[ClassInfo, ...] = ()
    pairs: tuple[tuple[str, str | None, int], ...] = ()
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    def get_scope(self, name: str) -> str:
        """Return the value of the column `scope` in the metrics table for one class of images.

        `name` is the name of the class: a generator, or a family of generators.
        """
        return f"{self.scope}: {name}"

    @property
    def confusions(self) -> list[tuple[str, str, int]]:
        """The most frequent confusions, at most 30: true name, wrong name or "no name", images."""
        named = [
            (truth, "no name" if predicted is None else predicted, number)
            for truth, predicted, number in self.pairs
        ]
        return sorted(named, key=lambda pair: -pair[2])[:30]


@dataclass(frozen=True)
class GroupInfo:
    """The fakes of a group of generators, such as those that were not in training.

    Attributes:
        name: Name of the group.
        distribution: `in` if the group's generators count as in training, else `out`.
        total: Whether the group consists of all groups with the same `distribution`.
        generators: Names of the generators.
        n: Number of images.
    """

    name: str
    distribution: str = ""
    total: bool = False
    generators: tuple[str, ...] = ()
    n: int = 0

    @property
    def scope(self) -> str:
        """Value of the column `scope` in the metrics table for this group.

        An example is "group: all in distribution". Rows with detection metrics also name a detector
        or the ensemble. Rows with other metrics, such as the accuracy of generator names, do not.
        """
        return f"group: {self.name}"


@dataclass(frozen=True)
class PromptInfo:
    """Facts on the prompts that a model predicted for the images of an evaluation.

    The metrics of the prompts are in the metrics table, in the scope `prompts`.

    Attributes:
        counts: Numbers of images by key, such as `compared` for images that have both a predicted
            and a true prompt.
        notes: Sentences on how to read the metrics.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationMeta:
    """Facts on the data, the systems (detectors and ensemble), and the rules of an evaluation.

    Attributes:
        title: Title of the evaluation.
        version: Version of Touchstone.
        made_at: Time of the evaluation.
        settings: Settings of the evaluation that are not defaults, without secrets.
        label_warnings: Warning sentences on the labels.
        data_warnings: Sentences on how the classes differ.
        faults: Sentences on known faults of the data.
        run: The run whose scores were evaluated.
        labels: Where the labels are from, and how many of them match rows of the run.
        protocol: The protocol, the rules by which a published table is reproduced. None without a
            protocol.
        data: Counts of the labelled images by class, format, and size.
        intervals: Whether 95 % intervals are valid for further generators and sources.
        systems: The ensemble and the detectors.
        table: Rows of the main table, such as one for each generator.
        footers: Names of the rows below the main table, such as averages.
        reference: Columns of published values.
        paired: Tests of the differences between pairs of systems.
        localization: The comparison of masks of altered pixels. None if there are none.
        identification: Names that an identifier, a model that names generators, gave to images. The
            first entry uses the rules of the protocol, if there is one. Others use other rules, or
            name families.
        prompts: Predicted prompts. None if there are none.
        groups: Groups of generators that were, or were not, in the training data.
        groups_by: What defines `groups`: `protocol`, or `identifier` for groups by the training
            data of the identifier. "" without groups.
    """

    title: str = ""
    version: str = ""
    made_at: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    label_warnings: tuple[str, ...] = ()
    data_warnings: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    run: RunInfo = RunInfo()
    labels: LabelInfo = LabelInfo()
    protocol: ProtocolInfo | None = None
    data: DataInfo = DataInfo()
    intervals: IntervalInfo = IntervalInfo()
    systems: tuple[SystemInfo, ...] = ()
    table: tuple[TableRowInfo, ...] = ()
    footers: tuple[str, ...] = ()
    reference: tuple[ReferenceInfo, ...] = ()
    paired: tuple[PairedTest, ...] = ()
    localization: LocalizationInfo | None = None
    identification: tuple[IdentificationInfo, ...] = ()
    prompts: PromptInfo | None = None
    groups: tuple[GroupInfo, ...] = ()
    groups_by: str = ""


@dataclass(frozen=True)
class ReliabilityBin:
    """A bin of the reliability chart: images whose stated probability of fake is similar.

    Attributes:
        low: Lowest probability.
        high: Highest probability.
        n: Number of images.
        probability: Mean probability.
        fake_share: Fraction of fakes.
        interval: 95 % interval of that fraction.
    """

    low: float = 0.0
    high: float = 0.0
    n: int = 0
    probability: float | None = None
    fake_share: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class ClassHistogram:
    """Histogram of the scores of real images and of fakes.

    Attributes:
        edges: n + 1 edges of the bins, in log-odds of fake.
        real: Number of real images in each bin (n,).
        fake: Number of fakes in each bin (n,).
    """

    edges: tuple[float, ...] = ()
    real: tuple[int, ...] = ()
    fake: tuple[int, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether no image is in any bin, so that there is nothing to draw."""
        return not any(self.real + self.fake)


Points = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Curves:
    """Curves of one system, a detector or the ensemble, for the page of an evaluation.

    Attributes:
        roc: FPR, TPR, and threshold of each point.
        precision_recall: Recall, precision, and threshold of each point.
        risk_coverage: Coverage and risk of each point.
        reliability: Bins of the reliability chart, which compares stated probabilities with
            fractions of fakes.
        histogram: Numbers of images by score, for real images and for fakes.
    """

    roc: Points = ()
    precision_recall: Points = ()
    risk_coverage: Points = ()
    reliability: tuple[ReliabilityBin, ...] = ()
    histogram: ClassHistogram = ClassHistogram()


@dataclass(frozen=True)
class Mistake:
    """An image that the leading system (the ensemble, or else the best detector) misclassifies.

    The page shows the images whose scores are the most wrong.

    Attributes:
        member: Path in the container `uri`. None if the file is not in a container.
        label: True label, `real` or `fake`.
        generator: Generator of the image, or source of a real image.
        score: Score in log-odds of fake.
        probability: Probability of fake.
        thumbnail: JPEG in base64. None if the image cannot be shown.
    """

    image_id: int = 0
    uri: str = ""
    member: str | None = None
    verdict: str | None = None
    label: str = ""
    generator: str = ""
    score: float | None = None
    probability: float | None = None
    thumbnail: str | None = None

    @property
    def name(self) -> str:
        """Name of the file to show, such as `photos.tar › 2024/cat.jpg`."""
        from ray_app.reports.format import file_name

        return file_name(self.uri, self.member)


@dataclass(frozen=True)
class Overlay:
    """An altered image, shown with its true and its predicted mask.

    Attributes:
        system: Name of the detector that predicted the mask.
        f1: F1 of the pixels of the mask.
        iou: Intersection over union of both masks.
        picture: JPEG in base64. None if the image cannot be shown.
        why: Reason why the image cannot be shown; "" if it can.
    """

    image_id: int = 0
    uri: str = ""
    member: str | None = None
    system: str = ""
    generator: str = ""
    f1: float | None = None
    iou: float | None = None
    picture: str | None = None
    why: str = ""


_PAGE_FIELDS: Mapping[str, Any] = {
    "curves": dict[str, Curves],
    "mistakes": tuple[Mistake, ...],
    "overlays": tuple[Overlay, ...],
}


@dataclass(frozen=True)
class EvaluationResult:
    """The result of `touchstone evaluate`: facts, metrics, and data for the page.

    Attributes:
        meta: Facts on the data, the systems, and the rules.
        metrics: All metrics.
        curves: Curves for the page by system.
        mistakes: The most confident mistakes of the system that `leading` returns.
        overlays: Images with predicted and true masks of altered pixels.
    """

    meta: EvaluationMeta = EvaluationMeta()
    metrics: MetricsTable = field(default_factory=MetricsTable)
    curves: Mapping[str, Curves] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()
    overlays: tuple[Overlay, ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "EvaluationResult":
        """Make a result from the content of `metrics.json`, or from the result of `to_dict`.

        Raises:
            pydantic.ValidationError: If a value has the wrong type.
        """
        from pydantic import TypeAdapter

        page_fields: dict[str, Any] = {
            name: TypeAdapter(kind).validate_python(content[name])
            for name, kind in _PAGE_FIELDS.items()
            if name in content
        }
        meta = TypeAdapter(EvaluationMeta).validate_python(content["meta"])
        return cls(meta, MetricsTable.from_dicts(content["metrics"]), **page_fields)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `metrics.json`: facts and metrics, without curves and images."""
        return {"schema": SCHEMA, "meta": asdict(self.meta), "metrics": self.metrics.to_dicts()}

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `metrics.json`, and in addition curves and images."""
        return self.to_json() | {
            "curves": {name: asdict(curves) for name, curves in self.curves.items()},
            "mistakes": [asdict(mistake) for mistake in self.mistakes],
            "overlays": [asdict(overlay) for overlay in self.overlays],
        }

    @property
    def systems(self) -> list["SystemResult"]:
        """The ensemble and the detectors in the order of `meta`, with their metrics and curves."""
        return [
            SystemResult(info, self.metrics, self.curves.get(info.name, Curves()))
            for info in self.meta.systems
        ]

    @property
    def leading(self) -> "SystemResult | None":
        """The system that the page describes first: the ensemble, or else the best detector.

        The best detector has the highest AUC, or balanced accuracy or accuracy if it has no AUC.
        The result is None without systems.
        """
        return next(
            (system for system in self.systems if system.info.kind == "ensemble"),
            max(self.systems, key=_merit, default=None),
        )

    @property
    def shortcut_auc(self) -> MetricValue:
        """AUC of a classifier that sees only facts of the files, such as format and size."""
        return self.metrics.find("shortcut_auc", scope=DATA)


@dataclass(frozen=True)
class SystemResult:
    """The results of one system, a detector or the ensemble.

    Attributes:
        info: Facts on the system.
        metrics: The metrics of all systems, from which the methods select those of this system.
        curves: Data of the system's charts.
    """

    info: SystemInfo
    metrics: MetricsTable
    curves: Curves = Curves()

    def figure(self, name: str, scope: str = ALL, view: str = "") -> MetricValue:
        """Return a metric of the system on all images or on some images.

        Args:
            name: Key of the metric, such as `auc`.
            scope: Name of the images on which it was measured, such as the `scope` of a
                `GeneratorInfo`. All images by default.
            view: Name of a perturbation; "" for images without perturbation.

        Returns:
            The metric with its interval. Its value is None if it was not measured.
        """
        return self.metrics.find(name, self.info.name, view=view, scope=scope)

    def figures(self, scope: str = ALL, view: str = "") -> Mapping[str, MetricValue]:
        """Return the metrics of the system on all images or on some images, by key such as `auc`.

        Args:
            scope: Name of the images on which the metrics were measured, such as the `scope` of a
                `GeneratorInfo`. All images by default.
            view: Name of a perturbation; "" for images without perturbation.

        Returns:
            The metrics in the table. The value of a metric is None if it is undefined.
        """
        return self.metrics.select(self.info.name, view=view, scope=scope)

    @property
    def flagged(self) -> MetricValue:
        """False-positive rate of the system: the fraction of real images that it flags as fake."""
        return self.figure("tnr").complement

    @property
    def kinds_apart(self) -> list[tuple[str, Mapping[str, MetricValue]]]:
        """Metrics on fakes that are generated as a whole, and metrics on local edits.

        The list has pairs of a kind, `whole` or `local`, and the metrics by key. It is empty if the
        data has no local edits.
        """
        parts = [(kind, self.figures(kind_scope(kind))) for kind in ("whole", "local")]
        measured = [
            (kind, metrics)
            for kind, metrics in parts
            if any(metric.value is not None for metric in metrics.values())
        ]
        return measured if any(kind == "local" for kind, _ in measured) else []

    def hardest(self, label: str = "fake") -> list[GeneratorInfo]:
        """Return the generators or the sources in order, beginning with the lowest accuracy.

        Those without a score are last.

        Args:
            label: `fake` for generators, `real` for sources of real images.

        Returns:
            The generators or the sources.
        """

        def ease(generator: GeneratorInfo) -> tuple[bool, float, str]:
            rate = self.rate(generator).value
            return rate is None, rate or 0.0, generator.name

        return sorted(
            (generator for generator in self.info.generators if generator.label == label), key=ease
        )

    def rate(self, generator: GeneratorInfo) -> MetricValue:
        """Return the fraction of a generator's images that are judged correctly."""
        return self.figure("rate", generator.scope)

    @property
    def fullest_strata(self) -> list[StratumInfo]:
        """Strata (images of one format and size) in descending order of their number of images."""
        return sorted(self.info.strata, key=lambda stratum: -(stratum.n_real + stratum.n_fake))


def kind_scope(kind: str) -> str:
    """Return the value of the column `scope` in the metrics table for one kind of fakes.

    The metrics in this scope are on the fakes of this kind and all real images. `kind` is `whole`
    for fakes that are generated as a whole, or `local` for local edits.

    An example is "local fakes".
    """
    return f"{kind} fakes"


def _merit(system: SystemResult) -> float:
    values = (system.figure(name).value for name in ("auc", "balanced_accuracy", "accuracy"))
    return next((value for value in values if value is not None), -1.0)
