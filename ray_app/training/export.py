"""A finished training as a detector: `export` writes a card, and weights that `score`, `serve`,
timm and transformers load.

`inherited` is the licence of the card, the strictest of initial weights and data, for a person to
judge; `card_figures` what was measured, one line per figure with n and the 95 % interval. `finish`
judges the best checkpoint once more and writes card, figures, scores and report: every file can be
written again by the same command; `metrics.json` comes last and says that all is there. `push`
copies the detector to any fsspec URL or to the Hugging Face hub.
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
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from ray_app.datasets.labels import names_a_real
from ray_app.detectors import verify_weights
from ray_app.detectors.card import (
    Backbone,
    DetectorCard,
    Platt,
    PublishedFigure,
    Weights,
    load_card,
)
from ray_app.detectors.card_sections import SeenNames, TrainingData
from ray_app.detectors.card_writer import describe_backbone, write_card
from ray_app.detectors.detector import load_network
from ray_app.detectors.weights import WeightSet, file_sha256, resolve_part
from ray_app.errors import ClusterError, ConfigError, DetectorError, StorageError, describe_error
from ray_app.metrics import FIGURES, fit_platt
from ray_app.reports import training as reports
from ray_app.reports.format import duration
from ray_app.storage import Store, strip_secrets
from ray_app.training import checkpoints, config, file_notes, run_directory, validate, weight_files
from ray_app.training.detector import load_trained
from ray_app.training.job import TrainingJob

CARD = "card.yaml"
_DECIDES_SIZE = {"family", "architecture", "backbone", "preprocessing", "output"}
Terms = Literal["permissive", "restricted", "non-commercial", "research-only", "none-stated"]
STRICTNESS: tuple[Terms, ...] = (
    "permissive",
    "restricted",
    "non-commercial",
    "research-only",
    "none-stated",
)
# The first that is found decides; what none of them knows is `restricted`: terms of its own, to be
# read.
_TERMS_BY_NAME: tuple[tuple[Terms, str], ...] = (
    (
        "none-stated",
        r"^\s*(none|unknown)?\s*$|\b(none|not|no licen[cs]e) (stated|known|published|given)\b",
    ),
    ("research-only", r"\bresearch\b|\bacademic\b"),
    ("non-commercial", r"\bNC\b|\bnon-?commercial\b"),
    (
        "permissive",
        r"\b(MIT|BSD|ISC|Apache|CC0|CC[ -]BY|ODC-BY|CDLA-Permissive|Unlicense|public domain|our own)\b",
    ),
)
# beyond it a card would be a table of thousands of rows; metrics.json has them all
MOST_GENERATORS = 40
# The keys of `metrics.detection_figures` and `pixel_figures` (whose `n` counts masks), as cards
# call them, and which images they are of. `at 0` means: fake above log-odds 0.
_IN_WORDS = {
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
    """Write weights, what their libraries need beside them, and last `card.yaml`; returns the card.

    `card`: the training card (networks.training_card); `network`: the deployable network with its
    chosen weights; `facts`: the training's document, but for the card. Everything is made in a
    temporary folder first and loaded back there, so that what appears in `out` is what was trained.
    Raises DetectorError where the network is not the one that the card describes; StorageError.
    """
    with tempfile.TemporaryDirectory(prefix="touchstone-export-") as scratch:
        folder = Path(scratch)
        weights = weight_files.write_weights(network, card, folder)
        write_card(folder / CARD, _card_facts(recipe, card, facts, weights, folder))
        made = load_card(folder / CARD)
        verify_weights(made, folder / weight_files.WEIGHTS)
        loaded = load_network(made)
        there = loaded.state_dict()
        # A backbone is a file of its own: what was learned in it, or begun from another one, is not
        # in the files that were written.
        if other := [
            name
            for name, tensor in network.state_dict().items()
            if not torch.equal(there[name], tensor.cpu())
        ]:
            raise DetectorError(
                f"{made.name}: loaded back it is not what was trained: {len(other)} tensors differ ({other[0]}, …)",
                hint="name the backbone that training begins from under card.backbone, and train the head alone",
            )
        for path in sorted(folder.iterdir(), key=lambda path: path.name == CARD):
            out.write_file(path.name, path)
    here = out.local_path(CARD)
    return load_card(here) if here else made


def _card_facts(
    recipe: config.Recipe,
    card: DetectorCard,
    facts: reports.TrainingFacts,
    weights: Weights,
    folder: Path,
) -> dict[str, Any]:
    """The card's YAML: the training card's network and pixels, everything else of this training."""
    licence = inherited(recipe, card)
    own = {
        "name": recipe.name,
        "title": recipe.export.title
        or recipe.title
        or f"{card.title}, trained by the recipe {recipe.name}",
        "weights": weights,
        "calibration": facts.calibration,
        "size": card.size if _DECIDES_SIZE.isdisjoint(recipe.card) else weight_files.size_of(card),
        "demonstration": bool(recipe.card.get("demonstration", False)),
        "licence": licence.licence,
        "terms": licence.terms,
        "licence_note": licence.note or None,
        "citation": recipe.export.citation
        or f"trained by Touchstone's recipe {recipe.name}; {recipe.source or card.citation}",
        "source": f"touchstone train {recipe.name}",
        "training_data": _training_data(recipe, card, facts.data),
        "published": _published(recipe, facts),
        "notes": (*recipe.export.notes, *_notes(recipe, facts)),
        "precision_note": None,
        "golden": (),
        "variants": {},
    }
    content = card.model_copy(update=own).model_dump(mode="json", exclude_defaults=True)
    if card.backbone is not None:
        content["backbone"] = _backbone(card.backbone, folder)
    return content


def _backbone(backbone: Backbone, folder: Path) -> str | dict[str, Any]:
    """Return what the card says of the backbone. A file next to the description of one that is not
    shipped is copied into the folder.
    """
    facts = describe_backbone(backbone)
    if not isinstance(facts, str) and "://" not in backbone.weights.uri:
        path = resolve_part(
            WeightSet(backbone.name, backbone.weights, backbone.folder, owner=backbone.name)
        )
        shutil.copyfile(path, folder / path.name)
        facts["weights"]["uri"] = path.name
    return facts


def _training_data(
    recipe: config.Recipe, card: DetectorCard, data: reports.DataFindings
) -> TrainingData:
    """What was learned from: who made its fakes, and which sources the real images are of by which
    weights were fitted or chosen; also what a detector had seen whose weights these were at first.
    """
    learned, chosen = (
        data.splits.get(name, reports.SplitCounts()) for name in ("train", "validation")
    )
    makers = (name for name in learned.generators if not names_a_real(name))
    names = SeenNames.of(makers, filter(names_a_real, (*learned.generators, *chosen.generators)))
    return TrainingData(
        name=data_name(recipe),
        images=f"{learned.real + learned.fake:,}: {learned.real:,} real, {learned.fake:,} fake"
        if "train" in data.splits
        else None,
        licence=recipe.data.licence or "not stated",
        source=places_of(recipe) or None,
        **(names.after(card.training_data) if recipe.initial.start == "card" else names)._asdict(),
    )


def places_of(recipe: config.Recipe) -> str:
    """Where a recipe's training data lie, without secrets."""
    return ", ".join(strip_secrets(at) for source in recipe.data.train for at in source.at)


