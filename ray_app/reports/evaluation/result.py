"""The result of an evaluation (`EvaluationResult`): a tidy table of metrics, facts about what they
are of (`EvaluationMeta`), and what the page draws.

Every value of a metric is in the table. A fact, such as `GeneratorInfo`, names the `scope` of its
rows.
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
        fingerprint: The digest of everything that decided a score.
        created_at: When the run began.
        detectors: Names of its detectors.
        ensemble: Name of its ensemble.
        identity: Everything that decided a score.
    """

    url: str = ""
    fingerprint: str = ""
    created_at: str = ""
    detectors: tuple[str, ...] = ()
    ensemble: str | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelInfo:
    """The labels, and how they were joined with the rows of the run.

    Attributes:
        name: Where they are, without secrets.
        key: The column that joins them.
        rows: Number of labels.
        joined: Labels with a row.
        without_row: Labels without a row.
        rows_without_label: Rows without a label.
        doubled: Labels that are given twice, and equal.
        other_split: Labels of other splits, which are left out.
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
    """The rules that were followed.

    Attributes:
        name: Name of the protocol.
        title: Its title.
        source: The publication.
        what: What it measures.
        threshold: The threshold of all systems.
        strict: Whether fake is a score above the threshold, not one at it.
        averages: How it averages, in words.
        notes: Notes on how to read it.
        commands: The commands that run it.
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
    """The labelled images. The AUC of file facts alone is `shortcut_auc` of the scope `data`.

    Attributes:
        n: Number of rows with a label.
        n_real: Real images.
        n_fake: Fakes.
        n_whole: Fakes that are generated as a whole.
        n_local: Fakes that are local edits.
        digest: Digest of the image ids with their labels.
        statuses: Rows by status.
        formats: Rows by class and format.
        sizes: Rows by class and size.
        features: The file facts that tell fakes from real images.
        confounded: Whether these facts alone separate the classes.
        class_ratio: Fakes for each real image.
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
        """Return the formats or sizes of both classes, the most frequent first; sizes keep their
        order.
        """
        totals = sum((Counter(by_name) for by_name in counts.values()), Counter[str]())
        return sorted(
            totals,
            key=lambda name: (BANDS.index(name) if name in BANDS else len(BANDS), -totals[name]),
        )


@dataclass(frozen=True)
class IntervalInfo:
    """What 95 % intervals are of.

    Attributes:
        fakes: `generators` or `images`: whether they are of further generators.
        reals: `sources` or `images`: whether they are of further sources of real images.
        generators: Number of generators that the labels name.
        sources: Number of sources that the labels name.
    """

    fakes: str = ""
    reals: str = ""
    generators: int = 0
    sources: int = 0

    @classmethod
    def of_names(cls, generators: Iterable[str], sources: Iterable[str]) -> "IntervalInfo":
        """Return what intervals are of, from the names of each image's generator or source."""
        counts = {"generators": len(set(generators)), "sources": len(set(sources))}
        fakes, reals = (word if n >= MIN_GROUPS else "images" for word, n in counts.items())
        return cls(fakes=fakes, reals=reals, **counts)

    @property
    def of_images(self) -> bool:
        """Whether they are of further images of the same generators and sources alone."""
        return self.fakes != "generators" and self.reals != "sources"

    @property
    def words(self) -> str:
        """A sentence for the head of a table; empty if it is not known what intervals are of."""
        if not self.fakes:
            return ""
        if self.of_images:
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
            words
            for number, drawn, words in (
                (self.generators, self.fakes == "generators", "generators"),
                (self.sources, self.reals == "sources", "sources"),
            )
            if number > 1 and not drawn
        ]
        return f" Fewer than eight {' and '.join(few)} say nothing of further ones." if few else ""


