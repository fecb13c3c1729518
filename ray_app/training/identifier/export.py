"""Embeddings with class names → an identifier in files: `make_identifier` fits the head, sets the threshold, writes card and figures.

Figures (`measured`) are rows of `metrics.arrays.MetricEstimate`: of known generators with and without abstaining, of unknown ones, of
reals; 95 % intervals by the bootstrap over images, shares by Clopper and Pearson.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from ray_app.attribution.cards import IdentifierCard, OpenSet, load_identifier
from ray_app.attribution.identifier import Identified, Identifier
from ray_app.detectors.card import DetectorCard, PublishedFigure, TrainingData, Weights
from ray_app.detectors.weights import file_sha256
from ray_app.errors import ConfigError
from ray_app.metrics.arrays import MetricEstimate, undefined
from ray_app.metrics.attribution import attribution_of, open_set_auroc
from ray_app.metrics.calibration import expected_calibration_error
from ray_app.metrics.intervals import proportion
from ray_app.training.config import Identify, Recipe
from ray_app.training.export import data_name, inherited, places_of
from ray_app.training.identifier.fit import REAL, FittedIdentifier, Floats, fit, threshold

CARD, WEIGHTS = "identifier.yaml", "head.safetensors"
_PUBLISHED = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "abstained": "share abstained on",
    "open_set_auroc": "AUROC, known against unknown",
}
_NONE_KNOWN = "no image of a known generator"
_NONE_UNKNOWN = "no image of an unknown generator"
_OTHERS = "other generators"


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Embeddings (n, d) of one split with the class names (n,) and groups (n,) of their images."""

    vectors: Floats
    names: Sequence[str]
    groups: Sequence[str]


@dataclass(frozen=True)
class TrainedIdentifier:
    """A written identifier: its card, what the fit found, its figures by split, and what it says of each image of a split."""

    card: IdentifierCard
    fitted: FittedIdentifier
    figures: dict[str, dict[str, Any]]
    said: dict[str, Identified]


def make_identifier(
    folder: Path,
    recipe: Recipe,
    card: DetectorCard,
    embedding: Mapping[str, Any],
    splits: Mapping[str, LabelledEmbeddings],
    classes: Sequence[str],
) -> TrainedIdentifier:
    """Fit a head on `train`, set its threshold on `validation`, measure it there and on `test`, and write head and card into `folder`.

    `card`: of the detector whose embeddings these are, made as `embedding` says (`detectors.embeddings.embedding_facts`). `train` holds
    images of `classes` alone; the others may hold any. Raises ConfigError for a class without a training image, and where validation is
    too small.
    """
    from safetensors.numpy import save_file

    config, train = recipe.identify or Identify(), splits["train"]
    if missing := [name for name in classes if name not in set(train.names)]:
        raise ConfigError(f"not one training image of {', '.join(missing)} could be read")
    codes = np.array([classes.index(name) for name in train.names], np.int64)
    fitted = fit(train.vectors, codes, train.groups, config)
    save_file({name: np.ascontiguousarray(tensor, np.float32) for name, tensor in fitted.tensors.items()}, folder / WEIGHTS)
    facts = _facts(folder, recipe, card, embedding, classes, fitted, len(train.names))
    open_set = _open_set(folder, facts, config, splits["validation"])
    final = _card(folder, facts | {"open_set": open_set})
    content = {name: Identifier(final).identify(one.vectors) for name, one in splits.items() if name != "train"}
    figures = {name: measured(found, splits[name].names) for name, found in content.items()}
    published = _published(recipe, figures)
    return TrainedIdentifier(_card(folder, facts | {"open_set": open_set, "published": published}), fitted, figures, content)


def _facts(
    folder: Path,
    recipe: Recipe,
    card: DetectorCard,
    embedding: Mapping[str, Any],
    classes: Sequence[str],
    fitted: FittedIdentifier,
    images: int,
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
            name=data_name(recipe),
            images=f"{images:,} of {len(classes)} generators",
            licence=recipe.data.licence or "not stated",
            source=places_of(recipe) or None,
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


def _notes(fitted: FittedIdentifier, config: Identify) -> list[str]:
    prior = "every generator as likely as any other" if config.balanced else "the mix of the training images"
    if fitted.why_not:
        return [f"Its probabilities are not calibrated: {fitted.why_not}."]
    return [f"Its probabilities are calibrated by one temperature, {fitted.temperature:.3g}, on training images by folds, for {prior}."]


def _open_set(folder: Path, facts: Mapping[str, Any], config: Identify, validation: LabelledEmbeddings) -> OpenSet | None:
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
    content = IdentifierCard.model_validate(dict(facts)).model_dump(mode="json", exclude_defaults=True)
    (folder / CARD).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=140), encoding="utf-8")
    return load_identifier(folder / CARD)


def _published(recipe: Recipe, figures: Mapping[str, Mapping[str, Any]]) -> tuple[PublishedFigure, ...]:
    """The chief figures of the test split or, where there is none, of validation."""
    split = "test" if "test" in figures else "validation"
    rows = {name: figures[split]["figures"][name] for name in _PUBLISHED}
    where = f"{data_name(recipe)}, {split}"
    return tuple(
        PublishedFigure(
            set=where, metric=_PUBLISHED[name], value=row["value"], n=row["n"], verified=True, source=f"touchstone train {recipe.name}"
        )
        for name, row in rows.items()
        if row["value"] is not None
    )


