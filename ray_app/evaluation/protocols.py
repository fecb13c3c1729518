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
from typing import Annotated, Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from ray_app.config import Frozen, find_config, load_yaml
from ray_app.evaluation.systems import combined_overlap, is_named
from ray_app.metrics.intervals import proportion
from ray_app.metrics.values import MetricValue, undefined
from ray_app.reports.evaluation.model import (
    LocalizationFacts,
    MaskRow,
    ProtocolFacts,
    ReferenceFacts,
    TableFacts,
    TableRow,
)
from ray_app.reports.evaluation.model import TableFooter as FooterFacts
from ray_app.reports.evaluation.system_model import GeneratorFacts, SystemFacts

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
_NONE_SCORED = "none of these images was scored"
_ONE_CLASS = "needs scored images of both classes"
_NOT_COMPUTED = undefined("was not computed")


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

    def holds(self, generator: GeneratorFacts) -> bool:
        """Whether a generator of a document's system belongs to it."""
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

    def facts(self) -> ProtocolFacts:
        """The section `protocol` of an evaluation's document."""
        kept = (
            "name",
            "title",
            "source",
            "what",
            "threshold",
            "strict",
            "averages",
            "notes",
            "commands",
        )
        return ProtocolFacts(**{name: getattr(self, name) for name in kept})


def f1_by_source(generators: Sequence[GeneratorFacts]) -> MetricValue:
    """OpenFake v2's cross-benchmark F1: the F1 of every source by itself, weighted by its images.

    It means nothing: a source of real images alone has an F1 of 0 however well it is classified,
    and one of fakes 2 · TPR / (1 + TPR).
    """
    parts = [
        (one.rate.n, (one.rate.value or 0.0) if one.label == "fake" else 0.0)
        for one in generators
        if one.rate.n
    ]
    n = sum(weight for weight, _ in parts)
    return (
        MetricValue(value=sum(weight * 2 * tpr / (1 + tpr) for weight, tpr in parts) / n, n=n)
        if n
        else undefined(_NONE_SCORED)
    )


def missing_is_wrong(generators: Sequence[GeneratorFacts]) -> MetricValue:
    """DFLIP-3K v1's accuracy: right ones among all images of the list, those without a score
    included.
    """
    right, n = correct_counts(generators)
    return proportion(right, n + sum(one.unscored for one in generators), "there are no images")


def false_positive_rate(generators: Sequence[GeneratorFacts]) -> MetricValue:
    """The share of real images that are called fake."""
    right, n = correct_counts([one for one in generators if one.label == "real"])
    return proportion(n - right, n, _NONE_SCORED)


CONVENTIONS: Mapping[str, Callable[[Sequence[GeneratorFacts]], MetricValue]] = {
    "f1_by_source": f1_by_source,
    "accuracy_missing_wrong": missing_is_wrong,
    "false_positive_rate": false_positive_rate,
}
"""What a footer may name beside figures, averages and means of rows: of all generators of a system.
"""


def load_protocol(name_or_path: str | Path) -> Protocol:
    """A shipped protocol by its name, or one from a YAML file. Raises ConfigError."""
    return load_yaml(find_config("evaluate", name_or_path), Protocol)


def balanced(fakes: Sequence[GeneratorFacts], reals: Sequence[GeneratorFacts]) -> MetricValue:
    """The mean of the two shares judged correctly. What others print as the ROC AUC of hard
    decisions is the same number.
    """
    tpr, tnr = correct_share(fakes), correct_share(reals)
    if tpr.value is None or tnr.value is None:
        return undefined(_ONE_CLASS, tpr.n + tnr.n)
    return MetricValue(value=(tpr.value + tnr.value) / 2, n=tpr.n + tnr.n)


def f1_even(fakes: Sequence[GeneratorFacts], reals: Sequence[GeneratorFacts]) -> MetricValue:
    """The F1 of the fake class if there were as many real images as fakes, by the shares judged
    correctly of both.
    """
    tpr, tnr = correct_share(fakes), correct_share(reals)
    if tpr.value is None or tnr.value is None:
        return undefined(_ONE_CLASS, tpr.n + tnr.n)
    return MetricValue(value=2 * tpr.value / (1 + tpr.value + 1 - tnr.value), n=tpr.n + tnr.n)


def correct_share(generators: Sequence[GeneratorFacts]) -> MetricValue:
    """The share judged correctly of all these generators' images."""
    right, n = correct_counts(generators)
    return proportion(right, n, _NONE_SCORED)


def correct_counts(generators: Sequence[GeneratorFacts]) -> tuple[int, int]:
    """Images judged correctly, and images, of a document's generators together."""
    known = [one.rate for one in generators if one.rate.value is not None]
    return sum(round((rate.value or 0.0) * rate.n) for rate in known), sum(rate.n for rate in known)


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

