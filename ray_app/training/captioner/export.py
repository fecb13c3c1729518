"""A trained prompt predictor as files: `write_card` and `write_network`, and with `with_figures` how well it predicts.

It is compared with what costs nothing (`compared`): the nearest training image's words, and words at random.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from ray_app.attribution.captioners.retrieval import index_tensors
from ray_app.attribution.captioners.tokenizer import HEADER
from ray_app.attribution.cards import DescriberCard, load_describer
from ray_app.detectors.weights import file_sha256
from ray_app.metrics.arrays import undefined
from ray_app.metrics.intervals import proportion
from ray_app.metrics.text import bleu4, rouge_l, token_f1, words_of
from ray_app.training.config import Recipe
from ray_app.training.export import STRICTNESS, data_name, places_of, terms_of

CARD, WEIGHTS = "describer.yaml", "describer.safetensors"
_PUBLISHED = {"exact": "share of prompts predicted word for word", "token_f1": "token F1", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L"}
MOST = 20_000  # images that figures are made of; of more, the first so many of a drawn order
_CHANCE = 9  # names the stream of chance, beside those of order, augmentation and dropout
_WHY = "no image with both a predicted and a true prompt"


def write_index(folder: Path, recipe: Recipe, sees: Mapping[str, Any], vectors: npt.NDArray[Any], prompts: list[str]) -> DescriberCard:
    """FOLDER/describer.yaml of the tier retrieval; `sees`: `detector` and `embedding`."""
    from safetensors.numpy import save_file

    save_file(index_tensors(vectors, prompts), folder / WEIGHTS)
    return write_card(folder, recipe, {"tier": "retrieval", **sees})


def write_network(folder: Path, recipe: Recipe, facts: Mapping[str, Any], state: Mapping[str, Any], tokenizer: str) -> DescriberCard:
    """FOLDER/describer.yaml of a network: `state` as files hold it, the tokenizer in the file's header; `facts`: keys of the card."""
    from safetensors.torch import save_file

    save_file(dict(state), folder / WEIGHTS, metadata={HEADER: tokenizer})
    return write_card(folder, recipe, facts)


def write_card(folder: Path, recipe: Recipe, facts: Mapping[str, Any]) -> DescriberCard:
    """The card of the file that lies in FOLDER, written and read back."""
    content = {
        "name": recipe.name,
        "title": recipe.export.title or recipe.title or recipe.name,
        "weights": {"uri": WEIGHTS, "sha256": file_sha256(folder / WEIGHTS)},
        "licence": recipe.export.licence or _inherited(recipe),
        "source": recipe.source or f"touchstone train {recipe.name}",
        "training_data": {
            "name": data_name(recipe),
            "licence": recipe.data.licence or "none stated",
            "source": places_of(recipe) or None,
        },
        "notes": list(recipe.export.notes),
        **facts,
    }
    (folder / CARD).write_bytes(_yaml(DescriberCard.model_validate(content)))
    return load_describer(folder / CARD)


def _inherited(recipe: Recipe) -> str:
    """The stricter of the licences of the weights that it began from and of the data."""
    start = recipe.describe.start if recipe.describe is not None else None
    found = (load_describer(start).licence if start else None, recipe.data.licence)
    return max(filter(None, found), key=lambda licence: STRICTNESS.index(terms_of(licence)), default="none stated")


def with_figures(card: bytes, recipe: Recipe, figures: Mapping[str, Any]) -> bytes:
    """The YAML of a card with what was measured: `figures` of one split, rows of `metrics.arrays.MetricEstimate` by name."""
    content = {"set": f"{recipe.data.name or 'its own data'}, held out", "verified": True, "source": f"touchstone train {recipe.name}"}
    rows = [(name, figures[name]) for name in _PUBLISHED if figures[name]["value"] is not None]
    published = [{"metric": _PUBLISHED[name], "value": row["value"], "n": row["n"], **content} for name, row in rows]
    return _yaml(DescriberCard.model_validate(yaml.safe_load(card) | {"published": published}))


def _yaml(card: DescriberCard) -> bytes:
    content = card.model_dump(mode="json", exclude_defaults=True)
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=140)
    return text.encode()


def compared(truth: Sequence[str], said: Mapping[str, Sequence[str] | str]) -> dict[str, dict[str, Any]]:
    """Per system its figures against the `truth` (n,), each with a 95 % interval: `exact` (the share whose words are all right and in
    order, without case and punctuation), `token_f1`, `bleu4`, `rouge_l`. A text in place of a system's words says why it has none.
    """
    return {name: _figures(truth, texts) for name, texts in said.items()}


def chance_prompts(train: Sequence[str], count: int, seed: int) -> dict[str, list[str]]:
    """What knows nothing of the image says of `count` images: `random`, any training prompt; `most_frequent`, always the same."""
    drawn = np.random.default_rng([seed, _CHANCE]).integers(len(train), size=count)
    commonest = min(Counter(train).items(), key=lambda item: (-item[1], item[0]))[0]
    return {"random": [train[place] for place in drawn], "most_frequent": [commonest] * count}


def _figures(truth: Sequence[str], texts: Sequence[str] | str) -> dict[str, Any]:
    if isinstance(texts, str):
        return {name: undefined(texts).row() for name in ("exact", "token_f1", "bleu4", "rouge_l")}
    if len(truth) > MOST:
        places = np.random.default_rng(_CHANCE).permutation(len(truth))[:MOST]
        truth, texts = [truth[place] for place in places], [texts[place] for place in places]
    exact = sum(words_of(one) == words_of(other) for one, other in zip(texts, truth, strict=True))
    return {
        "exact": proportion(exact, len(truth), _WHY).row(),
        "token_f1": token_f1(texts, truth).row(),
        "bleu4": bleu4(texts, truth).row(),
        "rouge_l": rouge_l(texts, truth).row(),
    }
