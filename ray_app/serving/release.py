"""Which ensembles an endpoint serves, as one value: a `Release` changes as a whole, and every
answer names it. Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from ray_app.detectors import DetectorCard, licences
from ray_app.ensembles import EnsembleCard, ensemble_of, load_ensemble_card
from ray_app.errors import ConfigError
from ray_app.inference import ScoringSpec
from ray_app.inference.spec import Precision, make_spec
from ray_app.runs import fingerprint
from ray_app.scoring.identity import scoring_facts
from ray_app.serving.config import ServeConfig
from ray_app.serving.profiles import group_of_card, profile_cards, without_profile

# the group of all detectors that share one process; one with a process of its own names its group
SHARED = "detectors"


@dataclass(frozen=True)
class Release:
    """Specs and fingerprints of all ensembles; picklable, so that an ingress learns it from the
    detectors and needs no card of its own.

    `spec` covers the detectors of all ensembles and the optional ones, `ensembles` has one spec by
    name, the default first. Equal fingerprints give equal scores: each is the SHA-256 of that part
    of a batch run's identity (DESIGN §3). `groups` has a fingerprint for each group of detectors
    that share a process: what they say is the same as long as it is, whatever else an update
    changes.
    """

    spec: ScoringSpec
    ensembles: Mapping[str, ScoringSpec]
    fingerprints: Mapping[str, str]
    groups: Mapping[str, str]
    optional: tuple[str, ...]

    @cached_property
    def id(self) -> str:
        """One name for all of it; every reply carries it."""
        return fingerprint(
            {
                "ensembles": self.fingerprints,
                "detectors": list(self.spec.cards),
                "optional": list(self.optional),
            }
        )

    @property
    def default(self) -> str:
        """The ensemble of a request that names none."""
        return next(iter(self.ensembles))


def plan_release(
    config: ServeConfig,
) -> tuple[ScoringSpec, dict[str, ScoringSpec], tuple[str, ...]]:
    """The spec of all detectors, those of the ensembles, and the names of the optional detectors.
    Reads cards, no weights.

    Raises ConfigError for what the cards contradict and DetectorError for a licence that is not
    accepted.
    """
    cards = [load_ensemble_card(name) for name in config.ensembles]
    ensembles = {card.name: _spec(card, config) for card in cards}
    if len(ensembles) < len(cards):
        raise ConfigError(
            f"two ensembles have the same name: {', '.join(card.name for card in cards)}"
        )
    specs = list(ensembles.values())
    optional: tuple[str, ...] = ()
    if config.optional_detectors:
        beside = _spec(ensemble_of(list(config.optional_detectors)), config)
        optional = tuple(
            name for name in beside.cards if not any(name in spec.cards for spec in specs)
        )
        specs.append(beside)
    specs = _agreed(specs)
    ensembles = dict(zip(ensembles, specs, strict=False))
    together = _merged(specs)
    for card in together.cards.values():
        licences.require_accepted(card, config.accept_licences)
    return together, ensembles, optional


def load_release(config: ServeConfig) -> Release:
    """What `config` requests, with fingerprints. Hashes weights. Raises ConfigError and
    DetectorError.
    """
    together, ensembles, optional = plan_release(config)
    fingerprints = {name: fingerprint(scoring_facts(spec)) for name, spec in ensembles.items()}
    identity = scoring_facts(together)
    groups = {
        name: fingerprint({**{key: identity[key] for key in ("resize", "batch_slots")},
                           "detectors": {one: [identity["detectors"][one], identity["precision"][one]] for one in pool},
                           **_profiles_in(name, together, ensembles)})
        for name, pool in groups_of(together).items()
    }  # fmt: skip
    return Release(together, ensembles, fingerprints, groups, optional)


def groups_of(spec: ScoringSpec) -> dict[str, tuple[str, ...]]:
    """Which detectors sit in which group, by the group's name."""
    return {pool[0] if spec.cards[pool[0]].own_pool else SHARED: pool for pool in spec.pools}


def _profiles_in(
    group: str, together: ScoringSpec, ensembles: Mapping[str, ScoringSpec]
) -> dict[str, object]:
    """What identifiers and describers of a group say something by; nothing for a group without any."""
    pools = groups_of(together)
    facts = {
        name: [card.facts() for card in profile_cards(spec) if group_of_card(card, pools) == group]
        for name, spec in ensembles.items()
    }
    return (
        {"profiles": found}
        if (found := {name: cards for name, cards in facts.items() if cards})
        else {}
    )


def _spec(card: EnsembleCard, config: ServeConfig) -> ScoringSpec:
    return make_spec(card, limits=config.images, device=config.device, precision=config.precision, resize=config.resize,
                     slots=config.batching.slots, waive_guarantee=config.waive_guarantee)  # fmt: skip


def _agreed(specs: list[ScoringSpec]) -> list[ScoringSpec]:
    """The specs under one resize mode and one precision per detector: those of calibrated
    ensembles, to which the others give way.

    Raises ConfigError where two of them were calibrated otherwise.
    """
    precision: dict[str, Precision] = {}
    resize = {
        spec.resize: spec.ensemble.name for spec in specs if spec.ensemble.settings is not None
    }
    for spec in specs:
        for name, one in spec.precision.items() if spec.ensemble.settings is not None else ():
            if precision.setdefault(name, one) != one:
                raise ConfigError(
                    f"the ensembles were calibrated with {name} in bf16 and in fp32",
                    hint="serve them apart",
                )
    if len(resize) > 1:
        raise ConfigError(
            f"{' and '.join(resize.values())} were calibrated under different resize modes",
            hint="serve them apart",
        )
    mode = next(iter(resize), specs[0].resize)
    return [
        replace(
            spec,
            precision={name: precision.get(name, one) for name, one in spec.precision.items()},
            resize=mode,
        )
        for spec in specs
    ]


def _merged(specs: list[ScoringSpec]) -> ScoringSpec:
    cards: dict[str, DetectorCard] = {}
    precision: dict[str, Precision] = {}
    for spec in specs:
        for name, card in spec.cards.items():
            if cards.setdefault(name, card) != card:
                raise ConfigError(
                    f"two different cards are called {name}", hint="rename one of them"
                )
        precision.update(spec.precision)
    merged = replace(specs[0], ensemble=ensemble_of(list(cards)), cards=cards, precision=precision)
    return without_profile(merged, specs)
