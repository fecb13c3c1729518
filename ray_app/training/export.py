"""A finished training as a detector: `export` writes a card, and weights that `score`, `serve`, timm and transformers load.

`inherited` is the licence of the card, the strictest of initial weights and data, for a person to judge; `card_figures` what was measured,
one line per figure with n and the 95 % interval.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml
from pydantic import BaseModel
from torch import nn

from ray_app.config import find_config, read_mapping
from ray_app.datasets.labels import names_a_real
from ray_app.detectors import verify_weights
from ray_app.detectors.card import Backbone, Calibration, DetectorCard, PublishedFigure, Weights, load_card
from ray_app.detectors.card_sections import SeenNames, TrainingData
from ray_app.detectors.detector import load_network
from ray_app.detectors.weights import WeightSet, resolve_part
from ray_app.errors import ConfigError, DetectorError
from ray_app.storage import Store, local_path, strip_secrets
from ray_app.training import config, weight_files

CARD = "card.yaml"
_DECIDES_SIZE = {"family", "architecture", "backbone", "preprocessing", "output"}
Terms = Literal["permissive", "restricted", "non-commercial", "research-only", "none-stated"]
STRICTNESS: tuple[Terms, ...] = ("permissive", "restricted", "non-commercial", "research-only", "none-stated")
# The first that is found decides; what none of them knows is `restricted`: terms of its own, to be read.
_TOLD_BY: tuple[tuple[Terms, str], ...] = (
    ("none-stated", r"^\s*(none|unknown)?\s*$|\b(none|not|no licen[cs]e) (stated|known|published|given)\b"),
    ("research-only", r"\bresearch\b|\bacademic\b"),
    ("non-commercial", r"\bNC\b|\bnon-?commercial\b"),
    ("permissive", r"\b(MIT|BSD|ISC|Apache|CC0|CC[ -]BY|ODC-BY|CDLA-Permissive|Unlicense|public domain|our own)\b"),
)
MOST_GENERATORS = 40  # beyond it a card would be a table of thousands of rows; metrics.json has them all
# The keys of `metrics.detection_figures` and `pixel_figures` (whose `n` counts masks), as cards call them, and which images they are of.
# `at 0` means: fake above log-odds 0.
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


@dataclass(frozen=True)
class TrainedDetector:
    """What a training made and found.

    `card` is the training card (networks.training_card), `network` the deployable network with its chosen weights. `validation` and
    `test` are of `metrics.detection_figures`, with those of `pixel_figures` where masks were judged. `findings` are those of
    `datasets.splits.make_splits`; `environment` plain facts by name, such as versions and device; `best_step` the step of the
    checkpoint that was chosen.
    """

    recipe: config.Recipe
    card: DetectorCard
    network: nn.Module
    calibration: Calibration | None
    validation: Mapping[str, Any]
    test: Mapping[str, Any] | None
    findings: Mapping[str, Any]
    steps: int
    seconds: float
    environment: Mapping[str, Any]
    best_step: int | None = None


def export(out: Store, made: TrainedDetector) -> DetectorCard:
    """Write weights, what their libraries need beside them, `model.onnx` if the recipe requests it, and last `card.yaml`; returns the card.

    Everything is made in a temporary folder first and loaded back there, so that what appears in `out` is what was trained. Raises
    DetectorError where the network is not the one that the card describes, or cannot go to ONNX; StorageError.
    """
    with tempfile.TemporaryDirectory(prefix="touchstone-export-") as scratch:
        folder = Path(scratch)
        weights = weight_files.write_weights(made.network, made.card, folder)
        facts = _card_facts(made, weights, folder)
        (folder / CARD).write_text(_as_yaml(facts), encoding="utf-8")
        card = load_card(folder / CARD)
        verify_weights(card, folder / weight_files.WEIGHTS)
        loaded = load_network(card)
        _require_same(loaded, made.network, card)
        if made.recipe.export.onnx:
            weight_files.export_onnx(loaded, card, folder / weight_files.ONNX)
            weight_files.onnx_parity(loaded, card, folder / weight_files.ONNX)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == CARD):
            out.write_file(path.name, path)
        if "://" in out.url:
            return card
        return load_card(Path(local_path(out.url)) / CARD)


def card_yaml(card: BaseModel) -> str:
    """A card's file: all that is not as by default, in the order of its fields."""
    return _as_yaml(card.model_dump(mode="json", exclude_defaults=True))


def _as_yaml(facts: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=140)
    return text


def _require_same(loaded: nn.Module, trained: nn.Module, card: DetectorCard) -> None:
    """A backbone is a file of its own: what was learned in it, or begun from another one, is not in the files that were written."""
    there, state = loaded.state_dict(), trained.state_dict()
    if other := [name for name, tensor in state.items() if not torch.equal(there[name], tensor.cpu())]:
        raise DetectorError(f"{card.name}: loaded back it is not what was trained: {len(other)} tensors differ ({other[0]}, …)",
                            hint="name the backbone that training begins from under card.backbone, and train the head alone")  # fmt: skip


