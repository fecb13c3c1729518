"""Read the ensembles that an endpoint serves, with all their thresholds (`load_ensembles`).

An ensemble has an operating point, a pair of thresholds, for each of several false-positive rates.
Importing this module does not import torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ray_app.detectors import DetectorCard, RequestedResize, licences, resolve_weights
from ray_app.detectors.callables.process import require_device
from ray_app.detectors.weights import resolve_part
from ray_app.ensembles import (
    EnsembleCard,
    build_ensemble,
    choose_operating_point,
    describe_error_rates,
    list_rates,
    load_ensemble_card,
)
from ray_app.errors import ConfigError
from ray_app.inference import ScoringSpec
from ray_app.inference.spec import Precision, make_spec, unite_resize
from ray_app.runs import fingerprint
from ray_app.scoring.identity import scoring_facts
from ray_app.serving.config import ServeConfig


@dataclass(frozen=True)
class ServedEnsemble:
    """An ensemble at one operating point, as an endpoint serves it.

    An operating point is a pair of thresholds for one false-positive rate.

    Attributes:
        fingerprint: SHA-256 of the settings that determine scores and verdicts. Equal fingerprints
            give equal scores and verdicts, also in a batch run.
        error_rates: A sentence on the measured error rates, to show with the verdicts.
    """

    spec: ScoringSpec
    fingerprint: str
    error_rates: str

    @property
    def name(self) -> str:
        """The name of the ensemble."""
        return self.spec.ensemble.name

    @property
    def fpr(self) -> float | None:
        """The false-positive rate for which the thresholds were chosen.

        None if the card states no rate.
        """
        return self.spec.ensemble.thresholds.target_fpr


@dataclass(frozen=True)
class EnsemblePlan:
    """The scoring settings of an endpoint's ensembles, from their cards, before weights are read.

    Attributes:
        spec: The settings of one process that loads the detectors of all ensembles and the optional
            detectors.
        ensembles: The settings of each ensemble, by name. The first ensemble is the default.
        optional: Names of the detectors that score only if a request names them.
    """

    spec: ScoringSpec
    ensembles: Mapping[str, ScoringSpec]
    optional: tuple[str, ...]


@dataclass(frozen=True)
class ServedEnsembles:
    """The ensembles of an endpoint at all their operating points, with fingerprints.

    An operating point is a pair of thresholds for one false-positive rate.

    Attributes:
        points: The operating points of each ensemble, by name. The first point is used for requests
            without `fpr`. The other points can be selected by `fpr`.
    """

    plan: EnsemblePlan
    points: Mapping[str, Sequence[ServedEnsemble]]

    def find(self, name: str | None, fpr: float | None) -> ServedEnsemble:
        """Return the ensemble that a request selects, with the thresholds that it selects.

        Without a name, it is the first ensemble, and without `fpr`, its default thresholds. Raises
        KeyError if the ensemble or `fpr` is not served.
        """
        points = self.points[name or next(iter(self.points))]
        if fpr is None:
            return points[0]
        for point in points[1:]:
            if point.fpr is not None and math.isclose(point.fpr, fpr):
                return point
        raise KeyError(fpr)


def plan_ensembles(config: ServeConfig) -> EnsemblePlan:
    """Read the cards (YAML files) of an endpoint's ensembles, and return their scoring settings.

    No weights are read, so this also checks a config on a machine without the weights. Raises
    ConfigError if the ensembles cannot be served together, for example because they were calibrated
    with different settings, or a card has no thresholds for `config.fpr`, and DetectorError if a
    licence is not accepted.
    """
    cards = [load_ensemble_card(name) for name in config.ensembles]
    names = [card.name for card in cards]
    if len(set(names)) < len(names):
        raise ConfigError(f"ensembles must have distinct names, got {', '.join(names)}")
    if config.fpr is not None:  # A card without this point is refused before weights are fetched.
        for ensemble in cards:
            choose_operating_point(ensemble, config.fpr)
    specs = [_make_spec(card, config) for card in cards]
    optional: tuple[str, ...] = ()
    if config.optional_detectors:
        further = _make_spec(build_ensemble(list(config.optional_detectors)), config)
        optional = tuple(
            name for name in further.cards if not any(name in spec.cards for spec in specs)
        )
        specs.append(further)
    specs = _align_settings(specs, config.resize)
    merged = _merge_specs(specs)
    for card in merged.cards.values():
        licences.require_accepted(card, config.accept_licences)
        require_device(card, config.device)
    return EnsemblePlan(merged, dict(zip(names, specs, strict=False)), optional)


def load_ensembles(config: ServeConfig, plan: EnsemblePlan | None = None) -> ServedEnsembles:
    """Read the cards (YAML files) of an endpoint's ensembles, and compute their fingerprints.

    If `plan` is given, no card is read. A fingerprint is the SHA-256 of all settings that determine
    scores and verdicts. It depends on the hashes of the weights, so the weights must be available.
    The errors are those of `plan_ensembles`, and DetectorError if weights are missing.
    """
    plan = plan or plan_ensembles(config)
    return ServedEnsembles(
        plan,
        {name: _list_operating_points(spec, config.fpr) for name, spec in plan.ensembles.items()},
    )


def fetch_weights(config: ServeConfig) -> None:
    """Fetch those weights of an endpoint that are missing on this machine.

    They are those of the detectors, identifiers, and describers. Its worker processes cannot fetch
    them, because they have no credentials. Raises DetectorError if a licence is not accepted, or
    weights cannot be fetched.
    """
    plan = plan_ensembles(config)
    for card in plan.spec.cards.values():
        resolve_weights(card)
    for ensemble in plan.ensembles.values():
        for profile in (ensemble.identifier, ensemble.describer):
            for part in profile.parts if profile is not None else ():
                resolve_part(part)


def _list_operating_points(spec: ScoringSpec, fpr: float | None) -> list[ServedEnsemble]:
    card = spec.ensemble
    default = card if fpr is None else choose_operating_point(card, fpr)
    points = [choose_operating_point(card, rate) for rate in list_rates(card)]
    return [_make_served(replace(spec, ensemble=point)) for point in (default, *points)]


def _make_served(spec: ScoringSpec) -> ServedEnsemble:
    card = spec.ensemble
    return ServedEnsemble(spec, fingerprint(scoring_facts(spec)), describe_error_rates(card))


def _make_spec(card: EnsembleCard, config: ServeConfig) -> ScoringSpec:
    return make_spec(
        card,
        limits=config.images,
        device=config.device,
        precision=config.precision,
        resize=config.resize,
        slots=config.batching.slots,
        waive_guarantee=config.waive_guarantee,
    )


def _align_settings(specs: Sequence[ScoringSpec], requested: RequestedResize) -> list[ScoringSpec]:
    """Return the specs with the same resize mode, and the same precision for each detector.

    Calibrated ensembles determine them, and the others adopt their settings. Without a calibrated
    ensemble, `requested` is the resize mode. Raises ConfigError if two ensembles were calibrated
    under different settings.
    """
    precision: dict[str, Precision] = {}
    calibrated = [spec for spec in specs if spec.ensemble.settings is not None]
    resize = {spec.resize: spec.ensemble.name for spec in calibrated}
    for spec in calibrated:
        for name, calibrated_precision in spec.precision.items():
            if precision.setdefault(name, calibrated_precision) != calibrated_precision:
                raise ConfigError(
                    f"an endpoint runs each detector in one precision, but the ensembles were calibrated with {name} in bf16 and in fp32",
                    hint="serve these ensembles from separate endpoints",
                )
    if len(resize) > 1:
        raise ConfigError(
            f"{' and '.join(resize.values())} were calibrated under different resize modes",
            hint="serve them from separate endpoints",
        )
    for spec in specs:
        precision = {**spec.precision, **precision}
    mode = unite_resize(next(iter(resize), requested), precision)
    return [
        replace(spec, precision={name: precision[name] for name in spec.precision}, resize=mode)
        for spec in specs
    ]


def _merge_specs(specs: Sequence[ScoringSpec]) -> ScoringSpec:
    """Return the spec of all detectors, with the embeddings that profiles of the ensembles read."""
    cards: dict[str, DetectorCard] = {}
    precision: dict[str, Precision] = {}
    features = {}
    for spec in specs:
        for name, card in spec.cards.items():
            if cards.setdefault(name, card) != card:
                raise ConfigError(
                    f"two different cards have the name {name}", hint="rename one of them"
                )
        precision.update(spec.precision)
        for profile in (spec.identifier, spec.describer):
            if profile is not None and profile.detector is not None:
                features[profile.detector] = dict(profile.embedding)
    return replace(
        specs[0],
        ensemble=build_ensemble(list(cards)),
        cards=cards,
        precision=precision,
        identifier=None,
        describer=None,
        features=features,
    )
