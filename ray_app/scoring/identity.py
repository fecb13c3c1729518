"""Complete the settings of a command by those that its run directory stores.

`resolve(config, run)` returns the complete `Settings`. A run stores its settings in `run.json`. A
later command on the same run directory must have the same settings. A setting that the user does
not set is taken from the run. So a scheduled run continues even if a new version of Touchstone has
another default.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from ray_app.archives import canonical_name
from ray_app.config import get_set_values, merge_mappings, validate
from ray_app.detectors import MIRROR_VARIABLE, DetectorCard, load_card, weights, weights_digest
from ray_app.detectors.card import apply_run_settings
from ray_app.ensembles import (
    EnsembleCard,
    EnsembleMember,
    EnsembleProfile,
    build_ensemble,
    check_rate,
    choose_operating_point,
    get_decision_settings,
    list_rates,
    load_ensemble_card,
)
from ray_app.errors import ConfigError, IdentityError, TouchstoneError
from ray_app.identification.cards import load_identifier
from ray_app.inference import ScoringSpec, decision, make_spec
from ray_app.inference.spec import Precision
from ray_app.runs import RunDirectory, directory
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.embeddings import select_embeddings
from ray_app.scoring.guarantee import WAIVED
from ray_app.scoring.stored_embeddings import (
    StoredEmbeddings,
    StoredHeads,
    match_heads,
    open_embeddings,
    reads_embeddings,
)
from ray_app.transforms import perturbations

# A config with one of these values leaves the choice to Touchstone.
_AUTOMATIC = {"precision": "auto", "resize": "auto", "batch_slots": None}
# Stored settings that have the same name and form in a config.
_CONFIG_KEYS = (
    "include",
    "exclude",
    "limit",
    "limits",
    "columns",
    "container_limits",
    "features",
    "resize",
    "batch_slots",
    WAIVED,
)
_ENSEMBLE_KEYS = ("detectors.", "decision.", "precision.", "profile.")
LoadCard = Callable[[str], DetectorCard]


@dataclass(frozen=True)
class Settings:
    """The complete settings with which a command scores images, in a new or an existing run.

    Attributes:
        config: The config, completed by the settings that the run stores.
        ensemble: The ensemble. If the user names none, it is the ensemble that the run stores.
        cards: The cards of the ensemble's detectors, in its order.
        views: The perturbations, such as `jpeg:75`. Each image is scored unchanged and after each
            of them.
        absent: Perturbations that a list in `config.perturb` declares as missing in Touchstone. For
            each name, a dict with the kind and the reason: `{"kind": …, "why": …}`.
        precision: By detector, the precision that the run stores. Empty for a new run, or if the
            user sets the precision.
        stored: The settings in `run.json`; None for a new run.
        is_own_ensemble: Whether the ensemble was read from the run.
        embeddings: The stored embeddings to score; None if files are scored.
    """

    config: ScoreConfig
    ensemble: EnsembleCard
    cards: tuple[DetectorCard, ...]
    views: tuple[perturbations.Perturbation, ...]
    absent: Mapping[str, Mapping[str, str]]
    precision: Mapping[str, Precision] = field(default_factory=dict)
    stored: directory.Identity | None = None
    is_own_ensemble: bool = False
    embeddings: StoredEmbeddings | None = None

    @cached_property
    def heads(self) -> StoredHeads | None:
        """The heads (last layers) of the detectors, if stored embeddings are scored.

        None if images are scored.

        Raises:
            ConfigError: If a head was fitted on other embeddings.
            DetectorError: If a detector has no linear head, or its weights are missing.
        """
        if self.embeddings is None:
            return None
        return match_heads(self.embeddings, self.cards, self.config)

    def spec(self, gpus: float) -> ScoringSpec:
        """Return the scoring specification for a cluster with this number of GPUs.

        It contains all that workers need to score images: cards, precision, limits, and device.

        Raises:
            ConfigError: If the settings contradict each other.
        """
        config = self.config
        spec = make_spec(
            self.ensemble,
            cards=self.cards,
            limits=config.limits,
            device=config.device if config.device != "auto" else "cuda" if gpus else "cpu",
            precision=config.precision,
            resize=config.resize,
            slots=config.batch_slots,
            provenance=config.provenance.policy(),
            views=self.views,
            waive_guarantee=config.waive_guarantee,
        )
        spec = replace(
            spec,
            absent=self.absent,
            precision={
                name: self.precision.get(name, default) for name, default in spec.precision.items()
            },
        )
        if self.heads is not None:
            spec = self.heads.adapt(spec, waived=config.waive_guarantee)
        decision.require_embeddings(spec)
        return replace(spec, features=select_embeddings(spec, config.features))

    def facts(self, spec: ScoringSpec) -> dict[str, Any]:
        """Return all settings that influence a score or a verdict, as `run.json` stores them.

        Raises:
            DetectorError: If weights are missing.
        """
        config = self.config
        return {
            "source": [canonical_name(source) for source in config.source],
            "include": list(config.include),
            "exclude": list(config.exclude),
            "limit": config.limit,
            "limits": spec.limits.model_dump(mode="json"),
            "columns": config.columns.model_dump(mode="json"),
            "container_limits": config.container_limits.model_dump(mode="json"),
            "perturb": {view.name: view.facts() for view in spec.views},
            "perturb_kinds": {
                view.name: view.kind for view in spec.views if view.kind != "degradation"
            },
            "perturb_absent": dict(spec.absent),
            "features": list(spec.features),
            WAIVED: config.waive_guarantee and has_guarantee(spec.ensemble),
            "profile": None,
            **scoring_facts(spec),
        }

    def require_same(self, run: RunDirectory) -> None:
        """Check that an existing run was started with the same settings.

        Some settings depend on whether the cluster has GPUs, which is not known yet. The check
        passes if the settings match in one of the two cases.

        Args:
            run: The run directory.

        Raises:
            IdentityError: If settings differ. The message names each of them.
        """
        if self.stored is None:
            return
        differences = []
        for gpus in (0, 1):
            differences.append(run.compare_identity(self.facts(self.spec(gpus))))
            if not differences[-1]:
                return
        shortest = min(differences, key=len)
        is_shipped = self.is_own_ensemble and all(
            line.startswith(_ENSEMBLE_KEYS) for line in shortest
        )
        raise run.mismatch(shortest, hint=_missing_detector_hint(run) if is_shipped else None)

    def changed_default(self) -> list[dict[str, str]]:
        """Compare the stored ensemble of the run with the default ensemble of this version.

        The command prints the differences, because the run keeps the stored ensemble.

        Returns:
            One `{key, run, today}` per difference: the name of the setting, the value of the run, and
            the value that a new run would have. Empty if the user chose the ensemble.
        """
        if not self.is_own_ensemble:
            return []
        try:
            today = load_ensemble_card(ScoreConfig().ensemble)
            today = _at_rate(today, self.ensemble.thresholds.target_fpr)
            cards = [load_card(member.detector) for member in today.members]
        except TouchstoneError as error:
            reason = f"unavailable: {error.message}"
            return [{"key": "ensemble", "run": self.ensemble.name, "today": reason}]
        names, names_today = ([card.name for card in members] for members in (self.cards, cards))
        if (today.name, names_today) != (self.ensemble.name, names):
            run, now = self.ensemble.name, today.name
            if run == now:
                run, now = f"{run} ({', '.join(names)})", f"{now} ({', '.join(names_today)})"
            return [{"key": "ensemble", "run": run, "today": now}]
        differing = directory.differing_keys(
            _card_facts(today, cards), _card_facts(self.ensemble, self.cards)
        )
        return [{"key": key, "run": run, "today": now} for key, now, run in differing]


def resolve(config: ScoreConfig, run: RunDirectory | None = None) -> Settings:
    """Complete the config of a command to the settings with which it scores.

    In an existing run, settings that the user does not write are taken from the run.

    Args:
        config: The config of the command.
        run: The run directory. None, or a directory without a run, means a new run.

    Returns:
        The complete settings.

    Raises:
        ConfigError: If a card or a perturbation is missing.
        IdentityError: If a detector of the run can no longer be read, or if `fpr` differs from that
            of the run.
    """
    load, embeddings = cache(load_card), open_embeddings(config)
    if embeddings is not None:
        config = embeddings.adapt(config)
    if run is None or not run.exists():
        ensemble = _load_ensemble(config)
        cards = tuple(load(member.detector) for member in ensemble.members)
        return Settings(config, ensemble, cards, *_load_views(config), embeddings=embeddings)
    run_info = run.describe()
    stored = directory.add_defaults(run_info["identity"])
    where = f"{run.store.url}/run.json"
    user_settings = {
        name: value
        for name, value in get_set_values(config).items()
        if name not in _AUTOMATIC or value != _AUTOMATIC[name]
    }
    from_run = {name: stored[name] for name in _CONFIG_KEYS}
    from_run["perturb"] = list(stored["perturb"])
    completed = validate(merge_mappings(from_run, user_settings), ScoreConfig, where=where)
    names = {"ensemble", "detectors", "identifier"}
    is_own = not names & user_settings.keys() and bool(run_info.get("ensemble"))
    run_fpr = stored["decision"].get("fpr")
    if is_own:
        ensemble = validate(run_info["ensemble"], EnsembleCard, where=where)
        _require_same_fpr(run, config.fpr, run_fpr)
        cards = tuple(_stored_card(run, stored, member, load) for member in ensemble.members)
    else:
        ensemble = _load_ensemble(config, run_fpr)
        cards = tuple(load(member.detector) for member in ensemble.members)
    views, absent = (
        _load_views(config)
        if "perturb" in user_settings
        else (_stored_views(stored, where), stored["perturb_absent"])
    )
    precision = {} if "precision" in user_settings else stored["precision"]
    return Settings(
        completed, ensemble, cards, views, absent, precision, stored, is_own, embeddings
    )


def _load_ensemble(config: ScoreConfig, run_fpr: float | None = None) -> EnsembleCard:
    """Return the ensemble of a config, at its operating point or else at that of the run."""
    detectors = list(config.detectors)
    if reads_embeddings(config) and not detectors and "ensemble" not in config.model_fields_set:
        if config.identifier is None:
            raise ConfigError(
                "stored embeddings need a head: --detector is missing",
                hint="add --detector HEAD, or --identifier CARD",
            )
        detectors = [load_identifier(config.identifier).detector]
    ensemble = build_ensemble(detectors) if detectors else load_ensemble_card(config.ensemble)
    ensemble = (
        _at_rate(ensemble, run_fpr)
        if config.fpr is None
        else choose_operating_point(ensemble, config.fpr)
    )
    if config.identifier is None:
        return ensemble
    profile = ensemble.profile or EnsembleProfile(identifier=config.identifier)
    profile = profile.model_copy(update={"identifier": config.identifier})
    return ensemble.model_copy(update={"profile": profile})


def _at_rate(ensemble: EnsembleCard, fpr: float | None) -> EnsembleCard:
    """Return the ensemble at a run's operating point, or as it is if it has no such point."""
    if fpr is None or fpr not in list_rates(ensemble):
        return ensemble
    return choose_operating_point(ensemble, fpr)