@dataclass(frozen=True)
class GeneratorInfo:
    """The images of one generator, or of one source of real images.

    Attributes:
        name: The generator or the source.
        label: `fake` or `real`.
        kind: `whole`, `local`, or `real`.
        seen: Whether the system was trained on it: `in-training`, `unseen`, or `unknown`.
        released: When the generator was released.
        architecture: Its architecture.
        n: Images with a score.
        unscored: Images without a score.
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
        """The scope of its metrics."""
        return f"{self.label}, {self.kind}: {self.name}"


@dataclass(frozen=True)
class StratumInfo:
    """The images of one format and one size."""

    format: str = ""
    size: str = ""
    n_real: int = 0
    n_fake: int = 0

    @property
    def scope(self) -> str:
        """The scope of its metrics."""
        return f"{self.format}, {self.size}"


@dataclass(frozen=True)
class ViewInfo:
    """The same images, perturbed.

    Attributes:
        name: Name of the perturbation, which is the `view` of its metrics.
        kind: `degradation`, `chain` (several changes), or `attack`.
        why: Why there are no such images.
        n_real: Real images.
        n_fake: Fakes.
    """

    name: str
    kind: str = "degradation"
    why: str = ""
    n_real: int = 0
    n_fake: int = 0


@dataclass(frozen=True)
class SystemInfo:
    """One detector or the ensemble.

    Attributes:
        name: Name of its column of scores.
        kind: `detector` or `ensemble`.
        title: Its title.
        output: `continuous`, or `binary` for replies of yes and no.
        calibrated: Whether its scores are calibrated.
        threshold: Fake is a score above it.
        strict: Whether a score at the threshold is not fake.
        late: Whether it scores only images that go on in a cascade.
        n_real: Real images with a score.
        n_fake: Fakes with a score.
        unscored: Images without a score.
        kinds_intervals: What intervals of whole fakes and of local edits are of.
        generators: Its images by generator and source.
        strata: Its images by format and size.
        views: Its images under perturbation.
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
        """Images with a score."""
        return self.n_real + self.n_fake

    @property
    def called(self) -> str:
        """Its title, or its name if it has none."""
        return self.title or self.name


@dataclass(frozen=True)
class ReferenceInfo:
    """A published column.

    Attributes:
        column: Its head.
        source: The publication.
        rows: Published values by row of the table.
        mark: Why it is wrong or cannot be compared.
        marks: The same of single cells, by row.
        system: Which of our systems it is.
        verified: Whether somebody ran its weights on the real data and compared the values.
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
    """A row of the protocol's table. Its cells are in the scope `table`, under its name.

    Attributes:
        name: Name of the row.
        label: The class of its images; empty for a footer.
        n: Number of its images.
        seen: By system, whether they were in its training.
    """

    name: str
    label: str = ""
    n: int = 0
    seen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PairedTest:
    """A paired test between two systems on the same images. The difference is the metric `test` of
    b in the scope of the test.

    Attributes:
        a: The first system.
        b: The second system.
        test: `auc` or `accuracy`, with `clustered ` in front if it is of further generators.
        n: Images that both score.
        p: Two-sided p; None if the test is undefined.
        p_holm: The p corrected for all pairs.
    """

    a: str
    b: str
    test: str
    n: int = 0
    p: float | None = None
    p_holm: float | None = None

    @property
    def scope(self) -> str:
        """The scope of the difference."""
        return f"less {self.a}"

    @property
    def by_cluster(self) -> bool:
        """Whether it is of further generators or sources."""
        return self.test.startswith("clustered")


@dataclass(frozen=True)
class MaskPartInfo:
    """Masks of one generator's images, or under one perturbation."""

    name: str
    n: int = 0


