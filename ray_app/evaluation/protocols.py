"""Protocols as YAML: which images, rows and figures a published table has, by which rules, and what was published.

Knows names and numbers as people wrote them down; knows no run and computes no figure.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ray_app.config import Frozen, find_config, named_configs
from ray_app.config.loading import load_yaml
from ray_app.evaluation.seen import is_named

RowFigure = Literal[
    "rate", "auc", "average_precision", "oracle_accuracy", "balanced_accuracy", "f1_even",
    "pixel_f1", "pixel_iou", "pixel_auc", "pixel_accuracy",
]  # fmt: skip
"""What a row may hold. `rate`: the share told right. Against all real images: `auc`, `average_precision`, `oracle_accuracy` (sidbench's
best accuracy on the test data itself), `balanced_accuracy`, and `f1_even`, the F1 if there were as many real images as fakes.
`pixel_…`: of masks (ray_app.metrics.localization)."""

Automatic = Literal["sources", "generators", "years"]
Value = Annotated[float, Field(ge=0, le=1)]


class Row(Frozen):
    """One row: images of the generators that its globs name, together. Without globs the cells stay empty, and `why` says why.

    `excluding`: globs over names that belong elsewhere. `kind`: only whole fakes, or only local edits.
    """

    name: str
    generators: tuple[str, ...] = ()
    excluding: tuple[str, ...] = ()
    label: Literal["real", "fake"] = "fake"
    kind: Literal["whole", "local"] | None = None
    figure: RowFigure = "rate"
    why: str | None = None

    @model_validator(mode="after")
    def _named_or_said(self) -> "Row":
        if bool(self.generators) == (self.why is not None):
            raise ValueError("give generators, or say under `why` why they cannot be named")
        return self

    def holds(self, generator: Mapping[str, Any]) -> bool:
        """Whether a generator of a document's system belongs to it."""
        name = generator["name"]
        return (
            generator["label"] == self.label
            and self.kind in (None, generator.get("kind"))
            and any(is_named(name, glob) for glob in self.generators)
            and not any(is_named(name, glob) for glob in self.excluding)
        )


class Footer(Frozen):
    """One figure of a system as a whole, under a name that says what it is.

    `figure`: a key of a system's `figures` or `averages`; `mean:FIGURE` and `weighted:FIGURE` of the table's fake rows with that figure,
    each row counting once or by its images; `report.CLASS.FIGURE` of the classification report; or a convention of
    ray_app.evaluation.conventions. `rows`: those that a mean is of; without, all but rows that have no generators, and years.
    """

    name: str
    figure: str
    rows: tuple[str, ...] = ()


class Reference(Frozen):
    """A published column. `rows`: by names of rows and footers. `mark`: why the column is wrong or not comparable, `marks`: single cells.

    `detector`: which of ours it is, if any.
    """

    column: str
    detector: str | None = None
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
    """How masks are measured: by whose rules, at which size, and above which probability a pixel counts as altered."""

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
    """One way to evaluate. `layout` and `arguments`: how its images tell their labels (null = any). `sources`, `split`: where they are.

    `detectors`, `ensemble`: its columns. Fake is a log-odds above `threshold`, or, unless `strict`, at it. `perturb`: lists of
    perturbations by name. `rows` come first; then, for each of `automatic`, a row for every source of real images, every generator (by
    release, then name) or every year of release, with each of `figures`. `averages`: how it averages, in words. `groups`: in and out of
    distribution; without, they are told by the classes of the run's identifier.
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
    rows: tuple[Row, ...] = ()
    automatic: tuple[Automatic, ...] = ()
    figures: tuple[RowFigure, ...] = ("rate",)
    footers: tuple[Footer, ...] = ()
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
                raise ValueError(f"reference {column.column}: no row or footer is called {', '.join(sorted(strangers))}")
        for footer in self.footers:
            if strangers := set(footer.rows) - {row.name for row in self.rows}:
                raise ValueError(f"footer {footer.name}: no row is called {', '.join(sorted(strangers))}")
        grouped = (*self.groups.inside, *self.groups.out) if self.groups else ()
        if strangers := set(grouped) - {row.name for row in self.rows}:
            raise ValueError(f"groups: no row is called {', '.join(sorted(strangers))}")
        if not self.rows and not self.automatic:
            raise ValueError("neither rows nor automatic")
        return self

    def facts(self) -> dict[str, Any]:
        """The section `protocol` of an evaluation's document."""
        kept = ("name", "title", "source", "what", "threshold", "strict", "averages")
        return {name: getattr(self, name) for name in kept} | {"notes": list(self.notes), "commands": list(self.commands)}


def load_protocol(name_or_path: str | Path) -> Protocol:
    """A shipped protocol by its name, or one from a YAML file. Raises ConfigError."""
    return load_yaml(find_config("evaluate", name_or_path), Protocol)


def list_protocols() -> Iterator[Protocol]:
    """Every shipped protocol, by name."""
    for path in named_configs("evaluate").values():
        yield load_protocol(path)
