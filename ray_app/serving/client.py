"""An endpoint as a Python object: files in, verdicts out, in order. Needs neither torch nor Ray.

with EndpointClient("http://localhost:8000") as endpoint:
    for answer in endpoint.score(Path("photos").glob("*.jpg")):
        print(answer["name"], answer["verdict"], answer["probability"])
"""

import hashlib
import math
import os
import random
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from ray_app.ensembles import check_rate
from ray_app.errors import ClusterError, ConfigError, InputError, Status, describe_error
from ray_app.serving.http.schemas import EndpointLimits, Ensembles, ImageAnswer
from ray_app.storage import RetryPolicy, errors, strip_secrets

Source = str | Path | tuple[str, bytes | InputError]
Result = dict[str, Any]
Query = dict[str, str | Sequence[str]]
# of a multipart body besides the file: boundary, headers and the longest name that is sent
PART_BYTES = 1024
NAME_CHARACTERS = 120
# what a request of several files may get, and each of them alone may not
BETTER_APART = frozenset({400, 408, 413, 415, 422, 500, 504})
PATIENCE = RetryPolicy(attempts=6, base_s=0.25, cap_s=8.0, deadline_s=300.0)
BUSY = frozenset({429, 503})
BROKEN = frozenset({500, 502, 504})
NOT_ALLOWED = {
    401: "give --token-file FILE or set TOUCHSTONE_TOKEN; in Python, EndpointClient(url, token=…)",
    403: "this token, or this machine, is not allowed to use that endpoint",
}
NOT_AN_ENDPOINT = "give the URL of the endpoint without /v1, for example http://localhost:8000"


@dataclass(frozen=True)
class _File:
    """One file: as the caller named it, and either its bytes or the result that it has already."""

    given: str
    data: bytes = b""
    result: Result | None = None

    @property
    def sent_name(self) -> str:
        return (
            os.path.basename(self.given).encode("utf-8", "replace").decode()[-NAME_CHARACTERS:]
            or "image"
        )


