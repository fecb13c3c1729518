"""All guards together: their order, and what web pages of other origins are told."""

import httpx
import pytest

from ray_app.errors import ConfigError
from ray_app.serving.config import ServeConfig
from tests.serving.http.guarded_app import make_app
from tests.serving.http.live import Reply, ask, connected, request, serving

PAGE = "https://page.example"
TOKEN = "a-token-0123456789"


def config(**settings) -> ServeConfig:
    return ServeConfig.model_validate(settings)


def test_the_cheapest_refusal_comes_first(monkeypatch):
    """One request that deserves every refusal gets them one after the other, as each reason falls away."""
    monkeypatch.setenv("TOUCHSTONE_TOKENS", TOKEN)
    app = make_app(config(limits={"requests_per_minute": 1, "max_body_bytes": 10}))
    huge = ("Content-Length: 1000000", "Content-Encoding: gzip")
    with serving(app) as port:
        assert ask(port, request("POST", "/v1/nothing", *huge)).status == 401
        assert ask(port, request("POST", "/v1/nothing", *huge, f"Authorization: Bearer {TOKEN}")).status == 415
        assert ask(port, request("POST", "/v1/nothing", *huge, f"Authorization: Bearer {TOKEN}")).status == 429
        assert ask(port, request("POST", "/v1/nothing", *huge)).status == 401


def test_a_short_token_stops_the_start(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", "short")
    with pytest.raises(ConfigError):
        make_app(config())


def test_without_origins_there_is_no_cors():
    with serving(make_app(config())) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        answer = client.get("/healthz", headers={"Origin": PAGE})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        asked = client.options("/v1/score", headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"})
        assert asked.status_code == 403


def test_a_listed_origin_may_ask_and_can_read_why_it_was_refused(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", TOKEN)
    with serving(make_app(config(access={"cors_origins": [PAGE]}))) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        preflight = {
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        }
        asked = client.options("/v1/score", headers=preflight)
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, PAGE)
        browser = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}
        refused = client.post("/v1/score", content=b"x", headers=browser)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
        assert client.post("/v1/score", content=b"x", headers=browser | {"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        other = client.post("/v1/score", content=b"x", headers={"Origin": "https://other.example", "Authorization": f"Bearer {TOKEN}"})
        assert other.status_code == 403
        assert "access-control-allow-origin" not in other.headers


def test_a_refusal_with_a_body_on_its_way_reaches_an_ordinary_client():
    """A client that sends while the server has refused already must not see a broken connection instead of the reason."""
    with serving(make_app(config(limits={"max_body_bytes": 1000}))) as port:
        for size in (2_000, 200_000, 3_000_000):
            assert httpx.post(f"http://127.0.0.1:{port}/v1/score", content=bytes(size)).json()["code"] == "body_too_large"


def test_pipelined_requests_are_answered_in_order():
    with serving(make_app(config())) as port, connected(port) as connection:
        connection.sendall(request("GET", "/healthz") + request("GET", "/v1/nothing") + request("GET", "/healthz"))
        assert [Reply(connection).status for _ in range(3)] == [200, 404, 200]
