"""Fixtures of the HTTP room."""

import httpx
import pytest

from ray_app.serving.config import ServeConfig
from tests.serving.http.guarded_app import make_app
from tests.serving.http.live import serving


@pytest.fixture(scope="session")
def client():
    """A client of the small application behind all guards, with the default limits."""
    with (
        serving(make_app(ServeConfig(ensembles=("tiny",)))) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        yield client
