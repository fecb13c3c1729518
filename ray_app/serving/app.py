"""The Serve application: `build` (what `serve deploy` calls) binds an `Ingress` and deployments of detectors.

`Batcher` cuts a batch when it can start: whatever came meanwhile is in it. Ray Serve's own `@serve.batch` cuts it when its wait is over;
clients that wait for their answers then come back one by one (measured: 117 batches for 118 images of 16 clients).
"""

import asyncio
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
import ray
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
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from ray_app.cluster.ray_cluster import WORKER_ENVIRONMENT
from ray_app.config import validate
from ray_app.errors import ConfigError, TouchstoneError
from ray_app.serving import attribution, engine
from ray_app.serving.config import Resources, ServeConfig
from ray_app.serving.http.errors import Refusal
from ray_app.serving.release import groups_of, plan_release
from ray_app.serving.replica import DetectorGroup, ReleaseOffer, ScoreRequest, ScoreResponse

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ray_app.serving.release import Release

NAME = "touchstone"
SHUTDOWN_MARGIN_S = 10.0  # a replica that ends has time for the longest request that it took
Handle = DeploymentHandle[Any]
DIED = (ActorDiedError, ActorUnavailableError, WorkerCrashedError, ObjectLostError, OwnerDiedError, grpc.aio.AioRpcError)
GONE = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)
RETRY_AFTER_S = 1
RELOADABLE = {"ensembles", "optional_detectors", "accept_licences", "generation", "precision", "resize", "waive_guarantee"}
_log = logging.getLogger(__name__)
Item = TypeVar("Item")
Done = TypeVar("Done")


def build(config: ServeConfig) -> Application:
    """The application of one config, for `serve deploy`: its secrets stand in the environment of the cluster's nodes, or in files."""
    return application(config, at_cluster=True)


def application(config: ServeConfig, *, at_cluster: bool) -> Application:
    """The application of one config; `at_cluster`: others may submit jobs to the Ray that it runs on.

    Raises ConfigError and DetectorError for what can be known before weights are loaded.
    """
    spec, _, _ = plan_release(config)
    slots, most = spec.slots, config.limits.max_requests
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
    # The ingress refuses by itself, in its own words, before the proxy would.
    ingress = _deployment(
        serve.ingress()(Ingress), name="ingress", max_ongoing_requests=4 * most + 100, **_replicas(config.ingress, config, load=most / 2)
    )
    return ingress.bind(config, groups, at_cluster)


def _deployment(kind: Callable[..., Any], **options: Any) -> serve.Deployment:
    deployment: serve.Deployment = serve.deployment(kind).options(**options)  # type: ignore[attr-defined]
    return deployment


def _replicas(resources: Resources, config: ServeConfig, load: float = 1.0) -> dict[str, Any]:
    """Deployment options; `load` is how many requests at a time one replica should have before another is started."""
    actor: dict[str, Any] = {
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
    }
    if resources.memory_bytes:
        actor["memory"] = resources.memory_bytes
    if resources.labels:
        actor["label_selector"] = dict(resources.labels)
    many: dict[str, Any] = {"num_replicas": resources.replicas}
    if resources.max_replicas:
        scaling = {"min_replicas": resources.replicas, "max_replicas": resources.max_replicas, "target_ongoing_requests": load}
        many = {"autoscaling_config": scaling}
    # New replicas are up before old ones stop: an update fails no request.
    ends = config.limits.deadline_s + SHUTDOWN_MARGIN_S
    return {"ray_actor_options": actor, "max_surge_percent": 100, "graceful_shutdown_timeout_s": ends, **many}


class DetectorDeployment:
    """One group of detectors out of all `groups`. `user_config` may change RELOADABLE keys of the config without a restart."""

    def __init__(self, name: str, config: ServeConfig, groups: Collection[str]) -> None:
        from ray_app.serving.metrics import RayMeter

        _log_beside_serve()
        self._config, self._groups = config, set(groups)
        self._group = DetectorGroup(name)
        self._noted = functools.partial(RayMeter().batch, name)
        self._batcher: Batcher[ScoreRequest, ScoreResponse | ReleaseOffer] | None = None
        self._profiling: Batcher[attribution.ProfileRequest, attribution.ProfileResponse | ReleaseOffer] = Batcher(self._group.profile)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Load what the config now requests; requests are answered by what was loaded before until then.

        What cannot be loaded leaves what is there at work, and is logged: Serve would end a replica whose reconfiguration raises.
        """
        try:
            generation = await asyncio.to_thread(self._load, dict(user_config))
        except TouchstoneError as error:
            if self._batcher is None:
                raise
            _log.error("not loaded, the ensembles before go on: %s; %s", error.message, error.hint)
            return
        if self._batcher is None:
            self._batcher = Batcher(self._group.score, noted=self._noted)
        self._batcher.slots, self._batcher.wait_s = generation.spec.slots, self._config.batching.wait_ms / 1000
        self._profiling.slots = generation.spec.slots

    def _load(self, changes: dict[str, Any]) -> "Release":
        if unknown := changes.keys() - RELOADABLE:
            raise ConfigError(f"user_config: {', '.join(sorted(unknown))}: cannot be changed without a restart",
                              hint=f"what can: {', '.join(sorted(RELOADABLE))}; for the rest change `args`")  # fmt: skip
        config = validate(self._config.model_dump(mode="json") | changes, ServeConfig, where="user_config")
        needed = groups_of(plan_release(config)[0]).keys()
        if needed != self._groups:
            raise ConfigError(f"these ensembles need the groups {', '.join(needed)}", hint="change `args` and deploy anew")
        return self._group.load(config)

    async def check_health(self) -> None:
        """Serve replaces a replica whose detectors raise on everything: a device may have failed under them."""
        self._group.check_health()

    async def score(self, request: ScoreRequest) -> ScoreResponse | ReleaseOffer:
        """What the group says of one image, scored together with others that come at the same time."""
        assert self._batcher is not None, "Serve reconfigures before it asks"
        return await self._batcher(request)

    async def profile(self, request: attribution.ProfileRequest) -> attribution.ProfileResponse | ReleaseOffer:
        """What the group's heads and describers say of one image; whatever came while others were at work goes together."""
        return await self._profiling(request)

    async def describe(self) -> "Release":
        """What it serves."""
        return self._group.generation