def data_name(recipe: config.Recipe) -> str:
    """What a card calls a recipe's data: their name, else their places."""
    return recipe.data.name or places_of(recipe) or "not named"


def profile_facts(recipe: config.Recipe, weights: Path, title: str) -> dict[str, Any]:
    """Return the facts that cards of identifiers and describers share: names, weights, and data.

    Args:
        recipe: The recipe.
        weights: The file of the weights, in the folder of the card.
        title: The title if the recipe has none.
    """
    return {
        "name": recipe.name,
        "title": recipe.export.title or recipe.title or title,
        "weights": Weights(uri=weights.name, sha256=file_sha256(weights)),
        "training_data": TrainingData(
            name=data_name(recipe),
            licence=recipe.data.licence or "not stated",
            source=places_of(recipe) or None,
        ),
        "notes": recipe.export.notes,
    }


def _published(recipe: config.Recipe, facts: reports.TrainingFacts) -> tuple[PublishedFigure, ...]:
    """Of the test split and its generators; of validation, on which the weights were chosen, the
    generators only where there is no test.
    """
    name, source = data_name(recipe), f"touchstone train {recipe.name}"
    test = card_figures(facts.test, f"{name}, test", source) if facts.test else ()
    chosen = "the weights were chosen on it"
    return test + card_figures(
        facts.validation, f"{name}, validation", source, chosen, each_generator=facts.test is None
    )


