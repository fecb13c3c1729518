"""Train an identifier, which names the generator of a fake image, from labelled images: `identify`.

It computes embeddings, on Ray Data if the job uses Ray, and writes OUT/identifier.yaml. If it is
interrupted, the same command computes only missing embeddings. `metrics.json` is written last.
`make_identifier` fits the head, sets its threshold, and writes the card. `measure_split` measures
the identifier on known generators, unknown generators, and real images. An identifier abstains,
which means that it names no generator, if its confidence is low.
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
from ray_app.detectors.card import DetectorCard, PublishedMetric
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
    """The embeddings of one split with the labels that fitting an identifier needs.

    Attributes:
        vectors: Embeddings (n, d).
        names: Class names (n,) of the images, usually their generators.
        groups: Group names (n,). Images of one group, such as one scene, are in one fold of the
            cross-validation.
    """

    vectors: Vectors
    names: Sequence[str]
    groups: Sequence[str]


@dataclass(frozen=True)
class TrainedIdentifier:
    """A trained identifier, whose files are written, with its metrics.

    Attributes:
        card: The card of the identifier.
        fitted: The fitted head with its calibration.
        figures: The metrics by split, as `measure_split` returns them.
        predicted: The predicted generator of each image, by split.
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
    """Fit an identifier's head, set its threshold, measure it, and write head and card.

    The head is fitted on `train`. Its threshold, the confidence below which it names no generator,
    is set on `validation`. It is measured on `validation` and `test`.

    Args:
        folder: A local folder, to which the files are written.
        recipe: The recipe.
        card: Card of the detector that computed the embeddings.
        embedding: The settings that affect the embeddings
            (`detectors.linear_head.embedding_facts`).
        splits: The embeddings by split. `train` has images of `classes` only, the others of any
            class.
        classes: Names of the classes.

    Returns:
        The identifier with its metrics.

    Raises:
        ConfigError: A class has no training image, or validation is too small.
    """
    from safetensors.numpy import save_file

    config, train, licence = (
        recipe.identify or Identify(),
        splits["train"],
        export.inherit_licence(recipe, card),
    )
    if missing := [name for name in classes if name not in set(train.names)]:
        raise ConfigError(
            f"none of the training images of {', '.join(missing)} could be read",
            hint="check that the files of these classes exist and are not damaged",
        )
    codes = np.array([classes.index(name) for name in train.names], np.int64)
    fitted = fitting.fit(train.vectors, codes, train.groups, config)
    save_file(
        {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in fitted.tensors.items()},
        folder / WEIGHTS,
    )
    title = f"Which of {len(classes)} generators, by embeddings of {card.name}"
    facts = export.make_profile_facts(recipe, folder / WEIGHTS, title)
    data = {
        "images": f"{len(train.names):,} of {len(classes)} generators",
        "generators": tuple(classes),
    }
    notes = [licence.note, _make_calibration_note(fitted, config)]
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
    facts["open_set"] = _make_open_set(folder, facts, config, splits["validation"])
    head = Identifier(_write_card(folder, facts))
    predicted = {
        name: head.identify(split.vectors) for name, split in splits.items() if name != "train"
    }
    figures = {name: measure_split(names, splits[name].names) for name, names in predicted.items()}
    return TrainedIdentifier(
        _write_card(folder, facts | {"published": _list_published(recipe, figures)}),
        fitted,
        figures,
        predicted,
    )


def _make_calibration_note(fitted: fitting.FittedIdentifier, config: Identify) -> str:
    if fitted.why_not:
        return f"Its probabilities are not calibrated: {fitted.why_not}."
    prior = (
        "every generator as likely as any other"
        if config.balanced
        else "the mix of the training images"
    )
    return f"Its probabilities are calibrated by one temperature, {fitted.temperature:.3g}, on training images by folds, for {prior}."


