"""Write a finished training as a detector: a card, weights, metrics, and a report.

`export` writes the card, and weights that `score`, `serve`, timm, and transformers load. `finish`
evaluates the best checkpoint once more and writes card, metrics, scores, and report. If it is
interrupted, the same command writes all files again. `metrics.json` is written last and marks the
result as complete. `push` copies the detector to any fsspec URL or to the Hugging Face hub.

`inherit_licence` proposes the card's licence, the strictest of initial weights, backbone, and data.
A person has to judge it. `make_card_figures` lists the measured metrics with n and the 95 %
interval.
"""

import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from ray_app.datasets.labels import is_real_generator
from ray_app.detectors import verify_weights
from ray_app.detectors.card import (
    Backbone,
    DetectorCard,
    PublishedMetric,
    Weights,
    load_card,
)
from ray_app.detectors.card_sections import SeenNames, TrainingData
from ray_app.detectors.card_writer import describe_backbone, write_card
from ray_app.detectors.detector import load_network
from ray_app.detectors.licences import Terms, infer_terms
from ray_app.detectors.weights import WeightSet, hash_file, resolve_part
from ray_app.errors import ClusterError, ConfigError, DetectorError, StorageError, describe_error
from ray_app.metrics import FIGURES
from ray_app.reports import training as reports
from ray_app.reports.format import duration
from ray_app.storage import Store, strip_secrets
from ray_app.training import checkpoints, config, file_notes, run_directory, validate, weight_files
from ray_app.training.detector import load_trained
from ray_app.training.job import TrainingJob

CARD = "card.yaml"
_DECIDES_SIZE = {"family", "architecture", "backbone", "preprocessing", "output"}
STRICTNESS: tuple[Terms, ...] = (
    "permissive",
    "restricted",
    "non-commercial",
    "research-only",
    "none-stated",
)
# With more generators a card would be a table of thousands of rows. metrics.json has all of them.
MAX_GENERATORS = 40
# The keys of `metrics.detection_figures` and `pixel_figures` (whose `n` counts masks), with their
# names on cards and the images that they count. `at 0`: calibrated log-odds above 0 are fake.
_CARD_METRICS = {
    "auc": ("AUC", "all"),
    "average_precision": ("average precision", "all"),
    "mean_generator_auc": ("AUC, mean over generators", "all"),
    "worst_generator_auc": ("AUC, worst generator", "all"),
    "tpr_at_fpr_1": ("TPR at 1 % FPR", "fake"),
    "balanced_accuracy": ("balanced accuracy at 0", "all"),
    "f1": ("F1 at 0", "all"),
    "pixel_f1": ("pixel F1", "masks"),
    "pixel_iou": ("pixel IoU", "masks"),
}


def export(
    out: Store,
    recipe: config.Recipe,
    card: DetectorCard,
    network: nn.Module,
    facts: reports.TrainingFacts,
) -> DetectorCard:
    """Write weights, configuration files for timm or transformers, and the card; return the card.

    All files are first written to a temporary folder and loaded again. They are copied to `out`
    only if the loaded tensors equal the trained tensors. `card.yaml` is copied last. Raises
    DetectorError if the network differs from the one that the card describes.
    """
    with tempfile.TemporaryDirectory(prefix="touchstone-export-") as scratch:
        folder = Path(scratch)
        weights = weight_files.write_weights(network, card, folder)
        write_card(folder / CARD, _make_card_facts(recipe, card, facts, weights, folder))
        exported = load_card(folder / CARD)
        verify_weights(exported, folder / weight_files.WEIGHTS)
        loaded = load_network(exported)
        exported_state = loaded.state_dict()
        # A backbone is a file of its own. If it learned, or another backbone was loaded, its
        # tensors are not in the files that were written.
        if differing := [
            name
            for name, tensor in network.state_dict().items()
            if not torch.equal(exported_state[name], tensor.cpu())
        ]:
            raise DetectorError(
                f"{exported.name}: {len(differing)} tensors of the exported files differ from the trained network ({differing[0]}, …)",
                hint="set card.backbone to the backbone that training starts from, and train only the head",
            )
        for path in sorted(folder.iterdir(), key=lambda path: path.name == CARD):
            out.write_file(path.name, path)
    local_path = out.local_path(CARD)
    return load_card(local_path) if local_path else exported