class EndpointClient:
    """Asks one endpoint, with as few requests as its limits allow. `timeout_s`: without a sign of
    life in one attempt.

    A busy endpoint (429, 503) is tried again when it says; a broken one (500, 502, 504, no
    connection) after a growing, random pause. `patience.deadline_s` bounds one request with all its
    attempts.

    Refusals of the endpoint to work at all are errors: ConfigError (no such endpoint, token or
    ensemble), ClusterError (out of reach).
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout_s: float = 60.0,
        *,
        patience: RetryPolicy = PATIENCE,
    ) -> None:
        headers = {"Authorization": f"Bearer {_checked(token)}"} if token else {}
        self._http = httpx.Client(
            base_url=_base(url), headers=headers, timeout=timeout_s, follow_redirects=False
        )
        self._url, self._patience = strip_secrets(str(self._http.base_url)).rstrip("/"), patience
        self._described: Ensembles | None = None

    def __enter__(self) -> "EndpointClient":
        return self

    def __exit__(self, *ending: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def describe(self) -> Ensembles:
        """What can be requested there, and within which limits; fetched once."""
        if self._described is None:
            response = self._ask("GET", "v1/ensembles")
            try:
                self._described = Ensembles.model_validate_json(response.content)
            except ValueError:
                text = f"{self._url}: what answers there is not a Touchstone endpoint ({response.status_code})"
                raise ConfigError(text, hint=NOT_AN_ENDPOINT) from None
        return self._described

    def score(
        self,
        images: Iterable[Source],
        ensemble: str | None = None,
        masks: bool = False,
        detectors: Sequence[str] = (),
        fpr: float | None = None,
    ) -> Iterator[Result]:
        """Yield one result per image, in the order of the images. Keys as in `POST /v1/score`;
        `name` is as you gave it.

        Files are read as they are sent. A file that is refused, by the endpoint or because it
        cannot be read here, is a result: `status` and `error` show why.

        Args:
            images: Local paths, (name, bytes), or (name, InputError) of a file that cannot be read.
            ensemble: One that is served there. Defaults to the first.
            masks: Whether to ask for masks.
            detectors: Optional detectors to ask in addition.
            fpr: The false-positive rate of an operating point of the ensemble. Defaults to the
                thresholds of its card.

        Raises:
            ConfigError: The ensemble, a detector, or the operating point is not served there, or
                `fpr` is not a fraction. Raised at once.
        """
        served = self.describe()
        self._refuse_unserved(
            "ensemble", [ensemble] if ensemble else [], [one.name for one in served.ensembles]
        )
        self._refuse_unserved("optional detector", detectors, served.optional_detectors)
        if fpr is not None:
            check_rate(fpr)
            chosen = next(one for one in served.ensembles if ensemble in (None, one.name))
            rates = [f"{point.fpr:g}" for point in chosen.operating_points]
            self._refuse_unserved("operating point with fpr", [f"{fpr:g}"], rates)
        query: Query = {
            "ensemble": ensemble or "",
            "fpr": "" if fpr is None else f"{fpr:g}",
            "masks": "true" if masks else "",
            "detector": tuple(detectors),
        }
        return self._score(images, {key: value for key, value in query.items() if value})

    def _refuse_unserved(self, what: str, requested: Iterable[str], served: Sequence[str]) -> None:
        for name in requested:
            if name not in served:
                text = f"{self._url}: no {what} {name!r} is served there"
                raise ConfigError(text, hint=f"it serves: {', '.join(served) or 'none'}")

    def _score(self, images: Iterable[Source], query: Query) -> Iterator[Result]:
        for group in self._groups(images):
            answers = self._request([file for file in group if file.result is None], query)
            for file in group:
                yield file.result or next(answers)

    def _groups(self, images: Iterable[Source]) -> Iterator[list[_File]]:
        """Runs of files that one request may carry."""
        limits = self.describe().limits
        group: list[_File] = []
        size = 0
        for file in (_read(image, limits) for image in images):
            adds = len(file.data) + PART_BYTES
            if group and (len(group) >= limits.max_files or size + adds > limits.max_body_bytes):
                yield group
                group, size = [], 0
            group.append(file)
            size += adds
        if group:
            yield group

    def _request(self, files: Sequence[_File], query: Query) -> Iterator[Result]:
        """Request all at once; where that is refused, for each half, so that one file cannot spoil
        the others' answers.
        """
        if not files:
            return
        parts = [
            ("file", (file.sent_name, file.data, "application/octet-stream")) for file in files
        ]
        apart = BETTER_APART if len(files) > 1 else ()
        response = self._ask("POST", "v1/score", settled=apart, params=query, files=parts)
        if response.status_code == 200:
            yield from self._results(files, response)
        elif len(files) > 1:
            half = len(files) // 2
            yield from self._request(files[:half], query)
            yield from self._request(files[half:], query)
        else:
            yield _without_verdict(files[0], refusal(response))

    def _results(self, files: Sequence[_File], response: httpx.Response) -> Iterator[Result]:
        try:
            body = response.json()
            results: list[Result] = body.get("results", [body])
            answers = [
                {**answer, "name": file.given} for file, answer in zip(files, results, strict=True)
            ]
        except (ValueError, TypeError, AttributeError):
            text = f"{self._url}: the answer to {len(files)} files cannot be understood"
            raise ClusterError(
                text, hint="check whether a proxy between here and the endpoint changes answers"
            ) from None
        yield from answers

    def _ask(
        self, method: str, path: str, *, settled: Collection[int] = (), **request: Any
    ) -> httpx.Response:
        """The response; a status in `settled` is handed on at once, 500 and 504 once the attempts
        are used up.

        Raises ConfigError where this endpoint does not let us ask, ClusterError where it is out of
        reach or stays busy.
        """
        deadline = time.monotonic() + self._patience.deadline_s
        pauses = self._patience.pauses(random.random)
        while True:
            response, trouble = self._attempt(method, path, request)
            if response is not None and (
                response.status_code in settled or response.status_code not in BUSY | BROKEN
            ):
                return self._allowed(response)
            pause = self._pause(response, pauses)
            if pause is None or time.monotonic() + pause > deadline:
                if response is not None and response.status_code in (500, 504):
                    return response
                raise self._final_error(response, trouble, pause)
            time.sleep(pause)

    def _attempt(
        self, method: str, path: str, request: dict[str, Any]
    ) -> tuple[httpx.Response | None, str]:
        try:
            response = self._http.request(method, path, **request)
        except httpx.RequestError as error:
            return None, "nothing listens there" if "refused" in str(
                error
            ).lower() else describe_error(error)
        return response, f"answered {response.status_code}"

    def _pause(self, response: httpx.Response | None, pauses: Iterator[float]) -> float | None:
        """Seconds until the next attempt; None = there is none."""
        if response is None or response.status_code not in BUSY:
            return next(pauses, None)
        wait_s = retry_after(response.headers.get("Retry-After"))
        if wait_s is None:
            return random.random() * self._patience.cap_s
        # Everybody got the same second: a random part on top, so that not all come back at once.
        return wait_s + random.random() * min(max(wait_s, self._patience.base_s), 1.0)

    def _allowed(self, response: httpx.Response) -> httpx.Response:
        status = response.status_code
        if status in NOT_ALLOWED:
            raise ConfigError(
                f"{self._url}: {_message(response) or 'not allowed'} ({status})",
                hint=NOT_ALLOWED[status],
            )
        if response.is_redirect:
            raise ConfigError(
                f"{self._url}: it redirects to another address ({status})",
                hint="use the address that it leads to; a token is never sent on",
            )
        if status in (404, 405):
            raise ConfigError(
                f"{self._url}: there is no Touchstone endpoint at this address ({status})",
                hint=NOT_AN_ENDPOINT,
            )
        return response

    def _final_error(
        self, response: httpx.Response | None, trouble: str, pause: float | None
    ) -> ClusterError:
        if response is None:
            text = f"{self._url}: the endpoint cannot be reached: {trouble}"
            return ClusterError(
                text,
                hint="is this its URL, and does it run? `touchstone serve` starts one on this machine",
            )
        if response.status_code in BUSY:
            when = (
                f"it asks to come back in {math.ceil(pause or 0)} s" if pause else "it stays busy"
            )
            hint = "try later, send less at once, or give the endpoint more replicas"
            return ClusterError(
                f"{self._url}: {_message(response) or 'too busy'} ({response.status_code}); {when}",
                hint=hint,
            )
        return ClusterError(
            f"{self._url}: {trouble}, {self._patience.attempts} times",
            hint="check that the endpoint runs behind its proxy",
        )


def _read(image: Source, limits: EndpointLimits) -> _File:
    if isinstance(image, tuple):
        name, data = image
        if isinstance(data, InputError):
            return _File(
                name, result=_without_verdict(_File(name), _error(data.status, data.detail))
            )
        return _too_large(name, len(data), limits) or _File(name, data)
    name = str(image)
    try:
        facts = os.stat(image)
        if not stat.S_ISREG(facts.st_mode):  # a pipe would be waited for, a device never ends
            return _File(
                name,
                result=_without_verdict(
                    _File(name), _error(Status.SOURCE_DENIED, "not a regular file")
                ),
            )
        return _too_large(name, facts.st_size, limits) or _File(name, Path(image).read_bytes())
    except OSError as error:
        status = errors.translate(error, name).status
        return _File(
            name,
            result=_without_verdict(
                _File(name), _error(status, error.strerror or "cannot be read")
            ),
        )


def _too_large(name: str, size: int, limits: EndpointLimits) -> _File | None:
    """Not even read: the endpoint has stated that it would refuse it."""
    if size <= limits.max_file_bytes:
        return None
    error = _error(
        "file_too_large", "more bytes than one image may have", limits.max_file_bytes, size
    )
    return _File(name, result=_without_verdict(_File(name), error))


def _error(
    code: str, message: str, limit: int | None = None, observed: int | None = None
) -> dict[str, Any]:
    return {
        "code": str(code),
        "message": message,
        "limit": limit,
        "observed": observed,
        "request_id": None,
    }


def _without_verdict(file: _File, error: dict[str, Any]) -> Result:
    """A result with all keys of an answer: the file has no verdict, and this is why."""
    known = {
        "name": file.given,
        "status": error["code"],
        "error": error,
        "calibrated": False,
        "scores": {},
        "detectors": {},
    }
    digest = hashlib.sha256(file.data).hexdigest() if file.data else None
    return (
        dict.fromkeys(ImageAnswer.model_fields)
        | known
        | {"sha256": digest, "request_id": error["request_id"]}
    )


def _base(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"{strip_secrets(url)}: not the URL of an endpoint", hint=NOT_AN_ENDPOINT)
    return url


def _checked(token: str) -> str:
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            "the token has characters that a token cannot have",
            hint="it is one line of letters, digits and signs, without spaces",
        )
    return token


def retry_after(header: str | None) -> float | None:
    """Seconds of a Retry-After header, given as seconds or as a date; None where it says nothing
    that can be understood.
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


def refusal(response: httpx.Response) -> dict[str, Any]:
    """The endpoint's error shape: {code, message, limit, observed, request_id}; of a proxy that
    answered in its place, the status.
    """
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
