"""Which generators made the images of a block, by the embeddings that detectors left. Plain numpy; no torch at import."""

import functools
from pathlib import Path

from ray_app.inference.judging import Readings
from ray_app.inference.spec import ScoringSpec
from ray_app.profiling.cards import IdentifierCard
from ray_app.profiling.identifying import Identified, Identifier


def identified(spec: ScoringSpec, readings: Readings) -> Identified | None:
    """What the spec's identifier says of all members; None where it has none. Raises DetectorError where its weights are missing."""
    card = spec.identifier
    return None if card is None else _head(card.model_dump_json(), card.folder).identify(readings.embeddings[card.detector])


@functools.lru_cache(maxsize=4)
def _head(described: str, folder: Path) -> Identifier:
    """Read once per process. `described`: the card as JSON."""
    card = IdentifierCard.model_validate_json(described)
    card._folder = folder
    return Identifier(card)
