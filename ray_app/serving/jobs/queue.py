"""Whether a job is taken (`check_request`, `check_room`), whose image is next (`Turns`), and its answer (`PatientScorer`).

Images of the jobs take turns, a few at a time over all jobs; one is tried again as long as interactive requests keep detectors busy.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from ray_app.errors import InputError
from ray_app.serving.config import JobLimits
from ray_app.serving.http import errors, responses, schemas
from ray_app.serving.jobs.record import JobRecord, PendingJob, Request

RETRY_AFTER_S = 10
T = TypeVar("T")
Sleep = Callable[[float], Awaitable[object]]
BUSY = frozenset({429, 503})
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0
FAULTS = 4  # tries of one image that end in a fault of this endpoint before its job is given up
_log = logging.getLogger(__name__)


class Turns:
    """Calls `score(work, index)` for every waiting image of the works that were added, `places` at a time."""

    def __init__(self, places: int, score: Callable[[PendingJob, int], Coroutine[Any, Any, None]]) -> None:
        self._places, self._score = places, score
        self._queue: deque[PendingJob] = deque()
        self._taken = 0
        self._is_closed = False

    def add(self, work: PendingJob) -> None:
        """Let a job take its turns."""
        if work.waiting:
            self._queue.append(work)
        self._fill()

    async def stop(self, work: PendingJob) -> None:
        """No further image of it. What is being scored is let go, what was scored is waited for until it is written down."""
        with suppress(ValueError):
            self._queue.remove(work)
        for task in list(work.scoring):
            task.cancel()
        await asyncio.gather(*work.at_work, return_exceptions=True)

    def is_scored(self, work: PendingJob) -> None:
        """The image of the calling task was scored: `stop` waits for it from here on."""
        if (task := asyncio.current_task()) is not None:
            work.scoring.discard(task)

    def close(self) -> None:
        """Start nothing any more."""
        self._is_closed = True

    def _fill(self) -> None:
        while self._queue and self._taken < self._places and not self._is_closed:
            work = self._queue.popleft()
            index = work.waiting.popleft()
            if work.waiting:
                self._queue.append(work)
            self._taken += 1
            task = asyncio.create_task(self._score(work, index))
            work.scoring.add(task)
            work.at_work.add(task)
            task.add_done_callback(partial(self._leave, work))

    def _leave(self, work: PendingJob, task: asyncio.Task[None]) -> None:
        self._taken -= 1
        work.scoring.discard(task)
        work.at_work.discard(task)
        self._fill()


class UrlFetcher(Protocol):
    """What jobs need of a GuardedFetcher."""

    async def fetch(self, url: str) -> bytes:
        """The bytes behind a URL. Raises Refusal or InputError."""
        ...

    def check(self, url: str) -> None:
        """Raises Refusal where the text of a URL alone says that it will never be fetched."""
        ...

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The status that a webhook answers. Raises Refusal or SourceError."""
        ...


def check_request(request: Request, limits: JobLimits, *, urls: UrlFetcher | None, webhooks: UrlFetcher | None) -> None:
    """`urls` and `webhooks`: what fetches them, None where they are switched off.

    Raises Refusal for what this endpoint would never take: malformed_request, forbidden, url_refused, too_many_files."""
    images = len(request.labels)
    if (request.images is None) == (request.urls is None) or not images:
        raise errors.Refusal("malformed_request", "a job has images, or URLs, and at least one")
    if request.urls is not None and urls is None:
        raise errors.Refusal("forbidden", "fetching by URL is switched off")
    if request.webhook is not None:
        if webhooks is None:
            raise errors.Refusal("forbidden", "webhooks are switched off")
        webhooks.check(request.webhook)
    if images > limits.max_images:
        raise errors.Refusal("too_many_files", "more images than one job may have", limit=limits.max_images, observed=images)


