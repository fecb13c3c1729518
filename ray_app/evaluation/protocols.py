"""Protocols as YAML (`load_protocol`): which images, rows and figures a published table has, by
which rules, and what was published.

The averages are those that others compute (specs/detectors.md §11), each under its own name, the
wrong ones too. A hit is an image that is right at the threshold. `traits_of`: when each generator
was released, or of what architecture it is, as labels or a run's own columns have it.

The table of a protocol (`table_of`): rows, footers, and published columns beside ours
(`reference_of`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from ray_app.config import Frozen, find_config, load_yaml
from ray_app.evaluation.systems import is_named
from ray_app.reports.evaluation.result import GeneratorInfo, ProtocolInfo, ReferenceInfo

RowFigure = Literal[
    "rate", "auc", "average_precision", "oracle_accuracy", "balanced_accuracy", "f1_even",
    "pixel_f1", "pixel_iou", "pixel_auc", "pixel_accuracy",
]  # fmt: skip
"""What a row may hold. `rate`: the share that is right. Against all real images: `auc`,
`average_precision`, `oracle_accuracy` (sidbench's best accuracy on the test data itself),
`balanced_accuracy`, and `f1_even`, the F1 if there were as many real images as fakes. `pixel_…`: of
masks (ray_app.metrics.localization).
"""
Automatic = Literal["sources", "generators", "years"]
Value = Annotated[float, Field(ge=0, le=1)]


class ProtocolRow(Frozen):
    """One row: images of the generators that its globs name, by their names or their architectures,
    together. Without globs the cells stay empty, for the reason `why`.

    `excluding`: globs over names that belong elsewhere. `kind`: only whole fakes, or only local
    edits. `mean`: of the figures of its generators, each counting once; rows of each of them may
    stand beside it.
    """

    name: str
    generators: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    excluding: tuple[str, ...] = ()
    label: Literal["real", "fake"] = "fake"
    kind: Literal["whole", "local"] | None = None
    figure: RowFigure = "rate"
    mean: bool = False
    why: str | None = None

    @model_validator(mode="after")
    def _named_or_said(self) -> "ProtocolRow":
        if bool(self.generators or self.architectures) == (self.why is not None):
            raise ValueError(
                "give generators or architectures, or say under `why` why they cannot be named"
            )
        return self

    def holds(self, generator: GeneratorInfo) -> bool:
        """Whether a generator belongs to it."""
        name, family = generator.name, generator.architecture
        named = any(is_named(name, glob) for glob in self.generators)
        return (
            generator.label == self.label
            and self.kind in (None, generator.kind)
            and (
                named
                or (
                    family is not None
                    and any(is_named(family, glob) for glob in self.architectures)
                )
            )
            and not any(is_named(name, glob) for glob in self.excluding)
        )


class ProtocolFooter(Frozen):
    """One figure of a system as a whole, under a name that says what it is.

    `figure`: a key of a system's `figures` or `averages`; `mean:FIGURE` and `weighted:FIGURE` of
    the table's fake rows with that figure, each row counting once or by its images;
    `report.CLASS.FIGURE` of the classification report; or a convention of
    ray_app.evaluation.protocols. `rows`: those that a mean is of; without, all but rows that have
    no generators, and years.
    """

    name: str
    figure: str
    rows: tuple[str, ...] = ()


class Reference(Frozen):
    """A published column. `rows`: by names of rows and footers. `mark`: why the column is wrong or
    not comparable, `marks`: single cells.

    `detector`: which of ours it is, if any. `verified`: somebody ran its weights on the real data
    and compared the figures.
    """

    column: str
    detector: str | None = None
    verified: bool = False
    source: str
    rows: Mapping[str, Value]
    mark: str | None = None
    marks: Mapping[str, str] = {}

    @model_validator(mode="after")
    def _marks_what_is_there(self) -> "Reference":
        if strangers := self.marks.keys() - self.rows.keys():
            raise ValueError(f"marks of cells that have no value: {', '.join(sorted(strangers))}")
        return self


class LocalizationRules(Frozen):
    """How masks are measured: by whose rules, at which size, and above which probability a pixel
    counts as altered.
    """

    policy: Literal["opensdi", "imdlbenco", "plain"] = "plain"
    resolution: Literal["network", "original"] = "original"
    threshold: float = Field(default=0.5, ge=0, le=1)


class IdentificationRules(Frozen):
    """How named generators are compared with the true ones."""

    top_k: tuple[int, ...] = (1, 3, 5)
    protocol: Literal["plain", "dflip-v1"] = "plain"


class Groups(Frozen):
    """Rows by their names whose generators are in the distribution of training, and out of it."""

    inside: tuple[str, ...] = Field(alias="in", default=())
    out: tuple[str, ...] = ()


class Protocol(Frozen):
    """One way to evaluate. `layout` and `arguments`: how its images are labelled (null = any).
    `sources`, `split`: where they are.

    `detectors`, `ensemble`: its columns. Fake is a log-odds above `threshold`, or, unless `strict`,
    at it. `perturb`: lists of perturbations by name. `rows` come first; then, for each of
    `automatic`, a row for every source of real images, every generator (by release, then name) or
    every year of release, with each of `figures`. `averages`: how it averages, in words. `groups`:
    in and out of distribution; without, they follow from the classes of the run's identifier.
    `paired`: by sources of real images the generators (all globs) whose average precision is
    against these alone, as if there were as many of them as fakes.
    """

    name: str
    title: str
    source: str
    what: str
    layout: str | None = None
    arguments: Mapping[str, Any] = {}
    sources: tuple[str, ...] = ()
    split: str | None = None
    detectors: tuple[str, ...] = ()
    ensemble: str | None = None
    threshold: float = 0.0
    strict: bool = True
    perturb: tuple[str, ...] = ()
    rows: tuple[ProtocolRow, ...] = ()
    paired: Mapping[str, tuple[str, ...]] = {}
    automatic: tuple[Automatic, ...] = ()
    figures: tuple[RowFigure, ...] = ("rate",)
    footers: tuple[ProtocolFooter, ...] = ()
    averages: str
    localization: LocalizationRules | None = None
    identification: IdentificationRules | None = None
    prompts: bool = False
    groups: Groups | None = None
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    reference: tuple[Reference, ...] = ()

    @model_validator(mode="after")
    def _refers_to_its_own_names(self) -> "Protocol":
        named = [row.name for row in self.rows] + [footer.name for footer in self.footers]
        if doubled := {name for name in named if named.count(name) > 1}:
            raise ValueError(f"rows and footers of one name: {', '.join(sorted(doubled))}")
        for column in self.reference:
            if strangers := column.rows.keys() - set(named):
                raise ValueError(
                    f"reference {column.column}: no row or footer is called {', '.join(sorted(strangers))}"
                )
        for footer in self.footers:
            if strangers := set(footer.rows) - {row.name for row in self.rows}:
                raise ValueError(
                    f"footer {footer.name}: no row is called {', '.join(sorted(strangers))}"
                )
        grouped = (*self.groups.inside, *self.groups.out) if self.groups else ()
        if strangers := set(grouped) - {row.name for row in self.rows}:
            raise ValueError(f"groups: no row is called {', '.join(sorted(strangers))}")
        if not self.rows and not self.automatic:
            raise ValueError("neither rows nor automatic")
        return self

    @property
    def traits(self) -> Mapping[str, str]:
        """What the table must know of generators, by its name in a document the column of labels."""
        found = {"released": "release_date"} if "years" in self.automatic else {}
        return found | (
            {"architecture": "architecture"} if any(row.architectures for row in self.rows) else {}
        )

    @property
    def info(self) -> ProtocolInfo:
        """The rules as documents have them."""
        return ProtocolInfo(
            name=self.name,
            title=self.title,
            source=self.source,
            what=self.what,
            threshold=self.threshold,
            strict=self.strict,
            averages=self.averages,
            notes=self.notes,
            commands=self.commands,
        )

    @property
    def published(self) -> tuple[ReferenceInfo, ...]:
        """Published columns, with what is wrong about them."""
        return tuple(
            ReferenceInfo(**one.model_dump(exclude={"detector"}), system=one.detector)
            for one in self.reference
        )


def load_protocol(name_or_path: str | Path) -> Protocol:
    """A shipped protocol by its name, or one from a YAML file. Raises ConfigError."""
    return load_yaml(find_config("evaluate", name_or_path), Protocol)


def traits_of(
    tables: Callable[[Sequence[str]], Iterable[pa.Table]], column: str
) -> Mapping[str, str]:
    """By generator of fakes the least text of its rows in a column, so the earliest `release_date`.

    Generators without one are left out; so is a date that does not begin with its year. `tables`:
    labelled rows with the columns asked for.
    """
    found: dict[str, str] = {}
    for table in tables((column, "generator", "label")):
        known = pc.match_substring_regex(
            table[column], r"^\d{4}" if column == "release_date" else r"\S"
        )
        rows = table.filter(pc.and_(pc.equal(table["label"], "fake"), known))
        for row in rows.group_by("generator").aggregate([(column, "min")]).to_pylist():
            least = row[f"{column}_min"]
            found[row["generator"]] = min(least, found.get(row["generator"], least))
    return found


PLAIN = Protocol(
    name="plain",
    title="Plain",
    source="ours",
    what="Every source of real images and every generator, at the detector's own threshold.",
    automatic=("sources", "generators"),
    averages="Over generators once as they are (unweighted) and once by their images (n-weighted).",
    footers=(
        ProtocolFooter(name="average TPR (unweighted)", figure="tpr_mean"),
        ProtocolFooter(name="average TPR (n-weighted)", figure="tpr_weighted"),
        ProtocolFooter(name="F1", figure="f1"),
        ProtocolFooter(name="accuracy", figure="accuracy"),
        ProtocolFooter(name="balanced accuracy", figure="balanced_accuracy"),
        ProtocolFooter(name="ROC AUC", figure="auc"),
        ProtocolFooter(name="average precision", figure="average_precision"),
    ),
)
"""What holds where no protocol is named."""
