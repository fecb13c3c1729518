"""Encoded bytes → answer behind the endpoint: `EndpointScorer` decodes in a child process, calls
the groups of detectors, decides.

The way of a batch run with processes in between: the same decoder, networks and decision.
`ReleaseTracker` keeps which release of ensembles the groups serve.
"""

import asyncio
import random
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from ray_app.detectors import Preprocessing, ResizeMode
from ray_app.errors import InputError, Status
from ray_app.inference import batch, decoder_pool
from ray_app.inference.decision import EMBEDDINGS
from ray_app.serving import metrics, profiles
from ray_app.serving.config import ServeConfig
from ray_app.serving.http import errors, responses, schemas
from ray_app.serving.release import Release, groups_of, plan_release
from ray_app.serving.replica import (
    ReleaseOffer,
    ScoreRequest,
    ScoreResponse,
    golden_image,
    group_preprocessings,
)

# what was found holds so long: readiness checks must not load a busy endpoint
READY_FOR_S, UNREADY_FOR_S = 10.0, 1.0
FRESH_S = 2.0  # what is reported of the ensembles is no older
MOST_DEATHS = 3  # of processes at work on one image, a second apart: then the image is to blame
MOST_MOVING_S = 5.0  # groups that do not come to serve one generation in this time: come back later
T = TypeVar("T")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.5  # between two tries while replicas are replaced


class ReleaseChanging(Exception):  # noqa: N818 - an event, not a fault of the request
    """The groups serve another release than requested, or not yet the same one."""


class GroupHandle(Protocol):
    """A group of detectors, wherever it runs. All raise GroupLost, and Refusal where its queue is
    full.
    """

    async def score(self, request: ScoreRequest) -> ScoreResponse | ReleaseOffer:
        """What its detectors say of one image."""
        ...

    async def profile(
        self, request: profiles.ProfileRequest
    ) -> profiles.ProfileResponse | ReleaseOffer:
        """What its heads and describers say of one image."""
        ...

    async def describe(self) -> Release:
        """The generation that it serves."""
        ...


