"""Limit the cost of a request with middleware, before a route handles the request.

`BodyLimit` limits bytes, `Backpressure` the number of requests, `Deadline` their time, and
`RateLimit` the requests per minute of each bearer token, or of all clients together without tokens.
Each HTTP process counts its own requests.
"""

import asyncio
import math
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

from ray_app.serving.http.auth import Paths
from ray_app.serving.http.errors import Layer, refuse
from ray_app.serving.http.semantics import has_body
from ray_app.serving.refusal import Refusal

_BUDGET_RETRY_S = 5
_MAX_RETRY_S = 30
# The weight of the last answer in the mean time between answers.
_LAST_ANSWER_WEIGHT = 0.1
_MIN_ANSWERS = 4  # Answers before the mean time between them is used.


class BodyLimit(Layer):
    """Refuse bodies that are too large, compressed, or of an unclear length.

    The length is unclear if Content-Length is not a number or if Transfer-Encoding is also set. An
    announced length is checked before a byte is read, and every byte is counted as it arrives.

    Args:
        app: The application inside this layer.
        max_bytes: Maximum size of one body. A larger body gets 413.
        max_bytes_in_flight: Maximum size of all bodies of running requests. Further requests get
            503.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_bytes_in_flight: int) -> None:
        super().__init__(app)
        self.max_bytes, self.max_bytes_in_flight = max_bytes, max_bytes_in_flight
        self.bytes_in_flight = 0

    @override
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and raise Refusal in `receive` at the first byte over a limit."""
        received_bytes = 0

        async def receive_counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            arrived_bytes = len(message.get("body", b""))
            received_bytes += arrived_bytes
            self.bytes_in_flight += arrived_bytes
            self._check_size(received_bytes, received_bytes)
            return message

        try:
            self._check_headers(Headers(scope=scope))
        except Refusal as refusal:
            await refuse(refusal, scope, receive, send)
            return
        try:
            await self.app(scope, receive_counted, send)
        finally:
            self.bytes_in_flight -= received_bytes

    def _check_headers(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
            raise Refusal("unsupported_encoding")
        if not (length.isascii() and length.isdigit()):
            raise Refusal("malformed_request", "the header Content-Length is not a number")
        if "content-length" in headers and "transfer-encoding" in headers:
            # Two servers in a row may disagree on which header applies, and so on where the next
            # request begins (request smuggling).
            raise Refusal(
                "malformed_request",
                "Content-Length and Transfer-Encoding cannot be used together",
            )
        self._check_size(int(length), 0)

    def _check_size(self, body_bytes: int, received_bytes: int) -> None:
        if body_bytes > self.max_bytes:
            raise Refusal("body_too_large", limit=self.max_bytes, observed=body_bytes)
        if self.bytes_in_flight + body_bytes - received_bytes > self.max_bytes_in_flight:
            raise Refusal(
                "overloaded",
                "the bodies of running requests fill the memory that is reserved for them",
                headers={"Retry-After": str(_BUDGET_RETRY_S)},
            )


class Backpressure(Layer):
    """Limit the number of requests whose images wait or are scored, and refuse further ones (503).

    A request takes a slot when its body has arrived. It is refused if all slots are taken, or if
    the requests before it are likely to take longer than `max_wait_s`. The answer has the time after
    which the client should try again.

    Args:
        app: The application inside this layer.
        max_requests: Number of slots.
        max_wait_s: Maximum time that a request may wait for the requests before it.
        counted: Paths of requests that take a slot.
        clock: A function that returns the time of a monotonic clock in seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_requests: int,
        *,
        max_wait_s: float = math.inf,
        counted: Paths,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(app)
        self.max_requests, self.max_wait_s, self.counted = max_requests, max_wait_s, counted
        self.running = 0
        self._clock = clock
        self._answers, self._mean_interval_s, self._last_answer = 0, 0.0, 0.0

    @override
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it if the endpoint is too busy.

        This is checked before the body is read, and again when the body has arrived.
        """
        if not self.counted.has(scope["path"]):
            await self.app(scope, receive, send)
            return
        has_slot, status = False, 0

        async def receive_and_enter() -> Message:
            nonlocal has_slot
            message = await receive()
            is_end = message["type"] == "http.request" and not message.get("more_body", False)
            if is_end and not has_slot:
                self.require_slot()  # Other requests may have taken the last slot.
                self.enter()
                has_slot = True
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            self.require_slot()
        except Refusal as refusal:
            await refuse(refusal, scope, receive, send)
            return
        if not has_body(scope):
            self.enter()
            has_slot = True
        try:
            await self.app(scope, receive_and_enter, send_and_note)
        finally:
            if has_slot:
                self.leave(is_answered=200 <= status < 300)

    def estimate_wait_s(self) -> float:
        """Return the seconds until all running requests are likely to be answered.

        The mean interval between answers is used. Return 0 before the first four answers, or if no
        request is running.
        """
        if self._answers < _MIN_ANSWERS or not self.running:
            return 0.0
        elapsed_s = self._clock() - self._last_answer
        # An answer that is already late shows that the interval has become longer.
        interval_s = max(self._mean_interval_s, self._mean_with(elapsed_s))
        return self.running * interval_s - min(interval_s, elapsed_s)

    def require_slot(self) -> None:
        """Raise Refusal (503) if the endpoint is too busy for a new request.

        This is the case if `max_requests` requests are running. It is also the case if a new
        request is likely to wait longer than `max_wait_s`.
        """
        wait_s = self.estimate_wait_s()
        if self.running >= self.max_requests:
            raise self._overloaded("all slots are taken", self.max_requests, self.running)
        if wait_s > self.max_wait_s:
            message = "the requests before this one take too long"
            raise self._overloaded(message, self.max_wait_s, round(wait_s, 1))

    def _overloaded(self, message: str, limit: float, observed: float) -> Refusal:
        retry_s = min(_MAX_RETRY_S, max(1, math.ceil(self.estimate_wait_s())))
        return Refusal(
            "overloaded",
            message,
            limit=limit,
            observed=observed,
            headers={"Retry-After": str(retry_s)},
        )

    def enter(self) -> None:
        """Take a slot for a request whose body has arrived. Call `leave` when it has ended."""
        if not self.running:
            self._last_answer = (
                self._clock()
            )  # Time without requests does not count as an interval.
        self.running += 1

    def leave(self, *, is_answered: bool) -> None:
        """Release the slot of a request that has ended.

        Args:
            is_answered: Whether the request was answered with success. The time since the last such
                answer is then added to the mean interval between answers.
        """
        self.running -= 1
        if not is_answered:
            return
        now = self._clock()
        self._mean_interval_s = self._mean_with(now - self._last_answer)
        self._answers, self._last_answer = self._answers + 1, now

    def _mean_with(self, seconds: float) -> float:
        """Return the mean time between answers with one more interval."""
        weight = max(_LAST_ANSWER_WEIGHT, 1 / (self._answers + 1))
        return self._mean_interval_s + weight * (seconds - self._mean_interval_s)


class Deadline(Layer):
    """Cancel a request that takes longer than a number of seconds, and answer 504.

    The time includes receiving the body. If the answer has already started, the request is not
    cancelled. If the client leaves, its handler is cancelled.

    Args:
        app: The application inside this layer.
        seconds: The maximum time of a request.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        super().__init__(app)
        self.seconds = seconds

    @override
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on until the deadline."""
        started_at = time.monotonic()
        limit = asyncio.timeout(self.seconds)
        exchange = _Exchange(limit, receive, send)
        try:
            async with limit:
                await self.app(scope, exchange.receive, exchange.send)
        except Exception:
            # A handler may raise any exception when it is cancelled. The cause is still the deadline.
            if not limit.expired():
                raise
        finally:
            exchange.close()
        if limit.expired() and not exchange.client_left and not exchange.has_started:
            refusal = Refusal(
                "deadline_exceeded",
                limit=self.seconds,
                observed=round(time.monotonic() - started_at, 3),
            )
            await refuse(refusal, scope, receive, send)


class _Exchange:
    """One request under a deadline: its progress, and whether the client has left."""

    def __init__(self, limit: asyncio.Timeout, receive: Receive, send: Send) -> None:
        self.limit, self._receive, self._send = limit, receive, send
        self.has_started = self.has_ended = self.client_left = False
        self._watch: asyncio.Task[Message] | None = None

    async def receive(self) -> Message:
        if self._watch is not None:
            return await asyncio.shield(self._watch)
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.client_left = True
        elif not message.get("more_body", False):
            # The next message can only be a disconnect, and only a pending receive() gets it.
            self._watch = asyncio.create_task(self._wait_for_disconnect())
        return message

    async def send(self, message: Message) -> None:
        if self.limit.expired():
            return
        if message["type"] == "http.response.start":
            self.has_started = True
            self.limit.reschedule(None)
        elif not message.get("more_body", False):
            # Servers report the end of an exchange as a disconnect. A route may still work after its
            # answer, so this must not cancel it.
            self.has_ended = True
        await self._send(message)

    async def _wait_for_disconnect(self) -> Message:
        message = await self._receive()
        if not self.has_ended and not self.limit.expired():
            self.client_left = True
            self.limit.reschedule(asyncio.get_running_loop().time())
        return message

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()


class RateLimit(Layer):
    """Refuse a request (429) if its owner has sent more than `per_minute` in the last 60 seconds.

    An owner is a token, or all clients together if there are no tokens. The answer has the seconds
    after which the next request is accepted. Refused requests are not counted.

    Args:
        app: The application inside this layer.
        per_minute: Maximum number of requests of one owner in 60 seconds.
        uncounted: Paths of requests that do not count.
    """

    def __init__(self, app: ASGIApp, per_minute: int, *, uncounted: Paths) -> None:
        from limits import RateLimitItemPerMinute  # It is needed only if a limit is set.
        from limits.aio.storage import MemoryStorage
        from limits.aio.strategies import MovingWindowRateLimiter

        super().__init__(app)
        self.per_minute, self.uncounted = per_minute, uncounted
        self.item, self.limiter = (
            RateLimitItemPerMinute(per_minute),
            MovingWindowRateLimiter(MemoryStorage()),
        )

    @override
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        owner = scope.get("state", {}).get("owner", "anonymous")
        if self.uncounted.has(scope["path"]) or await self.limiter.hit(self.item, owner):
            await self.app(scope, receive, send)
            return
        reset_s = (await self.limiter.get_window_stats(self.item, owner)).reset_time
        # A request at exactly that second would still be refused.
        wait_s = max(1, math.floor(reset_s - time.time()) + 1)
        refusal = Refusal(
            "too_many_requests", limit=self.per_minute, headers={"Retry-After": str(wait_s)}
        )
        await refuse(refusal, scope, receive, send)
