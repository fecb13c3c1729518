"""How many requests a minute one owner of a token may make. Knows the owner's name only; each ingress replica counts for itself."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from ray_app.serving.http.access import Paths
from ray_app.serving.http.errors import Refusal
from ray_app.serving.http.refusing import refuse

_BURST_S = 10.0
_MAX_OWNERS = 4096


class Allowance:
    """A token bucket per owner: as many requests at once as ten seconds allow (at least one), then at the steady rate.

    At most 4096 owners are remembered; one that is forgotten, the longest silent, starts anew.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = per_minute / 60
        self.burst = max(1.0, self.rate * _BURST_S)
        self.clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, owner: str) -> int:
        """Seconds, whole and rounded up, until a request is allowed: 0 takes one now."""
        now = self.clock()
        left, since = self._left.pop(owner, (self.burst, now))
        left = min(self.burst, left + (now - since) * self.rate)
        # Three times a third of a request must make one, whatever rounding says.
        allowed = left > 1 - 1e-9
        self._left[owner] = (left - 1 if allowed else left, now)
        if len(self._left) > _MAX_OWNERS:
            self._left.popitem(last=False)
        return 0 if allowed else math.ceil((1 - left) / self.rate - 1e-6)


class RateLimit:
    """Tells 429 to an owner with too many requests in the last time, with the seconds after which one is let in."""

    def __init__(self, app: ASGIApp, per_minute: int, *, uncounted: Paths, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.uncounted = app, uncounted
        self.allowance = Allowance(per_minute, clock)
        self.per_minute = per_minute

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and not self.uncounted.has(scope["path"]):
            wait = self.allowance.take(scope.get("state", {}).get("owner", "anonymous"))
            if wait:
                refusal = Refusal("too_many_requests", limit=self.per_minute, headers={"Retry-After": str(wait)})
                await refuse(refusal, scope, receive, send)
                return
        await self.app(scope, receive, send)
