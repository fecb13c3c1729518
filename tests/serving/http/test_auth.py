"""Tokens from environment and file, rotated while serving; without tokens this machine only; never
a page of another site.
"""

import asyncio
import hashlib
import logging
import os

import httpx
import pytest
from fastapi import FastAPI, Request

from ray_app.errors import ConfigError
from ray_app.serving.config import Access
from ray_app.serving.http.auth import AccessGuard, BearerTokens, Paths, with_token_digests
from tests.serving.http.live import ask, request, serving

OLD, NEW, OTHER = "old-token-0123456789", "new-token-0123456789", "other-token-012345678"


@pytest.fixture(autouse=True)
def _no_tokens_around(monkeypatch):
    monkeypatch.delenv("TOUCHSTONE_TOKENS", raising=False)
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)


def app_with(access: Access):
    app = FastAPI(openapi_url=None)
    app.post("/v1/score")(app.get("/v1/score")(owner_of))
    app.get("/healthz")(lambda: "well")
    app.get("/page/app.js")(lambda: "script")
    return AccessGuard(app, BearerTokens(access), Paths(["/", "/healthz", "/page/*"]))


async def owner_of(request: Request) -> str:
    return request.state.owner


def statuses(app, *all_headers: dict[str, str], path: str = "/v1/score") -> list[int]:
    with serving(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        return [client.get(path, headers=headers).status_code for headers in all_headers]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def from_elsewhere(app, address, *headers: tuple[str, str]) -> int:
    """The status for a client at an address that no test can have."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": "/v1/score", "query_string": b"",
             "root_path": "", "scheme": "http", "client": address, "server": ("127.0.0.1", 80),
             "headers": [(name.encode(), value.encode()) for name, value in headers]}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"]


def test_only_given_tokens_are_admitted(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", f"{OLD},{NEW}\n{OTHER}")
    wrong = [
        {},
        bearer("nothing-that-was-given"),
        bearer(OLD[:-1]),
        bearer(OLD + "x"),
        bearer(f"{OLD},{NEW}"),
        {"Authorization": OLD},
        {"Authorization": f"Basic {OLD}"},
        {"Authorization": "Bearer"},
    ]
    right = [bearer(OLD), bearer(NEW), bearer(OTHER), {"Authorization": f"bearer   {OLD}"}]
    assert statuses(app_with(Access()), *wrong, *right) == [401] * len(wrong) + [200] * len(right)


def test_refusal_names_the_scheme_and_owner_hides_the_token(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", f"{OLD},{NEW}")
    with serving(app_with(Access())) as port:
        refused = ask(port, request("POST", "/v1/score", "Content-Length: 100"))
        owners = [
            ask(port, request("GET", "/v1/score", f"Authorization: Bearer {token}")).json
            for token in (OLD, NEW, OLD)
        ]
    assert (refused.status, refused.json["code"]) == (401, "unauthorized")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert OLD.encode() not in refused.body
    assert owners[0] == owners[2] != owners[1]
    assert all(len(owner) == 12 and set(owner) <= set("0123456789abcdef") for owner in owners)


def test_tokens_are_rotated_without_a_restart(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"# of the newsroom\n{OLD}\n\n")
    tokens = BearerTokens(Access(tokens_file=str(file)))

    def admitted() -> list[bool]:
        return [tokens.check(f"Bearer {token}") is not None for token in (OLD, NEW)]

    assert admitted() == [True, False]
    file.write_text(f"{OLD}\n{NEW}\n")
    assert admitted() == [True, True]
    (tmp_path / "next").write_text(f"{NEW}\n")
    os.replace(tmp_path / "next", file)
    assert admitted() == [False, True]
    file.unlink()
    assert admitted() == [False, False]
    for wrong in (b"\xff\xfe" * 20, b""):
        file.write_text(f"{OLD}\n")
        assert admitted() == [True, False]
        file.write_bytes(wrong)
        assert admitted() == [False, False]


def test_file_with_a_byte_order_mark_has_tokens(tmp_path):
    file = tmp_path / "tokens"
    for text in (f"{OLD}\r\n{NEW}\r\n", f"# mine\r\n{OLD}\r\n{NEW}"):
        file.write_bytes(text.encode("utf-8-sig"))
        tokens = BearerTokens(Access(tokens_file=str(file)))
        assert all(tokens.check(f"Bearer {token}") for token in (OLD, NEW))
        assert tokens.check("Bearer # mine") is None


def test_replaced_file_of_equal_size_and_time_is_read(tmp_path):
    file, following = tmp_path / "tokens", tmp_path / "next"
    file.write_text(OLD)
    following.write_text(NEW)
    os.utime(following, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    tokens = BearerTokens(Access(tokens_file=str(file)))
    os.replace(following, file)
    assert tokens.check(f"Bearer {OLD}") is None
    assert tokens.check(f"Bearer {NEW}") is not None


def test_file_without_tokens_admits_no_client(tmp_path, caplog):
    with caplog.at_level(logging.ERROR):
        app = app_with(Access(tokens_file=str(tmp_path / "missing"), anonymous=True))
        assert statuses(app, {}, {"Authorization": "Bearer"}, bearer("None")) == [401] * 3
    assert len(caplog.records) == 1
    assert "Hint" in caplog.text


def test_short_token_is_rejected_at_start_and_ignored_later(tmp_path, monkeypatch, caplog):
    file = tmp_path / "tokens"
    file.write_text(f"{OLD}\nshort\n")
    with pytest.raises(ConfigError, match="fewer than 16") as refused:
        BearerTokens(Access(tokens_file=str(file)))
    assert "secrets" in refused.value.hint
    file.write_text(OLD)
    tokens = BearerTokens(Access(tokens_file=str(file)))
    file.write_text(f"{NEW}\nshort\n")
    assert tokens.check("Bearer short") is None
    assert tokens.check(f"Bearer {NEW}") is not None
    assert "1 token(s)" in caplog.text
    monkeypatch.setenv("TOUCHSTONE_TOKENS", "short")
    with pytest.raises(ConfigError):
        BearerTokens(Access())


def test_without_tokens_only_this_machine_is_admitted():
    app = app_with(Access())
    own = ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "127.8.8.8")
    foreign = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1")
    proxied = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via")
    refused = [{"Host": host} for host in (*foreign, "0.0.0.0")]
    refused += [{name: "203.0.113.7"} for name in proxied]
    admitted = [{"Host": host} for host in own]
    assert statuses(app, *admitted, *refused) == [200] * len(own) + [401] * len(refused)
    host = ("host", "localhost")
    assert from_elsewhere(app, ("127.0.0.1", 5000), host) == 200
    assert from_elsewhere(app, ["::ffff:127.0.0.1", 5000], host) == 200
    for address in (("10.1.2.3", 5000), ("::ffff:10.1.2.3", 5000), ("", 0), ("unix:", 0), None):
        assert from_elsewhere(app, address, host) == 401, address
    assert from_elsewhere(app, ("127.0.0.1", 5000)) == 401


def test_loopback_client_behind_haproxy_needs_a_token(monkeypatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert statuses(app_with(Access()), {}) == [401]


def test_anonymous_admits_everyone_unless_there_are_tokens(monkeypatch):
    app = app_with(Access(anonymous=True))
    assert from_elsewhere(app, ("203.0.113.7", 5000), ("host", "touchstone.example")) == 200
    monkeypatch.setenv("TOUCHSTONE_TOKENS", OLD)
    assert statuses(app_with(Access(anonymous=True)), {}, bearer(OLD)) == [401, 200]


def test_paths_that_climb_from_open_ones_need_a_token(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", OLD)
    opened = ("/healthz", "/page/app.js")
    closed = ("/v1/score", "//v1/score", "/page/%2e%2e/v1/score", "/healthz/", "/v1/no", "/page")
    with serving(app_with(Access())) as port:
        found = {path: ask(port, request("GET", path)).status for path in (*opened, *closed)}
    assert found == dict.fromkeys(opened, 200) | dict.fromkeys(closed, 401)


def test_pages_of_other_sites_are_refused_with_a_token(monkeypatch):
    page, tool = "https://page.example", "https://tool.example"
    cross = {"Sec-Fetch-Site": "cross-site"}
    refused = [
        cross,
        cross | {"Origin": page},
        {"Origin": page},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:3000"},
    ]
    admitted = [
        {"Sec-Fetch-Site": "same-origin", "Origin": page},
        {"Origin": "http://touchstone.example", "Host": "touchstone.example:80"},
        {"Sec-Fetch-Site": "none"},
    ]
    monkeypatch.setenv("TOUCHSTONE_TOKENS", OLD)
    headers = [bearer(OLD) | more for more in refused + admitted]
    for origin, expected in ((tool, [403] * 5), (page, [403, 200, 200, 403, 403])):
        found = statuses(app_with(Access(cors_origins=(origin,))), *headers)
        assert found == expected + [200] * len(admitted), origin
    assert statuses(app_with(Access()), cross, path="/page/app.js") == [200]


def test_websocket_is_closed():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(
        app_with(Access(anonymous=True))(
            {"type": "websocket", "path": "/v1/score", "headers": []}, None, send
        )
    )
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_digests_admit_tokens_of_a_variable_not_inherited(monkeypatch):
    given = Access(tokens_sha256=(hashlib.sha256(OTHER.encode()).hexdigest(),))
    monkeypatch.setenv("TOUCHSTONE_TOKENS", f"{OLD},{NEW}")
    handed_on = with_token_digests(given)
    monkeypatch.delenv("TOUCHSTONE_TOKENS")
    assert not any(token in handed_on.model_dump_json() for token in (OLD, NEW, OTHER))
    asked = [bearer(OLD), bearer(NEW), bearer(OTHER), {}, bearer(handed_on.tokens_sha256[0])]
    assert statuses(app_with(handed_on), *asked) == [200] * 3 + [401] * 2
    with pytest.raises(ValueError, match="tokens_sha256"):
        Access(tokens_sha256=(OLD,))