class EndpointScorer:
    """Scores images by asking `groups`, by name as `groups_of` has them.

    It follows the release that its groups serve: where one answers with another release, the
    request is made again for that one, so that during an update every answer still comes from one
    release.
    """

    def __init__(
        self,
        config: ServeConfig,
        groups: Mapping[str, GroupHandle],
        decoders: decoder_pool.IsolatedDecoders,
        meter: metrics.Meter,
    ) -> None:
        self._groups, self._decoders, self._meter = groups, decoders, meter
        self._followed = ReleaseTracker(groups)
        self._max_bytes = config.images.max_bytes
        self._checking = asyncio.Lock()
        self._ready_until = self._unready_until = 0.0
        self._in_flight = 0

    async def score(
        self,
        data: bytes,
        *,
        name: str | None = None,
        ensemble: str | None = None,
        beside: Sequence[str] = (),
        masks: bool = False,
        request_id: str = "",
    ) -> schemas.ImageAnswer:
        """The answer for one image; waits while replicas are replaced, as long as its caller does.

        `beside`: optional detectors. Raises InputError where the image is refused and Refusal where
        the request is.
        """
        if len(data) > self._max_bytes:
            raise errors.Refusal("file_too_large", limit=self._max_bytes, observed=len(data))
        started = time.perf_counter()
        image = _PreparedImage(data, self._decoders)
        with self._counted():
            generation, chosen, replies, profiled = await self._score_until_answered(
                image, ensemble, beside
            )
        timings = schemas.Timings(
            decode=image.decode_s,
            wait=image.wait_s,
            score=image.score_s,
            total=time.perf_counter() - started,
        )
        answered = responses.scored_answer(
            generation, chosen, responses.outputs_of(replies), image.prepared.facts, name=name, size_bytes=len(data),
            provenance=image.prepared.provenance, masks=masks, timings=timings, request_id=request_id, profiled=profiled,
        )  # fmt: skip
        for stage, seconds in timings:
            self._meter.stage(stage, seconds)
        self._meter.verdict(chosen, str(answered.verdict))
        return answered

    async def ready(self) -> list[schemas.EnsembleName]:
        """The ensembles, once every group has its weights and images are scored. Raises Refusal
        not_ready.
        """
        async with self._checking:
            if time.monotonic() < self._unready_until:
                raise errors.Refusal("not_ready")
            if time.monotonic() > self._ready_until:
                # also where the check is cut short
                self._unready_until = time.monotonic() + UNREADY_FOR_S
                await self._check()
                self._unready_until = 0.0
        generation = await self._followed.fresh(FRESH_S)
        return [responses.ensemble_name(generation, name) for name in generation.ensembles]

    async def ensembles(self) -> tuple[list[schemas.EnsembleInfo], list[str]]:
        """What there is to ask for, the default first, and the optional detectors."""
        generation = await self._followed.fresh(FRESH_S)
        return responses.ensemble_infos(generation), list(generation.optional)

    async def detectors(self) -> list[schemas.DetectorInfo]:
        """All detectors behind this endpoint."""
        return responses.detector_infos(await self._followed.fresh(FRESH_S))

    async def ensemble(self, name: str | None) -> schemas.EnsembleName:
        """The ensemble that a request means. Raises Refusal malformed_request."""
        generation, chosen = await self._resolved(name, ())
        return responses.ensemble_name(generation, chosen)

    def close(self) -> None:
        """End the decoder processes."""
        self._decoders.close()

    async def _check(self) -> None:
        """Score a golden image, unless a full queue shows that images are being scored."""
        try:
            await gather_or_cancel(group.describe() for group in self._groups.values())
            await self._score_until_answered(
                _PreparedImage(golden_image(), self._decoders), None, (), whole=True
            )
        except errors.Refusal as refused:
            if refused.code != "overloaded":
                raise
        except (InputError, GroupLost):
            raise errors.Refusal("not_ready", "a golden image gets no score") from None

    async def _resolved(self, ensemble: str | None, beside: Sequence[str]) -> tuple[Release, str]:
        """The generation, and the name of the ensemble; what is not known is looked up once more
        before it is refused.
        """
        try:
            generation = await self._followed.current()
            return generation, _chosen(generation, ensemble, beside)
        except errors.Refusal:
            generation = await self._followed.fresh(FRESH_S)
            return generation, _chosen(generation, ensemble, beside)

    async def _score_until_answered(
        self,
        image: "_PreparedImage",
        ensemble: str | None,
        beside: Sequence[str],
        *,
        whole: bool = False,
    ) -> tuple[Release, str, list[ScoreResponse], profiles.ProfileResponse]:
        pause, patience = FIRST_PAUSE_S, _Patience()
        while True:
            generation, chosen = await self._resolved(ensemble, beside)
            try:
                replies = await self._score_stages(generation, chosen, beside, image, whole)
                profiled = await self._profiled(generation, chosen, replies, image)
            except (GroupLost, ReleaseChanging) as event:
                patience.accept(event)
            else:
                self._ready_until = time.monotonic() + READY_FOR_S
                return generation, chosen, replies, profiled
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._in_flight += 1
        self._meter.in_flight(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self._meter.in_flight(self._in_flight)

    async def _score_stages(
        self,
        generation: Release,
        ensemble: str,
        beside: Sequence[str],
        image: "_PreparedImage",
        whole: bool,
    ) -> list[ScoreResponse]:
        """One reply per group that is needed; of a cascade the second stage runs only where an
        image goes on, or for the `whole`.

        Raises GroupLost, and Moving where what is served by now was followed instead.
        """
        first, rest = responses.stage_detectors(generation, ensemble, beside)
        image.wait_s = image.score_s = 0.0
        replies = await self._score_stage(generation, first, image)
        if rest and (
            whole
            or responses.needs_second_stage(
                generation.ensembles[ensemble], replies, image.prepared.facts
            )
        ):
            replies += await self._score_stage(generation, rest, image)
        if all(reply.generation != generation.id for reply in replies):
            # The same detectors may now be decided on otherwise.
            await self._followed.ask(next(iter(_pools(generation, first))))
            raise ReleaseChanging
        return replies

    async def _profiled(
        self,
        generation: Release,
        ensemble: str,
        replies: Sequence[ScoreResponse],
        image: "_PreparedImage",
    ) -> profiles.ProfileResponse:
        """What the ensemble's profile says, words only of what it wants words for. Raises as
        `_score_stages`.
        """
        if not profiles.profile_cards(generation.ensembles[ensemble]):
            return profiles.ProfileResponse()
        requests = await _profile_requests(generation, ensemble, replies, image)
        started, profiled = time.perf_counter(), profiles.ProfileResponse()
        for found in await gather_or_cancel(
            self._groups[name].profile(request) for name, request in requests.items()
        ):
            if isinstance(found, ReleaseOffer):
                self._followed.follow(found.generation)
                raise ReleaseChanging
            profiled = profiled.joined(found)
        image.score_s += time.perf_counter() - started
        return profiled

    async def _score_stage(
        self, generation: Release, wanted: Sequence[str], image: "_PreparedImage"
    ) -> list[ScoreResponse]:
        """What some detectors say, all of them at once. Raises as `_score_stages`."""
        spec, pools = generation.spec, _pools(generation, wanted)
        if not pools.keys() <= self._groups.keys():
            # an update brings a group that this ingress does not know; its successor does
            raise ReleaseChanging
        preprocessings = tuple(dict.fromkeys(spec.cards[name].preprocessing for name in wanted))
        await image.prepare(preprocessings, spec.resize, measured=bool(spec.measured))
        started = time.perf_counter()
        requests = {group: image.request(generation, group, pool) for group, pool in pools.items()}
        answers = await gather_or_cancel(
            self._groups[group].score(request) for group, request in requests.items()
        )
        elapsed = time.perf_counter() - started
        for offer in answers:
            if isinstance(offer, ReleaseOffer):
                self._followed.follow(offer.generation)
                raise ReleaseChanging
        replies = [one for one in answers if isinstance(one, ScoreResponse)]
        scoring_s = max(reply.score_s for reply in replies)
        image.score_s += scoring_s
        image.wait_s += max(elapsed - scoring_s, 0.0)
        return replies


def started_decoders(config: ServeConfig) -> decoder_pool.IsolatedDecoders:
    """The endpoint's decoder processes, up and with the libraries that its ensembles need. Raises
    TouchstoneError.
    """
    decoders = decoder_pool.IsolatedDecoders(
        config.images, processes=config.decoders, wall_limit_s=config.limits.decode_limit_s, formats=config.limits.formats,
        provenance=config.provenance.policy(),
    )  # fmt: skip
    spec, _, _ = plan_release(config)
    decoders.start(spec.preprocessings, spec.resize)
    return decoders


async def gather_or_cancel(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of them give, in order; the first that fails ends the others, so that nobody works
    for an answer that is refused.
    """
    tasks = [asyncio.ensure_future(one) for one in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class GroupLost(Exception):  # noqa: N818 - an event, not a fault of the request
    """The process of the request is gone. Scoring changes nothing, so that another request is safe."""


class _Patience:
    """How long one image waits for groups that are lost or move."""

    def __init__(self) -> None:
        self._deaths, self._last_death = 0, 0.0
        self._moving_since: float | None = None

    def accept(self, event: GroupLost | ReleaseChanging) -> None:
        """Raises InputError where the image ends the processes that score it, and Refusal not_ready
        where an update takes long.
        """
        now = time.monotonic()
        if isinstance(event, ReleaseChanging):
            self._moving_since = self._moving_since or now
            if now - self._moving_since > MOST_MOVING_S:
                raise errors.Refusal("not_ready", "the detectors are being updated") from None
        elif isinstance(event, GroupDied) and now - self._last_death > 1.0:
            self._deaths, self._last_death = self._deaths + 1, now
            if self._deaths == MOST_DEATHS:
                raise InputError(
                    Status.DETECTOR_FAILED, f"{MOST_DEATHS} processes died while they scored it"
                ) from None


class _PreparedImage:
    """One image on its way: prepared once in every way that is requested, however often its
    detectors have to be called.
    """

    def __init__(self, data: bytes, decoders: decoder_pool.IsolatedDecoders) -> None:
        self._data, self._decoders = data, decoders
        self._pixels: dict[Preprocessing, batch.Pixels | None] = {}
        self._resize: ResizeMode | None = None
        self._measured = False
        self.decode_s = self.wait_s = self.score_s = 0.0
        self.prepared: decoder_pool.PreparedImage

    async def prepare(
        self, preprocessings: tuple[Preprocessing, ...], resize: ResizeMode, *, measured: bool
    ) -> None:
        """Decode for what is not there yet: what most images need not, for their second look, only
        those that go on do. Raises ImageRefused. `measured`: with the facts that are measured on
        pixels.
        """
        if self._resize != resize or (measured and not self._measured):
            self._pixels, self._resize, self._measured = {}, resize, measured
        missing = tuple(one for one in preprocessings if one not in self._pixels)
        if self._pixels and not any(one.shape for one in missing):
            return  # its detectors decode it themselves
        started = time.perf_counter()
        self.prepared = await self._decoders.prepare(
            self._data, missing, resize, measured=self._measured
        )
        self.decode_s += time.perf_counter() - started
        self._pixels.update(zip(missing, self.prepared.pixels, strict=True))

    async def look(self, preprocessing: Preprocessing, resize: ResizeMode) -> batch.Pixels | None:
        """The image prepared in one way, decoded once more where no detector looks at it so. Raises
        ImageRefused.
        """
        await self.prepare((preprocessing,), resize, measured=self._measured)
        return self._pixels.get(preprocessing)

    def request(self, generation: Release, group: str, detectors: tuple[str, ...]) -> ScoreRequest:
        """What some detectors of a group need to see."""
        needed = {generation.spec.cards[name].preprocessing for name in detectors}
        return ScoreRequest(
            generation.groups[group],
            detectors,
            self.prepared.facts,
            tuple(
                self._pixels.get(one) if one in needed else None
                for one in group_preprocessings(generation.spec, group)
            ),
            self._data if any(one.shape is None for one in needed) else None,
        )


async def _profile_requests(
    generation: Release, ensemble: str, replies: Sequence[ScoreResponse], image: _PreparedImage
) -> dict[str, profiles.ProfileRequest]:
    """The request to every group that has a part of the ensemble's profile; none where there is
    nothing to predict from.
    """
    spec, pools = generation.ensembles[ensemble], groups_of(generation.spec)
    vectors = {name: rows[0] for name, rows in responses.outputs_of(replies).of(EMBEDDINGS).items()}
    requests = {
        name: profiles.ProfileRequest(fingerprint, ensemble, None, None)
        for name, fingerprint in generation.groups.items()
    }
    if spec.identifier is not None:
        group = profiles.group_of_card(spec.identifier, pools)
        requests[group] = replace(requests[group], identify=vectors.get(spec.identifier.detector))
    if spec.describer is not None and responses.is_described(spec, replies, image.prepared.facts):
        group, seen = profiles.group_of_card(spec.describer, pools), spec.describer.preprocessing
        found = (
            vectors.get(spec.describer.detector or "")
            if seen is None
            else await image.look(seen, spec.resize)
        )
        requests[group] = replace(requests[group], describe=found)
    return {
        name: request
        for name, request in requests.items()
        if request.identify is not None or request.describe is not None
    }


def _pools(generation: Release, wanted: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Which of these detectors sit in which group."""
    pools = {
        group: tuple(name for name in pool if name in wanted)
        for group, pool in groups_of(generation.spec).items()
    }
    return {group: pool for group, pool in pools.items() if pool}


def _chosen(generation: Release, ensemble: str | None, beside: Sequence[str]) -> str:
    if ensemble is not None and ensemble not in generation.ensembles:
        raise errors.Refusal(
            "malformed_request", f"no such ensemble; served: {', '.join(generation.ensembles)}"
        )
    unknown = [name for name in beside if name not in generation.optional]
    if unknown:
        raise errors.Refusal(
            "malformed_request",
            f"no such optional detector; there are: {', '.join(generation.optional) or 'none'}",
        )
    return ensemble or generation.default


class GroupDied(GroupLost):
    """It went while it was at work, perhaps because of what it worked on."""


class ReleaseTracker:
    """The generation that is served: fetched at first, then learnt from what groups answer and
    offer.
    """

    def __init__(self, groups: Mapping[str, GroupHandle]) -> None:
        self._groups = groups
        self._first = next(iter(groups))
        self._known: Release | None = None
        self._updated_at = 0.0

    async def current(self) -> Release:
        """The last one known; at first waits for an answer of the first group, as long as its
        caller does.
        """
        pause = FIRST_PAUSE_S
        while self._known is None:
            try:
                await self.ask(self._first)
            except GroupLost:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
        return self._known

    async def fresh(self, max_age_s: float) -> Release:
        """The release, learnt at most `max_age_s` ago; where no group answers now, the last one
        known.
        """
        if self._known is not None and time.monotonic() - self._updated_at > max_age_s:
            try:
                await self.ask(self._first)
            except (GroupLost, errors.Refusal):
                self._updated_at = time.monotonic()
        return await self.current()

    async def ask(self, group: str) -> None:
        """Learn what one group serves. Raises GroupLost, and Refusal where its queue is full."""
        self.follow(await self._groups[group].describe())

    def follow(self, generation: Release) -> None:
        """Keep what a group reports to serve."""
        self._known, self._updated_at = generation, time.monotonic()
