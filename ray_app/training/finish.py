"""The results of a finished training: `finish` judges the best checkpoint once more and writes card, figures, scores and report.

Every file can be written again by the same command; `metrics.json` comes last and says that all is there. `push` copies the detector to
any fsspec URL or to the Hugging Face hub.
"""

import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.detectors.card import Calibration
from ray_app.errors import ClusterError, ConfigError, StorageError, describe_error
from ray_app.metrics import FIGURES, fit_platt
from ray_app.reports.training import TRAINING_SCHEMA, DataFindings, Figures, TrainingFacts, render_training_report
from ray_app.storage import Store, strip_secrets
from ray_app.training import checkpoints, run_directory, validate
from ray_app.training.detector import load_trained
from ray_app.training.export import export
from ray_app.training.job import TrainingJob

METRICS = "metrics.json"
PROBE = "probe.json"  # of a linear probe alone
MOST_POINTS = 500  # of a curve in the report
# What is for others. The run's own state (train.json, checkpoints, scores, which may name places and people) stays where it is.
_CARDS = ("card.yaml", "identifier.yaml", "describer.yaml")
PUSHED = ("config.json", "preprocessor_config.json", "model.onnx", "metrics.json", "report.html", *_CARDS)
_WEIGHTS = (".safetensors", ".pth", ".pt")
_HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)/?")


def best_checkpoint(job: TrainingJob) -> tuple[checkpoints.CheckpointEntry, float]:
    """The kept checkpoint that is best by the recipe's metric, with its value; one whose judging was lost is judged now."""
    metric = job.config.validation.metric
    best: tuple[checkpoints.CheckpointEntry, float] | None = None
    for one in checkpoints.kept(job.out):
        if one.step not in job.milestones and not one.metrics.get("finished"):
            continue
        figures: Mapping[str, Any] | None = one.metrics
        if metric not in one.metrics:
            figures = next((found for found in validate.validations(job.out) if found["step"] == one.step), None)
        figures = figures or validate.on_checkpoint(job, one.name, validate.validate_folder)
        value = figures.get(metric)
        if value is not None and (best is None or validate.is_better(metric, value, best[1])):
            best = one, value
    if best is None:
        raise ClusterError(f"no checkpoint has a value of {metric}", hint="has the validation split what it needs? choose another metric")
    return best


def finish(job: TrainingJob, findings: Mapping[str, Any], claim: Mapping[str, Any]) -> dict[str, Any]:
    """Choose, judge, calibrate, export, report; returns the content of `metrics.json`. `claim` is that of `train.json`."""
    best, value = best_checkpoint(job)
    verdicts: dict[str, validate.SplitEvaluation] = validate.on_checkpoint(job, best.name, validate.evaluate_splits)
    for split, verdict in verdicts.items():
        rows = job.rows(split).take(pa.array(verdict.judged.rows))
        labels = {name: rows["input"].combine_chunks().field(name) for name in ("label", "generator")}
        job.out.write(f"scores/{split}.parquet", rows_file(rows, {**labels, "score": pa.array(verdict.judged.scores)}))
    calibration, why_not = calibrated(verdicts["validation"].judged)
    history = list(run_directory.read_history(job.out, run_directory.HISTORY))
    facts = TrainingFacts(
        schema=TRAINING_SCHEMA,
        name=job.config.name,
        title=job.config.title,
        out=job.out.url,
        metric=job.config.validation.metric,
        best_step=best.step,
        best_value=value,
        steps=max((line["step"] + 1 for line in history), default=best.step),
        seconds=round(sum(line["wait_s"] + line["compute_s"] for line in history), 2),
        wait_s_per_step=round(float(np.mean([line["wait_s"] for line in history])), 5) if history else None,
        unreadable=sum(1 for _ in run_directory.read_history(job.out, run_directory.UNREADABLE)),
        calibration=type(calibration)(**calibration.model_dump()) if calibration else None,  # anew, so that its kind is written too
        calibration_note=why_not,
        validation=Figures(**verdicts["validation"].figures),
        test=Figures(**verdicts["test"].figures) if "test" in verdicts else None,
        validations=tuple(validate.validations(job.out)),
        data=DataFindings(**findings),
        recipe=run_directory.recipe_of(job.config),
        environment={
            **claim["environment"],
            "device": verdicts["validation"].device,
            "workers": job.layout.workers,
            # Going on elsewhere may change it; a head that was fitted on features has no history.
            **({"precision": ", then ".join(dict.fromkeys(line["precision"] for line in history))} if history else {}),
        },
        probe=json.loads(job.out.read(PROBE)) if job.out.exists(PROBE) else None,
    )
    with checkpoints.fetched(job.out, best.name) as folder:
        card = export(job.out, job.config, job.card, load_trained(job.config, job.card, folder), facts)
    named = {"name": card.name, "licence": card.licence, "terms": card.terms, "weights": card.weights.sha256}
    facts = facts.model_copy(update={"card": named})
    write_curves(job.out, history, facts.validations)
    mistakes = [mistake for verdict in verdicts.values() for mistake in verdict.mistakes]
    content = facts.written()
    page = render_training_report({**content, "history": thinned(history), "mistakes": mistakes})
    job.out.write("report.html", page.encode())
    job.out.write(METRICS, json.dumps(content, indent=2, ensure_ascii=False).encode())
    return content


