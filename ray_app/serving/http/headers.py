"""Headers that every answer carries: the request's id, and what a browser must not do with it. Knows no route but the page's."""

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_app.serving.http.access import Paths

_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def is_request_id(given: str) -> bool:
    """Whether a client's id of its request is kept: 8–64 of `A-Za-z0-9_-`."""
    return _ID.fullmatch(given) is not None


class RequestIds:
    """Gives every request an id: the client's own if `is_request_id`, else 16 hex digits.

    It stands in `scope["state"]["request_id"]` and, unless `echo` is off, on the answer. Ray Serve's proxy adds the header to
    every answer by itself, after handing the same id in: there `echo` has to be off, or it comes twice.
    """

    def __init__(self, app: ASGIApp, *, echo: bool = True) -> None:
        self.app, self.echo = app, echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if is_request_id(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        await self.app(scope, receive, _with_headers(send, {"X-Request-Id": request_id} if self.echo else {}))


class SecurityHeaders:
    """Tells browsers: no sniffing, framing, referrer or use by other sites; nothing of `/v1` is kept; the page uses its own files only."""

    def __init__(self, app: ASGIApp, *, page: Paths) -> None:
        self.app, self.page = app, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        headers = _ALWAYS | {"Content-Security-Policy": _PAGE_POLICY if self.page.has(path) else _DATA_POLICY}
        if path.startswith("/v1"):
            headers["Cache-Control"] = "no-store"
        await self.app(scope, receive, _with_headers(send, headers))


def _with_headers(send: Send, headers: dict[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return sending