def _make_open_set(
    folder: Path, facts: Mapping[str, Any], config: Identify, validation: LabelledEmbeddings
) -> OpenSet | None:
    """Return the rule for unknown generators; None if every image is to be named.

    Its threshold is set on validation images of known generators.
    """
    if not config.abstains:
        return None
    rule = OpenSet(method=config.open_set, threshold=0.0, abstains=config.abstains, n=1)
    identifier = Identifier(_write_card(folder, dict(facts) | {"open_set": rule}))
    is_known = np.isin(np.array(validation.names, object), facts["classes"])
    vectors = validation.vectors[is_known]
    confidence = (
        identifier.confidence(vectors, identifier.logits(vectors))
        if len(vectors)
        else np.empty(0, np.float32)
    )
    return rule.model_copy(
        update={
            "threshold": fitting.find_threshold(confidence, config.abstains),
            "n": len(confidence),
        }
    )


def _write_card(folder: Path, facts: Mapping[str, Any]) -> IdentifierCard:
    """Write a card with this content and read it back."""
    write_card(folder / CARD, IdentifierCard.model_validate(dict(facts)))
    return load_identifier(folder / CARD)


def _list_published(
    recipe: Recipe, figures: Mapping[str, Mapping[str, Any]]
) -> tuple[PublishedMetric, ...]:
    """Return the main metrics of the test split or, if there is none, of validation."""
    split = "test" if "test" in figures else "validation"
    rows = [(metric, figures[split]["figures"][name]) for name, metric in _PUBLISHED.items()]
    common: dict[str, Any] = {
        "set": f"{export.data_name(recipe)}, {split}",
        "verified": True,
        "source": f"touchstone train {recipe.name}",
    }
    return tuple(
        PublishedMetric(metric=metric, value=row["value"], n=row["n"], **common)
        for metric, row in rows
        if row["value"] is not None
    )