@dataclass(frozen=True)
class MaskInfo:
    """Masks of one detector at one resolution.

    Attributes:
        system: The detector.
        resolution: `network` or `original`.
        images: Number of images.
        empty: Images in which nothing is altered.
        all_altered: Images in which everything is altered.
        generators: Local edits by generator.
        views: The same under perturbation.
        rules: The scopes of metrics by the rules of others.
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
        """The scope of its metrics."""
        return f"masks at {self.resolution} size"

    def scope_of(self, part: str) -> str:
        """Return the scope of one generator."""
        return f"{self.scope}: {part}"


@dataclass(frozen=True)
class MaskFailure:
    """Why true masks could not be read, and how many."""

    reason: str = ""
    n: int = 0
    example: str = ""


@dataclass(frozen=True)
class LocalizationInfo:
    """How masks were measured.

    Attributes:
        policy: The rules in words.
        images: Images with a mask and a truth.
        without_label: Images with a mask and without a label.
        warning: Which truths mark nothing or everything.
        unreadable: Truths that could not be read.
        systems: The detectors that draw masks.
    """

    policy: Mapping[str, Any] = field(default_factory=dict)
    images: int = 0
    without_label: int = 0
    warning: str | None = None
    unreadable: tuple[MaskFailure, ...] = ()
    systems: tuple[MaskInfo, ...] = ()


@dataclass(frozen=True)
class ClassInfo:
    """Images of one generator or family, and how many images were taken for it."""

    name: str
    n: int = 0
    predicted: int = 0


@dataclass(frozen=True)
class IdentificationInfo:
    """Generators that were named.

    Attributes:
        scope: The scope of the metrics.
        title: What was named, and by which rules.
        classes: The true names, the most frequent first.
        pairs: True name, wrong name, and number of such images.
        notes: How to read the metrics.
        counts: Further counts by name.
    """

    scope: str
    title: str = ""
    classes: tuple[ClassInfo, ...] = ()
    pairs: tuple[tuple[str, str | None, int], ...] = ()
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    def scope_of(self, name: str) -> str:
        """Return the scope of one class."""
        return f"{self.scope}: {name}"

    @property
    def confusions(self) -> list[tuple[str, str, int]]:
        """Generators taken for others, the most frequent first; no more than 30."""
        named = [
            (truth, "no name" if predicted is None else predicted, number)
            for truth, predicted, number in self.pairs
        ]
        return sorted(named, key=lambda pair: -pair[2])[:30]


@dataclass(frozen=True)
class GroupInfo:
    """Fakes of some generators.

    Attributes:
        name: Name of the group.
        distribution: `in` or `out`: whether such generators were in training.
        total: Whether it stands for several groups.
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
        """The scope of its metrics: those of detection by system, the others without a system."""
        return f"group: {self.name}"


@dataclass(frozen=True)
class PromptInfo:
    """Predicted prompts: counts by name, and notes on how to read the metrics of `prompts`."""

    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationMeta:
    """What the metrics are of.

    Attributes:
        title: Title of the evaluation.
        version: Version of Touchstone.
        made_at: When it was made.
        settings: The settings of the evaluation that are not defaults, without secrets.
        label_warnings: What to beware of in the labels, in sentences.
        data_warnings: How the classes differ, in sentences.
        faults: Known faults of the data, in sentences.
        run: The run.
        labels: The labels.
        protocol: The protocol; None if there is none.
        data: The images.
        intervals: What 95 % intervals are of.
        systems: The ensemble and the detectors.
        table: Rows of the protocol's table.
        footers: Rows under the table.
        reference: Published columns.
        paired: Paired tests between systems.
        localization: Masks; None if there are none.
        identification: Generators named; the first entry is the protocol's.
        prompts: Prompts predicted; None if there are none.
        groups: Generators in and out of the distribution of training.
        groups_by: `protocol` or `identifier`: what divides the groups.
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
    """Images whose probability is between `low` and `high`.

    Attributes:
        low: The lowest probability.
        high: The highest probability.
        n: Number of images.
        probability: The mean probability.
        fake_share: The fraction that is fake.
        interval: The 95 % interval of that fraction.
    """

    low: float = 0.0
    high: float = 0.0
    n: int = 0
    probability: float | None = None
    fake_share: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class ClassHistogram:
    """Counts of scores (log-odds) by class, (n,), between n + 1 edges."""

    edges: tuple[float, ...] = ()
    real: tuple[int, ...] = ()
    fake: tuple[int, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(self.real + self.fake)


Points = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Curves:
    """What the page draws of one system.

    Attributes:
        roc: FPR, TPR, and threshold of each point.
        precision_recall: Recall, precision, and threshold of each point.
        risk_coverage: Coverage and risk of each point.
        reliability: Bins of stated probabilities.
        histogram: Scores by class.
    """

    roc: Points = ()
    precision_recall: Points = ()
    risk_coverage: Points = ()
    reliability: tuple[ReliabilityBin, ...] = ()
    histogram: ClassHistogram = ClassHistogram()


@dataclass(frozen=True)
class Mistake:
    """One image that is classified wrong with confidence. `thumbnail` is a JPEG in base64."""

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
        """The name of its file."""
        from ray_app.reports.format import file_name

        return file_name(self.uri, self.member)


@dataclass(frozen=True)
class Overlay:
    """One altered image with its true and its predicted mask. `picture` is a JPEG in base64; `why`
    says why there is none.
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


_DRAWN: Mapping[str, Any] = {
    "curves": dict[str, Curves],
    "mistakes": tuple[Mistake, ...],
    "overlays": tuple[Overlay, ...],
}


