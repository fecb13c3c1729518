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
from ray_app.serving.http.auth import AccessGuard, BearerTokens, Paths, by_digests
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


def test_no_wrong_and_right_tokens(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", f"{OLD},{NEW}\n{OTHER}")
    wrong = [{}, bearer("nothing-that-was-given"), bearer(OLD[:-1]), bearer(OLD + "x"), {"Authorization": OLD},
             {"Authorization": f"Basic {OLD}"}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {OLD},{NEW}"}]  # fmt: skip
    right = [bearer(OLD), bearer(NEW), bearer(OTHER), {"Authorization": f"bearer   {OLD}"}]
    assert statuses(app_with(Access()), *wrong, *right) == [401] * len(wrong) + [200] * len(right)


def test_a_refusal_says_how_to_ask(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", OLD)
    with serving(app_with(Access())) as port:
        refused = ask(port, request("POST", "/v1/score", "Content-Length: 100"))
    assert (refused.status, refused.json["code"], refused.headers["www-authenticate"]) == (
        401,
        "unauthorized",
        "Bearer",
    )
    assert OLD.encode() not in refused.body


def test_the_owner_is_a_name_that_does_not_give_the_token_away(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", f"{OLD},{NEW}")
    with serving(app_with(Access())) as port:
        owners = [
            ask(port, request("GET", "/v1/score", f"Authorization: Bearer {token}")).json
            for token in (OLD, NEW, OLD)
        ]
    assert owners[0] == owners[2] != owners[1]
    assert all(len(owner) == 12 and set(owner) <= set("0123456789abcdef") for owner in owners)


def test_tokens_are_rotated_without_a_restart(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"# of the newsroom\n{OLD}\n\n")
    with (
        serving(app_with(Access(tokens_file=str(file)))) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):

        def let_in() -> list[bool]:
            return [
                client.get("/v1/score", headers=bearer(token)).status_code == 200
                for token in (OLD, NEW)
            ]

        assert let_in() == [True, False]
        file.write_text(f"{OLD}\n{NEW}\n")
        assert let_in() == [True, True]
        (tmp_path / "next").write_text(f"{NEW}\n")
        os.replace(tmp_path / "next", file)
        assert let_in() == [False, True]
        file.unlink()
        assert let_in() == [False, False]
        for wrong in (b"\xff\xfe" * 20, b""):
            file.write_text(f"{OLD}\n")
            assert let_in() == [True, False]
            file.write_bytes(wrong)
            assert let_in() == [False, False]


def test_same_size_and_time_but_another_file_is_another_file(tmp_path):
    file, following = tmp_path / "tokens", tmp_path / "next"
    file.write_text(OLD)
    following.write_text(NEW)
    os.utime(following, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    tokens = BearerTokens(Access(tokens_file=str(file)))
    os.replace(following, file)
    assert tokens.check(f"Bearer {OLD}") is None
    assert tokens.check(f"Bearer {NEW}") is not None


def test_a_file_without_tokens_lets_nobody_in_not_even_this_machine(tmp_path, caplog):
    with caplog.at_level(logging.ERROR):
        app = app_with(Access(tokens_file=str(tmp_path / "missing"), anonymous=True))
        assert statuses(app, {}, {"Authorization": "Bearer"}, bearer("None")) == [401] * 3
    assert len(caplog.records) == 1
    assert "Hint" in caplog.text


def test_a_short_token_is_refused_at_the_start_and_left_out_later(tmp_path, monkeypatch, caplog):
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


def test_without_tokens_this_machine_only():
    app = app_with(Access())
    mine = [
        {"Host": host}
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "127.8.8.8")
    ]
    other = [
        {"Host": host}
        for host in (
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "0.0.0.0",
        )
    ]
    proxied = [
        {name: "203.0.113.7"} for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via")
    ]
    assert statuses(app, *mine, *other, *proxied) == [200] * len(mine) + [401] * (
        len(other) + len(proxied)
    )
    host = ("host", "localhost")
    assert from_elsewhere(app, ("127.0.0.1", 5000), host) == 200
    assert from_elsewhere(app, ["::ffff:127.0.0.1", 5000], host) == 200
    for address in (("10.1.2.3", 5000), ("::ffff:10.1.2.3", 5000), ("", 0), ("unix:", 0), None):
        assert from_elsewhere(app, address, host) == 401
    assert from_elsewhere(app, ("127.0.0.1", 5000)) == 401


def test_loopback_client_behind_haproxy_needs_a_token(monkeypatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert statuses(app_with(Access()), {}) == [401]


def test_anonymous_answers_everybody_unless_there_are_tokens(monkeypatch):
    app = app_with(Access(anonymous=True))
    assert from_elsewhere(app, ("203.0.113.7", 5000), ("host", "touchstone.example")) == 200
    monkeypatch.setenv("TOUCHSTONE_TOKENS", OLD)
    assert statuses(app_with(Access(anonymous=True)), {}, bearer(OLD)) == [401, 200]


def test_open_addresses_are_open_and_climbing_from_them_is_not(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", OLD)
    app = app_with(Access())
    open_to_all = {"/healthz": 200, "/page/app.js": 200}
    others = dict.fromkeys(
        ("/v1/score", "//v1/score", "/page/%2e%2e/v1/score", "/healthz/", "/v1/nothing", "/page"),
        401,
    )
    with serving(app) as port:
        for path, status in (open_to_all | others).items():
            assert ask(port, request("GET", path)).status == status, path


def test_pages_of_other_sites_are_refused_even_with_a_token(monkeypatch):
    page, tool = "https://page.example", "https://tool.example"
    cross, same_site, own = (
        {"Sec-Fetch-Site": site} for site in ("cross-site", "same-site", "same-origin")
    )
    refused = [
        cross,
        cross | {"Origin": page},
        {"Origin": page},
        {"Origin": "null"},
        same_site | {"Origin": "http://127.0.0.1:3000"},
    ]
    allowed = [
        own | {"Origin": page},
        {"Origin": "http://touchstone.example", "Host": "touchstone.example:80"},
        {"Sec-Fetch-Site": "none"},
    ]
    monkeypatch.setenv("TOUCHSTONE_TOKENS", OLD)
    headers = [bearer(OLD) | more for more in refused + allowed]
    for origin, expected in ((tool, [403] * 5), (page, [403, 200, 200, 403, 403])):
        assert statuses(app_with(Access(cors_origins=(origin,))), *headers) == expected + [
            200
        ] * len(allowed)
    assert statuses(app_with(Access()), cross, path="/page/app.js") == [200]


def test_a_websocket_is_not_a_way_around():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(
        app_with(Access(anonymous=True))(
            {"type": "websocket", "path": "/v1/score", "headers": []}, None, send
        )
    )
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_digests_let_in_who_has_the_token_where_the_variable_is_not_inherited(monkeypatch):
    given = Access(tokens_sha256=(hashlib.sha256(OTHER.encode()).hexdigest(),))
    monkeypatch.setenv("TOUCHSTONE_TOKENS", f"{OLD},{NEW}")
    handed_on = by_digests(given)
    monkeypatch.delenv("TOUCHSTONE_TOKENS")
    assert not any(token in handed_on.model_dump_json() for token in (OLD, NEW, OTHER))
    asked = [bearer(OLD), bearer(NEW), bearer(OTHER), {}, bearer(handed_on.tokens_sha256[0])]
    assert statuses(app_with(handed_on), *asked) == [200] * 3 + [401] * 2
    with pytest.raises(ValueError, match="tokens_sha256"):
        Access(tokens_sha256=(OLD,))
