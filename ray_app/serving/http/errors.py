"""Answer refusals and other errors in one JSON shape (`install_handlers`, `FaultMiddleware`)."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

from ray_app.errors import InputError, Status
from ray_app.serving.http.schemas import Error
from ray_app.serving.refusal import MESSAGES, Refusal

_log = logging.getLogger(__name__)
# The first code of each status.
_CODES = {status: code for code, (status, _) in reversed(MESSAGES.items())}
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_HEADERS = {
    401: {"WWW-Authenticate": "always `Bearer`"},
    405: {"Allow": "the methods of this URL"},
    429: {"Retry-After": "whole seconds after which a request is accepted"},
    503: {"Retry-After": "whole seconds after which a slot is likely to be free"},
}


def _document_status(status: int) -> dict[str, Any]:
    codes = {code: text for code, (code_status, text) in MESSAGES.items() if code_status == status}
    if status == 422:
        codes |= {
            str(image_status): image_status.meaning
            for image_status in Status
            if image_status not in (Status.OK, *codes)
        }
    headers = {"X-Request-Id": "the request id of the body"} | _HEADERS.get(status, {})
    return {
        "model": Error,
        "description": "; ".join(f"`{code}`: {text}" for code, text in codes.items()),
        "headers": {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in headers.items()
        },
    }


ERRORS: dict[int | str, dict[str, Any]] = {
    status: _document_status(status) for status in sorted({*_CODES, 422})
}
"""Every error status, for `responses=` of FastAPI. Since 422 is included, FastAPI does not document
its own shape for it.
"""


def respond(refusal: Refusal, request_id: str) -> Response:
    """Return the HTTP response to a refused request, with the refusal as JSON."""
    return JSONResponse(refusal.body(request_id), refusal.status, refusal.headers)


def get_request_id(scope: Scope) -> str:
    """Return the id of a request, for answers and logs.

    The middleware `Envelope` gives the id. Without this middleware, return "".
    """
    return str(scope.get("state", {}).get("request_id", ""))


async def refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with a refusal from a middleware.

    The code of the refusal is stored in `scope["state"]["refused"]` for the metrics.

    Args:
        refusal: The refusal.
        scope: The ASGI scope.
        receive: The ASGI receive function.
        send: The ASGI send function.
    """
    scope.setdefault("state", {})["refused"] = refusal.code
    await respond(refusal, get_request_id(scope))(scope, receive, send)


class Layer:
    """Base class of ASGI middleware. Subclasses override `handle` for HTTP requests.

    Lifespan events and WebSockets are passed to the inner application unchanged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the layer as an ASGI application."""
        await (self.handle if scope["type"] == "http" else self.app)(scope, receive, send)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request.

        Args:
            scope: The ASGI scope.
            receive: The ASGI receive function.
            send: The ASGI send function.
        """
        raise NotImplementedError


class FaultMiddleware(Layer):
    """Answer a request if the application raises an exception that no handler catches.

    `Refusal` and `InputError` are answered with their own status. Any other exception is a bug: the
    answer is 500 without details, and the exception is logged with the id of the request. If the
    answer has already started, the exception is raised again.
    """

    @override
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on. If it raises an exception, answer with that error."""
        has_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_started
            has_started = has_started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except ClientDisconnect:
            return
        except Exception as error:
            if has_started:
                raise
            refusal = to_refusal(error)
            if refusal.code == "internal_error":
                _log.exception("request %s failed", get_request_id(scope))
            await refuse(refusal, scope, receive, send)


def install_handlers(app: FastAPI) -> None:
    """Make a FastAPI application answer all errors in the same JSON form.

    Errors are refusals, refused images, unreadable requests, and unknown paths.
    """

    async def handle(request: Request, error: Exception) -> Response:
        refusal = to_refusal(error)
        if refusal.code == "method_not_allowed":
            refusal.headers["Allow"] = ", ".join(_find_methods(app, request.scope))
        request.scope.setdefault("state", {})["refused"] = refusal.code
        return respond(refusal, get_request_id(request.scope))

    for kind in (Refusal, InputError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)


def _find_methods(app: FastAPI, scope: Scope) -> list[str]:
    """Return the methods of an address.

    Each method may be a separate route. `HeadAsGet` answers HEAD wherever GET is answered.
    """
    scopes = [{**scope, "method": method} for method in _METHODS]
    methods = [
        candidate["method"]
        for candidate in scopes
        if any(route.matches(candidate)[0] is Match.FULL for route in app.router.routes)
    ]
    if "GET" in methods:
        methods.insert(methods.index("GET") + 1, "HEAD")
    return methods


def to_refusal(error: Exception) -> Refusal:
    """Return the refusal for an exception.

    An unexpected exception becomes `internal_error`, without details.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InputError):
        return Refusal.from_error(error)
    if isinstance(error, RequestValidationError):
        return Refusal("malformed_request", _describe_problems(error))
    if isinstance(error, HTTPException):
        code = _CODES.get(
            error.status_code, "malformed_request" if error.status_code < 500 else "internal_error"
        )
        return Refusal(code, headers=error.headers)
    return Refusal("internal_error")


def _describe_problems(error: RequestValidationError) -> str:
    """Return the first invalid field and its problem.

    A client may have chosen the names of fields, so they are cut.
    """
    problem, *others = error.errors()
    location = ".".join(str(part) for part in problem["loc"])[:60]
    more = f" (and {len(others)} more)" if others else ""
    return "".join(
        letter for letter in f"{location}: {problem['msg'][:100]}{more}" if letter.isprintable()
    )
