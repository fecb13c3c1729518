"""The document of an evaluation, `metrics.json`: `evaluation` fills it, reports and tests read it.

Fields stand in the order of the file. `identification` and `prompts` are open in it (their
figures depend on protocol and run) and read through `NamedFigures`.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from ray_app.config import OptionalKey, Section
from ray_app.metrics import shortcut
from ray_app.metrics.values import NOT_MEASURED, MetricValue
from ray_app.reports import format as wording
from ray_app.reports.evaluation.system_model import (
    NO_COUNTS,
    NO_FIGURES,
    Counts,
    Figures,
    IntervalFacts,
    OptionalFigures,
    SystemFacts,
    figures_among,
    numbers,
    rows,
)

EVALUATION_SCHEMA = 2
BANDS = ("< 0.1 MP", "0.1–0.5 MP", "0.5–1 MP", "1–4 MP", "> 4 MP")


class RunFacts(Section):
    """The run that was evaluated."""

    url: str = ""
    fingerprint: str = ""
    created_at: str = ""
    detectors: tuple[str, ...] = ()
    ensemble: str | None = None
    identity: Mapping[str, Any] = {}


class LabelFacts(Section):
    """Where the truth came from, and how many of its rows found an image; `other_split`: rows left
    out for being of another split.
    """

    name: str = ""
    joined: int = 0
    rows_without_label: int = 0
    warnings: tuple[str, ...] = ()
    key: str = ""
    rows: int = 0
    without_row: int = 0
    doubled: int = 0
    other_split: int = 0


class ProtocolFacts(Section):
    """The rules that were followed. `strict`: fake where the score is above the threshold; else
    also where it is at it.
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


class ShortcutFacts(Section):
    """Whether facts of the files alone separate the classes. `class_ratio`: fakes to one real
    image.
    """

    auc: MetricValue = NOT_MEASURED
    confounded: bool = False
    features: tuple[str, ...] = ()
    why: str = ""
    class_ratio: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def finding(self) -> str:
        """What the AUC's interval supports, as the end of a sentence."""
        return shortcut.finding(self.auc)


class DataFacts(Section):
    """The images; `formats` and `sizes` by class ("real", "fake"); `faults`: documented ones, and
    those that were found, in sentences.
    """

    n: int = 0
    n_real: int = 0
    n_fake: int = 0
    n_whole: int = 0
    n_local: int = 0
    digest: str = ""
    statuses: Counts = NO_COUNTS
    formats: Mapping[str, Counts] = {}
    sizes: Mapping[str, Counts] = {}
    shortcut: ShortcutFacts = ShortcutFacts()
    faults: tuple[str, ...] = ()

    @staticmethod
    def most_frequent(counts: Mapping[str, Counts]) -> list[str]:
        """Formats or bands of sizes of both classes, the most frequent first; bands keep their
        order.
        """
        totals = sum((Counter(by_name) for by_name in counts.values()), Counter[str]())
        return sorted(
            totals,
            key=lambda name: (BANDS.index(name) if name in BANDS else len(BANDS), -totals[name]),
        )


class ReferenceFacts(Section):
    """A published column beside ours. `mark`: why it is wrong or not comparable; `marks`: the same
    of single cells. `verified`: whether somebody ran the weights of `system` on the real data and
    compared the figures.
    """

    column: str = ""
    source: str = ""
    rows: Annotated[Mapping[str, float], BeforeValidator(numbers)] = {}
    mark: str | None = None
    marks: Annotated[
        Mapping[str, str],
        BeforeValidator(lambda value: value if isinstance(value, Mapping) else {}),
    ] = {}
    system: str | None = None
    verified: bool = False


class TableRow(Section):
    """One row of the protocol's table; `seen`: by each system, in its training."""

    name: str = ""
    label: str = ""
    n: int = 0
    seen: Mapping[str, str] = {}


class TableFooter(Section):
    """One figure of every system, under the table."""

    name: str = ""
    cells: Figures = NO_FIGURES