def _make_card_facts(
    recipe: config.Recipe,
    card: DetectorCard,
    facts: reports.TrainingFacts,
    weights: Weights,
    folder: Path,
) -> dict[str, Any]:
    """Return the content of the card, from the training card and the facts of this training."""
    licence = inherit_licence(recipe, card)
    changes = {
        "name": recipe.name,
        "title": recipe.export.title
        or recipe.title
        or f"{card.title}, trained by the recipe {recipe.name}",
        "weights": weights,
        "calibration": facts.calibration,
        "size": card.size
        if _DECIDES_SIZE.isdisjoint(recipe.card)
        else weight_files.measure_size(card),
        "demonstration": bool(recipe.card.get("demonstration", False)),
        "licence": licence.licence,
        "terms": licence.terms,
        "licence_note": licence.note or None,
        "citation": recipe.export.citation
        or f"trained by Touchstone's recipe {recipe.name}; {recipe.source or card.citation}",
        "source": f"touchstone train {recipe.name}",
        "training_data": _make_training_data(recipe, card, facts.data),
        "published": _list_published(recipe, facts),
        "notes": (*recipe.export.notes, *_make_notes(recipe, facts)),
        "precision_note": None,
        "golden": (),
        "variants": {},
    }
    content = card.model_copy(update=changes).model_dump(mode="json", exclude_defaults=True)
    if card.backbone is not None:
        content["backbone"] = _copy_backbone(card.backbone, folder)
    return content


def _copy_backbone(backbone: Backbone, folder: Path) -> str | dict[str, Any]:
    """Return what the card states of its backbone.

    The weights of a backbone that is not shipped are copied into the folder if they are next to its
    description.
    """
    facts = describe_backbone(backbone)
    if not isinstance(facts, str) and "://" not in backbone.weights.uri:
        path = resolve_part(
            WeightSet(backbone.name, backbone.weights, backbone.folder, owner=backbone.name)
        )
        shutil.copyfile(path, folder / path.name)
        facts["weights"]["uri"] = path.name
    return facts


def _make_training_data(
    recipe: config.Recipe, card: DetectorCard, data: reports.DataFindings
) -> TrainingData:
    """Return the generators and the sources of the images that decided the weights.

    Training images fitted the weights and validation images chose among them. If the training
    started from the card's weights, the images of those weights are added.
    """
    train, validation = (
        data.splits.get(name, reports.SplitCounts()) for name in ("train", "validation")
    )
    generators = (name for name in train.generators if not is_real_generator(name))
    names = SeenNames.from_labels(
        generators, filter(is_real_generator, (*train.generators, *validation.generators))
    )
    return TrainingData(
        name=data_name(recipe),
        images=f"{train.real + train.fake:,}: {train.real:,} real, {train.fake:,} fake"
        if "train" in data.splits
        else None,
        licence=recipe.data.licence or "not stated",
        source=describe_sources(recipe) or None,
        **(names.merge(card.training_data) if recipe.initial.start == "card" else names)._asdict(),
    )


def describe_sources(recipe: config.Recipe) -> str:
    """Return the URLs of a recipe's training data, without secrets."""
    return ", ".join(strip_secrets(at) for source in recipe.data.train for at in source.at)


def data_name(recipe: config.Recipe) -> str:
    """Return the name of a recipe's training data for cards.

    If the recipe has no name of its data, return the URLs of the data, or "not named" without URLs.
    """
    return recipe.data.name or describe_sources(recipe) or "not named"


def make_profile_facts(recipe: config.Recipe, weights: Path, title: str) -> dict[str, Any]:
    """Return the keys that the cards of identifiers and of describers have in common.

    The keys are `name`, `title`, `weights`, `training_data`, and `notes`. The title is used if the
    recipe has none.
    """
    return {
        "name": recipe.name,
        "title": recipe.export.title or recipe.title or title,
        "weights": Weights(uri=weights.name, sha256=hash_file(weights)),
        "training_data": TrainingData(
            name=data_name(recipe),
            licence=recipe.data.licence or "not stated",
            source=describe_sources(recipe) or None,
        ),
        "notes": recipe.export.notes,
    }


def _list_published(
    recipe: config.Recipe, facts: reports.TrainingFacts
) -> tuple[PublishedMetric, ...]:
    """Return the published metrics of the test split and of the validation split.

    The weights were chosen on validation, so its generators are listed only if there is no test
    split.
    """
    name, source = data_name(recipe), f"touchstone train {recipe.name}"
    test = make_card_figures(facts.test, f"{name}, test", source) if facts.test else ()
    note = "the weights were chosen on it"
    return test + make_card_figures(
        facts.validation, f"{name}, validation", source, note, each_generator=facts.test is None
    )


