"""`touchstone serve` under hostile and hurried clients, over raw sockets: others go on being answered, and no log calls it an error."""

import json
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest
import yaml

from ray_app.serving.replica import golden_image
from tests.serving.http.live import Reply, ask, connected, file_part, multipart, request, wait_for
from tests.serving.http.test_app import keep_document
from tests.serving.http.test_connections import others_are_answered
from tests.serving.in_process import client
from tests.serving.served import ROOT, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MB = 2**20
PAUSE_S = 6.0


# Serve's own proxy has our limits of heads and connections; HAProxy has its own (docs/serving.md).
SERVERS = {"server": ([], {}), "ray": (["--ray"], {"RAY_SERVE_ENABLE_HA_PROXY": "0"})}


@pytest.fixture(scope="module", params=SERVERS)
def endpoint(request):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(10_000, most), most))
    options, variables = SERVERS[request.param]
    with served(*options, **variables) as running:
        yield running


@pytest.fixture(autouse=True)
def no_log_calls_it_an_error(request):
    """Whatever a client does; and the log settings of `touchstone serve` (warnings only, no line per request) hold in every process."""
    yield
    if "endpoint" in request.fixturenames:
        for name, text in request.getfixturevalue("endpoint").logs().items():
            unwanted = ("Traceback", "ERROR") if name.startswith("worker-") else ("Traceback", "ERROR", "INFO", "GET /", "POST /")
            assert not any(word in text for word in unwanted), f"{name}: {text}"


def test_a_quiet_endpoint_takes_a_burst(endpoint):
    for _ in range(5):
        assert endpoint.score() == 200
        time.sleep(PAUSE_S)  # the quiet itself
    with ThreadPoolExecutor(12) as threads:
        assert [answer.result() for answer in [threads.submit(endpoint.score) for _ in range(12)]] == [200] * 12


def test_300_mb_of_headers_are_refused_at_once(endpoint):
    sent, began = 0, time.monotonic()
    with others_are_answered(endpoint.port), connected(endpoint.port) as connection, suppress(ConnectionError):
        connection.sendall(request("GET", "/healthz", "X-Big: ")[:-4])
        while sent < 300 * MB:
            connection.sendall(b"x" * MB)
            sent += MB
    print(f"\n{sent // MB} MB sent in {time.monotonic() - began:.2f} s")
    assert sent < 50 * MB
    assert time.monotonic() - began < 5
    assert ask(endpoint.port, request("GET", "/healthz", "X-Big: " + "x" * 40_000)).status == 431


def test_3000_half_open_connections_keep_nobody_out_and_are_closed(endpoint):
    with ExitStack() as opened:
        flood = []
        with others_are_answered(endpoint.port, within_s=5):
            for _ in range(3000):
                connection = opened.enter_context(socket.create_connection(("127.0.0.1", endpoint.port), timeout=20))
                connection.sendall(request("GET", "/healthz", "X: ")[:-4])
                flood.append(connection)
            assert endpoint.score() == 200
        wait_for(lambda: sum(not is_closed(one) for one in flood) <= 1001, 5)
        with others_are_answered(endpoint.port, within_s=5):
            wait_for(lambda: all(map(is_closed, flood)), 20)


def is_closed(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1000, socket.MSG_PEEK) is not None  # its end, or 408 before that
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_headers_that_drip_are_ended(endpoint):
    began = time.monotonic()
    with others_are_answered(endpoint.port), connected(endpoint.port) as connection:
        connection.sendall(request("GET", "/healthz", "X: ")[:-4])
        connection.settimeout(1)
        while time.monotonic() - began < 30:
            connection.sendall(b"x")
            with suppress(TimeoutError):
                assert connection.recv(1000, socket.MSG_PEEK).startswith(b"HTTP/1.1 408")
                break
    assert 9 < time.monotonic() - began < 15


def test_bodies_that_drip_keep_nobody_out_and_meet_the_deadline(endpoint):
    """As many as there are places."""
    with ExitStack() as opened:
        dripping = [opened.enter_context(connected(endpoint.port)) for _ in range(64)]
        for connection in dripping:
            connection.sendall(request("POST", "/v1/score", "Content-Length: 1000", body=b"x"))
        ended, began = threading.Event(), time.monotonic()

        def drip():
            while not ended.wait(1):
                for connection in dripping:
                    with suppress(OSError):
                        connection.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            while time.monotonic() - began < 20:
                assert endpoint.score() == 200
            for connection in dripping:
                connection.settimeout(40)
                assert Reply(connection).status == 504
        finally:
            ended.set()
            thread.join()
    assert 25 < time.monotonic() - began < 45


