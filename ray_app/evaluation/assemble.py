"""Measure everything that an evaluation is of (`assemble`), and write its files (`write_result`)."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app import __version__
from ray_app.errors import ConfigError
from ray_app.evaluation import accumulate, distribution, identification, protocol_rows
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.data_facts import describe_data
from ray_app.evaluation.generator_names import names_of
from ray_app.evaluation.interval_sample import Intervals
from ray_app.evaluation.join import LabelledRows
from ray_app.evaluation.localization import localization_of_run
from ray_app.evaluation.prompts import prompts_of
from ray_app.evaluation.protocols import PLAIN, IdentificationRules, Protocol, traits_of
from ray_app.evaluation.system_metrics import (
    SystemOptions,
    generators_of,
    measure_system,
    paired_tests,
    scores_of,
)
from ray_app.evaluation.systems import Systems
from ray_app.metrics.table import COLUMNS, MetricRow, MetricsTable, rows_of
from ray_app.reports.evaluation.result import (
    DATA,
    PROMPTS,
    SCHEMA,
    TABLE,
    EvaluationMeta,
    EvaluationResult,
    GroupInfo,
    IdentificationInfo,
    LabelInfo,
    PromptInfo,
    RunInfo,
)
from ray_app.reports.format import no_formula
from ray_app.runs import RunDirectory, fingerprint
from ray_app.storage import Store, strip_all_secrets, strip_secrets


@dataclass(frozen=True)
class Evaluation:
    """A run with its labels, and what a pass over both has gathered.

    Attributes:
        run: The run.
        labels: The labels, joined with its rows.
        systems: Its detectors and its ensemble.
        cells: What was read of the labelled rows.
        protocol: The protocol; None if there is none.
        config: The settings.
        warnings: What to beware of in the labels, in sentences.
        faults: Known faults of the data, in sentences.
    """

    run: RunDirectory
    labels: LabelledRows
    systems: Systems
    cells: accumulate.Cells
    protocol: Protocol | None
    config: EvaluateConfig
    warnings: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


def assemble(
    found: Evaluation, progress: Callable[[str], object] = lambda _: None
) -> EvaluationResult:
    """Measure a run against its labels.

    The scores of one detector at a time are in memory.

    Args:
        found: The run, its labels, and what was read of both.
        progress: Called with what is being done.
    """
    config, protocol, cells = found.config, found.protocol, found.cells
    described = found.run.describe()
    progress("metrics")
    data = describe_data(cells, config.seed)
    rows: list[MetricRow] = [MetricRow("", "", DATA, "shortcut_auc", data.shortcut_auc)]
    intervals = Intervals(config.intervals, cells.sample, seed=config.seed)
    traits = {
        name: traits_of(found.labels.tables, column)
        for name, column in (protocol.traits if protocol else {}).items()
    }
    options = SystemOptions(
        intervals,
        generators_of(cells, traits),
        [one for one in found.systems.all if one.name in found.systems.members],
        described["identity"],
    )
    progress("masks and texts")
    localized = localization_of_run(
        found.run,
        found.labels.tables,
        rules=protocol.localization if protocol else None,
        pictures=config.thumbnails,
        guard=found.labels.guard,
    )
    rows += localized.rows if localized else []
    names = names_of(described)
    groups_by, groups = distribution.divide_generators(protocol, names, options.generators)
    progress("tests and tables")
    lines = protocol_rows.lines_of(protocol, options.generators)
    infos, curves = [], {}
    for system in found.systems.all:
        scores = scores_of(system, cells)
        measured = measure_system(scores, cells, options)
        rows += measured.rows
        own = MetricsTable(tuple(row for row in rows if row.system == system.name))
        table = protocol_rows.measure_rows(protocol, lines, scores, measured.info, own, options)
        rows += rows_of(table.rows | table.footers, system.name, scope=TABLE)
        rows += distribution.measure_groups(groups, scores, measured.info.generators)
        infos.append(measured.info)
        curves[system.name] = measured.curves
    binary = {info.name: info.output == "binary" for info in infos}
    paired, differences = paired_tests(cells.sample, found.systems.all, binary, config.intervals)
    rows += differences
    named, prompts = _measure_names(found, groups, rows)
    meta = EvaluationMeta(
        title=config.title or (protocol.title if protocol else _named_after(found.run.store.url)),
        version=__version__,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=strip_all_secrets(config.model_dump(mode="json", exclude_defaults=True)),
        label_warnings=found.warnings,
        data_warnings=data.warnings,
        faults=found.faults,
        run=_describe_run(found.run, described),
        labels=_describe_labels(found.labels),
        protocol=protocol.info if protocol else None,
        data=data.info,
        intervals=intervals.facts,
        systems=tuple(infos),
        table=tuple(protocol_rows.describe_rows(lines, infos)),
        footers=tuple(one.name for one in (protocol or PLAIN).footers),
        reference=protocol.published if protocol else (),
        paired=tuple(paired),
        localization=localized.info if localized else None,
        identification=tuple(named),
        prompts=prompts,
        groups=tuple(groups),
        groups_by=groups_by,
    )
    mistakes = accumulate.with_thumbnails(cells.mistakes, found.run, wanted=config.thumbnails)
    overlays = tuple(localized.overlays) if localized else ()
    return EvaluationResult(meta, MetricsTable(tuple(rows)), curves, tuple(mistakes), overlays)


def _measure_names(
    found: Evaluation, groups: Sequence[GroupInfo], rows: list[MetricRow]
) -> tuple[list[IdentificationInfo], PromptInfo | None]:
    """Add the metrics of predicted generators and prompts to the rows. Without any predictions the
    rows of the run are not read again for them.
    """
    protocol, predicted = found.protocol, found.cells.predicted
    rules = (protocol.identification if protocol else None) or IdentificationRules()
    names = names_of(found.run.describe())
    answers = (
        identification.collect_answers(found.labels.tables, names)
        if names.classes is not None or predicted["predicted_generator"]
        else None
    )
    prompts = (
        prompts_of(
            found.labels.tables,
            found.run,
            clip=found.config.clip,
            regenerated=found.config.regenerated,
        )
        if predicted["predicted_prompt"]
        else None
    )
    named: list[IdentificationInfo] = []
    if answers:
        named, measured = identification.measure_answers(
            answers, rules=rules, missing=found.labels.unused
        )
        rows += measured
    if prompts:
        rows += rows_of(prompts.figures, scope=PROMPTS)
    for group in groups:
        if answers:
            figures = identification.measure_group(answers, group.generators, rules.top_k)
            rows += rows_of(figures, scope=group.scope)
        if prompts:
            rows += rows_of(prompts.of(group.generators), scope=group.scope)
    return named, prompts.info if prompts else None


def write_result(result: EvaluationResult, out: Store) -> None:
    """Write `metrics.json`, `metrics.csv`, `metrics.parquet`, and `report.html`.

    Raises:
        ValueError: A number is not finite, which no metric is.
    """
    from ray_app.reports.evaluation.page import render_evaluation

    content = json.dumps(result.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    out.write("metrics.json", content.encode())
    out.write("metrics.csv", metrics_csv(result.metrics).encode())
    sink = pa.BufferOutputStream()
    pq.write_table(result.metrics.to_arrow(), sink)
    out.write("metrics.parquet", sink.getvalue().to_pybytes())
    out.write("report.html", render_evaluation(result).encode())


def read_result(place: str) -> EvaluationResult:
    """Return the evaluation in a directory, without curves and pictures.

    Args:
        place: The directory that `write_result` wrote; a path or an fsspec URL.

    Raises:
        ConfigError: There is no evaluation, or an earlier version wrote it.
    """
    store, name = Store.open(place), strip_secrets(place)
    try:
        content = json.loads(store.read("metrics.json"))
    except FileNotFoundError:
        raise ConfigError(
            f"{name} has no metrics.json", hint="give a directory of touchstone evaluate"
        ) from None
    if content.get("schema") != SCHEMA:
        raise ConfigError(
            f"{name}/metrics.json is of another version", hint="evaluate the run again"
        )
    return EvaluationResult.from_dict(content)


def metrics_csv(metrics: MetricsTable) -> str:
    """Return the table as CSV; a text that a spreadsheet would take for a formula has a ' before
    it.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row in metrics.to_dicts():
        writer.writerow(
            no_formula(row[name]) if isinstance(row[name], str) else row[name] for name in COLUMNS
        )
    return stream.getvalue()


def _describe_run(run: RunDirectory, described: Mapping[str, Any]) -> RunInfo:
    return RunInfo(
        url=run.store.url,
        fingerprint=fingerprint(described["identity"]),
        created_at=described["created_at"],
        detectors=tuple(described["detectors"]),
        ensemble=(described.get("ensemble") or {}).get("name"),
        identity=described["identity"],
    )


def _describe_labels(labels: LabelledRows) -> LabelInfo:
    return LabelInfo(
        name=strip_secrets(labels.name),
        key=labels.key,
        rows=labels.rows,
        joined=labels.joined,
        without_row=labels.unused,
        rows_without_label=labels.others,
        doubled=labels.doubled,
        other_split=labels.other_split,
    )


def _named_after(url: str) -> str:
    """A run by the last of its folders that has a name of its own: one that was scored for an
    evaluation is called `run`.
    """
    names = [name for name in strip_secrets(url).split("/") if name and name != "run"]
    return f"Evaluation of {names[-1] if names else 'a run'}"
