"""The web page: `/` and the listed files of `/page/`, from memory. Knows nothing of what the page asks of the endpoint."""

import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import NamedTuple

from fastapi import APIRouter, Request, Response

from ray_app.serving.http.errors import Refusal

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HOUSE_STYLE = "house.css"  # the reports' own sheet, so that page and reports cannot come to look different


class _Asset(NamedTuple):
    content: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, content: bytes, name: str) -> "_Asset":
        return cls(content, _TYPES[PurePosixPath(name).suffix], f'"{hashlib.sha256(content).hexdigest()[:20]}"')


def page_router() -> APIRouter:
    """Answers GET and HEAD of `/` and `/page/{name}`; an unchanged file with 304; any other name with Refusal not_found.

    The files are read once, here: a name is only ever looked up in that list, never made into a path.
    """
    assets = _assets()
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return _answer(request, assets["index.html"])

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def asset(request: Request, name: str) -> Response:
        if name not in assets:
            raise Refusal("not_found")
        return _answer(request, assets[name])

    return router


def _assets() -> dict[str, _Asset]:
    package = files("ray_app")
    listed: dict[str, Traversable] = {_HOUSE_STYLE: package / "reports" / "templates" / "page.css"}
    listed |= {file.name: file for file in (package / "serving" / "page").iterdir() if PurePosixPath(file.name).suffix in _TYPES}
    return {name: _Asset.of(file.read_bytes(), name) for name, file in listed.items()}


def _answer(request: Request, asset: _Asset) -> Response:
    """The file, to be asked about anew every time: after an update no old script meets a new endpoint."""
    headers = {"ETag": asset.etag, "Cache-Control": "no-cache"}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")]
    if asset.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