class Ingress:
    """The HTTP side: everything about requests, nothing about networks."""

    def __init__(self, config: ServeConfig, groups: Mapping[str, Handle], at_cluster: bool) -> None:
        _log_beside_serve()
        self._config, self._groups = config, groups
        self._cluster = ray.get_runtime_context().gcs_address if at_cluster else None

    def __serve_build_asgi_app__(self) -> "FastAPI":
        from ray_app.serving.http.app import create_app
        from ray_app.serving.jobs import RayJobs
        from ray_app.serving.metrics import RayMeter

        meter = RayMeter()
        scorer, jobs = _scorer(self._config, self._groups, meter), RayJobs(self._config, self._cluster)
        return create_app(self._config, scorer, jobs, meter, echo_request_id=False)


class RemoteGroup:
    """A deployment of `Detectors`, called through Serve."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def score(self, request: ScoreRequest) -> ScoreResponse | ReleaseOffer:
        """See `engine.GroupHandle`."""
        answer: ScoreResponse | ReleaseOffer = await _answered(self._handle.score.remote(request))
        return answer

    async def profile(self, request: attribution.ProfileRequest) -> attribution.ProfileResponse | ReleaseOffer:
        """See `engine.GroupHandle`."""
        response: attribution.ProfileResponse | ReleaseOffer = await _answered(self._handle.profile.remote(request))
        return response

    async def describe(self) -> "Release":
        """See `engine.GroupHandle`."""
        generation: Release = await _answered(self._handle.describe.remote())
        return generation


async def _answered(response: Any) -> Any:
    """The answer of another replica. Its own refusals are raised; that it is gone, or has no place, becomes our own error."""
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


def _log_beside_serve() -> None:
    """What this package logs goes where Serve logs: the replica's own file, in its format and from its level on, also once they change."""
    ours = logging.getLogger("ray_app")
    ours.handlers, ours.propagate, ours.parent = [], True, logging.getLogger("ray.serve")
    ours.setLevel(logging.NOTSET)


def _scorer(config: ServeConfig, groups: Mapping[str, Handle], meter: Any = None) -> engine.EndpointScorer:
    from ray_app.inference.decoder_pool import IsolatedDecoders
    from ray_app.serving.metrics import RayMeter

    decoders = IsolatedDecoders(
        config.images, processes=config.decoders, wall_limit_s=config.limits.decode_limit_s, formats=config.limits.formats,
        provenance=config.provenance.policy(),
    )  # fmt: skip
    spec, _, _ = plan_release(config)
    decoders.start(spec.preprocessings, spec.resize)
    return engine.EndpointScorer(config, {name: RemoteGroup(handle) for name, handle in groups.items()}, decoders, meter or RayMeter())


@dataclass(frozen=True)
class _Waiting(Generic[Item, Done]):
    item: Item
    since: float
    answer: "asyncio.Future[Done]"


class Batcher(Generic[Item, Done]):
    """Hands items to `work` in order of arrival, at most `slots` at once, one batch after another, in a thread of its own.

    A batch that is not full waits for company `wait_s` after its first item came, and not at all if that came while another was at work
    for longer. `noted(size, seconds)` is called for every batch and how long its first item waited.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Done]],
        *,
        slots: int = 1,
        wait_s: float = 0.0,
        noted: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self.slots, self.wait_s = slots, wait_s
        self._work, self._noted = work, noted
        self._waiting: deque[_Waiting[Item, Done]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Done:
        """What `work` makes of the item; raises what it raised. An item whose caller left before its batch began is left out."""
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(item, time.monotonic(), answer))
        self._arrived.set()
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        while self._waiting:
            await self._gather_company()
            batch = [self._waiting.popleft() for _ in range(min(self.slots, len(self._waiting)))]
            await self._work_on([one for one in batch if not one.answer.done()])

    async def _gather_company(self) -> None:
        until = self._waiting[0].since + self.wait_s
        while len(self._waiting) < self.slots and (left := until - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    async def _work_on(self, batch: Sequence[_Waiting[Item, Done]]) -> None:
        if not batch:
            return
        try:
            self._noted(len(batch), time.monotonic() - batch[0].since)
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, [one.item for one in batch])
            for one, answer in zip(batch, answers, strict=True):
                if not one.answer.done():
                    one.answer.set_result(answer)
        except Exception as error:  # nobody of this batch may wait for ever, and the next one goes on
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
