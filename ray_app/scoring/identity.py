"""What a command scores with, and whether that is what a run was begun with.

`resolve` takes the ensemble, cards and settings from config and run; `identity_of` is what another
command on a directory must match. Beside them, what a run is made with that follows from both:
references of a guarantee, kept embeddings.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from ray_app.archives import name_of
from ray_app.config import config_root, overlaid, validate, written
from ray_app.detectors import (
    MIRROR_VARIABLE,
    DetectorCard,
    load_card,
    publish_weights,
    resolve_weights,
    weights,
    weights_digest,
)
from ray_app.detectors.card import with_run_facts
from ray_app.ensembles import (
    EnsembleCard,
    EnsembleMember,
    decision_facts,
    ensemble_of,
    load_ensemble_card,
)
from ray_app.errors import ConfigError, IdentityError, TouchstoneError
from ray_app.inference import ScoringSpec, decision, make_spec
from ray_app.inference.spec import Precision
from ray_app.runs import RunDirectory, directory
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.guarantee import WAIVED, references_beside
from ray_app.transforms import perturbations

Digest = Callable[[DetectorCard], str | None]
# Settings that a run notes only if they have other values than these.
UNNOTED: Mapping[str, Mapping[str, Any]] = {
    "limits": {"max_whole_pixels": None},
    "columns": {"image": None, "uri": None},
    "container_limits": {"max_members": 10_000_000, "max_ratio": 200.0},
}
# With these a config leaves something to Touchstone even where it is written down.
_AUTOMATIC = {"precision": "auto", "resize": "auto", "batch_slots": None}
_OF_ENSEMBLES = ("detectors.", "decision.", "precision.", "profile.")
# In a config as in an identity.
_SAME = (
    "include",
    "exclude",
    "limit",
    "limits",
    "columns",
    "container_limits",
    "resize",
    "batch_slots",
)
LoadCard = Callable[[str], DetectorCard]


@dataclass(frozen=True)
class ResumedRun:
    """An existing run: its `run.json`, the config of the command that continues it, and whether its
    own ensemble still decides.
    """

    run: RunDirectory
    described: Mapping[str, Any]
    given: ScoreConfig
    own_ensemble: bool

    @property
    def noted(self) -> directory.Identity:
        """The identity of the run, with the settings that it did not note."""
        return overlaid(UNNOTED, self.described["identity"])


@dataclass(frozen=True)
class Resolved:
    """What a command scores with. `cards`: those of the ensemble's members; `precision`: per
    detector, as far as a run says it; `absent`: views that were asked for and are not there, by
    name their kind and why.
    """

    config: ScoreConfig
    ensemble: EnsembleCard
    cards: tuple[DetectorCard, ...]
    views: tuple[perturbations.Perturbation, ...]
    absent: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    precision: Mapping[str, Precision] = field(default_factory=dict)
    begun: ResumedRun | None = None
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
            provenance=config.provenance.policy(),
            views=self.views,
            waive_guarantee=config.waive_guarantee,
        )
        precision = {name: self.precision.get(name, one) for name, one in spec.precision.items()}
        spec = spec if precision == spec.precision else replace(spec, precision=precision)
        decision.require_embeddings(spec)
        return replace(
            spec,
            absent=self.absent,
            features=kept_embeddings_of(spec, config.features)
            if config.features
            else spec.features,
        )

    def identity(self, spec: ScoringSpec) -> dict[str, Any]:
        """What the run must match. Raises DetectorError where weights are missing."""
        return identity_of(self.config, spec)

    def require_own(self) -> None:
        """Whether the run is this command's, as far as can be known without a cluster: with GPUs or
        without. Raises IdentityError.
        """
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
        """The scores that the ensemble's guarantee rests on; None where there are none, or the run
        has them already.
        """
        has_them = self.config.detectors or (self.begun is not None and self.begun.own_ensemble)
        return None if has_them else references_beside(self.config.ensemble, self.ensemble)

    def kept(self, spec: ScoringSpec) -> list[dict[str, str]]:
        """How the run goes on otherwise than the same command would begin today: each key, with the
        run's value and today's as JSON.
        """
        begun = self.begun
        if begun is None:
            return []
        theirs = begun.described["identity"]
        try:
            today = resolve(begun.given, load=self.load).spec(float(spec.device != "cpu"))
            ours = identity_of(begun.given, today, digest=partial(_kept_digest, theirs))
        except TouchstoneError as error:
            return [
                {
                    "key": "ensemble",
                    "run": self.ensemble.name,
                    "today": f"cannot be had: {error.message}",
                }
            ]
        found = directory.differing_keys(ours, theirs)
        mine, now = ([card.name for card in self.cards], list(today.cards))
        # then nearly every key of theirs differs
        if (today.ensemble.name, now) != (self.ensemble.name, mine):
            others = [one for one in found if not one[0].startswith(_OF_ENSEMBLES)]
            names = (today.ensemble.name, self.ensemble.name)
            if len(set(names)) == 1:
                names = (f"{names[0]} ({', '.join(now)})", f"{names[1]} ({', '.join(mine)})")
            found = [("ensemble", *names), *others]
        return [{"key": key, "run": run, "today": now} for key, now, run in found]


def resolve(
    config: ScoreConfig, run: RunDirectory | None = None, *, load: LoadCard | None = None
) -> Resolved:
    """What a command scores with, alone or going on with a run; each card is read once, by `load`.

    Raises ConfigError for cards and perturbations that are not there.
    """
    load = load or cache(load_card)
    if run is None or not run.exists():
        ensemble = _ensemble_of(config)
        cards = tuple(load(member.detector) for member in ensemble.members)
        return Resolved(config, ensemble, cards, *_of_lists(config), load=load)
    described = run.describe()
    given = {
        name: value
        for name, value in written(config).items()
        if name not in _AUTOMATIC or value != _AUTOMATIC[name]
    }
    is_own = not {"ensemble", "detectors"} & given.keys() and bool(described.get("ensemble"))
    begun = ResumedRun(run, described, config, is_own)
    noted, where = begun.noted, f"{run.store.url}/run.json"
    settled = validate(overlaid(_as_config(noted), given), ScoreConfig, where=where)
    ensemble = (
        validate(described["ensemble"], EnsembleCard, where=where)
        if is_own
        else _ensemble_of(config)
    )
    cards = tuple(
        _card_as_noted(begun, member, load) if is_own else load(member.detector)
        for member in ensemble.members
    )
    views, absent = (
        _of_lists(config)
        if "perturb" in given
        else (_views(noted, where), noted.get("perturb_absent", {}))
    )
    precision = noted.get("precision", {}) if "precision" not in given else {}
    return Resolved(settled, ensemble, cards, views, absent, precision, begun, load)


def _as_config(noted: directory.Identity) -> dict[str, Any]:
    """A run's identity in the words of a config, as far as that has words for it."""
    content = {name: noted[name] for name in _SAME if name in noted}
    return content | {
        "features": noted.get("features", []),
        "perturb": list(noted.get("perturb", {})),
        WAIVED: noted.get(WAIVED, False),
    }


