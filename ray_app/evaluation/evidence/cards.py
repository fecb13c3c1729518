"""The detector cards of a run in full: what is on this machine, with all that the run itself noted in its place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ray_app.config import validate
from ray_app.detectors import DetectorCard, load_card
from ray_app.detectors.weights import located, parts_of
from ray_app.ensembles import EnsembleCard
from ray_app.errors import ConfigError, DetectorError, TouchstoneError
from ray_app.runs.identity import differing_keys


class RecordedCard(NamedTuple):
    """A detector's card as the run had it. `departs`: the keys in which the one on this machine is another; there the run's word stands."""

    card: DetectorCard
    departs: tuple[str, ...]


def departures(card: DetectorCard, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys in which a card is not what a run noted; what an older run did not note is not compared."""
    ours = {key: value for key, value in card.scoring_facts.items() if key in facts}
    theirs = {key: value for key, value in facts.items() if key in ours}
    return tuple(key for key, _, _ in differing_keys(ours, theirs))


def cards_of(ensemble: EnsembleCard, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, RecordedCard]:
    """Per detector of the ensemble, in its order; `facts` are what the run noted of each. Raises ConfigError where one is not here."""
    known = {}
    for member in ensemble.members:
        card = _loaded(member.detector)
        noted = facts.get(card.name, {})
        known[card.name] = RecordedCard(_as_noted(card, noted), departures(card, noted))
    return known


def revived(card: Mapping[str, Any], named: str) -> DetectorCard:
    """A recorded card as a card again; its weights are looked for where the card lies that an ensemble names so. Raises ConfigError.

    A card that a URL names is not fetched for that.
    """
    again = validate(card, DetectorCard, where=f"the recorded card of {named}")
    try:
        return again if "://" in named else _placed(again, load_card(named))
    except TouchstoneError:
        again._folder = Path(named.rpartition(":")[0] or named).resolve().parent
        return again


def require_here(card: DetectorCard, named: str) -> None:
    """Whether a recorded card's weights are on this machine, or this machine's own card of that name has their address.

    Raises DetectorError for weights that only the record names: it may be a stranger's, and would choose what is fetched.
    """
    try:
        own = None if "://" in named else load_card(named)
    except TouchstoneError:
        own = None
    if own is not None and [part.weights for part in parts_of(own)] == [part.weights for part in parts_of(card)]:
        return
    for part in parts_of(card):
        if located(part) is None:
            raise DetectorError(
                f"{card.name}: no weights: {part.weights.uri} is named by the record alone, so that nothing is fetched from there",
                hint=f"bring the card to where the record names it, {named}, or that file into the cache of weights",
            )


def _loaded(detector: str) -> DetectorCard:
    try:
        return load_card(detector)
    except ConfigError as error:
        hint = "a record holds every card in full; bring the card to where the run's ensemble names it"
        raise ConfigError(f"the card of {detector} is not on this machine: {error.message}", hint=hint) from None


def _as_noted(card: DetectorCard, noted: Mapping[str, Any]) -> DetectorCard:
    """The card with what the run noted of it."""
    changed = {key: noted[key] for key in ("preprocessing", "calibration", "output", "masks") if key in noted}
    if "valid_range" in noted:
        changed["valid_range"] = {"note": card.valid_range.note} | noted["valid_range"]
    if "architecture" in noted:
        network = dict(noted["architecture"])
        backbone = network.pop("backbone", None)
        changed |= {"family": network.pop("family"), "architecture": network}
        if backbone is not None and card.backbone is not None:
            changed["backbone"] = card.backbone.model_dump(mode="json") | {"architecture": backbone}
    return _placed(validate(card.model_dump(mode="json") | changed, DetectorCard, where=f"the run's card of {card.name}"), card)


def _placed(card: DetectorCard, like: DetectorCard) -> DetectorCard:
    """The card with its files looked for where those of another lie."""
    card._folder = like.folder
    if card.backbone is not None and like.backbone is not None:
        card.backbone._folder = like.backbone.folder
    return card
