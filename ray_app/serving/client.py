"""Score images with an endpoint from Python (`EndpointClient`), without torch and Ray.

An endpoint is the scoring server of `touchstone serve`.

with EndpointClient("http://localhost:8000") as endpoint:
    for answer in endpoint.score(Path("photos").glob("*.jpg")):
        print(answer["name"], answer["verdict"], answer["probability"])
"""

import hashlib
import logging
import math
import os
import random
import stat
import time
import urllib.request
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from ray_app.ensembles import check_rate
from ray_app.errors import ClusterError, ConfigError, InputError, Status, describe_error
from ray_app.serving.http.schemas import EndpointLimits, Ensembles, ImageAnswer
from ray_app.storage import RetryPolicy, errors, strip_secrets
from ray_app.storage.urls import is_loopback

Source = str | Path | tuple[str, bytes | InputError]
Result = dict[str, Any]
Query = dict[str, str | Sequence[str]]
# Bytes of a part of a multipart body in addition to the file: boundary, headers, and name.
PART_BYTES = 1024
NAME_CHARACTERS = 120  # The name of a file is cut to this length.
_log = logging.getLogger(__name__)

# A request of several files may get these statuses although each file alone would not.
SPLIT_STATUSES = frozenset({400, 408, 413, 415, 422, 500, 504})
RETRIES = RetryPolicy(attempts=6, base_s=0.25, cap_s=8.0, deadline_s=300.0)
NOTICED_S = 1.0  # A longer pause is announced, so that a person knows why nothing happens.
BUSY = frozenset({429, 503})
BROKEN = frozenset({500, 502, 504})
NOT_ALLOWED = {
    401: "pass --token-file FILE or set TOUCHSTONE_TOKEN; in Python, pass EndpointClient(url, token=…)",
    403: "use a token and a machine that the endpoint accepts",
}
NOT_AN_ENDPOINT = "pass the URL of the endpoint without /v1, for example http://localhost:8000"


@dataclass(frozen=True)
class _File:
    """One file, with its bytes, or with a known result if the file is not sent.

    `caller_name` is the name or path as the caller passed it.
    """

    caller_name: str
    data: bytes = b""
    result: Result | None = None

    @property
    def sent_name(self) -> str:
        return (
            os.path.basename(self.caller_name)
            .encode("utf-8", "replace")
            .decode()[-NAME_CHARACTERS:]
            or "image"
        )


