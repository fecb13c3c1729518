"""Whose image is next: one of each job in turn, a few at a time over all jobs. Knows tasks; knows nothing of images or answers."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from ray_app.serving.job_record import Work


class Turns:
    """Calls `score(work, index)` for every waiting image of the works that were added, `places` at a time."""

    def __init__(self, places: int, score: Callable[[Work, int], Coroutine[Any, Any, None]]) -> None:
        self._places, self._score = places, score
        self._queue: deque[Work] = deque()
        self._taken = 0
        self._is_closed = False

    def add(self, work: Work) -> None:
        """Let a job take its turns."""
        if work.waiting:
            self._queue.append(work)
        self._fill()

    async def stop(self, work: Work) -> None:
        """No further image of it. What is being scored is let go, what was scored is waited for until it is written down."""
        with suppress(ValueError):
            self._queue.remove(work)
        for task in list(work.scoring):
            task.cancel()
        await asyncio.gather(*work.at_work, return_exceptions=True)

    def is_scored(self, work: Work) -> None:
        """The image whose task asks was scored: `stop` waits for it from here on."""
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

    def _leave(self, work: Work, task: asyncio.Task[None]) -> None:
        self._taken -= 1
        work.scoring.discard(task)
        work.at_work.discard(task)
        self._fill()