def _make_notes(recipe: config.Recipe, facts: reports.TrainingFacts) -> list[str]:
    best_step = f", the weights of step {facts.best_step:,}" if facts.best_step is not None else ""
    environment = ", ".join(
        f"{name} {value}"
        for name, value in facts.environment.items()
        if isinstance(value, str | int | float)
    )
    effort = f"{facts.steps:,} steps of {recipe.loop.batch} images and {duration(facts.seconds)}{best_step}"
    notes = [
        f"Trained in {effort}; {environment or 'no more is known'}.",
        f"Chosen by {recipe.validation.metric} on the validation split, whose figures are therefore too good.",
    ]
    if facts.calibration is not None:
        notes.append(
            "Calibrated on the validation split by Platt scaling; another mix of generators needs another calibration."
        )
    return notes + [f"Departs from its source: {departure}" for departure in recipe.departures]


class InheritedLicence(NamedTuple):
    """A licence that a card inherits.

    `terms` is the class of its terms, such as `permissive`, and `note` lists the licence of each
    part.
    """

    licence: str
    terms: Terms
    note: str


def inherit_licence(recipe: config.Recipe, card: DetectorCard) -> InheritedLicence:
    """Return the strictest licence of the initial weights, the backbone, and the data.

    If several licences are equally strict, the first wins. A network that starts at random inherits
    nothing from the card's weights. If the recipe states no licence of the data, the data do not
    count, and the result's `note` mentions that. If the recipe sets `export.licence`, that licence
    is returned instead, with its terms.
    """
    parts = _list_licences(recipe, card)
    strictest = max(
        parts,
        key=lambda part: STRICTNESS.index(part.terms),
        default=InheritedLicence("not stated", "permissive", "nothing"),
    )
    message = "; ".join(f"{part.note}: {part.licence}" for part in parts)
    if recipe.data.licence is None:
        message = "; ".join(filter(None, (message, "the training data's licence is not stated")))
    if recipe.export.licence is not None:
        licence = recipe.export.licence
        return InheritedLicence(
            licence, infer_terms(licence), f"As the recipe states it. {message}"
        )
    return InheritedLicence(
        strictest.licence,
        strictest.terms,
        f"Inherited, the strictest of: {message}" if len(parts) > 1 else message,
    )


def _list_licences(recipe: config.Recipe, card: DetectorCard) -> list[InheritedLicence]:
    parts = []
    start, weights_licence = recipe.initial.start, recipe.initial.licence
    if start == "pretrained" and weights_licence is not None:
        parts.append(
            InheritedLicence(weights_licence, infer_terms(weights_licence), "initial weights")
        )
    elif start != "random":
        parts.append(
            InheritedLicence(
                card.licence,
                card.terms,
                f"initial weights, {'of ' if start == 'pretrained' else ''}{card.name}",
            )
        )
    if card.backbone is not None:
        parts.append(
            InheritedLicence(
                card.backbone.licence,
                infer_terms(card.backbone.licence),
                f"backbone, {card.backbone.name}",
            )
        )
    if recipe.data.licence is not None:
        parts.append(
            InheritedLicence(recipe.data.licence, infer_terms(recipe.data.licence), "training data")
        )
    return parts


def make_card_figures(
    figures: reports.Figures,
    name: str,
    source: str,
    note: str | None = None,
    *,
    each_generator: bool = True,
) -> tuple[PublishedMetric, ...]:
    """Return the metrics of one split in the form in which a card publishes them.

    Undefined metrics are left out. Metrics of each generator are added for up to `MAX_GENERATORS`
    generators.
    """
    rows = list(_iter_overall(figures, name, note))
    if each_generator and len(figures.generators) <= MAX_GENERATORS:
        rows += _iter_generators(figures.generators, name, note)
    return tuple(PublishedMetric(verified=True, source=source, **figure) for figure in rows)


def _iter_overall(
    figures: reports.Figures, name: str, note: str | None
) -> Iterator[dict[str, Any]]:
    counts = {"all": figures.n_real + figures.n_fake, "fake": figures.n_fake, "masks": figures.n}
    for key, (metric, kind) in _CARD_METRICS.items():
        if getattr(figures, key) is not None:
            yield _make_figure(
                name,
                metric,
                getattr(figures, key),
                counts[kind],
                figures.figure(key).interval,
                note,
            )


def _iter_generators(
    generators: Mapping[str, reports.GeneratorFigures], where: str, note: str | None
) -> Iterator[dict[str, Any]]:
    for name, metrics in generators.items():
        if metrics.auc is not None and metrics.label == "fake":
            yield _make_figure(
                f"{where}, {name}",
                "AUC against all reals",
                metrics.auc,
                metrics.n,
                metrics.auc_interval,
                note,
            )
        metric, rate = (
            ("TPR at 0", metrics.tpr) if metrics.label == "fake" else ("TNR at 0", metrics.tnr)
        )
        if rate is not None:
            yield _make_figure(f"{where}, {name}", metric, rate, metrics.n, metrics.interval, note)


