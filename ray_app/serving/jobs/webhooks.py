"""A job's webhook is called when it has ended, at least once (`WebhookSender`), signed so that the receiver can `verify` the sender."""

import asyncio
import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from ray_app.errors import ConfigError, SourceError
from ray_app.serving.config import JobLimits
from ray_app.serving.http import errors, schemas
from ray_app.serving.jobs.queue import UrlFetcher
from ray_app.serving.jobs.record import JobRecord

SIGNATURE_HEADER = "Touchstone-Signature"
JOB_HEADER = "Touchstone-Job"
ATTEMPTS = 3
_FIRST_PAUSE_S, _GROWTH = 2.0, 4.0
_SIGNATURE = re.compile(r"t=([0-9]{1,12}),v1=([0-9a-f]{64})")
Post = Callable[[str, bytes, Mapping[str, str]], Awaitable[int]]
"""(url, body, headers) → the status of the answer; raises SourceError or Refusal. In an endpoint, that of a GuardedFetcher."""
Notify = Callable[[str, bytes], Awaitable[object]]
"""(url, a Job as JSON): calls a webhook, with whatever retries it wants."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Delivery:
    """How a delivery ended. `status` is the last answer's, None where none came; `detail` says why it was given up."""

    delivered: bool
    attempts: int
    status: int | None
    detail: str | None = None


def webhook_secret(limits: JobLimits, environment: Mapping[str, str] = os.environ) -> str | None:
    """The key that signs webhooks, None where they are off. Raises ConfigError where they are on and there is none."""
    if not limits.webhooks:
        return None
    secret = environment.get(limits.webhook_secret_variable, "").strip()
    if not secret:
        raise ConfigError(
            f"jobs.webhooks is on, and the environment variable {limits.webhook_secret_variable} that signs them is not set",
            hint=f'export {limits.webhook_secret_variable}="$(openssl rand -hex 32)" and tell receivers, or jobs.webhooks: false',
        )
    return secret


def sign(secret: str, body: bytes, timestamp: int) -> str:
    """The value of `Touchstone-Signature`: `t=<unix seconds>,v1=<hex HMAC-SHA256 of "t.body">`."""
    return f"t={timestamp},v1={_digest(secret, body, timestamp)}"


def verify(secret: str, header: str, body: bytes, *, now: float, tolerance_s: float = 300) -> bool:
    """For receivers: whether `body`, byte for byte as it came, was signed with `secret` within `tolerance_s` of `now` (unix seconds).

    Check before you parse. A delivery may come more than once (its answer may have been lost), so remember the job's id:

        @app.post("/hooks/touchstone")
        async def ended(request: Request) -> Response:
            body = await request.body()
            if not verify(SECRET, request.headers.get("Touchstone-Signature", ""), body, now=time.time()):
                return Response(status_code=401)
            job = json.loads(body)    # as GET /v1/jobs/{id} answers; `Touchstone-Job` is its id
            ...
            return Response(status_code=204)
    """
    parts = _SIGNATURE.fullmatch(header)
    if parts is None:
        return False
    timestamp = int(parts[1])
    genuine = hmac.compare_digest(_digest(secret, body, timestamp), parts[2])
    return genuine and abs(now - timestamp) <= tolerance_s


async def deliver(
    post: Post,
    url: str,
    body: bytes,
    secret: str,
    *,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    clock: Callable[[], float] = time.time,
) -> Delivery:
    """Posts `body`, the JSON of a Job, until a 2xx answers or ATTEMPTS are spent. A URL that fails is an answer, not an exception.

    Pauses of 2 and 8 s. Tried again: no answer, 408, 425, 429 and 5xx. Not again: what the guard refuses, redirects, and any other answer.
    """
    job = schemas.Job.model_validate_json(body).id
    last = Delivery(delivered=False, attempts=0, status=None)
    for attempt in range(1, ATTEMPTS + 1):
        if attempt > 1:
            await sleep(_FIRST_PAUSE_S * _GROWTH ** (attempt - 2))
        # Signed anew each time: a receiver's tolerance counts from the attempt, not from the job's end.
        headers = {"Content-Type": "application/json", JOB_HEADER: job, SIGNATURE_HEADER: sign(secret, body, int(clock()))}
        last, again = await _attempt(post, url, body, headers, attempt)
        if not again:
            break
    return last


async def _attempt(post: Post, url: str, body: bytes, headers: Mapping[str, str], attempt: int) -> tuple[Delivery, bool]:
    """One post, and whether another may do better."""
    try:
        status = await post(url, body, headers)
    except errors.Refusal as refused:
        return Delivery(delivered=False, attempts=attempt, status=None, detail=refused.message), False
    except SourceError as failed:
        return Delivery(delivered=False, attempts=attempt, status=None, detail=failed.detail), True
    if 200 <= status < 300:
        return Delivery(delivered=True, attempts=attempt, status=status), False
    again = status in (408, 425, 429) or status >= 500
    return Delivery(delivered=False, attempts=attempt, status=status, detail=f"the receiver answered {status}"), again


def _digest(secret: str, body: bytes, timestamp: int) -> str:
    return hmac.new(secret.encode(), b"%d." % timestamp + body, hashlib.sha256).hexdigest()


def signed_delivery(fetcher: UrlFetcher | None, secret: str | None) -> Notify | None:
    """What calls webhooks, signed with `secret`; None where they are off."""
    if secret is None or fetcher is None:
        return None

    async def notify(url: str, job: bytes) -> object:
        return await deliver(fetcher.post, url, job, secret)

    return notify


class WebhookSender:
    """Delivers in the background; `told(record)` is called once nothing is left to deliver. Without `notify` it delivers nothing."""

    def __init__(self, notify: Notify | None, told: Callable[[JobRecord], Awaitable[None]]) -> None:
        self._notify, self._on_delivered = notify, told
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, record: JobRecord) -> None:
        """Begin, if the job has a webhook that was not called yet."""
        if self._notify is not None and record.webhook is not None and not self._is_closed:
            task = asyncio.create_task(self._deliver(record, record.webhook, self._notify))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop. A record that was not delivered yet still says so, to the next process."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _deliver(self, record: JobRecord, url: str, notify: Notify) -> None:
        try:
            outcome = await notify(url, record.answer().model_dump_json().encode())
            _log.info("job_told job=%s outcome=%s", record.id, outcome)
        except Exception as error:  # the job is done, whatever its webhook does
            _log.warning("job_not_told job=%s fault=%s", record.id, type(error).__name__)
        record.webhook = None
        await self._on_delivered(record)
