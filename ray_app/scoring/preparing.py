"""A spec and a source → the identity of a run. Hashes weights; loads no network."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from ray_app.archives import name_of
from ray_app.config import config_root
from ray_app.detectors import MIRROR_VARIABLE, DetectorCard, publish_weights, resolve_weights, weights_digest
from ray_app.detectors.weights import publish_part
from ray_app.ensembles import EnsembleCard, decision_facts
from ray_app.inference import ScoringSpec
from ray_app.runs import RunDirectory
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.guarantee import WAIVED

Digest = Callable[[DetectorCard], str | None]

# How a run was made that does not note it: what came to be noted later, and settings that are noted only where they are others than these.
UNNOTED: Mapping[str, Mapping[str, Any]] = {
    "limits": {"max_whole_pixels": None},
    "columns": {"image": None, "uri": None},
    "container_limits": {"max_members": 10_000_000, "max_ratio": 200.0},
}


def identity_of(config: ScoreConfig, spec: ScoringSpec, *, digest: Digest = weights_digest) -> dict[str, Any]:
    """What another command on the same run directory must match (DESIGN §3). Raises DetectorError where weights are missing."""
    return {
        "source": [name_of(source) for source in config.source],
        "include": list(config.include),
        "exclude": list(config.exclude),
        "limit": config.limit,
        "limits": spec.limits.model_dump(mode="json"),
        **_of_containers(config),
        **({"perturb": {view.name: view.facts() for view in spec.views}} if spec.views else {}),
        **({"stability": spec.stability.facts()} if spec.stability else {}),
        **({"features": list(spec.features)} if spec.features else {}),
        **({WAIVED: True} if config.waive_guarantee and promises(spec.ensemble) else {}),
        **scoring_identity(spec, digest=digest),
    }


def promises(card: EnsembleCard) -> bool:
    """Whether there is a guarantee to give up."""
    return any(known is not None for known in (card.guarantee, card.settings, card.population))


def _of_containers(config: ScoreConfig) -> dict[str, Any]:
    """Settings of containers where they are not those of runs that note none."""
    given = {"columns": config.columns.model_dump(mode="json"), "container_limits": config.container_limits.model_dump(mode="json")}
    return {name: setting for name, setting in given.items() if setting != UNNOTED[name]}


def share_weights(spec: ScoringSpec, run: RunDirectory) -> str | None:
    """Where the workers of a cluster find weights: $TOUCHSTONE_WEIGHTS_MIRROR, else a copy in the run directory, else (shipped ones) None.

    The driver alone fetches; a thousand workers that ask a hub at once would be refused.
    """
    if MIRROR_VARIABLE in os.environ:
        return os.environ[MIRROR_VARIABLE]
    shipped = config_root() / "detectors"
    fetched = [card for card in spec.cards.values() if resolve_weights(card).parent != shipped]
    profiling = [card for card in (spec.identifier, spec.describer) if card is not None]
    if not fetched and not profiling:
        return None
    mirror = f"{run.store.url}/weights"
    for card in fetched:
        publish_weights(card, mirror)
    for part in (part for one in profiling for part in one.parts):
        publish_part(part, mirror)
    return mirror


def scoring_identity(spec: ScoringSpec, *, digest: Digest = weights_digest) -> dict[str, Any]:
    """The part that a served ensemble has too: detectors, settings, decision."""
    return {
        "detectors": {name: {"weights": digest(card), **card.scoring_facts} for name, card in spec.cards.items()},
        "precision": dict(spec.precision),
        "resize": spec.resize,
        "batch_slots": spec.slots,
        **({"profile": profile_identity(spec)} if spec.ensemble.profile else {}),
        **decision_identity(spec),
    }


def profile_identity(spec: ScoringSpec) -> dict[str, Any]:
    """All that decides which generator and which words a row has."""
    identifier, describer, profile = spec.identifier, spec.describer, spec.ensemble.profile
    told: dict[str, Any] = {"describe": profile.describe if profile and describer else None}
    if identifier is not None:
        told["identifier"] = identifier.facts()
    if describer is not None:
        told["describer"] = describer.facts() | {"precision": describer.precision_on(spec.device)}
    return told


def decision_identity(spec: ScoringSpec) -> dict[str, Any]:
    """The part that `touchstone decide` may replace."""
    return {"decision": decision_facts(spec.ensemble)}
