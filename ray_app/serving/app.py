"""The Serve application: `build` (what `serve deploy` calls) binds an `Ingress` and deployments of
detectors.

Each process counts for itself (`RayMeter`) and hands its numbers to the metric agent of its node,
from which Prometheus has those of all replicas.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import grpc
from ray import serve
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    OwnerDiedError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve import Application
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Counter, Gauge, Histogram

from ray_app.cluster.local_ray import WORKER_ENVIRONMENT
from ray_app.config import validate
from ray_app.detectors.cpu import CPU_PRECISION_VARIABLE, cpu_precision
from ray_app.errors import ConfigError, TouchstoneError
from ray_app.import_path import SAFE_PATH
from ray_app.inference import ScoringSpec
from ray_app.serving import engine, profiles
from ray_app.serving.config import Resources, ServeConfig
from ray_app.serving.http.errors import Refusal
from ray_app.serving.metrics import COUNTERS, GAUGES, HISTOGRAMS, Meter
from ray_app.serving.release import groups_of, plan_release
from ray_app.serving.replica import DetectorGroup, ReleaseOffer, ScoreRequest, ScoreResponse
from ray_app.storage import s3

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ray_app.serving.release import Release

NAME = "touchstone"
SHUTDOWN_MARGIN_S = 10.0  # a replica that ends has time for the longest request that it took
Handle = DeploymentHandle[Any]
DIED = (
    ActorDiedError,
    ActorUnavailableError,
    WorkerCrashedError,
    ObjectLostError,
    OwnerDiedError,
    grpc.aio.AioRpcError,
)
GONE = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)
RETRY_AFTER_S = 1
# billions of multiply-adds of an image in all detectors: on a core about what decoding and HTTP
# take of it
MOST_FUSED_GMAC = 1.0
RELOADABLE = {
    "ensembles",
    "optional_detectors",
    "accept_licences",
    "generation",
    "precision",
    "resize",
    "waive_guarantee",
}
_log = logging.getLogger(__name__)


def build(config: ServeConfig) -> Application:
    """The application of one config. For `serve deploy`, its secrets stand in the environment of
    the cluster's nodes, or in files.

    Raises ConfigError and DetectorError for what can be known before weights are loaded.
    """
    spec, _, _ = plan_release(config)
    slots, most = spec.slots, config.limits.max_requests
    # The ingress must refuse a request before Serve's proxy does, so it admits more than it works
    # on. For each request of `most`, one is processed, two send their bodies, and two are refused
    # but still send (`http.app.install`). The rest is for health checks and pages.
    at_ingress: dict[str, Any] = {"name": "ingress", "max_ongoing_requests": 6 * most + 100}
    if is_fused(config, spec):
        both = _fused_resources(config)
        options = {
            **at_ingress,
            "user_config": {"generation": config.generation},
            **_replicas(both, config, load=2 * slots),
        }
        return _deployment(serve.ingress()(FusedIngress), **options).bind(
            config, list(groups_of(spec))
        )
    groups = {
        name: _deployment(
            DetectorDeployment,
            name=name,
            user_config={"generation": config.generation},
            max_ongoing_requests=max(4 * slots, 16),
            max_queued_requests=most * config.limits.max_files,
            **_replicas(config.groups.get(name, config.detectors), config, load=2 * slots),
        ).bind(name, config, list(groups_of(spec)))
        for name in groups_of(spec)
    }
    ingress = _deployment(
        serve.ingress()(Ingress), **at_ingress, **_replicas(config.ingress, config, load=most / 2)
    )
    return ingress.bind(config, groups)


def is_fused(config: ServeConfig, spec: ScoringSpec) -> bool:
    """Whether all detectors run in the ingress: as `fused` says, or where all are small, on CPUs,
    and no group has resources of its own.
    """
    if config.fused is not None:
        return config.fused
    on_cpus = config.device == "cpu" and not config.detectors.num_gpus and not config.groups
    sizes = [card.size.gmac if card.size else None for card in spec.cards.values()]
    return (
        on_cpus
        and len(spec.pools) == 1
        and all(sizes)
        and sum(filter(None, sizes)) <= MOST_FUSED_GMAC
    )


def _fused_resources(config: ServeConfig) -> Resources:
    """What a replica takes that is ingress and detectors: both CPUs and memory, as many replicas as
    the more numerous has.
    """
    parts = (config.ingress, config.detectors)
    most = [one.max_replicas for one in parts if one.max_replicas]
    return config.detectors.model_copy(
        update={
            "replicas": max(one.replicas for one in parts),
            "max_replicas": max([*most, *(one.replicas for one in parts)]) if most else None,
            "num_cpus": sum(one.num_cpus for one in parts),
            "memory_bytes": sum(one.memory_bytes or 0 for one in parts) or None,
            "labels": {**config.ingress.labels, **config.detectors.labels},
        }
    )


def _deployment(kind: Callable[..., Any], **options: Any) -> serve.Deployment:
    deployment: serve.Deployment = serve.deployment(kind).options(**options)  # type: ignore[attr-defined]
    return deployment


def _replicas(resources: Resources, config: ServeConfig, load: float = 1.0) -> dict[str, Any]:
    """Deployment options; `load` is how many requests at a time one replica should have before
    another is started.
    """
    actor: dict[str, Any] = {
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        # One precision for all replicas, also where their nodes have other processors: equal
        # fingerprints mean equal scores.
        "runtime_env": {
            "env_vars": {
                **WORKER_ENVIRONMENT,
                **s3.worker_variables(),
                SAFE_PATH: "1",
                CPU_PRECISION_VARIABLE: cpu_precision(),
            }
        },
    }
    if resources.memory_bytes:
        actor["memory"] = resources.memory_bytes
    if resources.labels:
        actor["label_selector"] = dict(resources.labels)
    many: dict[str, Any] = {"num_replicas": resources.replicas}
    if resources.max_replicas:
        scaling = {
            "min_replicas": resources.replicas,
            "max_replicas": resources.max_replicas,
            "target_ongoing_requests": load,
        }
        many = {"autoscaling_config": scaling}
    # New replicas are up before old ones stop: an update fails no request.
    ends = config.limits.deadline_s + SHUTDOWN_MARGIN_S
    return {
        "ray_actor_options": actor,
        "max_surge_percent": 100,
        "graceful_shutdown_timeout_s": ends,
        **many,
    }


class _Reconfigured:
    """A replica with some `groups` of all that are `needed`. `user_config` may change RELOADABLE
    keys of the config without a restart.
    """

    def __init__(
        self, config: ServeConfig, groups: Mapping[str, DetectorGroup], needed: Collection[str]
    ) -> None:
        self._config, self._local, self._needed = config, groups, set(needed)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Load what the config now requests; requests are answered by what was loaded before until
        then.

        What cannot be loaded leaves what is there at work, and is logged: Serve would end a replica
        whose reconfiguration raises.
        """
        try:
            await asyncio.to_thread(self._load, dict(user_config))
        except TouchstoneError as error:
            if not all(group.is_loaded for group in self._local.values()):
                raise
            _log.error(
                "not loaded; the previous ensembles stay in use: %s; %s", error.message, error.hint
            )

    def _load(self, changes: dict[str, Any]) -> None:
        if unknown := changes.keys() - RELOADABLE:
            raise ConfigError(f"user_config: {', '.join(sorted(unknown))}: cannot be changed without a restart",
                              hint=f"these can: {', '.join(sorted(RELOADABLE))}; for all else change `args`")  # fmt: skip
        config = validate(
            self._config.model_dump(mode="json") | changes, ServeConfig, where="user_config"
        )
        needed = groups_of(plan_release(config)[0]).keys()
        if needed != self._needed:
            raise ConfigError(
                f"these ensembles need the groups {', '.join(needed)}",
                hint="change `args` and deploy again",
            )
        for group in self._local.values():
            group.load(config)

    async def check_health(self) -> None:
        """Serve replaces a replica whose detectors raise on everything: a device may have failed
        under them. Raises DetectorError.
        """
        for group in self._local.values():
            group.require_scores()


