"""`--features`: of which detectors a run keeps embeddings, and what decides them. Reads cards and weights; scores nothing."""

from collections.abc import Sequence
from typing import Any

from ray_app.errors import ConfigError
from ray_app.inference import ScoringSpec


def kept_by(spec: ScoringSpec, asked: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Per detector whose embeddings are to be kept, what decides them. `asked`: names of detectors, or of backbones that they share.

    Of detectors with one backbone and equal embeddings the first stands for all. Raises ConfigError for a name that is none of the
    ensemble's and for a detector that does not look at every image, DetectorError where there is no embedding or no weights.
    """
    if not asked:
        return {}
    from ray_app.detectors.embeddings import embedding_facts  # torch: only where something is kept

    chosen = {name: _named(spec, name) for name in asked}
    kept: dict[str, dict[str, Any]] = {}
    for name, card in spec.cards.items():
        named = [word for word, detectors in chosen.items() if name in detectors]
        if named:
            facts = embedding_facts(card, precision=spec.precision[name], resize=spec.resize)
            if name in named or facts not in kept.values():
                kept[name] = facts
    return kept


def _named(spec: ScoringSpec, word: str) -> list[str]:
    """The detectors that a word means."""
    found = [name for name, card in spec.cards.items() if word in (name, card.backbone and card.backbone.name)]
    if not found:
        backbones = dict.fromkeys(card.backbone.name for card in spec.cards.values() if card.backbone)
        raise ConfigError(f"--features {word}: none of the detectors of this run", hint=f"one of {', '.join([*spec.cards, *backbones])}")
    late = [name for name in found if name in spec.late]
    if late == found:
        raise ConfigError(
            f"--features {word}: {', '.join(late)} looks only at images that go on in the cascade, and an embedding of some is none of all",
            hint=f"one of {', '.join(spec.first)}",
        )
    return [name for name in found if name not in late]
