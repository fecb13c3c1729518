"""`touchstone serve` under hostile and hurried clients, over raw sockets: others go on being
answered, and no log calls it an error.
"""

import resource
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.serving.hostile_requests import HOSTILE, REFUSED_BY_GRANIAN, SCORE
from tests.serving.http.document import check_document
from tests.serving.http.live import Reply, ask, connected, request, wait_for
from tests.serving.served import served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DEADLINE_S = 10
WELL = request("GET", "/healthz")
FLOOD = 2000
MB = 2**20


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


def memory_of(endpoint):
    """Bytes that all processes of an endpoint hold."""
    return sum(one.memory_info().rss for one in endpoint.family())


@pytest.fixture(scope="module")
def endpoint():
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(10_000, most), most))
    with served("--set", f"limits.deadline_s={DEADLINE_S}") as running:
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


@pytest.mark.parametrize("sent", [b"", WELL[:-4] + b"\r\nX: "], ids=["idle", "slow heads"])
def test_2000_idle_connections_are_closed(endpoint, sent):
    before = memory_of(endpoint)
    with ExitStack() as opened:
        flood = [
            opened.enter_context(socket.create_connection(("127.0.0.1", endpoint.port), timeout=20))
            for _ in range(FLOOD)
        ]
        with others_are_answered(endpoint.port):
            for connection in flood:
                connection.sendall(sent)
            assert endpoint.score() == 200
            assert memory_of(endpoint) < before + 200 * MB
            wait_for(lambda: drip(flood, sent) and all(map(is_closed, flood)), 30)


def drip(flood, sent):
    """A further byte of each head, of those that have begun."""
    for connection in flood:
        with suppress(OSError):
            connection.send(b"x" if sent else b"")
    return True


@pytest.mark.parametrize(
    "piece", [b"x" * MB, b"X: 1\r\n" * 100_000], ids=["one header", "many headers"]
)
def test_endless_headers_take_no_memory(endpoint, piece):
    before, sent = memory_of(endpoint), 0
    with others_are_answered(endpoint.port), connected(endpoint.port) as connection:
        connection.sendall(WELL[:-4] + b"\r\nX: ")
        with suppress(ConnectionError):
            while sent < 300 * MB:
                connection.sendall(piece)
                sent += len(piece)
    assert sent < 20 * MB
    assert memory_of(endpoint) < before + 50 * MB


def is_closed(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1000, socket.MSG_PEEK) is not None
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_dripping_bodies_end_at_the_deadline(endpoint):
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


def test_clients_that_leave_a_refused_body_are_no_errors(endpoint):
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


def test_clients_that_leave_a_body_are_no_errors(endpoint):
    with ExitStack() as opened:
        for _ in range(32):
            connection = opened.enter_context(connected(endpoint.port))
            connection.sendall(request("POST", SCORE, "Content-Length: 1000", body=b"x"))
        assert endpoint.score() == 200
    assert endpoint.score() == 200


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_request_is_refused(endpoint, kind):
    data, status = HOSTILE[kind]
    reply = ask(endpoint.port, data)
    assert reply.status == status, reply.body
    if status >= 400 and kind not in REFUSED_BY_GRANIAN:
        assert set(reply.json) == {"code", "message", "limit", "observed", "request_id"}
    assert ask(endpoint.port, request("GET", "/healthz")).status == 200


def test_answers_are_those_of_the_openapi_document(endpoint):
    check_document(endpoint.url, examples=12)
