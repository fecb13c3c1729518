"""Which generators made the images of a block, by the embeddings that detectors left; whether a profile suits these. No torch at import."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_app.errors import ConfigError
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


def require_embeddings(spec: ScoringSpec) -> None:
    """Whether the profile's cards were fitted on the embeddings that the spec's detectors leave; numbers in bf16 stand for those in fp32.

    Raises ConfigError that says what differs, DetectorError where weights are missing or a detector leaves no embedding.
    """
    for card in (spec.identifier, spec.describer):
        if card is None or card.detector is None:
            continue
        from ray_app.detectors.embeddings import embedding_facts  # torch: only where there is something to compare

        detector = spec.cards[card.detector]
        found = embedding_facts(detector, precision=spec.precision[card.detector], resize=spec.resize)
        wanted = {key: value for key, value in card.embedding.items() if key != "precision"}
        differing = [key for key, value in wanted.items() if _plain(value) != _plain(found.get(key))]
        if differing or "width" not in wanted:
            told = "; ".join(f"{key}: fitted on {wanted[key]}, here {found.get(key)}" for key in differing) or "its card says no width"
            raise ConfigError(
                f"{card.name} was fitted on other embeddings of {card.detector}: {told}",
                hint="train it on this detector, or score with the detector and settings that it was fitted on",
            )


def _plain(fact: Any) -> str:
    return json.dumps(fact, sort_keys=True)


@functools.lru_cache(maxsize=4)
def _head(described: str, folder: Path) -> Identifier:
    """Read once per process. `described`: the card as JSON."""
    card = IdentifierCard.model_validate_json(described)
    card._folder = folder
    return Identifier(card)
