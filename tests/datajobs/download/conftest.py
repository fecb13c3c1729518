"""The wild server without what it was asked before."""

from contextlib import closing
from types import SimpleNamespace

import pytest

from ray_app.images import ImageLimits
from ray_app.inference.decoder_pool import IsolatedDecoders


@pytest.fixture(scope="session")
def decoders():
    with closing(
        IsolatedDecoders(ImageLimits(), processes=1, wall_limit_s=20, memory_limit_bytes=None)
    ) as shared:
        yield shared


@pytest.fixture
def web(wild, decoders, monkeypatch):
    """The server, with no request seen yet; all sessions share decoders, which start slowly."""
    wild.forget()
    lent = SimpleNamespace(decode=decoders.decode, close=lambda: None)
    monkeypatch.setattr("ray_app.datajobs.download.fetch.IsolatedDecoders", lambda *_, **__: lent)
    return wild
