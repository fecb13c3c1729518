"""Which licence a trained card has: that of the weights it began from, or of its data, whichever allows less.

Knows recipes, cards and words of licences. Knows no law: what is inherited is written down for a person to judge.
"""

import re
from typing import Literal, NamedTuple

from ray_app.detectors.cards import DetectorCard
from ray_app.learning.config import Recipe

Terms = Literal["permissive", "restricted", "non-commercial", "research-only", "none-stated"]

STRICTNESS: tuple[Terms, ...] = ("permissive", "restricted", "non-commercial", "research-only", "none-stated")

# The first that is found decides; what none of them knows is `restricted`: terms of its own, to be read.
_TOLD_BY: tuple[tuple[Terms, str], ...] = (
    ("none-stated", r"^\s*(none|unknown)?\s*$|\b(none|not|no licen[cs]e) (stated|known|published|given)\b"),
    ("research-only", r"\bresearch\b|\bacademic\b"),
    ("non-commercial", r"\bNC\b|\bnon-?commercial\b"),
    ("permissive", r"\b(MIT|BSD|ISC|Apache|CC0|CC[ -]BY|ODC-BY|CDLA-Permissive|Unlicense|public domain|our own)\b"),
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


def inherited(recipe: Recipe, card: DetectorCard) -> Inherited:
    """The strictest of what the network began from, of its backbone and of the data; of equals the first.

    A network that begins at random inherits nothing from the card's weights. Data whose licence the recipe leaves out add nothing but
    the note that says so. `export.licence` in the recipe replaces the name and, by it, the terms.
    """
    parts = _parts(recipe, card)
    strictest = max(parts, key=lambda part: STRICTNESS.index(part.terms), default=_Part("nothing", "not stated", "permissive"))
    told = "; ".join(f"{part.what}: {part.licence}" for part in parts)
    if recipe.data.licence is None:
        told = "; ".join(filter(None, (told, "the training data's licence is not stated")))
    if recipe.export.licence is not None:
        given = recipe.export.licence
        return Inherited(given, terms_of(given), f"As the recipe states it. {told}")
    return Inherited(strictest.licence, strictest.terms, f"Inherited, the strictest of: {told}" if len(parts) > 1 else told)


def _parts(recipe: Recipe, card: DetectorCard) -> list[_Part]:
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
