"""An endpoint of the test's own making on a real socket: it answers as API v1 does, except where
its script says otherwise.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ray_app.ensembles import Thresholds, format_error_rates
from tests.serving.http.live import serving

Scripted = Callable[[], Response] | None


ERROR_RATES = format_error_rates("default", Thresholds())


def score_of(data: bytes) -> float:
    """What this endpoint says of a file: a number that only these bytes get."""
    return int.from_bytes(hashlib.sha256(data).digest()[:2], "big") / 4096 - 8


def answer_to(name: str | None, data: bytes) -> dict[str, Any]:
    """An ImageAnswer; a file that begins with `bad` is refused."""
    bad = data.startswith(b"bad")
    error = (
        {
            "code": "corrupt_image",
            "message": "it does not decode",
            "limit": None,
            "observed": None,
            "request_id": "r",
        }
        if bad
        else None
    )
    score = None if bad else score_of(data)
    return {
        "name": name, "status": "corrupt_image" if bad else "ok", "error": error,
        "finding": None if bad else "flagged by detectors", "grounds": [],
        "verdict": None if bad else "fake", "verdict_reason": None, "verdict_detail": None, "second_look": None, "profile": None,
        "error_rates": None if bad else ERROR_RATES, "probability": None if bad else 0.9, "calibrated": False,
        "score": score, "scores": {"tiny": score}, "detectors": {}, "sha256": hashlib.sha256(data).hexdigest(), "image": None,
        "ensemble": {"name": "default", "fingerprint": "f"}, "timings": {"decode": 0, "wait": 0, "score": 0, "total": 0}, "request_id": "r",
    }  # fmt: skip


def refuse(status: int, code: str = "overloaded", **headers: str) -> Scripted:
    """A refusal in the endpoint's error shape."""
    body = {
        "code": code,
        "message": f"said {code}",
        "limit": None,
        "observed": None,
        "request_id": "r",
    }
    return lambda: JSONResponse(
        body, status, headers={key.replace("_", "-"): value for key, value in headers.items()}
    )


class _Torn(Response):
    """Promises a body and does not send it, so that the server cuts the connection."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]}
        )
        await send({"type": "http.response.body", "body": b"{", "more_body": True})


TORN: Scripted = _Torn


@dataclass
class ScriptedEndpoint:
    """`script`: what the next requests to /v1/score get; None, or nothing left = the plain answer.
    `told`: what was asked, in order.
    """

    script: deque[Scripted] = field(default_factory=deque)
    told: list[dict[str, Any]] = field(default_factory=list)
    max_files: int = 4
    max_body_bytes: int = 100_000
    max_file_bytes: int = 50_000
    token: str | None = None
    refuses_together: Sequence[bytes] = ()
    describing: deque[Scripted] = field(default_factory=deque)

    def __enter__(self) -> "ScriptedEndpoint":
        routes = [
            Route("/v1/score", self._score, methods=["POST"]),
            Route("/v1/ensembles", self._ensembles),
        ]
        self._serving = serving(Starlette(routes=routes))
        self.port = self._serving.__enter__()
        return self

    def __exit__(self, *ending: Any) -> None:
        self._serving.__exit__(*ending)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _score(self, request: Request) -> Response:
        if request.headers["content-type"].startswith("multipart/form-data"):
            async with request.form() as form:
                files = [(file.filename, await file.read()) for file in form.getlist("file")]
        else:
            files = [(None, await request.body())]
        asked = {key: value for key, value in request.query_params.items() if key != "detector"}
        if detectors := request.query_params.getlist("detector"):
            asked["detector"] = detectors
        self.told.append(
            {"names": [name for name, _ in files], "query": asked, "client": request.client}
        )
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return refuse(401, "unauthorized")()
        if self.script and (scripted := self.script.popleft()):
            return scripted()
        if len(files) > 1 and any(data in self.refuses_together for _, data in files):
            return refuse(413, "file_too_large")()
        answers = [answer_to(name, data) for name, data in files]
        if len(answers) > 1:
            return JSONResponse({"results": answers})
        (answer,) = answers
        return JSONResponse(answer["error"], 422) if answer["error"] else JSONResponse(answer)

    async def _ensembles(self, request: Request) -> Response:
        if self.describing and (scripted := self.describing.popleft()):
            return scripted()
        one = {"title": "", "fingerprint": "f", "rule": "mean-logit", "detectors": ["tiny"], "calibrated": False, "fake_above": 0.0,
               "real_below": 0.0, "demonstration": True,
               "operating_points": [{"fpr": rate, "fingerprint": "g", "fake_above": 1.0, "real_below": 0.0,
                                     "false_positive_rate": 0.01, "recall": None} for rate in (0.01, 0.0123456789)]}  # fmt: skip
        limits = {"max_body_bytes": self.max_body_bytes, "max_files": self.max_files, "max_file_bytes": self.max_file_bytes,
                  "max_pixels": 10**6, "deadline_s": 30.0, "formats": ["JPEG"], "urls": False}  # fmt: skip
        body = {
            "ensembles": [
                {"name": "default", "default": True, **one},
                {"name": "published", "default": False, **one},
            ],
            "optional_detectors": ["slow", "slower"],
            "limits": limits,
            "token_needed": bool(self.token),
        }
        return JSONResponse(body)
