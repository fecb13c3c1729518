"""The whole HTTP side in one FastAPI application: guards, routes, page. What scores and what keeps jobs is handed in."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI

from ray_app import __version__
from ray_app.serving.config import ServeConfig
from ray_app.serving.http import guard
from ray_app.serving.http.job_routes import Jobs, job_router
from ray_app.serving.http.metering import Metering
from ray_app.serving.http.page_routes import page_router
from ray_app.serving.http.scoring_routes import operation_router, scoring_router
from ray_app.serving.metrics import Meter
from ray_app.serving.scorer import EndpointScorer

DESCRIPTION = """Tells which images were made or altered by a generative model.

A score is log-odds of fake; a verdict is `fake`, `real` (no evidence found) or `abstain`. Every answer names the ensemble that gave it by a
fingerprint: equal fingerprints give equal scores, here and in batch runs."""


def create_app(config: ServeConfig, scorer: EndpointScorer, jobs: Jobs, meter: Meter, *, echo_request_id: bool = True) -> FastAPI:
    """The application. `echo_request_id` as for `guard.install`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as closing:
            closing.callback(scorer.close)
            yield

    app = FastAPI(
        title="Touchstone",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    tokens = guard.install(app, config, echo_request_id=echo_request_id)
    app.add_middleware(Metering, meter=meter)
    app.include_router(scoring_router(scorer, config, meter, token_needed=tokens.configured))
    app.include_router(job_router(jobs, config))
    app.include_router(operation_router(scorer, meter))
    if config.page:
        app.include_router(page_router())
    return app
