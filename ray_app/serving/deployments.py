"""What Ray Serve runs: thin classes around the pure parts of this room, and the calls between them."""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    OwnerDiedError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from ray_app.config.loading import validate
from ray_app.errors import ConfigError, TouchstoneError
from ray_app.serving.batching import Batcher
from ray_app.serving.config import ServeConfig
from ray_app.serving.following import GroupDied, GroupLost
from ray_app.serving.generation import groups_of, plan_generation
from ray_app.serving.groups import Ask, DetectorGroup, Offer, Reply
from ray_app.serving.http.errors import Refusal
from ray_app.serving.profiling import ProfileAsk, Profiled
from ray_app.serving.scorer import EndpointScorer

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ray_app.serving.generation import Generation
    from ray_app.serving.http.schemas import Job

Handle = DeploymentHandle[Any]
T = TypeVar("T")

DIED = (ActorDiedError, ActorUnavailableError, WorkerCrashedError, ObjectLostError, OwnerDiedError, grpc.aio.AioRpcError)
GONE = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)
RETRY_AFTER_S = 1
RELOADABLE = {"ensembles", "optional_detectors", "accept_licences", "generation", "precision", "resize", "waive_guarantee"}
_log = logging.getLogger(__name__)


class Detectors:
    """One group of detectors out of all `groups`. `user_config` may change RELOADABLE keys of the config without a restart."""

    def __init__(self, name: str, config: ServeConfig, groups: Collection[str]) -> None:
        from ray_app.serving.metrics import RayMeter

        _log_beside_serve()
        self._config, self._groups = config, set(groups)
        self._group = DetectorGroup(name)
        self._noted = functools.partial(RayMeter().batch, name)
        self._batcher: Batcher[Ask, Reply | Offer] | None = None
        self._profiling: Batcher[ProfileAsk, Profiled | Offer] = Batcher(self._group.profile)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Load what the config now asks for; requests are answered by what was loaded before until then.

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

    def _load(self, changes: dict[str, Any]) -> "Generation":
        if unknown := changes.keys() - RELOADABLE:
            raise ConfigError(f"user_config: {', '.join(sorted(unknown))}: cannot be changed without a restart",
                              hint=f"what can: {', '.join(sorted(RELOADABLE))}; for the rest change `args`")  # fmt: skip
        config = validate(self._config.model_dump(mode="json") | changes, ServeConfig, where="user_config")
        needed = groups_of(plan_generation(config)[0]).keys()
        if needed != self._groups:
            raise ConfigError(f"these ensembles need the groups {', '.join(needed)}", hint="change `args` and deploy anew")
        return self._group.load(config)

    async def check_health(self) -> None:
        """Serve replaces a replica whose detectors raise on everything: a device may have failed under them."""
        self._group.check_health()

    async def score(self, ask: Ask) -> Reply | Offer:
        """What the group says of one image, scored together with others that come at the same time."""
        assert self._batcher is not None, "Serve reconfigures before it asks"
        return await self._batcher(ask)

    async def profile(self, ask: ProfileAsk) -> Profiled | Offer:
        """What the group's heads and describers say of one image; whatever came while others were asked is asked together."""
        return await self._profiling(ask)

    async def describe(self) -> "Generation":
        """What it serves."""
        return self._group.generation


