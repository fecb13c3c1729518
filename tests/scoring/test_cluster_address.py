"""What a command says of an address where no Ray takes it in: soon, by name, with what to check. No Ray is started for it."""

import http.server
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc
import pytest
import ray
from ray._private.services import get_node_ip_address
from ray.core.generated.gcs_service_pb2 import CheckAliveReply, InternalKVGetReply
from ray.core.generated.gcs_service_pb2_grpc import (
    InternalKVGcsServiceServicer,
    NodeInfoGcsServiceServicer,
    add_InternalKVGcsServiceServicer_to_server,
    add_NodeInfoGcsServiceServicer_to_server,
)

from ray_app.archives import in_turn
from ray_app.cluster import ray_cluster
from ray_app.cluster.config import ClusterConfig
from ray_app.datajobs.download.config import CollectConfig
from ray_app.datajobs.download.run import wants_ray
from ray_app.datajobs.shards.config import PackConfig
from ray_app.datajobs.shards.run import _workers as workers
from ray_app.errors import ClusterError, ConfigError, ExitCode
from ray_app.serving.ray_server import _refuse_a_cluster as refuse_a_cluster
from tests.http_server import HttpServer

TOKEN = "a" * 40
# A fork per line of JSON, since Ray reads its token once and takes seconds to import: {"address": … or null, "environment": …}.
JOINING = """
import json, os, sys
import ray, ray.util.client
import ray._private.services as services
from ray_app.errors import ClusterError
from ray_app.cluster.config import ClusterConfig
from ray_app.cluster import ray_cluster as joining

def join(address, environment):
    os.environ.update(environment)
    if address:
        joining.HEAD_WAIT_S = 0.2
        ray.init, ray.nodes = lambda **given: print("taken"), list
    else:
        services.find_gcs_addresses = set  # others may have one on this machine
    try:
        with joining.cluster(ClusterConfig(address=address)):
            print("joined" if not address else "", end="")
    except ClusterError as error:
        print(error.message, error.hint)

for line in sys.stdin:
    if (child := os.fork()) == 0:
        join(**json.loads(line))
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(f"ended {status}", flush=True)
"""


class Head(NodeInfoGcsServiceServicer, InternalKVGcsServiceServicer):
    """Answers as a head does that runs this version of Ray on this Python and wants this token."""

    def __init__(self, version: str = ray.__version__, token: str | None = None, python: str | None = None) -> None:
        self.version, self.token, self.python = version, token, python

    def CheckAlive(self, request, context):  # noqa: N802
        if self.token is not None and dict(context.invocation_metadata()).get("authorization") != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken: Authentication token is missing or incorrect")
        return CheckAliveReply(ray_version=self.version)

    def InternalKVGet(self, request, context):  # noqa: N802
        assert (request.namespace, request.key) == (b"cluster", b"CLUSTER_METADATA")
        return InternalKVGetReply(value=json.dumps({"ray_version": ray.__version__, "python_version": self.python}).encode())