class DetectorDeployment(_Reconfigured, DetectorGroup):
    """One group of detectors out of all `groups`, called by ingress replicas."""

    def __init__(self, name: str, config: ServeConfig, groups: Collection[str]) -> None:
        _log_beside_serve()
        DetectorGroup.__init__(self, name, RayMeter())
        _Reconfigured.__init__(self, config, {name: self}, groups)


class Ingress:
    """The HTTP side: everything about requests, nothing about networks."""

    def __init__(self, config: ServeConfig, groups: Mapping[str, Handle]) -> None:
        _log_beside_serve()
        self._config, self._meter = config, RayMeter()
        self._groups: Mapping[str, engine.GroupHandle] = {
            name: RemoteGroup(handle) for name, handle in groups.items()
        }

    def __serve_build_asgi_app__(self) -> "FastAPI":
        from ray_app.serving.http.app import create_app

        scorer = engine.EndpointScorer(
            self._config, self._groups, engine.started_decoders(self._config), self._meter
        )
        return create_app(self._config, scorer, self._meter, echo_request_id=False)


class FusedIngress(_Reconfigured, Ingress):
    """The HTTP side and all detectors in one process: for small networks, the way between two
    processes costs more than they do.
    """

    def __init__(self, config: ServeConfig, groups: Collection[str]) -> None:
        Ingress.__init__(self, config, {})
        self._groups = local = {name: DetectorGroup(name, self._meter) for name in groups}
        _Reconfigured.__init__(self, config, local, groups)


