"""What a run's profile says of one image: as a section of its record, and once more from the image. Knows rows and cards."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

from ray_app.errors import TouchstoneError
from ray_app.evidence.checks import Check
from ray_app.inference import BatchDecoder, ScoringSpec, StageClock
from ray_app.inference.spec import profile_cards
from ray_app.profiling.cards import DescriberCard, IdentifierCard

PROFILE = "profile"
NEAREST = (
    "A generator's name is the nearest of those that the identifier knows. It is no proof of where an image came from, it entered no "
    "score, and of an image that is not flagged it says nothing."
)
WORDS = "Predicted words are a guess at the prompt: many prompts lead to one image, and these may never have been typed."


def profile_of(row: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """The record's section `profile`: generator, prompt, the facts of the cards that told them, limits; none for a run without one."""
    if not identity.get(PROFILE):
        return {}
    generator = {name: row.get(f"generator_{name}") for name in ("family", "probability", "confidence", "ranking")}
    told = {
        "generator": {"name": row.get("predicted_generator"), **generator} if row.get("generator_confidence") is not None else None,
        "prompt": {"text": row["predicted_prompt"], "likelihood": row.get("prompt_likelihood")} if row.get("predicted_prompt") else None,
        "cards": dict(identity[PROFILE]),
    }
    limits = [NEAREST] * (told["generator"] is not None) + [WORDS] * (told["prompt"] is not None)
    return {PROFILE: {**told, "limits": limits}}


def check_profile(record: Mapping[str, Any], spec: ScoringSpec, data: bytes) -> Iterator[Check]:
    """Whether the profile's cards on this machine, if they are the run's, say the same of the image."""
    told = record.get(PROFILE)
    if not told:
        return
    try:
        identifier, describer = profile_cards(spec.ensemble, spec.cards)
        cards = {"identifier": identifier, "describer": describer}
        same = {kind: _is_recorded(card, told["cards"].get(kind) or {}) for kind, card in cards.items() if card is not None}
    except TouchstoneError as error:
        yield Check("profile", "not checked", f"its cards are not on this machine: {error.message}")
        return
    for kind in [kind for kind, known in same.items() if not known]:
        yield Check(kind, "not checked", "the card here is another than the run's")
    if identifier is not None and same["identifier"] and told["generator"]:
        yield _named(told["generator"], spec, identifier, data)
    if describer is not None and same["describer"] and told["prompt"]:
        yield _worded(told["prompt"], spec, describer, data)


def _is_recorded(card: IdentifierCard | DescriberCard, recorded: Mapping[str, Any]) -> bool:
    """Whether a card says what the run's said; the run may have noted more, such as in which numbers its describer spoke."""
    return all(recorded.get(name) == fact for name, fact in card.facts().items())


def _named(recorded: Mapping[str, Any], spec: ScoringSpec, card: IdentifierCard, data: bytes) -> Check:
    from ray_app.profiling.identifying import Identifier

    found = Identifier(card).identify(_embedding(spec, card.detector, card.embedding, data))
    code = int(found.codes[0])
    here = found.classes[code] if code >= 0 else None
    words = [name or "like no known generator" for name in (here, recorded["name"])]
    return Check("generator", "agrees" if here == recorded["name"] else "differs", f"{words[0]} here, {words[1]} recorded")


def _worded(recorded: Mapping[str, Any], spec: ScoringSpec, card: DescriberCard, data: bytes) -> Check:
    if card.detector is None:
        return Check("prompt", "not checked", f"{card.name} reads pixels; score the image again to see its words")
    from ray_app.profiling.describing.loading import load_describing

    here = load_describing(card).describe(_embedding(spec, card.detector, card.embedding, data))[0].text
    return Check("prompt", "agrees" if here == recorded["text"] else "differs", f"“{here}” here")


def _embedding(spec: ScoringSpec, detector: str, facts: Mapping[str, Any], data: bytes) -> Any:
    """(1, d) float32 of the image, by one detector."""
    from ray_app.inference.scoring import EnsembleScorer

    clock = StageClock()
    alone = replace(spec.asking([detector]), identifier=None, describer=None, features={detector: facts}, stability=None)
    with closing(BatchDecoder(alone, clock)) as decoder:
        return EnsembleScorer(alone, clock).score([decoder.decode([(0, data)])]).embeddings[detector]