def _require_same_fpr(run: RunDirectory, fpr: float | None, run_fpr: float | None) -> None:
    if fpr is None:
        return
    check_rate(fpr)
    if run_fpr is None or not math.isclose(fpr, run_fpr):
        run_rate = "has none" if run_fpr is None else f"{run_fpr:g}"
        raise run.mismatch([f"decision.fpr: this command {fpr:g}, the run {run_rate}"])


def _load_views(
    config: ScoreConfig,
) -> tuple[tuple[perturbations.Perturbation, ...], dict[str, dict[str, str]]]:
    """Return the views that a config names, and the unavailable ones."""
    absent = {
        view.name: {"kind": view.kind, "why": view.why}
        for view in perturbations.absent_views(config.perturb)
    }
    return perturbations.load_perturbations(config.perturb), absent


def _stored_views(stored: directory.Identity, where: str) -> tuple[perturbations.Perturbation, ...]:
    kinds = stored["perturb_kinds"]
    views = tuple(
        validate(
            {"name": name, "steps": steps, **({"kind": kinds[name]} if name in kinds else {})},
            perturbations.Perturbation,
            where=where,
        )
        for name, steps in stored["perturb"].items()
    )
    for view in views:
        # A run from another user must not choose the code that runs here.
        if view.calls_own_code:
            raise ConfigError(
                f"{where}: the perturbation {view.name} calls a function that is not part of Touchstone, and a run may not choose code to run",
                hint="give the same --perturb as in the command that made the run",
            )
    return views


