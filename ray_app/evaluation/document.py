"""The document of an evaluation (`document_of`) and its files, each written at once
(`write_document`).

The files: `metrics.json`, `metrics.csv` and `report.html`; `fragility_yaml` is for detectors'
cards. `data_of` is the section on the images: how many, of what form, and whether their form alone
tells fakes from reals.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from ray_app import __version__
from ray_app.detectors.card_sections import Fragility, FragilityFigure
from ray_app.errors import ConfigError
from ray_app.evaluation import accumulate, attribution, interval_sample, system_section
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.generator_names import names_of
from ray_app.evaluation.join import LabelledRows
from ray_app.evaluation.localization import localization_of_run
from ray_app.evaluation.prompts import prompts_of
from ray_app.evaluation.protocols import (
    IdentificationRules,
    Protocol,
    reference_of,
    table_of,
    traits_of,
)
from ray_app.evaluation.systems import Systems
from ray_app.metrics import shortcut
from ray_app.metrics.values import MetricValue, undefined
from ray_app.reports.evaluation import model, system_model
from ray_app.reports.format import no_formula
from ray_app.runs import RunDirectory, fingerprint
from ray_app.storage import Store, strip_secrets

COLUMNS = ("system", "view", "scope", "figure", "value", "low", "high", "method", "n", "why")
Line = tuple[str, str, str, str, MetricValue]
"""System, view, scope, name and figure."""
FEATURES = accumulate.FACTS
MOST_RATIO = 10.0
# the share of images that would have to be of another format, or size, for both classes to be alike
MOST_APART = 0.25
_DIGITS = 4  # of figures in a card
OpenSection = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """A run with its labels, and what a pass over both has gathered. `faults`: sentences on the
    data.
    """

    run: RunDirectory
    labels: LabelledRows
    systems: Systems
    cells: accumulate.Cells
    protocol: Protocol | None
    config: EvaluateConfig
    faults: tuple[str, ...] = ()


def write_document(document: model.EvaluationDocument, out: Store) -> None:
    """Write all three files. Raises ValueError for a number that JSON does not know, which no
    figure is.
    """
    from ray_app.reports.evaluation.page import render_evaluation

    out.write(
        "metrics.json",
        json.dumps(document.written(), indent=1, ensure_ascii=False, allow_nan=False).encode(),
    )
    out.write("metrics.csv", metrics_csv(document).encode())
    out.write("report.html", render_evaluation(document).encode())


def metrics_csv(document: model.EvaluationDocument) -> str:
    """Every figure of the document as a line of COLUMNS; a text that a spreadsheet would take for a
    formula has a ' before it.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for system, view, scope, name, figure in _figures(document):
        low, high = figure.interval or (None, None)
        facts = [figure.value, low, high, figure.method or None, figure.n, figure.why or None]
        writer.writerow(
            [
                no_formula(value) if isinstance(value, str) else value
                for value in (system, view, scope, name, *facts)
            ]
        )
    return stream.getvalue()


def document_of(
    found: Evaluation,
    warnings: Sequence[str] = (),
    progress: Callable[[str], object] = lambda _: None,
) -> model.EvaluationDocument:
    """The document. `warnings`: of the join. `progress`: called with what is being done."""
    protocol, config = found.protocol, found.config
    described = found.run.describe()
    progress("figures")
    sample = found.cells.sample
    intervals = interval_sample.Intervals(
        config.intervals, sample, wanted=config.bootstrap != 0, seed=config.seed
    )
    systems = _systems(found, intervals)
    binary = {one.name: one.output == "binary" for one in systems}
    progress("masks and texts")
    rules = protocol.localization if protocol else None
    localized = localization_of_run(
        found.run,
        found.labels.tables,
        rules=rules,
        pictures=config.thumbnails,
        guard=found.labels.guard,
    )
    localization = localized.section if localized else None
    progress("tests and tables")
    identification, prompts, groups = _named(found, systems)
    return model.EvaluationDocument(
        schema=model.EVALUATION_SCHEMA,
        version=__version__,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        title=config.title or (protocol.title if protocol else _named_after(found.run.store.url)),
        run=_run(found.run, described),
        labels=_labels(found, warnings),
        protocol=protocol.facts() if protocol else None,
        data=data_of(found.cells, found.faults, seed=config.seed),
        intervals=intervals.facts,
        systems=tuple(systems),
        reference=tuple(reference_of(protocol)),
        table=table_of(protocol, systems, localization, of_images=intervals.facts.of_images),
        paired=tuple(
            system_section.paired_tests(sample, found.systems.all, binary, config.intervals)
        ),
        localization=localization,
        identification=identification,
        prompts=prompts,
        groups=groups,
        mistakes=tuple(
            accumulate.with_thumbnails(found.cells.mistakes, found.run, wanted=config.thumbnails)
        ),
        overlays=tuple(localized.overlays) if localized else (),
    )


