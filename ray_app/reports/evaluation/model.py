"""The document of an evaluation (`metrics.json`) as the reports read it. Every key has a default, unknown keys and nulls are let pass."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from ray_app.reports import format as wording
from ray_app.reports.evaluation.system_model import (
    NO_COUNTS,
    NO_FIGURES,
    NOT_MEASURED,
    Counts,
    FigureFacts,
    Figures,
    SystemFacts,
    figures_among,
    numbers,
    rows,
)
from ray_app.reports.run_model import SummarySection


class RunFacts(SummarySection):
    """The run that was evaluated."""

    url: str = ""
    fingerprint: str = ""
    created_at: str = ""
    detectors: tuple[str, ...] = ()
    ensemble: str = ""
    identity: Mapping[str, Any] = {}


class LabelFacts(SummarySection):
    """Where the truth came from, and how many of its rows found an image; `other_split`: rows left out for being of another split."""

    name: str = ""
    key: str = ""
    rows: int = 0
    joined: int = 0
    without_row: int = 0
    rows_without_label: int = 0
    doubled: int = 0
    other_split: int = 0
    warnings: tuple[str, ...] = ()


class ProtocolFacts(SummarySection):
    """The rules that were followed. `strict`: fake where the score is above the threshold; else also where it is at it."""

    name: str = ""
    title: str = ""
    source: str = ""
    what: str = ""
    notes: tuple[str, ...] = ()
    threshold: float | None = None
    strict: bool = True
    commands: tuple[str, ...] = ()


class ShortcutFacts(SummarySection):
    """Whether facts of the files alone tell the classes apart. `class_ratio`: fakes to one real image."""

    auc: FigureFacts = NOT_MEASURED
    confounded: bool = False
    features: tuple[str, ...] = ()
    why: str = ""
    class_ratio: float | None = None
    warnings: tuple[str, ...] = ()


class DataFacts(SummarySection):
    """The images; `formats` and `sizes` by class ("real", "fake")."""

    n: int = 0
    n_real: int = 0
    n_fake: int = 0
    n_whole: int = 0
    n_local: int = 0
    statuses: Counts = NO_COUNTS
    formats: Mapping[str, Counts] = {}
    sizes: Mapping[str, Counts] = {}
    shortcut: ShortcutFacts = ShortcutFacts()


class ReferenceFacts(SummarySection):
    """A published column beside ours. `mark`: why it is wrong or not comparable; `marks`: the same of single cells."""

    column: str = ""
    system: str | None = None
    source: str = ""
    mark: str = ""
    marks: Annotated[Mapping[str, str], BeforeValidator(lambda value: value if isinstance(value, Mapping) else {})] = {}
    rows: Annotated[Mapping[str, float], BeforeValidator(numbers)] = {}


class TableRow(SummarySection):
    """One row of the protocol's table; `seen`: by each system, in its training."""

    name: str = ""
    label: str = ""
    n: int = 0
    seen: Mapping[str, str] = {}


class TableFooter(SummarySection):
    """One figure of every system, under the table."""

    name: str = ""
    cells: Figures = NO_FIGURES


class TableFacts(SummarySection):
    """The protocol's table: by system and row a figure."""

    rows: tuple[TableRow, ...] = ()
    columns: tuple[str, ...] = ()
    cells: Mapping[str, Figures] = {}
    footers: tuple[TableFooter, ...] = ()


class PairedFacts(SummarySection):
    """One paired test between two systems on the same images; `difference` is b's figure less a's."""

    a: str = ""
    b: str = ""
    n: int = 0
    test: str = ""
    difference: FigureFacts = NOT_MEASURED
    p: float | None = None
    p_holm: float | None = None


class ClassFacts(SummarySection):
    """Images of one generator, or of one family, and how they were named."""

    name: str = ""
    n: int = 0
    predicted: int = 0
    figures: Figures = NO_FIGURES

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, data: Any) -> Any:
        return {**data, "figures": figures_among(data)} if isinstance(data, Mapping) else data


class NamedFigures(SummarySection):
    """Figures that stand beside other things: all that are any, in `figures`. `pairs`: truth, prediction and count of confusions.

    `inner`: further such sections by name. `remarks`: what has to be known to read them.
    """

    figures: Figures = NO_FIGURES
    pairs: tuple[tuple[Any, ...], ...] = ()
    classes: tuple[ClassFacts, ...] = ()
    remarks: tuple[str, ...] = ()
    inner: Mapping[str, "NamedFigures"] = {}

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        inner = data.get("figures") if isinstance(data.get("figures"), Mapping) else {}
        texts = [text for key in ("notes", "flaws") for text in rows(data.get(key)) if isinstance(text, str)]
        parts = {key: data[key] for key in ("families", "plain", "by_index", "detection") if isinstance(data.get(key), Mapping)}
        return {"figures": {**figures_among(data), **figures_among(inner)}, "pairs": rows(data.get("pairs")), "remarks": texts,
                "classes": [one for one in rows(data.get("classes")) if isinstance(one, Mapping)], "inner": parts}  # fmt: skip