def _of_lists(
    config: ScoreConfig,
) -> tuple[tuple[perturbations.Perturbation, ...], dict[str, dict[str, str]]]:
    """The views that a config's lists stand for, and those that are not there."""
    views = perturbations.load_perturbations(config.perturb)
    return views, {
        one.name: {"kind": one.kind, "why": one.why}
        for one in perturbations.absent_views(config.perturb)
    }


def _views(noted: directory.Identity, where: str) -> tuple[perturbations.Perturbation, ...]:
    kinds = noted.get("perturb_kinds", {})
    views = tuple(
        validate(
            {"name": name, "steps": steps, **({"kind": kinds[name]} if name in kinds else {})},
            perturbations.Perturbation,
            where=where,
        )
        for name, steps in noted.get("perturb", {}).items()
    )
    for view in views:
        # A run that somebody else wrote must not choose the code that runs here.
        if view.calls_own_code:
            raise ConfigError(
                f"{where}: the view {view.name} calls a function of yours",
                hint="give the same --perturb again",
            )
    return views


def _ensemble_of(config: ScoreConfig) -> EnsembleCard:
    return (
        ensemble_of(list(config.detectors))
        if config.detectors
        else load_ensemble_card(config.ensemble)
    )


def _card_as_noted(begun: ResumedRun, member: EnsembleMember, load: LoadCard) -> DetectorCard:
    """The card of a member of the run's own ensemble, with what the run notes of it where the card
    says something else by now.

    Weights of another content are taken from where they are kept: the cache, the mirror, the run.
    Where they are not, the card stays as it is, and the run's identity will not match.
    """
    url = begun.run.store.url
    try:
        card = load(member.detector)
    except ConfigError as error:
        raise IdentityError(
            f"{url} was begun with the detector {member.detector}, which can no longer be read: {error.message}",
            hint=_way_out(url),
        ) from None
    facts = begun.noted.get("detectors", {}).get(card.name) or {}
    card, digest = with_run_facts(card, facts), facts.get("weights")
    if digest is None or weights.stated_digest(card) in (None, digest):
        return card
    mirrors = [place for place in (os.environ.get(MIRROR_VARIABLE), f"{url}/weights") if place]
    return weights.with_kept_weights(card, digest, mirrors) or card


def _way_out(url: str) -> str:
    """What helps where it is not the user's settings that differ, but what is shipped."""
    return (
        "a run goes on with the detectors that it was begun with, and one of them is missing: give another --out, or use the version of "
        f"Touchstone that made the run ({url}/sessions says which)"
    )