class TableFacts(Section):
    """The protocol's table: by system and row a figure."""

    rows: tuple[TableRow, ...] = ()
    columns: tuple[str, ...] = ()
    cells: Mapping[str, Figures] = {}
    footers: tuple[TableFooter, ...] = ()


class PairedFacts(Section):
    """One paired test between two systems on the same images; `difference` is b's figure less a's."""

    a: str = ""
    b: str = ""
    test: str = ""
    n: int = 0
    difference: MetricValue = NOT_MEASURED
    p: float | None = None
    why: str | None = None
    p_holm: float | None = None

    @property
    def by_cluster(self) -> bool:
        """Whether it is a test of further generators or sources."""
        return self.test.startswith("clustered")


class ClassFacts(Section):
    """Images of one generator, or of one family, and how they were named."""

    name: str = ""
    n: int = 0
    predicted: int = 0
    figures: Figures = NO_FIGURES

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, data: Any) -> Any:
        return {**data, "figures": figures_among(data)} if isinstance(data, Mapping) else data


class NamedFigures(Section):
    """Figures that stand beside other things: all that are any, in `figures`. `pairs`: truth,
    prediction and count of confusions.

    `inner`: further such sections by name. `remarks`: notes on how to read them.
    """

    figures: Figures = NO_FIGURES
    pairs: tuple[tuple[Any, ...], ...] = ()
    classes: tuple[ClassFacts, ...] = ()
    remarks: tuple[str, ...] = ()
    inner: Mapping[str, "NamedFigures"] = {}

    @property
    def confusions(self) -> list[tuple[str, str, int]]:
        """Generators taken for others, the most frequent first; no more than 30."""
        sound = [pair for pair in self.pairs if len(pair) == 3 and isinstance(pair[2], int)]
        named = [
            (str(truth), "no name" if predicted is None else str(predicted), number)
            for truth, predicted, number in sound
        ]
        return sorted(named, key=lambda pair: -pair[2])[:30]

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        inner = data.get("figures") if isinstance(data.get("figures"), Mapping) else {}
        texts = [
            text
            for key in ("notes", "flaws")
            for text in rows(data.get(key))
            if isinstance(text, str)
        ]
        parts = {
            key: data[key]
            for key in ("families", "plain", "by_index", "detection")
            if isinstance(data.get(key), Mapping)
        }
        return {"figures": {**figures_among(data), **figures_among(inner)}, "pairs": rows(data.get("pairs")), "remarks": texts,
                "classes": [one for one in rows(data.get("classes")) if isinstance(one, Mapping)], "inner": parts}  # fmt: skip


class GroupRow(Section):
    """Fakes of some generators; `distribution` is `in` or `out` of that of training, `total` what
    stands for several groups.
    """

    name: str = ""
    distribution: str = ""
    total: bool = False
    generators: tuple[str, ...] = ()
    n: int = 0
    detection: Mapping[str, Figures] = {}
    identification: OptionalFigures = None
    prompts: OptionalFigures = None

    @property
    def side(self) -> str:
        """Where it stands, "" where the document says neither."""
        return self.distribution if self.distribution in ("in", "out") else ""


class GroupFacts(Section):
    """Groups in and out of distribution, `by` a protocol or by the identifier of the run."""

    by: str = ""
    groups: tuple[GroupRow, ...] = ()


class MaskRow(Section):
    """Masks of one generator's images (of a `kind`), or of one view of them."""

    name: str = ""
    kind: OptionalKey[str] = None
    n: int = 0
    figures: Figures = NO_FIGURES


class MaskCounts(Section):
    """How many images there are, of how many nothing is altered, and of how many everything."""

    images: int = 0
    empty: int = 0
    all_altered: int = 0


class OpenSdiFacts(Section):
    """The same by OpenSDI's rules."""

    counts: MaskCounts = MaskCounts()
    figures: Figures = NO_FIGURES


