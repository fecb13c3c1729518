"""What a connection may cost before there is a request, asked of a real uvicorn over raw sockets,
while another client goes on.
"""

import importlib
import select
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest
import uvicorn
from starlette.responses import JSONResponse, Response

from ray_app.errors import ConfigError
from ray_app.serving.http.connections import (
    INSTALL,
    VARIABLE,
    ConnectionLimits,
    LimitedProtocol,
    connection_limits,
)
from tests.serving.http.guarded_app import make_app
from tests.serving.http.live import Reply, ask, connected, request, serving, wait_for
from tests.serving.http.test_limits import chunk, chunked, config

KB, MB = 2**10, 2**20
WELL = request("GET", "/healthz")
SHAPE = {"code", "message", "limit", "observed", "request_id"}


def protocol(**limits):
    return type("Protocol", (LimitedProtocol,), {"limits": ConnectionLimits(**limits)})


@contextmanager
def limited(app=None, **limits):
    with serving(app or make_app(config(deadline_s=20)), http=protocol(**limits)) as port:
        yield port


@pytest.fixture(scope="module")
def port():
    with limited(max_header_bytes=8 * KB, max_headers=20, header_timeout_s=0.4) as port:
        yield port


@contextmanager
def others_are_answered(port, within_s=5.0):
    """Another client asks all the while, a new connection each time."""
    done, waits = threading.Event(), []

    def go_on():
        while not done.is_set():
            began = time.monotonic()
            assert ask(port, WELL).status == 200
            waits.append(time.monotonic() - began)

    thread = threading.Thread(target=go_on)
    thread.start()
    yield
    done.set()
    thread.join()
    assert 0 < max(waits) < within_s


def header_of(size):
    """A request of exactly so many bytes."""
    empty = request("GET", "/healthz", "X-Big: ")
    return request("GET", "/healthz", "X-Big: " + "x" * (size - len(empty)))


def refusal(port, data):
    with connected(port) as connection:
        connection.sendall(data)
        reply = Reply(connection)
        assert reply.closed
        assert reply.headers["connection"] == "close"
        assert set(reply.json) == SHAPE
        return reply.status, reply.json["code"], reply.json["limit"]


def test_headers_may_be_as_large_as_the_limit(port):
    assert ask(port, header_of(8 * KB)).status == 200
    assert refusal(port, header_of(8 * KB + 1)) == (431, "headers_too_large", 8 * KB)
    assert refusal(port, request("GET", "/" + "x" * 9000)) == (431, "headers_too_large", 8 * KB)
    assert refusal(port, chunked("/v1/score") + chunk(b"x") + b"0\r\nX: " + b"x" * 20_000) == (
        431,
        "headers_too_large",
        8 * KB,
    )


def test_the_limit_is_of_a_head_and_not_of_what_follows(port):
    with connected(port) as connection:
        connection.sendall(WELL * 300)
        assert [Reply(connection).status for _ in range(300)] == [200] * 300
        body = bytes(100 * KB)
        for _ in range(2):
            connection.sendall(
                request("POST", "/v1/score", f"Content-Length: {len(body)}", body=body)
            )
            assert Reply(connection).json["sizes"] == [len(body)]
        for byte in header_of(8 * KB)[:200]:
            connection.sendall(bytes([byte]))
        connection.sendall(header_of(8 * KB)[200:])
        assert Reply(connection).status == 200
        connection.sendall(header_of(9 * KB))
        assert Reply(connection).status == 431


def test_300_mb_of_headers_are_refused_at_once_and_stall_nobody(port):
    sent = 0
    with others_are_answered(port), connected(port) as connection, suppress(ConnectionError):
        connection.sendall(request("GET", "/healthz", "X-Big: ")[:-4])
        while sent < 300 * MB:
            connection.sendall(b"x" * MB)
            sent += MB
    assert sent < 20 * MB


def test_many_headers_are_refused(port):
    assert ask(port, request("GET", "/healthz", *["X: 1"] * 19)).status == 200
    assert refusal(port, request("GET", "/healthz", *["X: 1"] * 20)) == (
        431,
        "headers_too_large",
        20,
    )


