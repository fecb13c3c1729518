"""Encoded bytes → answer: decode in a child process, ask the groups of detectors, decide. Knows no HTTP server and no Ray.

The walk of a batch run with processes in between: the same decoder, the same static batches, the same decision.
"""

import asyncio
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from ray_app.detectors import Preprocessing, ResizeMode
from ray_app.errors import InputError
from ray_app.inference.isolated import IsolatedDecoders, Prepared
from ray_app.serving.config import ServeConfig
from ray_app.serving.generation import Generation, groups_of
from ray_app.serving.groups import Ask, Offer, Reply, golden_image, looks
from ray_app.serving.http import answering
from ray_app.serving.http.errors import Refusal
from ray_app.serving.http.schemas import DetectorInfo, EnsembleInfo, EnsembleName, ImageAnswer, Timings
from ray_app.serving.metrics import Meter

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.5  # between two tries while replicas are replaced
READY_FOR_S = 10.0  # a golden image that was scored says so for this long: readiness checks must not load a busy endpoint


class GroupLost(Exception):  # noqa: N818 - an event, not a fault of the request
    """The process that was asked is gone. Scoring changes nothing, so that asking again is safe."""


class Group(Protocol):
    """A group of detectors, wherever it runs. Both raise GroupLost, and Refusal where its queue is full."""

    async def score(self, ask: Ask) -> Reply | Offer:
        """What its detectors say of one image."""
        ...

    async def describe(self) -> Generation:
        """The generation that it serves."""
        ...


