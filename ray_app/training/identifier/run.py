"""A head over generators from labelled images: `identify` computes embeddings once, by Ray Data, and writes OUT/identifier.yaml.

The same command computes no embedding again. `metrics.json` comes last.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.attribution.identifier import Identified
from ray_app.datasets.splits import Splits
from ray_app.detectors import DetectorCard
from ray_app.reports.attribution import IdentifierTraining, NamedSplit, render_identifier_report
from ray_app.storage import Store
from ray_app.training.config import Identify, TrainConfig
from ray_app.training.embeddings import Embeddings, compute_embeddings, embedding_of, groups_of, kept_embeddings, require_own_weights
from ray_app.training.finish import METRICS, rows_file
from ray_app.training.identifier.export import CARD, WEIGHTS, LabelledEmbeddings, TrainedIdentifier, make_identifier
from ray_app.training.identifier.fit import UNKNOWN, Named, Rows, classes_of, named, training_rows
from ray_app.training.job import TrainingJob
from ray_app.training.run_directory import recipe_of

SCHEMA = 1
_MOST_RANKED = 5


@dataclass(frozen=True)
class IdentifierRequest:
    """What an identifier is made of: the labelled `tables` of each split, what their rows are called, the classes, those that are none for
    too few images, and the `rows` of each split that are looked at: in the test also reals and fakes of other generators.
    """

    tables: Mapping[str, pa.Table]
    named: Mapping[str, Named]
    classes: tuple[str, ...]
    left_out: dict[str, int]
    rows: dict[str, Rows]


def identify(job: TrainingJob, findings: Mapping[str, Any], claim: Mapping[str, Any]) -> dict[str, Any]:
    """Compute what embeddings are missing, fit, measure and write; returns the content of `metrics.json`. `claim` is that of `train.json`.

    Raises ConfigError for a recipe whose embeddings no `score` would make, for too few images of a class, and for a validation split too
    small for the share that is to be given up; DetectorError for a detector without embeddings; TouchstoneError where too many images
    cannot be read.
    """
    require_own_weights(job)
    began = time.monotonic()
    wanted = wanted_of(job.config, {split: job.rows(split) for split in ("train", "validation", "test") if split in job.shared})
    compute_embeddings(job, wanted.rows)
    made_in = {"environment": {**claim["environment"], "workers": job.layout.workers}, "data": dict(findings)}
    return written(job.config, job.card, job.out, wanted, made_in, began)


def wanted_of(config: TrainConfig, tables: Mapping[str, pa.Table]) -> IdentifierRequest:
    """Which rows of the splits' labelled tables an identifier is fitted, calibrated and measured on. Raises ConfigError."""
    section, rows = config.identify or Identify(), {split: _named(config, table) for split, table in tables.items()}
    classes, left_out = classes_of(section, rows["train"])
    chosen = {"train": training_rows(section, rows["train"], classes, config.loop.seed), "validation": rows["validation"].of(classes)}
    if "test" in rows:
        chosen["test"] = np.flatnonzero([name is not None for name in rows["test"].names])
    return IdentifierRequest(tables, rows, classes, left_out, chosen)


def written(
    config: TrainConfig, card: DetectorCard, out: Store, wanted: IdentifierRequest, facts: Mapping[str, Any], began: float
) -> dict[str, Any]:
    """Fit to the embeddings that `out` keeps, and write head, card, names, report and `metrics.json`, whose content is returned. No Ray.

    `facts`: further ones for it; `began`: on the monotonic clock.
    """
    found = {split: kept_embeddings(out, split) for split in wanted.rows}
    labelled = {split: _labelled(wanted, split, one) for split, one in found.items()}
    with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
        made = make_identifier(Path(folder), config, card, embedding_of(card, found["train"]), labelled, wanted.classes)
        for split, said in made.said.items():
            out.write(f"scores/{split}.parquet", _names_file(wanted.tables[split], found[split], labelled[split], said))
        for name in (WEIGHTS, CARD):
            out.write_file(name, Path(folder) / name)
    document = _document(config, out, wanted, made, labelled).model_copy(
        update={
            **facts,
            "environment": {**facts.get("environment", {}), "precision": found["train"].precision},
            "unreadable": sum(len(rows) - len(found[split]) for split, rows in wanted.rows.items()),
            "seconds": round(time.monotonic() - began, 2),
        }
    )
    metrics = document.written()
    out.write("report.html", render_identifier_report(document).encode())
    out.write(METRICS, json.dumps(metrics, indent=2, ensure_ascii=False).encode())
    return metrics


