"""Read protocols, which define how to reproduce a paper's table of results (`load_protocol`).

A protocol is a YAML file. It defines the images, rows, and metrics of the table, and has the
published values for comparison. If a paper uses an unusual or wrong average, there is a metric with
a name of its own for this average, such as `f1_by_source`. So the paper's table can be reproduced.

`read_traits` returns the release date or architecture of each generator, from labels or from a
run's own columns. `ray_app.evaluation.protocol_rows` computes the table.
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
"""The metric of a row.

`rate` is the fraction of images judged correctly. Computed against all real images: `auc`,
`average_precision`, `oracle_accuracy` (sidbench's best accuracy on the test data itself),
`balanced_accuracy`, and `f1_even`, the F1 for equal numbers of real images and fakes. `pixel_…` are
metrics of masks (ray_app.metrics.localization).
"""
Automatic = Literal["sources", "generators", "years"]
Value = Annotated[float, Field(ge=0, le=1)]


class ProtocolRow(Frozen):
    """A row of a protocol's table: which images it covers, and the metric of these images.

    The images are those of all generators (or sources of real images) that the row's globs match.
    """

    name: str = Field(description="name of the row")
    generators: tuple[str, ...] = Field(default=(), description="globs over names of generators")
    architectures: tuple[str, ...] = Field(
        default=(), description="globs over architectures of generators"
    )
    excluding: tuple[str, ...] = Field(
        default=(), description="globs over names of generators that belong to other rows"
    )
    label: Literal["real", "fake"] = Field(
        default="fake", description="whether the images are fakes, or real images by source"
    )
    kind: Literal["whole", "local"] | None = Field(
        default=None, description="only whole fakes, or only local edits; null = both"
    )
    figure: RowFigure = Field(
        default="rate",
        description="metric of the row; `rate` is the fraction of images judged correctly, "
        "`pixel_…` are metrics of masks, and the others are computed against all real images",
    )
    mean: bool = Field(
        default=False,
        description="use the mean over the generators, each counting once, instead of pooling their images",
    )
    why: str | None = Field(
        default=None,
        description="reason why the row has no globs; its cells stay empty and show the reason",
    )

    @model_validator(mode="after")
    def _check_globs_or_reason(self) -> "ProtocolRow":
        if bool(self.generators or self.architectures) == (self.why is not None):
            raise ValueError(
                "a row needs `generators` or `architectures`, or else `why` with the reason why it has neither"
            )
        return self

    def matches(self, generator: GeneratorInfo) -> bool:
        """Return whether the row covers the images of a generator, or of a source of real images.

        The class of its images must be that of the row, and so must the kind, unless the row's kind
        is None. Its name must match a glob of `generators`, or its architecture a glob of
        `architectures`. Its name must not match a glob of `excluding`.
        """
        name, family = generator.name, generator.architecture
        is_match = any(is_named(name, glob) for glob in self.generators)
        return (
            generator.label == self.label
            and self.kind in (None, generator.kind)
            and (
                is_match
                or (
                    family is not None
                    and any(is_named(family, glob) for glob in self.architectures)
                )
            )
            and not any(is_named(name, glob) for glob in self.excluding)
        )


class ProtocolFooter(Frozen):
    """A value below the rows of a protocol's table, such as the mean over rows or the AUC."""

    name: str = Field(description="name that states what the metric is")
    figure: str = Field(
        description="a metric of the system; an average over generators; `mean:FIGURE` or `weighted:FIGURE`, the mean over the rows of "
        "fakes with that metric, in which a row counts once or by its number of images; `report.CLASS.FIGURE`, a metric of the "
        "classification report; or `f1_by_source`, `accuracy_missing_wrong`, or `false_positive_rate`, metrics of single papers"
    )
    rows: tuple[str, ...] = Field(
        default=(),
        description="names of the rows that a mean is over; empty = all but means, years, and rows without generators",
    )


class Reference(Frozen):
    """A column of published values in a protocol, to compare with measured values of the rows."""

    column: str = Field(description="title of the column")
    detector: str | None = Field(
        default=None, description="the shipped detector that the column is of, if any"
    )
    verified: bool = Field(
        default=False,
        description="whether the detector's weights were run on the real data and the results compared with these values",
    )
    source: str = Field(description="the publication and table of the column")
    rows: Mapping[str, Value] = Field(description="values by name of row or footer")
    mark: str | None = Field(
        default=None, description="reason not to compare the column: it is wrong or not comparable"
    )
    marks: Mapping[str, str] = Field(
        default={}, description="reasons not to compare single cells, by row"
    )

    @model_validator(mode="after")
    def _check_marks(self) -> "Reference":
        if unknown := self.marks.keys() - self.rows.keys():
            raise ValueError(
                f"`marks` has rows for which `rows` has no value: {', '.join(sorted(unknown))}"
            )
        return self


class LocalizationRules(Frozen):
    """The rules by which a protocol compares predicted masks of altered pixels with true masks."""

    policy: Literal["opensdi", "imdlbenco", "plain"] = Field(
        default="plain", description="the project whose rules define the metrics"
    )
    resolution: Literal["network", "original"] = Field(
        default="original", description="size at which masks are compared"
    )
    threshold: float = Field(
        default=0.5, ge=0, le=1, description="probability above which a pixel counts as altered"
    )


class IdentificationRules(Frozen):
    """The rules by which a protocol compares predicted names of generators with true ones."""

    top_k: tuple[int, ...] = Field(
        default=(1, 3, 5), description="values of k for the top-k accuracies"
    )
    protocol: Literal["plain", "dflip-v1"] = Field(
        default="plain", description="the rules; dflip-v1 are those of DFLIP-3K, version 1"
    )


class Groups(Frozen):
    """Names of the rows of a protocol's table that are in or out of the training distribution.

    Metrics are computed for the fakes of each row. They are also computed for the fakes of all rows
    that are in the distribution together, and of all rows that are out of it.
    """

    inside: tuple[str, ...] = Field(
        alias="in",
        default=(),
        description="names of rows whose generators are in the training distribution",
    )
    out: tuple[str, ...] = Field(
        default=(),
        description="names of rows whose generators are out of the training distribution",
    )


class Protocol(Frozen):
    """The rules for reproducing a paper's evaluation: its images, table rows, and metrics."""

    name: str = Field(description="name of the protocol")
    title: str = Field(description="title for people")
    source: str = Field(description="the publication")
    what: str = Field(description="what the protocol measures, as a sentence")
    layout: str | None = Field(
        default=None, description="layout that labels the images; null = any labels"
    )
    arguments: Mapping[str, Any] = Field(default={}, description="arguments of the layout")
    sources: tuple[str, ...] = Field(default=(), description="where the images are")
    split: str | None = Field(default=None, description="use only labels of this split; null = all")
    detectors: tuple[str, ...] = Field(
        default=(), description="detectors that score a source, unless others are given"
    )
    ensemble: str | None = Field(
        default=None, description="ensemble that scores a source if `detectors` is empty"
    )
    threshold: float = Field(
        default=0.0, description="log-odds above which an image counts as fake, for all systems"
    )
    strict: bool = Field(
        default=True, description="false = a score at the threshold counts as fake, too"
    )
    perturb: tuple[str, ...] = Field(default=(), description="lists of perturbations by name")
    rows: tuple[ProtocolRow, ...] = Field(
        default=(), description="the rows of the table, before the automatic ones"
    )
    paired: Mapping[str, tuple[str, ...]] = Field(
        default={},
        description="globs of generators by glob of sources of real images; average precision and oracle accuracy of these generators are "
        "computed against the images of these sources only, and average precision for equal numbers of fakes and real images",
    )
    automatic: tuple[Automatic, ...] = Field(
        default=(),
        description="further rows: one for every source of real images, every generator (by release, then name), or every year of release",
    )
    figures: tuple[RowFigure, ...] = Field(
        default=("rate",), description="metrics of the automatic rows of generators"
    )
    footers: tuple[ProtocolFooter, ...] = Field(
        default=(), description="metrics over all rows or images, below the rows"
    )
    averages: str = Field(description="how the protocol averages, in words")
    localization: LocalizationRules | None = Field(
        default=None, description="rules for masks; null = plain"
    )
    identification: IdentificationRules | None = Field(
        default=None, description="rules for named generators; null = plain"
    )
    prompts: bool = Field(default=False, description="whether the protocol is about prompts")
    groups: Groups | None = Field(
        default=None,
        description="rows in and out of the training distribution; null = by the classes of the run's identifier",
    )
    notes: tuple[str, ...] = Field(default=(), description="notes for readers, a sentence each")
    commands: tuple[str, ...] = Field(default=(), description="commands that run the protocol")
    reference: tuple[Reference, ...] = Field(default=(), description="published columns")

    @model_validator(mode="after")
    def _check_names(self) -> "Protocol":
        names = [row.name for row in self.rows] + [footer.name for footer in self.footers]
        if duplicates := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"names of rows and footers must be distinct, duplicates: {', '.join(sorted(duplicates))}"
            )
        for column in self.reference:
            if unknown := column.rows.keys() - set(names):
                raise ValueError(
                    f"reference {column.column}: unknown rows or footers: {', '.join(sorted(unknown))}"
                )
        for footer in self.footers:
            if unknown := set(footer.rows) - {row.name for row in self.rows}:
                raise ValueError(
                    f"footer {footer.name}: unknown rows: {', '.join(sorted(unknown))}"
                )
        group_rows = (*self.groups.inside, *self.groups.out) if self.groups else ()
        if unknown := set(group_rows) - {row.name for row in self.rows}:
            raise ValueError(f"groups: unknown rows: {', '.join(sorted(unknown))}")
        if not self.rows and not self.automatic:
            raise ValueError("a protocol needs at least one entry in `rows` or `automatic`")
        return self

    @property
    def traits(self) -> Mapping[str, str]:
        """The facts on generators that decide in which row of the result table their images count.

        The keys are the facts, `released` and `architecture`. The values are the columns of the
        labels with these facts, `release_date` and `architecture`. A fact is left out if no row
        needs it.
        """
        columns = {"released": "release_date"} if "years" in self.automatic else {}
        return columns | (
            {"architecture": "architecture"} if any(row.architectures for row in self.rows) else {}
        )

    @property
    def info(self) -> ProtocolInfo:
        """Facts such as the title, source, and threshold, for the result of an evaluation."""
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
        """The published values of each column of the table, for the result of an evaluation."""
        return tuple(
            ReferenceInfo(**column.model_dump(exclude={"detector"}), system=column.detector)
            for column in self.reference
        )


