"""What a request may cost before a route sees it: a place and bytes (`Admission`), seconds
(`Deadline`), and how many a minute one owner may make (`RateLimit`). Each ingress replica counts
for itself.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import NoReturn

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_app.serving.http.auth import Paths
from ray_app.serving.http.errors import Layer, Refusal, refuse
from ray_app.serving.http.semantics import has_body

_BUDGET_RETRY_S = 5


class Deadline(Layer):
    """Cuts a request, body included, after so many seconds: its handler is cancelled and the client
    gets 504.

    Once an answer has begun it may take its time. A client that leaves cancels its handler too.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        super().__init__(app)
        self.seconds = seconds

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on for so long."""
        began = time.monotonic()
        limit = asyncio.timeout(self.seconds)
        exchange = _Exchange(limit, receive, send)
        try:
            async with limit:
                await self.app(scope, exchange.receive, exchange.send)
        except Exception:
            # A handler may make anything of its cancellation; the reason for it stays the deadline.
            if not limit.expired():
                raise
        finally:
            exchange.close()
        if limit.expired() and not exchange.client_left and not exchange.begun:
            refusal = Refusal(
                "deadline_exceeded", limit=self.seconds, observed=round(time.monotonic() - began, 3)
            )
            await refuse(refusal, scope, receive, send)


class _Exchange:
    """One request under a deadline: notes how far body and answer are, and whether the client is
    still there.
    """

    def __init__(self, limit: asyncio.Timeout, receive: Receive, send: Send) -> None:
        self.limit, self._receive, self._send = limit, receive, send
        self.begun = self.done = self.client_left = False
        self._watch: asyncio.Task[Message] | None = None

    async def receive(self) -> Message:
        if self._watch is not None:
            return await asyncio.shield(self._watch)
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.client_left = True
        elif not message.get("more_body", False):
            # Nothing but the client's leaving can come now, and only a pending receive() hears of
            # it.
            self._watch = asyncio.create_task(self._wait_for_leaving())
        return message

    async def send(self, message: Message) -> None:
        if self.limit.expired():
            return
        if message["type"] == "http.response.start":
            self.begun = True
            self.limit.reschedule(None)
        elif not message.get("more_body", False):
            # Servers report the end of an exchange as a disconnect; what a route does after its
            # answer is not cut.
            self.done = True
        await self._send(message)

    async def _wait_for_leaving(self) -> Message:
        message = await self._receive()
        if not self.done and not self.limit.expired():
            self.client_left = True
            self.limit.reschedule(asyncio.get_running_loop().time())
        return message

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()


class RateLimit(Layer):
    """429 to an owner (a token; without tokens everybody together) with more than `per_minute`
    requests in the last 60 seconds, with the seconds after which the next one is let in. Refused
    requests do not count.
    """

    def __init__(self, app: ASGIApp, per_minute: int, *, uncounted: Paths) -> None:
        from limits import RateLimitItemPerMinute  # only where the operator has set a limit
        from limits.aio.storage import MemoryStorage
        from limits.aio.strategies import MovingWindowRateLimiter

        super().__init__(app)
        self.per_minute, self.uncounted = per_minute, uncounted
        self.item, self.limiter = (
            RateLimitItemPerMinute(per_minute),
            MovingWindowRateLimiter(MemoryStorage()),
        )

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        owner = scope.get("state", {}).get("owner", "anonymous")
        if self.uncounted.has(scope["path"]) or await self.limiter.hit(self.item, owner):
            await self.app(scope, receive, send)
            return
        opens = (await self.limiter.get_window_stats(self.item, owner)).reset_time
        # at the very second it is still refused
        wait_s = max(1, math.floor(opens - time.time()) + 1)
        refusal = Refusal(
            "too_many_requests", limit=self.per_minute, headers={"Retry-After": str(wait_s)}
        )
        await refuse(refusal, scope, receive, send)


_ENOUGH = 4  # answers, before a pace is believed
_SENDERS = 2  # times as many as may be at work may still be sending their bodies
_MOST_RETRY_S = 30


class ServicePace:
    """Seconds of work that an answer costs, measured only while there is work: an idle server is
    not a slow one.

    Time with several at work counts once, so parallel work and batches show as a faster pace. It is
    that of about the last `memory_s` seconds of work.
    """

    def __init__(
        self, memory_s: float = math.inf, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.at_work = 0
        self._memory_s, self._clock = memory_s, clock
        self._since = 0.0  # the last answer, or the beginning of work after a rest
        self._busy_s = self._answers = 0.0
        self._answers_ever = 0

    def begin(self) -> None:
        """One more is at work."""
        if not self.at_work:
            self._since = self._clock()
        self.at_work += 1

    def end(self, answers: int | None) -> None:
        """One less is at work: 1 answer came of it, or 0 in the time that it had; None where nobody
        waited to see.
        """
        self.at_work -= 1
        if answers is not None:
            self._busy_s, self._answers = self._with(answers)
            self._answers_ever += answers
            self._since = self._clock()

    def wait_s(self) -> float:
        """Seconds until those at work are likely to be done; 0 while too little is known."""
        if not self.at_work or self._answers_ever < _ENOUGH:
            return 0.0
        busy_s, answers = self._with(1)  # if the next answer came now: it may be late already
        each_s = max(self._busy_s / max(self._answers, 1e-6), busy_s / answers)
        return self.at_work * each_s - min(each_s, self._clock() - self._since)

    def _with(self, answers: int) -> tuple[float, float]:
        """Seconds of work and answers, the older the less, up to now."""
        spent_s = self._clock() - self._since
        kept = math.exp(-spent_s / self._memory_s)
        return self._busy_s * kept + spent_s, self._answers * kept + answers


class Admission(Layer):
    """Bounds the requests at work, the bytes of one body and of all bodies together. Who is refused
    is answered without reading further.

    At work is a request whose body has come: at most `max_requests` (503). One that still sends
    takes no place, but no more than twice as many may be sending. On `queued` paths, where one
    waits for another, none is let in that would wait over `longest_wait_s` by the pace of those
    before it. Retry-After is the time in which those at work are likely to be done, 1 to 30
    seconds. Requests to `uncounted` paths take no place.

    `max_body_bytes`: bytes of one body (413); `max_in_flight`: bytes of all bodies (503). An
    announced length is judged before a byte is read, every byte is counted as it comes, and
    compressed bodies are not taken (415).
    """

    def __init__(
        self,
        app: ASGIApp,
        max_requests: int,
        *,
        longest_wait_s: float = math.inf,
        max_body_bytes: int,
        max_in_flight: int,
        queued: Paths,
        uncounted: Paths,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(app)
        self.max_requests, self.longest_wait_s = max_requests, longest_wait_s
        self.max_body_bytes, self.max_in_flight = max_body_bytes, max_in_flight
        self.queued, self.uncounted = queued, uncounted
        self.pace = ServicePace(longest_wait_s, clock)
        self.at_work = self.sending = self.bytes_in_flight = 0

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it at whatever point it turns out to cost too much."""
        visit = _Visit(self, scope, receive, send)
        try:
            visit.arrive()
            await self.app(scope, visit.receive, visit.send)
        except Exception:
            if visit.refusal is None or visit.status:
                raise
        finally:
            visit.leave()
        if visit.refusal is not None and not visit.status:
            await refuse(visit.refusal, scope, receive, send)

    def refusal(self, *, queued: bool, sends: bool = False) -> Refusal | None:
        """Why one more is not let in, if it is not."""
        most_sending, wait_s = _SENDERS * self.max_requests, self.pace.wait_s()
        if self.at_work >= self.max_requests:
            return self._overloaded("every place is taken", self.max_requests, self.at_work)
        if sends and self.sending >= most_sending:
            return self._overloaded(
                "too many requests are being received at once", most_sending, self.sending
            )
        if queued and wait_s > self.longest_wait_s:
            return self._overloaded(
                "the requests before it take too long", self.longest_wait_s, round(wait_s, 1)
            )
        return None

    def _overloaded(self, message: str, limit: float, observed: float) -> Refusal:
        retry_s = min(_MOST_RETRY_S, max(1, math.ceil(self.pace.wait_s())))
        return Refusal(
            "overloaded",
            message,
            limit=limit,
            observed=observed,
            headers={"Retry-After": str(retry_s)},
        )


