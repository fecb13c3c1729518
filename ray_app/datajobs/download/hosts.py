"""The limits of one host (`Host`), and the HTTP client of `data collect` (`open_client`)."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ray_app.datajobs.download.config import CollectConfig, Politeness
from ray_app.errors import Status
from ray_app.storage import ssrf
from ray_app.storage.guarded_http import FetchFailed, FetchRules, GuardedClient

# Between the starts of two requests to a host that throttles: doubled each time, from the first to
# the last of these.
_SHORT_S, _LONGEST_PAUSE_S = 0.05, 10.0


def open_client(config: CollectConfig) -> GuardedClient:
    """Return the client that requests the URLs of a list; call it inside the event loop, and close
    the client.
    """
    limits = config.limits
    rules = FetchRules(
        config.politeness.agent,
        limits.max_bytes,
        connect_timeout_s=limits.connect_timeout_s,
        read_timeout_s=limits.read_timeout_s,
        total_timeout_s=limits.total_timeout_s,
        schemes=("http", "https"),
        port=None,
        is_literal_allowed=True,
        bare_names=config.allow_private,
        keep_alive=True,
    )
    is_allowed = _allow_any if config.allow_private else ssrf.is_public_address
    return GuardedClient(rules, resolver=_resolver(config.resolve), is_allowed_address=is_allowed)


def _allow_any(address: str) -> bool:
    return True


def _resolver(known: Mapping[str, str]) -> ssrf.Resolver:
    async def resolve(host: str, port: int) -> list[tuple[str, int]]:
        return [(known[host], port)] if host in known else await ssrf.system_resolver(host, port)

    return resolve


class Host:
    """What is known of one host, and its limits. Within one event loop; pickled, it takes along
    what is known and none of its visitors.
    """

    def __init__(
        self, name: str, rules: Politeness, clock: Callable[[], float] = time.time
    ) -> None:
        self.name, self._rules, self._clock = name, rules, clock
        self._not_before = self._next_start = 0.0
        self._pause_s = rules.pause_s
        self._silent = 0
        self._refused: tuple[Status, str] | None = None
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("_places", "_starting")
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def _open(self) -> None:
        self._places, self._starting = asyncio.Semaphore(self._rules.per_host), asyncio.Lock()

    @asynccontextmanager
    async def visit(self) -> AsyncIterator[None]:
        """Inside, one request may be made. Raises FetchFailed, without any request, once this host
        is given up.
        """
        async with self._places:
            async with self._starting:
                while (
                    self._refused is None
                    and (wait := max(self._not_before, self._next_start) - self._clock()) > 0
                ):
                    await asyncio.sleep(wait)
                if self._refused is not None:
                    raise FetchFailed(*self._refused, asked=False)
                self._next_start = self._clock() + self._pause_s
            yield

    def answered(self) -> None:
        """It gave a useful answer: silence is forgotten, and pauses that it had requested grow
        shorter again.
        """
        self._silent = 0
        self._pause_s = max(
            self._rules.pause_s, 0.8 * self._pause_s if self._pause_s > _SHORT_S else 0.0
        )

    def silent(self) -> None:
        """One more url ended without any answer from this host."""
        self._silent += 1
        if self._silent >= self._rules.give_up_after and self._refused is None:
            message = f"not asked: {self.name} gave no answer to {self._silent} urls in a row"
            self._refused = (Status.SOURCE_TIMEOUT, message)

    def throttled(self, wait_s: float | None) -> None:
        """It has requested to slow down, perhaps to wait for so long. Where the rules do not bear
        that, it gets no more requests.
        """
        self._silent = 0
        self._pause_s = max(
            self._rules.pause_s, min(_LONGEST_PAUSE_S, max(2 * self._pause_s, _SHORT_S))
        )
        if wait_s is not None and wait_s > self._rules.longest_wait_s:
            message = f"{self.name} asks to wait {wait_s:.0f} s, and is asked nothing more in this session"
            self._refused = (Status.SOURCE_THROTTLED, message)
            return
        self._not_before = max(self._not_before, self._clock() + (wait_s or 0.0))