def _card_facts(made: TrainedDetector, weights: Weights, folder: Path) -> dict[str, Any]:
    """The card's YAML: the training card's network and pixels, everything else of this training."""
    recipe, card = made.recipe, made.card
    licence = inherited(recipe, card)
    own = {
        "name": recipe.name,
        "title": recipe.export.title or recipe.title or f"{card.title}, trained by the recipe {recipe.name}",
        "weights": weights,
        "calibration": made.calibration,
        "size": card.size if _DECIDES_SIZE.isdisjoint(recipe.card) else weight_files.size_of(card),
        "demonstration": bool(recipe.card.get("demonstration", False)),
        "licence": licence.licence,
        "terms": licence.terms,
        "licence_note": licence.note or None,
        "citation": recipe.export.citation or f"trained by Touchstone's recipe {recipe.name}; {recipe.source or card.citation}",
        "source": _source(recipe),
        "training_data": _training_data(made),
        "published": _published(made),
        "notes": (*recipe.export.notes, *_notes(made)),
        "precision_note": None,
        "golden": (),
        "variants": {},
    }
    facts = card.model_copy(update=own).model_dump(mode="json", exclude_defaults=True)
    if card.backbone is not None:
        facts["backbone"] = _backbone(card.backbone, folder)
    return facts


def _backbone(backbone: Backbone, folder: Path) -> str | dict[str, Any]:
    """A shipped backbone by its name; another one whole, and a file that lies beside its description goes along."""
    try:
        shipped = read_mapping(find_config("backbones", backbone.name))
    except ConfigError:
        shipped = {}
    if shipped and Backbone.model_validate(shipped).model_dump() == backbone.model_dump():  # equal but for where they were read from
        return str(backbone.name)
    facts = backbone.model_dump(mode="json", exclude_defaults=True)
    if "://" not in backbone.weights.uri:
        path = resolve_part(WeightSet(backbone.name, backbone.weights, backbone.folder, owner=backbone.name))
        shutil.copyfile(path, folder / path.name)
        facts["weights"]["uri"] = path.name
    return facts


def _source(recipe: config.Recipe) -> str:
    return f"touchstone train {recipe.name}"


def _training_data(made: TrainedDetector) -> TrainingData:
    data = made.recipe.data
    return TrainingData(
        name=data_name(made.recipe),
        images=_counted(made.findings),
        licence=data.licence or "not stated",
        source=places_of(made.recipe) or None,
        **_seen_names(made)._asdict(),
    )


def _seen_names(made: TrainedDetector) -> SeenNames:
    """Who made the fakes that were learned from, and which sources the real images are of by which weights were fitted or chosen; also what
    a detector had seen whose weights these were at first.
    """
    splits = made.findings.get("splits", {})
    learned, chosen = (splits.get(name, {}).get("generators", {}) for name in ("train", "validation"))
    names = SeenNames.of((name for name in learned if not names_a_real(name)), filter(names_a_real, (*learned, *chosen)))
    return names.after(made.card.training_data) if made.recipe.initial.start == "card" else names


def places_of(recipe: config.Recipe) -> str:
    """Where a recipe's training data lie, without secrets."""
    return ", ".join(strip_secrets(at) for source in recipe.data.train for at in source.at)


def data_name(recipe: config.Recipe) -> str:
    """What a card calls a recipe's data: their name, else their places."""
    return recipe.data.name or places_of(recipe) or "not named"


def _counted(findings: Mapping[str, Any]) -> str | None:
    counts = findings.get("splits", {}).get("train")
    if not counts:
        return None
    return f"{counts['real'] + counts['fake']:,}: {counts['real']:,} real, {counts['fake']:,} fake"


def _published(made: TrainedDetector) -> tuple[PublishedFigure, ...]:
    """Of the test split and its generators; of validation, on which the weights were chosen, the generators only where there is no test."""
    name, source = data_name(made.recipe), _source(made.recipe)
    test = card_figures(made.test, f"{name}, test", source) if made.test else ()
    chosen = "the weights were chosen on it"
    return test + card_figures(made.validation, f"{name}, validation", source, chosen, each_generator=made.test is None)


