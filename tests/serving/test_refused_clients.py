"""Each server that the package starts, also behind nginx: refusals reach clients that still send,
HEAD works, no redirect leaves https.
"""

import http.client
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import psutil
import pytest

from tests.make.ray_head import free_ports
from tests.serving.http.client_programs import ask_with_node, ask_with_urllib
from tests.serving.http.guarded_app import TOKEN
from tests.serving.http.live import ask, chunked, connected, pour, request, wait_for
from tests.serving.served import ROOT, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MB = 2**20
AUTHORIZATION = f"Authorization: Bearer {TOKEN}"
MAX_BODY_BYTES = 4 * MB
REFUSED = {"one worker": 10_000}  # Others, which take longer for each, get 2,000.
SERVERS = {
    "one worker": [],
    "two workers": ["--workers", "2"],
    "Serve's proxy": ["--ray"],
    "nginx": ["--ray"],
}


@pytest.fixture(scope="module", params=SERVERS)
def endpoint(request, tmp_path_factory):
    """An endpoint with one token: its `name` in SERVERS, its `port`, its `url`, and the process of
    the command, `pid`.
    """
    if request.param == "nginx" and shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    limit = ("--set", f"limits.max_body_bytes={MAX_BODY_BYTES}")
    with served(*SERVERS[request.param], *limit, TOUCHSTONE_TOKENS=TOKEN) as running:
        if request.param != "nginx":
            yield described(request.param, running.port, running)
            return
        with nginx_before(running.port, tmp_path_factory.mktemp("nginx")) as port:
            yield described(request.param, port, running)


def described(name, port, running):
    return SimpleNamespace(
        name=name, port=port, url=f"http://127.0.0.1:{port}/v1/score", pid=running.process.pid
    )


@contextmanager
def nginx_before(port, folder):
    """Yield the port of the shipped proxy in front of an endpoint, without its limit of requests."""
    own = free_ports(1)[0]
    text = (ROOT / "configs/proxy/nginx.conf").read_text()
    for found, replacement in {
        "server 127.0.0.1:8000;": f"server 127.0.0.1:{port};",
        "listen 8080": f"listen 127.0.0.1:{own}",
        "server_name touchstone.example.org;": "server_name 127.0.0.1;",
        "rate=20r/s": "rate=10000r/s",
        "access_log /dev/stdout touchstone;": "access_log off;",
    }.items():
        assert found in text
        text = text.replace(found, replacement)
    (folder / "nginx.conf").write_text(text)
    with open(folder / "stderr", "w") as log:
        command = ["nginx", "-p", f"{folder}/", "-c", "nginx.conf", "-g", "daemon off;"]
        process = subprocess.Popen(command, stderr=log)
    try:
        wait_for(lambda: is_open(own), 20)
        yield own
    finally:
        process.terminate()
        process.wait(20)


def is_open(port):
    try:
        return ask(port, request("GET", "/healthz")).status == 200
    except OSError:
        return False


def post(endpoint, size, *headers):
    return ask(
        endpoint.port,
        request("POST", "/v1/score", *headers, f"Content-Length: {size}", body=bytes(size)),
        timeout_s=30,
    )


@pytest.mark.parametrize("ask_with", [ask_with_urllib, ask_with_node], ids=["urllib", "node"])
def test_refusal_of_a_stranger_reaches_it(endpoint, ask_with):
    for _ in range(5):
        status, text = ask_with(endpoint.url)
        assert (status, '"unauthorized"' in text) == (401, True)


def test_refusal_of_a_large_body_reaches_its_client(endpoint):
    for _ in range(5):
        reply = post(endpoint, 2 * MAX_BODY_BYTES - 1, AUTHORIZATION)
        assert (reply.status, reply.json["code"]) == (413, "body_too_large")


def test_refused_body_that_never_ends_is_cut(endpoint):
    if endpoint.name == "nginx":
        pytest.skip("nginx bounds the seconds (lingering_time), not the bytes")
    with connected(endpoint.port) as connection:
        connection.sendall(chunked("/v1/score"))
        assert pour(connection, bytes(MB), 400 * MB) < 100 * MB


def test_slow_head_is_closed(endpoint):
    if endpoint.name == "Serve's proxy":
        pytest.skip("Ray Serve has no limit; the shipped nginx configuration has")
    with connected(endpoint.port, timeout_s=40) as connection:
        connection.sendall(request("GET", "/healthz", "X: ")[:-4])
        with suppress(ConnectionResetError):  # nginx resets it
            assert b" 200 " not in connection.recv(1000)


def test_large_head_is_refused(endpoint):
    if endpoint.name == "Serve's proxy":
        pytest.skip("Ray Serve has no limit; the shipped nginx configuration has")
    data = request("GET", "/healthz", "X: " + "x" * 300_000)  # Over twice the limit.
    with suppress(ConnectionResetError):  # The answer is lost if the server has not read the rest.
        assert ask(endpoint.port, data).status == 431


def test_head_is_answered_by_every_server(endpoint):
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=30)
    for path in (
        "/",
        "/openapi.json",
        "/healthz",
        "/readyz",
        "/metrics",
        "/v1/ensembles",
        "/v1/detectors",
    ):
        connection.request("HEAD", path, headers={"Authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b""), path
        assert int(response.headers["Content-Length"]) > 0, path
    connection.close()


def test_no_server_redirects_a_slash_at_the_end(endpoint):
    proxied = ("X-Forwarded-Proto: https", AUTHORIZATION)
    reply = ask(
        endpoint.port, request("POST", "/v1/score/", *proxied, "Content-Length: 1", body=b"x")
    )
    assert (reply.status, reply.headers.get("location")) == (404, None)


def test_refused_requests_leave_nothing_in_memory(endpoint):
    times = REFUSED.get(endpoint.name, 2000)
    refuse(endpoint, times // 5)
    before = memory_of(endpoint)
    refuse(endpoint, times)
    assert memory_of(endpoint) < before + 30 * MB


def refuse(endpoint, times):
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: post(endpoint, 20_000).status, range(times))) == {401}


def memory_of(endpoint):
    """Bytes that the processes of an endpoint hold by themselves."""
    process, total = psutil.Process(endpoint.pid), 0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            total += one.memory_info().rss - one.memory_info().shared
    return total