@dataclass(frozen=True)
class EvaluationResult:
    """An evaluation as a whole.

    Attributes:
        meta: What the metrics are of.
        metrics: All metrics.
        curves: By system, what the page draws.
        mistakes: The most confident mistakes of the leading system.
        overlays: Masks beside the truth.
    """

    meta: EvaluationMeta = EvaluationMeta()
    metrics: MetricsTable = field(default_factory=MetricsTable)
    curves: Mapping[str, Curves] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()
    overlays: tuple[Overlay, ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "EvaluationResult":
        """Return the result of `metrics.json`, and of `to_dict`.

        Raises:
            pydantic.ValidationError: A value is of another type.
        """
        from pydantic import TypeAdapter

        drawn: dict[str, Any] = {
            name: TypeAdapter(kind).validate_python(content[name])
            for name, kind in _DRAWN.items()
            if name in content
        }
        meta = TypeAdapter(EvaluationMeta).validate_python(content["meta"])
        return cls(meta, MetricsTable.from_dicts(content["metrics"]), **drawn)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `metrics.json`: facts and metrics, without drawings."""
        return {"schema": SCHEMA, "meta": asdict(self.meta), "metrics": self.metrics.to_dicts()}

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `metrics.json` with curves and pictures."""
        return self.to_json() | {
            "curves": {name: asdict(curves) for name, curves in self.curves.items()},
            "mistakes": [asdict(mistake) for mistake in self.mistakes],
            "overlays": [asdict(overlay) for overlay in self.overlays],
        }

    @property
    def systems(self) -> list["SystemResult"]:
        """The systems in the order of the run."""
        return [
            SystemResult(info, self.metrics, self.curves.get(info.name, Curves()))
            for info in self.meta.systems
        ]

    @property
    def leading(self) -> "SystemResult | None":
        """The system that the page is about: the ensemble, or the best one."""
        return next(
            (system for system in self.systems if system.info.kind == "ensemble"),
            max(self.systems, key=_merit, default=None),
        )

    @property
    def shortcut_auc(self) -> MetricValue:
        """The AUC of file facts alone."""
        return self.metrics.find("shortcut_auc", scope=DATA)


@dataclass(frozen=True)
class SystemResult:
    """One system with its metrics and curves."""

    info: SystemInfo
    metrics: MetricsTable
    curves: Curves = Curves()

    def figure(self, name: str, scope: str = ALL, view: str = "") -> MetricValue:
        """Return one metric; one without a value if it was not measured."""
        return self.metrics.find(name, self.info.name, view=view, scope=scope)

    def figures(self, scope: str = ALL, view: str = "") -> Mapping[str, MetricValue]:
        """Return the metrics of one scope by name."""
        return self.metrics.select(self.info.name, view=view, scope=scope)

    @property
    def flagged(self) -> MetricValue:
        """The false-positive rate."""
        return self.figure("tnr").complement

    @property
    def kinds_apart(self) -> list[tuple[str, Mapping[str, MetricValue]]]:
        """Metrics of whole fakes and of local edits, if there are local edits."""
        parts = [(kind, self.figures(kind_scope(kind))) for kind in ("whole", "local")]
        known = [
            (kind, figures)
            for kind, figures in parts
            if any(metric.value is not None for metric in figures.values())
        ]
        return known if any(kind == "local" for kind, _ in known) else []

    def hardest(self, label: str = "fake") -> list[GeneratorInfo]:
        """Return the generators or sources of one class, the least accuracy first; those without a
        score are last.
        """

        def ease(one: GeneratorInfo) -> tuple[bool, float, str]:
            rate = self.rate(one).value
            return rate is None, rate or 0.0, one.name

        return sorted((one for one in self.info.generators if one.label == label), key=ease)

    def rate(self, generator: GeneratorInfo) -> MetricValue:
        """Return the fraction of a generator's images that are judged correctly."""
        return self.figure("rate", generator.scope)

    @property
    def fullest_strata(self) -> list[StratumInfo]:
        """Formats and sizes, those of the most images first."""
        return sorted(self.info.strata, key=lambda one: -(one.n_real + one.n_fake))


def kind_scope(kind: str) -> str:
    """Return the scope of metrics of whole fakes, or of local edits, against all real images."""
    return f"{kind} fakes"


def _merit(system: SystemResult) -> float:
    found = (system.figure(name).value for name in ("auc", "balanced_accuracy", "accuracy"))
    return next((value for value in found if value is not None), -1.0)