def data_of(
    cells: accumulate.Cells, faults: tuple[str, ...] = (), *, seed: int = 0
) -> model.DataFacts:
    """The document's section `data`."""
    kinds, statuses = Counter[str](), Counter[str]()
    formats, sizes = ({"real": Counter[str](), "fake": Counter[str]()} for _ in range(2))
    for (cell, status, _), count in cells.rows.items():
        kinds[cell.group.kind] += count
        statuses[status] += count
        formats[cell.group.label][cell.format] += count
        sizes[cell.group.label][cell.size] += count
    n_real, n_fake = kinds["real"], kinds["whole"] + kinds["local"]
    return model.DataFacts(
        n=cells.joined,
        n_real=n_real,
        n_fake=n_fake,
        n_whole=kinds["whole"],
        n_local=kinds["local"],
        digest=f"{cells.digest:016x}",
        statuses=_most_frequent_first(statuses),
        formats={label: _most_frequent_first(counts) for label, counts in formats.items()},
        sizes={
            label: {
                band: counts[band]
                for band in (*accumulate.BANDS, accumulate.UNKNOWN)
                if counts[band]
            }
            for label, counts in sizes.items()
        },
        shortcut=_shortcut(cells.sample, n_real, n_fake, formats, sizes, seed),
        faults=faults,
    )


def _figures(document: model.EvaluationDocument) -> Iterator[Line]:
    yield "", "", "data", "shortcut_auc", document.data.shortcut.auc
    for system in document.systems:
        for view, scope, figures in _of_system(system):
            for name, figure in figures.items():
                yield system.name, view, scope, name, figure
    for pair in document.paired:
        yield pair.b, "", f"less {pair.a}", pair.test, pair.difference
    yield from _of_masks(document.localization.systems if document.localization else ())
    for footer in document.table.footers:
        for system_name, figure in footer.cells.items():
            yield system_name, "", "table", footer.name, figure
    groups = document.groups.written() if document.groups else None
    for section, content in (
        ("identification", document.identification_section),
        ("prompts", document.prompts_section),
        ("groups", groups),
    ):
        for name, figure in _among(content or {}):
            yield "", "", section, name, figure


def _of_masks(systems: Iterable[model.LocalizationSystem]) -> Iterator[Line]:
    for one in systems:
        scope = f"masks at {one.resolution} size"
        for view, figures in [
            ("", one.figures),
            *((view.name, view.figures) for view in one.views),
        ]:
            for name, figure in figures.items():
                yield one.name, view, scope, name, figure
        entry = one.written()
        for name, figure in _among(
            {part: entry.get(part) for part in ("generators", "imdlbenco", "opensdi")}
        ):
            yield one.name, "", scope, name, figure


def _of_system(
    system: system_model.SystemFacts,
) -> Iterator[tuple[str, str, Mapping[str, MetricValue]]]:
    """View, scope and figures of every part of a system's entry."""
    yield "", "all", system.figures
    yield "", "decided", system.decided or {}
    yield "", "averages", system.averages
    yield "", "all", {"aurc": system.risk_coverage.aurc}
    for kind, figures in system.kinds.items():
        yield "", f"{kind} fakes", figures
    for one in system.generators:
        yield "", f"{one.label}, {one.kind}: {one.name}", one.figures
    for stratum in system.strata:
        yield (
            "",
            f"{stratum.format}, {stratum.size}",
            {"auc": stratum.auc, "balanced_accuracy": stratum.balanced_accuracy},
        )
    for view in system.views:
        yield view.name, "all", view.figures


def _among(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, MetricValue]]:
    """All figures of an open section, wherever they stand, with the way to them; what stands in a
    list goes by its name.
    """
    for key, value in section.items():
        if isinstance(value, list):
            value = {
                one["name"]: one for one in value if isinstance(one, Mapping) and "name" in one
            }
        if isinstance(value, Mapping):
            if {"value", "why"} <= value.keys():
                yield path + key, MetricValue(**value)
            else:
                yield from _among(value, f"{path}{key}.")


