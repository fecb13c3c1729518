"""configs/proxy/nginx.conf, run by a real nginx before a real uvicorn: endless and dripping bodies cost neither of them memory."""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ray_app.serving.config import ServeConfig
from ray_app.serving.http.errors import MESSAGES
from tests.ray_head import free_ports
from tests.scoring.conftest import wait_until

ROOT = Path(__file__).resolve().parents[2]
CONF = (ROOT / "configs/proxy/nginx.conf").read_text()
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
HOST = "touchstone.example.org"
SHAPE = {"code", "message", "limit", "observed", "request_id"}

# Reads a whole body and says how long it was; without one, which headers it heard.
UPSTREAM = """
import json, sys, uvicorn

async def app(scope, receive, send):
    said, more = {key.decode(): value.decode() for key, value in scope["headers"]}, scope["method"] == "POST"
    if more:
        said = 0
    while more:
        message = await receive()
        said, more = said + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", lifespan="off")
"""


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Proxied:
    """nginx before uvicorn, both on free ports."""

    def __init__(self, folder: Path) -> None:
        self.port, self.upstream_port = free_ports(2)
        conf = CONF.replace("127.0.0.1:8000", f"127.0.0.1:{self.upstream_port}").replace("listen 8080", f"listen 127.0.0.1:{self.port}")
        conf = conf.replace("client_body_timeout 40s", "client_body_timeout 4s").replace("/dev/stdout", str(folder / "access.log"))
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
            conf = conf.replace("server_tokens off;", f"server_tokens off; {kind}_temp_path {folder}/{kind};", 1)
        (folder / "nginx.conf").write_text(f"daemon off; {'user root;' if os.getuid() == 0 else ''}\n" + conf)
        self.folder = folder
        self.nginx = subprocess.Popen(
            [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"], stderr=(folder / "nginx.log").open("w")
        )
        self.upstream = subprocess.Popen([sys.executable, "-c", UPSTREAM, str(self.upstream_port)])

    def wait(self) -> None:
        wait_until(lambda: listens(self.port) and listens(self.upstream_port))

    def close(self) -> None:
        for process in (self.nginx, self.upstream):
            process.terminate()
            process.wait(10)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def begun(self, header: str, value: object) -> http.client.HTTPConnection:
        """A request of which only the head has been sent."""
        connection = self.connect()
        connection.putrequest("POST", "/v1/score", skip_host=True)
        connection.putheader("Host", HOST)
        connection.putheader(header, str(value))
        connection.endheaders()
        return connection

    def ask(self, method: str, path: str, headers=(), body=None, host=HOST):
        connection = self.connect()
        connection.request(method, path, body=body, headers={"Host": host, **dict(headers)})
        return answer_of(connection)


def answer_of(connection: http.client.HTTPConnection):
    with contextlib.closing(connection):
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers


@pytest.fixture(scope="module")
def proxied(tmp_path_factory):
    if NGINX is None:
        pytest.skip("no nginx: apt-get install nginx")
    running = Proxied(tmp_path_factory.mktemp("nginx"))
    try:
        running.wait()
        yield running
    finally:
        running.close()


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
    announced = proxied.begun("Content-Length", 10 * 10**9)
    chunked = proxied.begun("Transfer-Encoding", "chunked")
    chunked.send(b"%x\r\nx" % (65 * 2**20))  # a chunk tells its size before it comes
    for connection in (announced, chunked):
        status, said, _ = answer_of(connection)
        assert (status, said["code"], said["limit"]) == (413, "body_too_large", 64 * 2**20)
        assert set(said) == SHAPE


@pytest.mark.slow
def test_a_body_without_end_is_cut_and_reaches_neither_the_endpoint_nor_the_disk(proxied):
    connection = proxied.begun("Transfer-Encoding", "chunked")
    chunk, deadline = b"100000\r\n" + bytes(2**20) + b"\r\n", time.monotonic() + 60
    with contextlib.suppress(ConnectionError, TimeoutError):
        while time.monotonic() < deadline:
            connection.send(chunk)
    assert time.monotonic() < deadline, "it was never cut"
    peak_kb = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{proxied.upstream.pid}/status").read_text())[1]
    assert int(peak_kb) < 2**17
    assert not list((proxied.folder / "client_body").iterdir()), "an image would lie on the disk"


@pytest.mark.slow
def test_a_body_at_the_limit_passes_and_one_that_stops_is_closed(proxied):
    assert proxied.ask("POST", "/v1/score", body=bytes(64 * 2**20))[:2] == (200, 64 * 2**20)
    with pytest.raises(ConnectionError):
        answer_of(proxied.begun("Content-Length", 1000))


@pytest.mark.slow
def test_large_and_slow_headers_are_ended_before_the_endpoint_hears_of_them(proxied):
    for headers in ({"X-Big": "x" * 9000}, {f"X-{number}": "x" * 1000 for number in range(40)}):
        status, said, _ = proxied.ask("GET", "/", headers=headers)
        assert (status, said["code"]) == (431, "headers_too_large")
    with socket.create_connection(("127.0.0.1", proxied.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""


@pytest.mark.slow
def test_claims_of_a_client_do_not_pass(proxied):
    steering = ["X-Request-Timeout-Seconds", "X-Request-Disconnect-Disabled", "X-Session-Id", "Serve-Multiplexed-Model-Id"]
    claims = {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1", "X-Real-IP": "127.0.0.1", "X-Request-Id": "bad id\x7f"}
    claims |= dict.fromkeys(steering, "1")
    status, heard, headers = proxied.ask("GET", "/", headers=claims)
    assert status == 200
    assert heard["host"] == f"{HOST}:{proxied.port}", "as a browser's Origin has it"
    assert heard["x-forwarded-for"] == "127.0.0.1"  # nginx's own view: the test runs on this machine
    assert not {"forwarded", "x-real-ip", *map(str.lower, steering)} & set(heard)
    assert re.fullmatch(r"[0-9a-f]{32}", heard["x-request-id"])
    assert "uvicorn" not in headers["Server"]
    assert proxied.ask("GET", "/", headers={"X-Request-Id": "client-made-1"})[1]["x-request-id"] == "client-made-1"


@pytest.mark.slow
def test_no_other_host_name_and_no_page_of_serve_reaches_the_endpoint(proxied):
    for host in ("localhost", "other.example.org"):
        status, said, _ = proxied.ask("GET", "/", host=host)
        assert (status, set(said)) == (421, SHAPE)
    status, said, _ = proxied.ask("GET", "/-/routes")
    assert (status, said["code"]) == (404, "not_found")


@pytest.mark.slow
def test_too_many_requests_are_told_when_to_come_back_and_an_endpoint_that_is_gone_is_answered_for(proxied):
    answers = [proxied.ask("GET", "/") for _ in range(120)]
    refused = [(said, headers) for status, said, headers in answers if status == 429]
    assert refused
    assert all(set(said) == SHAPE and headers["Retry-After"] == "1" for said, headers in refused)
    wait_until(lambda: proxied.ask("GET", "/")[0] == 200)
    proxied.upstream.terminate()
    proxied.upstream.wait(10)
    status, said, headers = proxied.ask("GET", "/")
    assert (status, said["code"], headers["Retry-After"]) == (503, "not_ready", "5")
