"""configs/proxy/nginx.conf, run by a real nginx before a real uvicorn: endless and dripping bodies cost the endpoint nothing."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from starlette.responses import JSONResponse

from ray_app.serving.config import ServeConfig
from ray_app.serving.http.errors import MESSAGES
from tests.ray_head import free_ports
from tests.scoring.conftest import wait_until
from tests.serving.http.live import ask, connected, request, serving

ROOT = Path(__file__).resolve().parents[2]
CONF = (ROOT / "configs/proxy/nginx.conf").read_text()
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
HOST = "touchstone.example.org"
SHAPE = {"code", "message", "limit", "observed", "request_id"}
MB = 2**20


class Endpoint:
    """Says which headers it heard, and how long the body was; `received`: the bytes of all bodies."""

    received = 0

    async def __call__(self, scope, receive, send):
        size, more = 0, True
        while more:
            message = await receive()
            self.received += len(message.get("body", b""))
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        await JSONResponse({"bytes": size, **{key.decode(): value.decode() for key, value in scope["headers"]}})(scope, receive, send)


@contextmanager
def nginx_before(upstream, folder):
    """The port of an nginx that waits for a body no longer than four seconds."""
    (port,) = free_ports(1)
    conf = CONF.replace("127.0.0.1:8000", f"127.0.0.1:{upstream}").replace("listen 8080", f"listen 127.0.0.1:{port}")
    conf = conf.replace("client_body_timeout 40s", "client_body_timeout 4s").replace("/dev/stdout", str(folder / "access.log"))
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        conf = conf.replace("server_tokens off;", f"server_tokens off; {kind}_temp_path {folder}/{kind};", 1)
    (folder / "nginx.conf").write_text(f"daemon off; {'user root;' if os.getuid() == 0 else ''}\n" + conf)
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    process = subprocess.Popen(command, stderr=(folder / "nginx.log").open("w"))

    def listens():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens)
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def proxied(tmp_path_factory):
    if NGINX is None:
        pytest.skip("no nginx: apt-get install nginx")
    folder, endpoint = tmp_path_factory.mktemp("nginx"), Endpoint()
    with serving(endpoint) as upstream, nginx_before(upstream, folder) as port:
        yield SimpleNamespace(port=port, folder=folder, endpoint=endpoint)


def to(method, path, *headers, body=b"", host=HOST):
    return request(method, path, f"Host: {host}", *headers, body=body)


def test_its_limits_are_those_of_the_endpoint():
    config = yaml.safe_load((ROOT / "configs/serve/ensemble.yaml").read_text())
    args = config["applications"][0]["args"]
    served = ServeConfig.model_validate(args)
    sizes = [int(size) * 2**20 for size in re.findall(r"client_max_body_size (\d+)m;", CONF)]
    assert sizes == [served.limits.max_body_bytes, served.jobs.max_body_bytes]
    assert re.search(r"map \$uri \$body_limit \{\s+/v1/jobs (\d+);\s+default\s+(\d+);", CONF).groups() == tuple(map(str, reversed(sizes)))
    assert int(re.search(r"proxy_read_timeout (\d+)s", CONF)[1]) > config["http_options"]["request_timeout_s"]
    assert int(re.search(r"client_body_timeout (\d+)s;", CONF)[1]) > served.limits.deadline_s
    (idle,) = re.findall(r"keepalive_timeout (\d+)s; +# shorter", CONF)
    assert int(idle) < config["http_options"]["keep_alive_timeout_s"]


def test_every_answer_of_its_own_has_the_shape_of_ours():
    bodies = re.findall(r"return (\d+) '(\{.*?\})'", CONF)
    assert {int(status) for status, _ in bodies} == {400, 404, 413, 421, 429, 431, 503, 504}
    for _, body in bodies:
        said = json.loads(body.replace("$body_limit", "1"))
        assert set(said) == SHAPE
        assert said["code"] in MESSAGES


@pytest.mark.slow
def test_a_body_over_the_limit_is_refused_before_it_comes(proxied):
    announced = to("POST", "/v1/score", f"Content-Length: {10 * 10**9}")
    chunk = b"%x\r\nx" % (65 * MB)  # tells its size before it comes
    for data in (announced, to("POST", "/v1/score", "Transfer-Encoding: chunked", body=chunk)):
        reply = ask(proxied.port, data)
        assert (reply.status, reply.json["code"], reply.json["limit"], set(reply.json)) == (413, "body_too_large", 64 * MB, SHAPE)


@pytest.mark.slow
def test_a_body_without_end_is_cut_and_reaches_neither_the_endpoint_nor_the_disk(proxied):
    before, deadline = proxied.endpoint.received, time.monotonic() + 60
    with connected(proxied.port) as connection, suppress(ConnectionError, TimeoutError):
        connection.sendall(to("POST", "/v1/score", "Transfer-Encoding: chunked"))
        while time.monotonic() < deadline:
            connection.sendall(b"100000\r\n" + bytes(MB) + b"\r\n")
    assert time.monotonic() < deadline, "it was never cut"
    assert proxied.endpoint.received - before <= 64 * MB
    assert not list((proxied.folder / "client_body").iterdir()), "an image would lie on the disk"


@pytest.mark.slow
def test_a_body_at_the_limit_passes_and_one_that_stops_is_closed(proxied):
    reply = ask(proxied.port, to("POST", "/v1/score", f"Content-Length: {64 * MB}", body=bytes(64 * MB)))
    assert (reply.status, reply.json["bytes"]) == (200, 64 * MB)
    with connected(proxied.port) as connection, suppress(ConnectionError):
        connection.sendall(to("POST", "/v1/score", "Content-Length: 1000"))
        assert connection.recv(1) == b""


@pytest.mark.slow
def test_large_and_slow_headers_are_ended_before_the_endpoint_hears_of_them(proxied):
    for headers in (["X-Big: " + "x" * 9000], [f"X-{number}: " + "x" * 1000 for number in range(40)]):
        reply = ask(proxied.port, to("GET", "/", *headers))
        assert (reply.status, reply.json["code"]) == (431, "headers_too_large")
    with socket.create_connection(("127.0.0.1", proxied.port), timeout=30) as connection, suppress(ConnectionError):
        connection.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        assert connection.recv(1) == b""


@pytest.mark.slow
def test_claims_of_a_client_do_not_pass(proxied):
    steering = ["X-Request-Timeout-Seconds", "X-Request-Disconnect-Disabled", "X-Session-Id", "Serve-Multiplexed-Model-Id"]
    claims = ["X-Forwarded-For: 192.0.2.7", "Forwarded: for=127.0.0.1", "X-Real-IP: 127.0.0.1", "X-Request-Id: bad id\x7f"]
    reply = ask(proxied.port, to("GET", "/", *claims, *(f"{name}: 1" for name in steering)))
    heard = reply.json
    assert heard["host"] == f"{HOST}:{proxied.port}", "as a browser's Origin has it"
    assert heard["x-forwarded-for"] == "127.0.0.1"  # nginx's own view: the test runs on this machine
    assert not {"forwarded", "x-real-ip", *map(str.lower, steering)} & set(heard)
    assert re.fullmatch(r"[0-9a-f]{32}", heard["x-request-id"])
    assert "uvicorn" not in reply.headers["server"]
    assert ask(proxied.port, to("GET", "/", "X-Request-Id: client-made-1")).json["x-request-id"] == "client-made-1"


@pytest.mark.slow
def test_no_other_host_name_and_no_page_of_serve_reaches_the_endpoint(proxied):
    for host in ("localhost", "other.example.org"):
        reply = ask(proxied.port, to("GET", "/", host=host))
        assert (reply.status, set(reply.json)) == (421, SHAPE)
    reply = ask(proxied.port, to("GET", "/-/routes"))
    assert (reply.status, reply.json["code"]) == (404, "not_found")


@pytest.mark.slow
def test_too_many_requests_are_told_when_to_come_back_and_an_endpoint_that_is_gone_is_answered_for(proxied, tmp_path):
    refused = [reply for reply in (ask(proxied.port, to("GET", "/")) for _ in range(120)) if reply.status == 429]
    assert refused
    assert all(set(reply.json) == SHAPE and reply.headers["retry-after"] == "1" for reply in refused)
    with nginx_before(*free_ports(1), tmp_path) as port:
        reply = ask(port, to("GET", "/"))
        assert (reply.status, reply.json["code"], reply.headers["retry-after"]) == (503, "not_ready", "5")