class ImdlBencoFacts(Section):
    """The same by IMDLBenCo's rules, by mode."""

    counts: MaskCounts = MaskCounts()
    modes: Mapping[str, Figures] = {}


class LocalizationSystem(Section):
    """Masks of one detector at one resolution; `opensdi` and `imdlbenco`: the same by others'
    rules.
    """

    name: str = ""
    resolution: str = ""
    counts: MaskCounts = MaskCounts()
    figures: Figures = NO_FIGURES
    generators: tuple[MaskRow, ...] = ()
    views: tuple[MaskRow, ...] = ()
    imdlbenco: ImdlBencoFacts | None = None
    opensdi: OpenSdiFacts | None = None


class MaskFailures(Section):
    """How many true masks could not be read, and why."""

    reason: str = ""
    n: int = 0
    example: str = ""


class LocalizationFacts(Section):
    """How well masks lie on what was altered, by which rules, and which truths could not be read.

    `warning`: which truths mark nothing or everything; absent if none does.
    """

    policy: Mapping[str, Any] = {}
    images: int = 0
    without_label: int = 0
    warning: OptionalKey[str] = None
    unreadable: tuple[MaskFailures, ...] = ()
    systems: tuple[LocalizationSystem, ...] = ()


class MistakeFacts(Section):
    """One image that is misclassified with confidence; `thumbnail`: base64 of a re-encoded JPEG."""

    image_id: Any = None
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
        return wording.file_name(self.uri, self.member)


class OverlayFacts(Section):
    """One altered image with its mask and what was marked; `picture`: base64 of a JPEG, None where
    there is none, and `why`.
    """

    image_id: Any = None
    uri: str = ""
    member: str | None = None
    system: str = ""
    generator: str = ""
    f1: float | None = None
    iou: float | None = None
    picture: str | None = None
    why: OptionalKey[str] = None


class EvaluationDocument(Section):
    """An evaluation as a whole."""

    schema_number: int = Field(default=EVALUATION_SCHEMA, alias="schema")
    version: str = ""
    made_at: str = ""
    title: str = ""
    run: RunFacts = RunFacts()
    labels: LabelFacts = LabelFacts()
    protocol: ProtocolFacts | None = None
    data: DataFacts = DataFacts()
    intervals: IntervalFacts = IntervalFacts()
    systems: tuple[SystemFacts, ...] = ()
    reference: tuple[ReferenceFacts, ...] = ()
    table: TableFacts = TableFacts()
    paired: tuple[PairedFacts, ...] = ()
    localization: LocalizationFacts | None = None
    identification_section: Mapping[str, Any] | None = Field(default=None, alias="identification")
    prompts_section: Mapping[str, Any] | None = Field(default=None, alias="prompts")
    groups: GroupFacts | None = None
    mistakes: tuple[MistakeFacts, ...] = ()
    overlays: tuple[OverlayFacts, ...] = ()

    @property
    def identification(self) -> NamedFigures | None:
        """Generators named; None in a run that names none."""
        return (
            None
            if self.identification_section is None
            else NamedFigures.model_validate(self.identification_section)
        )

    @property
    def prompts(self) -> NamedFigures | None:
        """Prompts predicted; None in a run that predicts none."""
        return (
            None
            if self.prompts_section is None
            else NamedFigures.model_validate(self.prompts_section)
        )

    @property
    def leading(self) -> SystemFacts | None:
        """The system that the page is about: the ensemble, or the best one."""
        return next(
            (one for one in self.systems if one.kind == "ensemble"),
            max(self.systems, key=_merit, default=None),
        )

    @property
    def others(self) -> list[SystemFacts]:
        """All systems but the leading one, in their order."""
        return [system for system in self.systems if system is not self.leading]


def _merit(system: SystemFacts) -> float:
    found = [system.figure(key).value for key in ("auc", "balanced_accuracy", "accuracy")]
    return next((number for number in found if number is not None), -1.0)