def _kept_digest(identity: directory.Identity, card: DetectorCard) -> str | None:
    """The digest of a card's weights by its word; of those that it does not know, the run's: they
    are no default that has changed.
    """
    return weights.stated_digest(card) or identity["detectors"].get(card.name, {}).get("weights")


def identity_of(
    config: ScoreConfig, spec: ScoringSpec, *, digest: Digest = weights_digest
) -> dict[str, Any]:
    """What another command on the same run directory must match (DESIGN §3). Raises DetectorError
    where weights are missing.
    """
    containers = {
        "columns": config.columns.model_dump(mode="json"),
        "container_limits": config.container_limits.model_dump(mode="json"),
    }
    return {
        "source": [name_of(source) for source in config.source],
        "include": list(config.include),
        "exclude": list(config.exclude),
        "limit": config.limit,
        "limits": spec.limits.model_dump(mode="json"),
        **{name: setting for name, setting in containers.items() if setting != UNNOTED[name]},
        **_views_facts(spec),
        **({"features": list(spec.features)} if spec.features else {}),
        **({WAIVED: True} if config.waive_guarantee and promises(spec.ensemble) else {}),
        **scoring_identity(spec, digest=digest),
    }


def _views_facts(spec: ScoringSpec) -> dict[str, Any]:
    """The steps of all views, which of them are no plain degradations, and which were asked for and
    are not there.
    """
    kinds = {view.name: view.kind for view in spec.views if view.kind != "degradation"}
    facts = {
        "perturb": {view.name: view.facts() for view in spec.views},
        "perturb_kinds": kinds,
        "perturb_absent": dict(spec.absent),
    }
    return {name: value for name, value in facts.items() if value}


def promises(card: EnsembleCard) -> bool:
    """Whether there is a guarantee to give up."""
    return any(known is not None for known in (card.guarantee, card.settings, card.population))


def scoring_identity(spec: ScoringSpec, *, digest: Digest = weights_digest) -> dict[str, Any]:
    """The part that a served ensemble has too: detectors, settings, decision."""
    return {
        "detectors": {
            name: {"weights": digest(card), **card.scoring_facts}
            for name, card in spec.cards.items()
        },
        "precision": dict(spec.precision),
        "resize": spec.resize,
        "batch_slots": spec.slots,
        **({"profile": profile_identity(spec)} if spec.ensemble.profile else {}),
        **decision_identity(spec),
    }


def profile_identity(spec: ScoringSpec) -> dict[str, Any]:
    """All that decides which generator and which words a row has."""
    identifier, describer, profile = spec.identifier, spec.describer, spec.ensemble.profile
    content: dict[str, Any] = {"describe": profile.describe if profile and describer else None}
    if identifier is not None:
        content["identifier"] = identifier.facts()
    if describer is not None:
        content["describer"] = describer.facts() | {
            "precision": describer.precision_on(spec.device)
        }
    return content


def decision_identity(spec: ScoringSpec) -> dict[str, Any]:
    """The part that `touchstone runs decide` may replace."""
    return {"decision": decision_facts(spec.ensemble)}


def share_weights(spec: ScoringSpec, run: RunDirectory) -> str | None:
    """Where the workers of a cluster find weights: $TOUCHSTONE_WEIGHTS_MIRROR, else a copy in the
    run directory, else (shipped ones) None.

    The driver alone fetches; a thousand workers that query a hub at once would be refused.
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
        weights.publish_part(part, mirror)
    return mirror


def kept_embeddings_of(spec: ScoringSpec, requested: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Per detector whose embeddings are to be kept, what decides them. `requested`: names of
    detectors, or of backbones that they share.

    Of detectors with one backbone and equal embeddings the first stands for all. Raises ConfigError
    for a name that is none of the ensemble's and for a detector that does not look at every image,
    DetectorError where there is no embedding or no weights.
    """
    if not requested:
        return {}
    from ray_app.detectors.linear_head import embedding_facts  # torch: only where something is kept

    chosen = {name: _named(spec, name) for name in requested}
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
    found = [
        name
        for name, card in spec.cards.items()
        if word in (name, card.backbone and card.backbone.name)
    ]
    if not found:
        backbones = dict.fromkeys(
            card.backbone.name for card in spec.cards.values() if card.backbone
        )
        raise ConfigError(
            f"--features {word}: not a detector of this run",
            hint=f"one of {', '.join([*spec.cards, *backbones])}",
        )
    late = [name for name in found if name in spec.late]
    if late == found:
        raise ConfigError(
            f"--features {word}: {', '.join(late)} sees only images that go on in the cascade, so others would have no embedding",
            hint=f"one of {', '.join(spec.first)}",
        )
    return [name for name in found if name not in late]
