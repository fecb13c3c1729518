"""A cluster of several nodes on this machine; two nodes with a logical GPU each come once the run has begun.

    python tests/scoring/late_gpus.py SOURCE OUT CARD

Prints one JSON line: the summary's session, which nodes scored, and the object store's use and spilling. Run by test_split.py.
"""

import json
import os
import subprocess
import sys
import time

import ray
from ray.cluster_utils import Cluster

STORE_BYTES = 200 * 2**20


def main(source, out, card):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES})
    command = [sys.executable, "-m", "ray_app.cli.main", "score", source, "--out", out, "--detector", card, "--set", "block_members=16",
               "--set", "batch_slots=4", "--set", "cluster.gpus=2", "--set", "cluster.cpus=3", "--set", f"cluster.address={cluster.address}"]  # fmt: skip
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        while not os.path.exists(os.path.join(out, "manifest", "00000", "_complete")) and driver.poll() is None:
            time.sleep(0.05)
        for _ in range(2):
            cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE_BYTES)
        most, scorers = 0, set()
        while driver.poll() is None:
            most = max(most, used_bytes())
            scorers |= busy_gpus()
            time.sleep(0.2)
        output, errors = driver.communicate()
        print(json.dumps({"returncode": driver.returncode, "errors": errors[-3000:], "most_bytes": most, "gpu_nodes": len(scorers),
                          "spilled": spilled_bytes()}))  # fmt: skip
    finally:
        driver.kill()
        ray.shutdown()
        cluster.shutdown()
