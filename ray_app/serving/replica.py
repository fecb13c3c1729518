"""Detectors that share a process: a `DetectorGroup` takes prepared images (`ScoreRequest`) and
gives scores (`ScoreResponse`).

A group answers for its own detectors, as one release of ensembles has them. For another release it
offers its own instead, and the ingress follows: so an update needs no order among replicas, and no
answer mixes detectors of two releases.

A `Batcher` cuts its batches when they can start: whatever came meanwhile is in them. Ray Serve's
own `@serve.batch` cuts one when its wait is over; clients that wait for their answers then come
back one by one (measured: 117 batches for 118 images of 16 clients).
"""

import asyncio
import io
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from PIL import Image

from ray_app.detectors import Preprocessing
from ray_app.errors import DetectorError, Status
from ray_app.images import ImageFileFacts
from ray_app.inference import (
    Batch,
    BatchDecoder,
    DecodeResult,
    DetectorOutputs,
    ScoringSpec,
    StageClock,
)
from ray_app.inference.batch import Pixels, Ragged
from ray_app.inference.decision import EMBEDDINGS, MASKS, REPLIES, SCORES
from ray_app.serving import profiles, release
from ray_app.serving.config import ServeConfig
from ray_app.serving.metrics import Meter

if TYPE_CHECKING:
    from ray_app.inference.cascade import CascadeScorer

Item = TypeVar("Item")
Done = TypeVar("Done")
MOST_SILENT = 20
_SENT = (SCORES, MASKS, REPLIES, EMBEDDINGS)  # why a detector failed is nothing for clients
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreRequest:
    """One image for some detectors of a group, which is the one with this fingerprint. `pixels`:
    one entry per preprocessing of the group's detectors (see `group_preprocessings`), None where it
    is not needed or keeps sizes.
    """

    group: str
    detectors: tuple[str, ...]
    facts: ImageFileFacts
    pixels: tuple[Pixels | None, ...]
    encoded: bytes | None


@dataclass(frozen=True)
class ScoreResponse:
    """What the detectors of a group say of one image: `outputs` of one row, a score of NaN = none,
    with embeddings of the detectors that a profile reads. `score_s`: seconds of the batch that it
    was scored in.

    `generation` is the one that the group serves by now: another than the asker's where an update
    left these detectors as they were.
    """

    generation: str
    outputs: DetectorOutputs
    score_s: float


@dataclass(frozen=True)
class ReleaseOffer:
    """The group has other detectors than requested: those of this generation."""

    generation: release.Release


def group_preprocessings(spec: ScoringSpec, group: str) -> tuple[Preprocessing, ...]:
    """The distinct preprocessings of a group's detectors, in their order."""
    return tuple(dict.fromkeys(spec.cards[name].preprocessing for name in pool_of(spec, group)))


@dataclass(frozen=True)
class _Loaded:
    generation: release.Release
    scorer: "CascadeScorer"
    decoder: BatchDecoder
    clock: StageClock
    looks: tuple[Preprocessing, ...]
    profilers: profiles.Profilers


