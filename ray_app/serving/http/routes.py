"""The routes that score (`scoring_router`), and those of ensembles, health and readiness (`operation_router`).

The routes of jobs (`job_router`).
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ray_app.errors import InputError
from ray_app.serving import engine, url_fetch
from ray_app.serving.config import ServeConfig
from ray_app.serving.http import errors, responses, schemas, uploads
from ray_app.serving.jobs import RayJobs
from ray_app.serving.metrics import Meter
from ray_app.storage.ssrf import MAX_URL

_SUBMITTED: dict[str, Any] = {
    "description": "The job is submitted, or was submitted before under this Idempotency-Key.",
    "headers": {"Location": {"description": "where its state can be read", "schema": {"type": "string"}}},
}
_RESULTS: dict[str, Any] = {
    "description": "One row of the run per line; a file that was refused has its line too.",
    "content": {
        "application/x-ndjson": {
            "schema": {"type": "string"},
            "example": '{"uri":"s3://bucket/inbox/a.jpg","status":"ok","verdict":"fake","probability":0.985,"score":4.21}\n'
            '{"uri":"s3://bucket/inbox/b.png","status":"truncated_image","detail":"…","verdict":null}\n',
        }
    },
}
NO_WEBHOOKS = "webhooks were removed in 0.13: use GET /v1/jobs/{id}, or Ray's job API; a run that has ended has summary.json"
Id = Annotated[str, Path(max_length=64, description="the job's id", examples=["touchstone-0f5c6d0e8b7a4a0f9d1b2c3e4f506172"])]
Key = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=128,
        pattern=r"^[\x20-\x7e]+$",
        description="makes asking again safe: the same key with the same content is the same job; with other content, a conflict",
        examples=["nightly-2031-05-04"],
    ),
]


def _body(max_uris: int) -> dict[str, Any]:
    schema = schemas.JobRequest.model_json_schema()
    schema["properties"]["uris"]["anyOf"][0]["maxItems"] = max_uris
    examples = {"prefix": {"value": {"prefix": "s3://bucket/inbox/may/"}}, "uris": {"value": {"uris": ["s3://bucket/inbox/a.jpg"]}}}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}}


def _owner(request: Request) -> str:
    """Who asks, as the access guard found. Without a guard in front nobody is anybody: that is a fault, not a default."""
    return str(request.state.owner)


Owner = Annotated[str, Depends(_owner)]


def job_router(jobs: RayJobs, config: ServeConfig) -> APIRouter:
    """`/v1/jobs`, `/v1/jobs/{id}`, `/v1/jobs/{id}/results`."""
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=errors.ERRORS)

    @router.post("", status_code=202, responses={202: _SUBMITTED}, openapi_extra=_body(config.jobs.max_uris), operation_id="submit_job")
    async def submit(request: Request, response: Response, owner: Owner, idempotency_key: Key = None) -> schemas.Job:
        """Have files scored as a run on the endpoint's cluster, with the operator's limits.

        Only where the endpoint is deployed on a cluster and its operator has named a directory for runs; 501 says why not.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise errors.Refusal("malformed_request", "a job is application/json, with `uris` or a `prefix`; images go to /v1/score")
        job = await jobs.submit(owner, _understood(await request.body()), idempotency_key)
        response.headers["Location"] = job.job.address
        return job

    @router.get("/{job}", operation_id="job_state")
    async def state(job: Id, owner: Owner) -> schemas.Job:
        """How far a job is. Jobs of others are not found."""
        return await jobs.status(owner, job)

    @router.get("/{job}/results", response_class=Response, responses={200: _RESULTS}, operation_id="job_results")
    async def results(job: Id, owner: Owner) -> Response:
        """The rows, as JSON lines; 409 until all of them are there, or where they are more than one answer has."""
        return Response(await jobs.results(owner, job), media_type="application/x-ndjson")

    @router.delete("/{job}", operation_id="stop_job")
    async def stop(job: Id, owner: Owner) -> schemas.Job:
        """Stop a job. What it has scored stays in its run."""
        return await jobs.stop(owner, job)

    return router


def _understood(said: bytes) -> schemas.JobRequest:
    """Raises Refusal for fields that are not known, RequestValidationError, as for any other request, for all else."""
    try:
        return schemas.JobRequest.model_validate_json(said)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        unknown = [str(one["loc"][0]) for one in found if one["type"] == "extra_forbidden"]
        if "webhook" in unknown:
            raise errors.Refusal("gone", NO_WEBHOOKS) from None
        if unknown:
            name = "".join(letter for letter in unknown[0][:60] if letter.isprintable())
            raise errors.Refusal("unknown_field", f"{name}: known are {', '.join(schemas.JobRequest.model_fields)}") from None
        raise RequestValidationError(found) from None


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
        upload = await uploads.read_images(request, max_files=config.limits.max_files, max_file_bytes=config.images.max_bytes)
        request_id = request.state.request_id
        options: dict[str, Any] = {"ensemble": ensemble, "beside": detectors, "masks": masks, "request_id": request_id}
        if len(upload.images) == 1:
            name, data = upload.images[0]
            return await scorer.score(data, name=name, **options)
        return schemas.ImageAnswers(results=await engine.gather_or_cancel(_one(name, data, options) for name, data in upload.images))

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