class EndpointClient:
    """Score images with one endpoint, in as few requests as its limits allow.

    An endpoint is the scoring server of `touchstone serve`.

    A request to a busy endpoint (429, 503) is retried after the time that the endpoint requests. A
    request to a broken endpoint (500, 502, 504, no connection) is retried after a growing, random
    pause. If the endpoint refuses a request of several files, each half is sent again. Thus one file
    cannot prevent the answers for the others. Methods raise ConfigError if the endpoint refuses the
    token or does not serve what you request. They raise ClusterError if the endpoint stays
    unreachable or busy.

    Args:
        url: The URL of the endpoint, without /v1.
        token: A bearer token. None sends no token.
        timeout_s: Seconds without any data after which an attempt fails.
        patience: The rules for retries. `deadline_s` limits the time of a request with all its
            attempts.

    Raises:
        ConfigError: The URL is not an HTTP URL, or the token has invalid characters.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout_s: float = 60.0,
        *,
        patience: RetryPolicy = RETRIES,
    ) -> None:
        headers = {"Authorization": f"Bearer {_validate_token(token)}"} if token else {}
        parsed = _parse_url(url)
        self._proxy = _find_proxy(parsed)
        self._open_connections = partial(
            httpx.Client,
            base_url=parsed,
            headers=headers,
            timeout=timeout_s,
            follow_redirects=False,
            mounts={f"{parsed.scheme}://": None} if self._proxy is None else None,
        )
        self._http, self._pid = self._open_connections(), os.getpid()
        self._url, self._retries = strip_secrets(str(self._http.base_url)).rstrip("/"), patience
        self._description: Ensembles | None = None

    def __enter__(self) -> "EndpointClient":
        return self

    def __exit__(self, *ending: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def describe(self) -> Ensembles:
        """Return the ensembles, optional detectors, and limits of the endpoint.

        An optional detector scores only if a request names it. The first call fetches the answer,
        and later calls return the same object.

        Returns:
            The answer of `GET /v1/ensembles`.

        Raises:
            ConfigError: The URL is not that of an endpoint, or the endpoint refuses the token.
            ClusterError: The endpoint is unreachable or stays busy.
        """
        if self._description is None:
            response = self._send_request("GET", "v1/ensembles")
            try:
                self._description = Ensembles.model_validate_json(response.content)
            except ValueError:
                text = f"{self._url}: the server there is not a Touchstone endpoint (status {response.status_code})"
                raise ConfigError(text, hint=NOT_AN_ENDPOINT) from None
        return self._description

    def score(
        self,
        images: Iterable[Source],
        ensemble: str | None = None,
        masks: bool = False,
        detectors: Sequence[str] = (),
        fpr: float | None = None,
    ) -> Iterator[Result]:
        """Score images, and yield one result per image in the same order.

        A result has the keys of an answer of `POST /v1/score`. Its `name` is the name or path that
        you passed. Files are read when they are sent. If the endpoint refuses a file, or the file
        cannot be read on this machine, `status` and `error` of the result have the reason.

        Args:
            images: Local paths, (name, bytes), or (name, InputError) of a file that cannot be read.
            ensemble: The name of an ensemble of the endpoint. Defaults to the first ensemble.
            masks: Whether to request masks of altered pixels.
            detectors: Names of optional detectors of the endpoint that also score the images.
            fpr: Decide with the thresholds that the ensemble has for this false-positive rate, such
                as 0.05. Defaults to its main thresholds.

        Returns:
            An iterator over the results.

        Raises:
            ConfigError: The endpoint does not serve the ensemble or a detector, or the ensemble has
                no thresholds for `fpr`, or `fpr` is not a fraction. This is raised before an image
                is read.
            ClusterError: The endpoint is unreachable or stays busy. This is raised by the call, or
                while you iterate over the results.
        """
        served = self.describe()
        self._refuse_unserved(
            "ensemble", [ensemble] if ensemble else [], [info.name for info in served.ensembles]
        )
        self._refuse_unserved("optional detector", detectors, served.optional_detectors)
        if fpr is not None:
            check_rate(fpr)
            selected = next(info for info in served.ensembles if ensemble in (None, info.name))
            rates = [point.fpr for point in selected.operating_points]
            fpr = next((rate for rate in rates if math.isclose(rate, fpr)), fpr)
            self._refuse_unserved(
                "operating point with fpr", [str(fpr)], [str(rate) for rate in rates]
            )
        query: Query = {
            "ensemble": ensemble or "",
            "fpr": "" if fpr is None else str(fpr),
            "masks": "true" if masks else "",
            "detector": tuple(detectors),
        }
        return self._score(images, {key: value for key, value in query.items() if value})

    def _refuse_unserved(self, kind: str, requested: Iterable[str], served: Sequence[str]) -> None:
        for name in requested:
            if name not in served:
                text = f"{self._url}: no {kind} {name!r} is served there"
                raise ConfigError(
                    text, hint=f"choose from what it serves: {', '.join(served) or 'none'}"
                )

    def _score(self, images: Iterable[Source], query: Query) -> Iterator[Result]:
        for group in self._group_files(images):
            answers = self._request([file for file in group if file.result is None], query)
            for file in group:
                yield file.result or next(answers)

    def _group_files(self, images: Iterable[Source]) -> Iterator[list[_File]]:
        """Yield groups of consecutive files that one request may carry."""
        limits = self.describe().limits
        group: list[_File] = []
        group_bytes = 0
        for file in (_read_file(image, limits) for image in images):
            added_bytes = len(file.data) + PART_BYTES
            if group and (
                len(group) >= limits.max_files or group_bytes + added_bytes > limits.max_body_bytes
            ):
                yield group
                group, group_bytes = [], 0
            group.append(file)
            group_bytes += added_bytes
        if group:
            yield group

    def _request(self, files: Sequence[_File], query: Query) -> Iterator[Result]:
        """Request answers for files in one request.

        If that is refused, request each half, so that one file cannot cost the answers of the
        others.
        """
        if not files:
            return
        parts = [
            ("file", (file.sent_name, file.data, "application/octet-stream")) for file in files
        ]
        split_statuses = SPLIT_STATUSES if len(files) > 1 else ()
        response = self._send_request(
            "POST", "v1/score", no_retry_statuses=split_statuses, params=query, files=parts
        )
        if response.status_code == 200:
            yield from self._results(files, response)
        elif len(files) > 1:
            half = len(files) // 2
            yield from self._request(files[:half], query)
            yield from self._request(files[half:], query)
        else:
            yield _make_unscored(files[0], parse_refusal(response))

    def _results(self, files: Sequence[_File], response: httpx.Response) -> Iterator[Result]:
        try:
            body = response.json()
            results: list[Result] = body.get("results", [body])
            answers = [
                {**answer, "name": file.caller_name}
                for file, answer in zip(files, results, strict=True)
            ]
        except (ValueError, TypeError, AttributeError):
            text = f"{self._url}: the answer to {len(files)} files is invalid"
            raise ClusterError(
                text, hint="check whether a proxy in front of the endpoint changes answers"
            ) from None
        yield from answers

    def _send_request(
        self, method: str, path: str, *, no_retry_statuses: Collection[int] = (), **request: Any
    ) -> httpx.Response:
        """Send a request, retry it, and return the response.

        `no_retry_statuses` are returned without a retry, 500 and 504 after all attempts. Raises
        ConfigError if the endpoint does not allow the request, and ClusterError if it stays
        unreachable or busy.
        """
        deadline = time.monotonic() + self._retries.deadline_s
        pauses = self._retries.pauses(random.random)
        while True:
            response, problem = self._attempt(method, path, request)
            if response is not None and (
                response.status_code in no_retry_statuses
                or response.status_code not in BUSY | BROKEN
            ):
                return self._require_allowed(response)
            pause = self._get_pause(response, pauses)
            if pause is None or time.monotonic() + pause > deadline:
                if response is not None and response.status_code in (500, 504):
                    return response
                raise self._make_final_error(response, problem, pause)
            if pause >= NOTICED_S:
                _log.warning("%s: %s; next attempt in %.0f s", self._url, problem, pause)
            time.sleep(pause)

    def _attempt(
        self, method: str, path: str, request: dict[str, Any]
    ) -> tuple[httpx.Response | None, str]:
        if self._pid != os.getpid():
            # A forked process would receive answers to its parent on the parent's connections.
            self._http, self._pid = self._open_connections(), os.getpid()
        try:
            response = self._http.request(method, path, **request)
        except httpx.RequestError as error:
            return None, "nothing listens there" if "refused" in str(
                error
            ).lower() else describe_error(error)
        return response, f"answered {response.status_code}"

    def _get_pause(self, response: httpx.Response | None, pauses: Iterator[float]) -> float | None:
        """Return the seconds until the next attempt, or None if there is none."""
        if response is None or response.status_code not in BUSY:
            return next(pauses, None)
        wait_s = parse_retry_after(response.headers.get("Retry-After"))
        if wait_s is None:
            return random.random() * self._retries.cap_s
        # All clients get the same time. A random addition spreads their next attempts.
        return wait_s + random.random() * min(max(wait_s, self._retries.base_s), 1.0)

    def _require_allowed(self, response: httpx.Response) -> httpx.Response:
        status = response.status_code
        if status in NOT_ALLOWED:
            raise ConfigError(
                f"{self._url}: {_get_message(response) or 'not allowed'} ({status})",
                hint=NOT_ALLOWED[status],
            )
        if response.is_redirect:
            raise ConfigError(
                f"{self._url}: the endpoint redirects to another address (status {status})",
                hint="pass that address as the URL, because a token is not sent to the target of a redirect",
            )
        if status in (404, 405):
            raise ConfigError(
                f"{self._url}: there is no Touchstone endpoint at this URL (status {status})",
                hint=NOT_AN_ENDPOINT,
            )
        return response

    def _make_final_error(
        self, response: httpx.Response | None, problem: str, pause: float | None
    ) -> ClusterError:
        via = direct = ""
        if self._proxy is not None:
            via = f" through the proxy {self._proxy}"
            direct = f"; set NO_PROXY={self._http.base_url.host} to reach it without the proxy"
        if response is None:
            text = f"{self._url}: the endpoint cannot be reached{via}: {problem}"
            return ClusterError(
                text,
                hint=f"check the URL and that the endpoint runs; `touchstone serve` starts one on this machine{direct}",
            )
        if response.status_code in BUSY:
            wait = (
                f"it asks to come back in {math.ceil(pause or 0)} s" if pause else "it stays busy"
            )
            hint = "try later, send fewer files at a time, or give the endpoint more replicas"
            return ClusterError(
                f"{self._url}: {_get_message(response) or 'too busy'} ({response.status_code}){via}; {wait}",
                hint=f"{hint}{direct}",
            )
        return ClusterError(
            f"{self._url}: {problem}{via}, {self._retries.attempts} times",
            hint=f"check that the endpoint runs behind its proxy{direct}",
        )


def _read_file(image: Source, limits: EndpointLimits) -> _File:
    if isinstance(image, tuple):
        name, data = image
        if isinstance(data, InputError):
            return _File(
                name, result=_make_unscored(_File(name), _make_error(data.status, data.detail))
            )
        return _reject_large(name, len(data), limits) or _File(name, data)
    name = str(image)
    try:
        facts = os.stat(image)
        if not stat.S_ISREG(facts.st_mode):  # Reading a pipe blocks, and a device never ends.
            return _File(
                name,
                result=_make_unscored(
                    _File(name), _make_error(Status.SOURCE_DENIED, "not a regular file")
                ),
            )
        return _reject_large(name, facts.st_size, limits) or _File(name, Path(image).read_bytes())
    except OSError as error:
        status = errors.translate(error, name).status
        return _File(
            name,
            result=_make_unscored(
                _File(name), _make_error(status, error.strerror or "cannot be read")
            ),
        )


def _reject_large(name: str, size: int, limits: EndpointLimits) -> _File | None:
    """Return a result for a file over the limit that the endpoint states, else None.

    Such a file is not read.
    """
    if size <= limits.max_file_bytes:
        return None
    error = _make_error(
        "file_too_large", "more bytes than one image may have", limits.max_file_bytes, size
    )
    return _File(name, result=_make_unscored(_File(name), error))


def _make_error(
    code: str, message: str, limit: int | None = None, observed: int | None = None
) -> dict[str, Any]:
    return {
        "code": str(code),
        "message": message,
        "limit": limit,
        "observed": observed,
        "request_id": None,
    }


def _make_unscored(file: _File, error: dict[str, Any]) -> Result:
    """Return a result with all keys of an answer for a file without a verdict."""
    fields = {
        "name": file.caller_name,
        "status": error["code"],
        "error": error,
        "calibrated": False,
        "scores": {},
        "detectors": {},
    }
    digest = hashlib.sha256(file.data).hexdigest() if file.data else None
    return (
        dict.fromkeys(ImageAnswer.model_fields)
        | fields
        | {"sha256": digest, "request_id": error["request_id"]}
    )


def _parse_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"{strip_secrets(url)}: not the URL of an endpoint", hint=NOT_AN_ENDPOINT)
    return parsed


def _find_proxy(url: httpx.URL) -> str | None:
    """Return the proxy that the environment sets for a URL, without its password.

    An address of this machine is asked directly, because no proxy can reach it.
    """
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    is_local = url.host == "localhost" or is_loopback(url.host)
    if not proxy or is_local or urllib.request.proxy_bypass(url.netloc.decode()):
        return None
    return strip_secrets(proxy if "://" in proxy else f"http://{proxy}")


def _validate_token(token: str) -> str:
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            "the token has characters that a token cannot have",
            hint="use one line of letters, digits, and punctuation, without spaces",
        )
    return token


def parse_retry_after(header: str | None) -> float | None:
    """Return the seconds to wait from a Retry-After header, which is a number of seconds or a date.

    Return None if the header is missing or invalid.
    """
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


def parse_refusal(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON with which an endpoint refused a request.

    Its keys are `code`, `message`, `limit`, `observed`, and `request_id`. If a proxy answered
    instead of the endpoint, the code is derived from the HTTP status.
    """
    try:
        body = response.json()
    except ValueError:
        body = None
    error = body if isinstance(body, dict) and isinstance(body.get("code"), str) else {}
    defaults: dict[str, Any] = {"code": f"http_{response.status_code}", "message": response.reason_phrase, "limit": None, "observed": None,
                             "request_id": response.headers.get("X-Request-Id")}  # fmt: skip
    return defaults | {key: error[key] for key in defaults if key in error}


def _get_message(response: httpx.Response) -> str:
    return str(parse_refusal(response)["message"])