class DetectorGroup:
    """The detectors of one pool on one device. Images of several requests share a batch, and
    networks run in a thread of their own.

    Nothing is asked before something is loaded; requests may come while `load` replaces it.
    """

    def __init__(self, name: str, meter: Meter) -> None:
        self.name = name
        self._loaded: _Loaded | None = None
        self._silent = 0
        self._scoring: Batcher[ScoreRequest, ScoreResponse | ReleaseOffer] = Batcher(
            self.score_batch, noted=partial(meter.batch, name)
        )
        self._profiling: Batcher[
            profiles.ProfileRequest, profiles.ProfileResponse | ReleaseOffer
        ] = Batcher(self.profile_batch)

    @property
    def is_loaded(self) -> bool:
        """Whether there is something to ask."""
        return self._loaded is not None

    @property
    def generation(self) -> release.Release:
        """What it answers for."""
        return self._ready.generation

    def load(self, config: ServeConfig) -> None:
        """Load what `config` requests and score a golden image; only then does it replace what was
        loaded before. Blocks for seconds.

        Both are in memory for a moment. Raises ConfigError and DetectorError, and then nothing
        changed.
        """
        # torch: only where networks run, not where they are asked
        from ray_app.inference.worker import open_scorer

        generation, clock = release.load_release(config), StageClock()
        pool = pool_of(generation.spec, self.name)
        decoder, scorer = open_scorer(
            generation.spec, generation.spec.device, clock, pool=pool, hand_over=True
        )
        profilers = profiles.Profilers(
            generation.ensembles, release.groups_of(generation.spec), self.name
        )
        loaded = _Loaded(
            generation,
            scorer,
            decoder,
            clock,
            group_preprocessings(generation.spec, self.name),
            profilers,
        )
        _score_golden(loaded, pool)
        self._loaded = loaded
        self._scoring.slots = self._profiling.slots = generation.spec.slots
        self._scoring.wait_s = config.batching.wait_ms / 1000

    async def score(self, request: ScoreRequest) -> ScoreResponse | ReleaseOffer:
        """What the group says of one image, scored together with others that come at the same time."""
        return await self._scoring(request)

    async def profile(
        self, request: profiles.ProfileRequest
    ) -> profiles.ProfileResponse | ReleaseOffer:
        """What the group's heads and describers say of one image; whatever came while others were
        at work goes together.
        """
        return await self._profiling(request)

    async def describe(self) -> release.Release:
        """What it serves."""
        return self.generation

    def score_batch(self, requests: Sequence[ScoreRequest]) -> list[ScoreResponse | ReleaseOffer]:
        """One answer per request, in order; those for the same detectors go through the networks
        together, at most `slots` at once.
        """
        loaded = self._ready
        answers: list[ScoreResponse | ReleaseOffer] = [ReleaseOffer(loaded.generation)] * len(
            requests
        )
        for places in _batches(
            requests, loaded.generation.groups[self.name], loaded.generation.spec.slots
        ):
            for place, reply in zip(
                places, _score(loaded, [requests[place] for place in places]), strict=True
            ):
                answers[place] = reply
                self._silent = (
                    0
                    if any(np.isfinite(score[0]) for score in reply.outputs.scores.values())
                    else self._silent + 1
                )
        return answers

    def profile_batch(
        self, requests: Sequence[profiles.ProfileRequest]
    ) -> list[profiles.ProfileResponse | ReleaseOffer]:
        """One answer per request, in order: generators and words, by the profiles of the ensembles
        that are requested.
        """
        loaded = self._ready
        ours = loaded.generation.groups[self.name]
        found = iter(
            loaded.profilers.predict([request for request in requests if request.group == ours])
        )
        return [
            next(found) if request.group == ours else ReleaseOffer(loaded.generation)
            for request in requests
        ]

    def require_scores(self) -> None:
        """Raises DetectorError after 20 images without any score, one after another: then it is not
        the images but, perhaps, a device.
        """
        if self._silent >= MOST_SILENT:
            raise DetectorError(
                f"{self.name}: no score for {self._silent} images in a row",
                hint="the replica's log has the first error",
            )

    @property
    def _ready(self) -> _Loaded:
        if self._loaded is None:
            raise DetectorError(f"{self.name}: nothing is loaded yet")
        return self._loaded


def pool_of(spec: ScoringSpec, group: str) -> tuple[str, ...]:
    """The detectors of one group. Raises DetectorError where this generation has no such group."""
    groups = release.groups_of(spec)
    if group not in groups:
        raise DetectorError(
            f"the ensembles have no detectors for group {group!r}",
            hint=f"they need: {', '.join(groups)}; deploy again",
        )
    return groups[group]


def _batches(requests: Sequence[ScoreRequest], group: str, slots: int) -> Iterator[list[int]]:
    """The places of requests that can share a batch: of this group as it is, for the same
    detectors.
    """
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, request in enumerate(requests):
        if request.group == group:
            alike[request.detectors].append(place)
    for places in alike.values():
        yield from (places[first : first + slots] for first in range(0, len(places), slots))


def _score(loaded: _Loaded, requests: Sequence[ScoreRequest]) -> list[ScoreResponse]:
    """One reply per request. An image on which a detector raises has no scores; it does not take
    along what shares its batch.
    """
    try:
        return _score_together(loaded, requests)
    except Exception:
        if len(requests) > 1:
            return [reply for request in requests for reply in _score(loaded, [request])]
        _log.exception(
            "a detector of %s failed on the image with sha256 %s",
            ", ".join(requests[0].detectors),
            requests[0].facts.sha256,
        )
        nothing = dict.fromkeys(requests[0].detectors, np.array([np.nan], np.float32))
        return [ScoreResponse(loaded.generation.id, DetectorOutputs.clean(scores=nothing), 0.0)]


