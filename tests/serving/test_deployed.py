"""`serve deploy` on a real head: the same scores by every way, replicas killed and updates made
under load, bodies of any size.
"""

import json
import os
import re
import select
import signal
import socket
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from benchmarks.load import Load, Photograph, load
from benchmarks.photographs import write_photographs
from benchmarks.work import QUALITY, SIZE
from ray_app.cli.main import main
from ray_app.serving.metrics import COUNTERS, GAUGES, HISTOGRAMS
from ray_app.serving.ray_server import SERVE_VARIABLES
from tests.make.ray_head import BIN, free_ports, ray_head, rss_of
from tests.make.runs import rows_of
from tests.make.waiting import wait_until
from tests.serving.cards import write_stricter
from tests.serving.http.live import request
from tests.serving.in_process import client
from tests.serving.served import words_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
REPLICA = "ray::ServeReplica:touchstone:"
MB = 2**20
# As configs/kubernetes/rayservice.yaml has it.
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
}


@pytest.fixture(scope="module")
def head():
    with ray_head(cpus=4, PYTHONPATH=str(ROOT), **SERVE_VARIABLES, **HAPROXY) as running:
        yield running


class Deployed:
    """An endpoint of a head node, and its Serve file."""

    def __init__(self, head, folder, port):
        self.head, self.file, self.url = head, folder / "serve.yaml", f"http://127.0.0.1:{port}"
        self.config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": port, "request_timeout_s": 60},
            "logging_config": {
                "encoding": "JSON",
                "log_level": "WARNING",
                "enable_access_log": False,
            },
        }
        application = {
            "name": "touchstone",
            "route_prefix": "/",
            "import_path": "ray_app.serving.app:build",
        }
        self.config["applications"] = [
            application
            | {
                "args": {
                    "ensembles": ["tiny"],
                    "access": {"anonymous": True},
                    "replica": {"replicas": 2, "num_cpus": 0.4},
                }
            }
        ]

    def replicas(self):
        """Process ids of the replicas."""
        return self.head.pids(REPLICA + "replica")

    def workers(self):
        """Process ids of the workers of all replicas."""
        return [
            child.pid
            for pid in self.replicas()
            for child in psutil.Process(pid).children()
            if any("serving.worker" in word for word in words_of(child))
        ]

    def deploy(self, **args):
        """`serve deploy` with these args changed."""
        self.config["applications"][0]["args"] |= args
        self.file.write_text(yaml.safe_dump(self.config))
        command = [BIN / "serve", "deploy", str(self.file), "-a", self.head.address]
        done = subprocess.run(
            command, env=self.head.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @contextmanager
    def changed(self, **args):
        """The endpoint with these args changed, as long as the block lasts."""
        kept = {name: self.config["applications"][0]["args"][name] for name in args}
        self.deploy(**args)
        yield
        self.deploy(**kept)
        wait_until(lambda: self.fingerprint() and self.status() == "RUNNING")

    def fingerprint(self):
        """The one that answers now, or None."""
        try:
            answer = httpx.get(f"{self.url}/readyz", timeout=10, trust_env=False)
        except httpx.TransportError:
            return None
        return answer.json()["ensembles"][0]["fingerprint"] if answer.status_code == 200 else None

    def status(self):
        """Serve's own word on the application."""
        token = {"Authorization": f"Bearer {self.head.environment['RAY_AUTH_TOKEN']}"}
        with httpx.Client(trust_env=False, headers=token) as asking:
            answer = asking.get(f"{self.head.address}/api/serve/applications/").json()
        return answer["applications"]["touchstone"]["status"]


@pytest.fixture(scope="module")
def deployed(head, tmp_path_factory):
    running = Deployed(head, tmp_path_factory.mktemp("serve"), free_ports(1)[0])
    running.deploy()
    wait_until(lambda: running.fingerprint() and running.status() == "RUNNING")
    return running


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, ray_cluster):
    """JPEG photographs of about 200 KB, and the scores of a batch run over them."""
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder / "archive", 24, size=SIZE, quality=QUALITY)
    assert (
        main(["score", str(folder / "archive"), "--ensemble", "tiny", "--out", str(folder / "run")])
        == 0
    )
    return [
        Photograph(Path(uri).name, Path(uri).read_bytes(), row["score"])
        for uri, row in rows_of(folder / "run").items()
    ]


def test_prometheus_finds_the_counts_of_all_replicas(deployed, photographs):
    groups = json.loads(
        (deployed.head.logs.parents[1] / "prom_metrics_service_discovery.json").read_text()
    )
    targets = {target for group in groups for target in group["targets"]}

    def scraped():
        """What all targets count; Ray also lists services that this cluster has not started."""
        pages = []
        for target in targets:
            with suppress(httpx.ConnectError):
                pages.append(httpx.get(f"http://{target}/metrics", trust_env=False).text)
        return "".join(pages)

    def answered():
        return sum(
            map(
                float,
                re.findall(
                    r'touchstone_requests_total\{[^}]*route="/v1/score",[^}]*status="200"[^}]*\} (\S+)',
                    scraped(),
                ),
            )
        )

    before = answered()
    with client(deployed.url) as asking:
        for _ in range(20):
            asking.post("/v1/score", content=photographs[0].data).raise_for_status()
        asking.post("/v1/score", content=b"no image")
        wait_until(lambda: answered() == before + 20, 60)
        own = asking.get("/metrics").text
    for page in (scraped(), own):
        assert set(
            re.findall(r"^# TYPE ray_touchstone_(\w+?)(?:_total)? ", page, re.MULTILINE)
        ) == {*COUNTERS, *HISTOGRAMS, *GAUGES}
    assert not re.search(r"\d+\.\d+\.\d+\.\d+|session_|WorkerId", own)


