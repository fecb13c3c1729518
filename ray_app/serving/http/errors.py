"""Refusals and all other errors as answers of one JSON shape (`install_handlers`,
`FaultMiddleware`).
"""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_app.errors import InputError, Status
from ray_app.serving.http.schemas import Error
from ray_app.serving.refusal import MESSAGES, Refusal

_log = logging.getLogger(__name__)
# the first code of each status
_CODES = {status: code for code, (status, _) in reversed(MESSAGES.items())}
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_HEADERS = {
    401: {"WWW-Authenticate": "always `Bearer`"},
    405: {"Allow": "the methods that this address knows"},
    429: {"Retry-After": "whole seconds after which a request is let in"},
    503: {"Retry-After": "whole seconds after which a place is likely to be free"},
}


def _documented(status: int) -> dict[str, Any]:
    codes = {code: text for code, (given, text) in MESSAGES.items() if given == status}
    if status == 422:
        codes |= {str(one): one.meaning for one in Status if one not in (Status.OK, *codes)}
    headers = {"X-Request-Id": "the same as in the body"} | _HEADERS.get(status, {})
    return {
        "model": Error,
        "description": "; ".join(f"`{code}`: {text}" for code, text in codes.items()),
        "headers": {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in headers.items()
        },
    }


ERRORS: dict[int | str, dict[str, Any]] = {
    status: _documented(status) for status in sorted({*_CODES, 422})
}
"""Every status that is not a success, for `responses=` of FastAPI: with 422 among them it does not
document its own shape.
"""


def respond(refusal: Refusal, request_id: str) -> Response:
    """The answer to a refused request."""
    return JSONResponse(refusal.body(request_id), refusal.status, refusal.headers)


def request_id_of(scope: Scope) -> str:
    """What `Envelope` gave this request, or nothing where it does not stand in front."""
    return str(scope.get("state", {}).get("request_id", ""))


async def refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer from a middleware, and leave the code in `scope["state"]["refused"]` for the metrics."""
    scope.setdefault("state", {})["refused"] = refusal.code
    await respond(refusal, request_id_of(scope))(scope, receive, send)


class Layer:
    """What stands around an application and handles its HTTP requests; all else passes through."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        await (self.handle if scope["type"] == "http" else self.app)(scope, receive, send)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request."""
        raise NotImplementedError


class FaultMiddleware(Layer):
    """Answers 500 to whatever nobody caught, logs it with the request's id, and says nothing of it
    to the client.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and see how that ends."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:
            return
        except Exception as error:
            if begun:
                raise
            refusal = as_refusal(error)
            if refusal.code == "internal_error":
                _log.exception("request %s failed", request_id_of(scope))
            await refuse(refusal, scope, receive, send)


def install_handlers(app: FastAPI) -> None:
    """Makes a FastAPI application answer refusals, refused images, unreadable requests and unknown
    addresses in the one shape.
    """

    async def handle(request: Request, error: Exception) -> Response:
        refusal = as_refusal(error)
        if refusal.code == "method_not_allowed":
            refusal.headers["Allow"] = ", ".join(_find_methods(app, request.scope))
        request.scope.setdefault("state", {})["refused"] = refusal.code
        return respond(refusal, request_id_of(request.scope))

    for kind in (Refusal, InputError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)


def _find_methods(app: FastAPI, scope: Scope) -> list[str]:
    """Find the methods of an address. Each method may be a route of its own, and `HeadAsGet`
    answers HEAD wherever GET is answered.
    """
    scopes = [{**scope, "method": method} for method in _METHODS]
    known = [
        candidate["method"]
        for candidate in scopes
        if any(route.matches(candidate)[0] is Match.FULL for route in app.router.routes)
    ]
    if "GET" in known:
        known.insert(known.index("GET") + 1, "HEAD")
    return known


def as_refusal(error: Exception) -> Refusal:
    """The refusal that an exception stands for; `internal_error`, and not a word more, for one that
    nobody foresaw.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InputError):
        return Refusal.of(error)
    if isinstance(error, RequestValidationError):
        return Refusal("malformed_request", _problems(error))
    if isinstance(error, HTTPException):
        code = _CODES.get(
            error.status_code, "malformed_request" if error.status_code < 500 else "internal_error"
        )
        return Refusal(code, headers=error.headers)
    return Refusal("internal_error")


def _problems(error: RequestValidationError) -> str:
    """The first field that is wrong, and how. Names of fields can be the client's own words, so
    they are cut.
    """
    problem, *others = error.errors()
    where = ".".join(str(part) for part in problem["loc"])[:60]
    more = f" (and {len(others)} more)" if others else ""
    return "".join(
        letter for letter in f"{where}: {problem['msg'][:100]}{more}" if letter.isprintable()
    )