def _stored_card(
    run: RunDirectory, stored: directory.Identity, member: EnsembleMember, load: LoadCard
) -> DetectorCard:
    """Return the card of a member of the run's own ensemble, with the facts that the run stores.

    Weights with other content are loaded from the cache, the mirror, or the run. If none of these has
    them, the card keeps today's weights, and `Settings.require_same` fails.
    """
    try:
        card = load(member.detector)
    except ConfigError as error:
        raise IdentityError(
            f"{run.store.url} was started with the detector {member.detector}, whose card can no longer be read: {error.message}",
            hint=_missing_detector_hint(run),
        ) from None
    facts = stored["detectors"].get(card.name) or {}
    card, digest = apply_run_settings(card, facts), facts.get("weights")
    if digest is None or weights.combine_stated_digests(card) in (None, digest):
        return card
    mirrors = (os.environ.get(MIRROR_VARIABLE), f"{run.store.url}/weights")
    return weights.use_earlier_weights(card, digest, [url for url in mirrors if url]) or card


def _missing_detector_hint(run: RunDirectory) -> str:
    url = run.store.url
    return (
        "set another --out, or use the version of Touchstone that wrote the run "
        f"({url}/sessions has it), because a run continues only with the detectors that it was started with"
    )


def _card_facts(ensemble: EnsembleCard, cards: Sequence[DetectorCard]) -> dict[str, Any]:
    """Return the facts about scores and verdicts that are on the cards, without reading weights."""
    detectors = {
        card.name: {"weights": weights.combine_stated_digests(card), **card.scoring_facts}
        for card in cards
    }
    return {"detectors": detectors, "decision": get_decision_settings(ensemble)}


