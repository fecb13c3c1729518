"""Define the routes for scoring (`scoring_router`) and for monitoring (`operation_router`)."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response, Security
from fastapi.security import HTTPBearer

from ray_app.serving.config import ServeConfig
from ray_app.serving.http import errors, schemas
from ray_app.serving.http.uploads import read_images
from ray_app.serving.metrics import Meter
from ray_app.serving.pool import ImageQuery, ImageReply, WorkerPool
from ray_app.serving.refusal import Refusal

READY_TIMEOUT_S = 5.0

_IMAGE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": (
            "One image as the whole body, with any Content-Type, or a form with up to 16 files, all named `file`. "
            "A form with any other field is refused, since options are query parameters."
        ),
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 16,
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            },
            "image/*": _IMAGE,
            "application/octet-stream": _IMAGE,
        },
    }
}

Ensemble = Annotated[
    str | None,
    Query(max_length=200, description="the ensemble that decides; defaults to the first"),
]
Fpr = Annotated[
    float | None,
    Query(
        gt=0,
        lt=1,
        description="false-positive rate of an operating point in /v1/ensembles, whose thresholds decide",
    ),
]
Detectors = Annotated[
    Sequence[str],
    Query(
        alias="detector",
        max_length=16,
        description="optional detector that also scores the image; repeatable",
    ),
]
Masks = Annotated[
    bool, Query(description="whether the answer has the masks of detectors that localize")
]


def scoring_router(pool: WorkerPool, config: ServeConfig, *, token_needed: bool) -> APIRouter:
    """Return the routes `/v1/score`, `/v1/ensembles`, and `/v1/detectors`.

    Args:
        pool: The workers, which score images.
        config: The settings of the endpoint.
        token_needed: Whether requests need a token. If so, /openapi.json declares it.
    """
    # The middleware checks tokens (`auth.py`); this entry only declares them in /openapi.json.
    bearer = [Security(HTTPBearer(auto_error=False))] if token_needed else []
    router = APIRouter(prefix="/v1", tags=["score"], responses=errors.ERRORS, dependencies=bearer)
    limits = schemas.EndpointLimits(
        max_body_bytes=config.limits.max_body_bytes,
        max_files=config.limits.max_files,
        max_file_bytes=config.images.max_bytes,
        max_pixels=config.images.max_pixels,
        deadline_s=config.limits.deadline_s,
        formats=list(config.limits.formats),
    )

    @router.post(
        "/score",
        openapi_extra=_BODY,
        response_model=schemas.ImageAnswer | schemas.ImageAnswers,
        operation_id="score",
    )
    async def score(
        request: Request,
        ensemble: Ensemble = None,
        fpr: Fpr = None,
        detectors: Detectors = (),
        masks: Masks = False,
    ) -> Response:
        """Score one image, or up to 16 images in order.

        For one image, the answer is one object, or an error status if the image is refused. For
        several images, the answer has `results`, and each result has its own status.
        """
        images = await read_images(
            request, max_files=config.limits.max_files, max_file_bytes=config.images.max_bytes
        )
        query = ImageQuery(
            ensemble=ensemble,
            fpr=fpr,
            detectors=detectors,
            masks=masks,
            request_id=request.state.request_id,
            is_alone=len(images) == 1,
        )
        answers = [pool.answer(data, replace(query, name=name)) for name, data in images]
        return _respond(request, await _gather_or_cancel(answers))

    @router.get("/ensembles", operation_id="ensembles")
    async def ensembles() -> schemas.Ensembles:
        """Return the ensembles and detectors that a request may name, and the limits."""
        return schemas.Ensembles(
            ensembles=list(pool.served.ensembles),
            optional_detectors=list(pool.served.optional),
            limits=limits,
            token_needed=token_needed,
        )

    @router.get("/detectors", operation_id="detectors")
    async def all_detectors() -> schemas.Detectors:
        """Return the detectors of this endpoint, with their licences."""
        return schemas.Detectors(detectors=list(pool.served.detectors))

    return router


def operation_router(pool: WorkerPool, meter: Meter) -> APIRouter:
    """Return the routes `/healthz`, `/readyz`, and `/metrics`."""
    router = APIRouter(tags=["operation"], responses=errors.ERRORS)

    @router.get("/healthz", operation_id="healthz")
    async def healthz() -> schemas.Healthy:
        """Answer 200 if this process is running."""
        return schemas.Healthy(healthy=True)

    @router.get("/readyz", operation_id="readyz")
    async def readyz() -> schemas.Ready:
        """Answer 200 if the endpoint can score images, and otherwise 503.

        If no image was scored in the last seconds, a built-in test image is scored first.
        """
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await pool.require_ready()
        except TimeoutError:
            raise Refusal("not_ready") from None
        return schemas.Ready(ready=True, ensembles=pool.served.names)

    @router.get("/metrics", operation_id="metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the counters of this process for Prometheus."""
        return Response(meter.exposition(), media_type="text/plain; version=0.0.4")

    return router


async def _gather_or_cancel(answers: Sequence[Coroutine[Any, Any, ImageReply]]) -> list[ImageReply]:
    """Return the answers in order, and cancel all of them at the first exception.

    Then no image is scored for an answer that is refused.
    """
    tasks = [asyncio.ensure_future(answer) for answer in answers]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _respond(request: Request, replies: Sequence[ImageReply]) -> Response:
    """Return the answer for one image, or the answers for several in one object."""
    refusals = [reply for reply in replies if reply.status != 200]
    if refusals:
        request.state.refused = refusals[0].refused
        return Response(refusals[0].body, refusals[0].status, media_type="application/json")
    if len(replies) == 1:
        return Response(replies[0].body, media_type="application/json")
    results = b",".join(reply.body for reply in replies)
    return Response(b'{"results":[%b]}' % results, media_type="application/json")