def _notes(made: TrainedDetector) -> list[str]:
    recipe = made.recipe
    chosen = f", the weights of step {made.best_step:,}" if made.best_step is not None else ""
    facts = ", ".join(f"{name} {value}" for name, value in made.environment.items() if isinstance(value, str | int | float))
    trained = f"{made.steps:,} steps of {recipe.loop.batch} images and {_duration(made.seconds)}{chosen}"
    notes = [f"Trained in {trained}; {facts or 'no more is known'}."]
    if made.validation:
        notes.append(f"Chosen by {recipe.validation.metric} on the validation split, whose figures are therefore too good.")
    if made.calibration is not None:
        notes.append("Calibrated on the validation split by Platt scaling; another mix of generators needs another calibration.")
    return notes + [f"Departs from its source: {departure}" for departure in recipe.departures]


def _duration(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    )


class Inherited(NamedTuple):
    """The card's licence, its terms, and which parts it is from."""

    licence: str
    terms: Terms
    note: str


class _Part(NamedTuple):
    what: str
    licence: str
    terms: Terms


def terms_of(licence: str) -> Terms:
    """The terms that a licence's name tells: `CC BY-NC 4.0` is non-commercial, an unknown name restricted, an empty one none-stated."""
    return next((terms for terms, words in _TOLD_BY if re.search(words, licence, re.IGNORECASE)), "restricted")


def inherited(recipe: config.Recipe, card: DetectorCard) -> Inherited:
    """The strictest of what the network began from, of its backbone and of the data; of equals the first.

    A network that begins at random inherits nothing from the card's weights. Data whose licence the recipe leaves out add nothing but
    the note that says so. `export.licence` in the recipe replaces the name and, by it, the terms.
    """
    parts = _parts(recipe, card)
    strictest = max(parts, key=lambda part: STRICTNESS.index(part.terms), default=_Part("nothing", "not stated", "permissive"))
    message = "; ".join(f"{part.what}: {part.licence}" for part in parts)
    if recipe.data.licence is None:
        message = "; ".join(filter(None, (message, "the training data's licence is not stated")))
    if recipe.export.licence is not None:
        given = recipe.export.licence
        return Inherited(given, terms_of(given), f"As the recipe states it. {message}")
    return Inherited(strictest.licence, strictest.terms, f"Inherited, the strictest of: {message}" if len(parts) > 1 else message)


def _parts(recipe: config.Recipe, card: DetectorCard) -> list[_Part]:
    parts = []
    if recipe.initial.start == "card":
        parts.append(_Part(f"initial weights, {card.name}", card.licence, card.terms))
    elif recipe.initial.start == "pretrained":
        stated = recipe.initial.licence
        parts.append(
            _Part(f"initial weights, of {card.name}", card.licence, card.terms)
            if stated is None
            else _Part("initial weights", stated, terms_of(stated))
        )
    if card.backbone is not None:
        parts.append(_Part(f"backbone, {card.backbone.name}", card.backbone.licence, terms_of(card.backbone.licence)))
    if recipe.data.licence is not None:
        parts.append(_Part("training data", recipe.data.licence, terms_of(recipe.data.licence)))
    return parts


def card_figures(
    figures: Mapping[str, Any], where: str, source: str, note: str | None = None, *, each_generator: bool = True
) -> tuple[PublishedFigure, ...]:
    """The figures of one split under the name `where`, and those of each generator where there are at most 40; absent ones left out."""
    found = list(_overall(figures, where, note))
    if each_generator and len(figures["generators"]) <= MOST_GENERATORS:
        found += _of_generators(figures["generators"], where, note)
    return tuple(PublishedFigure(verified=True, source=source, **figure) for figure in found)


def _overall(figures: Mapping[str, Any], where: str, note: str | None) -> Iterator[dict[str, Any]]:
    counts = {"all": figures["n_real"] + figures["n_fake"], "fake": figures["n_fake"], "masks": figures.get("n")}
    for key, (metric, of) in _IN_WORDS.items():
        if figures.get(key) is not None:
            yield _figure(where, metric, figures[key], counts[of], _note(figures.get(f"{key}_interval"), note))


def _of_generators(generators: Mapping[str, Mapping[str, Any]], where: str, note: str | None) -> Iterator[dict[str, Any]]:
    for name, own in generators.items():
        if own.get("auc") is not None and own["label"] == "fake":
            yield _figure(f"{where}, {name}", "AUC against all reals", own["auc"], own["n"], _note(own["auc_interval"], note))
        metric = "tpr" if own["label"] == "fake" else "tnr"
        yield _figure(f"{where}, {name}", f"{metric.upper()} at 0", own[metric], own["n"], _note(own["interval"], note))


def _figure(where: str, metric: str, value: float, n: int | None, note: str | None) -> dict[str, Any]:
    return {"set": where, "metric": metric, "value": round(float(value), 4), "n": n, "note": note}


def _note(interval: Sequence[float] | None, further: str | None) -> str | None:
    message = None if interval is None else f"95 % interval {interval[0]:.3f} to {interval[1]:.3f}"
    return "; ".join(filter(None, (message, further))) or None
