"""Train an identifier of generators from labelled images (`identify`): compute embeddings once, by
Ray Data, and write OUT/identifier.yaml.

The same command computes no embedding again; `metrics.json` comes last. `make_identifier` fits the
head, its threshold, and the card. `measure_split` measures known generators with and without
abstaining, unknown generators, and reals.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.datasets.splits import Splits
from ray_app.detectors.card import DetectorCard, PublishedFigure
from ray_app.detectors.card_writer import write_card
from ray_app.errors import ConfigError
from ray_app.identification.cards import IdentifierCard, OpenSet, load_identifier
from ray_app.identification.identifier import Identified, Identifier
from ray_app.metrics import calibration, intervals, values
from ray_app.metrics.identification import measure_identification, measure_open_set
from ray_app.reports.identification import IdentifierTraining, NamedSplit, render_identifier_report
from ray_app.runs.schema import IDENTIFIED
from ray_app.storage import Store
from ray_app.training import embeddings, export, file_notes, run_directory
from ray_app.training import identifier as fitting
from ray_app.training.config import Identify, Recipe, TrainConfig
from ray_app.training.head import Vectors
from ray_app.training.job import TrainingJob

CARD, WEIGHTS = "identifier.yaml", "head.safetensors"
_COLUMNS = {
    "generator": pa.string(),
    "predicted_generator": pa.string(),
    **IDENTIFIED,
    "generator_family": pa.string(),
}
_PUBLISHED = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "abstained": "share abstained on",
    "open_set_auroc": "AUROC, known against unknown",
}
_NONE_KNOWN = "no image of a known generator"


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Embeddings (n, d) of one split with the class names (n,) and groups (n,) of their images."""

    vectors: Vectors
    names: Sequence[str]
    groups: Sequence[str]


@dataclass(frozen=True)
class TrainedIdentifier:
    """A written identifier: its card, what the fit found, its figures by split, and what it says of
    each image of a split.
    """

    card: IdentifierCard
    fitted: fitting.FittedIdentifier
    figures: dict[str, dict[str, Any]]
    predicted: dict[str, Identified]


def make_identifier(
    folder: Path,
    recipe: Recipe,
    card: DetectorCard,
    embedding: Mapping[str, Any],
    splits: Mapping[str, LabelledEmbeddings],
    classes: Sequence[str],
) -> TrainedIdentifier:
    """Fit a head on `train`, set its threshold on `validation`, measure it there and on `test`, and
    write head and card into `folder`.

    `card`: of the detector whose embeddings these are, made as `embedding` says
    (`detectors.linear_head.embedding_facts`). `train` holds images of `classes` alone; the others
    may hold any. Raises ConfigError for a class without a training image, and where validation is
    too small.
    """
    from safetensors.numpy import save_file

    config, train, licence = (
        recipe.identify or Identify(),
        splits["train"],
        export.inherited(recipe, card),
    )
    if missing := [name for name in classes if name not in set(train.names)]:
        raise ConfigError(f"not one training image of {', '.join(missing)} could be read")
    codes = np.array([classes.index(name) for name in train.names], np.int64)
    fitted = fitting.fit(train.vectors, codes, train.groups, config)
    save_file(
        {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in fitted.tensors.items()},
        folder / WEIGHTS,
    )
    title = f"Which of {len(classes)} generators, by embeddings of {card.name}"
    facts = export.profile_facts(recipe, folder / WEIGHTS, title)
    data = {
        "images": f"{len(train.names):,} of {len(classes)} generators",
        "generators": tuple(classes),
    }
    notes = [licence.note, _calibration_note(fitted, config)]
    facts |= {
        "licence": licence.licence,
        "source": f"touchstone train {recipe.name}",
        "training_data": facts["training_data"].model_copy(update=data),
        "notes": (*facts["notes"], *filter(None, notes)),
        "detector": card.name,
        "embedding": dict(embedding),
        "classes": tuple(classes),
        "families": {name: config.families[name] for name in classes if name in config.families},
        "head": config.head,
        "scale": fitted.scale,
    }
    facts["open_set"] = _open_set(folder, facts, config, splits["validation"])
    head = Identifier(_card(folder, facts))
    predicted = {
        name: head.identify(one.vectors) for name, one in splits.items() if name != "train"
    }
    figures = {name: measure_split(names, splits[name].names) for name, names in predicted.items()}
    return TrainedIdentifier(
        _card(folder, facts | {"published": _published(recipe, figures)}),
        fitted,
        figures,
        predicted,
    )


