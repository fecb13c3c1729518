"""Puts every guard in front of an application, in their one order: what is cheap to ask is asked first. Knows the open addresses."""

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from ray_app.serving.config import ServeConfig
from ray_app.serving.http.access import AccessGuard, Paths, Tokens
from ray_app.serving.http.admission import Admission
from ray_app.serving.http.bodies import BodyLimit, Deadline
from ray_app.serving.http.headers import RequestIds, SecurityHeaders
from ray_app.serving.http.rates import RateLimit
from ray_app.serving.http.refusing import Faults, install_handlers

PAGE = ("/", "/page/*")
OPEN = (*PAGE, "/healthz", "/readyz", "/openapi.json")
# Probes and monitoring have to be answered most of all when every place is taken.
UNCOUNTED = (*OPEN, "/metrics")
# What waits for the detectors; everything else is answered, or waits for others' servers.
QUEUED = ("/v1/score",)
URL_BODY_BYTES = 16 * 1024  # JSON is parsed at once, in the event loop: an address needs no more


def install(app: FastAPI, config: ServeConfig, *, echo_request_id: bool = True) -> Tokens:
    """Guards an application; returns its tokens, which know whether one is needed.

    `echo_request_id` is off under Ray Serve, whose proxy puts X-Request-Id on every answer by itself.

    Raises ConfigError if a token is too short.
    """
    tokens = Tokens(config.access)
    install_handlers(app)
    for middleware in reversed(_middlewares(config, tokens, echo_request_id)):
        app.add_middleware(middleware.cls, *middleware.args, **middleware.kwargs)
    return tokens


def _middlewares(config: ServeConfig, tokens: Tokens, echo_request_id: bool) -> list[Middleware]:
    """From the outermost to the innermost."""
    limits, uncounted = config.limits, Paths(UNCOUNTED)
    bytes_by_path = {"": limits.max_body_bytes, "/v1/jobs": config.jobs.max_body_bytes, "/v1/score-url": URL_BODY_BYTES}
    return [
        Middleware(RequestIds, echo=echo_request_id),
        Middleware(SecurityHeaders, page=Paths(PAGE)),
        *_cross_origin(config.access.cors_origins),
        Middleware(Faults),
        Middleware(AccessGuard, tokens, Paths(OPEN)),
        *([Middleware(RateLimit, limits.requests_per_minute, uncounted=uncounted)] if limits.requests_per_minute else []),
        Middleware(Admission, limits.max_requests, longest_wait_s=limits.deadline_s / 2, queued=Paths(QUEUED), uncounted=uncounted),
        Middleware(Deadline, limits.deadline_s),
        Middleware(BodyLimit, bytes_by_path, limits.max_bytes_in_flight),
    ]


def _cross_origin(origins: tuple[str, ...]) -> list[Middleware]:
    """Around the guards, so that a page can read why it was refused; without origins there is none."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "Content-Type", "Idempotency-Key", "X-Request-Id"),
            expose_headers=("X-Request-Id", "Retry-After", "Location"),
        )
    ]
