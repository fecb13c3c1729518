"""The whole HTTP side in one FastAPI application: `create_app` puts routes, page, guards, headers
and metering together.

Guards come in one order (`install`): what is cheap to check is checked first. Around the guards are
two layers that keep the rules of HTTP for all answers, also for those of the guards:
`semantics.LingeringClose` and `semantics.HeadAsGet`.
"""

import hashlib
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import NamedTuple

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_app.serving import metrics
from ray_app.serving.config import ServeConfig
from ray_app.serving.http import auth, errors, routes, schemas
from ray_app.serving.http.limits import Backpressure, BodyLimit, Deadline, RateLimit
from ray_app.serving.http.semantics import HeadAsGet, LingeringClose
from ray_app.serving.pool import WorkerPool
from ray_app.serving.refusal import Refusal

DESCRIPTION = """Tells which images were made or altered by a generative model.

A score is log-odds of fake; a verdict is `fake`, `real` (no evidence found) or `abstain`. Every answer names the ensemble that gave it by a
fingerprint: equal fingerprints give equal scores, here and in batch runs. HEAD is answered wherever GET is."""
PAGE = ("/", "/page/*")
OPEN = (*PAGE, "/healthz", "/readyz", "/openapi.json")
# Probes and monitoring have to be answered most of all when every place is taken.
UNCOUNTED = (*OPEN, "/metrics")
# Requests that wait for the detectors.
QUEUED = ("/v1/score",)
ABANDONED = 499  # the client left before an answer began; as nginx counts it
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
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# the reports' own sheet, so that page and reports cannot come to look different
_HOUSE_STYLE = "house.css"


def create_app(
    config: ServeConfig,
    pool: WorkerPool,
    meter: metrics.Meter,
    *,
    echo_request_id: bool = True,
) -> FastAPI:
    """The application, whose lifespan is that of the pool. `echo_request_id` as for `install`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with pool.running():
            yield

    app = FastAPI(
        title="Touchstone",
        version=schemas.API_VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        # The Location would be absolute, and `http` behind a proxy that ends TLS.
        redirect_slashes=False,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    tokens = install(app, config, meter, echo_request_id=echo_request_id)
    app.include_router(routes.scoring_router(pool, config, token_needed=tokens.configured))
    app.include_router(routes.operation_router(pool, meter))
    if config.page:
        app.include_router(page_router())
    return app


def install(
    app: FastAPI,
    config: ServeConfig,
    meter: metrics.Meter | None = None,
    *,
    echo_request_id: bool = True,
) -> auth.BearerTokens:
    """Guards an application, from the outermost layer to the innermost; returns its tokens, which
    know whether one is needed.

    `meter` counts requests and refusals; `echo_request_id`: see `Envelope`. Raises ConfigError if a
    token is too short.
    """
    limits, uncounted, origins = config.limits, auth.Paths(UNCOUNTED), config.access.cors_origins
    tokens = auth.BearerTokens(config.access)
    # Around the guards, so that a page can read why it was refused.
    cross_origin = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "Content-Type", "X-Request-Id"),
        expose_headers=("X-Request-Id", "Retry-After"),
    )
    body_limit = Middleware(BodyLimit, limits.max_body_bytes, limits.max_bytes_in_flight)
    backpressure = Middleware(
        Backpressure,
        limits.max_requests,
        max_wait_s=limits.deadline_s / 2,
        counted=auth.Paths(QUEUED),
    )
    lingering_close = Middleware(
        LingeringClose,
        deadline_s=limits.deadline_s,
        # A body of twice the limit is sent to its end, and its client reads the 413.
        max_bytes=2 * limits.max_body_bytes,
        max_lingering=2 * limits.max_requests,
    )
    layers = [
        lingering_close,
        Middleware(HeadAsGet),
        Middleware(Envelope, page=auth.Paths(PAGE), meter=meter, echo=echo_request_id),
        *([cross_origin] if origins else []),
        Middleware(errors.FaultMiddleware),
        Middleware(auth.AccessGuard, tokens, auth.Paths(OPEN)),
        *(
            [Middleware(RateLimit, limits.requests_per_minute, uncounted=uncounted)]
            if limits.requests_per_minute
            else []
        ),
        body_limit,
        backpressure,
        Middleware(Deadline, limits.deadline_s),
    ]
    errors.install_handlers(app)
    for layer in reversed(layers):
        app.add_middleware(layer.cls, *layer.args, **layer.kwargs)
    return tokens


def is_request_id(given: str) -> bool:
    """Whether a client's id of its request is kept: 8–64 of `A-Za-z0-9_-`."""
    return _ID.fullmatch(given) is not None