def _make_figure(
    name: str,
    metric: str,
    value: float,
    n: int | None,
    interval: Sequence[float] | None,
    remark: str | None,
) -> dict[str, Any]:
    interval_text = f"95 % interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else None
    note = "; ".join(filter(None, (interval_text, remark))) or None
    return {"set": name, "metric": metric, "value": round(float(value), 4), "n": n, "note": note}


METRICS = "metrics.json"
PROBE = "probe.json"  # Only a linear probe writes it.
MAX_POINTS = 500  # Points of a curve in the report.
# Files for other people. The state of the run stays private: train.json, checkpoints, and scores
# may contain paths and names of people.
_CARDS = ("card.yaml", "identifier.yaml", "describer.yaml")
PUSHED = ("config.json", "preprocessor_config.json", "metrics.json", "report.html", *_CARDS)
_WEIGHTS = (".safetensors", ".pth", ".pt")
_HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)/?")


def find_best_checkpoint(job: TrainingJob) -> tuple[checkpoints.CheckpointEntry, float]:
    """Return the stored checkpoint that is best by the recipe's metric, with the metric's value.

    The metric is `validation.metric`. Checkpoints that were not validated yet are validated first.
    Raises ClusterError if no checkpoint has a value.
    """
    metric = job.config.validation.metric
    for checkpoint in validate.list_unjudged_checkpoints(job):
        validate.run_on_device(job, validate.validate_alone, checkpoint)
    judged = {metrics["step"]: metrics for metrics in validate.read_validations(job.out)}
    best: tuple[checkpoints.CheckpointEntry, float] | None = None
    for checkpoint in checkpoints.list_checkpoints(job.out):
        value = judged.get(checkpoint.step, {}).get(metric)
        if value is not None and (best is None or validate.is_better(metric, value, best[1])):
            best = checkpoint, value
    if best is None:
        raise ClusterError(
            f"no checkpoint has a value of the metric '{metric}'",
            hint="check that the validation split has the images that the metric needs, or set another validation.metric",
        )
    return best


def finish(
    job: TrainingJob, findings: Mapping[str, Any], claim: Mapping[str, Any]
) -> dict[str, Any]:
    """Choose the best checkpoint, calibrate and evaluate it, export it, and write the report.

    Call this function when the last training step is in a checkpoint. `claim` is the content of
    `train.json`, and the result that of `metrics.json`.
    """
    best, value = find_best_checkpoint(job)
    log = file_notes.FileLog(job.out)
    evaluation: validate.CheckpointEvaluation = validate.run_on_checkpoint(
        job, best.name, validate.evaluate_splits
    )
    verdicts = evaluation.splits
    log.print_new()
    for split, verdict in verdicts.items():
        rows = job.rows(split).take(pa.array(verdict.judged.rows))
        labels = {
            name: rows["input"].combine_chunks().field(name) for name in ("label", "generator")
        }
        job.out.write(
            f"scores/{split}.parquet",
            serialize_rows(rows, {**labels, "score": pa.array(verdict.judged.scores)}),
        )
    history = list(run_directory.read_history(job.out, run_directory.HISTORY))
    unreadable = file_notes.write_unreadable(job.out)
    facts = reports.TrainingFacts(
        name=job.config.name,
        title=job.config.title,
        out=job.out.url,
        metric=job.config.validation.metric,
        best_step=best.step,
        best_value=value,
        steps=max((line["step"] + 1 for line in history), default=best.step),
        seconds=round(sum(line["wait_s"] + line["compute_s"] for line in history), 2),
        wait_s_per_step=round(float(np.mean([line["wait_s"] for line in history])), 5)
        if history
        else None,
        unreadable=sum(1 for note in unreadable if note["split"] == "train"),
        unreadable_files=file_notes.name_files(unreadable),
        mask_warning=file_notes.describe_misread_masks(job.out),
        calibration=evaluation.calibration,
        calibration_note=evaluation.calibration_note,
        validation=reports.Figures.from_dict(verdicts["validation"].figures),
        test=reports.Figures.from_dict(verdicts["test"].figures) if "test" in verdicts else None,
        validations=tuple(validate.read_validations(job.out)),
        data=reports.DataFindings.from_dict(findings),
        recipe=run_directory.extract_recipe(job.config),
        environment={
            **claim["environment"],
            "device": evaluation.device,
            "workers": job.layout.workers,
            # A resumed training may use another precision. A head on features has no history.
            **(
                {"precision": ", then ".join(dict.fromkeys(line["precision"] for line in history))}
                if history
                else {}
            ),
        },
        probe=json.loads(job.out.read(PROBE)) if job.out.exists(PROBE) else None,
    )
    with checkpoints.fetch_checkpoint(job.out, best.name) as folder:
        card = export(
            job.out, job.config, job.card, load_trained(job.config, job.card, folder), facts
        )
    card_summary = {
        "name": card.name,
        "licence": card.licence,
        "terms": card.terms,
        "weights": card.weights.sha256,
    }
    facts = replace(facts, card=card_summary)
    write_curves(job.out, history, facts.validations)
    mistakes = [mistake for verdict in verdicts.values() for mistake in verdict.mistakes]
    content = facts.to_dict()
    page = reports.render_training_report(
        {**content, "history": _downsample(history), "mistakes": mistakes}
    )
    job.out.write("report.html", page.encode())
    job.out.write(METRICS, json.dumps(content, indent=2, ensure_ascii=False).encode())
    return content


