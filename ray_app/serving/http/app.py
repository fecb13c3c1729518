"""Build the FastAPI application of an endpoint, which is a scoring server (`create_app`).

The application has the routes of the API, the web page, and middleware. Guards are middleware that
refuse requests, for example without a token. `install` defines their order, with the cheapest
checks first. Outside the guards, `semantics.LingeringClose` and `semantics.HeadAsGet` apply rules
of HTTP to all answers, including the answers of guards.
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
from typing_extensions import override

from ray_app.serving import metrics
from ray_app.serving.config import ServeConfig
from ray_app.serving.http import auth, errors, routes, schemas
from ray_app.serving.http.limits import Backpressure, BodyLimit, Deadline, RateLimit
from ray_app.serving.http.semantics import HeadAsGet, LingeringClose
from ray_app.serving.pool import WorkerPool
from ray_app.serving.refusal import Refusal

DESCRIPTION = """Find images that a generative model created or altered.

A score is log-odds of fake. A verdict is `fake`, `real` (no evidence found), or `abstain`. Every answer has the fingerprint of its ensemble.
Equal fingerprints give equal scores, here and in batch runs. HEAD is answered wherever GET is."""
PAGE = ("/", "/page/*")
OPEN = (*PAGE, "/healthz", "/readyz", "/openapi.json")
# Probes and monitoring must be answered in particular when all slots are taken.
UNCOUNTED = (*OPEN, "/metrics")
# Requests that wait for the detectors.
QUEUED = ("/v1/score",)
ABANDONED = 499  # The client left before the answer started. nginx uses the same status.
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
# The style sheet of the reports, so that the page and the reports look the same.
_SHARED_STYLE = "house.css"


def create_app(
    config: ServeConfig,
    pool: WorkerPool,
    meter: metrics.Meter,
    *,
    echo_request_id: bool = True,
) -> FastAPI:
    """Return the FastAPI application of an endpoint. Its lifespan runs the worker pool.

    Args:
        config: The settings of the endpoint.
        pool: The workers, which score images.
        meter: Counts requests and refusals.
        echo_request_id: Whether answers have the id of their request in the header X-Request-Id. It
            must be False behind Ray Serve's proxy, which adds this header itself.

    Returns:
        The application.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with pool.running():
            yield

    app = FastAPI(
        title="Touchstone",
        version=schemas.API_VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # These pages load scripts from other sites.
        redoc_url=None,
        # The Location would be absolute, with `http` behind a proxy that terminates TLS.
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
    """Add all middleware of an endpoint to an application.

    The middleware checks tokens and limits, adds headers, and formats errors. `create_app` calls
    this function.

    Args:
        app: The application.
        config: The settings of the endpoint.
        meter: Counts requests and refusals. None does not count.
        echo_request_id: Whether answers have the id of their request in the header X-Request-Id. It
            must be False behind Ray Serve's proxy, which adds this header itself.

    Returns:
        The bearer tokens that the endpoint accepts.

    Raises:
        ConfigError: A token is too short.
    """
    limits, uncounted, origins = config.limits, auth.Paths(UNCOUNTED), config.access.cors_origins
    tokens = auth.BearerTokens(config.access)
    # CORS is outside the guards, so that a page can read the reason for a refusal.
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
        # Up to twice the limit, a body is read to its end, so that its client reads the 413.
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


def is_request_id(client_id: str) -> bool:
    """Return whether a request id from a client is valid: 8–64 characters of `A-Za-z0-9_-`."""
    return _ID.fullmatch(client_id) is not None


class Envelope(errors.Layer):
    """Give each request an id, add the common headers to each answer, and count requests.

    This also applies to requests that other middleware refuses. If the client sent a valid id (see
    `is_request_id`), that id is used, and otherwise 16 random hex digits. The id is in
    `scope["state"]["request_id"]`. The headers forbid browsers sniffing, framing, referrers, and
    use by other sites. Answers of `/v1` are not cached, and the web page (`/`) may load only its
    own files.

    Args:
        app: The application inside this layer.
        page: The paths of the web page and its files.
        meter: Counts requests and refusals. None does not count.
        echo: Whether to add the header with the id to the answer. It must be False behind Ray Serve's
            proxy, which sends the id with the request, and adds the header to every answer itself.
    """

    def __init__(
        self, app: ASGIApp, *, page: auth.Paths, meter: metrics.Meter | None, echo: bool
    ) -> None:
        super().__init__(app)
        self.page, self.meter, self.echo = page, meter, echo

    @override
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with an id, and add the common headers to its answer."""
        client_id, path = Headers(scope=scope).get("x-request-id", ""), scope["path"]
        request_id = client_id if is_request_id(client_id) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        headers = _ALWAYS | {
            "Content-Security-Policy": _PAGE_POLICY if self.page.has(path) else _DATA_POLICY
        }
        headers |= {"X-Request-Id": request_id} if self.echo else {}
        headers |= {"Cache-Control": "no-store"} if path.startswith("/v1") else {}
        started, status = time.perf_counter(), ABANDONED

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(headers)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
            if status == ABANDONED:
                # Granian reports a body with malformed chunks as a disconnect of the client.
                refusal = Refusal("malformed_request", "the body cannot be read")
                await errors.respond(refusal, request_id)(scope, receive, send)
        finally:
            if self.meter is not None:
                # Use the template, never the path, since each value of a label creates a permanent
                # series.
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
    """Return the routes of the web page: `/` and `/page/{name}`.

    If the client already has the current file, the answer is 304. An unknown name raises Refusal
    `not_found`. All files are read once, by this function. A name is only looked up among them, and
    never used as a path.
    """
    package = files("ray_app")
    page_files: dict[str, Traversable] = {
        _SHARED_STYLE: package / "reports" / "templates" / "page.css"
    }
    page_files |= {
        file.name: file
        for file in (package / "serving" / "page").iterdir()
        if PurePosixPath(file.name).suffix in _TYPES
    }
    assets = {}
    for name, file in page_files.items():
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
    """Return a file that the client must revalidate each time.

    Otherwise an old script could meet a new endpoint after an update.
    """
    headers = {"ETag": asset.etag, "Cache-Control": "no-cache"}
    etags = [
        tag.strip().removeprefix("W/")
        for tag in request.headers.get("If-None-Match", "").split(",")
    ]
    if asset.etag in etags or "*" in etags:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
