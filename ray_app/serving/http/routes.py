"""The routes that score (`scoring_router`), and those of ensembles, health and readiness (`operation_router`).

The routes of jobs (`job_router`), over HTTP with images or with URLs.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ray_app.errors import InputError
from ray_app.serving import engine, url_fetch
from ray_app.serving.config import ServeConfig
from ray_app.serving.http import errors, responses, schemas, uploads
from ray_app.serving.metrics import Meter
from ray_app.storage.ssrf import MAX_URL

Asked = TypeVar("Asked", bound=BaseModel)
_ACCEPTED: dict[str, Any] = {
    "description": "The job is taken, or was taken before under this Idempotency-Key.",
    "headers": {"Location": {"description": "where to ask for its state", "schema": {"type": "string"}}},
}
_RESULTS: dict[str, Any] = {
    "description": "One ImageAnswer per line, in the order of the request; an image that was refused has its line too.",
    "content": {
        "application/x-ndjson": {
            "schema": {"type": "string"},
            "example": '{"name":"a.jpg","status":"ok","verdict":"fake","probability":0.985,"score":4.21}\n'
            '{"name":"b.png","status":"truncated_image","error":{"code":"truncated_image","message":"…"},"verdict":null}\n',
        }
    },
}
Id = Annotated[str, Path(max_length=64, description="the job's id", examples=["0f5c6d0e8b7a4a0f9d1b2c3e4f506172"])]
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


class JobService(Protocol):
    """What the routes ask of a JobBook, here or in another process."""

    async def submit(
        self,
        owner: str,
        images: Sequence[tuple[str | None, bytes]] | None = None,
        urls: Sequence[str] | None = None,
        *,
        ensemble: str | None = None,
        webhook: str | None = None,
        idempotency_key: str | None = None,
    ) -> schemas.Job:
        """See JobBook."""
        ...

    async def status(self, owner: str, job: str) -> schemas.Job:
        """See JobBook."""
        ...

    async def results(self, owner: str, job: str) -> bytes:
        """See JobBook."""
        ...

    async def cancel(self, owner: str, job: str) -> schemas.Job:
        """See JobBook."""
        ...


class UrlJob(BaseModel):
    """A job of images to be fetched."""

    model_config = ConfigDict(extra="forbid")

    urls: list[Annotated[str, Field(min_length=1, max_length=MAX_URL)]] = Field(
        min_length=1, description="https addresses, in the order of the results", examples=[["https://example.org/a.jpg"]]
    )
    ensemble: str | None = Field(default=None, max_length=200, description="which ensemble decides; the first one served if not given")
    webhook: str | None = Field(default=None, max_length=MAX_URL, description="https address that is told of the end, by a signed POST")


class JobOptions(BaseModel):
    """The text fields that a form may have besides its files."""

    model_config = ConfigDict(extra="forbid")

    ensemble: str | None = Field(default=None, max_length=200, description="which ensemble decides; the first one served if not given")
    webhook: str | None = Field(default=None, max_length=1024, description="https address that is told of the end, by a signed POST")


def _body(max_images: int) -> dict[str, Any]:
    files = {"type": "array", "minItems": 1, "maxItems": max_images, "items": {"type": "string", "format": "binary"}}
    urls = UrlJob.model_json_schema()
    urls["properties"]["urls"]["maxItems"] = max_images
    form = JobOptions.model_json_schema()
    form |= {"required": ["file"], "properties": {"file": files} | form["properties"]}
    example = {"urls": ["https://example.org/a.jpg", "https://example.org/b.png"], "webhook": "https://example.org/told"}
    content = {"multipart/form-data": {"schema": form}, "application/json": {"schema": urls, "example": example}}
    description = "Images as a form, all named `file`, or a list of addresses as JSON (where the endpoint fetches URLs)."
    return {"requestBody": {"required": True, "description": description, "content": content}}


def _owner(request: Request) -> str:
    """Who asks, as the access guard found. Without a guard in front nobody is anybody: that is a fault, not a default."""
    return str(request.state.owner)


Owner = Annotated[str, Depends(_owner)]


def job_router(jobs: JobService, config: ServeConfig) -> APIRouter:
    """`/v1/jobs`, `/v1/jobs/{id}`, `/v1/jobs/{id}/results`."""
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=errors.ERRORS)
    limits = config.jobs

    @router.post("", status_code=202, responses={202: _ACCEPTED}, openapi_extra=_body(limits.max_images), operation_id="submit_job")
    async def submit(request: Request, response: Response, owner: Owner, idempotency_key: Key = None) -> schemas.Job:
        """Hand in many images, scored a few at a time behind the interactive requests.

        They are kept in memory only, and dropped one by one as they are scored.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            upload = await uploads.read_images(request, max_files=limits.max_images, max_file_bytes=config.images.max_bytes)
            form = _understood(JobOptions, upload.fields)
            job = await jobs.submit(
                owner, upload.images, None, ensemble=form.ensemble, webhook=form.webhook, idempotency_key=idempotency_key
            )
        elif kind == "application/json":
            wanted = _understood(UrlJob, await _read(request, limits.max_images * (MAX_URL + 16) + 8192))
            job = await jobs.submit(
                owner, None, wanted.urls, ensemble=wanted.ensemble, webhook=wanted.webhook, idempotency_key=idempotency_key
            )
        else:
            raise errors.Refusal(
                "malformed_request", "a job is multipart/form-data with parts named `file`, or application/json with `urls`"
            )
        response.headers["Location"] = job.url
        return job

    @router.get("/{job}", operation_id="job_state")
    async def state(job: Id, owner: Owner) -> schemas.Job:
        """How far a job is. Jobs of others are not found."""
        return await jobs.status(owner, job)

    @router.get("/{job}/results", response_class=Response, responses={200: _RESULTS}, operation_id="job_results")
    async def results(job: Id, owner: Owner) -> Response:
        """The answers, as JSON lines; 409 until the job is done."""
        return Response(await jobs.results(owner, job), media_type="application/x-ndjson")

    @router.delete("/{job}", operation_id="delete_job")
    async def delete(job: Id, owner: Owner) -> schemas.Job:
        """Cancel an unfinished job, or forget one that has ended, with its results."""
        return await jobs.cancel(owner, job)

    return router


async def _read(request: Request, max_bytes: int) -> bytes:
    """A body of addresses: far smaller than one of images may be, and parsed in one go. Raises Refusal body_too_large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise errors.Refusal("body_too_large", "more bytes than the addresses of one job may have", limit=max_bytes, observed=len(body))
    return bytes(body)


def _understood(model: type[Asked], said: bytes | dict[str, str]) -> Asked:
    """What a client said, in its model; what is wrong with it is told as for any other request."""
    try:
        return model.model_validate_json(said) if isinstance(said, bytes) else model.model_validate(said)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False, include_context=False)) from None


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
