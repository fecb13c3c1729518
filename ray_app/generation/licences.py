"""Whether a pipeline may be used: its terms are accepted once, as those of detectors are. Knows cards and the user's config file."""

from collections.abc import Collection

from ray_app.config import named_configs
from ray_app.detectors.licences import TERMS_IN_WORDS, Acceptance, accept_licence, is_accepted, remember_licence
from ray_app.errors import ConfigError, DetectorError
from ray_app.generation.cards import PipelineCard, load_pipeline_card


def require_accepted(card: PipelineCard, accepted: Collection[str] = ()) -> None:
    """Refuse a card whose terms are not permissive and were not accepted. Raises DetectorError that says how to accept them."""
    if is_accepted(card, accepted):
        return
    raise DetectorError(
        f"{card.name}: its licence is not accepted yet: {card.licence} ({TERMS_IN_WORDS[card.terms]}); model {card.model}",
        hint=f"read {card.source}, then: touchstone generate … --accept-licence {card.name}",
    )


def accept(name: str) -> Acceptance:
    """Remember that the licence of a pipeline (by name, or path of its card), or a licence by its id, is accepted. Raises ConfigError."""
    cards = [load_pipeline_card(path) for path in named_configs("generate").values()]
    for licence in {card.licence for card in cards if card.terms not in ("permissive", "none-stated")}:
        if name.casefold() == licence.casefold():
            return remember_licence(licence, licence)
    try:
        card = load_pipeline_card(name)
    except ConfigError:
        return accept_licence(name)
    return remember_licence(card.name, card.licence)