def _downsample(
    history: Sequence[Mapping[str, Any]], max_points: int = MAX_POINTS
) -> list[dict[str, float]]:
    """Return up to `max_points` points of a curve, each the mean of the steps around it."""
    keys = ("step", "loss", "rate", "gradient_norm", "images_per_s")
    parts = (
        np.array_split(np.arange(len(history)), min(max_points, len(history))) if history else []
    )
    return [
        {
            "step": int(history[part[0]]["step"]),
            **{key: float(np.mean([history[i][key] for i in part])) for key in keys[1:]},
        }
        for part in parts
    ]


def serialize_rows(rows: pa.Table, columns: Mapping[str, pa.Array]) -> bytes:
    """Return the bytes of a Parquet file with `image_id`, `uri`, `member`, and further columns."""
    buffer = io.BytesIO()
    identifiers = {name: rows[name] for name in ("image_id", "uri", "member")}
    pq.write_table(pa.table({**identifiers, **columns}), buffer, compression="zstd")
    return buffer.getvalue()


def write_curves(
    out: Store, history: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]
) -> None:
    """Write the metrics of all steps to `metrics.jsonl`, and the validations for TensorBoard."""
    out.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in history).encode())
    lines = [
        {
            "step": metrics["step"],
            **{name: metrics[name] for name in FIGURES if metrics.get(name) is not None},
        }
        for metrics in validations
    ]
    if lines:
        run_directory.write_events(out, 0, lines, prefix="validation")


def push(folder: str | Path, target: str) -> str:
    """Copy card, weights, metrics, and report of a training to a URL, and return the new URL.

    A repository that does not exist on the hub is created as a private one. The hub is that of
    $HF_ENDPOINT, with the login that huggingface_hub finds. On the hub, all files are one commit.
    Elsewhere, the card is written last. Raises ConfigError if the folder has no card, or the target
    is not a valid URL.
    """
    source = Store.open(str(folder))
    names = [name for name in source.names("") if name in PUSHED or name.endswith(_WEIGHTS)]
    if not set(names) & set(_CARDS):
        raise ConfigError(
            f"{source.url}: nothing to push, because none of {', '.join(_CARDS)} exists",
            hint="run touchstone train until it finishes, which writes the card",
        )
    names.sort(key=lambda name: name in _CARDS)
    with checkpoints.provide_local_folder(source, names) as local:
        if target.startswith("hf://"):
            return _push_to_hub(local, names, target)
        store = Store.open(target)
        for name in names:
            store.write_file(name, local / name)
    return store.url


def _push_to_hub(folder: Path, names: list[str], target: str) -> str:
    import huggingface_hub  # The import takes a third of a second.

    match = _HUB.fullmatch(target)
    if match is None:
        raise ConfigError(
            f"{strip_secrets(target)}: not a repository of models on the Hugging Face hub",
            hint="use hf://ORGANISATION/NAME",
        )
    try:
        hub: Any = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        hub.create_repo(match["repo"], private=True, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=match["repo"],
            folder_path=folder,
            allow_patterns=names,
            commit_message="Put there by touchstone train --push",
        )
    except Exception as error:  # Errors of the hub, of its HTTP library, and of its uploader.
        raise StorageError(
            f"cannot push to {target}: {describe_error(error)}",
            hint="run hf auth login, or set HF_TOKEN to a token that may write there; the trained detector is not lost",
        ) from error
    return str(commit.commit_url)