def planned(config: TrainConfig, card: DetectorCard, splits: Splits) -> dict[str, Any]:
    """The dry run: which classes, by how many images of which split, what is held out. Raises ConfigError as training does."""
    tables = {"train": splits.train, "validation": splits.validation} | ({"test": splits.test} if splits.test is not None else {})
    section, wanted = config.identify or Identify(), wanted_of(config, tables)
    return {
        "method": config.method,
        "name": config.name,
        "detector": card.name,
        "head": section.head,
        "level": section.level,
        "classes": list(wanted.classes),
        "left_out": wanted.left_out,
        "held_out": list(section.held_out),
        "open_set": {"method": section.open_set, "abstains": section.abstains},
        "splits": {split: _counted(wanted.named[split], rows, wanted.classes) for split, rows in wanted.rows.items()},
        "data": dict(splits.findings),
    }


def _named(config: TrainConfig, table: pa.Table) -> Named:
    labels = table["input"].combine_chunks()
    return named(config.identify or Identify(), labels.field("label").to_pylist(), labels.field("generator").to_pylist())


def _labelled(wanted: IdentifierRequest, split: str, found: Embeddings) -> LabelledEmbeddings:
    names = [name or UNKNOWN for name in wanted.named[split].at(found.rows)]
    return LabelledEmbeddings(found.vectors, names, groups_of(wanted.tables[split], found.rows))


def _counted(rows: Named, chosen: Rows, classes: tuple[str, ...]) -> dict[str, Any]:
    counts = Counter(name for name in rows.at(chosen) if name)
    known = {name: counts[name] for name in classes if counts[name]}
    return {"images": len(chosen), "known": known, "others": {name: n for name, n in sorted(counts.items()) if name not in known}}


def _document(
    config: TrainConfig, out: Store, wanted: IdentifierRequest, made: TrainedIdentifier, labelled: Mapping[str, LabelledEmbeddings]
) -> IdentifierTraining:
    card, section, fitted = made.card, config.identify or Identify(), made.fitted
    counts = Counter(labelled["train"].names)
    return IdentifierTraining(
        schema=SCHEMA,
        method=config.method,
        name=config.name,
        title=config.title,
        out=out.url,
        detector=card.detector,
        head=card.head,
        level=section.level,
        classes={name: counts[name] for name in card.classes},
        families=dict(zip(card.classes, card.class_families, strict=True)),
        left_out=wanted.left_out,
        held_out=section.held_out,
        c=fitted.c,
        log_losses={f"{c:g}": loss for c, loss in fitted.losses.items()},
        temperature=fitted.temperature,
        calibration_note=fitted.why_not,
        open_set=None if card.open_set is None else card.open_set.model_dump(mode="json"),
        validation=NamedSplit(**made.figures["validation"]),
        test=NamedSplit(**made.figures["test"]) if "test" in made.figures else None,
        recipe=recipe_of(config),
        card={"name": card.name, "licence": card.licence, "weights": card.weights.sha256},
    )


def _names_file(table: pa.Table, found: Embeddings, labelled: LabelledEmbeddings, said: Identified) -> bytes:
    """Per image who made it and the prediction: columns as result rows have them, and the truth beside them."""
    columns = {
        "generator": pa.array(labelled.names, pa.string()),
        "predicted_generator": pa.array([said.classes[code] if code >= 0 else None for code in said.codes], pa.string()),
        "generator_probability": pa.array(said.probability),
        "generator_confidence": pa.array(said.confidence),
        "generator_ranking": pa.array([[said.classes[place] for place in ranking] for ranking in said.ranking[:, :_MOST_RANKED]]),
    }
    return rows_file(table.take(pa.array(found.rows)), columns)