class EndpointScorer:
    """Scores images by asking `groups`, by name as `groups_of` has them.

    It follows the generation of its detectors: those that offer another than asked for are asked again in its terms, so that during an
    update every answer still comes from one generation.
    """

    def __init__(self, config: ServeConfig, groups: Mapping[str, Group], decoders: IsolatedDecoders, meter: Meter) -> None:
        self._groups, self._decoders, self._meter = groups, decoders, meter
        self._first = next(iter(groups))
        self._max_bytes = config.images.max_bytes
        self._generation: Generation | None = None
        self._ready_until, self._ready_for = 0.0, ""
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
    ) -> ImageAnswer:
        """The answer for one image; waits while replicas are replaced, as long as its caller does.

        `beside`: optional detectors. Raises InputError where the image is refused and Refusal where the request is.
        """
        if len(data) > self._max_bytes:
            raise Refusal("file_too_large", limit=self._max_bytes, observed=len(data))
        started = time.perf_counter()
        walk = _Walk(data, self._decoders)
        with self._one_more():
            generation, chosen, replies = await self._asked_until_answered(walk, ensemble, beside)
        timings = Timings(decode=walk.decode_s, wait=walk.wait_s, score=walk.score_s, total=time.perf_counter() - started)
        answered = answering.scored_answer(
            generation, chosen, answering.readings_of(replies), walk.prepared.facts, name=name, size_bytes=len(data),
            metadata=walk.prepared.metadata, masks=masks, timings=timings, request_id=request_id,
        )  # fmt: skip
        self._count(answered)
        return answered

    async def ready(self) -> list[EnsembleName]:
        """The ensembles, once every group has its weights and the default one scored a golden image. Raises Refusal not_ready."""
        generation = await self._current()
        if time.monotonic() > self._ready_until or self._ready_for != generation.id:
            await self._score_golden()
            await asyncio.gather(*[group.describe() for group in self._groups.values()])
            generation = await self._current()
            self._ready_until, self._ready_for = time.monotonic() + READY_FOR_S, generation.id
        return [answering.ensemble_name(generation, name) for name in generation.ensembles]

    async def ensembles(self) -> tuple[list[EnsembleInfo], list[str]]:
        """What there is to ask for, the default first, and the optional detectors."""
        generation = await self._current()
        return answering.ensemble_infos(generation), list(generation.optional)

    async def detectors(self) -> list[DetectorInfo]:
        """All detectors behind this endpoint."""
        return answering.detector_infos(await self._current())

    async def ensemble(self, name: str | None) -> EnsembleName:
        """The ensemble that a request means. Raises Refusal malformed_request."""
        generation = await self._current()
        return answering.ensemble_name(generation, _chosen(generation, name, ()))

    def close(self) -> None:
        """End the decoder processes."""
        self._decoders.close()

    async def _score_golden(self) -> None:
        try:
            await self.score(golden_image())
        except Refusal as refused:
            if refused.code != "overloaded":  # a full queue is at work
                raise
        except (InputError, GroupLost):
            raise Refusal("not_ready", "a golden image gets no score") from None

    async def _current(self) -> Generation:
        pause = FIRST_PAUSE_S
        while self._generation is None:
            try:
                self._generation = await self._groups[self._first].describe()
            except GroupLost:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
        return self._generation

    async def _asked_until_answered(
        self, walk: "_Walk", ensemble: str | None, beside: Sequence[str]
    ) -> tuple[Generation, str, list[Reply]]:
        pause = FIRST_PAUSE_S
        while True:
            generation = await self._current()
            chosen = _chosen(generation, ensemble, beside)
            try:
                return generation, chosen, await self._ask(generation, answering.needed(generation, chosen, beside), walk)
            except GroupLost:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE_S)

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        self._in_flight += 1
        self._meter.in_flight(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self._meter.in_flight(self._in_flight)

    async def _ask(self, generation: Generation, wanted: Sequence[str], walk: "_Walk") -> list[Reply]:
        """One reply per group that is needed. Raises GroupLost where one is gone or serves another generation, which is then followed."""
        spec = generation.spec
        pools = {group: tuple(name for name in pool if name in wanted) for group, pool in groups_of(spec).items()}
        pools = {group: pool for group, pool in pools.items() if pool}
        if not pools.keys() <= self._groups.keys():
            raise GroupLost  # an update brings a group that this ingress does not know; its successor does
        used = {name: spec.cards[name].preprocessing for name in wanted}
        await walk.prepare(tuple(dict.fromkeys(used.values())), spec.resize)
        started = time.perf_counter()
        asks = {group: walk.ask(generation, group, pool) for group, pool in pools.items()}
        replies = await asyncio.gather(*[self._groups[group].score(ask) for group, ask in asks.items()])
        elapsed = time.perf_counter() - started
        taken = []
        for reply in replies:
            if isinstance(reply, Offer):
                self._generation = reply.generation
                raise GroupLost
            taken.append(reply)
        if generation.id not in (served := {reply.generation for reply in taken}) and len(served) == 1:
            self._generation = None  # all have moved on, and the same detectors may now be decided on otherwise
            raise GroupLost
        walk.score_s = max(reply.score_s for reply in taken)
        walk.wait_s = max(elapsed - walk.score_s, 0.0)
        return taken

    def _count(self, answered: ImageAnswer) -> None:
        for stage, seconds in answered.timings:
            self._meter.stage(stage, seconds)
        self._meter.verdict(answered.ensemble.name, str(answered.verdict))


class _Walk:
    """One image on its way: decoded once per set of preprocessings, however often its detectors have to be asked."""

    def __init__(self, data: bytes, decoders: IsolatedDecoders) -> None:
        self._data, self._decoders = data, decoders
        self._preprocessings: tuple[Preprocessing, ...] | None = None
        self.decode_s = self.wait_s = self.score_s = 0.0
        self.prepared: Prepared

    async def prepare(self, preprocessings: tuple[Preprocessing, ...], resize: ResizeMode) -> None:
        """Decode, unless that was done. Raises ImageRefused."""
        if self._preprocessings != preprocessings:
            started = time.perf_counter()
            self.prepared = await self._decoders.prepare(self._data, preprocessings, resize)
            self.decode_s += time.perf_counter() - started
            self._preprocessings = preprocessings

    def ask(self, generation: Generation, group: str, detectors: tuple[str, ...]) -> Ask:
        """What some detectors of a group need to see."""
        assert self._preprocessings is not None
        pixels = dict(zip(self._preprocessings, self.prepared.pixels, strict=True))
        needed = {generation.spec.cards[name].preprocessing for name in detectors}
        return Ask(
            generation.groups[group],
            detectors,
            self.prepared.facts,
            tuple(pixels.get(one) if one in needed else None for one in looks(generation.spec, group)),
            self._data if any(one.shape is None for one in needed) else None,
        )


def _chosen(generation: Generation, ensemble: str | None, beside: Sequence[str]) -> str:
    if ensemble is not None and ensemble not in generation.ensembles:
        raise Refusal("malformed_request", f"no such ensemble; served: {', '.join(generation.ensembles)}")
    unknown = [name for name in beside if name not in generation.optional]
    if unknown:
        raise Refusal("malformed_request", f"no such optional detector; there are: {', '.join(generation.optional) or 'none'}")
    return ensemble or generation.default
