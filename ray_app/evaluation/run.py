"""One evaluation: labels, a run (scored first where there is none), one pass over both, and the
result of what was found.

Everything that takes long can be interrupted: the same command scores on from what is committed,
and uses the same index again.

The source of an evaluation's labels (`labels_for`): a file, an index, a layout of the source, or
the run itself.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from ray_app.archives import Each
from ray_app.datasets.config import DatasetSource
from ray_app.datasets.index import build_index, read_info
from ray_app.datasets.label_reader import LabelIndex, Labels, open_labels
from ray_app.errors import ConfigError, ExitCode, resumable
from ray_app.evaluation import accumulate, data_faults, protocols
from ray_app.evaluation.assemble import Evaluation, assemble, write_result
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.join import KEYS, OWN, LabelledRows, own_labels, read_labels
from ray_app.evaluation.systems import systems_of
from ray_app.reports.evaluation.result import EvaluationResult
from ray_app.reports.format import counted
from ray_app.runs import CurrentRows, RunDirectory
from ray_app.scoring.config import ScoreConfig
from ray_app.storage import Store, strip_secrets, urls, with_s3_settings

INDEX, RUN = "index", "run"
_LOOKED_AT = 1000  # members of a source, for labels of its own, before any is scored
MANY_FILES = 64  # of 64 to 256 MiB each: more of them are read side by side by tasks


def labels_for(
    config: EvaluateConfig,
    protocol: protocols.Protocol | None,
    run: RunDirectory | None,
    out: Store,
) -> LabelledRows | None:
    """The labels that a config names, read; None where they are the run's own columns and there is
    no run yet.

    A layout, the config's or else the protocol's, labels the source of the run (or the config's
    own) into `out`/index, which is used again by the same evaluation. Raises ConfigError as labels
    and layouts do.
    """
    split = _split_of(config, protocol)
    layout = config.layout or (protocol.layout if protocol else None)
    if config.leave_out_faults and (config.labels or layout is None):
        raise ConfigError(
            "leave_out_faults: labels are taken as they are",
            hint="--layout NAME, or data index … --leave-out-faults",
        )
    if config.labels:
        return _read(open_labels(config.labels), config.key, split)
    if layout is None:
        return None if run is None else own_labels(run.store.url, split)
    arguments = config.arguments or (protocol.arguments if protocol and not config.layout else {})
    named: dict[str, Any] = {
        "layout": layout,
        "arguments": arguments,
        "leave_out_faults": config.leave_out_faults,
    }
    store = out.below(INDEX)
    build_index(
        DatasetSource(**named, **(_of_config(config) if run is None else _of_run(run))), store
    )
    return _read(LabelIndex(store.url), "image_id", split)


def _read(source: Labels, key: str | None, split: str | None) -> LabelledRows:
    labels = read_labels(source, key=key, split=split)
    if isinstance(source, LabelIndex) and (info := read_info(Store.open(source.place))):
        labels.faults = [
            *info.fault_lines(split),
            *data_faults.shared_by_splits(source.place, info),
        ]
    return labels


def check_joined(labels: LabelledRows, run: RunDirectory) -> list[str]:
    """What is odd about a join, in sentences. Raises ConfigError where no row is labelled, with one
    example of each side.
    """
    own = labels.key == OWN
    if not labels.joined and own:
        raise ConfigError(
            f"{run.store.url}: no row has a label of its own",
            hint="give --labels FILE, or --layout NAME where the source tells labels (touchstone data index --help)",
        )
    if not labels.joined:
        rows = f"the run has {labels.other}" if labels.other else "the run has no rows"
        raise ConfigError(
            f"{labels.name}: none of {counted(labels.distinct, 'label')} belongs to a row of {run.store.url}: "
            f"by {labels.key} the labels have {labels.unused_key}, {rows}",
            hint=_hint(labels.key),
        )
    remarks = []
    if labels.unused:
        example = f"{labels.key} {labels.unused_key}"
        remarks.append(
            f"{labels.unused:,} of {counted(labels.distinct, 'label')} without a row in the run, for example {example}."
        )
    if labels.others:
        remarks.append(
            f"{counted(labels.others, 'row')} without a label, {'' if own else 'left out; '}for example {labels.other_image}."
        )
    if labels.doubled:
        remarks.append(f"{counted(labels.doubled, 'label')} given more than once, counted once.")
    if labels.other_split:
        remarks.append(f"{counted(labels.other_split, 'label')} of other splits, left out.")
    return remarks


def _split_of(config: EvaluateConfig, protocol: protocols.Protocol | None) -> str | None:
    return config.split or (protocol.split if protocol else None)


def _of_config(config: EvaluateConfig) -> dict[str, Any]:
    score = config.score
    return {"at": config.at, "include": score.include, "exclude": score.exclude, "limit": score.limit, "columns": score.columns,
            "container_limits": score.container_limits}  # fmt: skip


def _of_run(run: RunDirectory) -> dict[str, Any]:
    """What the run was made of, by its identity."""
    identity = run.describe()["identity"]
    if not identity.get("source"):
        raise ConfigError(
            f"{run.store.url}: the run does not say what its source was", hint="give --labels"
        )
    usual = ScoreConfig()
    settings = {
        name: identity.get(name, getattr(usual, name))
        for name in ("include", "exclude", "limit", "columns", "container_limits")
    }
    return {"at": tuple(identity["source"]), **settings}


def _hint(key: str) -> str:
    others = ", ".join(name for name in KEYS if name != key)
    whole = "uris are joined whole, relative ones being relative to the labels file, and are not guessed from their ends; "
    return (
        f"{whole if key == 'uri' else ''}--key joins by {others} instead, where the labels have it"
    )


@dataclass(frozen=True)
class Evaluated:
    """How an evaluation ended. `exit_code` is TOO_MANY_BAD if scoring ended so."""

    result: EvaluationResult
    exit_code: ExitCode = ExitCode.DONE


@with_s3_settings
def evaluate(config: EvaluateConfig) -> Evaluated:
    """Evaluate a run, or a source that is scored into `out`/run first, and write metrics.json,
    metrics.csv, metrics.parquet, and report.html into `out`.

    Raises ConfigError (no labels, or labels of something else), and what scoring raises; a scoring
    that was interrupted is resumed by the same call.
    """
    with resumable(KeyboardInterrupt):
        return _evaluated(config)


def _evaluated(config: EvaluateConfig) -> Evaluated:
    protocol = protocols.load_protocol(config.protocol) if config.protocol else None
    config = _completed(config, protocol)
    if not config.at or not config.out:
        missing = (
            "nothing to evaluate"
            if not config.at
            else "no directory for the figures: --out DIR is missing"
        )
        raise ConfigError(missing, hint="touchstone evaluate RUN --labels FILE --out DIR")
    out = Store.open(config.out)
    run, code = _run_at(config), ExitCode.DONE
    if run is not None:
        _refuse_scoring(config, run)
    else:
        from ray_app.scoring.run import check_scoring

        check_scoring(_scoring(config, out))
    with contextlib.ExitStack() as stack:
        labels = labels_for(config, protocol, run, out)
        if labels is not None:
            stack.enter_context(labels)
        if run is None:
            run, code = _scored(config, out, own_labels=labels is None)
        labels = labels or stack.enter_context(
            own_labels(run.store.url, _split_of(config, protocol))
        )
        result = measure(config, protocol, run, labels)
    write_result(result, out)
    return Evaluated(result, code)


def measure(
    config: EvaluateConfig,
    protocol: protocols.Protocol | None,
    run: RunDirectory,
    labels: LabelledRows,
) -> EvaluationResult:
    """Join labels with a run and measure it; nothing is written."""
    systems = systems_of(
        run,
        threshold=protocol.threshold if protocol else None,
        strict=protocol.strict if protocol else True,
    )
    _print_progress("counting scores")
    columns = [*accumulate.COLUMNS, *([OWN] if protocol and protocol.traits else [])]
    _on_tasks(config, run, lambda each: labels.join(run, columns, systems=systems, each=each))
    unfinished = f"{run.store.url} is not finished: only what is scored so far is evaluated."
    warnings = [
        *([] if run.store.exists("summary.json") else [unfinished]),
        *check_joined(labels, run),
    ]
    for warning in warnings:
        _print_progress(warning)
    cells = accumulate.count_rows(labels, systems, most=config.sample)
    prompted = labels.tables(data_faults.PROMPTED.names)
    beside = data_faults.prompts_beside_images(
        prompted, partial(accumulate.decoded_images, run), config.clip
    )
    faults = (*labels.faults, *beside)
    found = Evaluation(run, labels, systems, cells, protocol, config, tuple(warnings), faults)
    return assemble(found, _print_progress)


def _completed(config: EvaluateConfig, protocol: protocols.Protocol | None) -> EvaluateConfig:
    """The config with a protocol's values for what is left open: source, detectors, ensemble,
    perturbations.
    """
    if protocol is None:
        return config
    score, given = config.score, config.score.model_fields_set
    changes: dict[str, Any] = {}
    if not score.detectors and "ensemble" not in given:
        named = (
            {"detectors": protocol.detectors}
            if protocol.detectors
            else {"ensemble": protocol.ensemble}
        )
        changes = {name: value for name, value in named.items() if value}
    if protocol.perturb and not score.perturb:
        changes["perturb"] = protocol.perturb
    return config.model_copy(
        update={"at": config.at or protocol.sources, "score": score.model_copy(update=changes)}
    )


def _run_at(config: EvaluateConfig) -> RunDirectory | None:
    """The run that `at` names; None where it names a source."""
    [first, *rest] = config.at
    if rest or "::" in first or urls.scheme_of(first) in ("http", "https", "hf"):
        return None
    run = RunDirectory.open(first)
    return run if run.exists() else None


def _refuse_scoring(config: EvaluateConfig, run: RunDirectory) -> None:
    """Raises ConfigError where detectors or perturbations are requested, and the run was made
    without.
    """
    given = (
        {"detectors", "ensemble", "perturb"} & config.score.model_fields_set
        if not config.protocol
        else set()
    )
    if any(getattr(config.score, name) for name in given):
        names = ", ".join(f"--{name.removesuffix('s')}" for name in sorted(given))
        raise ConfigError(
            f"{run.store.url} is a run, scored with {', '.join(run.describe()['detectors'])}; {names} would need its source",
            hint="give the source instead of the run; or `touchstone runs decide RUN --ensemble CARD` first",
        )


def _scored(
    config: EvaluateConfig, out: Store, *, own_labels: bool
) -> tuple[RunDirectory, ExitCode]:
    from ray_app.scoring.backlog import archive_of
    from ray_app.scoring.run import score_archive

    run, score = RunDirectory(out.below(RUN)), _scoring(config, out)
    if own_labels and not any(
        {"label", "label_name"} & item.input.keys()
        for item in islice(archive_of(score).beginning(), _LOOKED_AT)
    ):
        raise ConfigError(
            f"{', '.join(map(strip_secrets, config.at))}: neither a run nor a source with a column `label`",
            hint="give --labels FILE, or --layout NAME where the source tells labels (touchstone data index --help)",
        )
    return run, score_archive(score).exit_code


def _scoring(config: EvaluateConfig, out: Store) -> ScoreConfig:
    """How the source is scored first."""
    return config.score.model_copy(update={"source": config.at, "out": out.below(RUN).url})


def _on_tasks(config: EvaluateConfig, run: RunDirectory, work: Callable[[Each | None], Any]) -> Any:
    """The work, with tasks where they are requested or the run has many files."""
    if not (
        len(CurrentRows.read(run).files()) >= MANY_FILES if config.tasks is None else config.tasks
    ):
        return work(None)
    from ray_app.cluster.ray_cluster import cluster, on_ray

    with cluster(config.score.cluster):
        return work(on_ray)


def _print_progress(message: str) -> None:
    print(f"evaluate  {message}", file=sys.stderr, flush=True)
