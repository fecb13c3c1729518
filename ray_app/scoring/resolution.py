"""A config, and the run that it goes on with → the ensemble, cards and settings that images are scored with. Writes nothing; no Ray.

What the user wrote (in a file, by --set, a flag or an argument) holds. What is left open is taken from the run as it was begun, so that a
default that another version of Touchstone changes ends nobody's nights; a new run begins with today's defaults.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from ray_app.config import overlaid, validate, written
from ray_app.detectors import MIRROR_VARIABLE, DetectorCard, load_card
from ray_app.detectors.card import as_noted
from ray_app.detectors.weights import stated_digest, with_kept_weights
from ray_app.ensembles import EnsembleCard, EnsembleMember, ensemble_of, load_ensemble_card
from ray_app.errors import ConfigError, IdentityError, TouchstoneError
from ray_app.inference import ScoringSpec, make_spec
from ray_app.inference.decision import require_embeddings
from ray_app.inference.spec import Precision
from ray_app.runs import RunDirectory
from ray_app.runs.identity import Identity, as_known_to, differing_keys
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.guarantee import WAIVED
from ray_app.scoring.identity import UNNOTED, identity_of, kept_by, references_beside, stability_of
from ray_app.transforms.perturbations import Perturbation, load_perturbations

# With these a config leaves something to Touchstone even where it is written down.
_AUTOMATIC = {"precision": "auto", "resize": "auto", "batch_slots": None}
_OF_ENSEMBLES = ("detectors.", "decision.", "precision.", "profile.")
_SAME = ("include", "exclude", "limit", "limits", "columns", "container_limits", "resize", "batch_slots")  # in a config as in an identity


LoadCard = Callable[[str], DetectorCard]


@dataclass(frozen=True)
class Begun:
    """A run that is there: its `run.json`, what the command that goes on with it wrote, and whether its own ensemble decides on."""

    run: RunDirectory
    described: Mapping[str, Any]
    given: ScoreConfig
    written: Mapping[str, Any]
    own_ensemble: bool

    @property
    def noted(self) -> Identity:
        """Its identity, together with what it did not note because it was as always."""
        return overlaid(UNNOTED, self.described["identity"])

    def comparable(self, ours: Identity) -> dict[str, Any]:
        """The identity of a command without settings that the run does not note: it could not, or they are as they always were."""
        told = dict(ours)
        for name, usual in UNNOTED.items():
            noted, asked = self.described["identity"].get(name, {}), self.written.get(name, {})
            section = {key: one for key, one in told.pop(name, {}).items() if key in noted or (key in asked and one != usual.get(key))}
            told |= {name: section} if section else {}
        return told


@dataclass(frozen=True)
class Resolved:
    """What a command scores with. `cards`: those of the ensemble's members; `precision`: per detector, as far as a run says it."""

    config: ScoreConfig
    ensemble: EnsembleCard
    cards: tuple[DetectorCard, ...]
    views: tuple[Perturbation, ...]
    precision: Mapping[str, Precision] = field(default_factory=dict)
    begun: Begun | None = None
    load: LoadCard = load_card
    _specs: dict[str, ScoringSpec] = field(default_factory=dict, compare=False, repr=False)

    def spec(self, gpus: float) -> ScoringSpec:
        """All of it, resolved for a cluster with so many GPUs. Raises ConfigError."""
        device = self.config.device if self.config.device != "auto" else "cuda" if gpus else "cpu"
        if device not in self._specs:
            self._specs[device] = self._spec(device)
        return self._specs[device]

    def _spec(self, device: str) -> ScoringSpec:
        config = self.config
        spec = make_spec(
            self.ensemble,
            cards=self.cards,
            limits=config.limits,
            device=device,
            precision=config.precision,
            resize=config.resize,
            slots=config.batch_slots,
            perceptual_hash=config.perceptual_hash,
            provenance=config.provenance.policy(),
            views=self.views,
            stability=stability_of(config),
            waive_guarantee=config.waive_guarantee,
        )
        precision = {name: self.precision.get(name, one) for name, one in spec.precision.items()}
        spec = spec if precision == spec.precision else replace(spec, precision=precision)
        require_embeddings(spec)
        return replace(spec, features=kept_by(spec, config.features)) if config.features else spec

    def identity(self, spec: ScoringSpec) -> dict[str, Any]:
        """What the run must match. Raises DetectorError where weights are missing."""
        ours = identity_of(self.config, spec)
        return ours if self.begun is None else self.begun.comparable(ours)

    def require_own(self) -> None:
        """Whether the run is this command's, as far as can be told without a cluster: with GPUs or without. Raises IdentityError."""
        if self.begun is None:
            return
        run = self.begun.run
        found = []
        for gpus in (0, 1):
            found.append(run.differing(self.identity(self.spec(gpus))))
            if not found[-1]:
                return
        fewest = min(found, key=len)
        shipped = self.begun.own_ensemble and all(line.startswith(_OF_ENSEMBLES) for line in fewest)
        raise run.mismatch(fewest, hint=_way_out(run.store.url) if shipped else None)

    def references(self) -> bytes | None:
        """The scores that the ensemble's guarantee rests on; None where there are none, or the run has them already."""
        has_them = self.config.detectors or (self.begun is not None and self.begun.own_ensemble)
        return None if has_them else references_beside(self.config.ensemble, self.ensemble)

    def kept(self, spec: ScoringSpec) -> list[dict[str, str]]:
        """How the run goes on otherwise than the same command would begin today: each key, with the run's value and today's as JSON."""
        begun = self.begun
        if begun is None:
            return []
        theirs = begun.described["identity"]
        try:
            today = resolve(begun.given, load=self.load).spec(float(spec.device != "cpu"))
            ours = identity_of(begun.given, today, digest=partial(_kept_digest, theirs))
        except TouchstoneError as error:
            return [{"key": "ensemble", "run": self.ensemble.name, "today": f"cannot be had: {error.message}"}]
        found = differing_keys(as_known_to(begun.described["schema"], ours), theirs)
        if today.ensemble.name != self.ensemble.name:  # then nearly every key of theirs differs
            others = [one for one in found if not one[0].startswith(_OF_ENSEMBLES)]
            found = [("ensemble", today.ensemble.name, self.ensemble.name), *others]
        return [{"key": key, "run": run, "today": now} for key, now, run in found]