def _notes(recipe: config.Recipe, facts: reports.TrainingFacts) -> list[str]:
    chosen = f", the weights of step {facts.best_step:,}" if facts.best_step is not None else ""
    where = ", ".join(
        f"{name} {value}"
        for name, value in facts.environment.items()
        if isinstance(value, str | int | float)
    )
    trained = (
        f"{facts.steps:,} steps of {recipe.loop.batch} images and {duration(facts.seconds)}{chosen}"
    )
    notes = [
        f"Trained in {trained}; {where or 'no more is known'}.",
        f"Chosen by {recipe.validation.metric} on the validation split, whose figures are therefore too good.",
    ]
    if facts.calibration is not None:
        notes.append(
            "Calibrated on the validation split by Platt scaling; another mix of generators needs another calibration."
        )
    return notes + [f"Departs from its source: {departure}" for departure in recipe.departures]


class Inherited(NamedTuple):
    """A licence, its terms, and what it is of: for a card, from which parts it was inherited."""

    licence: str
    terms: Terms
    note: str


def terms_of(licence: str) -> Terms:
    """The terms that a licence's name implies: `CC BY-NC 4.0` is non-commercial, an unknown name
    restricted, an empty one none-stated.
    """
    return next(
        (terms for terms, words in _TERMS_BY_NAME if re.search(words, licence, re.IGNORECASE)),
        "restricted",
    )


def inherited(recipe: config.Recipe, card: DetectorCard) -> Inherited:
    """The strictest of what the network began from, of its backbone and of the data; of equals the
    first.

    A network that begins at random inherits nothing from the card's weights. Data whose licence the
    recipe leaves out add nothing but the note that says so. `export.licence` in the recipe replaces
    the name and, by it, the terms.
    """
    parts = _parts(recipe, card)
    strictest = max(
        parts,
        key=lambda part: STRICTNESS.index(part.terms),
        default=Inherited("not stated", "permissive", "nothing"),
    )
    message = "; ".join(f"{part.note}: {part.licence}" for part in parts)
    if recipe.data.licence is None:
        message = "; ".join(filter(None, (message, "the training data's licence is not stated")))
    if recipe.export.licence is not None:
        given = recipe.export.licence
        return Inherited(given, terms_of(given), f"As the recipe states it. {message}")
    return Inherited(
        strictest.licence,
        strictest.terms,
        f"Inherited, the strictest of: {message}" if len(parts) > 1 else message,
    )


def _parts(recipe: config.Recipe, card: DetectorCard) -> list[Inherited]:
    parts = []
    start, stated = recipe.initial.start, recipe.initial.licence
    if start == "pretrained" and stated is not None:
        parts.append(Inherited(stated, terms_of(stated), "initial weights"))
    elif start != "random":
        parts.append(
            Inherited(
                card.licence,
                card.terms,
                f"initial weights, {'of ' if start == 'pretrained' else ''}{card.name}",
            )
        )
    if card.backbone is not None:
        parts.append(
            Inherited(
                card.backbone.licence,
                terms_of(card.backbone.licence),
                f"backbone, {card.backbone.name}",
            )
        )
    if recipe.data.licence is not None:
        parts.append(Inherited(recipe.data.licence, terms_of(recipe.data.licence), "training data"))
    return parts


def card_figures(
    figures: reports.Figures,
    where: str,
    source: str,
    note: str | None = None,
    *,
    each_generator: bool = True,
) -> tuple[PublishedFigure, ...]:
    """The figures of one split under the name `where`, and those of each generator where there are
    at most 40; absent ones left out.
    """
    found = list(_overall(figures, where, note))
    if each_generator and len(figures.generators) <= MOST_GENERATORS:
        found += _of_generators(figures.generators, where, note)
    return tuple(PublishedFigure(verified=True, source=source, **figure) for figure in found)


