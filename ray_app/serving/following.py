"""Which generation the groups of detectors serve, as far as one ingress knows. Knows no image, no HTTP and no Ray."""

import asyncio
import time
from collections.abc import Mapping
from typing import Protocol

from ray_app.serving.generation import Generation
from ray_app.serving.groups import Ask, Offer, Reply
from ray_app.serving.http.errors import Refusal
from ray_app.serving.profiling import ProfileAsk, Profiled

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.5  # between two tries while replicas are replaced


class GroupLost(Exception):  # noqa: N818 - an event, not a fault of the request
    """The process that was asked is gone. Scoring changes nothing, so that asking again is safe."""


class GroupDied(GroupLost):
    """It went while it was at work, perhaps because of what it worked on."""


class Group(Protocol):
    """A group of detectors, wherever it runs. All raise GroupLost, and Refusal where its queue is full."""

    async def score(self, ask: Ask) -> Reply | Offer:
        """What its detectors say of one image."""
        ...

    async def profile(self, ask: ProfileAsk) -> Profiled | Offer:
        """What its heads and describers say of one image."""
        ...

    async def describe(self) -> Generation:
        """The generation that it serves."""
        ...


class Followed:
    """The generation that is served: asked for at first, then learnt from what groups answer and offer."""

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self._groups = groups
        self._first = next(iter(groups))
        self._known: Generation | None = None
        self._heard_at = 0.0

    async def current(self) -> Generation:
        """What is known; waits for the first answer of the first group, as long as its caller does."""
        pause = FIRST_PAUSE_S
        while self._known is None:
            try:
                await self.ask(self._first)
            except GroupLost:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
        return self._known

    async def fresh(self, max_age_s: float) -> Generation:
        """What was heard no longer ago than that, or, where nobody answers now, what is known."""
        if self._known is not None and time.monotonic() - self._heard_at > max_age_s:
            try:
                await self.ask(self._first)
            except (GroupLost, Refusal):
                self._heard_at = time.monotonic()
        return await self.current()

    async def ask(self, group: str) -> None:
        """Learn what one group serves. Raises GroupLost, and Refusal where its queue is full."""
        self.follow(await self._groups[group].describe())

    def follow(self, generation: Generation) -> None:
        """A group said that it serves this."""
        self._known, self._heard_at = generation, time.monotonic()
