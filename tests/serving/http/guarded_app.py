"""A small application behind all guards."""

import asyncio

from fastapi import FastAPI, Request

from ray_app.errors import InputError, Status
from ray_app.serving.config import ServeConfig
from ray_app.serving.http.app import install
from ray_app.serving.http.errors import ERRORS
from ray_app.serving.http.uploads import read_images
from ray_app.serving.refusal import Refusal

TOKEN = "a-token-0123456789"


def with_limits(**limits) -> ServeConfig:
    return ServeConfig.model_validate({"limits": limits})


def make_app(config: ServeConfig, **how) -> FastAPI:
    app = FastAPI(responses=ERRORS, docs_url=None, redoc_url=None)
    app.state.began = app.state.cancelled = app.state.ended = 0

    @app.post("/v1/score")
    async def score(
        request: Request, size: int = 0, masks: bool = False, is_slow: bool = False
    ) -> dict:
        if is_slow:
            await slow(request)
        limits = config.limits
        images = await read_images(
            request, max_files=limits.max_files, max_file_bytes=config.images.max_bytes
        )
        return {"sizes": [len(data) for _, data in images], "names": [name for name, _ in images]}

    @app.get("/v1/slow", operation_id="slow_get")
    @app.post("/v1/slow", operation_id="slow_post")
    async def slow(request: Request) -> str:
        app.state.began += 1
        try:
            await request.body()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            app.state.cancelled += 1
            raise
        finally:
            app.state.ended += 1
        return "never"

    @app.get("/v1/fault/{kind}")
    async def fault(kind: str) -> None:
        raise {
            "bug": RuntimeError("/etc/secret on host-7"),
            "image": InputError(Status.IMAGE_TOO_LARGE, "too many pixels", limit=50, observed=100),
            "foreign": InputError(Status.UNSUPPORTED_FORMAT, "no image"),
            "refusal": Refusal("not_ready", headers={"Retry-After": "3"}),
        }[kind]

    @app.get("/")
    @app.get("/healthz")
    async def healthz() -> str:
        return "well"

    install(app, config, **how)
    return app
