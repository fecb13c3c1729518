"""What HTTP requires of every server, asked of a real uvicorn: a client that still sends can read
its refusal, and HEAD works like GET.
"""

import http.client
import json
import shutil
import subprocess
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
from contextlib import contextmanager

import httpx
import pytest
from starlette.responses import Response

from ray_app.serving.http.app import create_app
from ray_app.serving.http.semantics import LINGER_IDLE_S, LingeringClose
from tests.serving.http.guarded_app import make_app
from tests.serving.http.live import LAST_CHUNK, Reply, ask, connected, request, serving, wait_for
from tests.serving.http.test_limits import chunk, chunked, config, pour
from tests.serving.in_process import client

KB, MB = 2**10, 2**20
TOKEN = "a-token-0123456789"
KNOWN, UNKNOWN = (f"Authorization: Bearer {token}" for token in (TOKEN, "a-token-of-no-client"))
# more than the socket buffers hold, so that the client still sends when the answer comes
SENT = 8 * MB

NODE = """
const [url, size] = process.argv.slice(1);
const response = await fetch(url, {method: "POST", body: Buffer.alloc(Number(size), 7)});
console.log(JSON.stringify([response.status, await response.text()]));
"""


@pytest.fixture
def token(monkeypatch):
    """An endpoint with one token."""
    monkeypatch.setenv("TOUCHSTONE_TOKENS", TOKEN)


@contextmanager
def one_at_work(**limits):
    """Yield the port of a server that works on one slow request."""
    app = make_app(config(deadline_s=20, **limits))
    with serving(app) as port, connected(port) as slow:
        slow.sendall(
            request("POST", "/v1/score?is_slow=true", KNOWN, "Content-Length: 1", body=b"x")
        )
        wait_for(lambda: app.state.began == 1)
        yield port


