"""A cluster of several nodes on this machine, to which two nodes with a logical GPU each come once the run has begun.

    python -m tests.scoring.late_gpus SOURCE OUT

A process of its own, because `add_node` wants the main thread and a driver of its own. Prints one JSON line for test_split.py.
"""

import json
import os
import subprocess
import sys
import time

import ray
from ray._private.internal_api import memory_summary
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

STORE_BYTES = 200 * 2**20


def main(source, out):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": True})
    settings = ["block_members=16", "batch_slots=4", "cluster.gpus=2", "device=cpu", "cluster.cpus=3", f"cluster.address={cluster.address}"]
    command = [sys.executable, "-m", "ray_app.cli.main", "score", source, "--out", out, "--ensemble", "tiny"]
    command += [argument for setting in settings for argument in ("--set", setting)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        while not os.path.exists(os.path.join(out, "manifest", "0", "_complete")) and driver.poll() is None:
            time.sleep(0.05)
        for _ in range(2):
            cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE_BYTES)
        scorer_nodes, summary = set(), ""
        while driver.poll() is None:
            summary = memory_summary(cluster.address, stats_only=True) or summary
            scorer_nodes |= {
                actor.node_id for actor in list_actors(detail=True) if "TensorScorer" in actor.class_name and actor.state == "ALIVE"
            }
            time.sleep(0.5)
        _, errors = driver.communicate()
        print(json.dumps({"returncode": driver.returncode, "errors": errors[-3000:], "scorer_nodes": len(scorer_nodes),
                          "spilled": "Spilled" in summary, "last": summary[-2000:]}))  # fmt: skip
    finally:
        driver.kill()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:3])