def measure_split(predicted: Identified, truth: Sequence[str]) -> dict[str, Any]:
    """Measure how well an identifier names the generators of n images, as plain JSON.

    A generator is known if it is a class of the identifier. The identifier abstains if it gives an
    image no name.

    Args:
        predicted: The predictions for the images.
        truth: True class names (n,), also of unknown generators.

    Returns:
        `n_known`, `n_unknown`, `n_real`: numbers of images by known generators, by unknown
        generators, and of real images (0 if `real` is a class).
        `figures`: the metrics. `accuracy`, `top_3`, `top_5`, `macro_f1`, `weighted_f1`,
        `family_accuracy`, and `family_macro_f1` are computed on images of known
        generators, as if the identifier never abstained but named the most probable class.
        `calibration_error` is that of the probability of this class.
        `abstained`, `unknown_abstained`, and `reals_abstained` are the fractions of images without
        a name: of known generators, of unknown generators, and of real images. `accuracy_of_named`
        is the accuracy on the named images of known generators. `open_set_auroc` is that of telling
        known from unknown generators by confidence.
        `classes`: the classes with `n`, `recall`, `precision`, `f1`, and `abstained`.
        `pairs`: the wrong names of known generators as [true, predicted, n].
        `unknown`: the unknown generators with `n`, `abstained`, `nearest`, the class that is most
        often ranked first, and `nearest_n`, the number of images for which it is.
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
        is_own = names == name
        nearest, nearest_n = Counter(best[is_own]).most_common(1)[0]
        abstained = _measure_fraction(~is_named[is_own], "")
        row = {"name": name, "n": int(is_own.sum()), "abstained": abstained.to_dict()}
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


def _measure_fraction(hits: npt.NDArray[np.bool_], reason: str) -> values.MetricValue:
    return intervals.proportion(int(hits.sum()), len(hits), reason)


def _measure_families(
    predicted: Identified, truth: npt.NDArray[np.object_], best: npt.NDArray[np.object_]
) -> dict[str, values.MetricValue]:
    if len(set(predicted.families)) == len(predicted.classes):
        undefined = values.undefined("every class is a family of its own")
        return {"family_accuracy": undefined, "family_macro_f1": undefined}
    family = dict(zip(predicted.classes, predicted.families, strict=True))
    metrics = measure_identification(
        [family[name] for name in best], [family[name] for name in truth]
    ).figures
    return {"family_accuracy": metrics["accuracy"], "family_macro_f1": metrics["macro_f1"]}


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
    """The rows that an identifier is fitted, calibrated, and measured on.

    Attributes:
        tables: The labelled rows by split.
        named: The classes of these rows by split.
        classes: Names of the identifier's classes.
        left_out: Number of training images of each class that was left out because it has too few.
        rows: Row numbers to use, by split. Those of the test split include real images and fakes by
            generators that are not a class.
    """

    tables: Mapping[str, pa.Table]
    named: Mapping[str, fitting.ClassAssignments]
    classes: tuple[str, ...]
    left_out: dict[str, int]
    rows: dict[str, fitting.Rows]


def identify(
    job: TrainingJob, findings: Mapping[str, Any], claim: Mapping[str, Any]
) -> dict[str, Any]:
    """Train an identifier of generators: compute missing embeddings, fit the head, measure it.

    The card, the weights, the report, and `metrics.json` are written to the training's directory.

    Args:
        job: The job.
        findings: Counts and digests of the splits, and leakage between them (`Splits.findings`).
        claim: The content of `train.json`, which records the recipe and the data of the directory.

    Returns:
        The content of `metrics.json`.

    Raises:
        ConfigError: The recipe changes the detector, the classes are invalid (see `select_rows`),
            or the validation split has too few images to set the threshold for abstentions.
        DetectorError: The detector has no embeddings.
        TouchstoneError: Too many images cannot be read.
    """
    embeddings.require_own_weights(job)
    started_at = time.monotonic()
    request = select_rows(
        job.config,
        {
            split: job.rows(split)
            for split in ("train", "validation", "test")
            if split in job.tables
        },
    )
    embeddings.compute_embeddings(job, request.rows)
    context = {
        "environment": {**claim["environment"], "workers": job.layout.workers},
        "data": dict(findings),
    }
    return write_identifier(job.config, job.card, job.out, request, context, started_at)


def select_rows(config: TrainConfig, tables: Mapping[str, pa.Table]) -> IdentifierRequest:
    """Select the rows of the labelled tables that an identifier is fitted and measured on.

    An identifier is a model that names the generator of a fake.

    Args:
        config: The settings.
        tables: The labelled rows by split.

    Raises:
        ConfigError: A class has too few images, there are fewer than two classes, or a name in
            `identify.held_out` matches no training row.
    """
    section, rows = config.identify or Identify(), dict[str, fitting.ClassAssignments]()
    for split, table in tables.items():
        labels = table["input"].combine_chunks()
        rows[split] = fitting.assign_classes(
            section, labels.field("label").to_pylist(), labels.field("generator").to_pylist()
        )
    classes, left_out = fitting.select_classes(section, rows["train"])
    selected = {
        "train": fitting.select_training_rows(section, rows["train"], classes, config.loop.seed),
        "validation": rows["validation"].select_rows(classes),
    }
    if "test" in rows:
        selected["test"] = np.flatnonzero([name is not None for name in rows["test"].names])
    return IdentifierRequest(tables, rows, classes, left_out, selected)


def write_identifier(
    config: TrainConfig,
    card: DetectorCard,
    out: Store,
    request: IdentifierRequest,
    facts: Mapping[str, Any],
    started_at: float,
) -> dict[str, Any]:
    """Fit an identifier to stored embeddings, measure it, and write all of its files.

    An identifier is a model that names the generator of a fake.

    Args:
        config: The settings.
        card: Card of the detector that computed the embeddings.
        out: The directory of the training, which has the embeddings.
        request: The rows to fit and measure the identifier on, from `select_rows`.
        facts: The keys `environment` and `data` of `metrics.json`, with their values.
        started_at: Start of the work, on the monotonic clock, to record its duration.

    Returns:
        The content of `metrics.json`.
    """
    stored = {split: embeddings.read_embeddings(out, split) for split in request.rows}
    labelled = {}
    for split, split_embeddings in stored.items():
        names = [
            name or fitting.UNKNOWN for name in request.named[split].names_at(split_embeddings.rows)
        ]
        labelled[split] = LabelledEmbeddings(
            split_embeddings.vectors,
            names,
            embeddings.get_groups(request.tables[split], split_embeddings.rows),
        )
    with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
        trained = make_identifier(
            Path(folder),
            config,
            card,
            embeddings.describe_embeddings(card, stored["train"]),
            labelled,
            request.classes,
        )
        for split, predicted in trained.predicted.items():
            rows = request.tables[split].take(pa.array(stored[split].rows))
            cells = predicted.to_columns([True] * len(rows))
            cells["generator"] = list(labelled[split].names)
            columns = {name: pa.array(cells[name], kind) for name, kind in _COLUMNS.items()}
            out.write(f"scores/{split}.parquet", export.serialize_rows(rows, columns))
        for name in (WEIGHTS, CARD):
            out.write_file(name, Path(folder) / name)
    section, fitted, counts = (
        config.identify or Identify(),
        trained.fitted,
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
        classes={name: counts[name] for name in trained.card.classes},
        families=dict(zip(trained.card.classes, trained.card.class_families, strict=True)),
        left_out=request.left_out,
        held_out=section.held_out,
        c=fitted.c,
        log_losses={f"{c:g}": loss for c, loss in fitted.losses.items()},
        temperature=fitted.temperature,
        calibration_note=fitted.why_not,
        open_set=None
        if trained.card.open_set is None
        else trained.card.open_set.model_dump(mode="json"),
        validation=NamedSplit.from_dict(trained.figures["validation"]),
        test=NamedSplit.from_dict(trained.figures["test"]) if "test" in trained.figures else None,
        recipe=run_directory.extract_recipe(config),
        card={
            "name": trained.card.name,
            "licence": trained.card.licence,
            "weights": trained.card.weights.sha256,
        },
        environment={**facts["environment"], "precision": stored["train"].precision},
        data=facts["data"],
        unreadable=sum(len(rows) - len(stored[split]) for split, rows in request.rows.items()),
        unreadable_files=file_notes.name_files(file_notes.write_unreadable(out)),
        seconds=round(time.monotonic() - started_at, 2),
    )
    metrics = json.dumps(document.to_dict(), indent=2, ensure_ascii=False)
    content: dict[str, Any] = json.loads(
        metrics
    )  # With lists for tuples, as later calls read them.
    out.write("report.html", render_identifier_report(content).encode())
    out.write(export.METRICS, metrics.encode())
    return content


def plan_identifier(config: TrainConfig, card: DetectorCard, splits: Splits) -> dict[str, Any]:
    """Return what `touchstone train --dry-run` shows for the method `identify`, as plain JSON.

    Args:
        config: The settings.
        card: The card of the detector that computes the embeddings.
        splits: The splits.

    Returns:
        The settings of the head, and `classes`. `left_out` has the number of training images of
        each class with too few images. `held_out` names the generators that nothing is fitted on.
        `splits` has the numbers of images by split and class.

    Raises:
        ConfigError: A class has too few images, there are fewer than two classes, or a name in
            `identify.held_out` matches no training row.
    """
    tables = {"train": splits.train, "validation": splits.validation} | (
        {"test": splits.test} if splits.test is not None else {}
    )
    section, request = config.identify or Identify(), select_rows(config, tables)
    counts_by_split = {}
    for split, rows in request.rows.items():
        counts = Counter(name for name in request.named[split].names_at(rows) if name)
        known_counts = {name: counts[name] for name in request.classes if counts[name]}
        others = {name: n for name, n in sorted(counts.items()) if name not in known_counts}
        counts_by_split[split] = {"images": len(rows), "known": known_counts, "others": others}
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
        "splits": counts_by_split,
        "data": dict(splits.findings),
    }