def _score_together(loaded: _Loaded, requests: Sequence[ScoreRequest]) -> list[ScoreResponse]:
    batch = _batch(loaded, requests)
    found = loaded.scorer.score([loaded.decoder.complete(batch)], only=requests[0].detectors)
    outputs = DetectorOutputs.clean(**{kind: found.of(kind) for kind in _SENT})
    seconds = loaded.clock.take().get("score", 0.0)
    return [
        ScoreResponse(loaded.generation.id, outputs.rows(slice(row, row + 1)), seconds)
        for row in range(len(requests))
    ]


def _batch(loaded: _Loaded, requests: Sequence[ScoreRequest]) -> Batch:
    spec = loaded.generation.spec
    # A GPU wants one static shape; on a core every image costs its time, and what it is batched
    # with moves no score (< 1e-6 log-odds).
    slots = len(requests) if spec.device == "cpu" else spec.slots
    prepared = {
        one: _column([request.pixels[index] for request in requests], slots)
        for index, one in enumerate(loaded.looks)
    }
    columns = tuple(prepared.get(one, (None,) * len(requests)) for one in spec.preprocessings)
    facts = [request.facts for request in requests]
    outcomes = tuple(DecodeResult(Status.OK, None, one) for one in facts)
    sizes = tuple((one.width or 0, one.height or 0) for one in facts)
    return Batch(outcomes, columns, sizes, tuple(request.encoded for request in requests))


def _column(images: Sequence[Pixels | None], slots: int) -> Pixels | Ragged:
    """One preprocessing of all images, filled up to `slots`; None for all where it is not needed."""
    prepared = [image for image in images if image is not None]
    if not prepared:
        return images
    filled = np.zeros((slots, *prepared[0].shape), np.uint8)
    filled[: len(prepared)] = prepared
    return filled


def _score_golden(loaded: _Loaded, pool: Sequence[str]) -> None:
    """Every detector must give a score for an ordinary image: weights, precision and device work
    together.
    """
    spec = loaded.generation.spec
    batch = loaded.decoder.decode([(0, golden_image())])
    outputs = loaded.scorer.score([loaded.decoder.complete(batch)])
    loaded.clock.take()
    loaded.profilers.check(outputs.of(EMBEDDINGS))
    silent = [
        name
        for name in pool
        if not np.isfinite(outputs.scores[name][0]) and name not in outputs.of(REPLIES)
    ]
    if silent:
        raise DetectorError(
            f"no finite score for a golden image from: {', '.join(silent)}",
            hint=f"touchstone detectors verify {silent[0]}; device {spec.device}",
        )


@cache
def golden_image() -> bytes:
    """A PNG file: 640 × 480 of smooth colour and texture, made by formula."""
    y, x = np.mgrid[0:480, 0:640]
    planes = [
        127 + 90 * np.sin(x / 37 + phase) * np.cos(y / 53) + 30 * np.sin(x * y / 997 + phase)
        for phase in (0.0, 1.0, 2.0)
    ]
    file = io.BytesIO()
    Image.fromarray(np.clip(np.stack(planes, axis=2), 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class _Waiting(Generic[Item, Done]):
    item: Item
    since: float
    answer: "asyncio.Future[Done]"


class Batcher(Generic[Item, Done]):
    """Hands items to `work` in order of arrival, at most `slots` at once, one batch after another,
    in a thread of its own.

    A batch that is not full waits for company `wait_s` after its first item came, and not at all if
    that came while another was at work for longer. `noted(size, seconds)` is called for every batch
    and how long its first item waited.
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
        """What `work` makes of the item; raises what it raised. An item whose caller left before
        its batch began is left out.
        """
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(item, time.monotonic(), answer))
        if self._running is None or self._running.done():
            self._arrived = asyncio.Event()  # of this event loop
            self._running = asyncio.create_task(self._run())
        self._arrived.set()
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
            answers = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._work, [one.item for one in batch]
            )
            for one, answer in zip(batch, answers, strict=True):
                if not one.answer.done():
                    one.answer.set_result(answer)
        # nobody of this batch may wait for ever, and the next one goes on
        except Exception as error:
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