def _calibration_note(fitted: fitting.FittedIdentifier, config: Identify) -> str:
    if fitted.why_not:
        return f"Its probabilities are not calibrated: {fitted.why_not}."
    prior = (
        "every generator as likely as any other"
        if config.balanced
        else "the mix of the training images"
    )
    return f"Its probabilities are calibrated by one temperature, {fitted.temperature:.3g}, on training images by folds, for {prior}."


def _open_set(
    folder: Path, facts: Mapping[str, Any], config: Identify, validation: LabelledEmbeddings
) -> OpenSet | None:
    """The threshold below which nothing is named, from validation images of known generators; None
    where every image is to be named.
    """
    if not config.abstains:
        return None
    undecided = OpenSet(method=config.open_set, threshold=0.0, abstains=config.abstains, n=1)
    identifier = Identifier(_card(folder, dict(facts) | {"open_set": undecided}))
    known = np.isin(np.array(validation.names, object), facts["classes"])
    vectors = validation.vectors[known]
    confidence = (
        identifier.confidence(vectors, identifier.logits(vectors))
        if len(vectors)
        else np.empty(0, np.float32)
    )
    return undecided.model_copy(
        update={"threshold": fitting.threshold(confidence, config.abstains), "n": len(confidence)}
    )


def _card(folder: Path, facts: Mapping[str, Any]) -> IdentifierCard:
    """The card of these facts, written and read back."""
    write_card(folder / CARD, IdentifierCard.model_validate(dict(facts)))
    return load_identifier(folder / CARD)


def _published(
    recipe: Recipe, figures: Mapping[str, Mapping[str, Any]]
) -> tuple[PublishedFigure, ...]:
    """The chief figures of the test split or, where there is none, of validation."""
    split = "test" if "test" in figures else "validation"
    rows = [(metric, figures[split]["figures"][name]) for name, metric in _PUBLISHED.items()]
    common: dict[str, Any] = {
        "set": f"{export.data_name(recipe)}, {split}",
        "verified": True,
        "source": f"touchstone train {recipe.name}",
    }
    return tuple(
        PublishedFigure(metric=metric, value=row["value"], n=row["n"], **common)
        for metric, row in rows
        if row["value"] is not None
    )


def measure_split(predicted: Identified, truth: Sequence[str]) -> dict[str, Any]:
    """Measure the names of n images, as plain JSON.

    Args:
        predicted: The names.
        truth: True class names (n,), of which not all need be classes of the identifier.

    Returns:
        `n_known`, `n_unknown`, and `n_real` (0 if reals are a class).
        `figures`: `accuracy`, `top_3`, `top_5`, `macro_f1`, `weighted_f1` if every image of a known
        generator gets its best name, and `calibration_error` of its probability; `family_accuracy`,
        `family_macro_f1`; `abstained` and `accuracy_of_named` of known generators,
        `unknown_abstained`, `reals_abstained`, and `open_set_auroc`.
        `classes`: the known names with `n`, `recall`, `precision`, `f1`, and `abstained`.
        `pairs`: the wrong names of known generators as [true, predicted, n].
        `unknown`: the unknown generators with `n`, `abstained`, and the name that they get most.
    """
    names, classes = np.array(truth, object), np.array(predicted.classes, object)
    is_known = np.isin(names, predicted.classes)
    is_real = (names == fitting.REAL) & ~is_known
    is_unknown = ~is_known & ~is_real
    best, is_named = classes[predicted.ranking[:, 0]], predicted.codes >= 0
    is_right = best == names
    forced = measure_identification(
        best[is_known].tolist(),
        names[is_known].tolist(),
        rankings=classes[predicted.ranking[is_known]].tolist(),
    )
    figures = {
        name: forced.figures[name]
        for name in ("accuracy", "top_3", "top_5", "macro_f1", "weighted_f1")
    }
    figures |= _measure_families(predicted, names[is_known], best[is_known])
    figures |= {
        "calibration_error": _measure_calibration(
            predicted.probability[is_known], is_right[is_known]
        ),
        "abstained": _measure_fraction(~is_named[is_known], _NONE_KNOWN),
        "accuracy_of_named": _measure_fraction(
            is_right[is_known & is_named], "no image of a known generator was named"
        ),
        "unknown_abstained": _measure_fraction(
            ~is_named[is_unknown], "no image of an unknown generator"
        ),
        "reals_abstained": _measure_fraction(
            ~is_named[is_real], "no real image, or reals are a class"
        ),
        "open_set_auroc": measure_open_set(
            names[~is_real].tolist(), predicted.classes, predicted.confidence[~is_real]
        ),
    }
    class_rows = []
    for row in forced.classes:
        abstained = _measure_fraction(~is_named[names == row["name"]], _NONE_KNOWN)
        metrics = {name: row[name] for name in ("recall", "precision", "f1")}
        metrics["abstained"] = abstained
        documents = {name: metric.to_dict() for name, metric in metrics.items()}
        class_rows.append({"name": row["name"], "n": row["n"], **documents})
    unknown_rows = []
    for name in sorted(set(names[is_unknown])):
        own = names == name
        nearest, nearest_n = Counter(best[own]).most_common(1)[0]
        abstained = _measure_fraction(~is_named[own], "")
        row = {"name": name, "n": int(own.sum()), "abstained": abstained.to_dict()}
        unknown_rows.append({**row, "nearest": nearest, "nearest_n": nearest_n})
    return {
        "n_known": int(is_known.sum()),
        "n_unknown": int(is_unknown.sum()),
        "n_real": int(is_real.sum()),
        "figures": {name: figure.to_dict() for name, figure in figures.items()},
        "classes": class_rows,
        "pairs": [list(pair) for pair in forced.pairs],
        "unknown": unknown_rows,
    }


