"""From a finished training to a detector: a card, and weights that `score`, `serve`, timm and transformers take with no further step.

Knows networks, recipes, figures and cards. Knows nothing about how the training ran, or who is told.
"""

import glob
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ray_app.config import find_config
from ray_app.config.loading import read_mapping
from ray_app.detectors import verify_weights
from ray_app.detectors.cards import Backbone, Calibration, DetectorCard, Figure, TrainingData, Weights, load_card
from ray_app.detectors.families import load_network
from ray_app.detectors.weights import Part, resolve_part
from ray_app.errors import ConfigError, DetectorError
from ray_app.learning.card_figures import card_figures
from ray_app.learning.config import Recipe
from ray_app.learning.inheriting import inherited
from ray_app.learning.onnx_export import ONNX, export_onnx, onnx_parity
from ray_app.learning.weight_files import WEIGHTS, size_of, write_weights
from ray_app.storage import Store, local_path, strip_secrets

CARD = "card.yaml"
_DECIDES_SIZE = {"family", "architecture", "backbone", "preprocessing", "output"}


@dataclass(frozen=True)
class Made:
    """What a training made and found.

    `card` is the training card (networks.training_card), `network` the deployable network with its chosen weights. `validation` and
    `test` are of `metrics.detection_figures`, with those of `pixel_figures` where masks were judged. `findings` are those of
    `datasets.splitting.make_splits`; `environment` plain facts by name, such as versions and device; `best_step` the step of the
    checkpoint that was chosen.
    """

    recipe: Recipe
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


def export(out: Store, made: Made) -> DetectorCard:
    """Write weights, what their libraries need beside them, `model.onnx` if the recipe asks, and last `card.yaml`; returns the card.

    Everything is made in a temporary folder first and loaded back there, so that what appears in `out` is what was trained. Raises
    DetectorError where the network is not the one that the card describes, or cannot go to ONNX; StorageError.
    """
    with tempfile.TemporaryDirectory(prefix="touchstone-export-") as scratch:
        folder = Path(scratch)
        weights = write_weights(made.network, made.card, folder)
        facts = _card_facts(made, weights, folder)
        (folder / CARD).write_text(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=140), encoding="utf-8")
        card = load_card(folder / CARD)
        verify_weights(card, folder / WEIGHTS)
        loaded = load_network(card)
        _require_same(loaded, made.network, card)
        if made.recipe.export.onnx:
            export_onnx(loaded, card, folder / ONNX)
            onnx_parity(loaded, card, folder / ONNX)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == CARD):
            out.write_file(path.name, path)
        if "://" in out.url:
            return card
        return load_card(Path(local_path(out.url)) / CARD)


def _require_same(loaded: nn.Module, trained: nn.Module, card: DetectorCard) -> None:
    """A backbone is a file of its own: what was learned in it, or begun from another one, is not in the files that were written."""
    there, state = loaded.state_dict(), trained.state_dict()
    if other := [name for name, tensor in state.items() if not torch.equal(there[name], tensor.cpu())]:
        raise DetectorError(f"{card.name}: loaded back it is not what was trained: {len(other)} tensors differ ({other[0]}, …)",
                            hint="name the backbone that training begins from under card.backbone, and train the head alone")  # fmt: skip


def _card_facts(made: Made, weights: Weights, folder: Path) -> dict[str, Any]:
    """The card's YAML: the training card's network and pixels, everything else of this training."""
    recipe, card = made.recipe, made.card
    licence = inherited(recipe, card)
    own = {
        "name": recipe.name,
        "title": recipe.export.title or recipe.title or f"{card.title}, trained by the recipe {recipe.name}",
        "weights": weights,
        "calibration": made.calibration,
        "size": card.size if _DECIDES_SIZE.isdisjoint(recipe.card) else size_of(card),
        "demonstration": bool(recipe.card.get("demonstration", False)),
        "licence": licence.licence,
        "terms": licence.terms,
        "licence_note": licence.note or None,
        "citation": recipe.export.citation or _citation(made),
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
        path = resolve_part(Part(backbone.name, backbone.weights, backbone.folder, owner=backbone.name))
        shutil.copyfile(path, folder / path.name)
        facts["weights"]["uri"] = path.name
    return facts


def _source(recipe: Recipe) -> str:
    return f"touchstone train {recipe.name}"


def _citation(made: Made) -> str:
    return f"trained by Touchstone's recipe {made.recipe.name}; {made.recipe.source or made.card.citation}"


def _training_data(made: Made) -> TrainingData:
    data = made.recipe.data
    places = ", ".join(strip_secrets(at) for source in data.train for at in source.at)
    generators, complete = _generators(made)
    return TrainingData(
        name=_data_name(made),
        images=_counted(made.findings),
        licence=data.licence or "not stated",
        source=places or None,
        generators=generators,
        complete=complete,
    )


def _generators(made: Made) -> tuple[tuple[str, ...], bool]:
    """Globs of who made the fakes that were learned from, and whether these are all: weights that were a detector's saw its generators too,
    and of fakes whose maker nobody knew nothing can be said.
    """
    given = made.findings.get("splits", {}).get("train", {}).get("generators", {})
    makers = [name for name in given if name != "real" and not name.startswith("real:")]
    own = tuple(glob.escape(name) for name in makers if name != "unknown")
    complete = bool(own) and "unknown" not in makers
    if made.recipe.initial.start == "card":
        before = made.card.training_data
        return tuple(dict.fromkeys((*before.generators, *own))), before.complete and complete
    return own, complete


def _data_name(made: Made) -> str:
    data = made.recipe.data
    return data.name or ", ".join(strip_secrets(at) for source in data.train for at in source.at) or "not named"


def _counted(findings: Mapping[str, Any]) -> str | None:
    counts = findings.get("splits", {}).get("train")
    if not counts:
        return None
    return f"{counts['real'] + counts['fake']:,}: {counts['real']:,} real, {counts['fake']:,} fake"


def _published(made: Made) -> tuple[Figure, ...]:
    """Of the test split and its generators; of validation, on which the weights were chosen, the generators only where there is no test."""
    name, source = _data_name(made), _source(made.recipe)
    test = card_figures(made.test, f"{name}, test", source) if made.test else ()
    chosen = "the weights were chosen on it"
    return test + card_figures(made.validation, f"{name}, validation", source, chosen, each_generator=made.test is None)


def _notes(made: Made) -> list[str]:
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