def check_room(request: Request, limits: JobLimits, unfinished: Iterable[PendingJob]) -> None:
    """Raises Refusal overloaded where the jobs that are not done leave no place for this one."""
    works = list(unfinished)
    waiting = request.size_bytes + sum(work.size_bytes for work in works)
    for limit, observed, what in ((limits.max_jobs, len(works) + 1, "jobs"), (limits.max_waiting_bytes, waiting, "bytes of images")):
        if observed > limit:
            later = {"Retry-After": str(RETRY_AFTER_S)}
            raise errors.Refusal("overloaded", f"too many {what} are waiting", limit=limit, observed=observed, headers=later)


def job_of_key(records: Iterable[JobRecord], owner: str, key: str | None, content: str, now: datetime) -> JobRecord | None:
    """The job that this owner's Idempotency-Key stands for already. Raises Refusal conflict where it came with other content."""
    for record in records:
        if key is not None and (record.owner, record.key) == (owner, key) and not record.is_over(now):
            if record.content != content:
                raise errors.Refusal("conflict", "this Idempotency-Key came with another request before")
            return record
    return None


class ImageScorer(Protocol):
    """What a job needs of an EndpointScorer."""

    async def score(
        self, data: bytes, *, name: str | None = None, ensemble: str | None = None, request_id: str = ""
    ) -> schemas.ImageAnswer:
        """The answer for one image. Raises InputError where the image is refused and Refusal where the request is."""
        ...

    async def ensemble(self, name: str | None) -> schemas.EnsembleName:
        """The ensemble that a request means. Raises Refusal."""
        ...


class PatientScorer:
    """Scores images of jobs: waits out a busy endpoint without end, a faulty one for FAULTS tries."""

    def __init__(
        self, scorer: ImageScorer, fetcher: UrlFetcher | None, *, sleep: Sleep = asyncio.sleep, chance: Callable[[], float] = random.random
    ) -> None:
        self._scorer, self._fetcher, self._sleep, self._chance = scorer, fetcher, sleep, chance

    async def answer(self, source: bytes | str, *, name: str | None, ensemble: str | None, request_id: str) -> schemas.ImageAnswer:
        """The answer for image bytes or for a URL; a refused image has one too.

        Raises Refusal where no image could be answered so (its ensemble is gone), or whatever FAULTS tries ended in.
        """
        data = source if isinstance(source, bytes) else None
        try:
            if data is None:
                data = await self._patiently(lambda: self._fetch(str(source)))
            found = data
            return await self._patiently(lambda: self._scorer.score(found, name=name, ensemble=ensemble, request_id=request_id))
        except (InputError, errors.Refusal) as refused:
            if isinstance(refused, errors.Refusal) and not refused.is_about_one_image:
                raise
            asked = await self._patiently(lambda: self._scorer.ensemble(ensemble))
            return responses.refused_answer(refused, name, data, asked, request_id)

    async def _fetch(self, url: str) -> bytes:
        if self._fetcher is None:
            raise errors.Refusal("forbidden", "this endpoint does not fetch URLs")
        return await self._fetcher.fetch(url)

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        tries = faults = 0
        while True:
            try:
                return await ask()
            except Exception as error:
                if _is_an_answer(error):
                    raise
                asked_for = _retry_after(error)
                faults += asked_for is None
                if faults == FAULTS:
                    raise
                _log.info("job_image_again reason=%s", error.code if isinstance(error, errors.Refusal) else type(error).__name__)
            pause = min(max(FIRST_PAUSE_S * 2.0 ** min(tries, 20), asked_for or 0.0), LONGEST_PAUSE_S)
            tries += 1
            # A random part, so that images which were refused together do not come back together.
            await self._sleep(pause * (0.5 + self._chance() / 2))


def _is_an_answer(error: Exception) -> bool:
    """Whether another request would get the same answer."""
    return isinstance(error, InputError) or (isinstance(error, errors.Refusal) and error.status < 500 and error.status not in BUSY)


def _retry_after(error: Exception) -> float | None:
    """Seconds that a busy endpoint wants one to wait, 0 where it states none; None for a fault."""
    if not isinstance(error, errors.Refusal) or error.status not in BUSY:
        return None
    seconds = error.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdecimal() else 0.0
