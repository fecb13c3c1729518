"""Evaluate a run against labels (`evaluate`), and score the source of images first if needed.

Labels come from a file, an index of labelled images, the run itself, or a layout (`labels_for`). A
layout is a rule that derives labels from the paths or tables of the source. An interrupted
evaluation resumes with the same command. Files whose rows are stored are not scored again, and a
finished index of labels from a layout is reused.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from ray_app.archives import MapFunction
from ray_app.datasets.config import DatasetSource
from ray_app.datasets.index import build_index, read_info
from ray_app.datasets.label_reader import LabelIndex, Labels, open_labels
from ray_app.errors import ConfigError, ExitCode, resumable
from ray_app.evaluation import accumulate, data_faults, protocols
from ray_app.evaluation.assemble import Evaluation, assemble, write_result
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.join import INPUT_KEY, KEYS, LabelledRows, own_labels, read_labels
from ray_app.evaluation.systems import list_systems
from ray_app.reports.evaluation.result import EvaluationResult
from ray_app.reports.format import pluralize
from ray_app.runs import CurrentRows, RunDirectory
from ray_app.scoring.config import ScoreConfig
from ray_app.storage import Store, apply_s3_settings, strip_secrets, urls
from ray_app.storage.output_kinds import refuse_others

INDEX, RUN = "index", "run"
# Number of members of a source that are searched for a label column before scoring starts.
_MAX_SEARCHED_MEMBERS = 1000
# Runs with at least this many files, of 64 to 128 MiB each, are read by parallel Ray tasks.
MANY_FILES = 64


def labels_for(
    config: EvaluateConfig,
    protocol: protocols.Protocol | None,
    run: RunDirectory | None,
    out: Store,
) -> LabelledRows | None:
    """Read the labels that a config selects.

    The labels are in a file, in an index of labelled images, or in the run's own columns. A layout,
    a rule that derives labels from the paths or tables of a source, can also give them. The config
    or else the protocol names the layout. The layout is applied to the source of the run. If `run`
    is None, it is applied to the source that the config names. Labels from a layout are written to
    `out`/index, and reused if the evaluation is repeated. The result is None if the labels would be
    in the run's own columns, but `run` is None. Raises ConfigError if the labels or the layout are
    invalid, or `leave_out_faults` is set without a layout.
    """
    split = _select_split(config, protocol)
    layout = config.layout or (protocol.layout if protocol else None)
    if config.leave_out_faults and (config.labels or layout is None):
        raise ConfigError(
            "leave_out_faults needs a layout, but the labels come from a file, an index, or the run",
            hint="give --layout NAME, or build the index with `touchstone data index … --leave-out-faults`",
        )
    if config.labels:
        return _read_labels(open_labels(config.labels), config.key, split)
    if layout is None:
        return None if run is None else own_labels(run.store.url, split)
    arguments = config.arguments or (protocol.arguments if protocol and not config.layout else {})
    index_settings: dict[str, Any] = {
        "layout": layout,
        "arguments": arguments,
        "leave_out_faults": config.leave_out_faults,
    }
    store = out.subdir(INDEX)
    build_index(
        DatasetSource(
            **index_settings,
            **(_source_from_config(config) if run is None else _source_from_run(run)),
        ),
        store,
    )
    return _read_labels(LabelIndex(store.url), "image_id", split)


def _read_labels(source: Labels, key: str | None, split: str | None) -> LabelledRows:
    labels = read_labels(source, key=key, split=split)
    if isinstance(source, LabelIndex) and (info := read_info(Store.open(source.place))):
        labels.faults = [
            *info.fault_lines(split),
            *data_faults.describe_shared_images(source.place, info),
        ]
    return labels


def check_joined(labels: LabelledRows, run: RunDirectory) -> list[str]:
    """Check that rows of a run have labels, and return warnings about those that do not match.

    The warnings are, for example, on rows without a label and on repeated labels. Raises
    ConfigError if no row has a label.
    """
    is_own = labels.key == INPUT_KEY
    if not labels.joined and is_own:
        raise ConfigError(
            f"{run.store.url}: no row has a label in the run's own columns",
            hint="give --labels FILE, or --layout NAME if the source has labels (touchstone data index --help)",
        )
    if not labels.joined:
        rows = f"the run has {labels.other}" if labels.other else "the run has no rows"
        raise ConfigError(
            f"{labels.name}: none of {pluralize(labels.distinct, 'label')} matches a row of {run.store.url} by "
            f"{labels.key}; for example, the labels have {labels.unused_key}, {rows}",
            hint=_key_hint(labels.key),
        )
    warnings = []
    if labels.unused:
        example = f"{labels.key} {labels.unused_key}"
        warnings.append(
            f"{labels.unused:,} of {pluralize(labels.distinct, 'label')} without a row in the run, for example {example}."
        )
    if labels.others:
        warnings.append(
            f"{pluralize(labels.others, 'row')} without a label, {'' if is_own else 'left out; '}for example {labels.other_image}."
        )
    if labels.doubled:
        warnings.append(f"{pluralize(labels.doubled, 'label')} given more than once, counted once.")
    if labels.other_split:
        warnings.append(f"{pluralize(labels.other_split, 'label')} of other splits, left out.")
    return warnings


def _select_split(config: EvaluateConfig, protocol: protocols.Protocol | None) -> str | None:
    return config.split or (protocol.split if protocol else None)


def _source_from_config(config: EvaluateConfig) -> dict[str, Any]:
    score = config.score
    return {"at": config.at, "include": score.include, "exclude": score.exclude, "limit": score.limit, "columns": score.columns,
            "container_limits": score.container_limits}  # fmt: skip


def _source_from_run(run: RunDirectory) -> dict[str, Any]:
    """Return the source of the run and how it was listed, from the run's identity."""
    identity = run.describe()["identity"]
    if not identity.get("source"):
        raise ConfigError(
            f"{run.store.url}: the run does not record its source", hint="give --labels FILE"
        )
    defaults = ScoreConfig()
    settings = {
        name: identity.get(name, getattr(defaults, name))
        for name in ("include", "exclude", "limit", "columns", "container_limits")
    }
    return {"at": tuple(identity["source"]), **settings}


