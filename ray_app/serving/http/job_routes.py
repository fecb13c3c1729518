"""The routes of jobs (`job_router`), over HTTP with images or with URLs."""

from collections.abc import Sequence
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ray_app.serving.config import ServeConfig
from ray_app.serving.http.errors import ERRORS, Refusal
from ray_app.serving.http.schemas import Job
from ray_app.serving.http.uploads import read_images
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
    ) -> Job:
        """See JobBook."""
        ...

    async def status(self, owner: str, job: str) -> Job:
        """See JobBook."""
        ...

    async def results(self, owner: str, job: str) -> bytes:
        """See JobBook."""
        ...

    async def cancel(self, owner: str, job: str) -> Job:
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
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=ERRORS)
    limits = config.jobs

    @router.post("", status_code=202, responses={202: _ACCEPTED}, openapi_extra=_body(limits.max_images), operation_id="submit_job")
    async def submit(request: Request, response: Response, owner: Owner, idempotency_key: Key = None) -> Job:
        """Hand in many images, scored a few at a time behind the interactive requests.

        They are kept in memory only, and dropped one by one as they are scored.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            upload = await read_images(request, max_files=limits.max_images, max_file_bytes=config.images.max_bytes)
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
            raise Refusal("malformed_request", "a job is multipart/form-data with parts named `file`, or application/json with `urls`")
        response.headers["Location"] = job.url
        return job

    @router.get("/{job}", operation_id="job_state")
    async def state(job: Id, owner: Owner) -> Job:
        """How far a job is. Jobs of others are not found."""
        return await jobs.status(owner, job)

    @router.get("/{job}/results", response_class=Response, responses={200: _RESULTS}, operation_id="job_results")
    async def results(job: Id, owner: Owner) -> Response:
        """The answers, as JSON lines; 409 until the job is done."""
        return Response(await jobs.results(owner, job), media_type="application/x-ndjson")

    @router.delete("/{job}", operation_id="delete_job")
    async def delete(job: Id, owner: Owner) -> Job:
        """Cancel an unfinished job, or forget one that has ended, with its results."""
        return await jobs.cancel(owner, job)

    return router


async def _read(request: Request, max_bytes: int) -> bytes:
    """A body of addresses: far smaller than one of images may be, and parsed in one go. Raises Refusal body_too_large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise Refusal("body_too_large", "more bytes than the addresses of one job may have", limit=max_bytes, observed=len(body))
    return bytes(body)


def _understood(model: type[Asked], said: bytes | dict[str, str]) -> Asked:
    """What a client said, in its model; what is wrong with it is told as for any other request."""
    try:
        return model.model_validate_json(said) if isinstance(said, bytes) else model.model_validate(said)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False, include_context=False)) from None