def resolve(config: ScoreConfig, run: RunDirectory | None = None, *, load: LoadCard | None = None) -> Resolved:
    """What a command scores with, alone or going on with a run; each card is read once, by `load`.

    Raises ConfigError for cards and perturbations that are not there.
    """
    load = load or cache(load_card)
    if run is None or not run.exists():
        ensemble = _named(config)
        cards = tuple(load(member.detector) for member in ensemble.members)
        return Resolved(config, ensemble, cards, load_perturbations(config.perturb), load=load)
    described = run.describe()
    given = {name: value for name, value in written(config).items() if name not in _AUTOMATIC or value != _AUTOMATIC[name]}
    is_own = not {"ensemble", "detectors"} & given.keys() and bool(described.get("ensemble"))
    begun = Begun(run, described, config, given, is_own)
    noted, where = begun.noted, f"{run.store.url}/run.json"
    settled = validate(overlaid(_as_config(noted), given), ScoreConfig, where=where)
    ensemble = validate(described["ensemble"], EnsembleCard, where=where) if is_own else _named(config)
    cards = tuple(_card_as_noted(begun, member, load) if is_own else load(member.detector) for member in ensemble.members)
    views = load_perturbations(config.perturb) if "perturb" in given else _views(noted, where)
    precision = noted.get("precision", {}) if "precision" not in given else {}
    return Resolved(settled, ensemble, cards, views, precision, begun, load)


def _as_config(noted: Identity) -> dict[str, Any]:
    """A run's identity in the words of a config, as far as that has words for it."""
    stability = noted.get("stability") or {"count": 0}
    told = {name: noted[name] for name in _SAME if name in noted}
    told |= {"features": noted.get("features", []), "perturb": list(noted.get("perturb", {})), WAIVED: noted.get(WAIVED, False)}
    return told | {"stability": stability["count"], **({"stability_margin": stability["margin"]} if stability["count"] else {})}


def _views(noted: Identity, where: str) -> tuple[Perturbation, ...]:
    return tuple(validate({"name": name, "steps": steps}, Perturbation, where=where) for name, steps in noted.get("perturb", {}).items())


def _named(config: ScoreConfig) -> EnsembleCard:
    return ensemble_of(list(config.detectors)) if config.detectors else load_ensemble_card(config.ensemble)


def _card_as_noted(begun: Begun, member: EnsembleMember, load: LoadCard) -> DetectorCard:
    """The card of a member of the run's own ensemble, with what the run notes of it where the card says something else by now.

    Weights of another content are taken from where they are kept: the cache, the mirror, the run. Where they are not, the card stays as it
    is, and the run's identity will not match.
    """
    url = begun.run.store.url
    try:
        card = load(member.detector)
    except ConfigError as error:
        raise IdentityError(
            f"{url} was begun with the detector {member.detector}, which cannot be read any more: {error.message}", hint=_way_out(url)
        ) from None
    facts = begun.noted.get("detectors", {}).get(card.name) or {}
    card, digest = as_noted(card, facts), facts.get("weights")
    if digest is None or stated_digest(card) in (None, digest):
        return card
    mirrors = [place for place in (os.environ.get(MIRROR_VARIABLE), f"{url}/weights") if place]
    return with_kept_weights(card, digest, mirrors) or card


def _way_out(url: str) -> str:
    """What helps where it is not the user's settings that differ, but what is shipped."""
    return (
        "its detectors are taken from the run, and not all of them are to be had any more: give another --out, or go on with the version "
        f"of Touchstone that made it ({url}/sessions says which)"
    )


def _kept_digest(identity: Identity, card: DetectorCard) -> str | None:
    """The digest of a card's weights by its word; of those that it does not know, the run's: they are no default that has changed."""
    return stated_digest(card) or identity["detectors"].get(card.name, {}).get("weights")