class RemoteGroup:
    """A `DetectorDeployment`, called through Serve."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def score(self, request: ScoreRequest) -> ScoreResponse | ReleaseOffer:
        """See `engine.GroupHandle`."""
        answer: ScoreResponse | ReleaseOffer = await _answered(self._handle.score.remote(request))
        return answer

    async def profile(
        self, request: profiles.ProfileRequest
    ) -> profiles.ProfileResponse | ReleaseOffer:
        """See `engine.GroupHandle`."""
        response: profiles.ProfileResponse | ReleaseOffer = await _answered(
            self._handle.profile.remote(request)
        )
        return response

    async def describe(self) -> "Release":
        """See `engine.GroupHandle`."""
        generation: Release = await _answered(self._handle.describe.remote())
        return generation


async def _answered(response: Any) -> Any:
    """The answer of another replica. Its own refusals are raised; that it is gone, or has no place,
    becomes our own error.
    """
    try:
        answer = await response
    except DIED:
        raise engine.GroupDied from None
    except GONE:
        raise engine.GroupLost from None
    except BackPressureError:
        raise Refusal("overloaded", headers={"Retry-After": str(RETRY_AFTER_S)}) from None
    except RayTaskError as error:
        raise error.cause from None
    return answer


class _ServeLogHandler(logging.Handler):
    """Pass records to Ray Serve's logger, whose level, file, and format may change later."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record on if Serve's level allows it."""
        serve_log = logging.getLogger("ray.serve")
        if serve_log.isEnabledFor(record.levelno):
            serve_log.handle(record)


def _log_beside_serve() -> None:
    """Send the log of this package to the replica's own file, with Ray Serve's format and level."""
    package_log = logging.getLogger("ray_app")
    for handler in tuple(package_log.handlers):
        package_log.removeHandler(handler)
    package_log.addHandler(_ServeLogHandler())
    package_log.propagate = False
    package_log.setLevel(logging.DEBUG)


class RayMeter(Meter):
    """Count also with Ray's metric library, in a process that Ray runs. Numbers reach the node's
    metric agent within about 10 s.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ray_counters = {
            name: Counter(f"touchstone_{name}", description=meaning, tag_keys=labels)
            for name, (meaning, labels) in COUNTERS.items()
        }
        self._ray_histograms = {
            name: Histogram(
                f"touchstone_{name}", description=meaning, boundaries=list(bounds), tag_keys=labels
            )
            for name, (meaning, labels, bounds) in HISTOGRAMS.items()
        }
        self._ray_in_flight = Gauge(
            "touchstone_images_in_flight", description=GAUGES["images_in_flight"]
        )

    def _add(self, name: str, amount: float, labels: Mapping[str, str]) -> None:
        super()._add(name, amount, labels)
        self._ray_counters[name].inc(amount, dict(labels))

    def _observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        super()._observe(name, value, labels)
        self._ray_histograms[name].observe(value, dict(labels))

    def in_flight(self, n: int) -> None:
        """Set what this process reports until it is set again."""
        super().in_flight(n)
        self._ray_in_flight.set(n)