def announced(headers=(), size=SENT):
    return request("POST", "/v1/score", *headers, f"Content-Length: {size}", body=bytes(size))


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize(
    ("status", "header", "limits"),
    [
        (401, UNKNOWN, {}),
        (413, KNOWN, {"max_body_bytes": SENT * 9 // 16}),
        (429, KNOWN, {"requests_per_minute": 1}),
        (503, KNOWN, {"max_requests": 1}),
    ],
    ids=["401", "413", "429", "503"],
)
def test_refusal_reaches_client_that_is_still_sending(status, header, limits, is_chunked):
    data = (
        chunked("/v1/score", header) + chunk(bytes(SENT)) + b"0\r\n\r\n"
        if is_chunked
        else announced([header])
    )
    with one_at_work(**limits) as port:
        for _ in range(3):
            with connected(port) as connection:
                # to its end, as http.client does: it reads the answer only then
                connection.sendall(data)
                reply = Reply(connection)
                assert reply.status == status
                assert reply.headers["connection"] == "close"
                assert reply.closed
            assert ("retry-after" in reply.headers) == (status in (429, 503))


@pytest.mark.usefixtures("token")
def test_route_that_reads_no_body_answers_a_sending_client():
    with serving(make_app(config())) as port:
        assert (
            ask(
                port,
                request("POST", "/v1/nothing", KNOWN, f"Content-Length: {SENT}", body=bytes(SENT)),
            ).status
            == 404
        )


def ask_with_urllib(url):
    try:
        return urllib.request.urlopen(
            urllib.request.Request(url, data=bytes(SENT)), timeout=20
        ).status
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ask_twice_with_http_client(url):
    """The second request is sent over the same object, which opens a connection again."""
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=20)
    for _ in range(2):
        connection.request("POST", "/v1/score", body=bytes(SENT))
        response = connection.getresponse()
        answer = response.status, response.read().decode()
    connection.close()
    return answer


def ask_with_httpx(url):
    answer = httpx.post(url, content=bytes(SENT), trust_env=False)
    return answer.status_code, answer.text


def ask_with_curl(url, *options):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = [
        "curl",
        "-sS",
        "--noproxy",
        "*",
        "-w",
        " %{http_code}",
        *options,
        "--data-binary",
        "@-",
        url,
    ]
    done = subprocess.run(command, input=bytes(SENT), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    text, _, status = done.stdout.decode().rpartition(" ")
    return int(status), text


def ask_with_node(url):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    command = ["node", "--input-type=module", "-e", NODE, url, str(SENT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout))


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize(
    "ask_with",
    [
        *(
            ask_with_urllib,
            ask_twice_with_http_client,
            ask_with_httpx,
            ask_with_node,
            ask_with_curl,
        ),
        lambda url: ask_with_curl(url, "-H", "Expect:"),
        lambda url: ask_with_curl(url, "--http1.0"),
    ],
    ids=[
        "urllib",
        "http.client",
        "httpx",
        "node",
        "curl",
        "curl without Expect",
        "curl with HTTP 1.0",
    ],
)
def test_client_library_reads_refusal_of_large_body(ask_with):
    with serving(make_app(config())) as port:
        for _ in range(3):
            status, text = ask_with(f"http://127.0.0.1:{port}/v1/score")
            assert (status, json.loads(text)["code"]) == (401, "unauthorized")


@pytest.mark.usefixtures("token")
def test_expecting_client_is_refused_before_its_body():
    with serving(make_app(config())) as port, connected(port) as connection:
        began = time.monotonic()
        connection.sendall(
            request("POST", "/v1/score", f"Content-Length: {SENT}", "Expect: 100-continue")
        )
        reply = Reply(connection)
        assert (reply.status, reply.headers["connection"]) == (401, "close")
        assert reply.closed
        assert time.monotonic() - began < LINGER_IDLE_S, "there is no body to wait for"


@pytest.mark.usefixtures("token")
def test_refused_body_that_never_ends_is_cut_after_bytes():
    limit = MB
    with serving(make_app(config(max_body_bytes=limit))) as port, connected(port) as connection:
        connection.sendall(chunked("/v1/score", UNKNOWN))
        assert pour(connection, bytes(256 * KB), 80 * MB) < 20 * MB
    with serving(make_app(config(max_body_bytes=limit))) as port, connected(port) as connection:
        connection.sendall(request("POST", "/v1/score", UNKNOWN, f"Content-Length: {10**10}"))
        assert pour(connection, bytes(256 * KB), 80 * MB) < 20 * MB


@pytest.mark.usefixtures("token")
def test_refused_body_that_drips_is_cut_at_the_deadline():
    with (
        serving(make_app(config(deadline_s=LINGER_IDLE_S + 1))) as port,
        connected(port) as connection,
    ):
        began = time.monotonic()
        connection.sendall(request("POST", "/v1/score", UNKNOWN, "Content-Length: 1000000"))
        assert Reply(connection).status == 401
        assert time.monotonic() - began < LINGER_IDLE_S, "the answer does not wait"
        connection.settimeout(0.1)
        while not is_ended(connection):
            connection.send(b"x")
        assert LINGER_IDLE_S + 0.9 < time.monotonic() - began < 20, "all of it would drip for a day"


@pytest.mark.usefixtures("token")
def test_refused_client_that_sends_nothing_is_closed():
    with (
        serving(make_app(config(deadline_s=60))) as port,
        connected(port, timeout_s=20) as connection,
    ):
        began = time.monotonic()
        connection.sendall(request("POST", "/v1/score", UNKNOWN, "Content-Length: 1000000"))
        reply = Reply(connection)
        assert (reply.status, reply.closed) == (401, True)
        assert time.monotonic() - began < 20


def is_ended(connection):
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


@pytest.mark.usefixtures("token")
def test_refused_bodies_take_no_memory():
    with serving(make_app(config())) as port:
        data = announced([UNKNOWN], 32 * MB)
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
    with serving(make_app(config())) as port, connected(port) as connection:
        for _ in range(2):
            connection.sendall(
                request(
                    "POST",
                    "/v1/score",
                    "Content-Length: 3",
                    "Content-Type: multipart/form-data; boundary=x",
                    body=b"abc",
                )
            )
            reply = Reply(connection)
            assert (reply.status, reply.headers.get("connection")) == (400, None)


def test_head_is_answered_wherever_get_is(local):
    url, app = local
    documented = [
        path for path, operations in app.openapi()["paths"].items() if "get" in operations
    ]
    assert {"/healthz", "/readyz", "/metrics", "/v1/ensembles", "/v1/detectors"} <= {*documented}
    # one connection: a body after HEAD would be read as the next answer
    with client(url) as asking:
        for path in (*documented, "/", "/page/page.js", "/openapi.json", "/v1/nothing"):
            got, head = asking.get(path), asking.head(path)
            assert (head.status_code, head.content) == (got.status_code, b""), path
            assert [*head.headers] == [*got.headers], path
            assert head.headers["content-type"] == got.headers["content-type"], path
            if path != "/metrics":  # Its counts have changed.
                assert head.headers["content-length"] == str(len(got.content)), path
        tag = asking.head("/").headers["etag"]
        assert asking.head("/", headers={"If-None-Match": tag}).status_code == 304


def test_head_is_refused_where_get_is(local):
    with client(local[0]) as asking:
        answer = asking.head("/v1/score")
        assert (answer.status_code, answer.headers["Allow"], answer.content) == (405, "POST", b"")
        assert asking.put("/healthz").headers["Allow"] == "GET, HEAD"


@pytest.mark.usefixtures("token")
def test_head_needs_a_token_where_get_does():
    with serving(make_app(config())) as port, client(f"http://127.0.0.1:{port}") as asking:
        assert asking.head("/healthz").status_code == 200
        assert asking.head("/v1/slow").status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/score/"), ("GET", "/healthz/"), ("GET", "/v1/ensembles/"), ("HEAD", "/readyz/")],
)
@pytest.mark.usefixtures("token")
def test_slash_at_the_end_is_not_redirected(method, path):
    """A redirect would name `http` behind a proxy that ends TLS, and the client would send its
    image and token in clear.
    """
    proxied = {
        "Host": "photos.example.org",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "192.0.2.1",
        "Authorization": f"Bearer {TOKEN}",
    }
    with (
        serving(create_app(config(), None, None)) as port,
        client(f"http://127.0.0.1:{port}") as asking,
    ):
        answer = asking.request(
            method, path, headers=proxied, content=b"x" if method == "POST" else None
        )
    assert answer.status_code == 404
    assert "location" not in answer.headers