class GroupRow(SummarySection):
    """Fakes of some generators; `distribution` is `in` or `out` of that of training, `total` what stands for several groups."""

    name: str = ""
    distribution: str = ""
    total: bool = False
    generators: tuple[str, ...] = ()
    n: int = 0
    detection: Mapping[str, Figures] = {}
    identification: Figures = NO_FIGURES
    prompts: Figures = NO_FIGURES


class GroupFacts(SummarySection):
    """Groups in and out of distribution, told `by` a protocol or by the identifier of the run."""

    by: str = ""
    groups: tuple[GroupRow, ...] = ()


class MaskRow(SummarySection):
    """Masks of one generator's images, or of one view of them."""

    name: str = ""
    n: int = 0
    figures: Figures = NO_FIGURES


def _modes(value: Any) -> Any:
    """IMDLBenCo's figures by mode, wherever they stand."""
    return value.get("modes", {"": value}) if isinstance(value, Mapping) else {}


class LocalizationSystem(SummarySection):
    """Masks of one detector at one resolution; `opensdi` and `imdlbenco`: the same by others' rules, the latter by mode."""

    name: str = ""
    resolution: str = ""
    figures: Figures = NO_FIGURES
    generators: tuple[MaskRow, ...] = ()
    views: tuple[MaskRow, ...] = ()
    imdlbenco: Annotated[Mapping[str, Figures], BeforeValidator(_modes)] = {}
    opensdi: NamedFigures = NamedFigures()


class MaskFailures(SummarySection):
    """How many true masks could not be read, and why."""

    reason: str = ""
    n: int = 0
    example: str = ""


class LocalizationFacts(SummarySection):
    """How well masks lie on what was altered, by which rules, and which truths could not be read."""

    policy: Mapping[str, Any] = {}
    images: int = 0
    without_label: int = 0
    unreadable: tuple[MaskFailures, ...] = ()
    systems: tuple[LocalizationSystem, ...] = ()


class MistakeFacts(SummarySection):
    """One image that is told wrong with confidence; `thumbnail`: base64 of a re-encoded JPEG."""

    image_id: Any = None
    uri: str = ""
    member: str | None = None
    label: str = ""
    generator: str = ""
    score: float | None = None
    probability: float | None = None
    verdict: str = ""
    thumbnail: str = ""

    @property
    def name(self) -> str:
        """What people know it by."""
        return wording.file_name(self.uri, self.member)


class OverlayFacts(SummarySection):
    """One altered image with its mask and what was marked; `picture`: base64 of a JPEG."""

    image_id: Any = None
    uri: str = ""
    f1: float | None = None
    iou: float | None = None
    picture: str = ""


class EvaluationFacts(SummarySection):
    """An evaluation as a whole."""

    version: str = ""
    made_at: str = ""
    title: str = ""
    run: RunFacts = RunFacts()
    labels: LabelFacts = LabelFacts()
    protocol: ProtocolFacts | None = None
    data: DataFacts = DataFacts()
    systems: tuple[SystemFacts, ...] = ()
    reference: tuple[ReferenceFacts, ...] = ()
    table: TableFacts = TableFacts()
    paired: tuple[PairedFacts, ...] = ()
    localization: LocalizationFacts | None = None
    identification: NamedFigures | None = None
    prompts: NamedFigures | None = None
    groups: GroupFacts | None = None
    mistakes: tuple[MistakeFacts, ...] = ()
    overlays: tuple[OverlayFacts, ...] = ()

    @property
    def leading(self) -> SystemFacts | None:
        """The system that the page is about: the ensemble, or the one that tells best."""
        return next((one for one in self.systems if one.kind == "ensemble"), max(self.systems, key=_merit, default=None))

    @property
    def others(self) -> list[SystemFacts]:
        """All systems but the leading one, in their order."""
        return [system for system in self.systems if system is not self.leading]

    def system(self, name: str) -> SystemFacts | None:
        """A system by its name."""
        return next((one for one in self.systems if one.name == name), None)


def _merit(system: SystemFacts) -> float:
    found = [system.figure(key).number for key in ("auc", "balanced_accuracy", "accuracy")]
    return next((number for number in found if number is not None), -1.0)