class Envelope(errors.Layer):
    """Give a request its id, and its answer the headers that all answers have. Count both, also
    what guards refuse.

    The id is the client's own if `is_request_id`, else 16 hex digits; it stands in
    `scope["state"]["request_id"]` and, with `echo`, on the answer. Ray Serve's proxy adds the
    header to every answer by itself, after handing the same id in: there `echo` has to be off, or
    it comes twice. Browsers are told: no sniffing, framing, referrer or use by other sites; nothing
    of `/v1` is kept; the page uses its own files only.
    """

    def __init__(
        self, app: ASGIApp, *, page: auth.Paths, meter: metrics.Meter | None, echo: bool
    ) -> None:
        super().__init__(app)
        self.page, self.meter, self.echo = page, meter, echo

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its id, and its answer with the headers."""
        given, path = Headers(scope=scope).get("x-request-id", ""), scope["path"]
        request_id = given if is_request_id(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        headers = _ALWAYS | {
            "Content-Security-Policy": _PAGE_POLICY if self.page.has(path) else _DATA_POLICY
        }
        headers |= {"X-Request-Id": request_id} if self.echo else {}
        headers |= {"Cache-Control": "no-store"} if path.startswith("/v1") else {}
        started, status = time.perf_counter(), ABANDONED

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(headers)
            await send(message)

        try:
            await self.app(scope, receive, watched)
            if status == ABANDONED:
                # Granian reports a body with malformed chunks as a client that has left.
                refusal = Refusal("malformed_request", "the body cannot be read")
                await errors.respond(refusal, request_id)(scope, receive, send)
        finally:
            if self.meter is not None:
                # A template, never a path: every value of a label is a series for ever.
                self.meter.request(
                    getattr(scope.get("route"), "path", "other"),
                    status,
                    time.perf_counter() - started,
                )
                if refused := scope["state"].get("refused"):
                    self.meter.refused(refused)


class _Asset(NamedTuple):
    content: bytes
    media_type: str
    etag: str


def page_router() -> APIRouter:
    """Answer GET of `/` and `/page/{name}`; an unchanged file with 304; any other name with Refusal
    not_found.

    The files are read once, here: a name is only ever looked up in that list, never made into a
    path.
    """
    package = files("ray_app")
    listed: dict[str, Traversable] = {_HOUSE_STYLE: package / "reports" / "templates" / "page.css"}
    listed |= {
        file.name: file
        for file in (package / "serving" / "page").iterdir()
        if PurePosixPath(file.name).suffix in _TYPES
    }
    assets = {}
    for name, file in listed.items():
        content = file.read_bytes()
        assets[name] = _Asset(
            content,
            _TYPES[PurePosixPath(name).suffix],
            f'"{hashlib.sha256(content).hexdigest()[:20]}"',
        )
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page(request: Request) -> Response:
        return _answer(request, assets["index.html"])

    @router.get("/page/{name}")
    async def asset(request: Request, name: str) -> Response:
        if name not in assets:
            raise Refusal("not_found")
        return _answer(request, assets[name])

    return router


def _answer(request: Request, asset: _Asset) -> Response:
    """The file, to be revalidated every time: after an update no old script meets a new endpoint."""
    headers = {"ETag": asset.etag, "Cache-Control": "no-cache"}
    known = [
        tag.strip().removeprefix("W/")
        for tag in request.headers.get("If-None-Match", "").split(",")
    ]
    if asset.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
