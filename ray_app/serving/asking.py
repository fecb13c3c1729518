"""One request to an endpoint, asked until it is answered or patience ends. Knows status codes and clocks; knows nothing of images.

Asking again is safe: the endpoint keeps nothing of a request, and the same bytes get the same answer.
"""

import math
import random
import time
from collections.abc import Callable, Collection, Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from ray_app.errors import ClusterError, ConfigError, said
from ray_app.storage import RetryPolicy, strip_secrets

PATIENCE = RetryPolicy(attempts=6, base_s=0.25, cap_s=8.0, deadline_s=300.0)
BUSY = frozenset({429, 503})
BROKEN = frozenset({500, 502, 504})
NOT_ALLOWED = {
    401: "say --token-file FILE or set TOUCHSTONE_TOKEN; in Python, EndpointClient(url, token=…)",
    403: "this token, or this machine, may not ask that endpoint",
}
NOT_AN_ENDPOINT = "the URL is that of the endpoint, without /v1, for example http://localhost:8000"


class Asker:
    """Asks one endpoint. A busy one (429, 503) is asked again when it says; a broken one (500, 502, 504, no connection) after a
    growing, random pause. `policy.deadline_s` bounds one request with all its attempts.
    """

    def __init__(
        self,
        http: httpx.Client,
        policy: RetryPolicy = PATIENCE,
        *,
        sleep: Callable[[float], object] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.url = strip_secrets(str(http.base_url)).rstrip("/")
        self._http, self._policy, self._sleep, self._chance = http, policy, sleep, chance

    def ask(self, method: str, path: str, *, settled: Collection[int] = (), **request: Any) -> httpx.Response:
        """The response; a status in `settled` is handed on at once, 500 and 504 once the attempts are used up.

        Raises ConfigError where this endpoint does not let us ask, ClusterError where it is out of reach or stays busy.
        """
        deadline = time.monotonic() + self._policy.deadline_s
        pauses = self._policy.pauses(self._chance)
        while True:
            response, trouble = self._once(method, path, request)
            if response is not None and (response.status_code in settled or response.status_code not in BUSY | BROKEN):
                return self._allowed(response)
            pause = self._pause(response, pauses)
            if pause is None or time.monotonic() + pause > deadline:
                if response is not None and response.status_code in (500, 504):
                    return response
                raise self._given_up(response, trouble, pause)
            self._sleep(pause)

    def _once(self, method: str, path: str, request: dict[str, Any]) -> tuple[httpx.Response | None, str]:
        try:
            response = self._http.request(method, path, **request)
        except httpx.RequestError as error:
            return None, said(error)
        return response, f"answered {response.status_code}"

    def _pause(self, response: httpx.Response | None, pauses: Iterator[float]) -> float | None:
        """Seconds until the next attempt; None = there is none."""
        if response is None or response.status_code not in BUSY:
            return next(pauses, None)
        asked = retry_after(response.headers.get("Retry-After"))
        # Everybody was told the same second: a random part on top, so that not all come back at once.
        return self._chance() * self._policy.cap_s if asked is None else asked + self._chance() * min(max(asked, self._policy.base_s), 1.0)

    def _allowed(self, response: httpx.Response) -> httpx.Response:
        status = response.status_code
        if status in NOT_ALLOWED:
            raise ConfigError(f"{self.url}: {_message(response) or 'not allowed'} ({status})", hint=NOT_ALLOWED[status])
        if response.is_redirect:
            raise ConfigError(
                f"{self.url}: it sends us elsewhere ({status})", hint="use the address that it leads to; a token never follows"
            )
        if status in (404, 405):
            raise ConfigError(f"{self.url}: no Touchstone endpoint is here ({status})", hint=NOT_AN_ENDPOINT)
        return response

    def _given_up(self, response: httpx.Response | None, trouble: str, pause: float | None) -> ClusterError:
        if response is None:
            return ClusterError(f"{self.url}: cannot be reached: {trouble}", hint="is the endpoint up, and is this its URL?")
        if response.status_code in BUSY:
            when = f"it says: come back in {math.ceil(pause or 0)} s" if pause else "it stays busy"
            hint = "ask later, send less at once, or give the endpoint more replicas"
            return ClusterError(f"{self.url}: {_message(response) or 'too busy'} ({response.status_code}); {when}", hint=hint)
        return ClusterError(f"{self.url}: {trouble}, {self._policy.attempts} times", hint="is the endpoint up behind its proxy?")


def retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; None where it says nothing that can be understood."""
    if header is None:
        return None
    try:
        return max(float(header), 0.0) if math.isfinite(float(header)) else None
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def refusal(response: httpx.Response) -> dict[str, Any]:
    """The endpoint's error shape: {code, message, limit, observed, request_id}; of a proxy that answered in its place, the status."""
    try:
        body = response.json()
    except ValueError:
        body = None
    found = body if isinstance(body, dict) and isinstance(body.get("code"), str) else {}
    known: dict[str, Any] = {"code": f"http_{response.status_code}", "message": response.reason_phrase, "limit": None, "observed": None,
                             "request_id": response.headers.get("X-Request-Id")}  # fmt: skip
    return known | {key: found[key] for key in known if key in found}


def _message(response: httpx.Response) -> str:
    return str(refusal(response)["message"])