def _most_frequent_first(counts: Counter[str]) -> dict[str, int]:
    """Of equal ones the first by name, in whatever order they came."""
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def _shortcut(
    sample: pa.Table,
    n_real: int,
    n_fake: int,
    formats: Mapping[str, Counter[str]],
    sizes: Mapping[str, Counter[str]],
    seed: int,
) -> model.ShortcutFacts:
    auc, used = _metadata_auc(sample, seed)
    confounded = shortcut.confounded(auc)
    warnings = [
        *_of_ratio(n_real, n_fake),
        *_of_shares("format", formats),
        *_of_shares("size", sizes),
    ]
    if confounded and auc.interval:
        warnings.append(
            f"{', '.join(used)} alone tell fakes from real images with an AUC of {auc.value:.3f} (95 % interval {auc.interval[0]:.3f} to "
            f"{auc.interval[1]:.3f}): the figures may say how well a detector "
            "reads files. Compare within one format and size, or take a protocol that gives both classes the same history."
        )
    why = (
        auc.why
        or "the AUC of a small classifier on metadata alone; where its interval lies above 0.5, the headline counts as confounded"
    )
    ratio = n_fake / n_real if n_real else None
    return model.ShortcutFacts(
        auc=auc,
        confounded=confounded,
        features=tuple(used),
        why=why,
        class_ratio=ratio,
        warnings=tuple(warnings),
    )


def _metadata_auc(sample: pa.Table, seed: int) -> tuple[MetricValue, list[str]]:
    if not len(sample):
        return undefined("no image is labelled"), []
    rows = sample.filter(pc.is_valid(sample["width"]))
    fakes = np.asarray(rows["kind"]) != "real"
    features = {
        name: _feature(rows[name]) for name in FEATURES if rows[name].null_count < len(rows)
    }
    if not features:
        return undefined("no image could be read", len(rows)), []
    return shortcut.shortcut_auc(features, fakes, seed=seed), sorted(features)


def _feature(column: pa.ChunkedArray) -> Any:
    if pa.types.is_string(column.type):
        return np.asarray(pc.fill_null(column, accumulate.UNKNOWN).to_pylist(), dtype=str)
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))


def _of_ratio(n_real: int, n_fake: int) -> list[str]:
    fewer, more = sorted([n_real, n_fake])
    if not fewer:
        return [
            f"There are no {'real images' if not n_real else 'fakes'}: figures that need both classes are not defined."
        ]
    if more <= MOST_RATIO * fewer:
        return []
    names = ("real image", "fakes") if n_fake > n_real else ("fake", "real images")
    return [
        f"For every {names[0]} there are {more / fewer:.0f} {names[1]}: accuracy, F1 and precision say more of that than of a detector."
    ]


def _of_shares(what: str, counts: Mapping[str, Counter[str]]) -> list[str]:
    shares = {}
    for label, counted in counts.items():
        known = Counter(
            {name: count for name, count in counted.items() if name != accumulate.UNKNOWN}
        )
        if not known.total():
            return []
        shares[label] = {name: count / known.total() for name, count in known.items()}
    apart = {
        name: shares["fake"].get(name, 0.0) - shares["real"].get(name, 0.0)
        for name in {**shares["real"], **shares["fake"]}
    }
    if sum(abs(difference) for difference in apart.values()) / 2 <= MOST_APART:
        return []
    most = max(sorted(apart), key=lambda name: abs(apart[name]))
    real, fake = (shares[label].get(most, 0.0) for label in ("real", "fake"))
    return [
        f"The classes differ in {what}: {most} are {real:.0%} of the real images and {fake:.0%} of the fakes."
    ]


def _named_after(url: str) -> str:
    """A run by the last of its folders that has a name of its own: one that was scored for an
    evaluation is called `run`.
    """
    names = [name for name in strip_secrets(url).split("/") if name and name != "run"]
    return f"Evaluation of {names[-1] if names else 'a run'}"


def _named(
    found: Evaluation, systems: Sequence[system_model.SystemFacts]
) -> tuple[OpenSection | None, OpenSection | None, model.GroupFacts | None]:
    """Sections that only a run with predicted generators or prompts has, and groups of generators,
    by a protocol or an identifier. Without any predictions its rows are not read again for them.
    """
    protocol, predicted = found.protocol, found.cells.predicted
    rules = (protocol.identification if protocol else None) or IdentificationRules()
    names = names_of(found.run.describe())
    answers = (
        attribution.answers_of(found.labels.tables, names)
        if names.classes is not None or predicted["predicted_generator"]
        else None
    )
    folders = {"clip": found.config.clip, "regenerated": found.config.regenerated}
    prompts = (
        prompts_of(found.labels.tables, found.run, **folders)
        if predicted["predicted_prompt"]
        else None
    )
    grouping = attribution.grouping_of(protocol, names, systems)
    return (
        attribution.identification_of(answers, rules=rules, missing=found.labels.unused)
        if answers
        else None,
        prompts.section() if prompts else None,
        attribution.groups_section(grouping, systems, answers, prompts, rules.top_k)
        if grouping
        else None,
    )