def load_protocol(name_or_path: str | Path) -> Protocol:
    """Load a shipped protocol by name, such as "opensdi", or a protocol from a YAML file.

    Raises:
        ConfigError: The protocol does not exist or is invalid.
    """
    return load_yaml(find_config("evaluate", name_or_path), Protocol)


def read_traits(
    tables: Callable[[Sequence[str]], Iterable[pa.Table]], column: str
) -> Mapping[str, str]:
    """Return a fact on each generator of fakes, such as its release date, from labelled rows.

    If rows of a generator differ, the alphabetically first value counts, which is the earliest
    date. Generators without a value are left out. A date that does not begin with a year does not
    count.

    Args:
        tables: Function that returns the labelled rows with the requested columns.
        column: `release_date` or `architecture`.

    Returns:
        The fact by name of the generator.
    """
    traits: dict[str, str] = {}
    for table in tables((column, "generator", "label")):
        is_valid = pc.match_substring_regex(
            table[column], r"^\d{4}" if column == "release_date" else r"\S"
        )
        rows = table.filter(pc.and_(pc.equal(table["label"], "fake"), is_valid))
        for row in rows.group_by("generator").aggregate([(column, "min")]).to_pylist():
            value = row[f"{column}_min"]
            traits[row["generator"]] = min(value, traits.get(row["generator"], value))
    return traits


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
"""The protocol that applies if none is given."""