def _measure_fraction(hits: npt.NDArray[np.bool_], why: str) -> values.MetricValue:
    return intervals.proportion(int(hits.sum()), len(hits), why)


def _measure_families(
    predicted: Identified, truth: npt.NDArray[np.object_], best: npt.NDArray[np.object_]
) -> dict[str, values.MetricValue]:
    if len(set(predicted.families)) == len(predicted.classes):
        undefined = values.undefined("every class is a family of its own")
        return {"family_accuracy": undefined, "family_macro_f1": undefined}
    family = dict(zip(predicted.classes, predicted.families, strict=True))
    measured = measure_identification(
        [family[name] for name in best], [family[name] for name in truth]
    ).figures
    return {"family_accuracy": measured["accuracy"], "family_macro_f1": measured["macro_f1"]}


def _measure_calibration(
    probability: Vectors, is_right: npt.NDArray[np.bool_]
) -> values.MetricValue:
    """Measure the expected calibration error of the best name's probability (Guo et al. 2017)."""
    if not len(is_right):
        return values.undefined(_NONE_KNOWN)
    error = calibration.expected_calibration_error(
        np.clip(probability.astype(np.float64), 0, 1), is_right.astype(np.int64)
    )
    return values.MetricValue(value=error, n=len(is_right))


@dataclass(frozen=True)
class IdentifierRequest:
    """What an identifier is made of: the labelled `tables` of each split, what their rows are
    called, the classes, those that are none for too few images, and the `rows` of each split that
    are looked at: in the test also reals and fakes of other generators.
    """

    tables: Mapping[str, pa.Table]
    named: Mapping[str, fitting.ClassAssignments]
    classes: tuple[str, ...]
    left_out: dict[str, int]
    rows: dict[str, fitting.Rows]


def identify(
    job: TrainingJob, findings: Mapping[str, Any], claim: Mapping[str, Any]
) -> dict[str, Any]:
    """Compute what embeddings are missing, fit, measure and write; returns the content of
    `metrics.json`. `claim` is that of `train.json`.

    Raises ConfigError for a recipe whose embeddings no `score` would make, for too few images of a
    class, and for a validation split too small for the share that is to be given up; DetectorError
    for a detector without embeddings; TouchstoneError where too many images cannot be read.
    """
    embeddings.require_own_weights(job)
    began = time.monotonic()
    request = select_rows(
        job.config,
        {
            split: job.rows(split)
            for split in ("train", "validation", "test")
            if split in job.tables
        },
    )
    embeddings.compute_embeddings(job, request.rows)
    made_in = {
        "environment": {**claim["environment"], "workers": job.layout.workers},
        "data": dict(findings),
    }
    return write_identifier(job.config, job.card, job.out, request, made_in, began)


def select_rows(config: TrainConfig, tables: Mapping[str, pa.Table]) -> IdentifierRequest:
    """Which rows of the splits' labelled tables an identifier is fitted, calibrated and measured
    on. Raises ConfigError.
    """
    section, rows = config.identify or Identify(), dict[str, fitting.ClassAssignments]()
    for split, table in tables.items():
        labels = table["input"].combine_chunks()
        rows[split] = fitting.named(
            section, labels.field("label").to_pylist(), labels.field("generator").to_pylist()
        )
    classes, left_out = fitting.classes_of(section, rows["train"])
    chosen = {
        "train": fitting.training_rows(section, rows["train"], classes, config.loop.seed),
        "validation": rows["validation"].of(classes),
    }
    if "test" in rows:
        chosen["test"] = np.flatnonzero([name is not None for name in rows["test"].names])
    return IdentifierRequest(tables, rows, classes, left_out, chosen)