def test_an_answer_that_nobody_reads_costs_a_connection_and_no_more(endpoint):
    """Some hundred thousand bytes of answers; the kernel takes them, so it is closed as any other that rests."""
    with connected(endpoint.port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with others_are_answered(endpoint.port), suppress(OSError):
            for _ in range(20):
                connection.sendall(request("GET", "/openapi.json") * 5)


SCORE = "/v1/score"
FORM, BODY = multipart(file_part(b"no image"))
HOSTILE = {
    "no http": (b"nonsense\r\n\r\n", 400),
    "two lengths": (request("POST", SCORE, "Content-Length: 3", "Content-Length: 5", body=b"abcde"), 400),
    "two equal lengths": (request("POST", SCORE, "Content-Length: 3", "Content-Length: 3", body=b"abc"), 400),
    "length and chunks": (request("POST", SCORE, "Content-Length: 3", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "chunks and length": (request("POST", SCORE, "Transfer-Encoding: chunked", "Content-Length: 3", body=b"0\r\n\r\n"), 400),
    "chunks hidden": (request("POST", SCORE, "Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 400),
    "chunks twice": (request("POST", SCORE, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "a chunk that is none": (request("POST", SCORE, "Transfer-Encoding: chunked", body=b"zz\r\n"), 400),
    "a large trailer": (request("POST", SCORE, "Transfer-Encoding: chunked", body=b"0\r\nX: " + b"x" * 400_000), 431),
    "a steering trailer": (request("POST", SCORE, "Transfer-Encoding: chunked", body=b"0\r\nX-Request-Timeout-Seconds: 0\r\n\r\n"), 422),
    "a folded header": (request("GET", "/healthz", "X: 1\r\n 2"), 400),
    "a space before the colon": (request("POST", SCORE, "Content-Length : 3", body=b"abc"), 400),
    "an absurd length": (request("POST", SCORE, "Content-Length: 10000000000000000"), 413),
    "a length beyond numbers": (request("POST", SCORE, "Content-Length: " + "9" * 40), 400),
    "a negative length": (request("POST", SCORE, "Content-Length: -1"), 400),
    "gzip": (request("POST", SCORE, "Content-Encoding: gzip", "Content-Length: 3", body=b"abc"), 415),
    "a double slash": (request("GET", "//v1/ensembles"), 404),
    "another host's address": (request("GET", "http://example.org/healthz"), 200),
    "NUL in the path": (request("GET", "/page/%00"), 404),
    "climbing": (request("GET", "/page/..%2f..%2fetc/passwd"), 404),
    "bytes in the path": (b"GET /\xff\xfe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
    "broken percents": (request("GET", "/page/%zz%"), 404),
    "a surrogate": (request("GET", "/page/%ed%a0%80"), 404),
    "no token of another scheme": (request("GET", "/v1/ensembles", "Authorization: Basic \udcff\udcff"), 200),
    "a form without boundary": (request("POST", SCORE, "Content-Type: multipart/form-data", "Content-Length: 3", body=b"abc"), 400),
    "a form that ends early": (request("POST", SCORE, f"Content-Type: {FORM}", f"Content-Length: {len(BODY) - 20}", body=BODY[:-20]), 400),
    "a form of no image": (request("POST", SCORE, f"Content-Type: {FORM}", f"Content-Length: {len(BODY)}", body=BODY), 415),
    "no image": (request("POST", SCORE, "Content-Length: 3", body=b"abc"), 415),
    "no body": (request("POST", SCORE), 422),
    "no JSON": (request("POST", "/v1/score-url", "Content-Type: application/json", "Content-Length: 1", body=b"{"), 400),
    "JSON of another shape": (request("POST", "/v1/jobs", "Content-Type: application/json", "Content-Length: 2", body=b"[]"), 400),
    "a job of nothing": (request("POST", "/v1/jobs", "Content-Length: 3", body=b"abc"), 400),
    "another method": (request("PUT", SCORE), 405),
    "a method that is none": (request("FOO", SCORE), 400),
    "CONNECT": (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n", 400),
    "a websocket": (request("GET", "/healthz", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 200),
    "HTTP/1.0": (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/3.7": (b"GET /healthz HTTP/3.7\r\nHost: 127.0.0.1\r\n\r\n", 400),
    "many headers": (request("GET", "/healthz", *["X: 1"] * 5000), 431),
    "a long address": (request("GET", "/" + "x" * 100_000), 431),
    "Serve's own time-out": (request("GET", "/healthz", "X-Request-Timeout-Seconds: \udcff"), 200),
    "Serve's own switch": (request("GET", "/healthz", "X-Request-Disconnect-Disabled: \udcff"), 200),
    "Serve's own model": (request("GET", "/healthz", "serve_multiplexed_model_id: \udcff"), 200),
    "Serve's own session": (request("GET", "/healthz", "X-Session-Id: \udcff"), 200),
    "a request id of bytes": (request("GET", "/healthz", "X-Request-Id: \udcff\udcfe"), 200),
    "a header of bytes": (request("GET", "/healthz", "X-Anything: \udcff\udcfe"), 200),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_requests_are_refused_in_their_place(endpoint, kind):
    data, status = HOSTILE[kind]
    reply = ask(endpoint.port, data)
    assert reply.status == status, reply.body
    if status >= 400:
        assert set(reply.json) == {"code", "message", "limit", "observed", "request_id"}
    assert ask(endpoint.port, request("GET", "/healthz")).status == 200


def test_what_is_smuggled_behind_a_body_is_not_answered(endpoint):
    hidden = request("GET", "/v1/ensembles")
    for headers in (["Content-Length: 0", "Transfer-Encoding: chunked"], ["Content-Length: 3", f"Content-Length: {len(hidden)}"]):
        with connected(endpoint.port) as connection:
            connection.sendall(request("POST", SCORE, *headers, body=hidden))
            assert Reply(connection).status == 400
            with suppress(ConnectionError):
                assert connection.recv(1) == b""


def test_a_client_that_asks_first_is_told_to_go_on(endpoint):
    with connected(endpoint.port) as connection:
        connection.sendall(request("POST", SCORE, "Content-Length: 3", "Expect: 100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(b"abc")
        assert Reply(connection).status == 415


def test_pipelined_requests_are_answered_in_their_order(endpoint):
    with connected(endpoint.port) as connection:
        connection.sendall(request("GET", "/healthz") + request("GET", "/nothing") + request("PUT", SCORE) + request("GET", "/healthz"))
        assert [Reply(connection).status for _ in range(4)] == [200, 404, 405, 200]


def test_clients_that_leave_at_every_point(endpoint):
    data = golden_image()
    whole = request("POST", SCORE, f"Content-Length: {len(data)}", body=data)
    for sent in (1, 10, 50, len(whole) - len(data), len(whole) - 1000, len(whole)):
        for _ in range(5):
            with connected(endpoint.port) as connection:
                connection.sendall(whole[:sent])
                if sent == 50:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, no end
    assert endpoint.score() == 200


def test_the_document_is_kept(endpoint):
    keep_document(endpoint.url, examples=12)


def test_log_settings_of_a_file_hold_in_every_process(tmp_path):
    file = yaml.safe_load((ROOT / "configs/serve/laptop.yaml").read_text())
    file["logging_config"] = {"encoding": "JSON", "log_level": "INFO", "enable_access_log": True}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(file))
    with (
        served("--ray", "--config", str(tmp_path / "serve.yaml"), "--set", "fused=false", RAY_SERVE_ENABLE_HA_PROXY="0") as endpoint,
        client(endpoint.url) as asking,
    ):

        def lines(kind):
            (text,) = [text for name, text in endpoint.logs().items() if name.startswith(kind)]
            return [json.loads(line) for line in text.splitlines()]

        asking.post("/v1/score", content=golden_image()).raise_for_status()
        for kind, words in (("proxy", "/v1/score 200"), ("replica_touchstone_ingress", "POST /v1/score 200"),
                            ("replica_touchstone_detectors", "CALL score OK")):  # fmt: skip
            wait_for(lambda kind=kind, words=words: any(words in line["message"] for line in lines(kind)), 60)
            assert {line["levelname"] for line in lines(kind)} <= {"INFO", "WARNING"}