def test_chunks_of_any_size_and_a_trailer_are_taken(port):
    large, trailer = chunk(bytes(3 * MB)), b"0\r\nX-Checksum: 1\r\n\r\n"
    with connected(port) as connection:
        for body, size in (
            (large, 3 * MB),
            (chunk(b"x") * 50_000, 50_000),
            (large + chunk(b"x"), 3 * MB + 1),
        ):
            connection.sendall(chunked("/v1/score") + body + trailer + WELL)
            assert Reply(connection).json["sizes"] == [size]
            assert Reply(connection).status == 200


def test_a_trailer_that_drips_after_the_answer_is_ended_and_not_answered_again():
    with limited(Response(b"well"), header_timeout_s=0.4) as port, connected(port) as connection:
        connection.sendall(chunked("/") + b"0\r\nX: ")
        assert Reply(connection).status == 200
        began = time.monotonic()
        with suppress(ConnectionError):
            while not select.select([connection], [], [], 0.02)[0]:
                connection.sendall(b"x")
            assert connection.recv(1) == b""
        assert 0.35 < time.monotonic() - began < 10


def test_chunks_may_come_slowly():
    with limited(header_timeout_s=0.2) as port, connected(port) as connection:
        for piece in (chunked("/v1/score") + b"1\r\n", b"x\r\n1", b"\r\nx\r\n", b"0\r\n", b"\r\n"):
            connection.sendall(piece)
            time.sleep(0.25)  # longer than a head may take
        assert Reply(connection).json["sizes"] == [2]


@pytest.mark.parametrize("first", [b"", WELL], ids=["at once", "after a request"])
def test_a_head_that_drips_is_ended(port, first):
    with others_are_answered(port), connected(port) as connection:
        if first:
            connection.sendall(first)
            assert Reply(connection).status == 200
        began = time.monotonic()
        drip = iter(request("GET", "/healthz", "X: " + "x" * 10_000))
        with suppress(ConnectionError):
            while not select.select([connection], [], [], 0.02)[0]:
                connection.sendall(bytes([next(drip)]))
        reply = Reply(connection)
        assert (reply.status, reply.json["code"], reply.json["limit"]) == (
            408,
            "header_timeout",
            0.4,
        )
        assert reply.closed
        assert 0.35 < time.monotonic() - began < 10, "all of it would drip for three minutes"


def test_a_connection_that_rests_is_kept_and_one_that_never_said_a_byte_closed():
    with (
        limited(header_timeout_s=0.2) as port,
        connected(port) as connection,
        connected(port) as silent,
    ):
        for _ in range(2):
            connection.sendall(WELL)
            assert Reply(connection).status == 200
            time.sleep(0.25)  # longer than a head may take
        assert silent.recv(1) == b""


def _is_closed(connection):
    connection.setblocking(False)
    try:
        return not connection.recv(1000, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_where_all_connections_are_at_work_one_more_is_told_so():
    app = make_app(config(deadline_s=20))
    with limited(app, max_connections=3) as port, ExitStack() as opened:
        at_work = [opened.enter_context(connected(port)) for _ in range(3)]
        for connection in at_work:
            connection.sendall(request("GET", "/v1/slow"))
        wait_for(lambda: app.state.began == 3)
        assert refusal(port, WELL) == (503, "overloaded", 3)
        at_work[0].close()
        wait_for(lambda: app.state.ended == 1)
        wait_for(lambda: ask(port, WELL).status == 200)
        assert app.state.began == 3


def test_what_rests_longest_makes_room():
    with limited(max_connections=3) as port, ExitStack() as opened:
        resting = [opened.enter_context(connected(port)) for _ in range(3)]
        for connection in [*resting, resting[0]]:
            connection.sendall(WELL)
            assert Reply(connection).status == 200
        assert ask(port, WELL).status == 200
        assert [_is_closed(one) for one in resting] == [False, True, False]


def test_an_answer_that_nobody_reads_is_dropped():
    left = threading.Event()

    async def large(scope, receive, send):
        if scope["path"] == "/healthz":
            await Response()(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(300):
            await send({"type": "http.response.body", "body": bytes(MB), "more_body": True})
        left.set()

    with (
        limited(large, send_timeout_s=0.5, header_timeout_s=0.4) as port,
        others_are_answered(port),
        connected(port) as connection,
    ):
        connection.sendall(request("GET", "/much"))
        assert left.wait(10)
        with suppress(ConnectionError):
            while connection.recv(MB):
                pass


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),  # TLS
        request("GET", "/healthz", "Bad Name: x"),
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
        request("POST", "/v1/score", "Content-Length: 3", "Content-Length: 5", body=b"abcde"),
        request(
            "POST",
            "/v1/score",
            "Content-Length: 3",
            "Transfer-Encoding: chunked",
            body=b"0\r\n\r\n",
        ),
        request(
            "POST",
            "/v1/score",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: identity",
            body=b"0\r\n\r\n",
        ),
        *(
            chunked("/v1/score") + body
            for body in (b"zz\r\n", b"1\r\nxx\r\n", b"0\r\nBad Name: x\r\n\r\n")
        ),
        request("POST", "/v1/score", "Content-Length: " + "9" * 30),
        request("POST", "/v1/score", "Content-Length: -1"),
        request("GET", "/\xff"),
    ],
)
def test_what_is_no_request_is_told_so_in_the_usual_shape(port, data):
    assert refusal(port, data) == (400, "malformed_request", None)


