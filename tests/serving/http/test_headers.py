"""Every answer carries an id and the security headers; refusals too."""

import httpx
import pytest

from ray_app.serving.config import ServeConfig
from tests.serving.http.guarded_app import make_app
from tests.serving.http.live import serving


def test_an_id_that_is_one_is_kept(client):
    for path in ("/healthz", "/v1/nothing", "/v1/fault/bug"):
        answer = client.get(path, headers={"X-Request-Id": "A-z_0-9-" * 8})
        assert answer.headers.get_list("x-request-id") == ["A-z_0-9-" * 8]
        assert path == "/healthz" or answer.json()["request_id"] == "A-z_0-9-" * 8


@pytest.mark.parametrize(
    "given", ["", "short", "x" * 65, "<script>alert(1)</script>", "ünïcödé-long", "line\tbreak"]
)
def test_any_other_is_replaced(client, given):
    made = client.get("/healthz", headers=[(b"X-Request-Id", given.encode())]).headers[
        "x-request-id"
    ]
    assert len(made) == 16
    assert int(made, 16) >= 0
    assert made != client.get("/healthz").headers["x-request-id"]


def test_under_ray_serve_the_proxy_adds_it():
    with serving(make_app(ServeConfig(ensembles=("tiny",)), echo_request_id=False)) as port:
        answer = httpx.get(
            f"http://127.0.0.1:{port}/v1/nothing", headers={"X-Request-Id": "from-the-proxy"}
        )
    assert "x-request-id" not in answer.headers
    assert answer.json()["request_id"] == "from-the-proxy"


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        *(
            ("/", None, 200),
            ("/page/x", None, 404),
            ("/healthz", None, 200),
            ("/v1/nothing", None, 404),
            ("/v1/fault/bug", None, 500),
        ),
        ("/v1/score", "evil.example", 401),
    ],
)
def test_security_headers_are_on_every_answer(client, path, host, status):
    answer = client.get(path, headers={"Host": host} if host else {})
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert (
        answer.headers["cross-origin-resource-policy"]
        == answer.headers["cross-origin-opener-policy"]
        == "same-origin"
    )
    policy = answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert ("script-src 'self'" in policy) == (path in ("/", "/page/x"))
    assert (answer.headers.get("cache-control") == "no-store") == path.startswith("/v1")
