"""Whatever goes wrong has one shape, a documented status, and nothing of the machine or much of the
input in it.
"""

import logging
from difflib import SequenceMatcher

import pytest

from ray_app.serving.refusal import MESSAGES, Refusal

SHAPE = {"code", "message", "limit", "observed", "request_id"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("PUT", "/v1/score", 405, "method_not_allowed"),
        ("GET", "/v1/fault/bug", 500, "internal_error"),
        ("GET", "/v1/fault/image", 422, "image_too_large"),
        ("GET", "/v1/fault/foreign", 415, "unsupported_format"),
        ("GET", "/v1/fault/refusal", 503, "not_ready"),
        ("POST", "/v1/score", 422, "empty_file"),
        ("POST", "/v1/score?size=many", 400, "malformed_request"),
    ],
)
def test_every_refusal_has_one_shape(client, method, path, status, code):
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert set(answer.json()) == SHAPE
    assert answer.headers["content-type"] == "application/json"


def test_503_has_retry_after():
    for code in [code for code, (status, _) in MESSAGES.items() if status == 503]:
        assert int(Refusal(code).headers["Retry-After"]) > 0, code
        assert Refusal(code, headers={"Retry-After": "9"}).headers["Retry-After"] == "9"


def test_fault_is_logged_with_its_id_and_not_shown(client, caplog):
    with caplog.at_level(logging.ERROR):
        answer = client.get("/v1/fault/bug", headers={"X-Request-Id": "the-request-1"})
    assert "secret" not in answer.text
    assert "host-7" not in answer.text
    assert "the-request-1" in caplog.text
    assert "host-7" in caplog.text


def test_malformed_request_names_field_and_problem(client):
    single = client.post("/v1/score?size=many", content=b"x").json()["message"]
    assert "query.size" in single
    assert "integer" in single
    several = client.post("/v1/score?size=many&masks=perhaps", content=b"x").json()["message"]
    assert "1 more" in several


def test_refusal_quotes_little_of_the_input(client):
    long = "".join(chr(65 + number * 7 % 26) for number in range(5000))
    for answer in (
        client.post(f"/v1/score?size={long}&masks={long}", content=b"x"),
        client.get(f"/v1/{long}"),
    ):
        assert answer.status_code in (400, 404)
        same = SequenceMatcher(None, answer.text, long, autojunk=False).find_longest_match()
        assert same.size <= 100
        assert len(answer.text) < 500
