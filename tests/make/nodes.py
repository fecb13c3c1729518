"""A cluster of three nodes on this machine, held by a process of its own that does what it is told,
line by line.

    python -m tests.make.nodes [GPUS]     → {"address": …, "nodes": {id: pid of its raylet}} after the start and after each line

`add` brings a node, `add PATH` one that imports modules from there first, `count` looks who lives,
`drain ID SECONDS` gives a node the notice of a spot machine. A process of its own, because
`add_node` wants the main thread and a driver of its own.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

STORE_BYTES = 100 * 2**20
# Ray notices a node that is silent after 15 s by default; a test need not wait for so long.
NOTICES_SOON = {
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
    "health_check_initial_delay_ms": 1000,
}


def main(gpus):
    node = {"num_cpus": 1, "num_gpus": gpus, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": NOTICES_SOON})
    nodes = [cluster.add_node(wait=False, **node) for _ in range(2)]
    cluster.wait_for_nodes(timeout=120)
    tell(cluster, nodes)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "add":
            nodes.append(
                cluster.add_node(
                    **node, env_vars={"PYTHONPATH": ":".join([*rest, os.environ["PYTHONPATH"]])}
                )
            )
        if word == "drain":
            deadline_ms = int((time.time() + float(rest[1])) * 1000)
            client = ray._raylet.GcsClient(address=cluster.address)
            assert client.drain_node(
                rest[0], autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION, "spot", deadline_ms
            )[0]
        tell(cluster, nodes)
    cluster.shutdown()


def tell(cluster, nodes):
    raylets = {
        node.node_id: process.pid
        for node in nodes
        if (process := node.all_processes["raylet"][0].process).poll() is None
    }
    told = {"address": cluster.address, "head": cluster.head_node.node_id, "nodes": raylets}
    print(json.dumps(told), flush=True)


class Nodes:
    """Such a cluster, from outside."""

    def __init__(self, gpus=0):
        root = Path(__file__).resolve().parents[2]
        quiet = {
            "RAY_BACKEND_LOG_LEVEL": "fatal",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(root),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.make.nodes", str(gpus)],
            cwd=root, env=os.environ | quiet, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.hear()

    def tell(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        self.hear()

    def hear(self):
        for line in self.process.stdout:
            if line.startswith('{"address"'):
                told = json.loads(line)
                self.address, self.head, self.raylets = (
                    told[name] for name in ("address", "head", "nodes")
                )
                return
        raise AssertionError("the cluster did not start")


if __name__ == "__main__":
    main(int(*sys.argv[1:] or [0]))
