"""One image of a job → its answer, however long the interactive requests keep the detectors busy. Knows no job, no turn, no storage."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from ray_app.errors import InputError
from ray_app.serving.http.answering import refused_answer
from ray_app.serving.http.errors import Refusal
from ray_app.serving.http.schemas import EnsembleName, ImageAnswer

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[object]]

BUSY = frozenset({429, 503})
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0
FAULTS = 4  # tries of one image that end in a fault of this endpoint before its job is given up
_log = logging.getLogger(__name__)


class ImageScorer(Protocol):
    """What a job asks of an EndpointScorer."""

    async def score(self, data: bytes, *, name: str | None = None, ensemble: str | None = None, request_id: str = "") -> ImageAnswer:
        """The answer for one image. Raises InputError where the image is refused and Refusal where the request is."""
        ...

    async def ensemble(self, name: str | None) -> EnsembleName:
        """The ensemble that a request means. Raises Refusal."""
        ...


class UrlFetcher(Protocol):
    """What jobs ask of a GuardedFetcher."""

    async def fetch(self, url: str) -> bytes:
        """The bytes behind a URL. Raises Refusal or InputError."""
        ...

    def check(self, url: str) -> None:
        """Raises Refusal where the text of a URL alone says that it will never be asked."""
        ...

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The status that a webhook answers. Raises Refusal or SourceError."""
        ...


class PatientScorer:
    """Scores images of jobs: waits out a busy endpoint without end, a faulty one for FAULTS tries."""

    def __init__(
        self, scorer: ImageScorer, fetcher: UrlFetcher | None, *, sleep: Sleep = asyncio.sleep, chance: Callable[[], float] = random.random
    ) -> None:
        self._scorer, self._fetcher, self._sleep, self._chance = scorer, fetcher, sleep, chance

    async def answer(self, source: bytes | str, *, name: str | None, ensemble: str | None, request_id: str) -> ImageAnswer:
        """The answer for image bytes or for a URL; a refused image has one too.

        Raises Refusal where no image could be answered so (its ensemble is gone), or whatever FAULTS tries ended in.
        """
        data = source if isinstance(source, bytes) else None
        try:
            if data is None:
                data = await self._patiently(lambda: self._fetch(str(source)))
            found = data
            return await self._patiently(lambda: self._scorer.score(found, name=name, ensemble=ensemble, request_id=request_id))
        except (InputError, Refusal) as refused:
            if isinstance(refused, Refusal) and not refused.is_about_one_image:
                raise
            asked = await self._patiently(lambda: self._scorer.ensemble(ensemble))
            return refused_answer(refused, name, data, asked, request_id)

    async def _fetch(self, url: str) -> bytes:
        if self._fetcher is None:
            raise Refusal("forbidden", "this endpoint does not fetch URLs")
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
                _log.info("job_image_again reason=%s", error.code if isinstance(error, Refusal) else type(error).__name__)
            pause = min(max(FIRST_PAUSE_S * 2.0 ** min(tries, 20), asked_for or 0.0), LONGEST_PAUSE_S)
            tries += 1
            # A random part, so that images which were refused together do not come back together.
            await self._sleep(pause * (0.5 + self._chance() / 2))


def _is_an_answer(error: Exception) -> bool:
    """Whether asking again would be told the same."""
    return isinstance(error, InputError) or (isinstance(error, Refusal) and error.status < 500 and error.status not in BUSY)


def _retry_after(error: Exception) -> float | None:
    """Seconds that a busy endpoint asks to wait, 0 where it does not say; None for a fault."""
    if not isinstance(error, Refusal) or error.status not in BUSY:
        return None
    seconds = error.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdecimal() else 0.0
