"""An endpoint as a Python object: files in, verdicts out, in order. Knows the API v1; needs neither torch nor Ray.

with EndpointClient("http://localhost:8000") as endpoint:
    for answer in endpoint.score(Path("photos").glob("*.jpg")):
        print(answer["name"], answer["verdict"], answer["probability"])
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ray_app.errors import ClusterError, ConfigError, Status
from ray_app.serving.asking import NOT_AN_ENDPOINT, PATIENCE, Asker, refusal
from ray_app.serving.http.schemas import EndpointLimits, Ensembles, ImageAnswer
from ray_app.storage import RetryPolicy, strip_secrets

Source = str | Path | tuple[str, bytes]
Result = dict[str, Any]
Query = dict[str, str | Sequence[str]]

PART_BYTES = 1024  # of a multipart body besides the file: boundary, headers and the longest name that is sent
NAME_CHARACTERS = 120
BETTER_APART = frozenset({400, 408, 413, 415, 422, 500, 504})  # what a request of several files may get, and each of them alone may not


@dataclass(frozen=True)
class _File:
    """One file: as the caller named it, and either its bytes or the result that it has already."""

    given: str
    data: bytes = b""
    result: Result | None = None

    @property
    def sent_name(self) -> str:
        return os.path.basename(self.given).encode("utf-8", "replace").decode()[-NAME_CHARACTERS:] or "image"


class EndpointClient:
    """Asks one endpoint, with as few requests as its limits allow. `timeout_s`: without a sign of life in one attempt.

    Refusals of the endpoint to work at all are errors: ConfigError (no such endpoint, token or ensemble), ClusterError (out of reach).
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 60.0, *, patience: RetryPolicy = PATIENCE) -> None:
        headers = {"Authorization": f"Bearer {_checked(token)}"} if token else {}
        self._http = httpx.Client(base_url=_base(url), headers=headers, timeout=timeout_s, follow_redirects=False)
        self._asker = Asker(self._http, patience)
        self._described: Ensembles | None = None

    def __enter__(self) -> "EndpointClient":
        return self

    def __exit__(self, *ending: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def describe(self) -> Ensembles:
        """What can be asked there, and within which limits; asked for once."""
        if self._described is None:
            response = self._asker.ask("GET", "v1/ensembles")
            try:
                self._described = Ensembles.model_validate_json(response.content)
            except ValueError:
                told = f"{self._asker.url}: what answers is no Touchstone endpoint ({response.status_code})"
                raise ConfigError(told, hint=NOT_AN_ENDPOINT) from None
        return self._described

    def score(
        self, images: Iterable[Source], ensemble: str | None = None, masks: bool = False, detectors: Sequence[str] = ()
    ) -> Iterator[Result]:
        """One result per file, in order: local paths, or (name, bytes). Keys as in `POST /v1/score`; `name` is as you gave it.

        `detectors`: optional ones to ask besides. A file that is refused, by the endpoint or because it cannot be read here, is a result:
        `status` and `error` say why. Files are read as they are sent. Raises ConfigError at once for what is not served there.
        """
        served = self.describe()
        self._refuse_unserved("ensemble", [ensemble] if ensemble else [], [one.name for one in served.ensembles])
        self._refuse_unserved("optional detector", detectors, served.optional_detectors)
        query: Query = {"ensemble": ensemble or "", "masks": "true" if masks else "", "detector": tuple(detectors)}
        return self._score(images, {key: value for key, value in query.items() if value})

    def _refuse_unserved(self, what: str, asked: Iterable[str], served: Sequence[str]) -> None:
        for name in asked:
            if name not in served:
                told = f"{self._asker.url}: no {what} {name!r} is served there"
                raise ConfigError(told, hint=f"it serves: {', '.join(served) or 'none'}")

    def _score(self, images: Iterable[Source], query: Query) -> Iterator[Result]:
        for group in self._groups(images):
            answers = self._ask([file for file in group if file.result is None], query)
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

    def _ask(self, files: Sequence[_File], query: Query) -> Iterator[Result]:
        """Ask for all at once; where that is refused, for each half, so that one file cannot spoil the others' answers."""
        if not files:
            return
        parts = [("file", (file.sent_name, file.data, "application/octet-stream")) for file in files]
        apart = BETTER_APART if len(files) > 1 else ()
        response = self._asker.ask("POST", "v1/score", settled=apart, params=query, files=parts)
        if response.status_code == 200:
            yield from self._understood(files, response)
        elif len(files) > 1:
            half = len(files) // 2
            yield from self._ask(files[:half], query)
            yield from self._ask(files[half:], query)
        else:
            yield _without_verdict(files[0], refusal(response))

    def _understood(self, files: Sequence[_File], response: httpx.Response) -> Iterator[Result]:
        try:
            body = response.json()
            results: list[Result] = body.get("results", [body])
            answers = [{**answer, "name": file.given} for file, answer in zip(files, results, strict=True)]
        except (ValueError, TypeError, AttributeError):
            told = f"{self._asker.url}: the answer to {len(files)} files cannot be understood"
            raise ClusterError(told, hint="does something between here and the endpoint change answers?") from None
        yield from answers


def _read(image: Source, limits: EndpointLimits) -> _File:
    if isinstance(image, tuple):
        name, data = image
        return _too_large(name, len(data), limits) or _File(name, data)
    name = str(image)
    try:
        facts = os.stat(image)
        if not stat.S_ISREG(facts.st_mode):  # a pipe would be waited for, a device never ends
            return _File(name, result=_without_verdict(_File(name), _error(Status.SOURCE_DENIED, "not a regular file")))
        return _too_large(name, facts.st_size, limits) or _File(name, Path(image).read_bytes())
    except OSError as error:
        status = Status.SOURCE_MISSING if isinstance(error, FileNotFoundError) else Status.SOURCE_DENIED
        return _File(name, result=_without_verdict(_File(name), _error(status, error.strerror or "cannot be read")))


def _too_large(name: str, size: int, limits: EndpointLimits) -> _File | None:
    """Not even read: the endpoint has said that it would refuse it."""
    if size <= limits.max_file_bytes:
        return None
    error = _error("file_too_large", "more bytes than one image may have", limits.max_file_bytes, size)
    return _File(name, result=_without_verdict(_File(name), error))


def _error(code: str, message: str, limit: int | None = None, observed: int | None = None) -> dict[str, Any]:
    return {"code": str(code), "message": message, "limit": limit, "observed": observed, "request_id": None}


def _without_verdict(file: _File, error: dict[str, Any]) -> Result:
    """A result with all keys of an answer: the file has no verdict, and this is why."""
    known = {"name": file.given, "status": error["code"], "error": error, "calibrated": False, "scores": {}, "detectors": {}}
    digest = hashlib.sha256(file.data).hexdigest() if file.data else None
    return dict.fromkeys(ImageAnswer.model_fields) | known | {"sha256": digest, "request_id": error["request_id"]}


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
        raise ConfigError("the token has characters that no token has", hint="one line of letters, digits and signs, no spaces")
    return token