def _overall(figures: reports.Figures, where: str, note: str | None) -> Iterator[dict[str, Any]]:
    counts = {"all": figures.n_real + figures.n_fake, "fake": figures.n_fake, "masks": figures.n}
    for key, (metric, of) in _IN_WORDS.items():
        if getattr(figures, key) is not None:
            yield _figure(
                where, metric, getattr(figures, key), counts[of], figures.figure(key).interval, note
            )


def _of_generators(
    generators: Mapping[str, reports.GeneratorFigures], where: str, note: str | None
) -> Iterator[dict[str, Any]]:
    for name, own in generators.items():
        if own.auc is not None and own.label == "fake":
            yield _figure(
                f"{where}, {name}", "AUC against all reals", own.auc, own.n, own.auc_interval, note
            )
        metric, rate = ("TPR at 0", own.tpr) if own.label == "fake" else ("TNR at 0", own.tnr)
        if rate is not None:
            yield _figure(f"{where}, {name}", metric, rate, own.n, own.interval, note)


def _figure(
    where: str,
    metric: str,
    value: float,
    n: int | None,
    interval: Sequence[float] | None,
    further: str | None,
) -> dict[str, Any]:
    message = f"95 % interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else None
    note = "; ".join(filter(None, (message, further))) or None
    return {"set": where, "metric": metric, "value": round(float(value), 4), "n": n, "note": note}


METRICS = "metrics.json"
PROBE = "probe.json"  # of a linear probe alone
MOST_POINTS = 500  # of a curve in the report
# What is for others. The run's own state (train.json, checkpoints, scores, which may name places
# and people) stays where it is.
_CARDS = ("card.yaml", "identifier.yaml", "describer.yaml")
PUSHED = ("config.json", "preprocessor_config.json", "metrics.json", "report.html", *_CARDS)
_WEIGHTS = (".safetensors", ".pth", ".pt")
_HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)/?")


def best_checkpoint(job: TrainingJob) -> tuple[checkpoints.CheckpointEntry, float]:
    """The kept checkpoint that is best by the recipe's metric, with its value; those that nobody
    judged are judged now.
    """
    metric = job.config.validation.metric
    for checkpoint in validate.unjudged_checkpoints(job):
        validate.on_device(job, validate.validate_alone, checkpoint)
    judged = {figures["step"]: figures for figures in validate.validations(job.out)}
    best: tuple[checkpoints.CheckpointEntry, float] | None = None
    for checkpoint in checkpoints.list_checkpoints(job.out):
        value = judged.get(checkpoint.step, {}).get(metric)
        if value is not None and (best is None or validate.is_better(metric, value, best[1])):
            best = checkpoint, value
    if best is None:
        raise ClusterError(
            f"no checkpoint has a value of {metric}",
            hint="has the validation split what it needs? choose another metric",
        )
    return best


def finish(
    job: TrainingJob, findings: Mapping[str, Any], claim: Mapping[str, Any]
) -> dict[str, Any]:
    """Choose, judge, calibrate, export, report; returns the content of `metrics.json`. `claim` is
    that of `train.json`.
    """
    best, value = best_checkpoint(job)
    log = file_notes.FileLog(job.out)
    verdicts: dict[str, validate.SplitEvaluation] = validate.on_checkpoint(
        job, best.name, validate.evaluate_splits
    )
    log.print_new()
    for split, verdict in verdicts.items():
        rows = job.rows(split).take(pa.array(verdict.judged.rows))
        labels = {
            name: rows["input"].combine_chunks().field(name) for name in ("label", "generator")
        }
        job.out.write(
            f"scores/{split}.parquet",
            rows_file(rows, {**labels, "score": pa.array(verdict.judged.scores)}),
        )
    calibration, why_not = calibrated(verdicts["validation"].judged)
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
        calibration=calibration,
        calibration_note=why_not,
        validation=reports.Figures.from_dict(verdicts["validation"].figures),
        test=reports.Figures.from_dict(verdicts["test"].figures) if "test" in verdicts else None,
        validations=tuple(validate.validations(job.out)),
        data=reports.DataFindings.from_dict(findings),
        recipe=run_directory.recipe_of(job.config),
        environment={
            **claim["environment"],
            "device": verdicts["validation"].device,
            "workers": job.layout.workers,
            # Going on elsewhere may change it; a head that was fitted on features has no history.
            **(
                {"precision": ", then ".join(dict.fromkeys(line["precision"] for line in history))}
                if history
                else {}
            ),
        },
        probe=json.loads(job.out.read(PROBE)) if job.out.exists(PROBE) else None,
    )
    with checkpoints.fetched(job.out, best.name) as folder:
        card = export(
            job.out, job.config, job.card, load_trained(job.config, job.card, folder), facts
        )
    named = {
        "name": card.name,
        "licence": card.licence,
        "terms": card.terms,
        "weights": card.weights.sha256,
    }
    facts = replace(facts, card=named)
    write_curves(job.out, history, facts.validations)
    mistakes = [mistake for verdict in verdicts.values() for mistake in verdict.mistakes]
    content = facts.to_dict()
    page = reports.render_training_report(
        {**content, "history": thinned(history), "mistakes": mistakes}
    )
    job.out.write("report.html", page.encode())
    job.out.write(METRICS, json.dumps(content, indent=2, ensure_ascii=False).encode())
    return content