@pytest.fixture
def head_at():
    servers = []

    def start(head, port=0):
        server = grpc.server(futures.ThreadPoolExecutor(2))
        add_NodeInfoGcsServiceServicer_to_server(head, server)
        if getattr(head, "python", None) is not None:
            add_InternalKVGcsServiceServicer_to_server(head, server)
        port = server.add_insecure_port(f"0.0.0.0:{port}")  # Ray takes 127.0.0.1 for the machine's own address
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="module")
def in_child():
    """What a process of its own is told at an address that shows tokens: Ray reads that mode when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")} | {"RAY_AUTH_MODE": "token"}
    command, pipe = [sys.executable, "-c", JOINING], subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:

        def run(address, environment):
            print(json.dumps({"address": address, "environment": environment}), file=process.stdin, flush=True)
            told = []
            while not told or not told[-1].startswith("ended"):
                told.append(process.stdout.readline())
                assert told[-1], "the process has ended"
            assert told.pop() == "ended 0\n"
            return "".join(told)

        yield run
        process.stdin.close()


def refused(address, wait_s=0.2):
    """What a command is told that is to join at this address, and the seconds it took."""
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_cluster, "HEAD_WAIT_S", wait_s)
        patch.setattr(ray_cluster, "_POLL_S", 0.05)
        with pytest.raises(ClusterError) as caught:
            ray_cluster.require_head(address)
    assert caught.value.exit_code is ExitCode.CLUSTER
    assert address in caught.value.message
    return f"{caught.value.message} | {caught.value.hint}", time.monotonic() - began


def free_port():
    with socket.create_server(("0.0.0.0", 0)) as listening:
        return listening.getsockname()[1]


def test_a_head_that_is_gone():
    told, took = refused(f"127.0.0.1:{free_port()}")
    assert "no head there" in told
    assert "that the cluster is up" in told
    assert took > 0.2
    assert "no head there" in refused(f"ray://127.0.0.1:{free_port()}")[0]


def test_one_that_comes_back_within_the_wait(head_at, monkeypatch):
    monkeypatch.setattr(ray_cluster, "_POLL_S", 0.05)
    port = free_port()
    coming = threading.Timer(0.2, head_at, (Head(), port))
    coming.start()
    ray_cluster.require_head(f"127.0.0.1:{port}")
    coming.join()


def test_what_answers_otherwise_is_no_head_and_told_at_once(head_at):
    with socket.create_server(("0.0.0.0", 0)) as silent:
        assert "no answer in 0.2 s" in refused(f"127.0.0.1:{silent.getsockname()[1]}")[0]
    with HttpServer(http.server.SimpleHTTPRequestHandler, host=get_node_ip_address()) as server:
        told, took = refused(server.url.removeprefix("http://"), wait_s=200.0)
    assert "not a Ray head" in told
    assert "6379" in told
    assert took < 100
    nothing = head_at(NodeInfoGcsServiceServicer())  # every method is unimplemented, as at the port of Ray's client server
    assert "not a Ray head" in refused(nothing, wait_s=60.0)[0]
    ray_cluster.require_head(f"ray://{nothing}")


def test_a_token_is_shown_and_the_head_s_own_alone_is_taken(head_at, in_child, tmp_path):
    address = head_at(Head(token=TOKEN))
    assert in_child(address, {"RAY_AUTH_TOKEN": TOKEN}) == "taken\n"
    told = in_child(address, {"RAY_AUTH_TOKEN": "b" * 40})
    assert "does not accept this token" in told
    assert "RAY_AUTH_TOKEN" in told
    told = in_child(address, {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/nowhere/token", "HOME": str(tmp_path)})
    assert "this process has no token" in told
    assert "RAY_AUTH_TOKEN_PATH" in told


def test_ray_itself_is_not_asked_where_no_head_is(in_child, tmp_path):
    assert "no head there" in in_child(f"127.0.0.1:{free_port()}", {"RAY_AUTH_TOKEN": TOKEN})
    told = in_child(None, {"RAY_ADDRESS": "auto", "RAY_TMPDIR": str(tmp_path), "RAY_AUTH_TOKEN": TOKEN})
    assert "at auto" in told
    assert "check that it runs" in told


def test_local_names_no_cluster(monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: [{}])
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for said in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", said)
        assert (ray_cluster.named_cluster(), ray_cluster.has_other_nodes()) == (None, False)
        assert not wants_ray(CollectConfig(meta="a", out="b"), 1)
        with workers(PackConfig(source=("a",), out="b"), ray_cluster.on_ray) as each:
            assert each is in_turn
        refuse_a_cluster(ClusterConfig())
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert [ray_cluster.named_cluster(said) for said in (None, "other:6379", "local")] == ["head:6379", "other:6379", None]
    assert ray_cluster.has_other_nodes()
    assert wants_ray(CollectConfig(meta="a", out="b"), 1)
    with pytest.raises(ConfigError, match="names a cluster"):
        refuse_a_cluster(ClusterConfig())


def test_another_version_of_ray_or_python(head_at, monkeypatch):
    told, _ = refused(head_at(Head(version="2.49.0")))
    assert "Ray 2.49.0" in told
    assert f"Ray {ray.__version__}" in told
    own = platform.python_version()
    major, minor, patch = map(int, own.split("."))
    ray_cluster.require_head(head_at(Head(python=own)))
    for other in (f"{major}.{minor + 1}.{patch}", f"{major}.{minor}.{patch + 1}"):
        told, _ = refused(head_at(Head(python=other)))
        assert f"it runs Python {other}, this is Python {own}" in told
        assert "use the cluster's Python here" in told
    monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
    ray_cluster.require_head(head_at(Head(python=other)))
