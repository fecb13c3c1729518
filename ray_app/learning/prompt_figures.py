"""How well prompts are predicted, beside what costs nothing: the nearest training image's words, and words at random. Knows texts alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ray_app.metrics.figure import undefined
from ray_app.metrics.intervals import proportion
from ray_app.metrics.texts import bleu4, rouge_l, token_f1, words_of

MOST = 20_000  # images that figures are made of; of more, the first so many of a drawn order
_CHANCE = 9  # names the stream of chance, beside those of order, augmentation and dropout
_WHY = "no image with both a predicted and a true prompt"


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