def _systems(
    found: Evaluation, intervals: interval_sample.Intervals
) -> list[system_model.SystemFacts]:
    figures = (
        {row.figure for row in found.protocol.rows} | set(found.protocol.figures)
        if found.protocol
        else set()
    )
    members = [one for one in found.systems.all if one.name in found.systems.members]
    traits = {
        name: traits_of(found.labels.tables, column)
        for name, column in (found.protocol.traits if found.protocol else {}).items()
    }
    paired = found.protocol.paired if found.protocol else {}
    options = system_section.SystemOptions(
        intervals, frozenset(figures), members, traits, paired, found.run.describe()["identity"]
    )
    return [system_section.system_of(system, found.cells, options) for system in found.systems.all]


def _run(run: RunDirectory, described: Mapping[str, Any]) -> model.RunFacts:
    return model.RunFacts(
        url=run.store.url,
        fingerprint=fingerprint(described["identity"]),
        created_at=described["created_at"],
        detectors=described["detectors"],
        ensemble=(described.get("ensemble") or {}).get("name"),
        identity=described["identity"],
    )


def _labels(found: Evaluation, warnings: Sequence[str]) -> model.LabelFacts:
    labels = found.labels
    facts: dict[str, Any] = {
        name: getattr(labels, name) for name in ("key", "rows", "doubled", "other_split", "joined")
    }
    facts |= {
        "name": strip_secrets(labels.name),
        "rows_without_label": labels.others,
        "without_row": labels.unused,
    }
    return model.LabelFacts(**facts, warnings=tuple(warnings))


def fragility_yaml(document: model.EvaluationDocument) -> str:
    """What perturbations leave of each detector of the evaluated run, as the section `fragility` of
    its card: YAML, by the detector's name.

    A person puts it into the card; bounds beyond which verdicts abstain (`abstains`) are theirs to
    draw from it. Raises ConfigError where the run has no perturbation.
    """
    detectors = [one for one in document.systems if one.name in document.run.detectors]
    perturbed = document.run.identity.get("perturb", {})
    if not any(one.views for one in detectors):
        raise ConfigError(
            "--fragility: this run has no perturbed images",
            hint="evaluate a source with --perturb standard, or jpeg:75",
        )
    sections = {}
    for one in detectors:
        measured = tuple(_fragility_rows(document, one, perturbed))
        sections[one.name] = {
            "fragility": Fragility(measured=measured).model_dump(
                mode="json", exclude_none=True, exclude_defaults=True
            )
        }
    head = (
        "# Put a detector's `fragility` into its card. Under `abstains` beside `measured` a card says where a verdict means nothing, for\n"
        "# example {jpeg_quality: {below: 50}, graphics: {above: 0.55, what: a drawing or a screenshot}}.\n"
    )
    return head + yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, width=140)


def _fragility_rows(
    document: model.EvaluationDocument,
    system: system_model.SystemFacts,
    perturbed: Mapping[str, Any],
) -> Iterator[FragilityFigure]:
    source = f"touchstone evaluate {document.version}, {document.title}, {document.made_at[:10]}"
    given: dict[str, Any] = {"threshold": _rounded(system.threshold), "source": source}
    yield FragilityFigure(
        **_measured(system.figures), n_real=system.n_real, n_fake=system.n_fake, **given
    )
    for view in system.views:
        steps = _in_words(perturbed.get(view.name, ()))
        yield FragilityFigure(
            perturbation=view.name,
            steps=steps,
            **_measured(view.figures),
            n_real=view.n_real,
            n_fake=view.n_fake,
            **given,
        )


def _measured(figures: Mapping[str, MetricValue]) -> dict[str, Any]:
    auc, tpr, tnr = (
        figures[name].value if name in figures else None for name in ("auc", "tpr", "tnr")
    )
    return {
        "auc": _rounded(auc),
        "fpr": None if tnr is None else _rounded(1 - tnr),
        "tpr": _rounded(tpr),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _in_words(steps: Sequence[Mapping[str, Any]]) -> str | None:
    """The steps of a perturbation with their strengths: `resize scale 0.5 filter lanczos, then jpeg
    quality 75`.
    """
    words = [" ".join(str(part) for key, value in step.items() if value is not None for part in ((value,) if key == "op" else (key, value)))
             for step in steps]  # fmt: skip
    return ", then ".join(words) or None
