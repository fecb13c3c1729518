"""A head over generators, from labelled images to OUT/identifier.yaml: embeddings once, by Ray Data, and a fit that takes seconds.

Everything that is slow is kept (ray_app.training.embeddings); the same command computes no embedding again. `metrics.json` comes last.
"""

import io
import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.datasets.splitting import Splits
from ray_app.detectors import DetectorCard
from ray_app.learning.identifier_making import CARD, WEIGHTS, Labelled, Made, make_identifier
from ray_app.learning.identify import Identify
from ray_app.learning.naming import UNKNOWN, Named, Rows, classes_of, named, training_rows
from ray_app.profiling.identifying import Identified
from ray_app.reports.identifier_report import render_identifier_report
from ray_app.training.claiming import recipe_of
from ray_app.training.config import TrainConfig
from ray_app.training.embeddings import Embeddings, compute_embeddings, groups_of, kept_embeddings, require_own_weights
from ray_app.training.finishing import METRICS
from ray_app.training.job import Job

SCHEMA = 1
_MOST_SAID = 5


def identify(job: Job, findings: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Compute what embeddings are missing, fit, measure and write; returns the content of `metrics.json`. `told` is that of `train.json`.

    Raises ConfigError for a recipe whose embeddings no `score` would make, for too few images of a class, and for a validation split too
    small for the share that is to be given up; DetectorError for a detector without embeddings; TouchstoneError where too many images
    cannot be read.
    """
    require_own_weights(job)
    began = time.monotonic()
    splits = {split: _named(job.config, job.rows(split)) for split in ("train", "validation", "test") if split in job.shared}
    classes, left_out = classes_of(_section(job.config), splits["train"])
    wanted = _wanted(job.config, splits, classes)
    compute_embeddings(job, wanted)
    found = {split: kept_embeddings(job.out, split) for split in splits}
    labelled = {split: _labelled(job, split, splits[split], one) for split, one in found.items()}
    facts = _facts_of(job, found["train"])
    with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
        made = make_identifier(Path(folder), job.config, job.card, facts, labelled, classes)
        for split, said in made.said.items():
            job.out.write(f"scores/{split}.parquet", _names_file(job, split, found[split], labelled[split], said))
        for name in (WEIGHTS, CARD):
            job.out.write_file(name, Path(folder) / name)
    metrics = _metrics(job, findings, told, made, labelled, left_out)
    metrics |= {
        "unreadable": sum(len(rows) - len(found[split]) for split, rows in wanted.items()),
        "seconds": round(time.monotonic() - began, 2),
    }
    job.out.write("report.html", render_identifier_report(metrics).encode())
    job.out.write(METRICS, json.dumps(metrics, indent=2, ensure_ascii=False).encode())
    return metrics


def planned(config: TrainConfig, card: DetectorCard, splits: Splits) -> dict[str, Any]:
    """The dry run: what would be told apart, by how many images of which split, and what is held out. Raises ConfigError as training does."""
    tables = {"train": splits.train, "validation": splits.validation} | ({"test": splits.test} if splits.test is not None else {})
    rows = {split: _named(config, table) for split, table in tables.items()}
    section = _section(config)
    classes, left_out = classes_of(section, rows["train"])
    wanted = _wanted(config, rows, classes)
    return {
        "method": config.method,
        "name": config.name,
        "detector": card.name,
        "head": section.head,
        "level": section.level,
        "classes": list(classes),
        "left_out": left_out,
        "held_out": list(section.held_out),
        "open_set": {"method": section.open_set, "abstains": section.abstains},
        "splits": {split: _counted(rows[split], chosen, classes) for split, chosen in wanted.items()},
        "data": dict(splits.findings),
    }


def _section(config: TrainConfig) -> Identify:
    return config.identify or Identify()


def _named(config: TrainConfig, table: pa.Table) -> Named:
    labels = table["input"].combine_chunks()
    return named(_section(config), labels.field("label").to_pylist(), labels.field("generator").to_pylist())


def _wanted(config: TrainConfig, splits: Mapping[str, Named], classes: tuple[str, ...]) -> dict[str, Rows]:
    """The rows of each split that are looked at: in the test also reals and fakes of other generators, but of known ones."""
    import numpy as np

    chosen = {"train": training_rows(_section(config), splits["train"], classes, config.loop.seed), "validation": splits["validation"].of(classes)}
    if "test" in splits:
        chosen["test"] = np.flatnonzero([name is not None for name in splits["test"].names])
    return chosen


def _labelled(job: Job, split: str, rows: Named, found: Embeddings) -> Labelled:
    return Labelled(found.vectors, [name or UNKNOWN for name in rows.at(found.rows)], groups_of(job.rows(split), found.rows))


def _facts_of(job: Job, found: Embeddings) -> dict[str, Any]:
    """What decided the embeddings, as plain JSON; the driver has read their detector's weights already."""
    from ray_app.detectors.embeddings import embedding_facts

    precision = "bf16" if found.precision == "bf16" else "fp32"
    told: dict[str, Any] = json.loads(json.dumps(embedding_facts(job.card, precision=precision, resize="exact")))
    return told


def _counted(rows: Named, chosen: Rows, classes: tuple[str, ...]) -> dict[str, Any]:
    counts = Counter(name for name in rows.at(chosen) if name)
    known = {name: counts[name] for name in classes if counts[name]}
    return {"images": len(chosen), "known": known, "others": {name: n for name, n in sorted(counts.items()) if name not in known}}


def _metrics(
    job: Job, findings: Mapping[str, Any], told: Mapping[str, Any], made: Made, labelled: Mapping[str, Labelled], left_out: dict[str, int]
) -> dict[str, Any]:
    card, section, fitted = made.card, _section(job.config), made.fitted
    return {
        "schema": SCHEMA,
        "method": job.config.method,
        "name": job.config.name,
        "title": job.config.title,
        "out": job.out.url,
        "detector": card.detector,
        "head": card.head,
        "level": section.level,
        "classes": {name: n for name, n in zip(card.classes, _counts(labelled["train"], card.classes), strict=True)},
        "families": dict(zip(card.classes, card.class_families, strict=True)),
        "left_out": left_out,
        "held_out": list(section.held_out),
        "c": fitted.c,
        "log_losses": {f"{c:g}": loss for c, loss in fitted.losses.items()},
        "temperature": fitted.temperature,
        "calibration_note": fitted.why_not,
        "open_set": None if card.open_set is None else card.open_set.model_dump(mode="json"),
        "validation": made.figures["validation"],
        "test": made.figures.get("test"),
        "data": dict(findings),
        "recipe": recipe_of(job.config),
        "environment": {**told["environment"], "workers": job.layout.workers, "precision": card.embedding["precision"]},
        "card": {"name": card.name, "licence": card.licence, "weights": card.weights.sha256},
    }


def _counts(split: Labelled, classes: tuple[str, ...]) -> list[int]:
    counts = Counter(split.names)
    return [counts[name] for name in classes]


def _names_file(job: Job, split: str, found: Embeddings, labelled: Labelled, said: Identified) -> bytes:
    """Per image who made it and what is said: columns as result rows have them, and the truth beside them."""
    rows = job.rows(split).take(pa.array(found.rows))
    table = pa.table(
        {
            "image_id": rows["image_id"],
            "uri": rows["uri"],
            "member": rows["member"],
            "generator": pa.array(labelled.names, pa.string()),
            "predicted_generator": pa.array([said.classes[code] if code >= 0 else None for code in said.codes], pa.string()),
            "generator_probability": pa.array(said.probability),
            "generator_confidence": pa.array(said.confidence),
            "generator_ranking": pa.array([[said.classes[place] for place in ranking] for ranking in said.ranking[:, :_MOST_SAID]]),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