_WORDS = {
    "auc": "AUC", "average_precision": "AP", "oracle_accuracy": "accuracy at oracle threshold",
    "balanced_accuracy": "balanced accuracy", "f1_even": "F1 at even counts", "pixel_f1": "pixel F1", "pixel_iou": "pixel IoU",
    "pixel_auc": "pixel AUC", "pixel_accuracy": "pixel accuracy",
}  # fmt: skip


_NOT_OF_SEVERAL = "not to be had of several generators together from the figures of each"


class _Line(NamedTuple):
    """A row of the table before it has cells. `year`: only generators that were released then;
    `only`: only that of this very name.
    """

    row: ProtocolRow
    year: str | None = None
    only: str | None = None

    def of(self, system: SystemFacts) -> list[GeneratorFacts]:
        found = [one for one in system.generators if self.row.holds(one)]
        if self.only is not None:
            return [one for one in found if one.name == self.only]
        return found if self.year is None else [one for one in found if _year(one) == self.year]


def table_of(
    protocol: Protocol | None,
    systems: Sequence[SystemFacts],
    localization: LocalizationFacts | None = None,
    *,
    of_images: bool = True,
) -> TableFacts:
    """The document's section `table`: rows × systems and footers. All its intervals are of further
    images of the rows' generators.

    `of_images`: so are those of figures as a whole; where they are not, footers have none: they
    stand in the systems' own tables.

    `systems` and `localization` are the sections of those names; the latter only for rows of masks.
    A row that no generator of the data belongs to stands there with undefined cells. `seen` of a
    row is by its worst: seen if one of its generators was.
    """
    rules = protocol or PLAIN
    lines = [_Line(row) for row in rules.rows] + _automatic(rules, systems)
    masks = _masks_of(rules, localization)
    cells = {
        system.name: {line.row.name: _cell(line, system, masks) for line in lines}
        for system in systems
    }
    return TableFacts(
        rows=tuple(_head(line, systems) for line in lines),
        columns=tuple(system.name for system in systems),
        cells=cells,
        footers=tuple(
            FooterFacts(
                name=one.name,
                cells={
                    system.name: _footer(one, system, lines, cells, of_images) for system in systems
                },
            )
            for one in rules.footers
        ),
    )


def reference_of(protocol: Protocol | None) -> list[ReferenceFacts]:
    """The document's section `reference`: published columns with what is wrong about them."""
    columns = protocol.reference if protocol else ()
    return [
        ReferenceFacts(**one.model_dump(exclude={"detector"}), system=one.detector)
        for one in columns
    ]


def _automatic(rules: Protocol, systems: Sequence[SystemFacts]) -> list[_Line]:
    """Rows for what is in the data, in order of release and name; generators that a row of the
    protocol holds already, but for one of a mean, are left out.
    """
    known = {(one.label, one.name): one for system in systems for one in system.generators}
    rest = [
        one
        for one in known.values()
        if not any(row.holds(one) and not row.mean for row in rules.rows)
    ]
    rest.sort(key=lambda one: (one.released or "9", one.name))
    taken = {row.name for row in rules.rows}
    lines: list[_Line] = []
    for wanted in rules.automatic:
        if wanted == "years":
            years = sorted(
                {year for one in known.values() if one.label == "fake" and (year := _year(one))}
            )
            lines += [
                _Line(ProtocolRow(name=f"released {year}", generators=("*",)), year=year)
                for year in years
            ]
        elif wanted == "sources":
            lines += [_exactly(one, "rate", known, taken) for one in rest if one.label == "real"]
        else:
            words = {**_WORDS, "rate": "TPR" if len(rules.figures) > 1 else ""}
            fakes = [one for one in rest if one.label == "fake"]
            lines += [
                _exactly(one, figure, known, taken, words[figure])
                for figure in rules.figures
                for one in fakes
            ]
    return lines


def _exactly(
    generator: GeneratorFacts,
    figure: RowFigure,
    known: Mapping[tuple[str, str], Any],
    taken: set[str],
    words: str = "",
) -> _Line:
    """The row of one generator of the data, whose name is like no other row's."""
    name, label = generator.name, generator.label
    mixed = ("real" if label == "fake" else "fake", name) in known
    row = f"{name}{f' ({label})' if mixed else ''}{f', {words}' if words else ''}"
    while row in taken:
        row += " (in the data)"
    taken.add(row)
    return _Line(
        ProtocolRow(
            name=row, generators=("*",), label="fake" if label == "fake" else "real", figure=figure
        ),
        only=name,
    )


def _head(line: _Line, systems: Sequence[SystemFacts]) -> TableRow:
    mine = {system.name: line.of(system) for system in systems}
    counts = [sum(one.n + one.unscored for one in found) for found in mine.values()]
    known = {name: combined_overlap(one.seen for one in found) for name, found in mine.items()}
    return TableRow(name=line.row.name, label=line.row.label, n=max(counts, default=0), seen=known)


