"""`touchstone serve` under hostile and hurried clients, over raw sockets: others go on being
answered, and no log calls it an error.
"""

import resource
import socket
import time
from contextlib import ExitStack

import pytest

from tests.serving.http.live import Reply, ask, connected, file_part, multipart, request, wait_for
from tests.serving.http.test_app import keep_document
from tests.serving.http.test_connections import others_are_answered
from tests.serving.served import served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCORE = "/v1/score"
SERVERS = {"server": [], "ray": ["--ray"]}
DEADLINE_S = 10


@pytest.fixture(scope="module", params=SERVERS)
def endpoint(request):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(10_000, most), most))
    with served(*SERVERS[request.param], "--set", f"limits.deadline_s={DEADLINE_S}") as running:
        yield running


@pytest.fixture(autouse=True)
def no_log_calls_it_an_error(endpoint):
    """Whatever a client does; and the log settings of `touchstone serve` (warnings only, no line
    per request) hold in every process.
    """
    yield
    for name, text in endpoint.logs().items():
        unwanted = (
            ("Traceback", "ERROR")
            if name.startswith("worker-")
            else ("Traceback", "ERROR", "INFO", "GET /", "POST /")
        )
        assert not any(word in text for word in unwanted), f"{name}: {text}"


def test_1500_half_open_connections_keep_nobody_out_and_are_closed(endpoint):
    with ExitStack() as opened:
        flood = []
        with others_are_answered(endpoint.port):
            for _ in range(1500):
                connection = opened.enter_context(
                    socket.create_connection(("127.0.0.1", endpoint.port), timeout=20)
                )
                connection.sendall(request("GET", "/healthz", "X: ")[:-4])
                flood.append(connection)
            assert endpoint.score() == 200
        wait_for(lambda: sum(not is_closed(one) for one in flood) <= 1001, 10)
        with others_are_answered(endpoint.port):
            wait_for(lambda: all(map(is_closed, flood)), 30)


def is_closed(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1000, socket.MSG_PEEK) is not None  # its end, or 408 before that
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_bodies_that_drip_keep_nobody_out_and_meet_the_deadline(endpoint):
    """As many as there are places."""
    with ExitStack() as opened:
        dripping = [opened.enter_context(connected(endpoint.port)) for _ in range(64)]
        for connection in dripping:
            connection.sendall(request("POST", SCORE, "Content-Length: 1000000", body=b"x"))
        began = time.monotonic()
        while time.monotonic() - began < DEADLINE_S / 2:
            assert endpoint.score() == 200
            for connection in dripping:
                connection.sendall(b"x")
        for connection in dripping:
            connection.settimeout(60)
            assert Reply(connection).status == 504
    assert time.monotonic() - began > 0.9 * DEADLINE_S


def test_clients_that_leave_in_the_middle_of_a_refused_body_are_no_errors(endpoint):
    """The server still reads what is left of their bodies when they close;
    `no_log_calls_it_an_error` looks for it.
    """
    for _ in range(8):
        with ExitStack() as opened:
            leaving = [opened.enter_context(connected(endpoint.port)) for _ in range(32)]
            for connection in leaving:
                connection.sendall(request("POST", SCORE, "Content-Length: 1000000000", body=b"x"))
            for connection in leaving:
                assert Reply(connection).status == 413
    assert endpoint.score() == 200


def test_clients_that_leave_in_the_middle_of_a_body_are_no_errors(endpoint):
    with ExitStack() as opened:
        for _ in range(32):
            connection = opened.enter_context(connected(endpoint.port))
            connection.sendall(request("POST", SCORE, "Content-Length: 1000", body=b"x"))
        assert endpoint.score() == 200
    assert endpoint.score() == 200


FORM, BODY = multipart(file_part(b"no image"))
HOSTILE = {
    "no http": (b"nonsense\r\n\r\n", 400),
    "chunks and length": (request("POST", SCORE, "Transfer-Encoding: chunked", "Content-Length: 3", body=b"0\r\n\r\n"), 400),
    "chunks hidden": (request("POST", SCORE, "Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 400),
    "a large trailer": (request("POST", SCORE, "Transfer-Encoding: chunked", body=b"0\r\nX: " + b"x" * 400_000), 431),
    "a steering trailer": (request("POST", SCORE, "Transfer-Encoding: chunked", body=b"0\r\nX-Request-Timeout-Seconds: 0\r\n\r\n"), 422),
    "a space before the colon": (request("POST", SCORE, "Content-Length : 3", body=b"abc"), 400),
    "climbing": (request("GET", "/page/..%2f..%2fetc/passwd"), 404),
    "no token of another scheme": (request("GET", "/v1/ensembles", "Authorization: Basic \udcff\udcff"), 200),
    "a websocket": (request("GET", "/healthz", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 200),
    "many headers": (request("GET", "/healthz", *["X: 1"] * 5000), 431),
    "a long address": (request("GET", "/" + "x" * 100_000), 431),
    # Serve's own proxy would be steered by the first four.
    **{name: (request("GET", "/healthz", f"{name}: \udcff\udcfe"), 200) for name in (
        "X-Request-Timeout-Seconds", "X-Request-Disconnect-Disabled", "serve_multiplexed_model_id", "X-Session-Id", "X-Request-Id")},
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_requests_are_refused_in_their_place(endpoint, kind):
    data, status = HOSTILE[kind]
    reply = ask(endpoint.port, data)
    assert reply.status == status, reply.body
    if status >= 400:
        assert set(reply.json) == {"code", "message", "limit", "observed", "request_id"}
    assert ask(endpoint.port, request("GET", "/healthz")).status == 200


def test_the_document_is_kept(endpoint):
    keep_document(endpoint.url, examples=12)
