"""Who gets a place: so many requests at work, and none that would wait too long. `Admission` refuses the others with a Retry-After."""

import math
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_app.serving.http.auth import Paths
from ray_app.serving.http.errors import Refusal, has_body, refuse

_ENOUGH = 4  # answers, before a pace is believed
_SENDERS = 2  # times as many as may be at work may still be sending their bodies
_MOST_RETRY_S = 30


class ServicePace:
    """Seconds of work that an answer costs, measured only while there is work: an idle server is not a slow one.

    Time with several at work counts once, so parallel work and batches show as a faster pace. It is that of about the last `memory_s`
    seconds of work.
    """

    def __init__(self, memory_s: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
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
        """One less is at work: 1 answer came of it, or 0 in the time that it had; None where nobody waited to see."""
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


class Admission:
    """A bounded number of requests at work; the next one gets 503, before its body is read where that is known so early.

    At work is a request whose body has come. One that still sends takes no place, but no more than twice as many may be sending.
    On `queued` paths, where one waits for another, none is let in that would wait over `longest_wait_s` by the pace of those before it.
    Retry-After is the time in which those at work are likely to be done, 1 to 30 seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_requests: int,
        *,
        longest_wait_s: float = math.inf,
        queued: Paths,
        uncounted: Paths,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app, self.max_requests, self.longest_wait_s = app, max_requests, longest_wait_s
        self.queued, self.uncounted = queued, uncounted
        self.pace = ServicePace(longest_wait_s, clock)
        self.at_work = self.sending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or self.uncounted.has(scope["path"]):
            await self.app(scope, receive, send)
            return
        visit = _Visit(self, self.queued.has(scope["path"]), receive, send)
        try:
            visit.arrive(sends=has_body(scope))
            await self.app(scope, visit.receive, visit.send)
        except Exception:
            if visit.refusal is None or visit.status:
                raise
        finally:
            visit.leave()
        if visit.refusal is not None and not visit.status:
            await refuse(visit.refusal, scope, receive, send, body_was_read=visit.body_came)

    def retry_after(self) -> int:
        """Seconds until those at work now are likely to be done; 1 while nothing is known."""
        return min(_MOST_RETRY_S, max(1, math.ceil(self.pace.wait_s())))

    def refusal(self, *, queued: bool, sends: bool = False) -> Refusal | None:
        """Why one more is not let in, if it is not."""
        most_sending, wait_s = _SENDERS * self.max_requests, self.pace.wait_s()
        if self.at_work >= self.max_requests:
            return self._overloaded("every place is taken", self.max_requests, self.at_work)
        if sends and self.sending >= most_sending:
            return self._overloaded("too many are sending their bodies", most_sending, self.sending)
        if queued and wait_s > self.longest_wait_s:
            return self._overloaded("those before it take too long", self.longest_wait_s, round(wait_s, 1))
        return None

    def _overloaded(self, message: str, limit: float, observed: float) -> Refusal:
        return Refusal("overloaded", message, limit=limit, observed=observed, headers={"Retry-After": str(self.retry_after())})


class _Visit:
    """One request: it arrives, sends its body, is at work, and leaves. Once refused, whatever the route answers instead is dropped."""

    def __init__(self, admission: Admission, queued: bool, receive: Receive, send: Send) -> None:
        self.admission, self.queued, self._receive, self._send = admission, queued, receive, send
        self.sending = self.at_work = self.body_came = False
        self.status = 0
        self.refusal: Refusal | None = None

    def arrive(self, *, sends: bool) -> None:
        self._judge(sends=sends)
        self.sending = sends
        self.admission.sending += sends
        if not sends:
            self._begin()

    async def receive(self) -> Message:
        if self.refusal is not None:
            raise self.refusal
        message = await self._receive()
        if self.sending and message["type"] == "http.request" and not message.get("more_body", False):
            self.body_came = True
            self._stop_sending()
            self._judge()  # others may have been faster
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
        if not self.at_work:
            return
        self.admission.at_work -= 1
        if self.queued:
            self.admission.pace.end(1 if 200 <= self.status < 300 else 0 if self.status == 504 else None)

    def _begin(self) -> None:
        self.at_work = True
        self.admission.at_work += 1
        if self.queued:
            self.admission.pace.begin()

    def _stop_sending(self) -> None:
        self.admission.sending -= self.sending
        self.sending = False

    def _judge(self, *, sends: bool = False) -> None:
        self.refusal = self.admission.refusal(queued=self.queued, sends=sends)
        if self.refusal is not None:
            raise self.refusal