def calibrated(judged: validate.Judged) -> tuple[Calibration | None, str | None]:
    """Platt scaling on the validation split, or None and why there is none: a network that learned nothing cannot be calibrated."""
    try:
        return fit_platt(judged.scores, judged.labels), None
    except ValueError as error:
        return None, str(error)


def thinned(history: Sequence[Mapping[str, Any]], most: int = MOST_POINTS) -> list[dict[str, float]]:
    """At most so many points of a curve, each the mean of the steps around it."""
    keys = ("step", "loss", "rate", "gradient_norm", "images_per_s")
    parts = np.array_split(np.arange(len(history)), min(most, len(history))) if history else []
    return [
        {"step": int(history[part[0]]["step"]), **{key: float(np.mean([history[i][key] for i in part])) for key in keys[1:]}}
        for part in parts
    ]


def rows_file(rows: pa.Table, columns: Mapping[str, pa.Array]) -> bytes:
    """A Parquet file of some labelled rows: their places (`image_id`, `uri`, `member`) and further `columns` of the same length."""
    buffer = io.BytesIO()
    place = {name: rows[name] for name in ("image_id", "uri", "member")}
    pq.write_table(pa.table({**place, **columns}), buffer, compression="zstd")
    return buffer.getvalue()


def write_curves(out: Store, history: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]]) -> None:
    """`metrics.jsonl`, the whole history in one file, `unreadable.jsonl` likewise, and the validations for TensorBoard."""
    for name, lines in (("metrics", history), ("unreadable", run_directory.read_history(out, run_directory.UNREADABLE))):
        out.write(f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    figures = [{"step": one["step"], **{name: one[name] for name in FIGURES if one.get(name) is not None}} for one in judged]
    if figures:
        run_directory.write_events(out, 0, figures, prefix="validation")


def push(folder: str | Path, target: str) -> str:
    """Copy card, weights, metrics and report from a training's folder (any fsspec URL) to `target`; returns where they are now.

    `target`: any fsspec URL, where the card is written last, or hf://ORGANISATION/NAME, where all are one commit. A repository that is not
    there is made, and is private: who pushed it decides when others see it. The hub is that of $HF_ENDPOINT, with the login that
    huggingface_hub finds. Raises ConfigError for a folder without a card and a target that is none, StorageError where it cannot be done.
    """
    source = Store.open(str(folder))
    names = [name for name in source.names("") if name in PUSHED or name.endswith(_WEIGHTS)]
    if not set(names) & set(_CARDS):
        raise ConfigError(f"{source.url}: nothing to push: no card.yaml", hint="touchstone train writes it when a training ends")
    names.sort(key=lambda name: name in _CARDS)
    with checkpoints.local_folder(source, names) as here:
        if target.startswith("hf://"):
            return _to_hub(here, names, target)
        store = Store.open(target)
        for name in names:
            store.write_file(name, here / name)
    return store.url


def _to_hub(folder: Path, names: list[str], target: str) -> str:
    import huggingface_hub  # a third of a second

    place = _HUB.fullmatch(target)
    if place is None:
        raise ConfigError(f"{strip_secrets(target)}: not a repository of models on the hub", hint="hf://ORGANISATION/NAME")
    try:
        hub: Any = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        hub.create_repo(place["repo"], private=True, exist_ok=True)
        made = hub.upload_folder(
            repo_id=place["repo"], folder_path=folder, allow_patterns=names, commit_message="Put there by touchstone train --push"
        )
    except Exception as error:  # the hub's own errors, its HTTP library's and its uploader's
        raise StorageError(
            f"cannot push to {target}: {describe_error(error)}",
            hint="hf auth login, or set HF_TOKEN to one that may write there; what was trained is safe where it is",
        ) from error
    return str(made.commit_url)