def _key_hint(key: str) -> str:
    others = ", ".join(name for name in KEYS if name != key)
    uri_rule = (
        "use full URIs, or paths relative to the labels file, because partial paths do not match; "
    )
    return f"{uri_rule if key == 'uri' else ''}add --key to join by {others} if the labels have such a column"


@dataclass(frozen=True)
class EvaluationOutcome:
    """The metrics of an evaluation, and the exit status of its command.

    The status is TOO_MANY_BAD if the source was scored first and too many files could not be
    scored, else DONE.
    """

    result: EvaluationResult
    exit_code: ExitCode = ExitCode.DONE


@apply_s3_settings
def evaluate(config: EvaluateConfig) -> EvaluationOutcome:
    """Evaluate a run against labels, or a source of images that is first scored into `out`/run.

    The files metrics.json, metrics.csv, metrics.parquet, and report.html are written into `out`. If
    scoring is interrupted, the same call resumes it. Raises ConfigError if the settings or the
    protocol are invalid, the labels do not match the run, or `out` has results of another kind of
    command.
    """
    with resumable(KeyboardInterrupt):
        return _evaluate(config)


def _evaluate(config: EvaluateConfig) -> EvaluationOutcome:
    protocol = protocols.load_protocol(config.protocol) if config.protocol else None
    config = _apply_protocol(config, protocol)
    if not config.at or not config.out:
        reason = (
            "no run or source to evaluate"
            if not config.at
            else "no output directory: --out DIR is missing"
        )
        raise ConfigError(reason, hint="run touchstone evaluate RUN --labels FILE --out DIR")
    out = Store.open(config.out)
    refuse_others(out, "metrics.parquet")
    run, code = _open_run(config), ExitCode.DONE
    if run is not None:
        _refuse_scoring(config, run)
    else:
        from ray_app.scoring.run import check_scoring

        check_scoring(_score_config(config, out))
    with contextlib.ExitStack() as stack:
        labels = labels_for(config, protocol, run, out)
        if labels is not None:
            stack.enter_context(labels)
        if run is None:
            run, code = _score_source(config, out, own_labels=labels is None)
        labels = labels or stack.enter_context(
            own_labels(run.store.url, _select_split(config, protocol))
        )
        result = measure(config, protocol, run, labels)
    write_result(result, out)
    return EvaluationOutcome(result, code)


