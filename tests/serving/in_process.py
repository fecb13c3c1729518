"""The engine and the application of an endpoint in this process."""

from contextlib import contextmanager

import httpx

from ray_app.serving import ServeConfig
from ray_app.serving.engine import ScoreRequest
from ray_app.serving.http import schemas
from ray_app.serving.http.app import create_app
from ray_app.serving.metrics import Meter
from ray_app.serving.pool import WorkerPool, start_workers
from tests.serving.http.live import serving


def answers_of(engine, files, **options):
    """The answers of an engine for some files, which are decided in batches."""
    images = [engine.decode(ScoreRequest(data, **options)) for data in files]
    steps = range(0, len(images), engine.slots)
    found = [answer for at in steps for answer in engine.answer(images[at : at + engine.slots])]
    return [schemas.ImageAnswer.model_validate_json(answer.body) for answer in found]


@contextmanager
def local_endpoint():
    """The application with the shipped ensemble and one worker process; (url, app) while it runs."""
    config, meter = ServeConfig(ensembles=("tiny",)), Meter()
    workers, described = start_workers(config, 1)
    app = create_app(config, WorkerPool(config, workers, described, meter), meter)
    with serving(app, lifespan="on") as port:
        yield f"http://127.0.0.1:{port}", app


def client(url, **options):
    """An HTTP client that no proxy of the environment sees."""
    return httpx.Client(base_url=url, trust_env=False, timeout=60, **options)
