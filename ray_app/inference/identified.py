"""Which generators made the images of a block, by the embeddings that detectors left. Plain numpy; no torch at import."""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ray_app.inference.spec import ScoringSpec
from ray_app.profiling.cards import IdentifierCard
from ray_app.profiling.identifying import Identified, Identifier


def identified(spec: ScoringSpec, embeddings: Mapping[str, npt.NDArray[np.float32]]) -> Identified | None:
    """What the spec's identifier says of all members; None where it has none, or where its detector's embeddings were not kept.

    Raises DetectorError where its weights are missing.
    """
    card = spec.identifier
    if card is None or card.detector not in embeddings:
        return None
    return _head(card.model_dump_json(), card.folder).identify(embeddings[card.detector])


@functools.lru_cache(maxsize=4)
def _head(described: str, folder: Path) -> Identifier:
    """Read once per process. `described`: the card as JSON."""
    card = IdentifierCard.model_validate_json(described)
    card._folder = folder
    return Identifier(card)
