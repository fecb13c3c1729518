"""Compute all metrics of a labelled run (`assemble`), and read or write the result.

The files of a result (`write_result`, `read_result`) are metrics.json, metrics.csv,
metrics.parquet, and report.html.
"""

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
from ray_app.evaluation.generator_names import read_names
from ray_app.evaluation.interval_sample import Intervals
from ray_app.evaluation.join import LabelledRows
from ray_app.evaluation.localization import measure_localization
from ray_app.evaluation.prompts import collect_prompts
from ray_app.evaluation.protocols import PLAIN, IdentificationRules, Protocol, read_traits
from ray_app.evaluation.system_metrics import (
    SystemOptions,
    collect_scores,
    list_generators,
    measure_system,
    paired_tests,
)
from ray_app.evaluation.systems import Systems
from ray_app.metrics.table import COLUMNS, MetricRow, MetricsTable, build_rows
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
from ray_app.reports.format import escape_formula
from ray_app.runs import RunDirectory, fingerprint
from ray_app.storage import Store, strip_all_secrets, strip_secrets


@dataclass(frozen=True)
class Evaluation:
    """The input of `assemble`: a run, its labels, and counts and scores of the labelled images.

    Attributes:
        run: The run.
        labels: The labels, joined with the run's rows.
        systems: The run's detectors and ensemble.
        cells: Counts and scores of the labelled rows.
        protocol: The rules for reproducing a published table; None for the plain rules.
        config: The settings of the evaluation.
        warnings: Sentences on labels and rows that do not match, to show with the result.
        faults: Sentences on known faults of the labelled data, such as prompts of other images.
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
    evaluation: Evaluation, progress: Callable[[str], object] = lambda _: None
) -> EvaluationResult:
    """Compute all metrics of a run against its labels, and return the result of the evaluation.

    Only the scores of one detector or ensemble are in memory at a time.

    Args:
        evaluation: The run, its labels, and the labelled rows.
        progress: Called with the name of each step.

    Returns:
        The metrics, with curves, mistakes, and overlays of masks, to be written by `write_result`.
    """
    config, protocol, cells = evaluation.config, evaluation.protocol, evaluation.cells
    run_info = evaluation.run.describe()
    progress("preparing metrics")
    data = describe_data(cells, config.seed)
    rows: list[MetricRow] = [MetricRow("", "", DATA, "shortcut_auc", data.shortcut_auc)]
    intervals = Intervals(config.intervals, cells.sample, seed=config.seed)
    traits = {
        name: read_traits(evaluation.labels.tables, column)
        for name, column in (protocol.traits if protocol else {}).items()
    }
    options = SystemOptions(
        intervals,
        list_generators(cells, traits),
        [system for system in evaluation.systems.all if system.name in evaluation.systems.members],
        run_info["identity"],
    )
    progress("measuring masks")
    localized = measure_localization(
        evaluation.run,
        evaluation.labels.tables,
        rules=protocol.localization if protocol else None,
        has_overlays=config.thumbnails,
        guard=evaluation.labels.guard,
    )
    rows += localized.rows if localized else []
    names = read_names(run_info)
    groups_by, groups = distribution.divide_generators(protocol, names, options.generators)
    progress("measuring systems and tables")
    lines = protocol_rows.list_lines(protocol, options.generators)
    infos, curves = [], {}
    for system in evaluation.systems.all:
        scores = collect_scores(system, cells)
        measured = measure_system(scores, cells, options)
        rows += measured.rows
        system_metrics = MetricsTable(tuple(row for row in rows if row.system == system.name))
        table = protocol_rows.measure_rows(
            protocol, lines, scores, measured.info, system_metrics, options
        )
        rows += build_rows(table.rows | table.footers, system.name, scope=TABLE)
        rows += distribution.measure_groups(groups, scores, measured.info.generators)
        infos.append(measured.info)
        curves[system.name] = measured.curves
    binary = {info.name: info.output == "binary" for info in infos}
    paired, differences = paired_tests(
        cells.sample, evaluation.systems.all, binary, config.intervals
    )
    rows += differences
    identifications, prompts = _measure_names(evaluation, groups, rows)
    meta = EvaluationMeta(
        title=config.title
        or (protocol.title if protocol else _make_title(evaluation.run.store.url)),
        version=__version__,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=strip_all_secrets(config.model_dump(mode="json", exclude_defaults=True)),
        label_warnings=evaluation.warnings,
        data_warnings=data.warnings,
        faults=evaluation.faults,
        run=_describe_run(evaluation.run, run_info),
        labels=_describe_labels(evaluation.labels),
        protocol=protocol.info if protocol else None,
        data=data.info,
        intervals=intervals.facts,
        systems=tuple(infos),
        table=tuple(protocol_rows.describe_rows(lines, infos)),
        footers=tuple(footer.name for footer in (protocol or PLAIN).footers),
        reference=protocol.published if protocol else (),
        paired=tuple(paired),
        localization=localized.info if localized else None,
        identification=tuple(identifications),
        prompts=prompts,
        groups=tuple(groups),
        groups_by=groups_by,
    )
    mistakes = accumulate.add_thumbnails(
        cells.mistakes, evaluation.run, has_thumbnails=config.thumbnails
    )
    overlays = tuple(localized.overlays) if localized else ()
    return EvaluationResult(meta, MetricsTable(tuple(rows)), curves, tuple(mistakes), overlays)


def _measure_names(
    evaluation: Evaluation, groups: Sequence[GroupInfo], rows: list[MetricRow]
) -> tuple[list[IdentificationInfo], PromptInfo | None]:
    """Add the metrics of predicted generators and prompts to the rows.

    If nothing was predicted, the rows of the run are not read again.
    """
    protocol, predicted = evaluation.protocol, evaluation.cells.predicted
    rules = (protocol.identification if protocol else None) or IdentificationRules()
    names = read_names(evaluation.run.describe())
    answers = (
        identification.collect_answers(evaluation.labels.tables, names)
        if names.classes is not None or predicted["predicted_generator"]
        else None
    )
    prompts = (
        collect_prompts(
            evaluation.labels.tables,
            evaluation.run,
            clip=evaluation.config.clip,
            regenerated=evaluation.config.regenerated,
        )
        if predicted["predicted_prompt"]
        else None
    )
    infos: list[IdentificationInfo] = []
    if answers:
        infos, answer_rows = identification.measure_answers(
            answers, rules=rules, missing=evaluation.labels.unused
        )
        rows += answer_rows
    if prompts:
        rows += build_rows(prompts.figures, scope=PROMPTS)
    for group in groups:
        if answers:
            metrics = identification.measure_group(answers, group.generators, rules.top_k)
            rows += build_rows(metrics, scope=group.scope)
        if prompts:
            rows += build_rows(prompts.measure(group.generators), scope=group.scope)
    return infos, prompts.info if prompts else None


def write_result(result: EvaluationResult, out: Store) -> None:
    """Write `metrics.json`, `metrics.csv`, `metrics.parquet`, and `report.html` into `out`.

    Raises:
        ValueError: A metric is not finite.
    """
    from ray_app.reports.evaluation.page import render_evaluation

    content = json.dumps(result.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    out.write("metrics.json", content.encode())
    out.write("metrics.csv", metrics_csv(result.metrics).encode())
    sink = pa.BufferOutputStream()
    pq.write_table(result.metrics.to_arrow(), sink)
    out.write("metrics.parquet", sink.getvalue().to_pybytes())
    out.write("report.html", render_evaluation(result).encode())


def read_result(url: str) -> EvaluationResult:
    """Read the result of an evaluation from its directory.

    Only the metrics and facts are read. Curves and images are left empty.

    Args:
        url: Path or fsspec URL of a directory that `write_result` wrote.

    Returns:
        The result.

    Raises:
        ConfigError: The directory has no evaluation, or another version wrote it.
    """
    store, name = Store.open(url), strip_secrets(url)
    try:
        content = json.loads(store.read("metrics.json"))
    except FileNotFoundError:
        raise ConfigError(
            f"{name} has no metrics.json", hint="give a directory that `touchstone evaluate` wrote"
        ) from None
    if content.get("schema") != SCHEMA:
        raise ConfigError(
            f"{name}/metrics.json has schema {content.get('schema')}, but this version reads only {SCHEMA}",
            hint="evaluate the run again",
        )
    return EvaluationResult.from_dict(content)


def metrics_csv(metrics: MetricsTable) -> str:
    """Return the metrics table as the text of a CSV file.

    A cell of text that a spreadsheet would treat as a formula gets an apostrophe as its prefix.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row in metrics.to_dicts():
        writer.writerow(
            escape_formula(row[name]) if isinstance(row[name], str) else row[name]
            for name in COLUMNS
        )
    return stream.getvalue()


def _describe_run(run: RunDirectory, run_info: Mapping[str, Any]) -> RunInfo:
    return RunInfo(
        url=run.store.url,
        fingerprint=fingerprint(run_info["identity"]),
        created_at=run_info["created_at"],
        detectors=tuple(run_info["detectors"]),
        ensemble=(run_info.get("ensemble") or {}).get("name"),
        identity=run_info["identity"],
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


def _make_title(url: str) -> str:
    """Return a title from the name of the run's folder.

    A run that was scored for an evaluation is in a folder called `run`, so its parent names it.
    """
    names = [name for name in strip_secrets(url).split("/") if name and name != "run"]
    return f"Evaluation of {names[-1] if names else 'a run'}"
