"""An identifier's or a describer's card as a page of plain text. Knows cards; reads no weights and no network."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from ray_app.profiling.cards import DescriberCard, IdentifierCard
from ray_app.profiling.generators import family_title, title_of
from ray_app.reports.card_page import preprocessing_lines
from ray_app.reports.text_table import paragraph
from ray_app.reports.wording import counted, stated, visible

_LABEL = 14
_TIERS = {
    "retrieval": "the prompt of the nearest image of an index",
    "prefix": "a small language model that continues an embedding",
    "captioner": "a captioning model that reads pixels",
    "dialogue": "a vision-language model that is asked",
}
_METHODS = {"energy": "energy of the logits", "distance": "Mahalanobis distance to the nearest class"}


def profile_page(card: IdentifierCard | DescriberCard, here: Mapping[str, Path | None], width: int) -> str:
    """The card in lines of at most `width` columns but for longer words. `here`: where its files lie (None = missing), by uri."""
    told = _of_identifier(card) if isinstance(card, IdentifierCard) else _of_describer(card)
    lines = [*told, ("weights", card.weights.uri), ("here", ", ".join(str(path) if path else "missing" for path in here.values()))]
    lines += [("licence", card.licence), ("source", card.source), ("training data", card.training_data.name)]
    lines += [("note", note) for note in card.notes]
    shown = [line for label, text in lines if text for line in _hung(label, visible(text), width)]
    return "\n".join([card.name, *(f"  {line}" for line in paragraph(card.title, width - 2)), "", *shown])


def _of_identifier(card: IdentifierCard) -> list[tuple[str, str]]:
    by_family: defaultdict[str, list[str]] = defaultdict(list)
    for name, family in zip(card.classes, card.class_families, strict=True):
        by_family[family_title(family)].append(title_of(name))
    rule = card.open_set
    opened = "never: every image gets the name of a known generator"
    if rule is not None:
        measured = f"asked for {stated(rule.abstains)} of known ones, on {counted(rule.n, 'image')}"
        opened = f"where the {_METHODS[rule.method]} lies beyond its threshold; {measured}"
    return [
        ("kind", f"identifier: names the generator, by a {card.head} head"),
        ("reads", f"embeddings of {card.detector}"),
        ("knows", f"{counted(len(card.classes), 'generator')} of {len(by_family)} families"),
        *[("", f"{family}: {', '.join(names)}") for family, names in by_family.items()],
        ("abstains", opened),
    ]


def _of_describer(card: DescriberCard) -> list[tuple[str, str]]:
    search = f"{counted(card.beams, 'beam')}, at most {card.most_tokens} tokens" if card.tier != "retrieval" else ""
    prepared = [] if card.preprocessing is None else preprocessing_lines(card.preprocessing)
    return [
        ("kind", f"describer: predicts the words, by {_TIERS[card.tier]}"),
        ("reads", f"embeddings of {card.detector}" if card.detector else "pixels"),
        *prepared,
        ("asks", card.question if card.tier == "dialogue" else ""),
        ("search", search),
        ("work", f"{card.gmac:g} GMAC per image" if card.gmac else ""),
    ]


def _hung(label: str, text: str, width: int) -> list[str]:
    first, *rest = paragraph(text, width - _LABEL - 2)
    return [f"  {label:{_LABEL}}{first}", *(" " * (_LABEL + 2) + line for line in rest)]