def measure(
    config: EvaluateConfig,
    protocol: protocols.Protocol | None,
    run: RunDirectory,
    labels: LabelledRows,
) -> EvaluationResult:
    """Join labels with a run and compute all metrics, without writing anything.

    Raises ConfigError if no row of the run has a label.
    """
    systems = list_systems(
        run,
        threshold=protocol.threshold if protocol else None,
        strict=protocol.strict if protocol else True,
    )
    _print_progress("counting scores")
    columns = [*accumulate.COLUMNS, *([INPUT_KEY] if protocol and protocol.traits else [])]
    _run_with_tasks(
        config, run, lambda map_fn: labels.join(run, columns, systems=systems, map_fn=map_fn)
    )
    unfinished = f"{run.store.url} is not finished: only the images scored so far are evaluated."
    warnings = [
        *([] if run.store.exists("summary.json") else [unfinished]),
        *check_joined(labels, run),
    ]
    for warning in warnings:
        _print_progress(warning)
    cells = accumulate.count_rows(labels, systems, max_sample=config.sample)
    prompted = labels.tables(data_faults.PROMPTED.names)
    prompt_faults = data_faults.compare_prompts(
        prompted, partial(accumulate.decode_run_images, run), config.clip
    )
    faults = (*labels.faults, *prompt_faults)
    evaluation = Evaluation(run, labels, systems, cells, protocol, config, tuple(warnings), faults)
    return assemble(evaluation, _print_progress)


def _apply_protocol(config: EvaluateConfig, protocol: protocols.Protocol | None) -> EvaluateConfig:
    """Fill the source, detectors, ensemble, and perturbations left open from a protocol."""
    if protocol is None:
        return config
    score, set_fields = config.score, config.score.model_fields_set
    changes: dict[str, Any] = {}
    if not score.detectors and "ensemble" not in set_fields:
        selection = (
            {"detectors": protocol.detectors}
            if protocol.detectors
            else {"ensemble": protocol.ensemble}
        )
        changes = {name: value for name, value in selection.items() if value}
    if protocol.perturb and not score.perturb:
        changes["perturb"] = protocol.perturb
    return config.model_copy(
        update={"at": config.at or protocol.sources, "score": score.model_copy(update=changes)}
    )


def _open_run(config: EvaluateConfig) -> RunDirectory | None:
    """Return the run that `at` names, or None if `at` names a source."""
    [first, *others] = config.at
    if others or "::" in first or urls.get_scheme(first) in ("http", "https", "hf"):
        return None
    run = RunDirectory.open(first)
    return run if run.exists() else None


def _refuse_scoring(config: EvaluateConfig, run: RunDirectory) -> None:
    """Raise ConfigError for settings that an existing run would have to be scored with.

    These are detectors, an ensemble, and perturbations.
    """
    requested = (
        {"detectors", "ensemble", "perturb"} & config.score.model_fields_set
        if not config.protocol
        else set()
    )
    if any(getattr(config.score, name) for name in requested):
        names = ", ".join(f"--{name.removesuffix('s')}" for name in sorted(requested))
        raise ConfigError(
            f"{names} cannot be used with {run.store.url}, because it is a run, already scored with {', '.join(run.describe()['detectors'])}",
            hint="give the source instead of the run, or run `touchstone runs decide RUN --ensemble CARD` first",
        )


def _score_source(
    config: EvaluateConfig, out: Store, *, own_labels: bool
) -> tuple[RunDirectory, ExitCode]:
    from ray_app.scoring.backlog import open_archive
    from ray_app.scoring.run import score_archive

    run, score = RunDirectory(out.subdir(RUN)), _score_config(config, out)
    if own_labels and not any(
        {"label", "label_name"} & item.input.keys()
        for item in islice(open_archive(score).beginning(), _MAX_SEARCHED_MEMBERS)
    ):
        raise ConfigError(
            f"{', '.join(map(strip_secrets, config.at))}: neither a run nor a source with a column `label`",
            hint="give --labels FILE, or --layout NAME if the source has labels (touchstone data index --help)",
        )
    return run, score_archive(score).exit_code


def _score_config(config: EvaluateConfig, out: Store) -> ScoreConfig:
    """Return the settings for scoring the source."""
    return config.score.model_copy(update={"source": config.at, "out": out.subdir(RUN).url})


def _run_with_tasks(
    config: EvaluateConfig, run: RunDirectory, work: Callable[[MapFunction | None], Any]
) -> Any:
    """Run `work` with Ray tasks if they are requested or the run has many files."""
    if not (
        len(CurrentRows.read(run).files()) >= MANY_FILES if config.tasks is None else config.tasks
    ):
        return work(None)
    from ray_app.cluster.ray_cluster import cluster, map_on_ray

    with cluster(config.score.cluster):
        return work(map_on_ray)


def _print_progress(message: str) -> None:
    print(f"evaluate  {message}", file=sys.stderr, flush=True)
