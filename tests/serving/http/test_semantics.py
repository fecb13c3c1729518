"""What HTTP requires of every server, asked of a real uvicorn: a client that still sends can read
its refusal, and HEAD works like GET.
"""

import json
import threading
import time
import tracemalloc
from contextlib import contextmanager
from functools import partial

import pytest
from starlette.responses import Response

from ray_app.serving.http.app import create_app
from ray_app.serving.http.semantics import LINGER_IDLE_S, LingeringClose
from tests.serving.http.client_programs import (
    SENT_BYTES,
    ask_with_curl,
    ask_with_node,
    ask_with_urllib,
)
from tests.serving.http.guarded_app import TOKEN, make_app, with_limits
from tests.serving.http.live import (
    LAST_CHUNK,
    Reply,
    ask,
    chunk,
    chunked,
    connected,
    pour,
    request,
    serving,
    wait_for,
)
from tests.serving.in_process import client

KB, MB = 2**10, 2**20
KNOWN, UNKNOWN = (f"Authorization: Bearer {token}" for token in (TOKEN, "a-token-of-no-client"))


@pytest.fixture(autouse=True)
def _token(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", TOKEN)


@contextmanager
def connected_to(**limits):
    """A connection to the guarded application with these limits."""
    with serving(make_app(with_limits(**limits))) as port, connected(port, 20) as connection:
        yield connection


@contextmanager
def busy_server(**limits):
    """Yield the port of a server that processes one slow request."""
    app = make_app(with_limits(deadline_s=20, **limits))
    with serving(app) as port, connected(port) as slow:
        head = ("POST", "/v1/score?is_slow=true", KNOWN, "Content-Length: 1")
        slow.sendall(request(*head, body=b"x"))
        wait_for(lambda: app.state.began == 1)
        yield port


@pytest.mark.parametrize(
    ("status", "header", "is_chunked", "limits"),
    [
        (401, UNKNOWN, False, {}),
        (413, KNOWN, False, {"max_body_bytes": SENT_BYTES * 9 // 16}),
        (413, KNOWN, True, {"max_body_bytes": SENT_BYTES * 9 // 16}),
        (429, KNOWN, False, {"requests_per_minute": 1}),
        (503, KNOWN, True, {"max_requests": 1}),
    ],
)
def test_refusal_reaches_client_that_is_still_sending(status, header, is_chunked, limits):
    size, body = f"Content-Length: {SENT_BYTES}", bytes(SENT_BYTES)
    data = (
        chunked("/v1/score", header) + chunk(body) + LAST_CHUNK
        if is_chunked
        else request("POST", "/v1/score", header, size, body=body)
    )
    with busy_server(**limits) as port:
        for _ in range(2):
            with connected(port) as connection:
                connection.sendall(data)  # Some clients read only after they have sent everything.
                reply = Reply(connection)
                assert (reply.status, reply.headers["connection"]) == (status, "close")
                assert reply.closed
            assert ("retry-after" in reply.headers) == (status in (429, 503))


def test_route_that_reads_no_body_answers_a_sending_client():
    size, body = f"Content-Length: {SENT_BYTES}", bytes(SENT_BYTES)
    with serving(make_app(with_limits())) as port:
        assert ask(port, request("POST", "/v1/nothing", KNOWN, size, body=body)).status == 404


@pytest.mark.parametrize(
    "ask_with",
    [ask_with_urllib, ask_with_node, ask_with_curl, partial(ask_with_curl, "--http1.0")],
    ids=["urllib", "node", "curl, which expects 100", "curl with HTTP 1.0"],
)
def test_client_program_reads_refusal_of_large_body(ask_with):
    with serving(make_app(with_limits())) as port:
        for _ in range(2):
            status, text = ask_with(f"http://127.0.0.1:{port}/v1/score")
            assert (status, json.loads(text)["code"]) == (401, "unauthorized")


def test_expecting_client_is_refused_before_its_body():
    with connected_to() as connection:
        began = time.monotonic()
        size = f"Content-Length: {SENT_BYTES}"
        connection.sendall(request("POST", "/v1/score", size, "Expect: 100-continue"))
        reply = Reply(connection)
        assert (reply.status, reply.headers["connection"]) == (401, "close")
        assert reply.closed
        assert time.monotonic() - began < LINGER_IDLE_S, "there is no body to wait for"


@pytest.mark.parametrize(
    "head",
    [
        chunked("/v1/score", UNKNOWN),
        request("POST", "/v1/score", UNKNOWN, f"Content-Length: {10**10}"),
    ],
    ids=["chunks", "length"],
)
def test_refused_body_that_never_ends_is_cut_after_bytes(head):
    with connected_to(max_body_bytes=MB) as connection:
        connection.sendall(head)
        assert pour(connection, bytes(256 * KB), 80 * MB) < 20 * MB


def test_refused_body_that_drips_or_stops_is_cut():
    head = request("POST", "/v1/score", UNKNOWN, "Content-Length: 1000000")
    app = make_app(with_limits(deadline_s=LINGER_IDLE_S + 1))
    with serving(app) as port, connected(port) as dripping, connected(port) as silent:
        began = time.monotonic()
        for connection in (dripping, silent):
            connection.sendall(head)
            assert Reply(connection).status == 401
            connection.settimeout(0.1)
        assert time.monotonic() - began < LINGER_IDLE_S, "the answer does not wait"
        silent.send(b"x")
        ends = {}
        while len(ends) < 2:
            assert time.monotonic() - began < 20, "the rest of the body would drip for a day"
            for connection in {dripping, silent} - ends.keys():
                if has_ended(connection):
                    ends[connection] = time.monotonic() - began
                elif connection is dripping:
                    connection.send(b"x")
        assert ends[dripping] - ends[silent] > 0.5
        assert ends[dripping] > LINGER_IDLE_S + 0.9


def has_ended(connection):
    try:
        return connection.recv(100) in LAST_CHUNK
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_one_refused_client_too_many_is_closed_at_once():
    layer = LingeringClose(Response("no", 401), deadline_s=60, max_bytes=MB, max_lingering=1)
    head = request("POST", "/", "Content-Length: 1000000")
    with serving(layer) as port, connected(port) as first, connected(port) as second:
        first.sendall(head)
        assert Reply(first).status == 401
        wait_for(lambda: layer.lingering == 1)
        began = time.monotonic()
        second.sendall(head)
        assert Reply(second).closed
        assert time.monotonic() - began < LINGER_IDLE_S
        assert layer.lingering == 1
        first.close()
        wait_for(lambda: layer.lingering == 0)


def test_refused_bodies_take_no_memory():
    size, body = f"Content-Length: {32 * MB}", bytes(32 * MB)
    data = request("POST", "/v1/score", UNKNOWN, size, body=body)
    with serving(make_app(with_limits())) as port:
        assert ask(port, data).status == 401
        tracemalloc.start()
        try:
            threads = [threading.Thread(target=ask, args=(port, data)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert tracemalloc.get_traced_memory()[1] < 8 * MB
        finally:
            tracemalloc.stop()


def test_connection_is_kept_if_the_refused_body_was_read():
    form = "Content-Type: multipart/form-data; boundary=x"
    with connected_to() as connection:
        for _ in range(2):
            head = ("POST", "/v1/score", KNOWN, "Content-Length: 3", form)
            connection.sendall(request(*head, body=b"abc"))
            reply = Reply(connection)
            assert (reply.status, reply.headers.get("connection")) == (400, None)


def test_head_needs_a_token_where_get_does():
    with serving(make_app(with_limits())) as port, client(f"http://127.0.0.1:{port}") as asking:
        assert asking.head("/healthz").status_code == 200
        assert asking.head("/v1/slow").status_code == 401


def test_slash_at_the_end_is_not_redirected():
    """A redirect would name `http` behind a proxy that ends TLS, and the client would send its
    image and token in clear.
    """
    proxied = {
        "Host": "photos.example.org",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "192.0.2.1",
        "Authorization": f"Bearer {TOKEN}",
    }
    app = create_app(with_limits(), None, None)
    with serving(app) as port, client(f"http://127.0.0.1:{port}", headers=proxied) as asking:
        for method, path in (("POST", "/v1/score/"), ("GET", "/healthz/"), ("HEAD", "/readyz/")):
            answer = asking.request(method, path, content=b"x" if method == "POST" else None)
            assert answer.status_code == 404, path
            assert "location" not in answer.headers, path