def test_what_follows_a_request_cannot_pass_for_its_answer(port):
    app = make_app(config(deadline_s=20))
    with limited(app) as port, connected(port) as connection:
        connection.sendall(request("GET", "/v1/slow"))
        wait_for(lambda: app.state.began == 1)
        connection.sendall(b"nonsense\r\n\r\n")
        assert connection.recv(100) == b""
        wait_for(lambda: app.state.ended == 1)


def test_what_would_steer_the_proxy_is_not_passed_on():
    async def heard(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await JSONResponse([name.decode() for name, _ in scope["headers"]])(scope, receive, send)

    steering = [
        "X-Request-Timeout-Seconds: 0", "X-Request-Disconnect-Disabled: ?1", "X-Session-Id: a", "x_session_id: a",
        "serve_multiplexed_model_id: a", "Serve-Multiplexed-Model-Id: a", "X-Request-Id: \udcff", "X-Request-Id: short",
    ]  # fmt: skip

    trailers = "\r\n".join(["0", *steering, *["X: 1"] * 5000, "", ""]).encode(
        errors="surrogateescape"
    )
    with limited(heard) as port:
        assert ask(port, chunked("/", "Host: a") + trailers).json == ["transfer-encoding", "host"]
        assert ask(port, request("GET", "/", *steering, "X-Other: \udcff")).json == [
            "x-other",
            "host",
        ]
        assert ask(port, request("GET", "/", "X-Request-Id: my-request-1")).json == [
            "x-request-id",
            "host",
        ]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_client_that_leaves_is_noticed_also_by_the_first_of_its_requests(loop):
    """And nothing is raised where its answer would be written: Serve logs that as an error."""
    began, left = threading.Event(), []

    async def patient(scope, receive, send):
        began.set()
        message = await receive()
        if message["type"] == "http.request":
            message = await receive()
        await Response(bytes(MB))(scope, receive, send)
        left.append(message["type"])

    with serving(patient, http=protocol(), loop=loop) as port:
        with connected(port) as connection:
            connection.sendall(request("GET", "/") * 3)
            assert began.wait(5)
        wait_for(lambda: left == ["http.disconnect"])


def test_what_serve_calls_makes_every_server_of_its_process_take_the_limits_of_the_environment(
    monkeypatch,
):
    monkeypatch.setattr(LimitedProtocol, "limits", LimitedProtocol.limits)
    monkeypatch.setattr(uvicorn.config, "HTTP_PROTOCOLS", dict(uvicorn.config.HTTP_PROTOCOLS))
    for wrong in ("max_connections=7", '{"max_connection": 7}', "[]"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(ConfigError, match=VARIABLE):
            connection_limits()
    monkeypatch.setenv(VARIABLE, '{"max_headers": 33}')
    module, _, function = INSTALL.rpartition(".")
    assert getattr(importlib.import_module(module), function)() == []
    config = uvicorn.Config(lambda: None, factory=True, log_config=None)
    config.load()
    assert (config.http_protocol_class, LimitedProtocol.limits) == (
        LimitedProtocol,
        ConnectionLimits(max_headers=33),
    )


def test_one_that_reads_slowly_gets_all_of_it():
    async def large(scope, receive, send):
        await Response(bytes(8 * MB))(scope, receive, send)

    with (
        limited(large, send_timeout_s=0.5, header_timeout_s=0.2) as port,
        connected(port) as connection,
    ):
        connection.sendall(request("GET", "/"))
        read = 0
        while read < 8 * MB:
            piece = connection.recv(400 * KB)
            assert piece
            read += len(piece)
            time.sleep(0.05)  # slow, in all over twice the limit