def write_identifier(
    config: TrainConfig,
    card: DetectorCard,
    out: Store,
    request: IdentifierRequest,
    facts: Mapping[str, Any],
    began: float,
) -> dict[str, Any]:
    """Fit to the embeddings that `out` keeps, and write head, card, names, report and
    `metrics.json`, whose content is returned. No Ray.

    `facts`: `environment` and `data` of it; `began`: on the monotonic clock.
    """
    found = {split: embeddings.kept_embeddings(out, split) for split in request.rows}
    labelled = {}
    for split, one in found.items():
        names = [name or fitting.UNKNOWN for name in request.named[split].at(one.rows)]
        labelled[split] = LabelledEmbeddings(
            one.vectors, names, embeddings.groups_of(request.tables[split], one.rows)
        )
    with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
        made = make_identifier(
            Path(folder),
            config,
            card,
            embeddings.embedding_of(card, found["train"]),
            labelled,
            request.classes,
        )
        for split, predicted in made.predicted.items():
            rows = request.tables[split].take(pa.array(found[split].rows))
            cells = predicted.to_columns([True] * len(rows))
            cells["generator"] = list(labelled[split].names)
            columns = {name: pa.array(cells[name], kind) for name, kind in _COLUMNS.items()}
            out.write(f"scores/{split}.parquet", export.rows_file(rows, columns))
        for name in (WEIGHTS, CARD):
            out.write_file(name, Path(folder) / name)
    section, fitted, counts = (
        config.identify or Identify(),
        made.fitted,
        Counter(labelled["train"].names),
    )
    document = IdentifierTraining(
        method=config.method,
        name=config.name,
        title=config.title,
        out=out.url,
        detector=card.name,
        head=section.head,
        level=section.level,
        classes={name: counts[name] for name in made.card.classes},
        families=dict(zip(made.card.classes, made.card.class_families, strict=True)),
        left_out=request.left_out,
        held_out=section.held_out,
        c=fitted.c,
        log_losses={f"{c:g}": loss for c, loss in fitted.losses.items()},
        temperature=fitted.temperature,
        calibration_note=fitted.why_not,
        open_set=None if made.card.open_set is None else made.card.open_set.model_dump(mode="json"),
        validation=NamedSplit.from_dict(made.figures["validation"]),
        test=NamedSplit.from_dict(made.figures["test"]) if "test" in made.figures else None,
        recipe=run_directory.recipe_of(config),
        card={
            "name": made.card.name,
            "licence": made.card.licence,
            "weights": made.card.weights.sha256,
        },
        environment={**facts["environment"], "precision": found["train"].precision},
        data=facts["data"],
        unreadable=sum(len(rows) - len(found[split]) for split, rows in request.rows.items()),
        unreadable_files=file_notes.name_files(file_notes.write_unreadable(out)),
        seconds=round(time.monotonic() - began, 2),
    )
    metrics = json.dumps(document.to_dict(), indent=2, ensure_ascii=False)
    content: dict[str, Any] = json.loads(metrics)  # Lists, as any later call returns them.
    out.write("report.html", render_identifier_report(content).encode())
    out.write(export.METRICS, metrics.encode())
    return content


def planned(config: TrainConfig, card: DetectorCard, splits: Splits) -> dict[str, Any]:
    """The dry run: which classes, by how many images of which split, what is held out. Raises
    ConfigError as training does.
    """
    tables = {"train": splits.train, "validation": splits.validation} | (
        {"test": splits.test} if splits.test is not None else {}
    )
    section, request = config.identify or Identify(), select_rows(config, tables)
    counted = {}
    for split, rows in request.rows.items():
        counts = Counter(name for name in request.named[split].at(rows) if name)
        known = {name: counts[name] for name in request.classes if counts[name]}
        others = {name: n for name, n in sorted(counts.items()) if name not in known}
        counted[split] = {"images": len(rows), "known": known, "others": others}
    return {
        "method": config.method,
        "name": config.name,
        "detector": card.name,
        "head": section.head,
        "level": section.level,
        "classes": list(request.classes),
        "left_out": request.left_out,
        "held_out": list(section.held_out),
        "open_set": {"method": section.open_set, "abstains": section.abstains},
        "splits": counted,
        "data": dict(splits.findings),
    }
