"""The routes that score (`scoring_router`), of ensembles, health and readiness (`operation_router`), and of the game (`arena_router`)."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from ray_app.errors import InputError
from ray_app.serving import engine, url_fetch
from ray_app.serving.arena import Arena
from ray_app.serving.config import ServeConfig
from ray_app.serving.http import errors, responses, schemas, uploads
from ray_app.serving.metrics import Meter
from ray_app.storage.ssrf import MAX_URL

READY_TIMEOUT_S = 5.0
AT_ONCE = 8  # addresses fetched; what they bring is in no request's budget

_IMAGE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image as the whole body, whatever its Content-Type says, or a form with up to 16 files, all named `file`.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "array", "minItems": 1, "maxItems": 16, "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
            "image/*": _IMAGE,
            "application/octet-stream": _IMAGE,
        },
    }
}

Ensemble = Annotated[str | None, Query(max_length=200, description="which ensemble decides; the first one served if not given")]
Detectors = Annotated[Sequence[str], Query(alias="detector", max_length=16, description="optional detectors to ask besides; repeatable")]
Masks = Annotated[bool, Query(description="with masks, from the detectors that localize")]


class UrlRequest(BaseModel):
    """An image to be fetched."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=MAX_URL, examples=["https://example.org/photo.jpg"])
    ensemble: str | None = Field(default=None, max_length=200)
    detectors: list[str] = Field(default=[], max_length=16, description="optional detectors to ask besides")
    masks: bool = False


def scoring_router(scorer: engine.EndpointScorer, config: ServeConfig, meter: Meter, *, token_needed: bool) -> APIRouter:
    """`/v1/score`, `/v1/score-url`, `/v1/ensembles`, `/v1/detectors`."""
    router = APIRouter(prefix="/v1", tags=["score"], responses=errors.ERRORS)
    fetcher = url_fetch.GuardedFetcher(config.urls, config.images.max_bytes) if config.urls.enabled else None
    fetching = asyncio.Semaphore(AT_ONCE)

    @router.post("/score", openapi_extra=_BODY, response_model=schemas.ImageAnswer | schemas.ImageAnswers, operation_id="score")
    async def score(
        request: Request,
        ensemble: Ensemble = None,
        detectors: Detectors = (),
        masks: Masks = False,
    ) -> schemas.ImageAnswer | schemas.ImageAnswers:
        """Score one image, or up to 16 in order.

        One image gives one object, and a refused one an error status. Several give `results`, each with a status of its own.
        """
        images = await uploads.read_images(request, max_files=config.limits.max_files, max_file_bytes=config.images.max_bytes)
        request_id = request.state.request_id
        options: dict[str, Any] = {"ensemble": ensemble, "beside": detectors, "masks": masks, "request_id": request_id}
        if len(images) == 1:
            name, data = images[0]
            return await scorer.score(data, name=name, **options)
        return schemas.ImageAnswers(results=await engine.gather_or_cancel(_one(name, data, options) for name, data in images))

    async def _one(name: str | None, data: bytes, options: dict[str, Any]) -> schemas.ImageAnswer:
        try:
            return await scorer.score(data, name=name, **options)
        except (InputError, errors.Refusal) as refused:
            refusal = errors.as_refusal(refused)
            if not refusal.is_about_one_image:
                raise
            meter.refused(refusal.code)
            return responses.refused_answer(refused, name, data, await scorer.ensemble(options["ensemble"]), options["request_id"])

    @router.post("/score-url", operation_id="score_url")
    async def score_url(request: Request, wanted: UrlRequest) -> schemas.ImageAnswer:
        """Fetch one image by its https address and score it. Switched off unless the endpoint's config says otherwise."""
        if fetcher is None:
            raise errors.Refusal("forbidden", "fetching by URL is switched off")
        async with fetching:
            data = await fetcher.fetch(wanted.url)
        return await scorer.score(
            data, ensemble=wanted.ensemble, beside=wanted.detectors, masks=wanted.masks, request_id=request.state.request_id
        )

    @router.get("/ensembles", operation_id="ensembles")
    async def ensembles() -> schemas.Ensembles:
        """What can be asked, and within which limits."""
        served, optional = await scorer.ensembles()
        limits = schemas.EndpointLimits(
            max_body_bytes=config.limits.max_body_bytes,
            max_files=config.limits.max_files,
            max_file_bytes=config.images.max_bytes,
            max_pixels=config.images.max_pixels,
            deadline_s=config.limits.deadline_s,
            formats=list(config.limits.formats),
            urls=config.urls.enabled,
        )
        return schemas.Ensembles(ensembles=served, optional_detectors=optional, limits=limits, token_needed=token_needed)

    @router.get("/detectors", operation_id="detectors")
    async def all_detectors() -> schemas.Detectors:
        """The detectors behind this endpoint, with their licences."""
        return schemas.Detectors(detectors=await scorer.detectors())

    return router


def operation_router(scorer: engine.EndpointScorer, meter: Meter) -> APIRouter:
    """`/healthz`, `/readyz`, `/metrics`."""
    router = APIRouter(tags=["operation"], responses=errors.ERRORS)

    @router.get("/healthz", operation_id="healthz")
    async def healthz() -> schemas.Healthy:
        """Whether this process answers."""
        return schemas.Healthy(healthy=True)

    @router.get("/readyz", operation_id="readyz")
    async def readyz() -> schemas.Ready:
        """Whether weights are loaded and a golden image was scored; 503 until then."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                return schemas.Ready(ready=True, ensembles=await scorer.ready())
        except TimeoutError:
            raise errors.Refusal("not_ready", headers={"Retry-After": "2"}) from None

    @router.get("/metrics", operation_id="metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters of all replicas, for Prometheus."""
        return Response(await meter.exposition(), media_type="text/plain; version=0.0.4")

    return router


def arena_router(arena: Arena) -> APIRouter:
    """What the page of the arena asks for, and `/arena/labels`; no part of the versioned API."""
    router = APIRouter(prefix="/arena", include_in_schema=False)
    router.add_api_route("/round", arena.draw)
    router.add_api_route("/guesses/{name}", arena.guess, methods=["POST"])
    router.add_api_route("/standings", arena.standings)
    router.add_api_route("/labels", arena.labels, response_class=PlainTextResponse)

    @router.get("/pictures/{name}")
    async def shown(name: str) -> Response:
        return Response(await arena.show(name), media_type="image/jpeg")

    return router
