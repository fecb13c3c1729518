"""From a finished training to what is handed out: the best checkpoint judged once more, the card, figures, scores and the report.

Every file can be written again by the same command; `metrics.json` comes last and says that all is there.
"""

import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.detectors.cards import Calibration, DetectorCard
from ray_app.errors import ClusterError
from ray_app.metrics import FIGURES, fit_platt
from ray_app.reports.training_report import render_training_report
from ray_app.storage import Store
from ray_app.training import checkpoints
from ray_app.training.checkpoints import Kept
from ray_app.training.claiming import recipe_of
from ray_app.training.history import HISTORY, UNREADABLE, read_notes, write_events
from ray_app.training.job import Job
from ray_app.training.validating import Verdicts, judge_splits, on_checkpoint, validate_folder
from ray_app.training.validations import is_better, validations

METRICS = "metrics.json"
SCHEMA = 1
PROBE = "probe.json"  # of a linear probe alone
MOST_POINTS = 500  # of a curve in the report


def best_checkpoint(job: Job) -> tuple[Kept, float]:
    """The kept checkpoint that is best by the recipe's metric, with its value; one whose judging was lost is judged now."""
    metric = job.config.validation.metric
    best: tuple[Kept, float] | None = None
    for one in checkpoints.kept(job.out):
        if not _may_be_best(job, one):
            continue
        figures = one.metrics if metric in one.metrics else _judged_before(job, one) or on_checkpoint(job, one.name, validate_folder)
        value = figures.get(metric)
        if value is not None and (best is None or is_better(metric, value, best[1])):
            best = one, value
    if best is None:
        raise ClusterError(f"no checkpoint has a value of {metric}", hint="has the validation split what it needs? choose another metric")
    return best


def _may_be_best(job: Job, one: Kept) -> bool:
    return one.step in job.milestones or bool(one.metrics.get("finished"))


def _judged_before(job: Job, one: Kept) -> Mapping[str, Any] | None:
    return next((found for found in validations(job.out) if found["step"] == one.step), None)


def finish(job: Job, findings: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Choose, judge, calibrate, export, report; returns the content of `metrics.json`. `told` is that of `train.json`."""
    best, value = best_checkpoint(job)
    verdicts: dict[str, Verdicts] = on_checkpoint(job, best.name, judge_splits)
    for split, verdict in verdicts.items():
        job.out.write(f"scores/{split}.parquet", _score_file(job, split, verdict))
    calibration, why_not = calibrated(verdicts["validation"])
    history = list(read_notes(job.out, HISTORY))
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "name": job.config.name,
        "title": job.config.title,
        "out": job.out.url,
        "metric": job.config.validation.metric,
        "best_step": best.step,
        "best_value": value,
        "steps": max((line["step"] + 1 for line in history), default=best.step),
        "seconds": round(sum(line["wait_s"] + line["compute_s"] for line in history), 2),
        "wait_s_per_step": round(float(np.mean([line["wait_s"] for line in history])), 5) if history else None,
        "unreadable": sum(1 for _ in read_notes(job.out, UNREADABLE)),
        "calibration": calibration.model_dump() if calibration else None,
        "calibration_note": why_not,
        "validation": verdicts["validation"].figures,
        "test": verdicts["test"].figures if "test" in verdicts else None,
        "validations": validations(job.out),
        "data": dict(findings),
        "recipe": recipe_of(job.config),
        "environment": {
            **told["environment"],
            "device": verdicts["validation"].device,
            "workers": job.layout.workers,
            # Going on elsewhere may change it; a head that was fitted on features has no history.
            **({"precision": ", then ".join(dict.fromkeys(line["precision"] for line in history))} if history else {}),
        },
    }
    if job.out.exists(PROBE):
        facts["probe"] = json.loads(job.out.read(PROBE))
    card = _exported(job, best, facts, calibration)
    facts["card"] = {"name": card.name, "licence": card.licence, "terms": card.terms, "weights": card.weights.sha256}
    _write_curves(job.out, history, facts["validations"])
    mistakes = [mistake for verdict in verdicts.values() for mistake in verdict.mistakes]
    page = render_training_report({**facts, "history": thinned(history), "mistakes": mistakes})
    job.out.write("report.html", page.encode())
    job.out.write(METRICS, json.dumps(facts, indent=2, ensure_ascii=False).encode())
    return facts


def calibrated(verdict: Verdicts) -> tuple[Calibration | None, str | None]:
    """Platt scaling on the validation split, or None and why there is none: a network that learned nothing cannot be calibrated."""
    try:
        return fit_platt(verdict.scores, verdict.labels), None
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


def _exported(job: Job, best: Kept, facts: Mapping[str, Any], calibration: Calibration | None) -> DetectorCard:
    from ray_app.learning.exporting import Made, export
    from ray_app.learning.learner import load_trained

    with checkpoints.fetched(job.out, best.name) as folder:
        network = load_trained(job.config, job.card, folder)
    made = Made(
        recipe=job.config,
        card=job.card,
        network=network,
        calibration=calibration,
        validation=facts["validation"],
        test=facts["test"],
        findings=facts["data"],
        steps=facts["steps"],
        seconds=facts["seconds"],
        environment=facts["environment"],
        best_step=best.step,
    )
    return export(job.out, made)


def _score_file(job: Job, split: str, verdict: Verdicts) -> bytes:
    rows = job.rows(split).take(pa.array(verdict.rows))
    labels = rows["input"].combine_chunks()
    table = pa.table(
        {
            "image_id": rows["image_id"],
            "uri": rows["uri"],
            "member": rows["member"],
            "label": labels.field("label"),
            "generator": labels.field("generator"),
            "score": pa.array(verdict.scores),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _write_curves(out: Store, history: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]]) -> None:
    """`metrics.jsonl`, the whole history in one file, `unreadable.jsonl` likewise, and the validations for TensorBoard."""
    _write_lines(out, "metrics.jsonl", iter(history))
    _write_lines(out, "unreadable.jsonl", read_notes(out, UNREADABLE))
    figures = [{"step": one["step"], **{name: one[name] for name in FIGURES if one.get(name) is not None}} for one in judged]
    if figures:
        write_events(out, 0, figures, prefix="validation")


def _write_lines(out: Store, name: str, lines: Iterator[Mapping[str, Any]]) -> None:
    with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
        path = Path(folder) / name
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        out.write_file(name, path)