class _Visit:
    """One request: it arrives, sends its body, is at work, and leaves. Once refused, whatever the
    route answers instead is dropped.
    """

    def __init__(self, admission: Admission, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.admission, self.scope, self._receive, self._send = admission, scope, receive, send
        self.is_counted, self.queued = not admission.uncounted.has(path), admission.queued.has(path)
        self.size = self.status = 0
        self.body_came = not has_body(scope)
        self.sending = self.at_work = False
        self.refusal: Refusal | None = None

    def arrive(self) -> None:
        self._judge_place(sends=not self.body_came)
        self._judge_headers()
        if self.body_came:
            self._begin()
        elif self.is_counted:
            self.sending = True
            self.admission.sending += 1

    async def receive(self) -> Message:
        if self.refusal is not None:
            raise self.refusal
        message = await self._receive()
        if message["type"] == "http.request":
            arrived = len(message.get("body", b""))
            self.size += arrived
            self.admission.bytes_in_flight += arrived
            self._judge_size(self.size)
            if not self.body_came and not message.get("more_body", False):
                self.body_came = True
                self._stop_sending()
                self._judge_place()  # others may have been faster
                self._begin()
        return message

    async def send(self, message: Message) -> None:
        if self.refusal is not None and not self.status:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    def leave(self) -> None:
        self._stop_sending()
        self.admission.bytes_in_flight -= self.size
        if self.at_work:
            self.admission.at_work -= 1
            if self.queued:
                self.admission.pace.end(
                    1 if 200 <= self.status < 300 else 0 if self.status == 504 else None
                )

    def _begin(self) -> None:
        if self.is_counted:
            self.at_work = True
            self.admission.at_work += 1
            if self.queued:
                self.admission.pace.begin()

    def _stop_sending(self) -> None:
        self.admission.sending -= self.sending
        self.sending = False

    def _judge_place(self, *, sends: bool = False) -> None:
        refusal = (
            self.admission.refusal(queued=self.queued, sends=sends) if self.is_counted else None
        )
        if refusal is not None:
            self._refuse(refusal)

    def _judge_headers(self) -> None:
        headers = Headers(scope=self.scope)
        length = headers.get("content-length", "0")
        if headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
            self._refuse(Refusal("unsupported_encoding"))
        if not (length.isascii() and length.isdigit()):
            self._refuse(Refusal("malformed_request", "Content-Length is not a number"))
        if "content-length" in headers and "transfer-encoding" in headers:
            # Two servers in a row may disagree on which one holds, and so on where the next request
            # begins.
            self._refuse(
                Refusal(
                    "malformed_request",
                    "Content-Length and Transfer-Encoding cannot be given together",
                )
            )
        self._judge_size(int(length))

    def _judge_size(self, size: int) -> None:
        if size > self.admission.max_body_bytes:
            self._refuse(
                Refusal("body_too_large", limit=self.admission.max_body_bytes, observed=size)
            )
        if self.admission.bytes_in_flight + size - self.size > self.admission.max_in_flight:
            message = "running requests fill the memory that is set aside for them"
            self._refuse(
                Refusal("overloaded", message, headers={"Retry-After": str(_BUDGET_RETRY_S)})
            )

    def _refuse(self, refusal: Refusal) -> NoReturn:
        self.refusal = refusal
        raise refusal
