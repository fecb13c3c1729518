"""From embeddings with class names to an identifier in files: head, threshold, card; and what it is worth. No Ray, no image.

made = make_identifier(folder, recipe, card, facts, {"train": Labelled(…), "validation": …, "test": …}, classes)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ray_app.detectors.cards import DetectorCard, Figure, TrainingData, Weights
from ray_app.detectors.weights import file_sha256
from ray_app.errors import ConfigError
from ray_app.learning.config import Recipe
from ray_app.learning.identifier_figures import measured
from ray_app.learning.identifier_fitting import Fitted, Floats, fit, threshold
from ray_app.learning.identify import Identify
from ray_app.learning.inheriting import inherited
from ray_app.profiling.cards import IdentifierCard, OpenSet, load_identifier
from ray_app.profiling.identifying import Identified, Identifier
from ray_app.storage import strip_secrets

CARD, WEIGHTS = "identifier.yaml", "head.safetensors"
_PUBLISHED = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "abstained": "share abstained on",
    "open_set_auroc": "AUROC, known against unknown",
}


@dataclass(frozen=True)
class Labelled:
    """Embeddings (n, d) of one split with the class names (n,) and groups (n,) of their images."""

    vectors: Floats
    names: Sequence[str]
    groups: Sequence[str]


@dataclass(frozen=True)
class Made:
    """A written identifier: its card, what the fit found, its figures by split, and what it says of each image of a split."""

    card: IdentifierCard
    fitted: Fitted
    figures: dict[str, dict[str, Any]]
    said: dict[str, Identified]


def make_identifier(
    folder: Path, recipe: Recipe, card: DetectorCard, embedding: Mapping[str, Any], splits: Mapping[str, Labelled], classes: Sequence[str]
) -> Made:
    """Fit a head on `train`, set its threshold on `validation`, measure it there and on `test`, and write head and card into `folder`.

    `card`: of the detector whose embeddings these are, made as `embedding` says (`detectors.embeddings.embedding_facts`). `train` holds
    images of `classes` alone; the others may hold any. Raises ConfigError for a class without a training image, and where validation is
    too small.
    """
    config, train = recipe.identify or Identify(), splits["train"]
    if missing := [name for name in classes if name not in set(train.names)]:
        raise ConfigError(f"not one training image of {', '.join(missing)} could be read")
    codes = np.array([classes.index(name) for name in train.names], np.int64)
    fitted = fit(train.vectors, codes, train.groups, config)
    _write_head(folder / WEIGHTS, fitted)
    facts = _facts(folder, recipe, card, embedding, classes, fitted, len(train.names))
    open_set = _open_set(folder, facts, config, splits["validation"])
    final = _card(folder, facts | {"open_set": open_set})
    said = {name: Identifier(final).identify(one.vectors) for name, one in splits.items() if name != "train"}
    figures = {name: measured(found, splits[name].names) for name, found in said.items()}
    published = _published(recipe, figures)
    return Made(_card(folder, facts | {"open_set": open_set, "published": published}), fitted, figures, said)


def _write_head(path: Path, fitted: Fitted) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(tensor, np.float32) for name, tensor in fitted.tensors.items()}, path)


def _facts(
    folder: Path, recipe: Recipe, card: DetectorCard, embedding: Mapping[str, Any], classes: Sequence[str], fitted: Fitted, images: int
) -> dict[str, Any]:
    """The card's YAML but for its threshold and figures."""
    config, licence = recipe.identify or Identify(), inherited(recipe, card)
    families = {name: config.families[name] for name in classes if name in config.families}
    return {
        "name": recipe.name,
        "title": recipe.export.title or recipe.title or f"Which of {len(classes)} generators, by embeddings of {card.name}",
        "weights": Weights(uri=WEIGHTS, sha256=file_sha256(folder / WEIGHTS)),
        "licence": licence.licence,
        "source": f"touchstone train {recipe.name}",
        "training_data": TrainingData(
            name=recipe.data.name or _places(recipe) or "not named",
            images=f"{images:,} of {len(classes)} generators",
            licence=recipe.data.licence or "not stated",
            source=_places(recipe) or None,
            generators=tuple(classes),
        ),
        "notes": (*recipe.export.notes, *([licence.note] if licence.note else []), *_notes(fitted, config)),
        "detector": card.name,
        "embedding": dict(embedding),
        "classes": tuple(classes),
        "families": families,
        "head": config.head,
        "scale": fitted.scale,
    }


def _places(recipe: Recipe) -> str:
    return ", ".join(strip_secrets(at) for source in recipe.data.train for at in source.at)


def _notes(fitted: Fitted, config: Identify) -> list[str]:
    prior = "every generator as likely as any other" if config.balanced else "the mix of the training images"
    if fitted.why_not:
        return [f"Its probabilities are not calibrated: {fitted.why_not}."]
    return [f"Its probabilities are calibrated by one temperature, {fitted.temperature:.3g}, on training images by folds, for {prior}."]


def _open_set(folder: Path, facts: Mapping[str, Any], config: Identify, validation: Labelled) -> OpenSet | None:
    """The threshold below which nothing is named, from validation images of known generators; None where every image is to be named."""
    if not config.abstains:
        return None
    undecided = OpenSet(method=config.open_set, threshold=0.0, abstains=config.abstains, n=1)
    identifier = Identifier(_card(folder, dict(facts) | {"open_set": undecided}))
    known = np.isin(np.array(validation.names, object), facts["classes"])
    vectors = validation.vectors[known]
    confidence = identifier.confidence(vectors, identifier.logits(vectors)) if len(vectors) else np.empty(0, np.float32)
    return undecided.model_copy(update={"threshold": threshold(confidence, config.abstains), "n": len(confidence)})


def _card(folder: Path, facts: Mapping[str, Any]) -> IdentifierCard:
    """The card of these facts, written and read back."""
    told = IdentifierCard.model_validate(dict(facts)).model_dump(mode="json", exclude_defaults=True)
    (folder / CARD).write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=140), encoding="utf-8")
    return load_identifier(folder / CARD)


def _published(recipe: Recipe, figures: Mapping[str, Mapping[str, Any]]) -> tuple[Figure, ...]:
    """The chief figures of the test split or, where there is none, of validation."""
    split = "test" if "test" in figures else "validation"
    rows = {name: figures[split]["figures"][name] for name in _PUBLISHED}
    where = f"{recipe.data.name or _places(recipe) or 'not named'}, {split}"
    return tuple(
        Figure(set=where, metric=_PUBLISHED[name], value=row["value"], n=row["n"], verified=True, source=f"touchstone train {recipe.name}")
        for name, row in rows.items()
        if row["value"] is not None
    )
