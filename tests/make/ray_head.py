"""A Ray head node of its own, as an operator starts one; ended by the ids of its own processes."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.make.waiting import family_of, kill_family, wait_until

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """`environment` makes commands find it; `address` is its dashboard's, `gcs` its own, `logs` the
    folder of its session's logs.
    """

    environment: dict
    address: str
    gcs: str
    process: subprocess.Popen
    logs: Path

    def pids(self, title):
        """The processes of this cluster whose title begins so, for example
        `ray::ServeReplica:touchstone:detectors`.
        """
        return [pid for pid in family_of(self.process.pid) if title_of(pid).startswith(title)]


def without_ray_start(errors):
    """Return the lines of a command's stderr without the one in which Ray says that it has read
    RAY_BACKEND_LOG_LEVEL.
    """
    return [line for line in errors.splitlines() if "RAY_BACKEND_LOG_LEVEL" not in line]


def title_of(pid):
    try:
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode(errors="replace")
            .strip()
        )
    except OSError:
        return ""


def pool_workers(process):
    """Return the processes in which a command applies a function with `map_in_pool`."""
    return [pid for pid in family_of(process.pid) if title_of(pid).startswith("ray::_Worker")]


def rss_of(pid):
    """Bytes in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def outer_address():
    """The address of this machine that other machines reach, as Ray finds it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("8.8.8.8", 80))  # Nothing is sent.
        except OSError:  # There is no route.
            return socket.gethostbyname(socket.gethostname())
        return probe.getsockname()[0]


# An autoscaler that starts nodes on this machine within seconds, and removes them six seconds after
# their last work.
AUTOSCALED = {
    "cluster_name": "fake",
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.1,
    **{name: {} for name in ("auth", "docker", "file_mounts")},
    **{
        name: []
        for name in (
            "cluster_synced_files",
            "initialization_commands",
            "setup_commands",
            "head_setup_commands",
        )
    },
    **{
        name: []
        for name in (
            "worker_setup_commands",
            "head_start_ray_commands",
            "worker_start_ray_commands",
        )
    },
}
PROVIDER = {
    "type": "fake_multinode",
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
    "launch_multiple": True,
}


def write_autoscaling(path, gcs, node_types):
    """The config for `ray start --autoscaling-config` of a head at `gcs` with such nodes beside it."""
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    types = {
        name: {"node_config": {}, "min_workers": 0, **node} for name, node in node_types.items()
    }
    most = sum(node["max_workers"] for node in types.values())
    provider = {**PROVIDER, "gcs_address": gcs}
    path.write_text(
        json.dumps(
            {
                **AUTOSCALED,
                "max_workers": most,
                "provider": provider,
                "available_node_types": {"ray.head.default": head, **types},
            }
        )
    )


@contextmanager
def ray_head(cpus=2, *, node_types=None, programs=BIN, environment=os.environ, **variables):
    """A head on free ports. `variables` are added to its `environment`; an autoscaler starts nodes
    of `node_types` as it finds right.
    """
    gcs, dashboard, agent, client, grpc, metrics = free_ports(6)
    environment = environment | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{programs}:{environment['PATH']}",
    }
    # It keeps the Rays of this process to loopback.
    environment.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)
    with tempfile.TemporaryDirectory(prefix="ts", dir="/tmp") as folder:
        command = [
            programs / "ray", "start", "--head", "--block", f"--num-cpus={cpus}", "--object-store-memory=209715200", f"--temp-dir={folder}",
            f"--port={gcs}", f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
            f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}",
        ]  # fmt: skip
        place = f"{outer_address()}:{gcs}"
        if node_types is not None:
            write_autoscaling(Path(folder) / "autoscaling.json", place, node_types)
            command += [f"--autoscaling-config={folder}/autoscaling.json"]
            variables |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        with open(Path(folder) / "start.log", "w") as log:
            process = subprocess.Popen(command, env=environment | variables, stdout=log, stderr=log)
            address = f"http://127.0.0.1:{dashboard}"
            try:
                wait_until(
                    lambda: _answers(
                        f"{address}/api/jobs/", process, environment["RAY_AUTH_TOKEN"]
                    ),
                    120,
                )
                yield Head(
                    environment | {"RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": address},
                    address,
                    place,
                    process,
                    Path(folder) / "session_latest" / "logs",
                )
            finally:
                kill_family(process)


def _answers(url, process, token):
    assert process.poll() is None
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