def calibrated(judged: validate.Judged) -> tuple[Platt | None, str | None]:
    """Platt scaling on the validation split, or None and why there is none: a network that learned
    nothing cannot be calibrated.
    """
    try:
        return fit_platt(judged.scores, judged.labels), None
    except ValueError as error:
        return None, str(error)


def thinned(
    history: Sequence[Mapping[str, Any]], most: int = MOST_POINTS
) -> list[dict[str, float]]:
    """At most so many points of a curve, each the mean of the steps around it."""
    keys = ("step", "loss", "rate", "gradient_norm", "images_per_s")
    parts = np.array_split(np.arange(len(history)), min(most, len(history))) if history else []
    return [
        {
            "step": int(history[part[0]]["step"]),
            **{key: float(np.mean([history[i][key] for i in part])) for key in keys[1:]},
        }
        for part in parts
    ]


def rows_file(rows: pa.Table, columns: Mapping[str, pa.Array]) -> bytes:
    """A Parquet file of some labelled rows: their places (`image_id`, `uri`, `member`) and further
    `columns` of the same length.
    """
    buffer = io.BytesIO()
    place = {name: rows[name] for name in ("image_id", "uri", "member")}
    pq.write_table(pa.table({**place, **columns}), buffer, compression="zstd")
    return buffer.getvalue()


def write_curves(
    out: Store, history: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]]
) -> None:
    """Write `metrics.jsonl`, the whole history in one file, and the validations for TensorBoard."""
    out.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in history).encode())
    figures = [
        {"step": one["step"], **{name: one[name] for name in FIGURES if one.get(name) is not None}}
        for one in judged
    ]
    if figures:
        run_directory.write_events(out, 0, figures, prefix="validation")


def push(folder: str | Path, target: str) -> str:
    """Copy card, weights, metrics and report from a training's folder (any fsspec URL) to `target`;
    returns where they are now.

    `target`: any fsspec URL, where the card is written last, or hf://ORGANISATION/NAME, where all
    are one commit. A repository that is not there is made, and is private: who pushed it decides
    when others see it. The hub is that of $HF_ENDPOINT, with the login that huggingface_hub finds.
    Raises ConfigError for a folder without a card and a target that is none, StorageError where it
    cannot be done.
    """
    source = Store.open(str(folder))
    names = [name for name in source.names("") if name in PUSHED or name.endswith(_WEIGHTS)]
    if not set(names) & set(_CARDS):
        raise ConfigError(
            f"{source.url}: nothing to push: no card.yaml",
            hint="touchstone train writes it when a training ends",
        )
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
        raise ConfigError(
            f"{strip_secrets(target)}: not a repository of models on the hub",
            hint="hf://ORGANISATION/NAME",
        )
    try:
        hub: Any = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        hub.create_repo(place["repo"], private=True, exist_ok=True)
        made = hub.upload_folder(
            repo_id=place["repo"],
            folder_path=folder,
            allow_patterns=names,
            commit_message="Put there by touchstone train --push",
        )
    except Exception as error:  # the hub's own errors, its HTTP library's and its uploader's
        raise StorageError(
            f"cannot push to {target}: {describe_error(error)}",
            hint="hf auth login, or set HF_TOKEN to one that may write there; what was trained is safe where it is",
        ) from error
    return str(made.commit_url)
