"""Every answer carries an id and the security headers; refusals too."""

import httpx
import pytest

from ray_app.serving.config import ServeConfig
from tests.serving.http.guarded_app import make_app
from tests.serving.http.live import serving


def test_valid_request_id_is_kept(client):
    given = "A-z_0-9-" * 8
    for path in ("/healthz", "/v1/nothing", "/v1/fault/bug"):
        answer = client.get(path, headers={"X-Request-Id": given})
        assert answer.headers.get_list("x-request-id") == [given], path
        assert path == "/healthz" or answer.json()["request_id"] == given


def test_invalid_request_id_is_replaced(client):
    long = "x" * 65
    for given in ("", "short", long, "<script>alert(1)</script>", "ünïcödé-long", "line\tbreak"):
        ids = [
            client.get("/healthz", headers=[(b"X-Request-Id", given.encode())]).headers[
                "x-request-id"
            ]
            for _ in range(2)
        ]
        assert all(len(one) == 16 and int(one, 16) >= 0 for one in ids), given
        assert ids[0] != ids[1], given


def test_request_id_is_left_to_the_proxy_of_ray_serve():
    with serving(make_app(ServeConfig(ensembles=("tiny",)), echo_request_id=False)) as port:
        answer = httpx.get(
            f"http://127.0.0.1:{port}/v1/nothing", headers={"X-Request-Id": "from-the-proxy"}
        )
    assert "x-request-id" not in answer.headers
    assert answer.json()["request_id"] == "from-the-proxy"


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/", "localhost", 200),
        ("/page/x", "localhost", 404),
        ("/v1/fault/bug", "localhost", 500),
        ("/v1/score", "evil.example", 401),
    ],
)
def test_every_answer_has_security_headers(client, path, host, status):
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    policy = answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert ("script-src 'self'" in policy) == (path in ("/", "/page/x"))
    assert (answer.headers.get("cache-control") == "no-store") == path.startswith("/v1")