def test_load_while_replicas_are_killed(deployed, photographs):
    killed = []

    def kill(second, tally):
        if processes := {15: deployed.workers, 30: deployed.replicas}.get(second):
            killed.append(processes)
            os.kill(processes()[0], signal.SIGKILL)

    asked = Load(
        f"{deployed.url}/v1/score",
        clients=32,
        seconds=45,
        warm_up_s=2,
        precision="bf16",
        attempts=5,
    )
    done = load(asked, photographs, on_second=kill)
    assert killed == [deployed.workers, deployed.replicas]
    assert done.ok > 500
    assert done.wrong == 0
    assert (
        done.unsteady == {}
        or max(abs(seen[-1] - seen[0]) for seen in done.unsteady.values()) < 1e-4
    )
    assert done.lost == 0, "a client that tries again is answered"
    assert all(second > 29 for second, _ in done.troubles), "a killed worker fails no request"
    assert done.other <= 32, "a killed replica fails only its running requests"
    assert done.p99_s < 30
    wait_until(lambda: len(deployed.replicas()) == 2 and len(deployed.workers()) == 2)


def test_overload_is_refused_and_deadlines_are_kept(deployed, photographs):
    done = load(
        Load(f"{deployed.url}/v1/score", clients=200, seconds=10, precision="bf16"), photographs
    )
    assert done.back_pressure > 0
    assert done.other == 0, done.troubles
    assert done.p99_s < 30


def test_update_under_load_fails_no_request(deployed, photographs, tmp_path):
    before, seen = deployed.fingerprint(), set()
    # abstained on by the one card, real by the other
    between = next(one for one in photographs if -1.43 < one.expected < 0)
    told = set()

    def update(second, tally):
        if second == 3:
            deployed.deploy(ensembles=[write_stricter(tmp_path)])
        elif second > 3:
            seen.add(deployed.fingerprint())
        with client(deployed.url) as asking:
            for answer in [asking.post("/v1/score", content=between.data).json() for _ in range(5)]:
                told.add((answer["ensemble"]["fingerprint"], answer["verdict"]))

    def is_through(tally):
        return (
            len(seen - {None, before}) == 1
            and deployed.status() == "RUNNING"
            and not is_served(before)
        )

    def is_served(fingerprint):
        return any(deployed.fingerprint() == fingerprint for _ in range(6))

    asked = Load(f"{deployed.url}/v1/score", clients=8, seconds=240, precision="bf16")
    done = load(asked, photographs, on_second=update, until=is_through)
    assert done.other == 0, done.troubles
    assert done.ok > 100
    assert set(done.statuses) <= {"200", "503"}
    after = deployed.fingerprint()
    assert after not in (None, before)
    assert told == {(before, "abstain"), (after, "real")}, (
        "every answer names the fingerprint that decided it"
    )


def test_endless_body_is_cut_and_takes_no_memory(deployed):
    pids = [*deployed.head.pids("ray::ProxyActor"), *deployed.replicas()]
    before = {pid: rss_of(pid) for pid in pids}
    most, sent, answer = dict(before), 0, b""
    with socket.create_connection(
        ("127.0.0.1", int(deployed.url.rpartition(":")[2]))
    ) as connection:
        connection.sendall(request("POST", "/v1/score", "Transfer-Encoding: chunked"))
        connection.setblocking(False)
        chunk = b"%x\r\n%b\r\n" % (MB, bytes(MB))
        while sent < 2**30 and not answer:
            readable, writable, _ = select.select([connection], [connection], [], 30)
            if readable:
                answer = connection.recv(4096)
            elif writable:
                # it has answered and closed: the answer is there to be read
                with suppress(BrokenPipeError, ConnectionResetError):
                    sent += connection.send(chunk[sent % len(chunk) :])
            most = {pid: max(most[pid], rss_of(pid)) for pid in pids}
    assert answer.split(b" ", 2)[1] == b"413"
    assert all(most[pid] - before[pid] < 300 * MB for pid in pids)


def test_replicas_follow_the_load(deployed, photographs):
    # Serve waits ten minutes before it removes a replica that the load does not need.
    with deployed.changed(replica={"replicas": 1, "num_cpus": 0.3}):
        wait_until(lambda: len(deployed.replicas()) == 1 and deployed.status() == "RUNNING")
        deployed.deploy(replica={"replicas": 1, "max_replicas": 3, "num_cpus": 0.3})
        wait_until(lambda: len(deployed.workers()) == 1 and deployed.status() == "RUNNING")
        asked = Load(f"{deployed.url}/v1/score", clients=32, seconds=240, precision="bf16")
        done = load(asked, photographs, until=lambda tally: len(deployed.workers()) == 3)
        assert done.other == 0, done.troubles
        assert len(deployed.replicas()) == 3