def _cell(line: _Line, system: SystemFacts, masks: Mapping[str, Sequence[MaskRow]]) -> MetricValue:
    mine, figure = line.of(system), line.row.figure
    mine = [one for one in mine if one.n] or mine
    if line.row.why is not None:
        return undefined(line.row.why)
    if not mine:
        return undefined("no image of the data belongs here")
    if line.row.mean:
        each = line.row.model_copy(update={"mean": False})
        found = [
            _cell(_Line(each, only=name), system, masks)
            for name in dict.fromkeys(one.name for one in mine)
        ]
        return _mean(found, [1] * len(found), sum(one.n for one in mine), "generators")
    if figure == "rate":
        return correct_share(mine)
    if figure in ("balanced_accuracy", "f1_even"):
        others = [one for one in system.generators if one.label != line.row.label]
        fakes, reals = (mine, others) if line.row.label == "fake" else (others, mine)
        return (balanced if figure == "balanced_accuracy" else f1_even)(fakes, reals)
    if figure.startswith("pixel_"):
        names = {one.name for one in mine}
        drawn = [
            one.figures.get(figure, _NOT_COMPUTED)
            for one in masks.get(system.name, [])
            if one.name in names
        ]
        return (
            _pooled(drawn, [one.n for one in drawn])
            if drawn
            else undefined("this detector draws no masks, or they were not measured")
        )
    found = [one.figures.get(figure, _NOT_COMPUTED) for one in mine]
    # The others are not linear in the fakes.
    return (
        _pooled(found, [one.n for one in mine])
        if len(found) == 1 or figure == "auc"
        else undefined(_NOT_OF_SEVERAL)
    )


def _pooled(found: Sequence[MetricValue], images: Sequence[int]) -> MetricValue:
    """Of several generators together, each by its images: exact for means of images, and for AUCs
    against the same real ones.
    """
    if len(found) == 1:
        return found[0]
    if missing := [one.why for one in found if one.value is None]:
        return undefined(missing[0])
    n = sum(images)
    return MetricValue(
        value=sum(count * (one.value or 0.0) for one, count in zip(found, images, strict=True)) / n,
        n=n,
    )


def _masks_of(
    rules: Protocol, localization: LocalizationFacts | None
) -> Mapping[str, Sequence[MaskRow]]:
    """By system, the document's rows of its masks on each generator, at the size of the protocol's."""
    size = rules.localization.resolution if rules.localization else "original"
    return {
        one.name: one.generators
        for one in (localization.systems if localization else ())
        if one.resolution == size
    }


def _footer(
    footer: ProtocolFooter,
    system: SystemFacts,
    lines: Sequence[_Line],
    cells: Mapping[str, Mapping[str, MetricValue]],
    of_images: bool,
) -> MetricValue:
    way, _, figure = footer.figure.partition(":")
    if figure:
        usual = [
            line.row
            for line in lines
            if line.row.label == "fake"
            and line.year is None
            and line.row.why is None
            and not line.row.mean
        ]
        rows = footer.rows or [row.name for row in usual if row.figure == figure]
        images = {line.row.name: sum(one.n for one in line.of(system)) for line in lines}
        chosen = [cells[system.name][row] for row in rows]
        return _mean(
            chosen,
            [images[row] if way == "weighted" else 1 for row in rows],
            sum(images[row] for row in rows),
        )
    if way.startswith("report."):
        return _reported(way.split(".")[1:], system.report)
    if way in CONVENTIONS:
        return CONVENTIONS[way](system.generators)
    found = {**system.figures, **system.averages}.get(way, _NOT_COMPUTED)
    return found if of_images or found.value is None else MetricValue(value=found.value, n=found.n)


def _mean(
    found: Sequence[MetricValue], weights: Sequence[int], n: int, of: str = "rows"
) -> MetricValue:
    """Over rows, or generators; not defined where one of them is not."""
    if not found:
        return undefined("no row has that figure")
    if missing := [one.why for one in found if one.value is None]:
        return undefined(f"{len(missing)} of {len(found)} {of} have no figure: {missing[0]}", n)
    return MetricValue(
        value=sum(weight * (one.value or 0.0) for one, weight in zip(found, weights, strict=True))
        / sum(weights),
        n=n,
    )


def _reported(path: Sequence[str], report: Mapping[str, Any]) -> MetricValue:
    """A number of the classification report; shares of known counts with their interval."""
    group, key = (path[0], path[1]) if len(path) == 2 else ("", path[0])
    section = report.get(group, report) if group else report
    value = section.get(key) if isinstance(section, Mapping) else None
    if value is None:
        return undefined("the report has no such number")
    n = round(section["support"] if group else report["weighted avg"]["support"])
    return (
        proportion(round(value * n), n, "")
        if key in ("recall", "accuracy") and n
        else MetricValue(value=float(value), n=n)
    )


def _year(generator: GeneratorFacts) -> str | None:
    return (generator.released or "")[:4] or None
