"""Select the detectors whose embeddings a run stores (`--features`)."""

from collections.abc import Sequence
from typing import Any

from ray_app.errors import ConfigError
from ray_app.inference import ScoringSpec


def select_embeddings(spec: ScoringSpec, requested: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Select the detectors whose embeddings a run stores.

    Other heads (last layers) can later score the archive from these embeddings. If detectors of a
    requested backbone have equal embeddings, only those of the first detector are stored. The
    embeddings of a detector that is requested by its own name are always stored.

    Args:
        spec: The ensemble of the run.
        requested: Names of detectors, or of backbones that detectors share.

    Returns:
        For each selected detector, all settings that determine the embedding of an image, such as
        the precision. Empty if nothing is requested.

    Raises:
        ConfigError: If a name is unknown, or if its detectors are all in the second stage of a
            cascade, which scores only some images.
        DetectorError: If a detector has no embedding, or weights are missing.
    """
    if not requested:
        return {}
    # Import torch only if embeddings are stored.
    from ray_app.detectors.linear_head import embedding_facts

    detectors_by_name = {name: _find_detectors(spec, name) for name in requested}
    selected: dict[str, dict[str, Any]] = {}
    for detector, card in spec.cards.items():
        names = [name for name, detectors in detectors_by_name.items() if detector in detectors]
        if names:
            facts = embedding_facts(
                card, precision=spec.precision[detector], resize=spec.choose_resize(detector)
            )
            if detector in names or facts not in selected.values():
                selected[detector] = facts
    return selected


def _find_detectors(spec: ScoringSpec, name: str) -> list[str]:
    """Return the detectors that have this name or this backbone."""
    detectors = [
        detector
        for detector, card in spec.cards.items()
        if name in (detector, card.backbone and card.backbone.name)
    ]
    if not detectors:
        backbones = dict.fromkeys(
            card.backbone.name for card in spec.cards.values() if card.backbone
        )
        raise ConfigError(
            f"--features {name}: not a detector of this run",
            hint=f"use one of {', '.join([*spec.cards, *backbones])}",
        )
    late = [detector for detector in detectors if detector in spec.late]
    if late == detectors:
        raise ConfigError(
            f"--features {name}: {', '.join(late)} sees only images of the cascade's second stage, so other images would have no embedding",
            hint=f"use one of {', '.join(spec.first)}",
        )
    return [detector for detector in detectors if detector not in late]