def has_guarantee(card: EnsembleCard) -> bool:
    """Return whether the option `waive_guarantee` has an effect for an ensemble's card.

    The option keeps verdicts that the guarantee, a maximum false-positive rate, does not cover. It
    has an effect if the card has a guarantee, settings of the calibration, or statistics of the
    calibration's images (`population`).
    """
    return any(part is not None for part in (card.guarantee, card.settings, card.population))


def scoring_facts(spec: ScoringSpec) -> dict[str, Any]:
    """Return the settings of an ensemble that determine scores and verdicts, for comparison.

    A run stores these settings in `run.json`. `touchstone serve` computes a fingerprint of them.
    Settings of the run itself, such as `limits`, are not among them (see `Settings.facts`).

    Args:
        spec: The scoring specification.

    Returns:
        The settings by name: `detectors`, `precision`, `resize`, `batch_slots`, `decision`, and
        `profile` if the card has this key, for models that predict generators and prompts.

    Raises:
        DetectorError: If weights are missing.
    """
    return {
        "detectors": {
            name: {"weights": _digest(spec, card), **card.scoring_facts}
            for name, card in spec.cards.items()
        },
        "precision": dict(spec.precision),
        "resize": spec.resize,
        "batch_slots": spec.slots,
        **({"profile": _profile_facts(spec)} if spec.ensemble.profile else {}),
        "decision": get_decision_settings(spec.ensemble),
    }


def _digest(spec: ScoringSpec, card: DetectorCard) -> str:
    """Return the digest of a detector's weights, or of its head if embeddings are scored."""
    digest = weights.combine_stated_digests(card) if spec.reads_embeddings else None
    return digest or weights_digest(card)


def _profile_facts(spec: ScoringSpec) -> dict[str, Any]:
    """Return what decides which generator and which prompt a row contains."""
    identifier, describer, profile = spec.identifier, spec.describer, spec.ensemble.profile
    content: dict[str, Any] = {"describe": profile.describe if profile and describer else None}
    if identifier is not None:
        content["identifier"] = identifier.facts()
    if describer is not None:
        content["describer"] = describer.facts() | {
            "precision": describer.precision_on(spec.device)
        }
    return content