class Jobs:
    """The book of jobs, in one replica of its own, so that all ingress replicas see the same jobs."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: ServeConfig, groups: Mapping[str, Handle], webhook_key: str | None
    ) -> None:
        from ray_app.serving.fetching import GuardedFetcher
        from ray_app.serving.jobs import JobBook

        _log_beside_serve()
        fetcher = GuardedFetcher(config.urls, config.images.max_bytes) if config.urls.enabled or config.jobs.webhooks else None
        self._scorer = _scorer(config, groups)
        self._book = JobBook(config, self._scorer, fetcher, webhook_key=webhook_key)
        self._book.start()

    async def __del__(self) -> None:
        """Serve awaits it when the replica ends: its successor may then open the book at once."""
        await self._book.close()
        self._scorer.close()

    async def submit(self, owner: str, images: Any = None, urls: Any = None, **options: Any) -> "Job | Refusal":
        """See `JobBook.submit`."""
        return await _or_refusal(self._book.submit(owner, images, urls, **options))

    async def status(self, owner: str, job: str) -> "Job | Refusal":
        """See `JobBook.status`."""
        return await _or_refusal(self._book.status(owner, job))

    async def results(self, owner: str, job: str) -> bytes | Refusal:
        """See `JobBook.results`."""
        return await _or_refusal(self._book.results(owner, job))

    async def cancel(self, owner: str, job: str) -> "Job | Refusal":
        """See `JobBook.cancel`."""
        return await _or_refusal(self._book.cancel(owner, job))


class Ingress:
    """The HTTP side: everything about requests, nothing about networks."""

    def __init__(self, config: ServeConfig, groups: Mapping[str, Handle], jobs: Handle) -> None:
        _log_beside_serve()
        self._config, self._groups, self._jobs = config, groups, jobs

    def __serve_build_asgi_app__(self) -> "FastAPI":
        from ray_app.serving.http.app import create_app
        from ray_app.serving.metrics import RayMeter

        meter = RayMeter()
        return create_app(self._config, _scorer(self._config, self._groups, meter), RemoteJobs(self._jobs), meter, echo_request_id=False)


class RemoteGroup:
    """A deployment of `Detectors`, asked through Serve."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def score(self, ask: Ask) -> Reply | Offer:
        """See `scorer.Group`."""
        answer: Reply | Offer = await _answered(self._handle.score.remote(ask))
        return answer

    async def profile(self, ask: ProfileAsk) -> Profiled | Offer:
        """See `scorer.Group`."""
        said: Profiled | Offer = await _answered(self._handle.profile.remote(ask))
        return said

    async def describe(self) -> "Generation":
        """See `scorer.Group`."""
        generation: Generation = await _answered(self._handle.describe.remote())
        return generation


class RemoteJobs:
    """The deployment of `Jobs`, asked through Serve."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def submit(self, owner: str, images: Any = None, urls: Any = None, **options: Any) -> "Job":
        """See `JobBook.submit`."""
        job: Job = await self._asked(self._handle.submit.remote(owner, images, urls, **options))
        return job

    async def status(self, owner: str, job: str) -> "Job":
        """See `JobBook.status`."""
        found: Job = await self._asked(self._handle.status.remote(owner, job))
        return found

    async def results(self, owner: str, job: str) -> bytes:
        """See `JobBook.results`."""
        lines: bytes = await self._asked(self._handle.results.remote(owner, job))
        return lines

    async def cancel(self, owner: str, job: str) -> "Job":
        """See `JobBook.cancel`."""
        ended: Job = await self._asked(self._handle.cancel.remote(owner, job))
        return ended

    async def _asked(self, response: Any) -> Any:
        try:
            return await _answered(response)
        except GroupLost:
            raise Refusal("not_ready", "jobs are being moved to another process", headers={"Retry-After": str(RETRY_AFTER_S)}) from None


async def _or_refusal(asked: Awaitable[T]) -> T | Refusal:
    """What is refused goes back as a value: Serve logs whatever a replica raises as its fault, with a traceback."""
    try:
        return await asked
    except Refusal as refusal:
        return refusal


async def _answered(response: Any) -> Any:
    """The answer of another replica. Its own refusals are raised; that it is gone, or has no place, is said in our words."""
    try:
        answer = await response
    except DIED:
        raise GroupDied from None
    except GONE:
        raise GroupLost from None
    except BackPressureError:
        raise Refusal("overloaded", headers={"Retry-After": str(RETRY_AFTER_S)}) from None
    except RayTaskError as error:
        raise error.cause from None
    if isinstance(answer, Refusal):
        raise answer
    return answer


def _log_beside_serve() -> None:
    """What this package logs goes where Serve logs: the replica's own file, in its format and from its level on, also once they change."""
    ours = logging.getLogger("ray_app")
    ours.handlers, ours.propagate, ours.parent = [], True, logging.getLogger("ray.serve")
    ours.setLevel(logging.NOTSET)


def _scorer(config: ServeConfig, groups: Mapping[str, Handle], meter: Any = None) -> EndpointScorer:
    from ray_app.inference.isolated import IsolatedDecoders
    from ray_app.serving.metrics import RayMeter

    decoders = IsolatedDecoders(
        config.images, processes=config.decoders, wall_limit_s=config.limits.decode_limit_s, formats=config.limits.formats,
        provenance=config.provenance.policy(),
    )  # fmt: skip
    spec, _, _ = plan_generation(config)
    decoders.start(spec.preprocessings, spec.resize)
    return EndpointScorer(config, {name: RemoteGroup(handle) for name, handle in groups.items()}, decoders, meter or RayMeter())