def measured(said: Identified, truth: Sequence[str]) -> dict[str, Any]:
    """Of n images and their true class names (n,), of which not all need be classes, as plain JSON:

    `n_known`, `n_unknown`, `n_real` (where reals are no class) · `figures`: `accuracy`, `top_3`, `top_5`, `macro_f1`, `weighted_f1`
    where every image of a known generator gets its best name; `calibration_error` of its probability; `family_accuracy`,
    `family_macro_f1`; `abstained` and `accuracy_of_named` of known generators; `unknown_abstained` and `reals_abstained`;
    `open_set_auroc`, known generators against unknown · `classes`: per known name n, recall, precision, f1, abstained · `pairs`: the
    wrong names of known generators as [true, said, n] · `unknown`: per unknown generator n, abstained, and the name it is given most.
    """
    names = np.array(truth, object)
    known = np.isin(names, said.classes)
    real = (names == REAL) & ~known
    unknown = ~known & ~real
    best = _names(said, said.ranking[:, 0])
    named = said.codes >= 0
    rows = np.flatnonzero(known).tolist()
    forced = attribution_of(
        [best[row] for row in rows], [truth[row] for row in rows], rankings=[_names(said, said.ranking[row]) for row in rows]
    )
    figures = {name: forced.figures[name] for name in ("accuracy", "top_3", "top_5", "macro_f1", "weighted_f1")}
    figures |= _of_families(said, names[known], said.ranking[known, 0]) | {
        "calibration_error": _calibration_error(said, names, best, known)
    }
    figures |= {
        "abstained": _share(~named[known], _NONE_KNOWN),
        "accuracy_of_named": _share((np.array(best, object) == names)[known & named], "no image of a known generator was named"),
        "unknown_abstained": _share(~named[unknown], _NONE_UNKNOWN),
        "reals_abstained": _share(~named[real], "no real image, or reals are a class"),
        "open_set_auroc": _auroc(said, names, known, unknown),
    }
    return {
        "n_known": int(known.sum()),
        "n_unknown": int(unknown.sum()),
        "n_real": int(real.sum()),
        "figures": {name: figure.row() for name, figure in figures.items()},
        "classes": [_class_row(row, named[names == row["name"]]) for row in forced.classes],
        "pairs": [[str(true), said_of, n] for true, said_of, n in forced.pairs],
        "unknown": [_unknown_row(name, names == name, named, best) for name in sorted(set(names[unknown]))],
    }


def _names(said: Identified, places: npt.NDArray[np.int64]) -> list[str]:
    return [said.classes[place] for place in places]


def _share(yes: npt.NDArray[np.bool_], why: str) -> MetricEstimate:
    return proportion(int(yes.sum()), len(yes), why)


def _of_families(said: Identified, truth: npt.NDArray[np.object_], best: npt.NDArray[np.int64]) -> dict[str, MetricEstimate]:
    if len(set(said.families)) == len(said.classes):
        return {name: undefined("every class is a family of its own") for name in ("family_accuracy", "family_macro_f1")}
    family = dict(zip(said.classes, said.families, strict=True))
    found = attribution_of([said.families[place] for place in best], [family[name] for name in truth]).figures
    return {"family_accuracy": found["accuracy"], "family_macro_f1": found["macro_f1"]}


def _calibration_error(said: Identified, names: npt.NDArray[np.object_], best: list[str], known: npt.NDArray[np.bool_]) -> MetricEstimate:
    """How far the probability of the best name is from how often it is right, on average (Guo et al. 2017)."""
    if not known.any():
        return undefined(_NONE_KNOWN)
    right = (np.array(best, object) == names)[known]
    chances = np.clip(said.probability[known].astype(np.float64), 0, 1)
    return MetricEstimate(expected_calibration_error(chances, right.astype(np.int64)), n=int(known.sum()))


def _auroc(
    said: Identified, names: npt.NDArray[np.object_], known: npt.NDArray[np.bool_], unknown: npt.NDArray[np.bool_]
) -> MetricEstimate:
    rows = np.flatnonzero(known | unknown)
    truth = [name if name in said.classes else _OTHERS for name in names[rows]]
    return open_set_auroc(truth, said.classes, said.confidence[rows])


def _class_row(row: dict[str, Any], named: npt.NDArray[np.bool_]) -> dict[str, Any]:
    figures = {name: row[name].row() for name in ("recall", "precision", "f1")}
    return {"name": str(row["name"]), "n": row["n"], **figures, "abstained": _share(~named, _NONE_KNOWN).row()}


def _unknown_row(name: str, rows: npt.NDArray[np.bool_], named: npt.NDArray[np.bool_], best: list[str]) -> dict[str, Any]:
    nearest, times = Counter(best[row] for row in np.flatnonzero(rows)).most_common(1)[0]
    return {"name": name, "n": int(rows.sum()), "abstained": _share(~named[rows], "").row(), "nearest": nearest, "nearest_n": times}
