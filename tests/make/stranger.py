"""Somebody who reaches the ports of a Ray and has no secret of it: who listens there, and what they
do for him. Knows processes alone.
"""

import http.client
import importlib
import json
import os
import pkgutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import grpc

from tests.make.ray_head import title_of
from tests.make.waiting import family_of

WRONG = "0" * 64
TIMEOUT_S = 5.0
_LISTENING = "0A"


class Listener(NamedTuple):
    """One listening TCP socket of a process, by the title of that process."""

    address: str
    port: int
    title: str


def outside_address():
    """An address of this machine that is not loopback, or None. Nothing is sent: the kernel only
    looks up what it would send from.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith("127.") else address


def listeners(pid):
    """The listening sockets of a process and all its descendants."""
    owners = {}
    for member in family_of(pid):
        with suppress(OSError):  # it may have ended
            for descriptor in os.listdir(f"/proc/{member}/fd"):
                with suppress(OSError):  # or closed the file
                    owners[os.readlink(f"/proc/{member}/fd/{descriptor}")] = title_of(member)
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTENING and (title := owners.get(f"socket:[{words[9]}]")) is not None:
                address, _, port = words[1].partition(":")
                found.add(Listener(_readable(address), int(port, 16), title))
    return found


def _readable(address):
    """The kernel's hexadecimal words, each in the machine's byte order, as people write an address."""
    packed = b"".join(bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, packed).removeprefix("::ffff:")


def is_open(host, port):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as caller:
        caller.settimeout(TIMEOUT_S)
        return caller.connect_ex((host, port)) == 0


def http_requests(marker):
    """(method, path, body) of what starts code, reads objects or logs, or changes state in Ray's
    agents and dashboard.
    """
    job = {"entrypoint": f"touch {marker}", "submission_id": "stranger"}
    application = {"applications": [{"name": "stranger", "import_path": "os:getcwd"}]}
    return [
        *(("POST", path, job) for path in ("/api/job_agent/jobs/", "/api/jobs/")),
        *(("POST", f"{path}stranger/stop", {}) for path in ("/api/job_agent/jobs/", "/api/jobs/")),
        ("PUT", "/api/serve/applications/", application),
        ("DELETE", "/api/serve/applications/", None),
        *(
            ("POST", path, {})
            for path in (
                "/get_or_create_runtime_env",
                "/delete_runtime_env_if_possible",
                "/get_runtime_envs_info",
            )
        ),
        *(
            ("GET", path, None)
            for path in (
                "/api/v0/nodes",
                "/api/v0/logs",
                "/logs/",
                "/nodes?view=summary",
                "/api/jobs/",
                "/log_proxy",
            )
        ),
        *(
            ("GET", f"/worker/{what}?pid=1", None)
            for what in ("traceback", "cpu_profile", "memory_profile")
        ),
    ]


def http_answers(host, port, requests, token=None):
    """{(method, path): status} of an HTTP port that answers; {} for one that speaks something else."""
    answers = {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for method, path, body in requests:
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {token}"} if token else {}
        )
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://{host}:{port}{path}", data, headers, method=method
        )
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                answers[method, path] = answer.status
        except urllib.error.HTTPError as error:
            answers[method, path] = error.code
        except (OSError, http.client.HTTPException):  # no HTTP
            return answers
    return answers


def grpc_methods():
    """Every method of every service that Ray and Serve can offer; the object manager's have no
    Python of their own.
    """
    methods = {f"/ray.rpc.ObjectManagerService/{name}" for name in ("Push", "Pull", "FreeObjects")}
    for package in ("ray.core.generated", "ray.serve.generated"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if module.name.endswith("_pb2"):
                services = importlib.import_module(
                    f"{package}.{module.name}"
                ).DESCRIPTOR.services_by_name.values()
                methods |= {
                    f"/{service.full_name}/{method.name}"
                    for service in services
                    for method in service.methods
                }
    return methods


def grpc_answers(host, port, methods, token=None):
    """{method: status code} of a gRPC port, asked with an empty message; {} for one that speaks
    something else.
    """
    metadata = [("authorization", f"Bearer {token}")] if token else []
    answers = {}
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=TIMEOUT_S)
        except grpc.FutureTimeoutError:
            return {}
        calls = {
            method: channel.unary_unary(method).future(b"", timeout=TIMEOUT_S, metadata=metadata)
            for method in sorted(methods)
        }
        for method, call in calls.items():
            answers[method] = call.code()
    return answers


JOINING = """
import sys, ray
ray.init(address=sys.argv[1], logging_level="CRITICAL", log_to_driver=False)
print("joined", len(ray.nodes()))
"""


def joins(address, token=None):
    """Whether `ray.init(address)` of another process succeeds, with this token or none."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= (
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        if token
        else {"RAY_AUTH_MODE": "disabled"}
    )
    environment |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "2"}  # Ray would try for two minutes
    done = subprocess.run(
        [sys.executable, "-c", JOINING, address],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    return "joined" in done.stdout
